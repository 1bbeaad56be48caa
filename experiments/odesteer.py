"""Make data/results/odesteer.jsonl: ODESteer, its variants, and what its paper compares it with, at an equal price.

    python experiments/odesteer.py

The behaviour is mood; measure, test openings and search are those of equal_price.py. Everything acts at the layer
where CAA does best on validation openings, since that is how ODESteer's authors chose theirs; CAA's own rows and those
of single units are in equal_price.jsonl. Resumable; about a quarter of an hour on two CPU cores.
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


def candidate(fitted: Fitted, method: str, layer: int, **options) -> Candidate:
    """Return a cell, its steering, and a first strength that mostly is not far off."""
    start = {"LinAcT": 2.5, "MiMiC": 0.2, "random": 0.5}.get(method, 0.25)
    return {"method": method, "layer": layer, **options}, fitted.at(method, layer, **options), start


def candidates(model, pairs: list) -> Iterator[Candidate]:
    """Yield ODESteer, its rivals, the controls (random directions, labels without meaning), and other sketches."""
    sides = au.collect(model, pairs, "residual")
    fitted = Fitted(model, sides)
    for options in ({}, {"steps": 1}, {"components": None}):
        yield candidate(fitted, "ODESteer", LAYER, **options)
    for method in ("ITI", "RepE", "LinAcT", "MiMiC"):
        yield candidate(fitted, method, LAYER)
    for seed in range(5):
        yield candidate(fitted, "random", LAYER, seed=seed)
    for seed in range(3):
        both = zip(pairs, au.swap_topics(pairs, seed), strict=True)
        turned = torch.tensor([pair.positive != other.positive for pair, other in both])[:, None, None]
        swapped = torch.where(turned, sides[1], sides[0]), torch.where(turned, sides[0], sides[1])
        cell, steering, _ = candidate(Fitted(model, swapped), "ODESteer", LAYER)
        yield {**cell, "swap": seed}, steering, 0.5
    for options in (*({"seed": seed} for seed in (1, 2, 3)), {"gamma": 10.0}):
        yield candidate(fitted, "ODESteer", LAYER, **options)


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "odesteer.jsonl", model)
    measure = Measure(model, "mood", "test")
    for one in tqdm(candidates(model, au.split(au.load_pairs("sentiment")).train), total=19):
        at_equal_price(rows, measure, one)
        cell, steering, start = one
        first, below = (
            {"behaviour": "mood", "part": "test", **cell, "alpha": float(f"{alpha:.3g}")}
            for alpha in (start, start / FACTOR)
        )
        if not cell.keys() & {"seed", "swap"} and 1.3 < rows.get(cell=first)["price"] < PRICE:
            # In many draws of openings the first strength is above the price: have one that is below.
            _ = rows.get(cell=below) or rows.add({"cell": below, **measure(steering * below["alpha"])})


if __name__ == "__main__":
    main()
