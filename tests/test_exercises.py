"""Every check passes a right answer, and tells an unwritten one and typical wrong ones apart with a useful sentence."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binomtest, false_discovery_control

from austeer import exercises, sentiment


def swing(plus: list[str], minus: list[str]) -> float:
    return (sentiment(plus).mean() - sentiment(minus).mean()).item()


def overlap(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    chosen = [set(beta.abs().flatten().topk(k).indices.tolist()) for beta in (a, b)]
    return len(chosen[0] & chosen[1]) / k


def null_by_pairs(differences: torch.Tensor, generator: torch.Generator) -> float:
    coin = torch.randint(0, 2, (len(differences), 1, 1), generator=generator) * 2 - 1
    turned = differences * coin
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


def fold(weight: torch.Tensor, index: torch.Tensor, beta: torch.Tensor, alpha: float) -> torch.Tensor:
    folded = weight.clone()
    folded[:, index] *= 1 + alpha * beta
    return folded


def fold_in_place(weight: torch.Tensor, index: torch.Tensor, beta: torch.Tensor, alpha: float) -> torch.Tensor:
    weight[:, index] *= 1 + alpha * beta
    return weight


def fold_rows(weight: torch.Tensor, index: torch.Tensor, beta: torch.Tensor, alpha: float) -> torch.Tensor:
    folded = weight.clone()
    folded[index % 4] *= (1 + alpha * beta)[:, None]
    return folded


def fold_without_one(weight: torch.Tensor, index: torch.Tensor, beta: torch.Tensor, alpha: float) -> torch.Tensor:
    folded = weight.clone()
    folded[:, index] *= alpha * beta
    return folded


def right_way(x: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return ((beta * x).sign() == beta.sign()).float().mean(0)


def one_coin_for_all(differences: torch.Tensor, generator: torch.Generator) -> float:
    turned = differences * (torch.randint(0, 2, (1,), generator=generator) * 2 - 1)
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


def coin_per_unit(differences: torch.Tensor, generator: torch.Generator) -> float:
    coin = torch.randint(0, 2, differences.shape, generator=generator) * 2 - 1
    turned = differences * coin
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


def head_writes(x: torch.Tensor, W: torch.Tensor, heads: int) -> torch.Tensor:
    return (W * x).unflatten(1, (heads, -1)).sum(2).T


def contributions(
    x: torch.Tensor, W: torch.Tensor, gain: torch.Tensor, rho: float, row: torch.Tensor
) -> torch.Tensor:
    return x * ((gain * row / rho) @ W)


def scale_output(D: torch.Tensor, unit: int, s: float) -> torch.Tensor:
    scaled = D.clone()
    scaled[unit] *= s
    return scaled


def scale_in_place(D: torch.Tensor, unit: int, s: float) -> torch.Tensor:
    D[unit] *= s
    return D


def normalised_kl(log_p: torch.Tensor) -> torch.Tensor:
    distance = (log_p.exp() * (log_p - log_p[-1])).sum(-1)
    return distance / distance[0]


def kl_backwards(log_p: torch.Tensor) -> torch.Tensor:
    distance = (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1)
    return distance / distance[0]


def discoveries(p: torch.Tensor, q: float) -> torch.Tensor:
    return torch.from_numpy(false_discovery_control(p.double().numpy()) <= q)


def each_below_its_own_bar(p: torch.Tensor, q: float) -> torch.Tensor:
    rank = p.argsort().argsort() + 1
    return p <= rank / len(p) * q


def discoveries_or_crash(p: torch.Tensor, q: float) -> torch.Tensor:
    below = p.sort().values <= torch.arange(1, len(p) + 1) / len(p) * q
    return p <= p.sort().values[below.nonzero().max()]


def curse(choice: torch.Tensor, report: torch.Tensor, k: int) -> tuple[float, float]:
    best = choice.mean(0).topk(k).indices
    return choice[:, best].mean().item(), report[:, best].mean().item()


def curse_chosen_twice(choice: torch.Tensor, report: torch.Tensor, k: int) -> tuple[float, float]:
    return curse(choice, report, k)[0], curse(report, report, k)[0]


def mcnemar(before: torch.Tensor, after: torch.Tensor) -> float:
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return binomtest(won, won + lost).pvalue if won + lost else 1.0


def calibrated(log_p: torch.Tensor) -> torch.Tensor:
    return (log_p - log_p.mean(0)).argmax(1)


RIGHT = [
    (exercises.check_mcnemar, mcnemar),
    (exercises.check_calibrated, calibrated),
    (exercises.check_head_writes, head_writes),
    (exercises.check_contributions, contributions),
    (exercises.check_scale_output, scale_output),
    (exercises.check_normalised_kl, normalised_kl),
    (exercises.check_discoveries, discoveries),
    (exercises.check_curse, curse),
    (exercises.check_swing, swing),
    (exercises.check_units_per_layer, lambda units: dict(Counter(units.layer.tolist()))),
    (exercises.check_overlap, overlap),
    (exercises.check_null_by_pairs, null_by_pairs),
    (exercises.check_fold, fold),
    (exercises.check_right_way, right_way),
]

WRONG = [
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) / 2, "one-sided"),
    (exercises.check_mcnemar, lambda a, b: binomtest(int(b.sum()), 40, 0.5).pvalue, "both times say nothing"),
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) if b.sum() > a.sum() else 1.0, "turned round"),
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) if not torch.equal(a, b) else 0.0, "p is 1"),
    (exercises.check_mcnemar, lambda a, b: 0.01, "expected"),
    (exercises.check_calibrated, lambda log_p: (log_p - log_p.mean(1, keepdim=True)).argmax(1), "over all items"),
    (exercises.check_calibrated, lambda log_p: (log_p - log_p.mean(0)).argmax(0), "one label's number"),
    (exercises.check_calibrated, lambda log_p: (log_p + log_p.mean(0)).argmin(1), "expected"),
    (exercises.check_head_writes, lambda x, W, heads: head_writes(x, W, heads).T, "transpose"),
    (exercises.check_head_writes, lambda x, W, heads: (W * x).unflatten(1, (-1, heads)).sum(1).T, "modulo"),
    (exercises.check_head_writes, lambda x, W, heads: W.unflatten(1, (heads, -1)).sum(2).T, "slice times activation"),
    (exercises.check_head_writes, lambda x, W, heads: head_writes(x, W, heads).flip(0), "wrong heads"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: x * ((gain * row) @ W), "rho times too large"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: x * ((row / rho) @ W), "gamma is missing"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: (gain * row / rho) @ W, "activations"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: (W * x).T @ row, "was expected"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: gain, "one number per unit"),
    (exercises.check_scale_output, scale_in_place, "copy"),
    (exercises.check_scale_output, lambda D, unit, s: scale_output(D.T, unit, s).T, "neuron i"),
    (exercises.check_scale_output, lambda D, unit, s: D * s, "nothing else"),
    (exercises.check_normalised_kl, lambda log_p: normalised_kl(log_p) * 2, "in logarithms"),
    (exercises.check_normalised_kl, kl_backwards, "swapped"),
    (
        exercises.check_normalised_kl,
        lambda log_p: (log_p.exp() * (log_p - log_p[-1])).sum(-1),
        "divide by the first",
    ),
    (exercises.check_discoveries, lambda p, q: p <= q / len(p), "Bonferroni"),
    (exercises.check_discoveries, lambda p, q: p <= q, "each test alone"),
    (exercises.check_discoveries, discoveries_or_crash, "all False"),
    (exercises.check_discoveries, each_below_its_own_bar, "LARGEST"),
    (exercises.check_discoveries, lambda p, q: discoveries(p, q).nonzero().flatten(), "boolean"),
    (exercises.check_curse, curse_chosen_twice, "chooses again"),
    (exercises.check_curse, lambda choice, report, k: curse(choice, report, k)[1], "two numbers"),
    (exercises.check_curse, lambda choice, report, k: curse(report, choice, k), "were expected"),
    (exercises.check_swing, lambda plus, minus: swing(minus, plus), "turned round"),
    (exercises.check_swing, lambda plus, minus: (sentiment(plus).mean() + sentiment(minus).mean()).item(), "added"),
    (exercises.check_swing, lambda plus, minus: sentiment(plus) - sentiment(minus), "one number"),
    (exercises.check_units_per_layer, lambda units: dict(Counter(units.index.tolist())), "units.layer"),
    (exercises.check_units_per_layer, lambda units: units.layer.tolist(), "dictionary"),
    (exercises.check_units_per_layer, lambda units: {layer: 1 for layer in units.layer.tolist()}, "layer 3 has three"),
    (exercises.check_overlap, lambda a, b, k: overlap(a, b, k) * k, "divide by k"),
    (exercises.check_overlap, lambda a, b, k: overlap(a.clamp(min=0), b.clamp(min=0), k), "by |beta|"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, g) * len(d), "divide by"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, torch.Generator().manual_seed(0)), "every seed"),
    (exercises.check_null_by_pairs, one_coin_for_all, "not swapped"),
    (exercises.check_null_by_pairs, coin_per_unit, "whole pair"),
    (exercises.check_fold, fold_in_place, "copy"),
    (exercises.check_fold, fold_rows, "columns"),
    (exercises.check_fold, fold_without_one, "1 + alpha beta"),
    (exercises.check_right_way, lambda x, beta: (beta * x > 0).float().mean(0), "right way is down"),
    (exercises.check_right_way, lambda x, beta: right_way(x, beta).mean(), "per unit"),
    (exercises.check_right_way, lambda x, beta: 1 - right_way(x, beta), "expected"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_passes(check: Callable, answer: Callable) -> None:
    assert check(answer), check(answer)


@pytest.mark.parametrize(("check", "answer", "says"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(check: Callable, answer: Callable, says: str) -> None:
    verdict = check(answer)
    assert not verdict
    assert says in verdict.says


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_an_unwritten_answer_is_no_error(check: Callable, _: Callable) -> None:
    assert "nothing yet" in check(lambda *arguments: None).says


def test_an_error_in_the_answer_is_shown_and_not_raised() -> None:
    verdict = exercises.check_fold(lambda weight, index, beta, alpha: weight / "2")
    assert not verdict
    assert "TypeError" in verdict.says


def test_a_verdict_escapes_markup() -> None:
    assert "<b>x" not in exercises.Verdict(False, "<b>x")._repr_html_()
