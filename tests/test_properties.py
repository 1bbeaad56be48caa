"""Properties that hold for whatever input hypothesis thinks of: momentum, ranking, splits, parsing, positions, files.

`AUSTEER_TEST_ALL=1` (`make test-all`) tries ten times as many inputs.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import austeer as au
from austeer import ActivationMomentum, ContrastivePair
from austeer.activations import Texts, _shared_and_own
from austeer.benchmarks import _number
from austeer.data import file_rows
from austeer.models import ModelInfo, common_beginning
from austeer.momentum import _count, _empty, _groups, _shares, signed_score, unit_set
from austeer.steering import POSITIONS, Operator, Pass, Scale, Shift, Steering

EXAMPLES = 500 if os.environ.get("AUSTEER_TEST_ALL") else 50
INFO = ModelInfo("tiny", "0" * 16, (3, 32), False)
LAYERS, WIDTH = 2, 5

always = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
whole_characters = st.text(st.characters(exclude_categories=["Cs"]))
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
topics = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=24)


def momentum(differences: Tensor, named: list[str]) -> ActivationMomentum:
    """The momentum of pairs with these differences, (pairs, layers, width)."""
    group = _groups([ContrastivePair("p", " a", " b", topic) for topic in named])
    counts = _empty(int(group.max()) + 1, differences.shape[1:])
    _count(counts, group, differences, torch.zeros_like(differences))
    return ActivationMomentum("attention", *counts, torch.bincount(group), INFO)


@st.composite
def some(draw) -> tuple[Tensor, list[str]]:
    """Differences that are small whole numbers, so that many tie, and the topics of their pairs."""
    named = draw(topics)
    number = st.integers(-3, 3)
    values = draw(st.lists(number, min_size=len(named) * LAYERS * WIDTH, max_size=len(named) * LAYERS * WIDTH))
    return torch.tensor(values, dtype=torch.float32).view(len(named), LAYERS, WIDTH), named


# Momentum


@always
@given(some())
def test_beta_is_a_share_whose_sign_is_the_majoritys(case: tuple) -> None:
    differences, named = case
    beta = momentum(differences, named).beta
    up, down = ((differences * sign > 0).sum(0) for sign in (1, -1))
    assert torch.equal(beta > 0, (up >= down) & (up > 0))
    assert torch.equal((beta.abs() * len(named)).round().int(), torch.maximum(up, down).int())


@always
@given(some(), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_pairs_nor_the_names_of_topics_matter(case: tuple, random) -> None:
    differences, named = case
    order = list(range(len(named)))
    random.shuffle(order)
    one = momentum(differences, named)
    other = momentum(differences[order], [f"topic {named[row]}" for row in order])
    assert torch.equal(one.beta, other.beta)
    assert torch.equal(one.mean_difference, other.mean_difference)
    assert torch.equal(one.log_p, other.log_p)


@always
@given(some())
def test_groups_add_up_to_the_whole(case: tuple) -> None:
    found = momentum(*case)
    groups = range(len(found.pairs))
    parts = [found.subset(torch.tensor([group])) for group in groups]
    assert sum(int(part.pairs) for part in parts) == len(case[1])
    assert torch.equal(sum(part.higher for part in parts)[0], found.higher.sum(0))
    assert torch.equal(found.subset(torch.tensor(groups)).beta, found.beta)


@always
@given(some(), st.sampled_from([0.125, 2, 1024]))
def test_a_larger_unit_of_activation_changes_no_score_and_scales_the_difference(case: tuple, factor: float) -> None:
    one, other = momentum(*case), momentum(case[0] * factor, case[1])  # a power of two, which rounds nothing
    assert torch.equal(one.beta, other.beta)
    assert torch.equal(other.mean_difference, one.mean_difference * factor)
    assert torch.equal(other.standardised, one.standardised)


@always
@given(some(), st.integers(0, 100))
def test_the_null_is_what_some_swap_of_whole_topics_gives(case: tuple, seed: int) -> None:
    found = momentum(*case)
    if len(found.pairs) < 5:
        with pytest.raises(ValueError, match="at least 5"):
            found.null(seed)
        return
    votes = torch.maximum(found.higher, found.lower).sum(0).max()
    assert 0 <= found.null(seed) <= votes / len(case[1])
    assert found.null(seed) == found.null(seed)


@always
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 50))
def test_the_signed_score_and_its_p_value_agree_on_what_is_more(higher: int, lower: int, ties: int) -> None:
    pairs = max(1, higher + lower + ties)
    counts = [torch.tensor([[[count]]], dtype=torch.int32) for count in (higher, lower)]
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    found = ActivationMomentum("ffn", *counts, zero, zero, torch.tensor([pairs]), INFO)
    assert -1 <= signed_score(*counts, pairs).item() <= 1
    assert found.log_p.item() <= 0
    if higher > lower:
        turned = ActivationMomentum("ffn", counts[1], counts[0], zero, zero, torch.tensor([pairs]), INFO)
        assert found.beta.item() == -turned.beta.item() > 0
        assert found.log_p.item() == turned.log_p.item()


# Ranking


@always
@given(some(), st.integers(1, LAYERS * WIDTH), st.sampled_from(["momentum", "mean_difference"]))
def test_the_top_k_are_k_units_none_of_which_any_other_beats(case: tuple, k: int, by: str) -> None:
    found = momentum(*case)
    score = (found.beta if by == "momentum" else found.mean_difference).abs()
    top = found.top(k, by)
    chosen = score[top.layer, top.index]
    assert len(unit_set(top)) == k
    assert chosen.tolist() == sorted(score.flatten().tolist(), reverse=True)[:k]
    assert top.tied == int((score == chosen[-1]).sum()) >= 1
    assert torch.equal(top.beta, found.beta[top.layer, top.index])
    assert unit_set(top[: k - 1]) == (unit_set(found.top(k - 1, by)) if k > 1 else set())


@always
@given(some(), st.integers(1, LAYERS * WIDTH), st.integers(0, 1000))
def test_controls_have_the_same_units_or_the_same_number(case: tuple, k: int, seed: int) -> None:
    found = momentum(*case)
    drawn, top = found.random(k, seed), found.top(k)
    assert len(unit_set(drawn)) == k
    turned = top.shuffled_signs(seed)
    assert unit_set(turned) == unit_set(top)
    assert torch.equal(turned.beta.abs(), top.beta.abs())
    nonzero = top.beta != 0
    assert (turned.beta[nonzero] != top.beta[nonzero]).sum() <= (k + 1) // 2


@always
@given(some(), st.integers(1, LAYERS * WIDTH), st.integers(0, 10))
def test_stability_is_a_share(case: tuple, k: int, seed: int) -> None:
    found = momentum(*case)
    if len(found.pairs) > 1:
        assert -1e-9 <= found.stability(k, draws=3, seed=seed) <= 1 + 1e-9
    if k == LAYERS * WIDTH and len(found.pairs) > 1:
        assert found.stability(k, draws=3, seed=seed) == pytest.approx(1)


# Splits


@always
@given(st.lists(texts, min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_a_split_loses_no_item_doubles_none_and_parts_no_topic(named: list[str], first: float, second: float) -> None:
    items = [ContrastivePair(f"p{row}", " a", " b", topic) for row, topic in enumerate(named * 2)]
    train, validation = sorted([first, second])[0], sorted([first, second])[1] - sorted([first, second])[0]
    parts = au.split(items, train, validation)
    assert sorted(item.prompt for part in parts for item in part) == sorted(item.prompt for item in items)
    where = [{item.topic for item in part} for part in parts]
    assert not (where[0] & where[1] or where[0] & where[2] or where[1] & where[2])
    assert [[item for item in items if item in part] for part in parts] == [list(part) for part in parts]


@always
@given(st.lists(texts, min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_items_in_and_gives_none_away(named: list[str], one: float, other: float) -> None:
    items = [ContrastivePair("p", " a", " b", topic) for topic in named]
    few, many = (au.split(items, share, 0).train for share in sorted([one, other]))
    assert set(few) <= set(many)


@always
@given(topics, st.integers(0, 100))
def test_swapping_twice_is_not_swapping_and_half_of_the_topics_are_swapped(named: list[str], seed: int) -> None:
    pairs = [ContrastivePair(f"p{row}", " a", " b", topic) for row, topic in enumerate(named)]
    if len(set(named)) < 2:
        with pytest.raises(ValueError, match="from 2 on"):
            au.swap_topics(pairs, seed)
        return
    swapped = au.swap_topics(pairs, seed)
    assert au.swap_topics(swapped, seed) == pairs
    turned = {pair.topic for pair in swapped if pair.positive == " b"}
    assert len(turned) == len(set(named)) // 2


# Parsing


@always
@given(st.lists(st.tuples(whole_characters, texts, texts, whole_characters), min_size=1, max_size=8), st.booleans())
def test_whatever_was_written_is_read_back(rows: list[tuple], escaped: bool) -> None:
    names = ("prompt", "positive", "negative", "topic")
    rows = [row for row in rows if row[1] != row[2]]
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=escaped) for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "it.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        if rows:
            assert au.load_pairs(path) == [ContrastivePair(*row) for row in rows]


@always
@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_rows_or_one_sentence_that_names_the_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "it.jsonl"
        path.write_bytes(data)
        try:
            for number, row in file_rows(path):
                assert number >= 1 and isinstance(row, dict)
        except ValueError as error:
            assert str(error).startswith(str(path))
        assert path.read_bytes() == data


@always
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_no_steering_and_say_so(data: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "it.safetensors"
        path.write_bytes(len(data).to_bytes(8, "little") + data if framed else data)
        with pytest.raises(ValueError, match=r"it\.safetensors is no steering that austeer .* can read: "):
            Steering.load(path)


@always
@given(st.floats() | st.integers(-(10**9), 10**9) | st.text(max_size=12))
def test_a_number_is_written_so_that_it_is_read_as_itself(value: object) -> None:
    try:
        text = _number(value)
    except ValueError as error:
        assert str(error) == f"The number is {value!r}; give digits."
        return
    assert math.isclose(float(text), float(str(value).replace(",", "")), rel_tol=1e-12, abs_tol=5.1e-5)
    assert not text.endswith(".") and ("." not in text or not text.endswith("0"))
    assert text != "-0"


@always
@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_what_two_lists_of_tokens_share_is_their_longest_common_beginning(one: list[int], other: list[int]) -> None:
    shared = common_beginning([one, other])
    assert one[:shared] == other[:shared]
    assert shared in (len(one), len(other)) or one[shared] != other[shared]


# Batches


@always
@given(st.lists(st.integers(1, 80), min_size=1, max_size=30), st.integers(1, 120))
def test_batches_hold_every_row_once_and_no_more_tokens_than_asked(columns: list[int], most: int) -> None:
    batches = list(Texts([()] * len(columns), columns, joined=True).batches(most))
    assert sorted(row for batch in batches for row in batch) == list(range(len(columns)))
    assert all(len(b) == 1 or len(b) * max(columns[row] for row in b) <= most for b in batches)
    assert all(batches)


@always
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=3))
def test_what_texts_begin_with_and_their_own_tokens_make_the_texts(texts: list[list[int]]) -> None:
    shared, *own = _shared_and_own(texts)
    assert [shared + tokens for tokens in own] == texts
    assert all(own)
    assert len({tokens[0] for tokens in own}) > 1 or min(map(len, own)) == 1


@always
@given(topics, st.integers(1, 5), st.integers(1, 64))
def test_shares_hold_every_row_once_and_no_more_groups_than_asked(named: list[str], most: int, tokens: int) -> None:
    group = _groups([ContrastivePair("p", " a", " b", topic) for topic in named])
    shares = list(_shares([7] * len(named), group, most, tokens))
    assert sorted(row for share in shares for row in share) == list(range(len(named)))
    assert all(len({int(group[row]) for row in share}) <= most for share in shares)


# Positions


@st.composite
def runs(draw) -> tuple[Tensor, int]:
    """The mask of a batch of prompts, padded on the left, and how many tokens follow."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    width = max(lengths)
    return torch.tensor([[column >= width - length for column in range(width)] for length in lengths]), draw(
        st.integers(0, 4)
    )


