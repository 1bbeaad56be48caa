"""Make data/results/gated.jsonl: pushes towards refusal behind a gate, beside pushes on every request.

    python experiments/gated.py [alphasteer] [was]

The rows of chapters 09 and 11. The strength of each method is raised, or lowered, by a factor of 1.5 until its price,
the perplexity of the replies to dubious requests as a multiple of the unsteered replies', is below 1.5 at one strength
and above it at the next, on the test part. The layer was chosen for the plain vector in a first look at layers 6 to 14,
on 20 dubious requests of the validation part. Resumable: a cell whose row is there is not run again. A
quarter of an hour on two quiet CPU cores.
"""

import copy
import sys
from collections.abc import Sequence

import torch
from rows import RESULTS, Rows, rounded
from torch.nn.functional import normalize
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import GREEDY_24, REFUSALS
from austeer.methods import CAA, WAS, AlphaSteer, DirectionalAUSteer
from austeer.methods.alphasteer import null_space, ridge_gate
from austeer.methods.was import answer_loss, output_direction, with_layer_weights
from austeer.models import apply_template
from austeer.steering import Shift, Steering

PRICE, FACTOR = 1.5, 1.5
LAYER, START = 12, 0.5  # START: length of a first push, in median norms
REFUSING = ["I apologize", "I cannot", "I'm sorry", "I am unable", "I can't"]
COMPLYING = ["Sure", "Here", "Of course", "Certainly", "Yes"]
REFUSAL = "I'm sorry, but I can't help with that."
Candidate = tuple[dict, Steering, float]  # what it is, the steering at strength 1, the first strength to run


