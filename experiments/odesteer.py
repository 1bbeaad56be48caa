"""Make data/results/odesteer.jsonl: ODESteer, its variants, and what its paper compares it with, at an equal price.

    python experiments/odesteer.py

The behaviour is mood; measure, test openings and search are those of equal_price.py. Everything acts at the layer
where CAA does best on validation openings, since that is how ODESteer's authors chose theirs; CAA's own rows and those
of single units are in equal_price.jsonl. The controls are run at one length of the path, a quarter of the median norm.
Resumable; five minutes on two quiet CPU cores.
"""

from collections.abc import Iterator

import torch
from equal_price import FACTOR, PRICE, Candidate, Measure, at_equal_price
from rows import RESULTS, Rows
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

import austeer as au
from austeer.methods import LinAcT, MiMiC, ODESteer
from austeer.models import info
from austeer.steering import Shift, Steering

LAYER = 24


class TwoWays(Steering):
    """A transport and the one for the way back, so that it has a negative, which a single map lacks."""

    def __init__(self, there: Steering, back: Steering):
        super().__init__(there.operators, there.model, there.about)
        self.there, self.back = there, back

    def __mul__(self, factor: float) -> "TwoWays":
        if factor < 0:
            return TwoWays(self.back * -factor, self.there * -factor)
        return TwoWays(self.there * factor, self.back * factor)


class Fitted:
    """The methods at strength 1.

    Args:
        model: a model from `load()`.
        sides: activations of the positive and the negative side, (pairs, layers, width) each.
    """

    def __init__(self, model, sides: tuple[torch.Tensor, torch.Tensor]):
        self.model, self.sides = model, sides

    def along(self, layer: int, direction: torch.Tensor, positions: str = "last") -> Steering:
        """Return a shift along a direction whose length at strength 1 is the median norm of the activations."""
        unit = torch.cat(self.sides)[:, layer].norm(dim=1).median()
        everywhere = torch.arange(len(direction))
        tensors = {"layer": torch.full_like(everywhere, layer), "index": everywhere}
        tensors["value"] = direction / direction.norm() * unit
        return Steering([Shift("residual", tensors, positions)], info(self.model), {"method": "direction"})

    def at(self, method: str, layer: int, **options) -> Steering:
        """Return a method at a layer, at strength 1."""
        positive, negative = self.sides
        if method == "ODESteer":
            return ODESteer(self.model, positive, negative, layer, 1.0, **options)
        if method in ("LinAcT", "MiMiC"):
            kind = {"LinAcT": LinAcT, "MiMiC": MiMiC}[method]
            return TwoWays(kind(self.model, positive, negative, layer), kind(self.model, negative, positive, layer))
        p, n = positive[:, layer], negative[:, layer]
        if method == "ITI":  # as coded beside ODESteer: the weights of one probe of the whole residual
            label = torch.cat([torch.ones(len(p)), torch.zeros(len(n))]).numpy()
            probe = LogisticRegression(max_iter=1000).fit(torch.cat([p, n]).numpy(), label)
            return self.along(layer, torch.from_numpy(probe.coef_[0]).float())
        if method == "RepE":  # the first principal component, with the sign that the code leaves open
            first = torch.linalg.svd(p - n - (p - n).mean(0), full_matrices=False).Vh[0]
            return self.along(layer, first * (first @ (p - n).mean(0)).sign())
        generator = torch.Generator().manual_seed(options["seed"])
        return self.along(layer, torch.randn(p.shape[1], generator=generator))


def candidates(fitted: Fitted) -> Iterator[Candidate]:
    """Yield ODESteer, one step of it, it without the sketch, and its rivals."""
    for options in ({}, {"steps": 1}, {"components": None}):
        yield {"method": "ODESteer", "layer": LAYER, **options}, fitted.at("ODESteer", LAYER, **options), 0.25
    for method, start in (("ITI", 0.25), ("RepE", 0.25), ("LinAcT", 2.5), ("MiMiC", 0.2)):
        yield {"method": method, "layer": LAYER}, fitted.at(method, LAYER), start


def controls(fitted: Fitted, pairs: list, seed: int) -> Iterator[Candidate]:
    """Yield a random direction, a fit on labels without meaning, and another sketch, for one length of the path."""
    cell = {"method": "ODESteer", "layer": LAYER}
    yield {**cell, "method": "random", "seed": seed}, fitted.at("random", LAYER, seed=seed), 0.25
    both = zip(pairs, au.swap_topics(pairs, seed), strict=True)
    turned = torch.tensor([pair.positive != other.positive for pair, other in both])[:, None, None]
    positive, negative = fitted.sides
    swapped = torch.where(turned, negative, positive), torch.where(turned, positive, negative)
    yield {**cell, "swap": seed}, Fitted(fitted.model, swapped).at("ODESteer", LAYER), 0.25
    yield {**cell, "seed": seed + 1}, fitted.at("ODESteer", LAYER, seed=seed + 1), 0.25


def main() -> None:
    """Run the cells that are missing."""
    model, pairs = au.load(), au.split(au.load_pairs("sentiment")).train
    rows, measure = Rows(RESULTS / "odesteer.jsonl", model), Measure(model, "mood", "test")
    fitted = Fitted(model, au.collect(model, pairs, "residual"))

    def at(cell: dict, steering: Steering, alpha: float) -> dict:
        cell = {"behaviour": "mood", "part": "test", **cell, "alpha": float(f"{alpha:.3g}")}
        return rows.get(cell=cell) or rows.add({"cell": cell, **measure(steering * cell["alpha"])})

    for one in tqdm(candidates(fitted), total=7, desc="at one price"):
        at_equal_price(rows, measure, one)
        if 1.3 < at(*one)["price"] < PRICE:  # in many draws of openings it is above the price: have one that is below
            at(*one[:2], one[2] / FACTOR)
    for seed in tqdm(range(3), desc="controls"):
        for one in controls(fitted, pairs, seed):
            at(*one)


if __name__ == "__main__":
    main()
