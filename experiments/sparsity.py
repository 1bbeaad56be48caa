"""Make data/results/sparsity.jsonl: perplexity against the share of active neurons, by rule; which neurons matter.

    python experiments/sparsity.py

The text is documents of the book's own sets: the eight texts of a topic, one a line. In the search thresholds come from
every eighth document and the perplexity from all; the CETT that is found has its thresholds set on all of them, and is
tried on documents of other topics. Resumable; half an hour on two quiet CPU cores. On another machine sums are rounded
in another way, and a neuron at its threshold may fall on either side: ratios of perplexities and shares agree to 0.002.
"""

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer import sparsity
from austeer.models import info
from austeer.sites import Place, anatomy, weight
from austeer.steering import Scale, Steering

SETS = ("sentiment", "formality", "agreement", "refusal")
TOPICS = 14  # of each set: 56 documents
EVALUATIONS = {1.0: 10, 10.0: 5}  # of the search, by p
SHARES = (0.3, 0.4, 0.6, 0.7, 0.8)  # that top-k keeps, and for which FAT's epsilon is set
SILENCED, DRAWS = 461, 3  # 1 % of 46,080; how often others like them are drawn


def documents(part: str, topics: int) -> list[str]:
    """Return one document a topic: its texts, of positive and negative sides in turn, one a line."""
    found = []
    for name in SETS:
        told: dict[str, list[str]] = {}
        for pair in getattr(au.split(au.load_pairs(name)), part):
            lines = told.setdefault(pair.topic, [])
            lines.append(pair.prompt + (pair.negative if len(lines) % 2 else pair.positive))
        found += ["\n".join(lines) for lines in list(told.values())[:topics]]
    return found


class Measure:
    """Reads the documents under a steering, once for each row.

    Args:
        rows, model: of the run.
        texts: by part: "fitted" and "held out".
    """

    def __init__(self, rows: Rows, model, texts: dict[str, list[str]]):
        self.rows, self.model, self.texts = rows, model, texts

    def known(self, cell: dict, part: str = "fitted") -> dict | None:
        """Return the row of a cell, if it is there."""
        return self.rows.get(cell={"part": part, **cell})

    def __call__(self, cell: dict, steering: Steering | None, part: str = "fitted", **more) -> dict:
        """Return the row of a cell, which is made where it is missing."""
        if (row := self.known(cell, part)) is None:
            found = sparsity.activity(self.model, self.texts[part], steering)
            row = self.rows.add({
                "cell": {"part": part, **cell}, "share": round(found.active.mean().item(), 5),
                "layers": rounded(found.active.mean(1)), "nats": rounded(found.nats, 2),
                "scored": found.scored.tolist(), "tokens": found.tokens, **more,
            })  # fmt: skip
        return row


def perplexity(row: dict) -> float:
    """Return one perplexity of all documents of a row."""
    return torch.tensor(sum(row["nats"]) / sum(row["scored"])).exp().item()


def search(measure: Measure, some: torch.Tensor, p: float) -> float:
    """Find the CETT at which the perplexity of all documents is up by p %; each step leaves a row."""

    def ratio(target: float) -> float:
        cell = {"rule": "CETT", "target": target}
        row = measure.known(cell)
        if row is None:
            row = measure(cell, sparsity.sparsified(measure.model, sparsity.thresholds_at(measure.model, some, target)))
        return perplexity(row) / perplexity(measure({"rule": "dense"}, None))

    return sparsity.cett_at(ratio, p, EVALUATIONS[p])


def final(measure: Measure, some: torch.Tensor, target: float) -> torch.Tensor:
    """Set the thresholds of the CETT that was found on all documents, try them on others, and return them.

    Beside them stand those of every eighth document, what CETT the layers have on the other documents, and thresholds
    of some layers that were found in another way.
    """
    model, cell = measure.model, {"rule": "PPL", "p": 1.0}
    if measure.known(cell) is None:
        matrices = [weight(model, Place(layer, "neuron")) for layer in range(some.shape[1])]
        x = sparsity.neuron_activations(model, measure.texts["fitted"])
        thresholds = sparsity.thresholds_at(model, x, target)
        more = {
            "target": target, "thresholds": rounded(thresholds, 6),
            "of an eighth": rounded(sparsity.thresholds_at(model, some, target), 6),
            "grid": {layer: on_a_grid(x[:, layer], matrices[layer], target) for layer in (0, 15, 29)},
        }  # fmt: skip
        x = sparsity.neuron_activations(model, measure.texts["held out"])
        reached = [sparsity.cett(x[:, n], matrices[n], threshold) for n, threshold in enumerate(thresholds.tolist())]
        measure(cell, sparsity.sparsified(model, thresholds), **more, elsewhere=[round(one, 5) for one in reached])
    thresholds = torch.tensor(measure.known(cell)["thresholds"])
    measure({"rule": "dense"}, None, "held out")
    measure(cell, sparsity.sparsified(model, thresholds), "held out")
    return thresholds