def turns(model, prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a user's turns, without the default model's system message."""
    return [text[max(0, text.find("<|im_start|>user")) :] for text in apply_template(model, list(prompts), "chat")]


def first_blocks(model, count: int):
    """Return a model of the first blocks alone: what they write does not hang on later ones."""
    module = copy.deepcopy(model._module)
    module.model.layers, module.config.num_hidden_layers = module.model.layers[:count], count
    return au.load(module, tokenizer=model.tokenizer)


def requests(model) -> dict[str, au.data.Split]:
    """Return the requests of each kind, in parts, as the model reads them."""
    parts = {kind: au.split(au.load_prompts(kind)) for kind in ("dubious", "lookalikes")}
    parts["requests"] = au.split(au.load_prompts("requests"), train=0.89, validation=0.03)
    return {kind: au.data.Split(*(turns(model, [one.prompt for one in of]) for of in parts[kind])) for kind in parts}


def refusal_pairs(model, part: str) -> list[au.ContrastivePair]:
    """Return refusals and answers to harmless requests, as the model reads them."""
    pairs = getattr(au.split(au.load_pairs("refusal")), part)
    prompts = turns(model, [pair.prompt for pair in pairs])
    return [
        au.ContrastivePair(prompt, pair.positive.strip(), pair.negative.strip(), pair.topic)
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]


class Measure:
    """Replies to requests of each kind: refusals, price, which are as without steering; and how likely answers are.

    Args:
        model: the model.
        most: how many requests of each kind, of the test part.
    """

    def __init__(self, model, most: int):
        self.model, self.pairs = model, refusal_pairs(model, "test")[:most]
        given = {kind: of.test for kind, of in requests(model).items()}
        self.prompts = {kind: texts[:: max(1, len(texts) // most)][:most] for kind, texts in given.items()}
        self.texts = self.replies(None)
        self.refused = sum(bool(REFUSALS.search(text)) for text in self.texts["dubious"]) / len(self.texts["dubious"])
        self.price = au.pooled(au.perplexity(model, self.texts["dubious"], self.prompts["dubious"]))

    def replies(self, steering: Steering | None) -> dict[str, list[str]]:
        """Return the replies to the requests of each kind."""
        every = [text for texts in self.prompts.values() for text in texts]
        texts = iter(au.generate(self.model, every, steering, rows_per_pass=256, **GREEDY_24))
        return {kind: [next(texts) for _ in prompts] for kind, prompts in self.prompts.items()}

    def __call__(self, steering: Steering | None) -> dict:
        """Return lists, one number a request, and the price; `answers` is log p of good answers, in nats each."""
        texts = self.replies(steering)
        cost = au.perplexity(self.model, texts["dubious"], self.prompts["dubious"])
        found = {
            "refused": {kind: [int(bool(REFUSALS.search(text))) for text in of] for kind, of in texts.items()},
            "same": {kind: [int(a == b) for a, b in zip(texts[kind], self.texts[kind], strict=True)] for kind in texts},
            "perplexity": rounded(cost),
            "repetition": rounded(au.repetition(texts["dubious"])),
            "price": round(au.pooled(cost) / self.price, 4),
        }
        if steering is None or steering.about["method"] != "WAS":  # which cannot score an answer in one pass
            answers = [pair.negative for pair in self.pairs], [pair.prompt for pair in self.pairs]
            found["answers"] = rounded(au.log_probability(self.model, *answers, steering), 3)
        return found


def at_price(rows: Rows, measure: Measure, candidate: Candidate) -> tuple[float, float]:
    """Run strengths until the price is crossed; return which share of dubious requests is refused there, and alpha."""
    cell, steering, alpha = candidate
    seen = {}
    for _ in range(8):
        this = {"part": "test", **cell, "alpha": float(f"{alpha:.3g}")}
        row = rows.get(cell=this) or rows.add({"cell": this, **measure(steering * this["alpha"])})
        refused = row["refused"]["dubious"]
        seen[this["alpha"]] = sum(refused) / len(refused), row["price"]
        below, above = ([a for a in seen if (seen[a][1] < PRICE) == under] for under in (True, False))
        if below and above:
            points = [(measure.refused, 1.0), *(seen[a] for a in sorted(seen))]
            return au.at_price(*zip(*points, strict=True), price=PRICE), max(below)
        alpha = max(seen) * FACTOR if below else min(seen) / FACTOR
    return -1.0, max(seen)  # no strength costs so much, or every one costs more


class Fitted:
    """The pushes of chapter 09 at strength 1, fitted on the training part.

    Args:
        model: the model.
    """

    def __init__(self, model):
        self.model = model
        self.momentum = au.activation_momentum(model, refusal_pairs(model, "train"), "residual")
        reader = first_blocks(model, LAYER + 1)
        self.x = {
            kind: au.collect(reader, of.train, "residual")[:, LAYER].double() for kind, of in requests(model).items()
        }

    def start(self) -> float:
        """Return the strength at which the mean difference has half the median norm of the activations."""
        size = self.x["dubious"].norm(dim=1).median() / self.momentum.mean_difference[LAYER].norm()
        return START * size.item()

    def gate(self, share: float, shuffled: int | None = None) -> Steering:
        """Return AlphaSteer; with a seed, its requests to push are drawn from dubious ones and lookalikes."""
        dubious, alike, harmless = (self.x[kind] for kind in ("dubious", "lookalikes", "requests"))
        gram = torch.cat([harmless, alike]).T @ torch.cat([harmless, alike])
        if shuffled is not None:
            mixed = torch.cat([dubious, alike])
            order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(shuffled))
            dubious = mixed[order[: len(dubious)]]
        return AlphaSteer(self.momentum, {LAYER: ridge_gate(dubious, null_space(gram, share), 10.0)}, 1.0)

    def random(self, seed: int) -> Steering:
        """Return a random vector as long as the mean difference."""
        vector = self.momentum.mean_difference[LAYER]
        drawn = normalize(torch.randn(len(vector), generator=torch.Generator().manual_seed(seed)), dim=0)
        index = torch.arange(len(vector))
        tensors = {"layer": torch.full_like(index, LAYER), "index": index, "value": drawn * vector.norm()}
        return Steering([Shift("residual", tensors, "prompt")], self.momentum.model, {"method": "random"})


def gated(rows: Rows, test: Measure, fitted: Fitted) -> None:
    """Run the plain vector, AlphaSteer, its rivals, and controls at one strength."""
    start, cell = fitted.start(), {"method": "AlphaSteer", "layer": LAYER}
    vector = CAA(fitted.momentum, LAYER, 1.0, "prompt")
    _, alpha = at_price(rows, test, ({**cell, "method": "vector"}, vector, start))
    _, gated_alpha = at_price(rows, test, ({**cell, "share": 0.6}, fitted.gate(0.6), 2 * start))
    mixed = {**cell, "share": 0.6, "shuffled": 0}, fitted.gate(0.6, 0), gated_alpha
    drawn = {**cell, "method": "random", "seed": 0}, fitted.random(0), alpha
    for one, steering, strength in (mixed, drawn):
        this = {"part": "test", **one, "alpha": float(f"{strength:.3g}")}
        if not rows.get(cell=this):
            rows.add({"cell": this, **test(steering * this["alpha"])})
    units = au.activation_momentum(test.model, refusal_pairs(test.model, "train"), "attention").top(20)
    at_price(rows, test, ({"method": "AUSteer", "k": 20}, DirectionalAUSteer(units, 1.0, "prompt"), 5.9))


def controlled(rows: Rows, test: Measure) -> None:
    """Run WAS as its network is drawn, and with other layer weights."""
    model, given = test.model, requests(test.model)
    direction = output_direction(model, REFUSING, COMPLYING)
    was = WAS.fit(model, given["dubious"].train, given["requests"].train[::3], direction, 1.0, template=None)
    layers = model.austeer_info.shape[0]
    last = torch.full((layers,), 1e-6)
    last[-1] = 0.5
    at_price(rows, test, ({"method": "WAS", "weights": "drawn"}, was, 3.0))
    uniform = with_layer_weights(was, torch.full((layers,), 0.5))
    at_price(rows, test, ({"method": "WAS", "weights": "uniform"}, uniform, 3.0))
    about = {"part": "train", "method": "layer weights"}
    if not rows.get(cell=about):
        rows.add({"cell": about, **layer_weights(model, given["dubious"].train, direction, 4.0)})
    trained = torch.tensor(rows.get(cell=about)["trained"])
    trained = with_layer_weights(was, trained * 0.99 / trained.max())
    at_price(rows, test, ({"method": "WAS", "weights": "trained"}, trained, 9.0))
    at_price(rows, test, ({"method": "WAS", "weights": "last"}, with_layer_weights(was, last), 50.0))


def layer_weights(model, prompts: Sequence[str], direction: torch.Tensor, alpha: float) -> dict:
    """Train one weight a layer, with a mean of 0.5, on the model's loss on a refusal; return them and the losses."""
    logits, losses = torch.zeros(model.austeer_info.shape[0], requires_grad=True), []
    optimiser, generator = torch.optim.Adam([logits], lr=0.5), torch.Generator().manual_seed(0)
    for _ in tqdm(range(8), desc="training layer weights"):
        chosen = torch.randperm(len(prompts), generator=generator)[:8].tolist()
        weights = logits.softmax(0) * len(logits) / 2
        optimiser.zero_grad()
        loss = answer_loss(model, [prompts[row] for row in chosen], REFUSAL, direction, alpha * weights)
        loss.backward()
        optimiser.step()
        losses.append(round(loss.item(), 4))
    return {"trained": rounded((logits.softmax(0) * len(logits) / 2).detach()), "losses": losses}


def main(chapters: Sequence[str]) -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows, test = Rows(RESULTS / "gated.jsonl", model), Measure(model, 24)
    if not rows.get(cell={"part": "test", "method": "none"}):
        rows.add({"cell": {"part": "test", "method": "none"}, **test(None)})
    if "was" in chapters:
        controlled(rows, test)
    if "alphasteer" in chapters:
        gated(rows, test, Fitted(model))


if __name__ == "__main__":
    main(sys.argv[1:] or ["alphasteer", "was"])
