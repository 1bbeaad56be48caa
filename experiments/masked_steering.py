"""Make data/results/diffusion.jsonl: what steers the masked diffusion model of chapter 13.

    python experiments/masked_steering.py [quality] [ways] [passes] [units] [ablation] [causal]

A row holds what was written after each prompt, one letter a text: what it says of an attribute (m: both values, x: no
review), and whether it kept its topic. Where a vector is read and added is chosen on validation prompts; all else is on
test prompts. A steering is written with both signs, and the noise of a prompt is the same in all rows. Resumable: a
cell whose row is there is not run again. A second run gives the same letters; on another processor a near tie may turn
a few texts, at most one in sixteen. A quarter of an hour on a quiet CPU core, after experiments/masked_model.py.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import torch
from masked_model import FOLDER
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm
from vectors import random_like

import austeer as au
from austeer import small
from austeer.evaluation import GREEDY_24
from austeer.methods import CAA, DirectionAblation, DirectionalAUSteer
from austeer.small import diffusion, grammar
from austeer.steering import Shift, Steering

VALUES = {"sentiment": ("positive", "negative"), "formality": ("formal", "informal")}
PLACES = ("last", "first", "mean", "masks")  # where vectors are read
NORM = 0.5  # of a vector, in typical norms of its layer, where places and layers are compared
FACTOR, TRIES = 1.6, 8  # by which strengths are raised, or lowered, until the price is passed
PRICE = 0.1  # share of texts, more than unsteered, that are no review or left their topic
PAIRS, PROMPTS = 256, {"validation": 48, "test": 96}
STEPS, BLOCKS = 24, 3  # of the sampler, where nothing else is said
ALL = "all"  # layers
CAUSAL_PAIRS = 96


def read(texts: Sequence[str], prompts: Sequence[str], topics: Sequence[str]) -> dict[str, str]:
    """Parse texts: for each attribute one letter a text, the value's first, m if mixed, x if the text is no review."""
    said = [grammar.parse(prompt + text) for prompt, text in zip(prompts, texts, strict=True)]
    found = {
        name: "".join("x" if one is None else (getattr(one, name) or "mixed")[0] for one in said) for name in VALUES
    }
    kept = ("x" if one is None else "k" if one.topic == topic else "m" for one, topic in zip(said, topics, strict=True))
    return {**found, "topic": "".join(kept)}


def broken(topic: str) -> float:
    """Return the share of texts that are no review or left their topic."""
    return 1 - topic.count("k") / len(topic)


class Writing:
    """The prompts of one part, and what the model writes after them.

    Args:
        rows, model: the file and the model.
        part: "validation" or "test".
    """

    def __init__(self, rows: Rows, model, part: str):
        self.rows, self.model, self.part = rows, model, part
        self.seed = {"validation": 1, "test": 2}[part]
        reviews = grammar.sample(PROMPTS[part], torch.Generator().manual_seed(self.seed))
        self.prompts, self.topics = [one.prompt for one in reviews], [one.attributes.topic for one in reviews]

    def write(self, steering: Steering | None, **options) -> dict[str, str]:
        """Return letters for the texts after the prompts."""
        noise, options = torch.Generator().manual_seed(self.seed), {"steps": STEPS, "blocks": BLOCKS} | options
        texts = diffusion.denoise(self.model, self.prompts, steering, generator=noise, **options)
        return read(texts, self.prompts, self.topics)

    def add(self, cell: dict, steering: Steering | None, **options) -> dict:
        """Write under both signs of a steering, or without one, unless the row is there; return the row."""
        cell = {"part": self.part, **cell}
        if row := self.rows.get(cell=cell):
            return row
        sides = [self.write(one, **options) for one in ((steering, -steering) if steering else (None,))]
        return self.rows.add({"cell": cell, **{name: [side[name] for side in sides] for name in sides[0]}})

    def at_price(self, cell: dict, make: Callable[[float], Steering], strength: float) -> dict[float, float]:
        """Raise or lower a strength until the price is passed between two; return the price of each."""
        base = broken(self.add({"measure": "none"}, None)["topic"][0])
        seen: dict[float, float] = {}
        for _ in range(TRIES):
            strength = float(f"{strength:.3g}")
            row = self.add({**cell, "strength": strength}, make(strength))
            seen[strength] = max(map(broken, row["topic"])) - base
            under, over = ([s for s, price in seen.items() if (price >= PRICE) == above] for above in (False, True))
            if under and over:
                break
            strength = max(seen) * FACTOR if under else min(seen) / FACTOR
        return seen


