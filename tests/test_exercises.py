"""Every check passes a right answer, and tells an unwritten one and typical wrong ones apart with a useful sentence."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch

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


RIGHT = [
    (exercises.check_swing, swing),
    (exercises.check_units_per_layer, lambda units: dict(Counter(units.layer.tolist()))),
    (exercises.check_overlap, overlap),
    (exercises.check_null_by_pairs, null_by_pairs),
    (exercises.check_fold, fold),
    (exercises.check_right_way, right_way),
]

WRONG = [
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
