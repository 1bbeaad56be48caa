"""The concepts of chapter 16: twelve pairs each, alike in length, and word lists that their positive sides use."""

import json
import re
from collections import Counter

import pytest
from written_sets import DATA, read_rows, words

from austeer.scoring import hits

ROWS = read_rows("concepts.jsonl")
TOPICS = sorted({row["topic"] for row in ROWS})
LINES = (DATA / "results" / "concept_words.jsonl").read_text().splitlines()
LISTS = {row["concept"]: row["words"] for row in map(json.loads, LINES)}


def test_twelve_pairs_each_in_order() -> None:
    assert set(Counter(row["topic"] for row in ROWS).values()) == {12}
    assert [row["topic"] for row in ROWS] == sorted(row["topic"] for row in ROWS)
    assert all(set(row) == {"prompt", "positive", "negative", "topic"} for row in ROWS)


def test_joints_and_no_repetition() -> None:
    assert all(
        row[side].startswith(" ") and row[side].endswith(".") for row in ROWS for side in ("positive", "negative")
    )
    assert all(row["prompt"][-1].isalpha() for row in ROWS)
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)


def test_the_two_sides_are_alike_in_length() -> None:
    lengths = [[len(words(row[side])) for side in ("positive", "negative")] for row in ROWS]
    assert all(abs(one - other) <= 2 for one, other in lengths)
    means = [sum(column) / len(ROWS) for column in zip(*lengths, strict=True)]
    assert abs(means[0] - means[1]) < 0.3


@pytest.mark.parametrize("topic", TOPICS)
def test_the_word_list_tells_the_sides_apart(topic: str) -> None:
    sides = [[row[side] for row in ROWS if row["topic"] == topic] for side in ("positive", "negative")]
    if topic == "numbers":  # those in digits count, too
        sides = [[re.sub(r"\d[\d.,:]*", " five ", text) for text in side] for side in sides]
    positive, negative = (hits(side, LISTS[topic], most=1) for side in sides)
    assert positive.mean() >= 0.6 and negative.mean() <= 0.25


def test_lists_are_sorted_small_letters_without_repetition() -> None:
    assert set(TOPICS) | {"hedging"} == set(LISTS)
    for found in LISTS.values():
        assert found == sorted(set(found)) and all(word.isalpha() and word.islower() for word in found)
