"""Make data/results/caa.jsonl: the measurements of chapter 07 with the default model.

    python experiments/caa.py [grid] [test] [letters] [two] [unrelated]

grid       mood of validation openings, every third layer by four multipliers, both signs
test       the best layer on test openings at an equal price: positions, random directions, labels without meaning
letters    vectors fitted on A/B questions and on texts, measured on both
two        the vectors of two behaviours together
unrelated  what the mood vector does to other things; with AUSTEER_DATA also to COPA

Resumable; about 25 minutes on two quiet CPU cores, in parts that are shorter.
"""

import os
import sys
from itertools import product

import torch
from equal_price import Measure, at_equal_price
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm
from vectors import Margins, Vectors, best_layer, random_like

import austeer as au
from austeer.evaluation import GREEDY_24
from austeer.methods import CAA
from austeer.methods.caa import ab_pairs

LAYERS, MULTIPLIERS = range(0, 30, 3), (0.75, 1.5, 3.0, 6.0)
CHOICE = range(6, 30, 4)  # layers that texts and letters choose from
NORM, NORMS = 0.2, (0.1, 0.2)  # of vectors in typical norms of their layer, where texts and letters are compared
BEHAVIOURS, SETS = ("agreement", "refusal"), ("sentiment", "formality", "agreement", "refusal")


def grid(rows: Rows, model) -> int:
    """Run the grid on validation openings; return the layer with the largest effect at the price."""
    momentum = au.activation_momentum(model, au.split(au.load_pairs("sentiment")).train, "residual")
    measure, effects = None, {}
    for layer in tqdm(LAYERS, desc="grid"):
        found = [(0.0, 1.0)]
        for alpha in MULTIPLIERS:
            cell = {"part": "validation", "layer": layer, "alpha": alpha}
            row = rows.get(cell=cell)
            if row is None:
                measure = measure or Measure(model, "mood", "validation")
                row = rows.add({"cell": cell, **measure(CAA(momentum, layer, alpha))})
            plus, minus = torch.tensor(row["effect"])
            found.append(((plus - minus).mean().item(), row["price"]))
        if found[-1][1] >= 1.5:
            effects[layer] = au.at_price(*zip(*found, strict=True), price=1.5)
    return max(effects, key=effects.get)


def on_test(rows: Rows, model) -> None:
    """Run the best layer, its variants and its controls on test openings at an equal price."""
    pairs, layer = au.split(au.load_pairs("sentiment")).train, grid(rows, model)
    momentum, measure = au.activation_momentum(model, pairs, "residual"), Measure(model, "mood", "test")
    about = {"method": "CAA", "site": "residual", "layer": layer}
    caa = {positions: CAA(momentum, layer, 1.0, positions) for positions in ("last", "generated", "all", "prompt")}
    candidates = [({**about, "positions": positions}, steering, 2.0) for positions, steering in caa.items()]
    candidates.append(({**about, "positions": "twice after the prompt"}, caa["all"] + caa["generated"], 1.0))
    for seed in range(3):
        cell = {"method": "random direction", "layer": layer, "positions": "last", "seed": seed}
        candidates.append((cell, random_like(caa["last"], seed), 3.0))
    for seed in range(3):
        swapped = au.activation_momentum(model, au.swap_topics(pairs, seed), "residual")
        same = momentum.mean_difference[layer].norm() / swapped.mean_difference[layer].norm()
        cell = {"method": "labels without meaning", "layer": layer, "positions": "last", "seed": seed}
        candidates.append((cell, CAA(swapped, layer, same.item()), 3.0))
    for candidate in tqdm(candidates, desc="test"):
        at_equal_price(rows, measure, candidate)


