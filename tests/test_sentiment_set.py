"""The rules that the hand-written sentiment pairs and the neutral openings keep (see data/README.md)."""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from statistics import mean, stdev

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
from written_sets import DATA, Row, four_grams, masked, read_rows, words

SIDES = ("positive", "negative")
TOPICS, PAIRS_PER_TOPIC, OPENINGS_PER_TOPIC = 48, 8, 4

PAIRS = read_rows("sentiment.jsonl")
OPENINGS = read_rows("openings.jsonl")
VADER = SentimentIntensityAnalyzer()


def compound(text: str) -> float:
    """VADER's mood score of a text, from -1 (negative) to 1 (positive); 0 is neutral."""
    return VADER.polarity_scores(text)["compound"]


def too_many(items: Iterable[object], share: float) -> dict[object, int]:
    """The items that make up more than `share` of the pairs, with their counts."""
    return {item: n for item, n in Counter(items).items() if n > share * len(PAIRS)}


def full(row: Row, side: str) -> str:
    """The text that a model sees."""
    return row["prompt"] + row[side]


def test_fields_are_filled_and_nothing_else_is_there() -> None:
    bad = [row for row in PAIRS if set(row) != {"prompt", "positive", "negative", "topic"} or not all(row.values())]
    bad += [row for row in OPENINGS if set(row) != {"prompt", "topic"} or not all(row.values())]
    assert not bad, bad


@pytest.mark.parametrize(
    ("rows", "per_topic"), [(PAIRS, PAIRS_PER_TOPIC), (OPENINGS, OPENINGS_PER_TOPIC)], ids=["pairs", "openings"]
)
def test_every_topic_has_its_full_number_of_rows_and_the_file_is_ordered(rows: list[Row], per_topic: int) -> None:
    topics = [row["topic"] for row in rows]
    counts = Counter(topics)
    assert len(counts) == TOPICS, f"{len(counts)} topics"
    assert not {t: n for t, n in counts.items() if n != per_topic}, counts
    assert not [t for t in counts if not re.fullmatch(r"[a-z]+(_[a-z]+)*", t)], sorted(counts)
    assert topics == sorted(topics), "the rows are not in the order of their topics"


def test_openings_and_pairs_have_the_same_topics() -> None:
    odd = {row["topic"] for row in PAIRS} ^ {row["topic"] for row in OPENINGS}
    assert not odd, sorted(odd)


def test_no_prompt_repeats_in_or_across_the_files() -> None:
    counts = Counter(row["prompt"].lower() for row in PAIRS + OPENINGS)
    assert not {prompt: n for prompt, n in counts.items() if n > 1}


def test_lengths_and_joints() -> None:
    bad = [row["prompt"] for row in PAIRS if not 3 <= len(words(row["prompt"])) <= 14]
    bad += [row["prompt"] for row in OPENINGS if not 4 <= len(words(row["prompt"])) <= 12]
    bad += [row["prompt"] for row in PAIRS + OPENINGS if row["prompt"] != row["prompt"].strip()]
    bad += [row["prompt"] for row in OPENINGS if not row["prompt"][-1].isalnum()]
    for side in SIDES:
        bad += [row[side] for row in PAIRS if not 4 <= len(words(row[side])) <= 16]
        bad += [row[side] for row in PAIRS if not re.match(r" \S", row[side]) or "  " in row[side]]
    assert not bad, bad


def test_the_two_sides_are_equally_long_on_average() -> None:
    positive, negative = (mean(len(words(row[side])) for row in PAIRS) for side in SIDES)
    assert abs(positive - negative) <= 0.05 * max(positive, negative), (positive, negative)


def test_both_sides_of_a_pair_end_alike_and_few_shout() -> None:
    odd = [row for row in PAIRS if row["positive"][-1] != row["negative"][-1] or row["positive"][-1] not in ".!"]
    assert not odd, odd
    shouting = [row["positive"] for row in PAIRS if row["positive"][-1] == "!"]
    assert len(shouting) <= 0.08 * len(PAIRS), shouting


@pytest.mark.parametrize("side", SIDES)
def test_last_words_rarely_repeat(side: str) -> None:
    frequent = too_many((words(row[side])[-1].lower() for row in PAIRS), 0.03)
    assert not frequent, frequent


@pytest.mark.parametrize("side", SIDES)
def test_no_four_words_recur_at_the_start_of_texts(side: str) -> None:
    frequent = too_many((tuple(masked(full(row, side))[:4]) for row in PAIRS), 0.05)
    assert not frequent, frequent


@pytest.mark.parametrize("side", SIDES)
def test_no_four_words_recur_anywhere(side: str) -> None:
    frequent = too_many((gram for row in PAIRS for gram in four_grams(full(row, side))), 0.05)
    assert not frequent, frequent


@pytest.mark.parametrize("side", SIDES)
def test_no_two_texts_are_nearly_the_same(side: str) -> None:
    bags = [(full(row, side), {word.lower() for word in words(full(row, side))}) for row in PAIRS]
    close = [(a, b) for (a, x), (b, y) in combinations(bags, 2) if len(x & y) >= 0.8 * len(x | y)]
    assert not close, close


def test_prompts_and_openings_carry_no_mood() -> None:
    moody_openings = {row["prompt"]: compound(row["prompt"]) for row in OPENINGS if compound(row["prompt"]) != 0.0}
    assert not moody_openings, moody_openings
    moody = {row["prompt"]: compound(row["prompt"]) for row in PAIRS if compound(row["prompt"]) != 0.0}
    assert len(moody) <= 0.05 * len(PAIRS), moody


def test_vader_rarely_sees_the_two_sides_the_wrong_way_round() -> None:
    scores = [(compound(full(row, "positive")), compound(full(row, "negative")), row) for row in PAIRS]
    wrong = [(p, n, row) for p, n, row in scores if p < n]
    assert len(wrong) <= 0.02 * len(PAIRS), wrong
    tied = [row for p, n, row in scores if p == n]
    assert len(tied) <= 0.12 * len(PAIRS), tied


def test_the_data_card_has_the_measured_numbers() -> None:
    scores = [(compound(full(row, "positive")), compound(full(row, "negative"))) for row in PAIRS]
    lengths = [[len(words(row[side])) for row in PAIRS] for side in SIDES]
    expected = [
        "| words per completion, mean | {:.2f} | {:.2f} |".format(*map(mean, lengths)),
        "| words per completion, standard deviation | {:.2f} | {:.2f} |".format(*map(stdev, lengths)),
        "| mean VADER score | {:.3f} | {:.3f} |".format(*map(mean, zip(*scores, strict=True))).replace("-", "−"),
        f"at most one word in {sum(abs(p - n) <= 1 for p, n in zip(*lengths, strict=True))} of {len(PAIRS)} pairs",
        f"right order in {sum(p > n for p, n in scores)} of {len(PAIRS)} pairs",
        f"In {sum(p > 0 > n for p, n in scores)} of {len(PAIRS)} pairs",
        f"the same score in {sum(p == n for p, n in scores)} pairs",
        f"wrong order in {sum(p < n for p, n in scores)}.",
    ]
    card = (DATA / "README.md").read_text(encoding="utf-8")
    missing = [text for text in expected if text not in " ".join(card.split())]
    assert not missing, missing
