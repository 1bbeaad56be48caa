"""The rules that the dubious requests and their harmless lookalikes keep (see data/README.md)."""

from collections import Counter
from itertools import combinations

import pytest
from written_sets import DATA, masked, read_rows, words

SETS = ("dubious", "lookalikes")


@pytest.mark.parametrize("name", SETS)
def test_24_topics_of_10_short_requests_in_order(name: str) -> None:
    rows = read_rows(f"{name}.jsonl")
    topics = [row["topic"] for row in rows]
    assert topics == sorted(topics)
    assert set(Counter(topics).values()) == {10}
    assert len(set(topics)) == 24
    assert all(set(row) == {"prompt", "topic"} and row["prompt"] == row["prompt"].strip() for row in rows)
    assert not [row for row in rows if not 4 <= len(words(row["prompt"])) <= 20]
    frequent = Counter(tuple(masked(row["prompt"])[:4]) for row in rows)
    assert frequent.most_common(1)[0][1] <= 5


def test_both_sets_have_the_same_topics_and_no_request_of_another_set() -> None:
    own = {name: read_rows(f"{name}.jsonl") for name in SETS}
    assert {row["topic"] for row in own["dubious"]} == {row["topic"] for row in own["lookalikes"]}
    others = [row["prompt"] for name in ("requests", "refusal") for row in read_rows(f"{name}.jsonl")]
    mine = [row["prompt"] for rows in own.values() for row in rows]
    assert len({prompt.lower() for prompt in mine}) == len(mine)
    bags = [(prompt, {word.lower() for word in words(prompt)}) for prompt in [*mine, *others]]
    alike = [(a, b) for (a, x), (b, y) in combinations(bags, 2) if len(x & y) >= 0.7 * len(x | y)]
    assert not [pair for pair in alike if set(pair) & set(mine)]


def test_the_data_card_names_both() -> None:
    card = (DATA / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.jsonl`" in card for name in SETS)
