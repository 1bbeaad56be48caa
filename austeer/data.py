"""Contrastive pairs and prompts: load them, check them, split them by topic."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch


@dataclass(frozen=True)
class ContrastivePair:
    """Two answers to one prompt that differ in the behaviour; the model reads prompt + answer, nothing inserted.

    Raises:
        ValueError: an empty answer, or two equal ones.
    """

    prompt: str
    positive: str
    negative: str
    topic: str = ""

    def __post_init__(self) -> None:
        _require_text(self, "prompt", "positive", "negative", "topic")
        if not self.positive or not self.negative:
            raise ValueError(f"The pair {self.prompt[:40]!r} has an empty answer; give both answers.")
        if self.positive == self.negative:
            raise ValueError(f"The pair {self.prompt[:40]!r} has the same answer {self.positive[:40]!r} on both sides.")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, and its topic.

    Raises:
        ValueError: an empty text.
    """

    prompt: str
    topic: str = ""

    def __post_init__(self) -> None:
        _require_text(self, "prompt", "topic")
        if not self.prompt:
            raise ValueError(f"A prompt of topic {self.topic!r} is empty; give a text.")


def is_text(value: object) -> bool:
    """Return whether a value is a string of whole characters: JSON may hold half of one, which no tokenizer reads."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _require_text(item: object, *fields: str) -> None:
    for field in fields:
        if not is_text(getattr(item, field)):
            raise ValueError(f"The field {field!r} is {getattr(item, field)!r:.60}, not a text.")


Item = TypeVar("Item", ContrastivePair, Prompt)


class Split(NamedTuple):
    """Items for fitting, for choosing settings, and for reporting; no topic is in two of them."""

    train: list
    validation: list
    test: list


def load_pairs(name: str) -> list[ContrastivePair]:
    """Load contrastive pairs: a set of the book ("sentiment"), a .jsonl file, or a hub data set ("hf:org/name").

    Each row has `prompt`, `positive`, `negative` and, optionally, `topic`.

    Raises:
        ValueError: an unknown set, or a malformed row (the message names file and line).
        FileNotFoundError: no such file.
        ImportError: "hf:..." without the package `datasets`.

    Example:
        >>> pairs = au.load_pairs("sentiment")
        >>> len(pairs), pairs[0].topic
        (384, 'baby')
        >>> mine = [au.ContrastivePair("The soup is", " lovely.", " awful.", topic="food")]
    """
    return _rows(name, ContrastivePair)


def load_prompts(name: str) -> list[Prompt]:
    """Load prompts: a set of the book ("openings"), a .jsonl file, or a hub data set; rows have `prompt`, `topic`.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `load_pairs`.
    """
    return _rows(name, Prompt)


def load_results(name: str) -> list[dict]:
    """Load the rows of a long experiment that ship with the book, such as "sentiment_sweep", or "published" figures.

    Raises:
        ValueError: unknown results; the message lists those there are.
    """
    return [row for _, row in file_rows(_own(name, "results"))]


def split(items: Sequence[Item], train: float = 0.5, validation: float = 0.25) -> Split:
    """Split items by topic: a topic's part follows from the hash of its name alone.

    So no row moves when others are added, and sets that share topics (pairs and openings) are split alike. Items
    without a topic are split by the hash of their prompt.

    Args:
        items: pairs or prompts.
        train: the share of topics, in expectation, that goes to fitting.
        validation: the same for choosing settings; the rest is the test part.

    Raises:
        ValueError: shares below 0, or above 1 together, or the name of a set in place of its items.

    Example:
        >>> train, validation, test = au.split(au.load_pairs("sentiment"))
        >>> {pair.topic for pair in train} & {pair.topic for pair in test}
        set()
    """
    if isinstance(items, str):
        raise ValueError(f"{items[:40]!r} is a name; give what load_pairs() or load_prompts() returns for it.")
    if not (train >= 0 and validation >= 0 and train + validation <= 1):
        raise ValueError(f"Shares of {train} and {validation} leave no test part; give two that sum to at most 1.")
    parts: Split = Split([], [], [])
    for item in items:
        position = text_hash(item.topic or item.prompt) / 2**64
        parts[(position >= train) + (position >= train + validation)].append(item)
    return parts


def swap_topics(pairs: Sequence[ContrastivePair], seed: int = 0) -> list[ContrastivePair]:
    """Return the pairs with the sides of a random half of the topics exchanged: labels without meaning, a control.

    Raises:
        ValueError: fewer than 2 topics.
    """
    topics = sorted({pair.topic or pair.prompt for pair in pairs})
    if len(topics) < 2:
        raise ValueError(f"The pairs have {len(topics)} topic; half of the topics can be swapped from 2 on.")
    order = torch.randperm(len(topics), generator=torch.Generator().manual_seed(seed)).tolist()
    swapped = {topics[row] for row in order[: len(topics) // 2]}
    return [
        replace(pair, positive=pair.negative, negative=pair.positive)
        if (pair.topic or pair.prompt) in swapped
        else pair
        for pair in pairs
    ]


def by_word(pairs: Sequence[ContrastivePair]) -> list[ContrastivePair]:
    """Return each pair cut off behind its first word, its second and so on: what is read at last tokens is read at all.

    Pairs end with the shorter side; where both sides still say the same there is no pair.

    Example:
        >>> pair = au.ContrastivePair("We saw", " the blue sea.", " the green park.")
        >>> [cut.positive for cut in au.data.by_word([pair])]
        [' the blue', ' the blue sea.']
    """
    cut = []
    for pair in pairs:
        ends = ([word.end() for word in re.finditer(r"\S+", side)] for side in (pair.positive, pair.negative))
        for one, other in zip(*ends, strict=False):
            if pair.positive[:one] != pair.negative[:other]:
                cut.append(replace(pair, positive=pair.positive[:one], negative=pair.negative[:other]))
    return cut


def text_hash(text: str) -> int:
    """Return a whole number below 2**64 that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _rows(name: str, kind: Callable[..., Item]) -> list[Item]:
    name = str(name)
    if name.startswith("hf:"):
        source, rows = name, _hub_rows(name[3:])
    else:
        path = Path(name) if name.endswith(".jsonl") else _own(name)
        source, rows = str(path), file_rows(path)
    fields, items = {field: "" if field == "topic" else None for field in kind.__dataclass_fields__}, []
    for number, row in rows:
        try:
            items.append(kind(**{field: row.get(field, default) for field, default in fields.items()}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}, row {number}: {error}") from error
    if not items:
        raise ValueError(f"{source} holds no rows.")
    return items


def own_folder(kind: str = ".") -> Path:
    """Return where the book's own files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return (package / "_data" if (package / "_data").exists() else package.parent / "data") / kind


def _own(name: str, kind: str = ".") -> Path:
    folder = own_folder(kind)
    known = sorted(path.stem for path in folder.glob("*.jsonl"))
    if name not in known:
        raise ValueError(f"{name!r} is none of the book's own ({', '.join(known)}), nor the path of a .jsonl file.")
    return folder / f"{name}.jsonl"


def file_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the number and content of each row of a JSON Lines file; a bad one is named in the error."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; give the path of a .jsonl file.")
    for number, line in enumerate(file_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, row {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: a {type(row).__name__}, not an object with named fields.")
        yield number, row


def _each_once(fields: list[tuple[str, object]]) -> dict:
    row = dict(fields)
    if len(row) < len(fields):  # JSON's readers would keep the last one and say nothing
        raise ValueError("a field is there twice")
    return row


def file_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}).") from error


def _hub_rows(name: str) -> Iterator[tuple[int, dict]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f'"hf:{name}" needs the package datasets: pip install datasets.') from error
    yield from enumerate(load_dataset(name, split="train"), 1)
