"""Make data/results/caa.jsonl: the measurements of chapter 07 with the default model.

    python experiments/caa.py [positions] [two] [unrelated]

positions  mood of test openings at an equal price: where the vector is added, and labels without meaning
two        the vectors of mood and of formality together
unrelated  what the mood vector does to other things; with AUSTEER_DATA also to COPA

The grid of layers and multipliers, and CAA's own rows on test, are those of equal_price.jsonl. Resumable; five
minutes on two quiet CPU cores.
"""

import os
import sys
from itertools import product

import torch
from equal_price import Measure, at_equal_price
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm
from vectors import Margins, Vectors

import austeer as au
from austeer.methods import CAA

LAYER, ALPHA = 24, 2.94  # where CAA did best on validation openings of chapter 05, and the multiplier nearest the price
NORM = 0.1  # of two vectors together, each in typical norms of the layer
SETS = ("formality", "agreement", "refusal")


def positions(rows: Rows, model) -> None:
    """Run the places where the vector is added at an equal price, and labels without meaning at one norm."""
    pairs, measure = au.split(au.load_pairs("sentiment")).train, Measure(model, "mood", "test")
    positive, negative = au.collect(model, pairs, "residual")
    momentum = au.momentum_of(positive, negative, pairs, model, "residual")
    places = {where: CAA(momentum, LAYER, 1.0, where) for where in ("generated", "all", "prompt")}
    places["twice after the prompt"] = places["all"] + places["generated"]
    for where, steering in tqdm(places.items(), desc="positions"):
        start = {"prompt": 8.0, "twice after the prompt": 2.1}.get(where, ALPHA)
        at_equal_price(rows, measure, ({"method": "CAA", "layer": LAYER, "positions": where}, steering, start))
    for seed in tqdm(range(3), desc="labels without meaning"):
        turned = [
            pair.positive != other.positive for pair, other in zip(pairs, au.swap_topics(pairs, seed), strict=True)
        ]
        turned = torch.tensor(turned)[:, None, None]
        swapped = torch.where(turned, negative, positive), torch.where(turned, positive, negative)
        swapped = au.momentum_of(*swapped, pairs, model, "residual")
        same = (momentum.mean_difference[LAYER].norm() / swapped.mean_difference[LAYER].norm()).item()
        cell = {"behaviour": "mood", "part": "test", "method": "CAA", "layer": LAYER, "swap": seed, "alpha": ALPHA}
        if rows.get(cell=cell) is None:
            rows.add({"cell": cell, **measure(CAA(swapped, LAYER, same * ALPHA))})


def two(rows: Rows, model) -> None:
    """Steer mood and formality, alone and together, and measure both on test pairs."""
    parts = {name: au.split(au.load_pairs(name)) for name in ("sentiment", "formality")}
    vectors = [Vectors(model, parts["sentiment"].train), Vectors(model, parts["formality"].train[::2])]
    sets = {name: Margins(model, part.test[::4]) for name, part in parts.items()}
    for given in tqdm([*product((0, 1), repeat=2)], desc="two behaviours"):
        cell = {"two": given, "layer": LAYER, "norm": NORM}
        if rows.get(cell=cell) is None:
            added = [vector.at(LAYER, NORM) for vector, wanted in zip(vectors, given, strict=True) if wanted]
            steering = added[0] + added[1] if len(added) == 2 else next(iter(added), None)
            rows.add({"cell": cell, **{name: rounded(margins.under(steering), 3) for name, margins in sets.items()}})


def unrelated(rows: Rows, model) -> None:
    """Measure what the mood vector does to other behaviours, and to COPA if it is there."""
    momentum = au.activation_momentum(model, au.split(au.load_pairs("sentiment")).train, "residual")
    sets = {name: Margins(model, au.split(au.load_pairs(name)).test[::4]) for name in SETS}
    for alpha in tqdm((0.0, ALPHA, -ALPHA), desc="unrelated"):
        steering = CAA(momentum, LAYER, alpha) if alpha else None
        cell = {"unrelated": True, "layer": LAYER, "alpha": alpha}
        if rows.get(cell=cell) is None:
            rows.add({"cell": cell, **{name: rounded(margins.under(steering), 3) for name, margins in sets.items()}})
        cell = {"task": "copa_balanced", "layer": LAYER, "alpha": alpha}
        if rows.get(cell=cell) is None and os.environ.get("AUSTEER_DATA"):
            items = au.load_task("copa_balanced", n=60).items
            pairs = [au.ContrastivePair(item.prompt, item.right[0], item.wrong[0]) for item in items]
            rows.add({"cell": cell, "margin": rounded(Margins(model, pairs).under(steering), 3)})


def main() -> None:
    """Run the parts that are named, or all."""
    model = au.load()
    rows = Rows(RESULTS / "caa.jsonl", model)
    parts = {"positions": positions, "two": two, "unrelated": unrelated}
    for name in sys.argv[1:] or parts:
        parts[name](rows, model)


if __name__ == "__main__":
    main()
