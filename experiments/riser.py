"""Make data/results/riser.jsonl: the rewards, prices and baselines of chapter 12.

    python experiments/riser.py [layers] [table] [additivity] [test] [reward]

A prompt of four behaviours begins with a wish ("A sad story.", "Decline the request."), and a router has to tell at its
last token which vectors of a library serve it. `layers` compares layers on the validation part; `table` asks the model
for the log-probabilities of the right and the wrong answer under every vector at every level; `additivity` compares
mixtures with the sum of what their vectors do alone; `test` raises each method to the price of 1.5 times the unsteered
perplexity on the test part; `reward` trains the router with the model itself as the reward. Resumable: a cell whose row
is already in the file is not run again. About an hour and a half on two CPU cores.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from rows import RESULTS, Rows, rounded
from torch import Tensor
from tqdm.auto import tqdm

import austeer as au
from austeer.evaluation import GREEDY_24
from austeer.methods.riser import RISER, cognitive_vectors
from austeer.models import info, token_ids
from austeer.sites import Place, Sites
from austeer.steering import Shift, Steering

WISHES = {  # the last wording of each is kept for the test part
    ("sentiment", "positive"): (
        "A happy story.", "Tell it cheerfully.", "Something joyful happens.", "In a good mood.",
    ),
    ("sentiment", "negative"): ("A sad story.", "Tell it gloomily.", "Something awful happens.", "In a bad mood."),
    ("formality", "positive"): (
        "In formal English.", "Write like a lawyer.", "Use the language of an official letter.", "Be stiff and proper.",
    ),
    ("formality", "negative"): (
        "In casual English.", "Write like a friend.", "Use the language of a quick text message.",
        "Be loose and chatty.",
    ),
    ("agreement", "positive"): (
        "Agree with the speaker.", "Flatter the speaker.", "Say that the speaker is right.", "Take the speaker's side.",
    ),
    ("agreement", "negative"): (
        "Correct the speaker.", "Contradict the speaker.", "Say what is really true.", "Be candid with the speaker.",
    ),
    ("refusal", "positive"): (
        "Decline the request.", "Refuse politely.", "Say that you cannot do it.", "Turn the request down.",
    ),
    ("refusal", "negative"): (
        "Help with the request.", "Answer helpfully.", "Say how it is done.", "Give what is asked for.",
    ),
}  # fmt: skip
NEEDS = list(WISHES)
SETS = tuple(dict.fromkeys(behaviour for behaviour, _ in NEEDS))
PRICE, FACTOR = 1.5, 1.4
TRAINING, STEPS = {"hidden": 256, "rate": 1e-3}, 200
LAYERS, FRACTIONS = (10, 14, 18, 22), (0.1, 0.2, 0.4)  # fractions of the median norm of a state
LAYER = 14  # of `layers`, the one with the largest effect at the price
EVERY = {"train": (1, 2), "validation": (0, 4), "test": (0, 4)}  # which pairs of a part: the first, and every so many
Run = Callable[[float], tuple[Tensor, list[Steering | None]]]  # at a strength: effects, and a steering for each prompt
Candidate = tuple[dict, Run, float]  # what it is, how it runs, the first strength to run


def wishes(part: str, new_wording: bool = False) -> list[tuple[int, au.ContrastivePair]]:
    """Return needs, as numbers, and pairs whose prompt begins with a wish; the positive answer is what it wants."""
    found, (first, step) = [], EVERY[part]
    for need, (behaviour, side) in enumerate(NEEDS):
        pairs = getattr(au.split(au.load_pairs(behaviour)), part)[first::step]
        for number, pair in enumerate(pairs):
            wish = WISHES[behaviour, side][3 if new_wording else number % 3]
            answers = (pair.positive, pair.negative) if side == "positive" else (pair.negative, pair.positive)
            found.append((need, au.ContrastivePair(f"{wish} {pair.prompt}", *answers, topic=pair.topic)))
    return found


class Answers:
    """Log-probabilities of right and wrong answers under pushes at one layer, each run from that layer on.

    What enters the layers above is kept, so that a push costs the upper part of a pass. It acts from the prompt's last
    token on.
    """

    def __init__(self, model, pairs: Sequence[au.ContrastivePair], layer: int):
        self.model, self.layer = model, layer
        texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.positive, pair.negative)]
        self.ids = [token_ids(model, prompt + answer) for prompt, answer in texts]
        read = [len(token_ids(model, prompt)) for prompt, _ in texts]
        self.answer = [len(ids) - tokens for ids, tokens in zip(self.ids, read, strict=True)]
        self.hidden: list[Tensor] = [torch.empty(0)] * len(texts)
        for part in self._parts(range(len(texts))):
            with torch.no_grad(), model.trace(self._batch(part), use_cache=False) as tracer:
                h = Sites(model).read(Place(layer, "residual")).save()
                tracer.stop()
            for text, row in zip(part, h, strict=True):
                self.hidden[text] = row[len(row) - len(self.ids[text]) :].clone()

    def __call__(self, rows: Tensor, pushes: Tensor) -> Tensor:
        """Return (n, 2): log p of the right and of the wrong answer of rows (n,), pushed by (n, width) each."""
        texts = (2 * rows[:, None] + torch.arange(2)).flatten().tolist()
        found = torch.empty(len(texts))
        for part in self._parts(texts):
            found[part] = self._run([texts[n] for n in part], pushes[torch.tensor(part) // 2])
        return found.view(-1, 2)

    def _parts(self, texts: Sequence[int]) -> list[list[int]]:
        """Split positions in `texts` into batches of 64 of similar length."""
        order = sorted(range(len(texts)), key=lambda n: len(self.ids[texts[n]]))
        return [order[first : first + 64] for first in range(0, len(order), 64)]

    def _batch(self, texts: Sequence[int]) -> dict[str, Tensor]:
        width, pad = max(len(self.ids[text]) for text in texts), self.model.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(self.ids[text])) + self.ids[text] for text in texts])
        mask = torch.tensor([[0] * (width - len(self.ids[text])) + [1] * len(self.ids[text]) for text in texts])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    def _run(self, texts: list[int], pushes: Tensor) -> Tensor:
        batch, length = self._batch(texts), torch.tensor([self.answer[text] for text in texts])
        width, longest = batch["input_ids"].shape[1], int(length.max())
        h = torch.zeros(len(texts), width, pushes.shape[1])
        for row, text in enumerate(texts):
            h[row, width - len(self.ids[text]) :] = self.hidden[text]
            h[row, width - self.answer[text] - 1 :] += pushes[row]
        with torch.no_grad(), self.model.trace(batch, use_cache=False, logits_to_keep=longest + 1):
            blocks = self.model.get(Sites(self.model).anatomy.blocks)
            for layer in range(self.layer + 1):
                blocks[layer].skip(h)
            logits = self.model.output.logits[:, :-1].save()
        chosen = logits.gather(-1, batch["input_ids"][:, -longest:, None]).squeeze(-1) - logits.logsumexp(-1)
        return torch.where(torch.arange(longest) >= longest - length[:, None], chosen, 0.0).sum(-1)


class Measure:
    """Effect and price of pushes, one for each prompt of a part."""

    def __init__(self, rows: Rows, model, part: str, layer: int):
        self.model, self.layer, self.part = model, layer, part
        self.need, self.pairs = zip(*wishes(part), strict=True)
        self.need, self.prompts = torch.tensor(self.need), [pair.prompt for pair in self.pairs]
        self.states = au.collect(model, self.prompts, "residual")[:, layer]
        self.answers = Answers(model, self.pairs, layer)
        self.plain = self.answers(torch.arange(len(self.pairs)), torch.zeros_like(self.states))
        cell = {"part": part, "method": "unsteered"}
        if rows.get(cell=cell) is None:
            rows.add({"cell": cell, "log_p": rounded(self.plain, 3), **self.texts([None] * len(self.pairs))})
        self.unsteered = torch.tensor(rows.get(cell=cell)["perplexity"])

    def gain(self, log_p: Tensor) -> Tensor:
        """Return (prompts,): by how many nats right against wrong has risen."""
        return (log_p - self.plain) @ torch.tensor([1.0, -1.0])

    def effect(self, pushes: Tensor) -> Tensor:
        """Return the gain under pushes (prompts, width)."""
        return self.gain(self.answers(torch.arange(len(self.pairs)), pushes))

    def effect_of(self, each: Sequence[Steering | None]) -> Tensor:
        """Return the gain under a steering for each prompt."""
        log_p = self.plain.clone()
        for steering in {id(one): one for one in each if one is not None}.values():
            rows = [row for row, one in enumerate(each) if one is steering]
            texts = [text for row in rows for text in (self.pairs[row].positive, self.pairs[row].negative)]
            prompts = [self.prompts[row] for row in rows for _ in range(2)]
            log_p[rows] = au.log_probability(self.model, texts, prompts, steering).view(-1, 2)
        return self.gain(log_p)

    def texts(self, each: Sequence[Steering | None]) -> dict:
        """Return perplexity and repetition of 24 greedy tokens after each prompt."""
        texts = au.generate(self.model, self.prompts, list(each), rows_per_pass=256, **GREEDY_24)
        cost = au.perplexity(self.model, texts, self.prompts)
        return {"perplexity": rounded(cost), "repetition": rounded(au.repetition(texts))}

    def price(self, each: Sequence[Steering | None]) -> dict:
        """Return what `texts` does, and the pooled perplexity as a multiple of the unsteered."""
        found = self.texts(each)
        price = au.pooled(torch.tensor(found["perplexity"])) / au.pooled(self.unsteered)
        return {**found, "price": round(price, 4)}

    def as_steerings(self, pushes: Tensor) -> list[Steering]:
        """Return one shift for each different push."""
        made, index = {}, torch.arange(pushes.shape[1])
        for push in pushes:
            tensors = {"layer": torch.full_like(index, self.layer), "index": index, "value": push}
            shift = Shift("residual", tensors, "last")
            made.setdefault(tuple(push.tolist()), Steering([shift], info(self.model), {"method": "push"}))
        return [made[tuple(push.tolist())] for push in pushes]


def library_at(rows: Rows, model, layer: int) -> tuple[Tensor, list[int], float]:
    """Return a library, which of its vectors is nearest to each need, and the median norm of what was read."""
    cell = {"library": layer}
    row = rows.get(cell=cell)
    if row is None:
        sides = {name: au.collect(model, au.split(au.load_pairs(name)).train[::2], "residual") for name in SETS}
        for at in LAYERS:
            apart = {name: (positive - negative)[:, at] for name, (positive, negative) in sides.items()}
            wanted = [apart[name] * (1 if side == "positive" else -1) for name, side in NEEDS]
            library = cognitive_vectors(torch.nn.functional.normalize(torch.cat(wanted), dim=-1), len(NEEDS))
            means = torch.nn.functional.normalize(torch.stack([one.mean(0) for one in wanted]), dim=-1)
            states = torch.cat([side[:, at] for pair in sides.values() for side in pair])
            rows.add({
                "cell": {"library": at}, "vectors": rounded(library, 5), "cosine": rounded(means @ library.T),
                "norm": round(states.norm(dim=-1).median().item(), 3),
            })  # fmt: skip
        row = rows.get(cell=cell)
    return torch.tensor(row["vectors"]), torch.tensor(row["cosine"]).argmax(1).tolist(), row["norm"]


def layers(rows: Rows, model) -> None:
    """Compare layers on the validation part: each need gets its own vector."""
    for layer in tqdm(LAYERS, desc="layers"):
        library, nearest, norm = library_at(rows, model, layer)
        cells = [{"part": "validation", "method": "need known", "layer": layer, "fraction": f} for f in FRACTIONS]
        if all(rows.get(cell=cell) for cell in cells):
            continue
        measure = Measure(rows, model, "validation", layer)
        for cell in cells:
            if rows.get(cell=cell) is None:
                pushes = library[nearest][measure.need] * cell["fraction"] * norm
                found = {"effect": rounded(measure.effect(pushes)), **measure.price(measure.as_steerings(pushes))}
                rows.add({"cell": cell, **found})
                tqdm.write(f"{cell}: effect {torch.tensor(found['effect']).mean():.2f}, price {found['price']}")


def table(rows: Rows, model) -> None:
    """Ask the model what each vector does to each prompt, at each level."""
    library, _, norm = library_at(rows, model, LAYER)
    levels = [round(fraction * norm, 3) for fraction in FRACTIONS]
    for part, need in tqdm([(part, need) for part in EVERY for need in range(len(NEEDS))], desc="table"):
        cell = {"table": part, "need": need, "layer": LAYER}
        if rows.get(cell=cell):
            continue
        pairs = [pair for own, pair in wishes(part) if own == need]
        answers, every = Answers(model, pairs, LAYER), torch.arange(len(pairs))
        pushes = [torch.zeros(library.shape[1]), *(vector * level for vector in library for level in levels)]
        log_p = torch.stack([answers(every, push.expand(len(pairs), -1)) for push in pushes], 1)  # (pairs, pushes, 2)
        about = {"prompts": [p.prompt for p in pairs], "right": [p.positive for p in pairs]}
        about |= {"wrong": [p.negative for p in pairs], "topics": [p.topic for p in pairs], "levels": levels}
        rows.add({"cell": cell, **about, "log_p": rounded(log_p, 2)})


class Table:
    """The rewards of one part from its rows: the gain of a mixture is taken as the sum of what its vectors do alone."""

    def __init__(self, rows: Rows, part: str):
        own = [rows.get(cell={"table": part, "need": need, "layer": LAYER}) for need in range(len(NEEDS))]
        log_p = torch.tensor([prompt for row in own for prompt in row["log_p"]])  # (prompts, 1 + vectors x levels, 2)
        margin = log_p[..., 0] - log_p[..., 1]
        gain = (margin[:, 1:] - margin[:, :1]).unflatten(1, (-1, len(own[0]["levels"])))
        self.levels = torch.tensor([0.0, *own[0]["levels"]])
        self.gain = torch.cat([torch.zeros_like(gain[..., :1]), gain], -1)  # (prompts, vectors, 1 + levels)
        self.prompts = [prompt for row in own for prompt in row["prompts"]]
        self.need = torch.tensor([need for need, row in enumerate(own) for _ in row["prompts"]])

    def __call__(self, rows: Tensor, mixtures: Tensor) -> Tensor:
        """Return (n,): the gain of mixtures (n, vectors) after prompts rows (n,), straight between levels."""
        above = torch.bucketize(mixtures, self.levels[1:-1]) + 1
        low, high = self.levels[above - 1], self.levels[above]
        gain = self.gain[rows]
        at_low, at_high = (gain.gather(-1, at[..., None]).squeeze(-1) for at in (above - 1, above))
        return (at_low + (at_high - at_low) * (mixtures - low) / (high - low)).sum(-1)

    def best(self, most: int = 2) -> Tensor:
        """Return (prompts, vectors): for each prompt its best vectors, at most so many, each at its best level."""
        gain, level = self.gain.max(-1)
        keep = torch.zeros_like(gain).scatter(1, gain.topk(most, 1).indices, 1.0)
        return keep * self.levels[level]


def additivity(rows: Rows, model) -> None:
    """Compare mixtures of two or three vectors, drawn at random, with the sum of what their vectors do alone."""
    cell = {"additivity": "validation", "layer": LAYER}
    if rows.get(cell=cell):
        return
    library, _, _ = library_at(rows, model, LAYER)
    known, answers = Table(rows, "validation"), Answers(model, [pair for _, pair in wishes("validation")], LAYER)
    generator, count = torch.Generator().manual_seed(0), len(known.prompts)
    order = torch.rand(count, len(NEEDS), generator=generator).argsort(1)
    vectors = 2 + torch.randint(2, (count, 1), generator=generator)
    strengths = known.levels[-1] * torch.rand(count, len(NEEDS), generator=generator) / vectors**0.5
    mixtures = torch.where(order < vectors, strengths, 0.0)
    plain, pushed = (
        answers(torch.arange(count), push) for push in (torch.zeros(count, library.shape[1]), mixtures @ library)
    )
    found = (pushed - plain) @ torch.tensor([1.0, -1.0])
    expected = known(torch.arange(count), mixtures)
    rows.add({"cell": cell, "mixtures": rounded(mixtures, 3), "effect": rounded(found), "sum": rounded(expected)})


def pushed(measure: Measure, pushes: Tensor) -> Run:
    """Run pushes (prompts, width) that have strength 1."""
    return lambda strength: (measure.effect(pushes * strength), measure.as_steerings(pushes * strength))


def steered(measure: Measure, each: Sequence[Steering | None]) -> Run:
    """Run a steering for each prompt that has strength 1."""

    def run(strength: float) -> tuple[Tensor, list[Steering | None]]:
        scaled = {id(one): one * strength for one in each if one is not None}
        now = [scaled.get(id(one)) for one in each]
        return measure.effect_of(now), now

    return run


def at_equal_price(rows: Rows, measure: Measure, candidate: Candidate) -> None:
    """Run strengths until the price is crossed."""
    about, run, strength = candidate
    seen = {}
    for _ in range(8):
        cell = {"part": measure.part, **about, "strength": float(f"{strength:.3g}")}
        row = rows.get(cell=cell)
        if row is None:
            effect, each = run(cell["strength"])
            row = rows.add({"cell": cell, "effect": rounded(effect, 3), **measure.price(each)})
            tqdm.write(f"{cell}: effect {effect.mean():.2f}, price {row['price']}")
        seen[cell["strength"]] = row["price"]
        below, above = [s for s in seen if seen[s] < PRICE], [s for s in seen if seen[s] >= PRICE]
        if below and above:
            return
        strength = max(seen) * FACTOR if below else min(seen) / FACTOR


def routers(rows: Rows, model) -> Iterator[tuple[dict, RISER]]:
    """Yield the routers that are compared, each trained on the table of the train part."""
    library, nearest, _ = library_at(rows, model, LAYER)
    known = Table(rows, "train")
    states = au.collect(model, known.prompts, "residual")[:, LAYER]
    limit = known.levels[-1].item()
    labels = torch.zeros(len(states), len(library)).scatter(1, torch.tensor(nearest)[known.need][:, None], limit)
    fit = partial(RISER.fit, model, states, library, LAYER, limit=limit, **TRAINING)
    yield {"method": "labels"}, fit(None, start=labels, steps=0)
    yield {"method": "warm-up"}, fit(None, start=known.best(), steps=0)
    for seed in range(3):
        yield {"method": "RISER", "seed": seed}, fit(known, start=known.best(), steps=STEPS, seed=seed)
    yield {"method": "RISER without warm-up"}, fit(known, steps=STEPS)


def candidates(rows: Rows, model, measure: Measure) -> Iterator[Candidate]:
    """Yield what is run on the test part."""
    library, nearest, _ = library_at(rows, model, LAYER)
    known = Table(rows, "test")
    limit, wanted = known.levels[-1].item(), torch.tensor(nearest)[measure.need]
    generator = torch.Generator().manual_seed(0)
    yield {"method": "need known"}, pushed(measure, library[wanted] * limit), 1.0
    best = known.gain[..., 2].argmax(1)
    yield {"method": "oracle"}, pushed(measure, library[best] * limit), 1.0
    single = Table(rows, "validation").gain[..., 2].mean(0).argmax()
    yield {"method": "best single vector"}, pushed(measure, library[single].expand(len(wanted), -1) * limit), 1.0
    uniform = torch.nn.functional.normalize(library.mean(0), dim=0)
    yield {"method": "uniform mixture"}, pushed(measure, uniform.expand(len(wanted), -1) * limit), 1.0
    for cell, router in routers(rows, model):
        mixture = router.operators[0].mixture(measure.states)
        yield cell, pushed(measure, mixture @ library), 1.0
        if cell == {"method": "RISER", "seed": 0}:
            found = mixture
    for seed in range(3):
        order = torch.randperm(len(wanted), generator=generator)
        yield {"method": "shuffled", "seed": seed}, pushed(measure, found[order] @ library), 1.0
    units = {}
    for need, (behaviour, side) in enumerate(NEEDS):
        pairs = au.split(au.load_pairs(behaviour)).train[::2]
        if behaviour not in units:
            units[behaviour] = au.methods.DirectionalAUSteer(au.activation_momentum(model, pairs).top(20), 1.0)
        units[need] = units[behaviour] * (1.0 if side == "positive" else -1.0)
    yield {"method": "AUSteer, need known"}, steered(measure, [units[need] for need in measure.need.tolist()]), 12.0
    back = {vector: need for need, vector in enumerate(nearest)}
    routed = [back[k] if m > 0 else None for m, k in zip(*(t.tolist() for t in found.max(1)), strict=True)]
    yield {"method": "AUSteer, routed"}, steered(measure, [None if n is None else units[n] for n in routed]), 12.0


def test(rows: Rows, model) -> None:
    """Raise each method to the price on the test part; what it does elsewhere at strength 1."""
    measure = Measure(rows, model, "test", LAYER)
    for candidate in candidates(rows, model, measure):
        at_equal_price(rows, measure, candidate)


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "riser.jsonl", model)
    steps = {"layers": layers, "table": table, "additivity": additivity, "test": test}
    for name in sys.argv[1:] or steps:
        steps[name](rows, model)


if __name__ == "__main__":
    main()