def fits(rows: Rows, model, behaviour: str, forms: dict[str, tuple[list, list, list]]) -> None:
    """Fit on each form, choose a layer by the form's own margin, and measure on the test items of every form."""
    tests = {form: Margins(model, test) for form, (_, _, test) in forms.items()}
    for fitted, (train, validation, _) in forms.items():
        vectors, about = Vectors(model, train), {"behaviour": behaviour, "fitted": fitted}
        layer = best_layer(rows, about, vectors, Margins(model, validation), CHOICE, NORM)
        steerings = [("vector", norm, vectors.at(layer, norm)) for norm in NORMS]
        steerings += [(f"random {seed}", NORM, random_like(vectors.at(layer, NORM), seed)) for seed in range(3)]
        for measured, margins in tests.items():
            for direction, norm, steering in tqdm(steerings, desc=f"measured on {measured}", leave=False):
                cell = {**about, "measured": measured, "layer": layer, "direction": direction, "norm": norm}
                if rows.get(cell=cell) is None:
                    change = rounded(margins.change(steering), 3)
                    rows.add({"cell": cell, "change": change, "unsteered": rounded(margins.unsteered, 3)})


def letters(rows: Rows, model) -> None:
    """Fit on A/B questions and on texts; measure both on both."""
    for behaviour in tqdm(BEHAVIOURS, desc="letters and texts"):
        text = tuple(part[::2] for part in au.split(au.load_pairs(behaviour)))
        fits(rows, model, behaviour, {"text": text, "letters": tuple(map(ab_pairs, text))})


def two(rows: Rows, model) -> None:
    """Steer mood and formality, alone and together, and measure both."""
    train, validation, test = au.split(au.load_pairs("formality"))
    mood, register = Vectors(model, au.split(au.load_pairs("sentiment")).train), Vectors(model, train)
    about = {"behaviour": "formality", "fitted": "text"}
    layers = (
        grid(rows, model),
        best_layer(rows, about, register, Margins(model, validation[::2]), CHOICE, NORM),
    )
    openings, formality = [item.prompt for item in au.load_task("mood", "test").items], Margins(model, test[::2])
    for signs in tqdm([*product((-1, 0, 1), repeat=2)], desc="two behaviours"):
        cell = {"mood": signs[0], "formality": signs[1], "layers": layers, "norm": NORM}
        if rows.get(cell=cell) is None:
            parts = [v.at(at, NORM * sign) for v, at, sign in zip((mood, register), layers, signs, strict=True) if sign]
            steering = parts[0] + parts[1] if len(parts) == 2 else next(iter(parts), None)
            texts = au.generate(model, openings, steering, **GREEDY_24)
            rows.add({
                "cell": cell, "mood": rounded(au.sentiment(texts)), "formality": rounded(formality.under(steering), 3),
                "perplexity": rounded(au.perplexity(model, texts, openings), 3),
            })  # fmt: skip


def unrelated(rows: Rows, model) -> None:
    """Measure what the mood vector does to other behaviours, to requests, and to COPA if it is there."""
    layer = grid(rows, model)
    momentum = au.activation_momentum(model, au.split(au.load_pairs("sentiment")).train, "residual")
    sets = {name: Margins(model, au.split(au.load_pairs(name)).test[::2]) for name in SETS}
    requests = [item.prompt for item in au.load_prompts("requests")[::35]]
    for alpha in tqdm((0.0, 1.5, -1.5, 3.0, -3.0), desc="unrelated"):
        steering = CAA(momentum, layer, alpha) if alpha else None
        cell = {"unrelated": True, "layer": layer, "alpha": alpha}
        if rows.get(cell=cell) is None:
            found = {name: rounded(margins.under(steering), 3) for name, margins in sets.items()}
            far = rounded(au.kl(model, requests, steering)) if steering else [0.0] * len(requests)
            rows.add({"cell": cell, **found, "kl": far})
        cell = {"task": "copa_balanced", "layer": layer, "alpha": alpha}
        if rows.get(cell=cell) is None and os.environ.get("AUSTEER_DATA"):
            items = au.load_task("copa_balanced", n=100).items
            pairs = [au.ContrastivePair(item.prompt, item.right[0], item.wrong[0]) for item in items]
            rows.add({"cell": cell, "margin": rounded(Margins(model, pairs).under(steering), 3)})


def main() -> None:
    """Run the parts that are named, or all that can be run."""
    model = au.load()
    rows = Rows(RESULTS / "caa.jsonl", model)
    parts = {"grid": grid, "test": on_test, "letters": letters, "two": two, "unrelated": unrelated}
    for name in sys.argv[1:] or parts:
        parts[name](rows, model)


if __name__ == "__main__":
    main()
