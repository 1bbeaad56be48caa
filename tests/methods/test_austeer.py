"""The two rules are what the paper and the book write down."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from austeer.methods import AUSteer, DirectionalAUSteer
from austeer.sites import Place
from austeer.steering import Pass


def displaced(steering: Any, x: torch.Tensor, layer: int) -> torch.Tensor:
    (operator,) = steering.operators
    now = Pass(0, x.shape[1], x.shape[1], torch.ones(x.shape[:2], dtype=torch.bool))
    return x + operator.strength * operator.displacement(Place(layer, operator.site), x, now, {})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (AUSteer, lambda x, beta, mean: x * (1 + 5.0 * beta)),
        (DirectionalAUSteer, lambda x, beta, mean: x + 5.0 * mean),
    ],
)
def test_a_rule_changes_its_own_units_as_the_book_writes_it(
    tiny: Any, some_units: Any, rule: Any, expected: Callable
) -> None:
    units = some_units(tiny("llama"), "attention")
    layer = units.layer[0].item()
    x = torch.randn(2, 3, units.shape[1], generator=torch.Generator().manual_seed(0))
    by_hand = x.clone()
    for where, index, beta, mean in zip(units.layer, units.index, units.beta, units.mean_difference, strict=True):
        if where == layer:
            by_hand[..., index] = expected(x[..., index], beta, mean)
    assert torch.allclose(displaced(rule(units, 5.0), x, layer), by_hand, atol=1e-5)


@pytest.mark.parametrize("rule", [AUSteer, DirectionalAUSteer])
def test_a_steering_says_what_it_was_made_of(tiny: Any, some_units: Any, rule: Any) -> None:
    steering = rule(some_units(tiny("llama"), "ffn"), 5.0)
    assert steering.about["method"] == rule.__name__
    assert steering.about["alpha"] == 5.0
    assert "12 units of ffn" in repr(steering)


@pytest.mark.parametrize("rule", [AUSteer, DirectionalAUSteer])
def test_a_strength_that_is_no_number_is_refused(tiny: Any, some_units: Any, rule: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        rule(some_units(tiny("llama"), "ffn"), float("inf"))