class Vectors:
    """The mean difference of an attribute in every layer, read at one place.

    Args:
        model: the model.
        name: the attribute.
        where: as `diffusion.states` has it.
    """

    def __init__(self, model, name: str, where: str):
        self.model, self.pairs = model, grammar.pairs(*VALUES[name], PAIRS, torch.Generator().manual_seed(0))
        self.where = where
        self.momentum = self.read("residual")
        typical = diffusion.states(model, [pair.prompt for pair in self.pairs], where="masks").norm(dim=-1)
        self.multiplier = typical.median(0).values / self.momentum.mean_difference.norm(dim=-1)

    def read(self, site: str) -> au.momentum.ActivationMomentum:
        """Return the momentum of a site, read at this place."""
        sides = (
            diffusion.states(self.model, [pair.prompt + getattr(pair, side) for pair in self.pairs], site, self.where)
            for side in ("positive", "negative")
        )
        return au.momentum_of(*sides, self.pairs, self.model, site)

    def at(self, layer: int | str, norm: float, positions: str = "all") -> Steering:
        """Return the steering at a layer, or at all; its norm is given in typical norms of masks at that layer."""
        layers = range(len(self.multiplier)) if layer == ALL else [layer]
        return reduce(add, (CAA(self.momentum, one, norm * self.multiplier[one].item(), positions) for one in layers))


def quality(rows: Rows, model) -> None:
    """Write without steering, in fewer and fewer passes, and in blocks."""
    test = Writing(rows, model, "test")
    for blocks in (1, 3):
        for steps in (24, 12, 6, 3, 1):
            if steps >= blocks:
                cell = {"measure": "quality", "steps": steps, "blocks": blocks}
                test.add(cell, None, steps=steps, blocks=blocks)


def choose(rows: Rows, model, name: str) -> tuple[str, int]:
    """Try places and layers on validation prompts at one norm; return the pair with the largest swing.

    The last layer is tried and not taken: what is added to a prompt there reaches no other token.
    """
    validation, found = Writing(rows, model, "validation"), {}
    for where in PLACES:
        vectors = Vectors(model, name, where)
        for layer in tqdm(range(model.austeer_info.shape[0]), desc=f"{name}, read at {where}", leave=False):
            row = validation.add({"set": name, "where": where, "layer": layer, "norm": NORM}, vectors.at(layer, NORM))
            found[where, layer] = swing(row[name], VALUES[name])
    last = model.austeer_info.shape[0] - 1
    return max((spot for spot in found if spot[1] < last), key=found.get)


def swing(letters: Sequence[str], values: tuple[str, str]) -> float:
    """Return by how much the balance of the two values moves between the signs, at most 2."""
    first, second = ((side.count(values[0][0]) - side.count(values[1][0])) / len(side) for side in letters)
    return first - second


def ways(rows: Rows, model, name: str) -> None:
    """Raise positions, other places and layers, and random directions to one price."""
    test, (where, layer) = Writing(rows, model, "test"), choose(rows, model, name)
    last, vectors = model.austeer_info.shape[0] - 1, {place: Vectors(model, name, place) for place in PLACES}
    for positions in ("all", "prompt", "generated"):
        cell = {"set": name, "where": where, "way": positions, "layer": layer}
        test.at_price(cell, lambda s, p=positions: vectors[where].at(layer, s, p), NORM / 2)
    others = [(place, layer, NORM / 2) for place in PLACES if place != where] if name == "sentiment" else []
    for place, at, start in [*others, (where, last, NORM / 2), (where, ALL, NORM / 8)]:
        cell = {"set": name, "where": place, "way": "all", "layer": at}
        test.at_price(cell, lambda s, p=place, at=at: vectors[p].at(at, s), start)
    one = vectors[where].at(layer, 1.0)
    for seed in range(3):
        drawn = random_like(one, seed)
        for way, control in (("random", drawn), ("orthogonal", orthogonal(drawn, one))):
            cell = {"set": name, "where": where, "way": way, "layer": layer, "seed": seed}
            test.at_price(cell, lambda s, d=control: d * s, NORM)