@always
@given(runs())
def test_positions_divide_the_tokens_of_a_run_and_a_cache_changes_nothing(run: tuple) -> None:
    prompts, steps = run
    width = prompts.shape[1]
    real = torch.cat([prompts, torch.ones(len(prompts), steps, dtype=torch.bool)], 1)
    seen = {positions: torch.zeros_like(real) for positions in POSITIONS}
    for step in range(steps + 1):
        whole = Pass(step, width + step, width, real[:, : width + step])
        cached = whole if step == 0 else Pass(step, width + step, width, real[:, width + step - 1 : width + step])
        for positions in POSITIONS:
            mask = whole.mask(positions)
            assert not (mask & ~real[:, : width + step]).any()  # padding is never touched
            tokens = cached.real.shape[1]
            assert torch.equal(cached.mask(positions), mask[:, -tokens:])
            seen[positions][:, : width + step] |= mask
    assert torch.equal(seen["all"], real)
    assert torch.equal(seen["prompt"] ^ seen["generated"], real)
    assert not (seen["prompt"] & seen["generated"]).any()
    last = seen["last"] ^ seen["generated"]
    assert last[:, width - 1].all() and last.sum() == len(prompts)


# Steerings


@st.composite
def units(draw) -> dict[str, Tensor]:
    places = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 31)), unique=True, max_size=6))
    value = draw(st.lists(st.floats(-9, 9, width=32), min_size=len(places), max_size=len(places)))
    layer, index = (torch.tensor([place[column] for place in places], dtype=torch.int64) for column in (0, 1))
    return {"layer": layer, "index": index, "value": torch.tensor(value, dtype=torch.float32)}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | whole_characters,
    lambda inner: st.lists(inner, max_size=3),
)
operators = st.builds(
    lambda kind, tensors, positions, strength: kind("attention", tensors, positions, strength),
    st.sampled_from([Scale, Shift]), units(), st.sampled_from(POSITIONS), st.floats(-1e6, 1e6),
)  # fmt: skip
about = st.dictionaries(whole_characters.filter(lambda key: key not in ("shape", "parts")), plain, max_size=4)


