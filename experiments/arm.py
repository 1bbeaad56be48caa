"""Make data/results/arm.jsonl: what fillers, ARM, and as much noise elsewhere do to three tasks of the default model.

    python experiments/arm.py [before] [between] [noise] [after]

before   55 tokens without meaning before the text that is answered
between  an instruction before that text, alone and with slashes between the two, as in the paper
noise    ARM, and the same displacements at random entries, five seeds each; on one task in two settings
after    on one task, 55 slashes between the text and its answer

An answer is one token; it is right if it is the likeliest of the task's options. Tasks are made by a small program or
of the book's own pairs, so the script needs no other data. The same command gives the same rows: a `margin` within
0.01 nats, and `right` but where the margin is that small. Resumable; about five minutes on two quiet CPU cores.
"""

import copy
import sys
from dataclasses import replace
from itertools import product

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.benchmarks import Item
from austeer.steering import Steering

ITEMS = {"verbs": 120, "sums": 100, "mood": 88}
FILLERS = ("/", ".", "blank", "words")
FILLER_TOKENS = 55
INSTRUCTION = "Read the text and go on with the right answer.\n"
SETTINGS = {  # of the official code: its defaults for Qwen2, and one it uses for Llama
    "mild": {"c": 0.13, "percentile": 99.5, "least": 0.02},
    "wide": {"c": 0.3, "percentile": 90.0, "least": 0.2},
}
SEEDS = range(5)
NOUNS = [
    "key", "cabinet", "letter", "drawer", "road", "village", "picture", "wall", "book", "shelf", "boat", "harbour",
    "tree", "garden", "door", "house", "teacher", "school", "dog", "neighbour",
]  # fmt: skip
PLACES = ["near", "beside", "behind", "with", "above"]
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


def verbs(n: int) -> list[Item]:
    """Make sentences whose verb must agree with the first of three nouns; the others have the other number."""
    generator, made = torch.Generator().manual_seed(0), {}
    while len(made) < n:
        subject, *others = (NOUNS[i] for i in torch.randperm(len(NOUNS), generator=generator)[:3].tolist())
        places = (PLACES[i] for i in torch.randperm(len(PLACES), generator=generator)[:2].tolist())
        plural, verb = torch.randint(2, (), generator=generator).item(), VERBS[len(made) % 3]
        ends = ("s", "") if plural else ("", "s")
        parts = [f"{place} the {noun}{ends[1]}" for place, noun in zip(places, others, strict=True)]
        text = " ".join([f"The {subject}{ends[0]}", *parts])
        made[text] = Item(text, (verb[plural],), (verb[1 - plural],), text)
    return list(made.values())


def sums(n: int) -> list[Item]:
    """Make sums of a number below 90 and one below 10, up to the last digit of the answer, after one example."""
    generator, made = torch.Generator().manual_seed(0), {}
    while len(made) < n + 1:
        a, b = (torch.randint(low, high, (), generator=generator).item() for low, high in ((10, 90), (1, 10)))
        made[a, b] = a + b
    ((a, b), total), *asked = made.items()
    before = f"{a} + {b} = {total}\n"
    return [
        Item(
            f"{before}{a} + {b} = {total // 10}",
            (str(total % 10),),
            tuple(str(d) for d in range(10) if d != total % 10),
            f"{a} + {b}",
        )
        for (a, b), total in asked
    ]


def mood(n: int) -> list[Item]:
    """Ask for the mood of one side of the book's sentiment pairs, the happy one of every other pair."""
    labels, items = (" negative", " positive"), []
    for number, pair in enumerate(au.split(au.load_pairs("sentiment")).test[:n]):
        text = pair.prompt + (pair.negative, pair.positive)[number % 2]
        items.append(Item(f"{text}\nSentiment:", (labels[number % 2],), (labels[1 - number % 2],), pair.topic))
    return items


TASKS = {"verbs": verbs, "sums": sums, "mood": mood}


def filler(model, kind: str) -> str:
    """Return 55 tokens without meaning; the words are nouns, drawn from a seed."""
    drawn = torch.randint(len(NOUNS), (FILLER_TOKENS - 1,), generator=torch.Generator().manual_seed(0)).tolist()
    text = {
        "/": " /" * (FILLER_TOKENS - 1) + "\n",
        ".": " ." * (FILLER_TOKENS - 1) + "\n",
        "blank": " \n" * (FILLER_TOKENS - 1) + "\n",
        "words": "".join(f" {NOUNS[i]}" for i in drawn) + "\n",
    }[kind]
    assert len(model.tokenizer(text + "The").input_ids) == FILLER_TOKENS + 1
    return text


