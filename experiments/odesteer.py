"""Make data/results/odesteer.jsonl: ODESteer, its variants, and what its paper compares it with, at an equal price.

    python experiments/odesteer.py

The behaviour is mood; measure, test openings and search are those of equal_price.py. Everything acts at the layer
where CAA does best on validation openings, since that is how ODESteer's authors chose theirs; CAA's own rows and those
of single units are in equal_price.jsonl. Resumable; about a quarter of an hour on two CPU cores.
"""

from collections.abc import Iterator

import torch
from equal_price import FACTOR, Candidate, Measure, at_equal_price
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
    """The methods at strength 1, from activations that are read once.

    Args:
        model: a model from `load()`.
        pairs: to fit on.
    """

    def __init__(self, model, pairs: list):
        self.model, self.sides = model, au.collect(model, pairs, "residual")

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
    """Yield ODESteer, its variants and its rivals, then the controls: labels without meaning, random directions."""
    fitted = Fitted(model, pairs)
    for options in ({}, {"steps": 1}, {"components": None}):
        yield candidate(fitted, "ODESteer", LAYER, **options)
    for method in ("ITI", "RepE", "LinAcT", "MiMiC"):
        yield candidate(fitted, method, LAYER)
    for options in (*({"seed": seed} for seed in (1, 2, 3)), {"gamma": 10.0}):
        yield candidate(fitted, "ODESteer", LAYER, **options)
    for seed in range(3):
        cell, steering, _ = candidate(Fitted(model, au.swap_topics(pairs, seed)), "ODESteer", LAYER)
        yield {**cell, "swap": seed}, steering, 0.5
    for seed in range(10):
        yield candidate(fitted, "random", LAYER, seed=seed)


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "odesteer.jsonl", model)
    measure = Measure(model, "mood", "test")
    for one in tqdm(candidates(model, au.split(au.load_pairs("sentiment")).train), total=24):
        at_equal_price(rows, measure, one)
        cell, steering, start = one
        if not cell.keys() & {"seed", "swap"}:  # a strength below: draws of few openings may cross the price there
            cell = {"behaviour": "mood", "part": "test", **cell, "alpha": float(f"{start / FACTOR:.3g}")}
            _ = rows.get(cell=cell) or rows.add({"cell": cell, **measure(steering * cell["alpha"])})


if __name__ == "__main__":
    main()
