"""Loading says which row of which file is wrong; splitting never moves a topic."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import austeer as au
from austeer import ContrastivePair

ROW = {"prompt": "It was", "positive": " good.", "negative": " bad.", "topic": "t"}


def written(path: Path, *lines: str, start: str = "") -> str:
    path.write_text(start + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_the_books_own_sets_load_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(au.load_pairs("sentiment")) >= 240
    assert len(au.load_prompts("openings")) >= 60
    assert au.load_results("sentiment_sweep")[0]["cell"]["choice"] == "unsteered"


def test_a_file_may_start_with_a_byte_order_mark_and_have_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps(ROW), "", json.dumps(ROW | {"topic": "u"}), start="\ufeff")
    assert [pair.topic for pair in au.load_pairs(path)] == ["t", "u"]


def test_foreign_fields_are_left_out_and_a_topic_may_be_missing(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "topic"} | {"source": "me"}
    assert au.load_pairs(written(tmp_path / "a.jsonl", json.dumps(row))) == [
        ContrastivePair("It was", " good.", " bad.")
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        (json.dumps({"prompt": "x", "positive": "y"}), "negative"),
        (json.dumps(ROW | {"negative": " good."}), "the same answer"),
        (json.dumps(ROW | {"positive": ""}), "empty answer"),
        (json.dumps(ROW | {"prompt": 3}), "prompt"),
        (json.dumps(ROW | {"positive": [" good."]}), "positive"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path / "bad.jsonl", json.dumps(ROW), line)
    with pytest.raises(ValueError, match=says) as error:
        au.load_pairs(path)
    assert "bad.jsonl, row 2" in str(error.value)


def test_a_file_may_be_given_as_a_path(tmp_path: Path) -> None:
    assert len(au.load_pairs(Path(written(tmp_path / "a.jsonl", json.dumps(ROW))))) == 1


def test_an_empty_file_a_missing_file_and_an_unknown_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no rows"):
        au.load_pairs(written(tmp_path / "a.jsonl"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        au.load_pairs("nowhere.jsonl")
    with pytest.raises(ValueError, match="openings, .*sentiment"):
        au.load_pairs("sentimnt")


def test_a_hub_set_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install datasets"):
        au.load_pairs("hf:org/name")


def test_no_topic_is_in_two_parts_and_every_part_has_some() -> None:
    parts = au.split(au.load_pairs("sentiment"))
    topics = [{pair.topic for pair in part} for part in parts]
    assert not (topics[0] & topics[1] or topics[0] & topics[2] or topics[1] & topics[2])
    assert sum(map(len, parts)) == len(au.load_pairs("sentiment"))
    assert min(map(len, topics)) >= 8


def test_openings_are_split_like_the_pairs() -> None:
    pairs, openings = au.split(au.load_pairs("sentiment")), au.split(au.load_prompts("openings"))
    for part, other in zip(pairs, openings, strict=True):
        assert {item.topic for item in part} == {item.topic for item in other}


def test_adding_items_moves_none() -> None:
    pairs = au.load_pairs("sentiment")
    few, many = au.split(pairs[:100]), au.split(pairs)
    for part, whole in zip(few, many, strict=True):
        assert set(part) <= set(whole)


def test_the_split_does_not_depend_on_pythons_hash_seed() -> None:
    show = "[sorted({pair.topic for pair in part}) for part in au.split(au.load_pairs('sentiment'))]"
    code = f"import austeer as au; print({show})"
    here = [sorted({pair.topic for pair in part}) for part in au.split(au.load_pairs("sentiment"))]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(here)


def test_shares_above_one_are_refused() -> None:
    for train, validation in ((0.8, 0.4), (-0.1, 0.5), (0.5, -0.1)):
        with pytest.raises(ValueError, match="no test part"):
            au.split([], train=train, validation=validation)


def test_items_without_a_topic_are_split_by_their_prompt() -> None:
    pairs = [ContrastivePair(f"prompt {row}", " a", " b") for row in range(200)]
    parts = au.split(pairs)
    assert sorted(map(len, parts)) == sorted(map(len, au.split(pairs[::-1])))
    assert 70 < len(parts.train) < 130


def test_swapping_exchanges_the_sides_of_half_of_the_topics() -> None:
    pairs = au.load_pairs("sentiment")
    swapped = au.swap_topics(pairs, seed=3)
    topics = {}
    for before, after in zip(pairs, swapped, strict=True):
        assert (after.prompt, after.topic) == (before.prompt, before.topic)
        assert {after.positive, after.negative} == {before.positive, before.negative}
        topics.setdefault(before.topic, set()).add(before.positive != after.positive)
    assert all(len(sides) == 1 for sides in topics.values())
    assert sum(True in sides for sides in topics.values()) == len(topics) // 2
    assert swapped == au.swap_topics(pairs, seed=3) != au.swap_topics(pairs, seed=4)


def test_pairs_by_word_end_behind_each_word_and_differ() -> None:
    pairs = [
        ContrastivePair("At noon", " the old man slept.", " the old dog ran far off.", "t"),
        ContrastivePair("", "a b", "c"),
    ]
    cut = au.data.by_word(pairs)
    assert [(pair.positive, pair.negative) for pair in cut] == [
        (" the old man", " the old dog"), (" the old man slept.", " the old dog ran"), ("a", "c"),
    ]  # fmt: skip
    assert {(pair.prompt, pair.topic) for pair in cut} == {("At noon", "t"), ("", "")}
