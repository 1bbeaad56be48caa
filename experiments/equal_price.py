"""Make data/results/equal_price.jsonl: what the methods of chapter 05 do to two behaviours at an equal price.

    python experiments/equal_price.py [mood] [agreement]

For each method the strength is raised, or lowered, by a factor of 1.4 until its price, the perplexity of the worse
sign's text as a multiple of the unsteered, is below 1.5 at one strength and above it at the next. Where a method has a
layer or a number of heads to choose, all are run on the validation part and the best at that price on the test part.
Resumable: a cell whose row is already in the file is not run again. About an hour for each behaviour on two CPU cores.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import GREEDY_24
from austeer.steering import Steering

PRICE, FACTOR = 1.5, 1.4
EVERY = (1, 2, 5, 10, 20, 50, 100, 500, 2000)
LAYERS = {
    "residual": (10, 12, 14, 16, 18, 20, 22, 24, 26, 28),
    "attention": (14, 16, 18, 21, 23, 25),
    "ffn": (12, 14, 16, 18, 21, 25),
}
Candidate = tuple[dict, Steering, float]  # what it is, the steering at strength 1, the first strength to run


class Measure:
    """Effect and price of a steering at both signs on one part of one behaviour's data.

    The price is always that of 24 greedy tokens after the part's openings. The effect is their mood, or, of another
    behaviour, by how much the log-probability of an item's positive answer exceeds that of its negative one.
    """

    def __init__(self, model, behaviour: str, part: str):
        self.model, self.behaviour, self.part = model, behaviour, part
        self.items = au.load_task(behaviour, part).items[:: 1 if (behaviour, part) == ("mood", "test") else 2]
        self.openings = [item.prompt for item in au.load_task("mood", part).items[:: 1 if part == "test" else 2]]
        texts = au.generate(model, self.openings, None, **GREEDY_24)
        self.unsteered = au.pooled(au.perplexity(model, texts, self.openings))

    def __call__(self, steering: Steering) -> dict:
        """Return effects, (2, items) in the order +, -, and the price; of the mood also each text's perplexity."""
        signs, prompts = (steering, -steering), self.openings * 2
        each = [sign for sign in signs for _ in self.openings]
        texts = au.generate(self.model, prompts, each, rows_per_pass=256, **GREEDY_24)
        cost = au.perplexity(self.model, texts, prompts).view(2, -1)
        price = round(max(map(au.pooled, cost)) / self.unsteered, 4)
        if self.behaviour != "mood":
            return {"effect": rounded(torch.stack([self.margin(sign) for sign in signs])), "price": price}
        return {
            "effect": rounded(au.sentiment(texts).view(2, -1)),
            "perplexity": rounded(cost),
            "repetition": rounded(au.repetition(texts).view(2, -1)),
            "price": price,
        }

    def margin(self, steering: Steering | None) -> torch.Tensor:
        """Return (items,): log p(positive answer) - log p(negative answer), in nats."""
        answers = [(item.prompt, text) for item in self.items for text in item.right + item.wrong]
        log_p = au.log_probability(self.model, [text for _, text in answers], [p for p, _ in answers], steering)
        return log_p.view(-1, 2)[:, 0] - log_p.view(-1, 2)[:, 1]


def at_equal_price(rows: Rows, measure: Measure, candidate: Candidate) -> float | None:
    """Run strengths until the price is crossed; return the effect there, or None if it never is."""
    cell, steering, alpha = candidate
    seen = {}
    for _ in range(8):
        this = {"behaviour": measure.behaviour, "part": measure.part, **cell, "alpha": float(f"{alpha:.3g}")}
        row = rows.get(cell=this) or rows.add({"cell": this, **measure(steering * this["alpha"])})
        plus, minus = torch.tensor(row["effect"])
        seen[this["alpha"]] = (plus - minus).mean().item(), row["price"]
        below = [a for a in seen if seen[a][1] < PRICE]
        above = [a for a in seen if seen[a][1] >= PRICE]
        if below and above:
            points = [(0.0, 1.0), *(seen[a] for a in sorted(seen))]
            return au.at_price(*zip(*points, strict=True), price=PRICE)
        alpha = max(seen) * FACTOR if below else min(seen) / FACTOR
    return None


def shift(cell: dict, units: au.AtomicUnits, positions: str = "all") -> Candidate:
    """Return a candidate of the directional rule, with a first strength that mostly is not far off."""
    start = {"attention": 12.0, "ffn": 10.0, "neuron": 12.0}[units.site] * (20 / len(units)) ** 0.3
    start *= 0.5 if cell["choice"] == "mean difference" and len(units) < 1000 else 1.0
    steering = au.methods.DirectionalAUSteer(units, 1.0, positions)
    return (
        {"method": "AUSteer", "site": units.site, "rule": "directional", "strength": "fixed", **cell},
        steering,
        start,
    )


