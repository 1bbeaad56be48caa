"""Benchmark tasks: items with their right and wrong answers, in parts that no passage, topic or twin crosses."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from austeer.benchmarks import BENCHMARKS, Item, read
from austeer.data import ContrastivePair, Prompt, Split, text_hash
from austeer.data import split as split_by_topic

KINDS = ("choice", "multiple", "number", "mood", "toxicity", "refusal", "text")
TASKS = tuple(BENCHMARKS)
_OPEN = ("mood", "toxicity", "refusal", "text")


@dataclass(frozen=True)
class Task:
    """One part of a benchmark, or of a reader's own data, ready to be scored.

    Attributes:
        name: one of `TASKS`, or a reader's own.
        kind: "choice" (right against wrong continuation), "multiple" (the probability of all right ones together),
            "number" (the last number of the generated text), "mood", "toxicity", "refusal", "text" (perplexity), or a
            function that scores texts: it gets the continuations, 24 greedy tokens, and returns (texts,) numbers.
        items: what is scored.
        source: the directory, or hub id and revision, that the rows came from.
        rule: how the parts were made, in one sentence.

    Raises:
        ValueError: an unknown kind.
    """

    name: str
    kind: str | Callable[[Sequence[str]], torch.Tensor]
    items: list[Item]
    source: str
    rule: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not callable(self.kind):
            raise ValueError(f"The task {self.name!r} is of kind {self.kind!r}; give one of {', '.join(KINDS)}.")


def own_task(
    name: str, items: Sequence[ContrastivePair | Prompt], kind: Callable[[Sequence[str]], torch.Tensor] | None = None
) -> Task:
    """Make a task of a reader's own items: one part of them, such as `split` gives.

    Args:
        name: what reports call it.
        items: pairs, whose positive answer is to be the likelier one, or prompts to be continued.
        kind: for prompts, the function that scores the continuations, as in `Task`.

    Raises:
        ValueError: no item, what is no pair or prompt, or prompts without a function to score them by.

    Example:
        >>> def marks(texts):
        ...     return torch.tensor([float(text.count("!")) for text in texts])
        >>> task = au.own_task("exclamations", au.split(au.load_prompts("openings")).test[:4], marks)
        >>> list(au.evaluate(au.load(), task).scores)
        ['marks']
    """
    if not items:
        raise ValueError(f"The task {name!r} has no items; give at least one pair or prompt.")
    for item in items:
        if not isinstance(item, (ContrastivePair, Prompt)):
            raise ValueError(f"The task {name!r} has the item {item!r:.60}; give pairs or prompts.")
    if kind is None and not all(isinstance(item, ContrastivePair) for item in items):
        raise ValueError(f"The items of {name!r} are prompts, without answers; give a function that scores texts, too.")
    rows = [
        Item(item.prompt, *(((), ()) if kind else ((item.positive,), (item.negative,))), item.topic or item.prompt)
        for item in items
    ]
    return Task(name, kind or "choice", rows, "the reader's own", "The reader's own part.")


def load_task(name: str, split: str = "test", *, n: int | None = None, seed: int = 0, shots: int = 0) -> Task:
    """Load one part of a benchmark task, by our own split: official parts are pooled, repeated rows dropped.

    Rows that differ in nothing but which answer is right are dropped too. The book's own sets are tasks too: "mood"
    (the openings), "sentiment", "formality", "agreement", "refusal", "hedging" (the positive answer counts as right),
    with the parts that `austeer.split` makes. Other rows come from the directory that
    the environment variable AUSTEER_DATA names; without it, those of some tasks come from the Hugging Face hub, at a
    fixed revision. Hub rows of BoolQ and WinoGrande lack the title and the id to group by, so their groups are the
    passages and the pairs of options. The hub was never reached from where this was written: its schema and
    revisions are those that public code uses.

    Args:
        name: one of `TASKS`.
        split: "train", "validation" or "test".
        n: draw that many items, in their order; None keeps all.
        seed: of the draws of items and examples.
        shots: put so many answered train items before each prompt, the same everywhere, with both answers equally
            often where a task has two; an item that serves as an example is not in the train part.

    Raises:
        ValueError: an unknown name or split, more items or examples than there are, or a malformed row (the message
            names file and line), or a task that needs AUSTEER_DATA.
        FileNotFoundError: AUSTEER_DATA lacks a file of the task.
        ImportError: no AUSTEER_DATA, and no package `datasets`.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no task; give one of {', '.join(TASKS)}.")
    if split not in Split._fields:
        raise ValueError(f'split is {split!r}; give "train", "validation" or "test".')
    kind, _, group, _ = BENCHMARKS[name]
    source, items = read(name)
    parts = split_by_topic(_linked(_distinct(items), alike=name == "svamp"))
    examples = _examples(name, parts.train, shots, seed)
    chosen = [item for item in getattr(parts, split) if item not in examples]
    n = len(chosen) if n is None else n
    if n not in range(1, len(chosen) + 1):
        raise ValueError(f"The {split} part of {name!r} has {len(chosen)} items to draw {n} from; n must be 1 to that.")
    chosen = [chosen[row] for row in sorted(_order(len(chosen), seed)[:n])]
    before = "".join(f"{item.prompt}{_answer(kind, item.right[0])}\n\n" for item in examples)
    chosen = [replace(item, prompt=before + item.prompt) for item in chosen]
    rule = f"The rows of all files, repeats dropped, are split 2 : 1 : 1 by the hash of {group}."
    return Task(name, kind, chosen, source, rule)


