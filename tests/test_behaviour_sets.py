"""The rules that the hand-written sets of four more behaviours, and the plain requests, keep (see data/README.md)."""

import re
from collections import Counter
from itertools import combinations
from statistics import mean

import pytest
from written_sets import DATA, Row, four_grams, masked, read_rows, words

BEHAVIOURS = {"refusal": (48, 8), "formality": (48, 8), "agreement": (48, 8), "hedging": (32, 4)}  # topics, pairs each
SIDES = ("positive", "negative")


@pytest.fixture(scope="module", params=BEHAVIOURS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def rows(name: str) -> list[Row]:
    return read_rows(f"{name}.jsonl")


def text(row: Row, side: str) -> str:
    """What a model reads."""
    return row["prompt"] + row[side]


def frequent(items: list, share: float) -> dict:
    """The items that make up more than a share of the list, with their counts."""
    return {item: n for item, n in Counter(items).items() if n > share * len(items)}


def near_copies(texts: list[str], share: float) -> list[tuple[str, str]]:
    """The pairs of texts that have so large a share of their words in common."""
    bags = [(one, {word.lower() for word in words(one)}) for one in texts]
    return [(a, b) for (a, x), (b, y) in combinations(bags, 2) if len(x & y) >= share * len(x | y)]


def test_every_topic_has_as_many_pairs_and_they_are_in_order(name: str, rows: list[Row]) -> None:
    topics, (number, each) = [row["topic"] for row in rows], BEHAVIOURS[name]
    assert set(Counter(topics).values()) == {each}
    assert len(set(topics)) == number
    assert topics == sorted(topics)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", topic) for topic in topics)


def test_fields_lengths_and_joints(rows: list[Row]) -> None:
    bad = [row for row in rows if set(row) != {"prompt", "positive", "negative", "topic"} or not all(row.values())]
    bad += [row for row in rows if not 3 <= len(words(row["prompt"])) <= 24 or row["prompt"] != row["prompt"].strip()]
    for side in SIDES:
        bad += [row for row in rows if not 4 <= len(words(row[side])) <= 20]
        bad += [row for row in rows if not re.match(r" \S", row[side]) or "  " in row[side]]
    assert not bad, bad


def test_no_prompt_repeats(rows: list[Row]) -> None:
    assert not {p: n for p, n in Counter(row["prompt"].lower() for row in rows).items() if n > 1}


def test_the_two_sides_are_alike_in_length_and_in_their_last_mark(rows: list[Row]) -> None:
    positive, negative = (mean(len(words(row[side])) for row in rows) for side in SIDES)
    assert abs(positive - negative) <= 0.05 * max(positive, negative), (positive, negative)
    odd = [row for row in rows if abs(len(words(row["positive"])) - len(words(row["negative"]))) > 3]
    odd += [row for row in rows if row["positive"][-1] != row["negative"][-1] or row["positive"][-1] not in ".!?"]
    assert not odd, odd


@pytest.mark.parametrize("side", SIDES)
def test_no_wording_recurs(rows: list[Row], side: str) -> None:
    assert not frequent([words(row[side])[-1].lower() for row in rows], 0.03), "last words"
    assert not frequent([tuple(masked(row[side])[:3]) for row in rows], 0.05), "first three words"
    grams = Counter(gram for row in rows for gram in four_grams(text(row, side)))
    assert not {gram: n for gram, n in grams.items() if n > 0.05 * len(rows)}, "four words anywhere"
    assert not near_copies([text(row, side) for row in rows], 0.8)


def test_requests_are_30_each_of_56_topics_short_and_all_different() -> None:
    rows = read_rows("requests.jsonl")
    topics, prompts = [row["topic"] for row in rows], [row["prompt"] for row in rows]
    assert all(set(row) == {"prompt", "topic"} and row["prompt"] == row["prompt"].strip() for row in rows)
    assert topics == sorted(topics)
    assert set(Counter(topics).values()) == {30}
    assert len(rows) == 1680
    assert not [prompt for prompt in prompts if not 3 <= len(words(prompt)) <= 22]
    assert len({prompt.lower() for prompt in prompts}) == len(prompts)
    assert not frequent([tuple(masked(prompt)[:4]) for prompt in prompts], 0.02)
    assert not near_copies(prompts, 0.7)


def test_the_data_card_names_the_sets_with_their_measured_lengths() -> None:
    card = " ".join((DATA / "README.md").read_text(encoding="utf-8").split())
    for name in BEHAVIOURS:
        own = read_rows(f"{name}.jsonl")
        positive, negative = (mean(len(words(row[side])) for row in own) for side in SIDES)
        assert f"| `{name}.jsonl` | {len(own)} | {positive:.2f} | {negative:.2f} |" in card, name