def orthogonal(drawn: Steering, to: Steering) -> Steering:
    """Return a push without its part along another one, of the same norm."""
    (one,), (other,) = drawn.operators, to.operators
    value, along = one.tensors["value"], other.tensors["value"]
    left = value - (value @ along) / (along @ along) * along
    tensors = {**one.tensors, "value": left * value.norm() / left.norm()}
    return Steering([replace(one, tensors=tensors)], drawn.model, drawn.about)


def affordable(rows: Rows, model, name: str) -> tuple[Vectors, int, float]:
    """Return the chosen vectors and layer, and the largest strength under the price on validation prompts."""
    where, layer = choose(rows, model, name)
    vectors, validation = Vectors(model, name, where), Writing(rows, model, "validation")
    cell = {"set": name, "where": where, "way": "all", "layer": layer}
    seen = validation.at_price(cell, lambda s: vectors.at(layer, s), NORM)
    return vectors, layer, max(strength for strength, price in seen.items() if price < PRICE)


def passes(rows: Rows, model, name: str) -> None:
    """Steer in some passes only, when the answer is one block, and when it is three."""
    test, (vectors, layer, strength) = Writing(rows, model, "test"), affordable(rows, model, name)
    halves = {"first half": range(STEPS // 2), "second half": range(STEPS // 2, STEPS), "all": range(STEPS)}
    thirds = {f"{start} to {start + 7}": range(start, start + 8) for start in range(0, STEPS, 8)}
    for blocks in (1, 3):
        for when, steered in (halves | thirds).items():
            cell = {"set": name, "way": "passes", "blocks": blocks, "passes": when, "strength": strength}
            test.add(cell, vectors.at(layer, strength), steered=steered, blocks=blocks)


def units(rows: Rows, model, name: str) -> None:
    """Raise single attention units to the price: chosen by momentum, by mean difference, and at random."""
    test, (where, _) = Writing(rows, model, "test"), choose(rows, model, name)
    momentum = Vectors(model, name, where).read("attention")
    chosen = {(k, by): momentum.top(k, by) for k in (5, 20, 80) for by in ("momentum", "mean_difference")}
    chosen |= {(k, f"random {seed}"): momentum.random(k, seed) for k in (5, 20) for seed in range(6)}
    for (k, by), own in chosen.items():
        cell = {"set": name, "where": where, "way": "units", "k": k, "by": by}
        test.at_price(cell, lambda s, own=own: DirectionalAUSteer(own, s), 80 / k)


def kept_at(model, direction: torch.Tensor, middle: torch.Tensor) -> Steering:
    """Return what, added to an ablation, leaves h along the direction where `middle` is, in place of at 0."""
    unit = direction / direction.norm()
    layer, index = torch.meshgrid(*map(torch.arange, middle.shape), indexing="ij")
    tensors = {"layer": layer.flatten(), "index": index.flatten(), "value": ((middle @ unit)[:, None] * unit).flatten()}
    return Steering([Shift("residual", tensors)], model.austeer_info, {"method": "shift to the middle"})


class Continued(Writing):
    """Prompts that judge already: what follows agrees with them, or not."""

    def __init__(self, rows: Rows, model, part: str, side: str):
        super().__init__(rows, model, part)
        pairs = grammar.pairs(*VALUES["sentiment"], PROMPTS[part], torch.Generator().manual_seed(10 + self.seed))
        self.prompts, self.topics = (
            [f"{one.prompt}{getattr(one, side)} " for one in pairs],
            [one.topic for one in pairs],
        )

    def add(self, cell: dict, steering: Steering | None, **options) -> dict:
        """Write, unless the row is there; return the row."""
        cell = {"part": self.part, **cell}
        if row := self.rows.get(cell=cell):
            return row
        options = {"new_tokens": 14, "steps": 14, "blocks": 1} | options
        return self.rows.add({"cell": cell, **self.write(steering, **options)})


def ablation(rows: Rows, model) -> None:
    """Remove directions from prompts that judge and from what follows."""
    layers = model.austeer_info.shape[0]
    vectors = {where: Vectors(model, "sentiment", where).momentum.mean_difference for where in PLACES}
    agree = dict.fromkeys(((where, layer) for where in PLACES for layer in range(layers)), 0)
    for side in VALUES["sentiment"]:
        validation = Continued(rows, model, "validation", side)
        for where, layer in tqdm(agree, desc=f"removing, {side}", leave=False):
            cell = {"way": "ablation", "after": side, "where": where, "layer": layer}
            row = validation.add(cell, DirectionAblation(model, vectors[where][layer]))
            agree[where, layer] += row["sentiment"].count(side[0]) + row["sentiment"].count("x")
    where, layer = min(agree, key=agree.get)
    v, third = vectors[where][layer], layers // 3
    limits = {  # of what is removed, beside everywhere
        "early layers": {"layers": range(third)}, "middle layers": {"layers": range(third, layers - third)},
        "late layers": {"layers": range(layers - third, layers)}, "prompt": {"positions": "prompt"},
        "answer": {"positions": "generated"}, "first passes": {"steered": range(7)},
        "last passes": {"steered": range(7, 14)},
    }  # fmt: skip
    for side in VALUES["sentiment"]:
        test, same = Continued(rows, model, "test", side), {"way": "ablation", "after": side}
        test.add({**same, "where": "none"}, None)
        for other in PLACES:
            cell = {**same, "where": other, "layer": layer, "what": "everywhere"}
            test.add(cell, DirectionAblation(model, vectors[other][layer]))
        for seed in range(5):
            drawn = torch.randn(len(v), generator=torch.Generator().manual_seed(seed))
            test.add({**same, "where": "random", "seed": seed}, DirectionAblation(model, drawn))
        for what, limit in limits.items():
            options = {name: value for name, value in limit.items() if name == "steered"}
            own = {name: value for name, value in limit.items() if name != "steered"}
            cell = {**same, "where": where, "layer": layer, "what": what}
            test.add(cell, DirectionAblation(model, v, **own), **options)
    test, cell = Writing(rows, model, "test"), {"part": "test", "way": "ablation", "after": "no judgement"}
    if rows.get(cell=cell) is None:  # does it push, where there is nothing to remove?
        rows.add({"cell": cell, **test.write(DirectionAblation(model, v), blocks=1)})


def causal(rows: Rows) -> None:
    """Remove the direction of mood from the book's default model, which continues texts that turned out well or badly.

    A row holds the mood of each continuation (VADER) and its perplexity under the unsteered model, first after the
    texts that turned out well.
    """
    model, parts = au.load(), au.split(au.load_pairs("sentiment"))
    rows, glad, sad = Rows(rows.path, model), *au.collect(model, parts.train[:CAUSAL_PAIRS], "residual")
    test = parts.test[::2]
    begun = [pair.prompt + pair.positive for pair in test] + [pair.prompt + pair.negative for pair in test]
    middle, directions = (glad + sad).mean(0) / 2, {layer: (glad - sad)[:, layer].mean(0) for layer in (14, 20)}
    directions |= {"random": torch.randn(middle.shape[1], generator=torch.Generator().manual_seed(0))}
    conditions = {"nothing": None}
    for name, v in directions.items():
        conditions[f"{name}"] = DirectionAblation(model, v)
        conditions[f"{name}, about the middle"] = DirectionAblation(model, v) + kept_at(model, v, middle)
    for name, steering in tqdm(conditions.items(), desc="causal", leave=False):
        if rows.get(cell=(cell := {"way": "causal", "what": name})) is None:
            texts = au.generate(model, begun, steering, rows_per_pass=len(begun), **GREEDY_24)
            price = au.perplexity(model, texts, begun)
            rows.add({"cell": cell, "mood": rounded(au.sentiment(texts)), "perplexity": rounded(price, 3)})


def main(parts: Sequence[str]) -> None:
    """Run the cells that are missing."""
    model = small.load(FOLDER)
    rows = Rows(RESULTS / "diffusion.jsonl", model)
    if "quality" in parts:
        quality(rows, model)
    if "ways" in parts:
        for name in VALUES:
            ways(rows, model, name)
    for job in (passes, units):
        if job.__name__ in parts:
            job(rows, model, "sentiment")
    if "ablation" in parts:
        ablation(rows, model)
    if "causal" in parts:
        causal(rows)


if __name__ == "__main__":
    main(sys.argv[1:] or ["quality", "ways", "passes", "units", "ablation", "causal"])
