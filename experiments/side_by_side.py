"""Make data/results/side_by_side.jsonl: every method of the book in one table, from the rows of the other experiments.

    python experiments/side_by_side.py

For each method: the effect at 1.5 times the unsteered perplexity on test items, with an interval of 95 %, from the rows
that the chapters read; how many scalars of a token it changes; how many numbers it is made of; how long its fit takes,
from the pairs to the steering; and what a token costs, as a multiple of an unsteered one, by turns in one run.
Resumable; a quarter of an hour on two quiet CPU cores, which the last two columns need to themselves.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import riser
import torch
from equal_price import PRICE
from gated import COMPLYING, LAYER, REFUSING, Fitted, refusal_pairs, requests
from odesteer import LAYER as FLOW_LAYER
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import GREEDY_24
from austeer.methods import CAA, ITI, RISER, SADI, WAS, AUSteer, DirectionalAUSteer, LinAcT, MiMiC, ODESteer
from austeer.methods.was import output_direction
from austeer.models import info
from austeer.scoring import interval
from austeer.steering import Shift, Steering

REPEATS = 3
UNITS = {"method": "AUSteer", "site": "attention", "choice": "momentum"}
FIXED = {**UNITS, "rule": "directional", "strength": "fixed"}
SPECIAL = {"rank", "positions", "seed", "swap", "shuffled", "steps", "components"}  # of rows that are variants


class Entry(NamedTuple):
    """A line of the table: where the rows are, what their cells say, and the fit, which returns strength 1."""

    rows: str
    cell: dict
    fit: Callable[[], Steering]


def mood(model) -> dict[str, Entry]:
    """Return what swings the mood, with the settings that validation chose."""
    pairs = au.split(au.load_pairs("sentiment")).train

    def momentum(site: str = "attention") -> au.ActivationMomentum:
        return au.activation_momentum(model, pairs, site)

    def at(layer: int, method: str) -> dict:
        return {"method": method, "layer": layer}

    return {
        "`DirectionalAUSteer`, 1 unit": Entry(
            "equal_price", {**FIXED, "k": 1}, lambda: DirectionalAUSteer(momentum().top(1), 1.0),
        ),
        "`DirectionalAUSteer`, 20 units": Entry(
            "equal_price", {**FIXED, "k": 20}, lambda: DirectionalAUSteer(momentum().top(20), 1.0),
        ),
        "`DirectionalAUSteer`, all units": Entry(
            "equal_price", {**FIXED, "k": 17280}, lambda: DirectionalAUSteer(momentum().top(17280), 1.0),
        ),
        "`AUSteer`, 20 units": Entry(
            "equal_price", {**UNITS, "rule": "multiplicative", "strength": "weighted", "k": 20},
            lambda: AUSteer(momentum().top(20), 1.0),
        ),
        "`CAA`": Entry(
            "equal_price", {**at(24, "CAA"), "site": "residual"}, lambda: CAA.fit(model, pairs, 24, 1.0),
        ),
        "`ITI`": Entry("equal_price", {"method": "ITI", "k": 24}, lambda: ITI.fit(model, pairs, 24, 1.0)),
        "`SADI`": Entry(
            "equal_price", {"method": "SADI", "site": "attention", "k": 80},
            lambda: SADI(model, momentum(), 80, 1.0),
        ),
        "`ODESteer`": Entry(
            "odesteer", at(FLOW_LAYER, "ODESteer"), lambda: ODESteer.fit(model, pairs, FLOW_LAYER, 1.0),
        ),
        "`LinAcT`": Entry("odesteer", at(FLOW_LAYER, "LinAcT"), lambda: LinAcT.fit(model, pairs, FLOW_LAYER, 1.0)),
        "`MiMiC`": Entry("odesteer", at(FLOW_LAYER, "MiMiC"), lambda: MiMiC.fit(model, pairs, FLOW_LAYER, 1.0)),
    }  # fmt: skip


def refusal(model) -> dict[str, Entry]:
    """Return what makes the model refuse, with the settings of chapters 09 and 11."""

    def was() -> Steering:
        given, direction = requests(model), output_direction(model, REFUSING, COMPLYING)
        return WAS.fit(model, given["dubious"].train, given["requests"].train[::3], direction, 1.0, template=None)

    def vector() -> Steering:
        return CAA.fit(model, refusal_pairs(model, "train"), LAYER, 1.0, positions="prompt")

    def units() -> Steering:
        found = au.activation_momentum(model, refusal_pairs(model, "train"))
        return DirectionalAUSteer(found.top(20), 1.0, "prompt")

    return {
        "`CAA`, on the prompt": Entry("gated", {"method": "vector"}, vector),
        "`AlphaSteer`": Entry("gated", {"method": "AlphaSteer", "share": 0.6}, lambda: Fitted(model).gate(0.6)),
        "`WAS`": Entry("gated", {"method": "WAS", "weights": "drawn"}, was),
        "`DirectionalAUSteer`, 20 units, on the prompt": Entry("gated", {"method": "AUSteer", "k": 20}, units),
    }


def routing(model) -> dict[str, Entry]:
    """Return what grants the wishes of chapter 12: the router of seed 0, and the best vector of its library alone."""
    rows = Rows(RESULTS / "riser.jsonl", model)
    known, (library, _, _) = riser.Table(rows, "train"), riser.library_at(rows, model, riser.LAYER)

    def router() -> Steering:
        prompts = [pair.prompt for _, pair in riser.wishes("train")]
        states = au.collect(model, prompts, "residual")[:, riser.LAYER]
        options = {"limit": known.levels[-1].item(), "start": known.best(), "steps": 200, **riser.TRAINING}
        return RISER.fit(model, states, library, riser.LAYER, known, **options)

    def single() -> Steering:
        vector = library[known.gain[..., -1].mean(0).argmax()] * known.levels[-1]
        index = torch.arange(len(vector))
        tensors = {"layer": torch.full_like(index, riser.LAYER), "index": index, "value": vector}
        return Steering([Shift("residual", tensors, "last")], info(model), {"method": "one vector"})

    return {
        "`RISER`": Entry("riser", {"method": "RISER", "seed": 0}, router),
        "its best vector for all prompts": Entry("riser", {"method": "best single vector"}, single),
    }


def table_seconds() -> float:
    """Return how long the table of rewards took from which the routers learn."""
    return sum(row["seconds"] for row in au.load_results("riser") if row["cell"].get("table") == "train")


def strength(row: dict) -> float:
    """Return the strength of a row, which chapter 12 does not call alpha."""
    return row["cell"].get("alpha", row["cell"].get("strength"))


def measured(entry: Entry) -> list[dict]:
    """Return the rows of an entry on test items, at growing strength."""
    found = []
    for row in au.load_results(entry.rows):
        wanted = {"part": "test", **({"behaviour": "mood"} if "behaviour" in row["cell"] else {}), **entry.cell}
        variant = (SPECIAL & row["cell"].keys()) - entry.cell.keys()
        complete = "perplexity" in row and strength(row) is not None
        found += [row] if wanted.items() <= row["cell"].items() and not variant and complete else []
    return sorted(found, key=strength)


def effects(entry: Entry, unsteered: torch.Tensor) -> dict:
    """Return what an entry does at the price: the estimate and both ends of its interval; and the strength there."""
    rows = measured(entry)
    cost = torch.tensor([row["perplexity"] for row in rows])
    if entry.rows == "gated":
        (plain,) = (row for row in au.load_results("gated") if row["cell"]["method"] == "none")
        each = {
            kind: torch.tensor([row["refused"][of] for row in rows]) - torch.tensor(plain["refused"][of]).float()
            for kind, of in (("dubious", "dubious"), ("harmless", "requests"))
        }
        cost = cost[:, None]
    elif entry.rows == "riser":
        each, cost = {"granted": torch.tensor([row["effect"] for row in rows])}, cost[:, None]
    else:
        both = torch.tensor([row["effect"] for row in rows])
        each = {"mood": both[:, 0] - both[:, 1]}
    found = {of: rounded(interval(au.draws_at_price(values, cost, unsteered, PRICE))) for of, values in each.items()}
    alpha = torch.tensor([strength(row) for row in rows])[:, None].expand(-1, cost.shape[-1])
    return {"effects": found, "alpha": round(au.draws_at_price(alpha, cost, unsteered, PRICE, draws=1)[0].item(), 3)}


def size(steering: Steering) -> dict[str, int]:
    """Return how many scalars of a token a steering changes, and of how many numbers it is made."""
    shift = [operator.tensors for operator in steering.operators]
    width = steering.model.shape[1]
    changed = sum(
        len(tensors["index"]) if "index" in tensors else len(operator.writes()) * width
        for operator, tensors in zip(steering.operators, shift, strict=True)
    )
    numbers = sum(one.numel() for tensors in shift for one in tensors.values() if one.is_floating_point())
    return {"scalars": changed, "numbers": numbers}


def token_cost(model, prompts: list[str], steering: Steering) -> float:
    """Return the time of steered continuations as a multiple of unsteered ones: the median of paired ratios."""
    ratios = []
    for _ in range(REPEATS + 1):
        seconds = []
        for each in (None, steering):
            start = perf_counter()
            au.generate(model, prompts, each, rows_per_pass=len(prompts), **GREEDY_24)
            seconds.append(perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return round(median(ratios[1:]), 3)  # the first warms up


def main() -> None:
    """Add the lines that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "side_by_side.jsonl", model)
    openings = [item.prompt for item in au.load_task("mood", "test").items]
    plain = au.perplexity(model, au.generate(model, openings, None, **GREEDY_24), openings)
    (quiet,) = (row for row in au.load_results("gated") if row["cell"]["method"] == "none")
    (calm,) = (row for row in au.load_results("riser") if row["cell"] == {"part": "test", "method": "unsteered"})
    wishes = [pair.prompt for _, pair in riser.wishes("test")]
    groups = {
        "mood": (mood(model), openings, plain),
        "refusal": (refusal(model), requests(model)["dubious"].test[:24], torch.tensor(quiet["perplexity"])),
        "routing": (routing(model), wishes, torch.tensor(calm["perplexity"])),
    }
    for behaviour, (entries, prompts, unsteered) in groups.items():
        for name, entry in tqdm(entries.items(), desc=behaviour):
            cell = {"behaviour": behaviour, "method": name}
            if rows.get(cell=cell):
                continue
            start = perf_counter()
            steering = entry.fit()
            seconds = round(perf_counter() - start + (table_seconds() if behaviour == "routing" else 0), 1)
            found = effects(entry, unsteered)
            cost = token_cost(model, prompts, steering * found["alpha"])
            price = {"perplexity": round(PRICE * au.pooled(unsteered), 1)}
            rows.add({"cell": cell, **found, **price, **size(steering), "fit seconds": seconds, "token": cost})


if __name__ == "__main__":
    main()