def by_number(momentum: au.ActivationMomentum) -> Iterator[Candidate]:
    """Yield numbers of units, chosen by momentum, by mean difference and at random, and the paper's rule."""
    for k in (*EVERY, momentum.beta.numel()):
        yield shift({"choice": "momentum", "k": k}, momentum.top(k))
    for k in (1, 5, 20, 100, 500, 2000):
        yield shift({"choice": "mean difference", "k": k}, momentum.top(k, by="mean_difference"))
    for k in (1, 20):
        for seed in range(10):
            units = momentum.random(k, seed).with_norm_of(momentum.top(k))
            cell, steering, start = shift({"choice": "random", "k": k, "seed": seed}, units)
            yield cell, steering, 1.4 * start
    yield multiplicative({"choice": "momentum", "k": 20, "strength": "weighted"}, momentum.top(20))


def multiplicative(cell: dict, units: au.AtomicUnits) -> Candidate:
    """Return a candidate of the paper's rule, weighted by the score or with the score's sign alone."""
    beta = units.beta if cell["strength"] == "weighted" else units.beta.sign()
    steering = au.methods.AUSteer(replace(units, beta=beta), 1.0)
    return {"method": "AUSteer", "site": units.site, "rule": "multiplicative", **cell}, steering, 9.8


def parts(momentum: au.ActivationMomentum) -> Iterator[Candidate]:
    """Yield single units of the next ranks, other positions, and the 2 x 2 x 2."""
    for rank in (2, 3, 4):
        yield shift({"choice": "momentum", "k": 1, "rank": rank}, momentum.top(rank)[rank - 1 :])
    yield shift({"choice": "momentum", "k": 20, "positions": "last"}, momentum.top(20), "last")

    choices = [("momentum", momentum.top(20), {}), ("mean difference", momentum.top(20, by="mean_difference"), {})]
    choices += [("random", momentum.random(20, 0).with_norm_of(momentum.top(20)), {"seed": 0})]
    for choice, units, seed in choices:  # the rest of the 2 x 2 x 2
        cell = {"choice": choice, "k": 20, **seed}
        weighted = replace(units, mean_difference=units.mean_difference * units.beta.abs())
        yield shift({**cell, "strength": "weighted"}, weighted)
        for strength in ("weighted", "fixed"):
            yield multiplicative({**cell, "strength": strength}, units)


def units_elsewhere(momentum: dict[str, au.ActivationMomentum]) -> Iterator[Candidate]:
    """Yield 20 units of the other sites."""
    for site in ("ffn", "neuron"):
        yield shift({"choice": "momentum", "k": 20}, momentum[site].top(20))


def shuffled(model, pairs: list, draws: int) -> Iterator[Candidate]:
    """Yield 20 units each of fits on labels without meaning."""
    for seed in range(draws):
        units = au.activation_momentum(model, au.swap_topics(pairs, seed)).top(20)
        cell, steering, start = shift({"choice": "shuffled labels", "k": 20, "seed": seed}, units)
        yield cell, steering, 12 * start


def families(model, pairs: list, momentum: dict) -> Iterator[list[Candidate]]:
    """Yield the methods that have something to choose: one list of candidates each."""
    caa, iti, sadi = au.methods.CAA, au.methods.ITI, au.methods.SADI
    for site, layers in LAYERS.items():
        start = 1.5 if site == "residual" else 8.0
        cells = [{"method": "CAA", "site": site, "layer": layer} for layer in layers]
        yield [(cell, caa(momentum[site], cell["layer"], 1.0), start) for cell in cells]
    for site, sizes in (("attention", (1, 5, 20, 80)), ("neuron", (100, 500))):
        cells = [{"method": "SADI", "site": site, "k": k} for k in sizes]
        yield [(cell, sadi(model, momentum[site], cell["k"], 1.0), 4.0) for cell in cells]
    cells = [{"method": "ITI", "site": "attention", "k": k} for k in (6, 12, 24, 48, 96)]
    yield [(cell, iti.fit(model, pairs, cell["k"], 1.0), 5.0) for cell in cells]


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "equal_price.jsonl", model)
    for behaviour in sys.argv[1:] or ("mood", "agreement"):
        pairs = au.split(au.load_pairs("sentiment" if behaviour == "mood" else behaviour)).train
        sites = ("attention", "residual", "ffn", "neuron")
        momentum = {site: au.activation_momentum(model, pairs, site) for site in sites}
        validation, test = (Measure(model, behaviour, part) for part in ("validation", "test"))
        alone = [*by_number(momentum["attention"]), *shuffled(model, pairs, 3)]
        if behaviour == "mood":
            alone += [*parts(momentum["attention"]), *units_elsewhere(momentum)]
        for candidate in tqdm(alone, desc=behaviour):
            at_equal_price(rows, test, candidate)
        for family in families(model, pairs, momentum):
            found = []
            for candidate in tqdm(family, desc=f"{behaviour}, {family[0][0]['method']}"):
                effect = at_equal_price(rows, validation, candidate)
                found += [(effect, len(found), candidate)] if effect is not None else []
            if found:
                at_equal_price(rows, test, max(found)[-1])


if __name__ == "__main__":
    main()
