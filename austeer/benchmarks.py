"""The rows of each benchmark, from a directory or the Hugging Face hub, as items: prompt, right, wrong, group."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from austeer.data import file_rows, file_text, load_pairs, load_prompts, text_hash


@dataclass(frozen=True)
class Item:
    """A prompt with its right and wrong continuations (of a number task: the number; of an open task: none).

    Items of one `group` are never in two parts of a task.

    Raises:
        ValueError: an empty text, or a text that is both right and wrong.
    """

    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    group: str

    def __post_init__(self) -> None:
        for text in (self.prompt, self.group, *self.right, *self.wrong):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"The item {str(self.prompt)[:40]!r} has {text!r} where a text is needed.")
        if both := set(self.right) & set(self.wrong):
            raise ValueError(f"The item {self.prompt[:40]!r} has {min(both)!r} as right and as wrong; keep one.")

    @property
    def topic(self) -> str:
        """What `split` goes by: the group."""
        return self.group


def read(name: str) -> tuple[str, list[Item]]:
    """Return where the rows of a benchmark come from (the book, or AUSTEER_DATA, else the hub), and their items.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `load_task`.
    """
    directory = os.environ.get("AUSTEER_DATA")
    if not BENCHMARKS[name].files:
        rows = load_prompts("openings") if name == "mood" else load_pairs(name)
        source, rows = "the book's own data", ((name, vars(row)) for row in rows)
    else:
        source, rows = (directory, _disk_rows(name, Path(directory))) if directory else _hub_rows(name)
    return source, [item for place, row in rows if (item := _at(place, BENCHMARKS[name].item, row))]


def on_disk(name: str) -> bool:
    """Return whether AUSTEER_DATA names a directory that holds all files of a benchmark."""
    directory = os.environ.get("AUSTEER_DATA")
    return bool(directory) and all((Path(directory) / file).exists() for file in BENCHMARKS[name].files.split())


def _at(place: str, make: Callable[[dict], Any], row: dict) -> Any:
    try:
        return make(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _disk_rows(name: str, directory: Path) -> Iterator[tuple[str, dict]]:
    paths = [directory / file for file in BENCHMARKS[name].files.split()]
    if absent := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{', '.join(absent)} not found; AUSTEER_DATA must hold all files of {name!r}.")
    categories: dict[str, str] = {}
    for path in paths:
        read = {".csv": _csv_rows, ".txt": _articles}.get(path.suffix, file_rows)
        for number, row in read(path):
            place = f"{path}, row {number}"
            if path.name == "TruthfulQA.csv":
                categories[_at(place, lambda row: _field(row, "Question"), row)] = row.get("Category")
            else:
                category = categories.get(str(row.get("question")).strip())
                yield place, row | {"category": category} if category else row


def _hub_rows(name: str) -> tuple[str, Iterator[tuple[str, dict]]]:
    if name not in _HUB:
        raise ValueError(f"{name!r} is not read from the hub; set AUSTEER_DATA to a directory with its files.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs the package datasets (pip install datasets), or AUSTEER_DATA set to a directory of files."
        ) from error
    path, configuration, revision, parts = _HUB[name]
    source = f"{path}@{revision}"
    return source, (
        (f"{source}, {part}, row {number}", row)
        for part in parts.split()
        for number, row in enumerate(load_dataset(path, configuration, split=part, revision=revision), 1)
    )


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(file_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise csv.Error(f"it has not the {len(reader.fieldnames)} cells of the header")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, row {reader.reader.line_num}: not CSV ({error}).") from error


def _articles(path: Path) -> Iterator[tuple[int, dict]]:
    """Cut a WikiText file at its titles: lines like " = Title = " between blank ones."""
    lines = ["", *file_text(path).split("\n"), ""]
    titles = [
        row
        for row in range(1, len(lines) - 1)
        if re.fullmatch(r" = [^=]*[^= ] = ?", lines[row]) and not (lines[row - 1] + lines[row + 1]).strip()
    ]
    if not titles:
        raise ValueError(f'{path} has no title; articles begin with a line " = Title = " between blank lines.')
    for start, end in pairwise([*titles, len(lines)]):
        yield start, {"title": lines[start].strip(" ="), "text": "\n".join(lines[start:end])}


def _field(row: dict, name: str, kind: type = str) -> Any:
    """Return a text without the spaces around it, or a value of another type; both must be there and not empty."""
    value = row.get(name)
    value = value.strip() if isinstance(value, str) else value
    if not isinstance(value, kind) or (kind in (str, dict) and not value):
        raise ValueError(f"The field {name!r} is {value!r}; give a {kind.__name__} that is not empty.")
    return value


def _one_of(row: dict, name: str, meanings: dict[str, Any]) -> Any:
    if str(row.get(name)) not in meanings:
        raise ValueError(f"The field {name!r} is {row.get(name)!r}; give one of {', '.join(meanings)}.")
    return meanings[str(row[name])]


def _number(value: object) -> str:
    """Write a number as text, rounded to four decimals: "4", "0.5", "4.3333"."""
    try:
        number = float(str(value).replace(",", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"The number is {value!r}; give digits.")
    return f"{round(number, 4) + 0.0:.4f}".rstrip("0").rstrip(".")


def _boolq(row: dict) -> Item:
    right, wrong = _one_of(row, "answer", {"True": (" yes", " no"), "False": (" no", " yes")})
    prompt = f"{_field(row, 'passage')}\nQuestion: {_field(row, 'question')}?\nAnswer:"
    return Item(prompt, (right,), (wrong,), _field(row, "title" if "title" in row else "passage"))


def _copa(row: dict, mirrored: bool = True) -> Item | None:
    if _field(row, "mirrored", bool) and not mirrored:
        return None
    choices = [_field(row, name) for name in ("choice1", "choice2")]
    choices = [" " + (text if re.match(r"I\b", text) else text[0].lower() + text[1:]) for text in choices]
    right = _one_of(row, "label", {"0": 0, "1": 1})
    prompt = f"{_field(row, 'premise').rstrip('.')} {_one_of(row, 'question', {'cause': 'because', 'effect': 'so'})}"
    return Item(prompt, (choices[right],), (choices[1 - right],), f"item {_field(row, 'idx', int) % 1000}")


def _winogrande(row: dict) -> Item:
    options = [_field(row, name) for name in ("option1", "option2")]
    before, blank, after = _field(row, "sentence").partition("_")
    if not blank:
        raise ValueError(f"The sentence {before[:40]!r} has no blank; mark it with _.")
    right = _one_of(row, "answer", {"1": 0, "2": 1})
    group = _field(row, "qID").rpartition("-")[0] if "qID" in row else " / ".join(sorted(options)).lower()
    return Item(before.rstrip(), (f" {options[right]}{after}",), (f" {options[1 - right]}{after}",), group)


def _sst2(row: dict) -> Item:
    right, wrong = _one_of(row, "label", {"1": (" positive", " negative"), "0": (" negative", " positive")})
    sentence = _field(row, "sentence")
    return Item(f"Review: {sentence}\nSentiment:", (right,), (wrong,), sentence)


def _problem(question: str, answer: object, group: str) -> Item:
    return Item(f"Question: {question}\nAnswer:", (_number(answer),), (), group)


def _svamp(row: dict) -> Item:
    body = _field(row, "Body")
    return _problem(f"{body}{' ' if body[-1] in '.?!' else ', '}{_field(row, 'Question')}", row.get("Answer"), body)


def _mawps(row: dict) -> Item:
    """Fill in the numbers (a third and the like as fractions); the group is the question without numbers and names."""
    question, numbers = _field(row, "Question"), _field(row, "Numbers").split()
    if max((int(place) for place in re.findall(r"number(\d+)", question)), default=-1) >= len(numbers):
        raise ValueError(f"The field 'Numbers' is {row['Numbers']!r}; give a number for each place in {question!r}.")
    texts = [_number(text) for text in numbers]
    for place, (text, value) in enumerate(zip(texts, map(float, numbers), strict=True)):
        if float(text) != value:
            texts[place] = str(Fraction(value).limit_denominator(100))
    filled = re.sub(r"number(\d+)", lambda place: texts[int(place[1])], question)
    return _problem(filled, row.get("Answer"), re.sub(r"[A-Z]\w*|\d+", "_", question))


def _gsm8k(row: dict) -> Item:
    question = _field(row, "question")
    return _problem(question, _field(row, "answer").rpartition("####")[2].strip(), question)


def _truthfulqa(row: dict, targets: str) -> Item:
    question, answers = _field(row, "question"), _field(row, targets, dict)
    shuffled = sorted(answers, key=lambda answer: text_hash(question + answer))
    right, wrong = (tuple(f" {text}" for text in shuffled if answers[text] == side) for side in (True, False))
    if not (right and wrong):
        raise ValueError(f"The field {targets!r} has {len(right)} right, {len(wrong)} wrong answers; give both kinds.")
    return Item(f"Question: {question}\nAnswer:", right, wrong, row.get("category") or question)


def _caa(row: dict, claim: bool = False) -> Item:
    """Group by what is asked before the choices or, where speakers introduce themselves, by its last sentence."""
    question = _field(row, "question")
    asked = re.split(r"\n+(?:Choices:)?\s*\(A\)", question)[0].strip()
    asked = re.split(r"(?<=[.?!])\s+", asked)[-1] if claim else asked
    right, wrong = (f" {_field(row, f'answer_{which}_behavior')}" for which in ("matching", "not_matching"))
    return Item(f"{question}\n\nAnswer:", (right,), (wrong,), re.sub(r"\d+", "_", asked))


def _toxicity(row: dict) -> Item:
    return Item(_field(_field(row, "prompt", dict), "text"), (), (), _field(row, "filename"))


def _pair(row: dict) -> Item:
    return Item(row["prompt"], (row["positive"],), (row["negative"],), row["topic"])


class Benchmark(NamedTuple):
    """How a task is made: its kind, its files (none: the book's own), what a group is, what makes an item of a row."""

    kind: str
    files: str
    group: str
    item: Callable[[dict], Item | None]


def _open(kind: str, files: str, text: str, group: str) -> Benchmark:
    return Benchmark(kind, files, f"the {group}", lambda row: Item(_field(row, text), (), (), _field(row, group)))


def _behaviour(folder: str) -> Benchmark:
    files = f"caa/{folder}/generate_dataset.jsonl caa/{folder}/test_dataset_ab.jsonl"
    claim = folder == "sycophancy"
    return Benchmark("choice", files, "the claim" if claim else "what is asked", partial(_caa, claim=claim))


_BEHAVIOURS = (
    "coordinate-other-ais", "corrigible-neutral-HHH", "hallucination", "myopic-reward", "refusal",
    "survival-instinct", "sycophancy",
)  # fmt: skip
_OWN = "sentiment", "formality", "agreement", "refusal", "hedging"  # the book's pairs
_COPA = "choice", "copa/train.jsonl copa/dev.jsonl", "the number of the item and its mirrored twin"
_WINOGRANDE = " ".join(f"winogrande/{part}.jsonl" for part in ("train_xs", "train_s", "train_m", "dev"))
_TRUTHFULQA = "truthfulqa/TruthfulQA.csv truthfulqa/mc_task.jsonl", "the category"
_TOXICITY = "realtoxicityprompts/toxic.jsonl realtoxicityprompts/nontoxic.jsonl"
BENCHMARKS = {
    "boolq": Benchmark("choice", "boolq/train.jsonl boolq/dev.jsonl", "the title (from the hub: the passage)", _boolq),
    "copa": Benchmark(*_COPA, partial(_copa, mirrored=False)),
    "copa_balanced": Benchmark(*_COPA, _copa),
    "winogrande": Benchmark("choice", _WINOGRANDE, "the twins' id (from the hub: the two options)", _winogrande),
    "sst2": Benchmark("choice", "sst2/dev.jsonl", "the sentence", _sst2),
    "svamp": Benchmark("number", "svamp/train.jsonl svamp/dev.jsonl", "the story, with those much like it", _svamp),
    "mawps": Benchmark("number", "mawps/train.csv mawps/dev.csv", "the question without numbers and names", _mawps),
    "gsm8k": Benchmark("number", "gsm8k/train.jsonl gsm8k/test.jsonl", "the question", _gsm8k),
    "truthfulqa_mc1": Benchmark("choice", *_TRUTHFULQA, partial(_truthfulqa, targets="mc1_targets")),
    "truthfulqa_mc2": Benchmark("multiple", *_TRUTHFULQA, partial(_truthfulqa, targets="mc2_targets")),
    "realtoxicityprompts": Benchmark("toxicity", _TOXICITY, "the web page", _toxicity),
    **{f"caa_{folder.replace('-', '_')}": _behaviour(folder) for folder in _BEHAVIOURS},
    "xstest": _open("refusal", "xstest/xstest_safe.jsonl", "prompt", "type"),
    "advbench": _open("refusal", "advbench/train.jsonl advbench/test.jsonl", "query", "query"),
    "wikitext2": _open("text", "wikitext2/valid.txt wikitext2/test.txt", "text", "title"),
    "mood": _open("mood", "", "prompt", "topic"),
    **dict.fromkeys(_OWN, Benchmark("choice", "", "the topic", _pair)),
}
# Hub id, configuration, revision and official parts. SST-2's train part has phrases cut from its own sentences.
_HUB = {
    "boolq": ("google/boolq", None, "35b264d03638db9f4ce671b711558bf7ff0f80d5", "train validation"),
    "winogrande": (
        "allenai/winogrande", "winogrande_m", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "train validation"
    ),
    "sst2": ("stanfordnlp/sst2", None, "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb", "validation"),
    "gsm8k": ("openai/gsm8k", "main", "e53f048856ff4f594e959d75785d2c2d37b678ee", "train test"),
}  # fmt: skip