@always
@given(st.lists(operators, max_size=3), about)
def test_a_steering_file_holds_exactly_what_was_put_into_it(given_operators: list[Operator], said: dict) -> None:
    steering = Steering(given_operators, INFO, said)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "it.safetensors"
        steering.save(path)
        again = Steering.load(path)
        assert [entry.name for entry in Path(directory).iterdir()] == ["it.safetensors"]
    assert (again.about, again.model, len(again.operators)) == (said, INFO, len(given_operators))
    for one, other in zip(again.operators, given_operators, strict=True):
        assert (type(one), one.positions, one.strength) == (type(other), other.positions, other.strength)
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors)


@always
@given(operators, st.floats(-100, 100), st.floats(-100, 100))
def test_factors_multiply_and_a_minus_is_a_factor(operator: Operator, one: float, other: float) -> None:
    steering = Steering([operator], INFO, {})
    strength = operator.strength
    assert (steering * one * other).operators[0].strength == pytest.approx(strength * one * other)
    assert (-steering).operators[0].strength == -strength
    assert [part.strength for part in (steering + -steering).operators] == [strength, -strength]
    assert (steering * one).operators[0].tensors is operator.tensors


# Scores


@always
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_the_effect_at_a_price_lies_between_its_neighbours(effects: list[float], steps: list[float]) -> None:
    effects, prices = [0.0, *effects], [1.0]
    for step in steps[: len(effects) - 1]:
        prices.append(prices[-1] + step)
    for price, effect in zip(prices, effects, strict=True):
        assert au.at_price(effects, prices, price) == pytest.approx(effect)
    middle = (prices[0] + prices[1]) / 2
    assert min(effects[:2]) - 1e-9 <= au.at_price(effects, prices, middle) <= max(effects[:2]) + 1e-9


@always
@given(st.lists(st.sampled_from(["a", "b", "A"]), max_size=20), st.integers(1, 4))
def test_repetition_is_a_share_that_a_text_said_twice_raises(words: list[str], n: int) -> None:
    once, twice = au.repetition([" ".join(words), " ".join(words * 2)], n).tolist()
    assert 0 <= once < 1 and 0 <= twice < 1
    if len(words) >= n:
        assert twice >= once
