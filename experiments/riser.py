"""Make data/results/riser.jsonl: the rewards, prices and baselines of chapter 12.

    python experiments/riser.py [layers] [table] [additivity] [routers] [test]

A prompt of four behaviours begins with a wish ("A sad story.", "Decline the request."), and a router has to tell at its
last token which vectors of a library serve it. `layers` compares layers on the validation part; `table` asks the model
for the log-probabilities of the right and the wrong answer under every vector at every level; `additivity` compares
mixtures with the sum of what their vectors do alone; `routers` trains routers on the table; `test` raises each method
to the price of 1.5 times the unsteered perplexity on the test part. Resumable: a cell whose row is already in the file
is not run again. About forty minutes on one CPU core.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from rows import RESULTS, Rows, rounded
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import DynamicCache

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
TRAINING = {"hidden": 256, "learning_rate": 1e-3}
SEEDS = 3
LAYERS, FRACTIONS = (10, 14, 18), (0.2, 0.4)  # fractions of the median norm of a state
LAYER = 18  # of `layers`, the one with the largest effect at the price
EVERY = {"train": 2, "validation": 16, "test": 12}  # of the pairs of a part each need gets one in so many, its own ones
Run = Callable[
    [float], tuple[Tensor, list[Steering]]
]  # at a strength: changes of log p, and a steering for each prompt
Candidate = tuple[dict, Run, float]  # what it is, how it runs, the first strength to run


def wishes(part: str, new_wording: bool = False) -> list[tuple[int, au.ContrastivePair]]:
    """Return needs, as numbers, and pairs whose prompt begins with a wish; the positive answer is what it wants."""
    found, step = [], EVERY[part]
    for need, (behaviour, side) in enumerate(NEEDS):
        pairs = getattr(au.split(au.load_pairs(behaviour)), part)[0 if side == "positive" else step // 2 :: step]
        for number, pair in enumerate(pairs):
            wish = WISHES[behaviour, side][3 if new_wording else number % 3]
            answers = (pair.positive, pair.negative) if side == "positive" else (pair.negative, pair.positive)
            found.append((need, au.ContrastivePair(f"{wish} {pair.prompt}", *answers, topic=pair.topic)))
    return found


class Answers:
    """Log-probabilities of right and wrong answers under pushes at one layer, from the prompt's last token on.

    What no push reaches is computed once: the layers below, and the keys and values of the tokens before.
    """

    def __init__(self, model, pairs: Sequence[au.ContrastivePair], layer: int):
        self.model, self.layer = model, layer
        texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.positive, pair.negative)]
        self.ids = [token_ids(model, prompt + answer) for prompt, answer in texts]
        self.read = [len(token_ids(model, prompt)) - 1 for prompt, _ in texts]  # tokens before the prompt's last
        self.hidden: list[Tensor] = [torch.empty(0)] * len(texts)
        self.cached: list[Tensor] = [torch.empty(0)] * len(texts)  # (layers above, 2, heads, tokens read, head width)
        for part in self._parts(range(len(texts))):
            width = max(len(self.ids[text]) for text in part)
            ids = torch.full((len(part), width), model.tokenizer.pad_token_id)
            for row, text in enumerate(part):
                ids[row, : len(self.ids[text])] = torch.tensor(self.ids[text])
            with torch.no_grad(), model.trace({"input_ids": ids}, use_cache=True, logits_to_keep=1):
                h = Sites(model).read(Place(layer, "residual")).save()
                cache = model.output.past_key_values.save()
            above = torch.stack([torch.stack([one.keys, one.values]) for one in cache.layers[layer + 1 :]])
            for row, text in enumerate(part):
                self.hidden[text] = h[row, self.read[text] : len(self.ids[text])].clone()
                self.cached[text] = above[:, :, row, :, : self.read[text]].clone()

    def __call__(self, rows: Tensor, pushes: Tensor) -> Tensor:
        """Return (n, 2): log p of the right and of the wrong answer of rows (n,), pushed by (n, width) each."""
        texts = (2 * rows[:, None] + torch.arange(2)).flatten().tolist()
        found = torch.empty(len(texts))
        for part in self._parts(texts):
            found[part] = self._run([texts[n] for n in part], pushes[torch.tensor(part) // 2])
        return found.view(-1, 2)

    def _parts(self, texts: Sequence[int]) -> list[list[int]]:
        """Split positions in `texts` into batches of 64 of similar length."""
        order = sorted(range(len(texts)), key=lambda n: len(self.hidden[texts[n]]) or len(self.ids[texts[n]]))
        return [order[first : first + 64] for first in range(0, len(order), 64)]

    def _run(self, texts: list[int], pushes: Tensor) -> Tensor:
        before, after = max(self.read[text] for text in texts), max(len(self.hidden[text]) for text in texts)
        ids = torch.full((len(texts), after), self.model.tokenizer.pad_token_id)
        mask = torch.zeros(len(texts), before + after, dtype=torch.long)
        h, layers = torch.zeros(*ids.shape, pushes.shape[1]), info(self.model).shape[0]
        shape = self.cached[texts[0]].shape
        kept = torch.zeros(*shape[:2], len(texts), shape[2], before, shape[4])
        for row, text in enumerate(texts):
            own, length = self.ids[text][self.read[text] :], len(self.hidden[text])
            ids[row, :length], h[row, :length] = torch.tensor(own), self.hidden[text] + pushes[row]
            kept[:, :, row, :, before - self.read[text] :] = self.cached[text]
            mask[row, before - self.read[text] : before + length] = 1
        cache = DynamicCache()
        for layer in range(layers):
            cache.update(*kept[max(0, layer - self.layer - 1)], layer)  # below, only its length is looked at
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(0)[:, before:]}
        with torch.no_grad(), self.model.trace(batch, use_cache=True, past_key_values=cache):
            blocks = self.model.get(Sites(self.model).anatomy.blocks)
            for layer in range(self.layer + 1):
                blocks[layer].skip(h)
            logits = self.model.output.logits[:, :-1].save()
        chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        return (chosen * mask[:, before + 1 :]).sum(-1)


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
            rows.add({"cell": cell, "log_p": rounded(self.plain, 2), **self.texts([None] * len(self.pairs))})
        self.unsteered = torch.tensor(rows.get(cell=cell)["perplexity"])

    def effect(self, pushes: Tensor) -> Tensor:
        """Return (prompts, 2): by how many nats log p of right and of wrong rise under pushes (prompts, width)."""
        return self.answers(torch.arange(len(self.pairs)), pushes) - self.plain

    def effect_of(self, each: Sequence[Steering]) -> Tensor:
        """Return what `effect` does, under a steering for each prompt."""
        log_p = self.plain.clone()
        for steering in {id(one): one for one in each}.values():
            rows = [row for row, one in enumerate(each) if one is steering]
            texts = [text for row in rows for text in (self.pairs[row].positive, self.pairs[row].negative)]
            prompts = [self.prompts[row] for row in rows for _ in range(2)]
            log_p[rows] = au.log_probability(self.model, texts, prompts, steering).view(-1, 2)
        return log_p - self.plain

    def texts(self, each: Sequence[Steering | None]) -> dict:
        """Return perplexity and repetition of 24 greedy tokens after each prompt."""
        texts = au.generate(self.model, self.prompts, list(each), rows_per_pass=256, **GREEDY_24)
        cost = au.perplexity(self.model, texts, self.prompts)
        return {"perplexity": rounded(cost, 3), "repetition": rounded(au.repetition(texts), 3)}

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
            library = cognitive_vectors(normalize(torch.cat(wanted), dim=-1), len(NEEDS))
            means = normalize(torch.stack([one.mean(0) for one in wanted]), dim=-1)
            states = torch.cat([side[:, at] for pair in sides.values() for side in pair])
            rows.add({
                "cell": {"library": at}, "vectors": rounded(library, 4), "cosine": rounded(means @ library.T, 3),
                "norm": round(states.norm(dim=-1).median().item(), 3),
            })  # fmt: skip
        row = rows.get(cell=cell)
    return torch.tensor(row["vectors"]), torch.tensor(row["cosine"]).argmax(1).tolist(), row["norm"]


def add(rows: Rows, measure: Measure, cell: dict, change: Tensor, each: Sequence[Steering] | None = None) -> dict:
    """Add a row: by how many nats right against wrong has risen, and right alone; with steerings what texts cost."""
    row = {"cell": cell, "effect": rounded(change[:, 0] - change[:, 1], 2), "right": rounded(change[:, 0], 2)}
    row |= measure.price(each) if each is not None else {}
    tqdm.write(f"{cell}: effect {sum(row['effect']) / len(change):.2f}, price {row.get('price')}")
    return rows.add(row)


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
                add(rows, measure, cell, measure.effect(pushes), measure.as_steerings(pushes))


def table(rows: Rows, model) -> None:
    """Ask the model what each vector does to each prompt, at each level: by how many nats right against wrong rises."""
    library, _, norm = library_at(rows, model, LAYER)
    levels = [round(fraction * norm, 3) for fraction in FRACTIONS]
    for part, need in tqdm([(part, need) for part in ("train", "test") for need in range(len(NEEDS))], desc="table"):
        cell = {"table": part, "need": need}
        if rows.get(cell=cell):
            continue
        began = time.process_time()
        pairs = [pair for own, pair in wishes(part) if own == need]
        answers, every = Answers(model, pairs, LAYER), torch.arange(len(pairs))
        pushes = [torch.zeros(library.shape[1]), *(vector * level for vector in library for level in levels)]
        log_p = torch.stack([answers(every, push.expand(len(pairs), -1)) for push in pushes], 1)  # (pairs, pushes, 2)
        margin = log_p[..., 0] - log_p[..., 1]
        gain = (margin[:, 1:] - margin[:, :1]).unflatten(1, (-1, len(levels)))
        about = {"plain": rounded(margin[:, 0], 2), "gain": rounded(gain, 2), "levels": levels}
        rows.add({"cell": cell, **about, "seconds": round(time.process_time() - began, 1)})


class Table:
    """The rewards of one part from its rows: the gain of a mixture is taken as the sum of what its vectors do alone."""

    def __init__(self, rows: Rows, part: str):
        own = [rows.get(cell={"table": part, "need": need}) for need in range(len(NEEDS))]
        gain = torch.cat([torch.tensor(row["gain"]) for row in own])
        self.levels = torch.tensor([0.0, *own[0]["levels"]])
        self.gain = torch.cat([torch.zeros_like(gain[..., :1]), gain], -1)  # (prompts, vectors, 1 + levels)
        self.need = torch.tensor([need for need, row in enumerate(own) for _ in row["gain"]])

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
    cell = {"additivity": "test"}
    if rows.get(cell=cell):
        return
    library, _, _ = library_at(rows, model, LAYER)
    known, answers = Table(rows, "test"), Answers(model, [pair for _, pair in wishes("test")], LAYER)
    generator, count = torch.Generator().manual_seed(0), len(known.need)
    order = torch.rand(count, len(NEEDS), generator=generator).argsort(1)
    vectors = 2 + torch.randint(2, (count, 1), generator=generator)
    strengths = known.levels[-1] * torch.rand(count, len(NEEDS), generator=generator) / vectors**0.5
    mixtures = torch.where(order < vectors, strengths, 0.0)
    plain, pushed = (
        answers(torch.arange(count), push) for push in (torch.zeros(count, library.shape[1]), mixtures @ library)
    )
    found = (pushed - plain) @ torch.tensor([1.0, -1.0])
    expected = known(torch.arange(count), mixtures)
    rows.add({"cell": cell, "mixtures": rounded(mixtures, 2), "effect": rounded(found, 2), "sum": rounded(expected, 2)})


def routers(rows: Rows, model) -> None:
    """Train routers on the table of the train part; keep what they mix for the prompts of the test part."""
    library, nearest, _ = library_at(rows, model, LAYER)
    known, limit = Table(rows, "train"), Table(rows, "train").levels[-1].item()
    states, unseen = (
        au.collect(model, [pair.prompt for _, pair in wishes(part)], "residual")[:, LAYER] for part in ("train", "test")
    )
    labels = torch.zeros(len(states), len(library)).scatter(1, torch.tensor(nearest)[known.need][:, None], limit)
    kinds = {"labels": (labels, 0), "labels, then reward": (labels, 200), "warm-up": (known.best(), 0)}
    kinds |= {"reward alone": (None, 200), "RISER": (known.best(), 200)}
    for name, (start, steps) in kinds.items():
        for seed in range(SEEDS):
            if rows.get(cell={"router": name, "seed": seed}):
                continue
            began = time.process_time()
            options = {"limit": limit, "start": start, "steps": steps, "seed": seed, **TRAINING}
            router = RISER.fit(model, states, library, LAYER, known, **options)
            seconds, operator = time.process_time() - began, router.operators[0]
            fitted = sum(operator.tensors[name].numel() for name in ("inner", "inner_bias", "heads", "heads_bias"))
            about = {"seconds": round(seconds, 1), "fitted": fitted, "curve": rounded(router.curve, 3)}
            about["mixtures"] = rounded(operator.mixture(unseen), 2)
            rows.add({"cell": {"router": name, "seed": seed}, **about})


def pushed(measure: Measure, pushes: Tensor) -> Run:
    """Run pushes (prompts, width) that have strength 1."""
    return lambda strength: (measure.effect(pushes * strength), measure.as_steerings(pushes * strength))


def steered(measure: Measure, each: Sequence[Steering]) -> Run:
    """Run a steering for each prompt that has strength 1."""

    def run(strength: float) -> tuple[Tensor, list[Steering]]:
        scaled = {id(one): one * strength for one in each}
        now = [scaled[id(one)] for one in each]
        return measure.effect_of(now), now

    return run


def at(rows: Rows, measure: Measure, about: dict, run: Run, strength: float) -> dict:
    """Return the row of a method at a strength, which is run if it is not there."""
    cell = {"part": measure.part, **about, "strength": float(f"{strength:.3g}")}
    row = rows.get(cell=cell)
    if row is None:
        row = add(rows, measure, cell, *run(cell["strength"]))
    return row


def at_equal_price(rows: Rows, measure: Measure, candidate: Candidate) -> list[float]:
    """Run strengths until the price is crossed; return those that were run."""
    about, run, strength = candidate
    seen = {}
    for _ in range(6):
        row = at(rows, measure, about, run, strength)
        seen[row["cell"]["strength"]] = row["price"]
        below, above = [s for s in seen if seen[s] < PRICE], [s for s in seen if seen[s] >= PRICE]
        if below and above:
            break
        strength = max(seen) * FACTOR if below else min(seen) / FACTOR
    return sorted(seen)


def candidates(rows: Rows, model, measure: Measure) -> Iterator[Candidate]:
    """Yield what is raised to the price on the test part."""
    library, nearest, _ = library_at(rows, model, LAYER)
    known = Table(rows, "test")
    limit, prompts = known.levels[-1].item(), len(measure.need)
    single = Table(rows, "train").gain[..., -1].mean(0).argmax()
    uniform = normalize(library.mean(0), dim=0)
    directions = {
        "need known": library[nearest][measure.need],
        "oracle": library[known.gain[..., -1].argmax(1)],
        "best single vector": library[single].expand(prompts, -1),
        "uniform mixture": uniform.expand(prompts, -1),
    }
    for name, each in directions.items():
        yield {"method": name}, pushed(measure, each * limit), 1.0
    for name in ("labels", "warm-up", "reward alone", "labels, then reward", "RISER"):
        mixtures = torch.tensor(rows.get(cell={"router": name, "seed": 0})["mixtures"])
        yield {"method": name, "seed": 0}, pushed(measure, mixtures @ library), 1.0
    units = []
    for behaviour, side in NEEDS:
        if side == "positive":
            pairs = au.split(au.load_pairs(behaviour)).train[::2]
            units.append(au.methods.DirectionalAUSteer(au.activation_momentum(model, pairs).top(20), 1.0, "last"))
        else:
            units.append(-units[-1])
    yield {"method": "AUSteer, need known"}, steered(measure, [units[need] for need in measure.need.tolist()]), 12.0


def test(rows: Rows, model) -> None:
    """Raise each method to the price on the test part; run other seeds and controls at the strengths of the first."""
    measure = Measure(rows, model, "test", LAYER)
    ran = {}
    for candidate in candidates(rows, model, measure):
        ran[candidate[0]["method"]] = at_equal_price(rows, measure, candidate)
    library, _, _ = library_at(rows, model, LAYER)
    limit, generator = Table(rows, "test").levels[-1].item(), torch.Generator().manual_seed(0)
    for seed in range(SEEDS):
        mixtures = torch.tensor(rows.get(cell={"router": "RISER", "seed": seed})["mixtures"])
        for strength in ran["RISER"]:
            at(rows, measure, {"method": "RISER", "seed": seed}, pushed(measure, mixtures @ library), strength)
        order = torch.randperm(len(mixtures), generator=generator)
        drawn = normalize(torch.randn(library.shape, generator=generator), dim=-1)[measure.need] * limit
        controls = {"mixtures of other prompts": (mixtures[order] @ library, max(ran["RISER"]))}
        controls["random vectors"] = drawn, max(ran["need known"])
        for name, (pushes, strength) in controls.items():
            cell = {"part": "test", "method": name, "seed": seed, "strength": strength}
            if rows.get(cell=cell) is None:
                each = measure.as_steerings(pushes * strength) if seed == 0 else None
                add(rows, measure, cell, measure.effect(pushes * strength), each)


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    rows = Rows(RESULTS / "riser.jsonl", model)
    steps = {"layers": layers, "table": table, "additivity": additivity, "routers": routers, "test": test}
    for name in sys.argv[1:] or steps:
        steps[name](rows, model)


if __name__ == "__main__":
    main()
