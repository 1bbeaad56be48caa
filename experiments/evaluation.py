"""Every method on answer tasks, chosen on validation and reported on test: `make eval MODEL=... TASKS="boolq sst2"`.

    python experiments/evaluation.py [--model ID] [--device cuda] [--dtype bfloat16] [--seed 0] [task ...]

First the unsteered model answers validation items without and with examples in the prompt; the better form of a task
is kept. A task of which it then solves less than one in ten has nothing to steer; for the others one row per method.
Needs AUSTEER_DATA, or the hub for the tasks that are there. The rows of the default model go to
data/results/evaluation.jsonl, those of another one to _build/. Resumable: a cell whose row is already in the file is
not run again. The default takes about an hour on two CPU cores.
"""

import argparse
import time
from pathlib import Path

from rows import RESULTS, Rows
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import score
from austeer.models import DEFAULT
from austeer.sites import anatomy
from austeer.steering import Steering

METHODS = ("AUSteer", "random units", "directional", "ITI", "SADI", "CAA")
SHOTS = (0, 4)  # examples in the prompt
LEAST = 0.1  # share of solved items below which a task is not steered
# Items of each part, pairs to fit on: few where an item is dear on two cores. (The paper finds 300 pairs to do about as
# well as 1,000.)
TASKS = {
    "sst2": (200, 300),
    "copa_balanced": (150, 300),
    "winogrande": (100, 300),
    "boolq": (50, 150),
    "mawps": (50, 200),
    "svamp": (50, 200),
}


def better_form(rows: Rows, model, same: dict) -> tuple[int, float]:
    """Return with how many examples the unsteered model does best on validation items, and how well."""
    found = {}
    for shots in SHOTS:
        cell = {**same, "method": "unsteered", "shots": shots, "part": "validation"}
        row = rows.get(cell=cell)
        if row is None:
            task = au.load_task(same["task"], "validation", n=same["n"], seed=same["seed"], shots=shots)
            report = score(model, task, None, None, {})
            row = rows.add({"cell": cell, "chance": round(report.chance, 4), "scores": _scores(report)})
        found[shots] = next(iter(row["scores"].values()))[0]
    best = max(SHOTS, key=lambda shots: (found[shots], -shots))
    return best, found[best]


def candidates(model, pairs: list, seed: int) -> dict[str, dict[str, Steering]]:
    """Return each method's settings to choose from; random units get as many as the paper's rule."""
    methods, layers = au.methods, anatomy(model).layers
    momentum = {site: au.activation_momentum(model, pairs, site) for site in ("attention", "ffn", "residual")}
    rule: dict[str, dict[str, Steering]] = {name: {} for name in METHODS}
    for site in ("attention", "ffn"):
        for k, alpha in ((20, 5), (20, 20)):
            name = f"{site}, k {k}, alpha {alpha}"
            rule["AUSteer"][name] = methods.AUSteer(momentum[site].top(k), alpha)
            rule["random units"][name] = methods.AUSteer(momentum[site].random(k, seed), alpha)
    for k, alpha in ((20, 8), (100, 4)):
        units = momentum["attention"].top(k)
        rule["directional"][f"attention, k {k}, alpha {alpha}"] = methods.DirectionalAUSteer(units, alpha)
    iti = methods.ITI.fit(model, pairs, alpha=1.0)
    rule["ITI"] = {f"alpha {alpha}": iti * alpha for alpha in (5, 15)}
    rule["SADI"] = {
        f"heads 10, delta {delta}": methods.SADI(model, momentum["attention"], 10, delta) for delta in (1, 4)
    }
    rule["CAA"] = {
        f"layer {layer}, alpha 1": methods.CAA(momentum["residual"], layer, 1.0)
        for layer in (layers // 3, layers // 2, 2 * layers // 3)
    }
    return rule


def row_of(found: au.Selection, seconds: float) -> dict:
    """Write a selection as a row: what was searched, what was chosen, what it does on the test part."""
    plain, test = found.unsteered[1], found.test
    return {
        "rule": test.task.rule,
        "chance": round(test.chance, 4),
        "items": len(test.task.items),
        "searched": {
            name: {"score": round(report.mean(), 4), "perplexity": round(report.price["perplexity"], 3)}
            for name, report in found.searched.items()
        },
        "chosen": found.name,
        "unsteered": _scores(plain),
        "test": _scores(test),
        "gain": {name: round(value, 4) for name, value in test.gain_over(plain).items()},
        "curse": round(found.curse, 4),
        "price": {name: round(value, 4) for name, value in test.price.items()},
        "seconds": round(seconds, 1),
    }


def _scores(report: au.Report) -> dict[str, list[float]]:
    return {name: [round(v, 4) for v in (report.mean(name), *report.interval(name))] for name in report.scores}


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model = au.load(asked.model, device=asked.device, dtype=asked.dtype)
    other = Path("_build") / f"evaluation-{model.austeer_info.id.replace('/', '--')}.jsonl"
    rows = Rows(RESULTS / "evaluation.jsonl" if model.austeer_info.id == DEFAULT else other, model)
    for task in asked.tasks:
        n, pairs = TASKS.get(task, (100, 300))
        same = {"task": task, "n": n, "seed": asked.seed, "dtype": asked.dtype}
        shots, solved = better_form(rows, model, same)
        cells = {method: {**same, "method": method, "shots": shots} for method in METHODS}
        if solved < LEAST or all(rows.get(cell=cell) for cell in cells.values()):
            continue
        fitting = au.pairs_of(au.load_task(task, "train", shots=shots, seed=asked.seed))[:pairs]
        settings, unsteered = candidates(model, fitting, asked.seed), None
        for method, cell in tqdm(cells.items(), desc=task):
            if not rows.get(cell=cell):
                start = time.perf_counter()
                about = {"n": n, "seed": asked.seed, "shots": shots, "limit": 2.0, "unsteered": unsteered}
                try:
                    found = au.select(model, task, settings[method], **about)
                except ValueError:  # all of them are too dear
                    weaker = {f"a tenth of {name}": one * 0.1 for name, one in settings[method].items()}
                    found = au.select(model, task, weaker, **about)
                unsteered = found.unsteered
                rows.add({"cell": cell, **row_of(found, time.perf_counter() - start)})


if __name__ == "__main__":
    main()