def on_a_grid(x: torch.Tensor, matrix: torch.Tensor, target: float) -> float:
    """Return the threshold of a CETT by interpolation between 64 quantiles of the norms."""
    norms = (x.abs() * matrix.norm(dim=0)).flatten()
    grid = norms[:: max(len(norms) // sparsity.CANDIDATES, 1)].quantile(torch.linspace(0.02, 0.99, 64))
    found = torch.tensor([sparsity.cett(x, matrix, threshold.item()) for threshold in grid])
    after = int((found > target).float().argmax())
    part = (target - found[after - 1]) / (found[after] - found[after - 1])
    return round((grid[after - 1] + part * (grid[after] - grid[after - 1])).item(), 6)


def epsilons(activations: torch.Tensor) -> list[float]:
    """Return the epsilon that leaves each share of the neurons active."""
    sample = activations.abs().flatten()[:: max(activations.numel() // 2**20, 1)]
    return [float(f"{sample.quantile(1 - share):.3g}") for share in SHARES]


def silence(model, places: torch.Tensor) -> Steering:
    """Set neurons to 0 on every token; they are numbered through all layers."""
    width = anatomy(model).widths["neuron"]
    tensors = {"layer": places // width, "index": places % width, "value": -torch.ones(len(places))}
    return Steering([Scale("neuron", tensors)], info(model), {"method": "silence"})


def alike(active: torch.Tensor, places: torch.Tensor, generator: torch.Generator, near: int | None) -> torch.Tensor:
    """Draw another neuron of the same layer for each: of all, or of the `near` ones on both sides by frequency."""
    width, chosen, taken = active.shape[1], [], set(places.tolist())
    order = active.argsort(1)
    rank = order.argsort(1)
    for layer, index in zip((places // width).tolist(), (places % width).tolist(), strict=True):
        r = int(rank[layer, index])
        low, high = (0, width) if near is None else (max(0, r - near), min(width, r + near + 1))
        pool = [layer * width + i for i in order[layer, low:high].tolist()]
        pool = [place for place in pool if place not in taken]
        chosen.append(pool[int(torch.randint(len(pool), (), generator=generator))])
        taken.add(chosen[-1])
    return torch.tensor(chosen)


def who_matters(measure: Measure, thresholds: torch.Tensor) -> None:
    """Compare the neurons that momentum picks with those that are active most often, and with those that write most."""
    model, rows = measure.model, measure.rows
    found = sparsity.activity(model, measure.texts["fitted"], sparsity.sparsified(model, thresholds))
    width = found.active.shape[1]
    written = found.size * torch.stack([weight(model, Place(n, "neuron")).norm(dim=0) for n in range(len(found.size))])
    often = found.active + 1e-5 * written / written.max()  # of those active on every token, the longer output first
    if rows.get(cell={"rule": "frequency"}) is None:
        rows.add({
            "cell": {"rule": "frequency"}, "histogram": torch.histc(found.active, 20, 0, 1).int().tolist(),
            "always": int((found.active == 1).sum()), "above 0.99": int((found.active > 0.99).sum()),
            "below 0.01": int((found.active < 0.01).sum()), "never": int((found.active == 0).sum()),
        })  # fmt: skip
    sets = {"often": often.flatten().topk(SILENCED).indices, "strong": written.flatten().topk(SILENCED).indices}
    for name in SETS:
        units = au.activation_momentum(model, au.split(au.load_pairs(name)).train, "neuron").top(SILENCED)
        sets[name] = units.layer * width + units.index
    for name, places in sets.items():
        if rows.get(cell={"rule": "set", "units": name}) is None:
            drawn = alike(found.active, places, torch.Generator().manual_seed(0), None)
            rows.add({
                "cell": {"rule": "set", "units": name}, "places": sorted(places.tolist()),
                "active": round(found.active.flatten()[places].median().item(), 4),
                "same layers": round(found.active.flatten()[drawn].median().item(), 4),
            })  # fmt: skip
    silencing(measure, sets, found.active)


def silencing(measure: Measure, sets: dict[str, torch.Tensor], active: torch.Tensor) -> None:
    """Set the neurons of a set to zero, or others like them, and read documents of other topics."""
    texts, wanted = measure.texts["held out"][::4], [({"units": "none"}, None)]
    wanted += [({"units": name}, sets[name]) for name in ("often", "strong")]
    for seed in range(DRAWS):
        for name in SETS:
            wanted.append(({"units": "momentum", "behaviour": name}, sets[name]))
            for kind, near in (("same frequency", 20), ("same layers", None)):
                drawn = alike(active, sets[name], torch.Generator().manual_seed(seed), near)
                wanted.append(({"units": kind, "behaviour": name, "seed": seed}, drawn))
    for about, places in tqdm(wanted, desc="silenced"):
        cell = {"rule": "silence", **about}
        if measure.rows.get(cell=cell) is None:
            steering = None if places is None else silence(measure.model, places)
            lost = au.log_probability(measure.model, texts, steering=steering)
            measure.rows.add({"cell": cell, "log p": rounded(lost, 3)})


def main() -> None:
    """Run the cells that are missing."""
    model, texts = au.load(), {"fitted": documents("train", TOPICS), "held out": documents("test", TOPICS)}
    rows = Rows(RESULTS / "sparsity.jsonl", model)
    measure, some = Measure(rows, model, texts), sparsity.neuron_activations(model, texts["fitted"][::8])
    thresholds = final(measure, some, search(measure, some, 1.0))
    search(measure, some, 10.0)
    for share, epsilon in zip(SHARES, tqdm(epsilons(some), desc="baselines"), strict=True):
        measure({"rule": "top-k", "target": share}, sparsity.top_k(model, share))
        measure({"rule": "FAT", "target": epsilon}, sparsity.fat(model, epsilon))
    gates = au.collect(model, texts["fitted"][::8], "gate")
    for rule, steering in (("top-k", sparsity.top_k), ("FAT", sparsity.fat)):  # as the paper's code has them
        target = epsilons(gates)[2] if rule == "FAT" else SHARES[2]
        measure({"rule": f"{rule}, gate", "target": target}, steering(model, target, "gate"))
    if measure.known({"rule": "CETT, first layer whole", "target": 0.125}) is None:
        whole = sparsity.thresholds_at(model, some, 0.125)
        whole[0] = 0.0
        measure({"rule": "CETT, first layer whole", "target": 0.125}, sparsity.sparsified(model, whole))
    who_matters(measure, thresholds)


if __name__ == "__main__":
    main()
