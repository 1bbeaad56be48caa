"""ITI (arXiv 2306.03341): shift the attention heads whose activations tell the two sides apart best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import collect
from austeer.data import ContrastivePair, text_hash
from austeer.models import info
from austeer.momentum import require_count
from austeer.sites import anatomy
from austeer.steering import Shift, Steering, require_strength


class ITI(Steering):
    """Inference-time intervention: x_head <- x_head + alpha sigma theta at the K heads with the best linear probes.

    Made by `ITI.fit`. theta is the unit vector from the mean of the one side to that of the other, sigma the standard
    deviation of the projections on it. Where the paper estimates sigma on further prompts, the pairs serve here.
    """

    @classmethod
    def fit(
        cls, model, pairs: Sequence[ContrastivePair], heads: int = 48, alpha: float = 15.0, *,
        positions: str = "last", template: str | None = None,
    ) -> ITI:  # fmt: skip
        """Probe every head at the last token, and shift the best ones.

        Args:
            model: a model from `load()`.
            pairs: contrastive pairs; about a fifth of the topics is held out to score the probes.
            heads: K, how many heads of all layers together.
            alpha: strength, in standard deviations.
            positions: "last" (the last token of every pass, as the paper), "all", "prompt" or "generated".
            template: None or "chat".

        Raises:
            ValueError: more heads than the model has, pairs of too few topics to hold some out, or as `collect`.
        """
        found = anatomy(model)
        require_count("heads", heads, found.layers * found.heads)
        topics = [pair.topic or pair.prompt for pair in pairs]
        order = sorted(set(topics), key=lambda topic: text_hash(f"probe {topic}"))  # not the hash that `split` goes by
        if len(order) < 2:
            raise ValueError(f"{len(pairs)} pairs leave no topic to score probes on; give pairs of more topics.")
        held_out = set(order[: max(1, len(order) // 5)])
        train = torch.tensor([topic not in held_out for topic in topics])
        sides = collect(model, pairs, "attention", template=template)
        positive, negative = (side.unflatten(2, (found.heads, -1)) for side in sides)  # (pairs, layers, heads, size)
        accuracy = _probe(positive, negative, train).flatten()
        best = accuracy.argsort(descending=True, stable=True)[:heads]

        theta = positive.mean(0) - negative.mean(0)  # (layers, heads, size)
        theta = theta / theta.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        sigma = (torch.cat([positive, negative]) * theta).sum(-1).std(0)  # (layers, heads)
        width = found.widths["attention"]
        value = (theta * sigma[..., None]).flatten(0, 1)[best]  # (K, size)
        layer, head = best // found.heads, best % found.heads
        index = head[:, None] * (width // found.heads) + torch.arange(width // found.heads)
        tensors = {
            "layer": layer[:, None].expand_as(index).flatten(), "index": index.flatten(), "value": value.flatten(),
        }  # fmt: skip
        about = {"method": "ITI", "alpha": require_strength(alpha), "heads": heads, "pairs": len(pairs)}
        about |= {"template": template, "site": "attention", "shape": [found.layers, width]}
        about |= {"probes": round(accuracy[best].mean().item(), 3)}
        return cls([Shift("attention", tensors, positions, alpha)], info(model), about)


def _probe(positive: Tensor, negative: Tensor, train: Tensor) -> Tensor:
    """Return (layers, heads): the accuracy of a logistic regression for each head, on the pairs held out."""
    from sklearn.linear_model import LogisticRegression  # a second to import

    layers, heads = positive.shape[1:3]
    accuracy = torch.zeros(layers, heads)
    label = torch.cat([torch.ones(len(train)), torch.zeros(len(train))])
    known = torch.cat([train, train])
    with tqdm(total=layers * heads, desc="probing heads", unit="head", leave=False) as bar:
        for layer in range(layers):
            for head in range(heads):
                x = torch.cat([positive[:, layer, head], negative[:, layer, head]]).numpy()
                probe = LogisticRegression(max_iter=1000).fit(x[known], label[known].numpy())
                accuracy[layer, head] = probe.score(x[~known], label[~known].numpy())
                bar.update()
    return accuracy
