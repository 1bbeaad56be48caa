"""What the experiments on CAA share: the vectors of all layers at comparable norms, and the margins that they move."""

from dataclasses import replace

import torch
from rows import Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.methods import CAA
from austeer.steering import Steering


class Vectors:
    """The mean difference of every layer's residual stream, and the typical norm of what it is added to.

    Args:
        model: a model from `load()`.
        pairs: what is read, at the last token of both sides.
    """

    def __init__(self, model, pairs: list):
        positive, negative = au.collect(model, pairs, "residual")
        self.momentum = au.momentum_of(positive, negative, pairs, model, "residual")
        typical = torch.cat([positive, negative]).norm(dim=-1).median(0).values
        self.multiplier = typical / self.momentum.mean_difference.norm(dim=-1)  # (layers,): makes a vector that long

    def at(self, layer: int, norm: float) -> CAA:
        """Return the steering at a layer; its norm is given in typical norms of the layer."""
        return CAA(self.momentum, layer, norm * self.multiplier[layer].item())


def random_like(steering: CAA, seed: int) -> Steering:
    """Return the same steering with a random direction of the same norm."""
    (operator,) = steering.operators
    value = torch.randn(operator.tensors["value"].shape, generator=torch.Generator().manual_seed(seed))
    value *= operator.tensors["value"].norm() / value.norm()
    return Steering([replace(operator, tensors={**operator.tensors, "value": value})], steering.model, steering.about)


class Margins:
    """By how much log p(positive answer) exceeds log p(negative answer), and what a steering changes of it, in nats.

    Args:
        model: a model from `load()`.
        pairs: what is scored.
    """

    def __init__(self, model, pairs: list):
        self.model, self.pairs, self.unsteered = model, pairs, None

    def under(self, steering: Steering | None) -> torch.Tensor:
        """Return the margins, (pairs,)."""
        answers = [pair.positive for pair in self.pairs] + [pair.negative for pair in self.pairs]
        log_p = au.log_probability(self.model, answers, [pair.prompt for pair in self.pairs] * 2, steering)
        return log_p[: len(self.pairs)] - log_p[len(self.pairs) :]

    def change(self, steering: Steering) -> torch.Tensor:
        """Return by how much + and - move the margins, (2, pairs)."""
        if self.unsteered is None:
            self.unsteered = self.under(None)
        return torch.stack([self.under(sign) - self.unsteered for sign in (steering, -steering)])


def best_layer(rows: Rows, about: dict, vectors: Vectors, validation: Margins, layers: range, norm: float) -> int:
    """Measure layers on validation items, one row each; return the one where + and - are furthest apart."""
    found = {}
    for layer in tqdm(layers, desc=", ".join(map(str, about.values())), leave=False):
        cell = {**about, "part": "validation", "layer": layer, "norm": norm}
        row = rows.get(cell=cell)
        if row is None:
            change = validation.change(vectors.at(layer, norm))
            error = (change[0] - change[1]).std() / change.shape[1] ** 0.5
            row = rows.add({
                "cell": cell, "change": rounded(change.mean(1)), "error": round(error.item(), 4),
                "multiplier": round(vectors.multiplier[layer].item(), 4),
            })  # fmt: skip
        found[layer] = row["change"][0] - row["change"][1]
    return max(found, key=found.get)