def margins(model, items: list[Item], steering: Steering | None = None) -> torch.Tensor:
    """Return by how much the right answer is likelier than the best wrong one, in nats: (items,)."""
    options = [(item.prompt, option) for item in items for option in item.right + item.wrong]
    prompts, answers = zip(*options, strict=True)
    log_p = au.log_probability(model, answers, prompts, steering).split([len(i.right + i.wrong) for i in items])
    return torch.stack([one[0] - one[1:].max() for one in log_p])


def margins_after(model, text: str, items: list[Item]) -> torch.Tensor:
    """Return the margins when a text stands before every prompt; it is read once, and its cache kept."""
    module, tokenizer = model._module, model.tokenizer
    found = []
    with torch.inference_mode():
        first = torch.tensor([tokenizer(text + "The").input_ids[:-1]])
        read = module(first, use_cache=True).past_key_values
        for start in range(0, len(items), 32):
            part = items[start : start + 32]
            ids = [tokenizer(item.prompt).input_ids for item in part]
            for item, own in zip(part, ids, strict=True):  # the joint keeps the tokens as they are
                assert tokenizer(text + item.prompt).input_ids == first[0].tolist() + own
            width = max(map(len, ids))
            tokens = torch.tensor([own + [0] * (width - len(own)) for own in ids])
            mask = torch.tensor([[1] * (first.shape[1] + len(own)) + [0] * (width - len(own)) for own in ids])
            cache = copy.deepcopy(read)
            cache.batch_repeat_interleave(len(part))
            logits = module(tokens, attention_mask=mask, past_key_values=cache).logits
            for item, own, row in zip(part, ids, logits, strict=True):
                options = [tokenizer(option).input_ids for option in item.right + item.wrong]
                assert all(len(option) == 1 for option in options)
                values = row[len(own) - 1, [option[0] for option in options]]
                found.append(values[0] - values[1:].max())
    return torch.stack(found)


def outcome(values: torch.Tensor) -> dict:
    """Return the fields of a row."""
    return {"right": (values > 0).int().tolist(), "margin": rounded(values, 3)}


def before(rows: Rows, model) -> None:
    """Run every filler before every task."""
    for task, make in TASKS.items():
        items = make(ITEMS[task])
        for kind in tqdm(FILLERS, desc=f"fillers before {task}"):
            cell = {"task": task, "filler": kind, "place": "before"}
            if rows.get(cell=cell) is None:
                rows.add({"cell": cell, **outcome(margins_after(model, filler(model, kind), items))})


def between(rows: Rows, model) -> None:
    """Run an instruction before every task, alone and with slashes behind it."""
    for kind, (task, make) in tqdm([*product(("none", "/"), TASKS.items())], desc="slashes between"):
        cell = {"task": task, "filler": kind, "place": "between"}
        if rows.get(cell=cell) is None:
            text = INSTRUCTION + ("" if kind == "none" else filler(model, kind))
            rows.add({"cell": cell, **outcome(margins_after(model, text, make(ITEMS[task])))})


def after(rows: Rows, model) -> None:
    """Run slashes between text and answer, on verbs."""
    cell = {"task": "verbs", "filler": "/", "place": "after"}
    if rows.get(cell=cell) is None:
        slashes = filler(model, "/").rstrip("\n")
        items = [replace(item, prompt=item.prompt + slashes) for item in verbs(ITEMS["verbs"])]
        rows.add({"cell": cell, **outcome(margins(model, items))})


def plain(rows: Rows, model) -> None:
    """Run every task as it is."""
    for task, make in TASKS.items():
        if rows.get(cell={"task": task}) is None:
            rows.add({"cell": {"task": task}, **outcome(margins(model, make(ITEMS[task])))})


def noise(rows: Rows, model) -> None:
    """Run ARM and its control, five seeds each; on verbs in two settings, and once by the rule of the paper."""
    for task, make in TASKS.items():
        items = make(ITEMS[task])
        cells = [
            {"task": task, "setting": setting, "elsewhere": elsewhere, "seed": seed}
            for seed in SEEDS
            for setting in (SETTINGS if task == "verbs" else ["mild"])
            for elsewhere in (False, True)
        ]
        cells += [{"task": task, "setting": "mild", "elsewhere": False, "seed": 0, "added": True}] * (task == "verbs")
        for cell in tqdm(cells, desc=f"noise in {task}"):
            if rows.get(cell=cell) is None:
                options = {name: cell[name] for name in ("elsewhere", "seed", "added") if name in cell}
                steering = au.methods.ARM(model, **SETTINGS[cell["setting"]], **options)
                rows.add({"cell": cell, **outcome(margins(model, items, steering))})


def main() -> None:
    """Run the parts that are named, or all."""
    model = au.load()
    rows = Rows(RESULTS / "arm.jsonl", model)
    plain(rows, model)
    parts = {"before": before, "between": between, "noise": noise, "after": after}
    for name in sys.argv[1:] or parts:
        parts[name](rows, model)


if __name__ == "__main__":
    main()
