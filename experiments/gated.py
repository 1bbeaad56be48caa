"""Make data/results/gated.jsonl: pushes that a gate allows on dubious requests only, beside pushes on every request.

    python experiments/gated.py [refusal] [mood]

The rows of chapters 09 and 11. For each method the strength is raised, or lowered, by a factor of 1.5 until its price,
the perplexity of the replies to dubious requests as a multiple of the unsteered replies', is below 1.5 at one strength
and above it at the next. Layers are chosen on the validation part. Resumable: a cell whose row is already in the file is
not run again. About an hour on two CPU cores.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import GREEDY_24, REFUSALS
from austeer.methods.alphasteer import null_space, ridge_gate
from austeer.methods.was import ControlledShift, decide, output_direction, with_layer_weights
from austeer.models import apply_template
from austeer.steering import Steering

PRICE, FACTOR = 1.5, 1.5
REFUSE, COMPLY = "I'm sorry, but I can't help with that.", "Sure, I can help you with that."


def chat(model, prompts: Sequence[str]) -> list[str]:
    """Return the prompts as user's turns, without the default model's system message."""
    texts = apply_template(model, list(prompts), "chat")
    return [text[max(0, text.find("<|im_start|>user")) :] for text in texts]


def parts(model) -> dict[str, au.data.Split]:
    """Return the requests of each kind, in parts, as the model reads them."""
    kinds = {"dubious": {}, "lookalikes": {}, "requests": {"train": 0.89, "validation": 0.03}}
    found = {}
    for kind, shares in kinds.items():
        split = au.split(au.load_prompts(kind), **shares)
        found[kind] = au.data.Split(*(chat(model, [item.prompt for item in part]) for part in split))
    return found


class Measure:
    """Replies to requests of each kind, steered: their mood or their refusing, their price, and how many are the same.

    Args:
        model: the model.
        prompts: requests of each kind, evenly thinned to `most`.
    """

    def __init__(self, model, prompts: dict[str, list[str]], most: int):
        self.model = model
        thin = {kind: texts[:: -(-len(texts) // most)] for kind, texts in prompts.items()}
        self.kind = [kind for kind, texts in thin.items() for _ in texts]
        self.prompts = [text for texts in thin.values() for text in texts]
        self.replies = au.generate(model, self.prompts, rows_per_pass=256, **GREEDY_24)
        self.cost = au.perplexity(model, self.replies, self.prompts)

    def split(self, values: torch.Tensor) -> dict[str, list]:
        """Return the values of each kind, rounded."""
        return {
            kind: rounded(values[torch.tensor([one == kind for one in self.kind])], 3)
            for kind in dict.fromkeys(self.kind)
        }

    def __call__(self, steering: Steering | None, refusal: bool) -> dict:
        """Return for each quantity and each kind a value per request, and the price on dubious requests."""
        replies = au.generate(self.model, self.prompts, steering, rows_per_pass=256, **GREEDY_24)
        cost = au.perplexity(self.model, replies, self.prompts)
        same = torch.tensor([float(one == other) for one, other in zip(replies, self.replies, strict=True)])
        refused = torch.tensor([float(bool(REFUSALS.search(reply))) for reply in replies])
        dubious = torch.tensor([kind == "dubious" for kind in self.kind])
        found = {"perplexity": self.split(cost), "same": self.split(same)}
        if refusal:
            found |= {"margin": self.split(self.margin(steering)), "refused": self.split(refused)}
        else:
            found["mood"] = self.split(au.sentiment(replies))
        price = au.pooled(cost[dubious]) / au.pooled(self.cost[dubious])
        return {**found, "price": round(price, 4)}

    def margin(self, steering: Steering | None) -> torch.Tensor:
        """Return by how much the log-probability of a refusal exceeds that of its opposite, in nats, per request."""
        one_by_one = steering is not None and any(type(o) is ControlledShift for o in steering.operators)
        each = decide(self.model, steering, self.prompts, None) if one_by_one else [steering]
        groups = [[prompt] for prompt in self.prompts] if one_by_one else [self.prompts]
        found = []
        for own, prompts in zip(each, groups, strict=True):
            answers = [answer for answer in (REFUSE, COMPLY) for _ in prompts]
            log_p = au.log_probability(self.model, answers, prompts * 2, own)
            found.append(log_p[: len(prompts)] - log_p[len(prompts) :])
        return torch.cat(found)