def pairs_of(task: Task) -> list[ContrastivePair]:
    """Make one contrastive pair of each item: its first right answer against its first wrong one.

    The wrong answer of a number task is the nearest other answer in the task; if there is one on either side, the
    prompt's hash decides.

    Raises:
        ValueError: a task without answers, or a number task with only one.
    """
    if task.kind in _OPEN:
        raise ValueError(f"{task.name!r} is a {task.kind} task, without answers; give a task that has some.")
    answers = {float(item.right[0]): item.right[0] for item in task.items} if task.kind == "number" else {}
    if len(answers) == 1:
        raise ValueError(f"All answers of {task.name!r} are {task.items[0].right[0]}; give more items.")
    pairs = []
    for item in task.items:
        right, wrong = item.right[0], item.wrong[0] if item.wrong else ""
        if answers:
            apart = {value: abs(value - float(right)) for value in answers if value != float(right)}
            least = min(apart.values())
            nearest = [answers[value] for value in sorted(apart) if apart[value] == least]
            wrong = nearest[text_hash(item.prompt) % len(nearest)]
        pair = _answer(task.kind, right), _answer(task.kind, wrong)
        pairs.append(ContrastivePair(item.prompt, *pair, topic=item.group))
    return pairs


def _answer(kind: str, right: str) -> str:
    return f" {right}" if kind == "number" else right


def _order(n: int, seed: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def _examples(name: str, train: list[Item], shots: int, seed: int) -> list[Item]:
    if shots and BENCHMARKS[name].kind in _OPEN:
        raise ValueError(f"{name!r} has no answers to show, so shots={shots} is not possible; leave shots at 0.")
    labels, taken, found = {item.right[:1] for item in train}, Counter(), []
    most = math.ceil(shots / 2) if len(labels) == 2 else shots
    for item in (train[row] for row in _order(len(train), seed)):
        if len(found) < shots and taken[item.right[:1]] < most:
            taken[item.right[:1]] += 1
            found.append(item)
    if len(found) != shots:
        raise ValueError(f"shots is {shots}; {name!r} has {len(train)} items to show (two answers: equally often).")
    return found


def _distinct(items: list[Item]) -> list[Item]:
    """Drop repeated items, and those that contradict each other: equal but for which answer is right."""
    seen: dict[tuple, set] = {}
    for item in items:
        seen.setdefault(_question(item), set()).add(frozenset(item.right))
    first = {_question(item): item for item in reversed(items)}
    return [item for item in items if first[_question(item)] is item and len(seen[_question(item)]) == 1]


def _question(item: Item) -> tuple:
    return item.prompt, frozenset(item.right + item.wrong) if item.wrong else None


def _linked(items: list[Item], alike: bool) -> list[Item]:
    """Merge groups that have a prompt in common or, if `alike`, most of their shorter one's long words."""
    root = {item.group: item.group for item in items}

    def find(group: str) -> str:
        while root[group] != group:
            group = root[group]
        return group

    first: dict[str, str] = {}
    same = [(first.setdefault(item.prompt, item.group), item.group) for item in items]
    if alike:
        words = {group: set(re.findall(r"[a-z]{4,}", group.lower())) for group in root}
        same += [
            (one, other)
            for one, other in combinations(words, 2)
            if len(words[one] & words[other]) >= 0.6 * max(1, min(len(words[one]), len(words[other])))
        ]
    for one, other in same:
        low, high = sorted((find(one), find(other)))
        root[high] = low
    return [replace(item, group=find(item.group)) for item in items]
