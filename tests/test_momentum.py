"""Momentum against hand-computed cases, loops in plain Python, scipy, and its own symmetries."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

import austeer as au
from austeer import ActivationMomentum, ContrastivePair, momentum
from austeer.activations import Texts
from austeer.models import ModelInfo
from austeer.momentum import MAX_GROUPS, _shares, _statistics, signed_score, unit_set

INFO = ModelInfo("tiny", "0" * 16, (2, 3), False)


def pairs_of(topics: list[str]) -> list[ContrastivePair]:
    return [ContrastivePair(f"p{row}", " a", " b", topic) for row, topic in enumerate(topics)]


@pytest.fixture
def momentum_of(tiny: Any) -> Any:
    def make(positive: Tensor, negative: Tensor, topics: list[str] | None = None) -> ActivationMomentum:
        topics = topics or [f"t{row % 6}" for row in range(len(positive))]
        return au.momentum_of(positive, negative, pairs_of(topics), tiny("llama"))

    return make


def noise(pairs: int = 60, units: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-3, 4, (2, pairs, 2, units), generator=generator).float()  # integers, so that some tie
    return draw[0], draw[1]


def test_what_a_request_counts_is_what_is_counted_here(tiny: Any) -> None:
    model = tiny("llama")
    openings = ("The soup", "On the way home we", "Two birds", "It")
    pairs = [ContrastivePair(text, " was good", " was bad", f"t{row % 2}") for row, text in enumerate(openings)]
    expected = au.activation_momentum(model, pairs)
    texts, group = Texts.of(model, pairs, None), torch.tensor([5, 7, 5, 7])  # the numbers of the groups are kept
    bundle = [(rows, *texts.encode(model, rows), group[rows]) for rows in ([1, 3], [0, 2])]
    groups, higher, lower, total, squares = _statistics(model, bundle, "attention")
    assert groups.tolist() == [5, 7]
    assert torch.equal(higher, expected.higher)
    assert torch.equal(lower, expected.lower)
    assert torch.allclose(total, expected.total.float(), atol=1e-6)
    assert torch.allclose(squares, expected.squares.float(), atol=1e-6)
    assert total.dtype == squares.dtype == torch.float32


def test_a_case_by_hand_with_ties_counted_as_neither(momentum_of: Any) -> None:
    positive = torch.tensor([[1.0, 0, 2], [1, 0, 2], [1, 5, 2], [0, 1, 2]])[:, None]
    negative = torch.tensor([[0.0, 1, 2], [0, 1, 2], [0, 1, 1], [1, 1, 2]])[:, None]
    found = momentum_of(positive, negative)
    assert found.beta.tolist() == [[0.75, -0.5, 0.25]]
    assert found.mean_difference.tolist() == [[0.5, 0.5, 0.25]]
    assert found.log_p[0].tolist() == pytest.approx(
        [math.log(binomtest(h, n).pvalue) for h, n in ((3, 4), (1, 3), (1, 1))], abs=1e-9
    )


def test_beta_is_the_papers_definition(momentum_of: Any) -> None:
    positive, negative = noise()
    found = momentum_of(positive, negative).beta
    for layer in range(2):
        for unit in range(40):
            differences = (positive[:, layer, unit] - negative[:, layer, unit]).tolist()
            up = sum(d > 0 for d in differences) / len(differences)
            down = sum(d < 0 for d in differences) / len(differences)
            assert found[layer, unit].item() == pytest.approx(up if up >= down else -down)


def test_swapping_the_sides_turns_beta_except_where_the_shares_are_equal(momentum_of: Any) -> None:
    positive, negative = noise()
    there, back = momentum_of(positive, negative), momentum_of(negative, positive)
    equal = there.higher.sum(0) == there.lower.sum(0)
    assert equal.any()
    assert torch.equal(there.beta[equal], back.beta[equal])
    assert (there.beta[equal] >= 0).all()
    assert torch.equal(there.beta[~equal], -back.beta[~equal])
    assert torch.allclose(there.mean_difference, -back.mean_difference)


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (1, 0), (5, 5), (9, 1), (0, 20), (130, 70), (512, 488)])
def test_log_p_is_the_two_sided_sign_test(higher: int, lower: int) -> None:
    counts = [torch.tensor([[[count]]], dtype=torch.int32) for count in (higher, lower)]
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    found = ActivationMomentum("ffn", *counts, zero, zero, torch.tensor([max(1, higher + lower)]), INFO).log_p
    assert found.dtype == torch.float64
    expected = binomtest(higher, higher + lower).pvalue if higher + lower else 1.0
    assert found.item() == pytest.approx(math.log(expected), abs=1e-9)


def test_log_p_does_not_underflow() -> None:
    counts = [torch.tensor([[[count]]], dtype=torch.int32) for count in (5000, 0)]
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    found = ActivationMomentum("ffn", *counts, zero, zero, torch.tensor([5000]), INFO).log_p.item()
    assert found == pytest.approx(math.log(2) - 5000 * math.log(2))


def test_the_null_swaps_whole_topics(momentum_of: Any) -> None:
    positive, negative = noise()
    topics = [f"t{row % 6}" for row in range(60)]
    found = momentum_of(positive, negative, topics)
    for seed in range(3):
        swap = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5
        row = torch.tensor([swap[int(topic[1:])].item() for topic in topics])[:, None, None]
        by_hand = momentum_of(torch.where(row, negative, positive), torch.where(row, positive, negative), topics)
        assert found.null(seed) == pytest.approx(by_hand.beta.abs().max().item())


def test_the_null_draws_from_all_swaps_of_topics(momentum_of: Any) -> None:
    positive, negative = noise(pairs=18, units=4)
    found, everything = momentum_of(positive, negative), set()
    for swaps in itertools.product([False, True], repeat=6):
        row = torch.tensor([swaps[pair % 6] for pair in range(18)])[:, None, None]
        swapped = momentum_of(torch.where(row, negative, positive), torch.where(row, positive, negative))
        everything.add(round(swapped.beta.abs().max().item(), 6))
    assert {round(found.null(seed), 6) for seed in range(300)} == everything


def test_the_sign_test_calls_chance_significant_where_topics_correlate(momentum_of: Any) -> None:
    # Why the null exists: p < 0.001 should be one unit in a thousand.
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(12, 1, 2, 500, generator=generator)
    difference = (shared + torch.randn(12, 8, 2, 500, generator=generator)).flatten(0, 1)
    found = momentum_of(difference, torch.zeros_like(difference), [f"t{row // 8}" for row in range(96)])
    assert (found.log_p < math.log(1e-3)).float().mean() > 0.01


def test_the_null_covers_what_correlated_topics_do_by_chance(momentum_of: Any) -> None:
    inside = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(12, 1, 2, 40, generator=generator)  # the same for all pairs of a topic
        difference = (2 * shared + torch.randn(12, 8, 2, 40, generator=generator)).flatten(0, 1)
        found = momentum_of(difference, torch.zeros_like(difference), [f"t{row // 8}" for row in range(96)])
        inside += found.beta.abs().max().item() <= max(found.null(draw) for draw in range(40))
    assert inside >= 18


def test_the_null_needs_topics_to_swap(momentum_of: Any) -> None:
    with pytest.raises(ValueError, match="at least 5"):
        momentum_of(*noise(), ["one", "two"] * 30).null()


def test_the_top_is_by_size_of_beta_then_by_standardised_difference_then_by_place(momentum_of: Any) -> None:
    difference = torch.tensor(
        [[1.0, -1, 2, -3, 1], [1, -1, 2, -1, 1], [1.5, -1, 2, 1, 1], [1, -2, 2, -1, -1]]
    )[:, None]  # fmt: skip
    units = momentum_of(difference, torch.zeros_like(difference)).top(5)
    # Units 0, 1, 2 tie at |beta| = 1; 2 never varies, 0 varies less than 1. Then 3 and 4 at 0.75.
    assert units.index.tolist() == [2, 0, 1, 3, 4]
    assert units.beta.abs().tolist() == [1, 1, 1, 0.75, 0.75]


@pytest.mark.parametrize("pairs", [2, 7, 192, 5000])
def test_a_difference_that_never_varies_wins_its_tie(momentum_of: Any, pairs: int) -> None:
    steady = torch.linspace(-3, 3, 61).repeat(pairs, 1)  # most of them no sum of powers of two, so sums are rounded
    steady[:, 30] = 0
    nearly = torch.ones(pairs, 2)
    nearly[0] += torch.tensor([1e-3, -1e-3])
    difference = torch.cat([nearly, steady], 1)[:, None]
    found = momentum_of(difference, torch.zeros_like(difference))
    constant, always_zero = found.standardised[0, 2:], 2 + 30
    assert constant.isinf().tolist() == [unit != 30 for unit in range(61)]
    assert found.standardised[0, always_zero] == 0
    assert found.standardised[0, :2].isfinite().all()
    order = found.top(63).index.tolist()
    assert order[60:62] in ([0, 1], [1, 0])
    assert order[62] == always_zero


def test_the_units_say_how_many_tie_at_the_cut(momentum_of: Any) -> None:
    difference = torch.ones(6, 1, 7)
    difference[:2, 0, 5:] = -1
    found = momentum_of(difference, torch.zeros_like(difference))
    assert found.top(3).tied == 5
    assert "5 units tie at the cut" in repr(found.top(3))
    assert found.top(3).index.tolist() == [0, 1, 2]
    assert found.top(7).tied == 2
    assert "2 units tie at the cut" in repr(found.top(7))
    assert "no tie at the cut" in repr(found.top(7)[:1])


def test_the_top_by_mean_difference_is_another_ranking(momentum_of: Any) -> None:
    difference = torch.tensor([[1.0, 9], [1, -1], [1, -1]])[:, None]
    found = momentum_of(difference, torch.zeros_like(difference))
    assert found.top(1).index.tolist() == [0]
    assert found.top(1, by="mean_difference").index.tolist() == [1]
    with pytest.raises(ValueError, match="'size'; give"):
        found.top(1, by="size")


def test_a_request_holds_whole_topics_and_so_many_tokens_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(momentum, "PASSES_PER_REQUEST", 2)
    group = torch.tensor([0, 1, 0, 2, 1, 2])
    assert list(_shares([10] * 6, group, 2, 100)) == [[0, 2, 1, 4], [3, 5]]  # two topics, then one
    assert list(_shares([10] * 6, group, 3, 20)) == [[0, 2, 1, 4], [3, 5]]  # 40 tokens in two passes of 20
    assert list(_shares([10] * 6, group, 3, 100)) == [[0, 2, 1, 4, 3, 5]]
    assert list(_shares([20] * 4, torch.arange(4), 9, 20)) == [[0, 1], [2, 3]]  # each is full to the last token


def test_random_units_depend_on_the_seed_alone_and_carry_their_own_numbers(momentum_of: Any) -> None:
    found = momentum_of(*noise())
    units = found.random(10, seed=3)
    assert unit_set(units) == unit_set(found.random(10, seed=3)) != unit_set(found.random(10, seed=4))
    assert unit_set(found.random(10)) == unit_set(found.random(10, seed=0))
    assert len(unit_set(units)) == 10
    assert torch.equal(units.beta, found.beta[units.layer, units.index])
    assert torch.equal(units.mean_difference, found.mean_difference[units.layer, units.index])


def test_stability_is_the_overlap_of_two_halves_that_share_no_topic(momentum_of: Any) -> None:
    found = momentum_of(*noise())  # six topics
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    one, other = (unit_set(found.subset(half).top(8)) for half in (order[:3], order[3:]))
    assert found.stability(8, draws=1, seed=3) == pytest.approx(len(one & other) / 8)


def test_controls_keep_what_they_should(momentum_of: Any) -> None:
    found = momentum_of(*noise())
    top = found.top(11)
    other = found.random(5, seed=0).with_norm_of(top)
    assert other.mean_difference.norm().item() == pytest.approx(top.mean_difference.norm().item())
    turned = top.shuffled_signs(seed=1)
    assert torch.equal(top.shuffled_signs().beta, top.shuffled_signs(seed=0).beta)
    assert unit_set(turned) == unit_set(top)
    assert torch.equal(turned.beta.abs(), top.beta.abs())
    assert (turned.beta.sign() != top.beta.sign()).sum() == 6
    assert torch.equal(turned.beta * top.mean_difference, top.beta * turned.mean_difference)


def test_stability_is_one_without_noise_and_low_without_signal(momentum_of: Any) -> None:
    clear = torch.ones(60, 2, 40)
    clear[:, :, :35] = noise()[0][:, :, :35].sign()
    clear[:, :, 35:] *= torch.arange(1.0, 6) + noise()[0][:, :, 35:] / 100
    assert momentum_of(clear, torch.zeros_like(clear)).stability(10) == pytest.approx(1)
    assert 0 <= momentum_of(*noise()).stability(10) < 0.6


def test_memory_does_not_grow_with_pairs_or_topics(momentum_of: Any) -> None:
    found = momentum_of(*noise(300), [f"t{row}" for row in range(300)])
    assert found.higher.shape == (MAX_GROUPS, 2, 40)
    assert found.pairs.sum() == 300
    assert torch.equal(found.beta, signed_score(*(c.sum(0) for c in (found.higher, found.lower)), 300))


def test_a_pair_without_a_topic_is_a_topic_of_its_own(momentum_of: Any) -> None:
    assert len(momentum_of(*noise(10), [""] * 10).pairs) == 10


def test_activations_that_are_not_finite_are_refused(momentum_of: Any) -> None:
    positive, negative = noise()
    positive[3, 1, 7] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        momentum_of(positive, negative)


def test_a_model_with_broken_weights_is_refused(plain: Any, tokenizer: Any) -> None:
    module = plain("llama").requires_grad_(False)
    module.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        au.activation_momentum(au.load(module, tokenizer=tokenizer), au.load_pairs("sentiment")[:2], "ffn")


def test_shapes_that_do_not_fit_are_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="for 2 pairs"):
        au.momentum_of(torch.ones(3, 1, 2), torch.ones(3, 1, 2), pairs_of(["a", "b"]), tiny("llama"))


def test_streaming_equals_the_activations_in_memory(tiny: Any, site: str) -> None:
    model, pairs = tiny("llama"), au.load_pairs("sentiment")[::16]
    streamed = au.activation_momentum(model, pairs, site, tokens_per_pass=100)
    held = au.momentum_of(*au.collect(model, pairs, site), pairs, model, site)
    close = (au.collect(model, pairs, site)[0] - au.collect(model, pairs, site)[1]).abs().min(0).values > 1e-6
    assert torch.equal(streamed.beta[close], held.beta[close])
    assert torch.allclose(streamed.mean_difference, held.mean_difference, atol=1e-6)
    assert repr(streamed) == repr(replace(held, site=site))


def test_batches_change_no_count_on_the_real_model(model: Any) -> None:
    pairs = au.load_pairs("sentiment")[::24]
    positive, negative = au.collect(model, pairs)
    clear = (positive - negative).abs().min(0).values > 1e-4
    for tokens_per_pass in (1, 2000):
        found = au.activation_momentum(model, pairs, tokens_per_pass=tokens_per_pass)
        assert torch.equal(found.beta[clear], au.momentum_of(positive, negative, pairs, model).beta[clear])
    assert clear.float().mean() > 0.9


def test_a_rehearsal_of_ndif_gives_the_same_momentum(tiny: Any) -> None:
    pairs = au.load_pairs("sentiment")[::48]
    here, there = (au.activation_momentum(tiny("llama", remote=r), pairs) for r in (False, "local"))
    assert torch.equal(here.beta, there.beta)
    assert torch.allclose(here.mean_difference, there.mean_difference, rtol=1e-5, atol=1e-6)  # sums travel as float32


def test_units_are_sliced_and_shown_as_text_and_html(momentum_of: Any) -> None:
    units = momentum_of(*noise()).top(30)
    assert unit_set(units[:5]) <= unit_set(units)
    assert len(units[:5]) == 5
    assert "30 of 80 attention units" in repr(units)
    assert units._repr_html_().count("<tr>") == 21
    assert "... and 10 more" in units._repr_html_() and "... and 10 more" in repr(units)
    assert "more" not in units[:20]._repr_html_() and "more" not in repr(units[:20])
    assert "... and 1 more" in units[:21]._repr_html_()
    with pytest.raises(TypeError, match="by slice"):
        units[0]
