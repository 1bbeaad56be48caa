"""The two rules are what the paper and the book write down."""

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


def test_the_papers_rule_multiplies_by_one_plus_alpha_beta(tiny: Any, some_units: Any) -> None:
    units = some_units(tiny("llama"), "attention")
    layer = units.layer[0].item()
    here = units.layer == layer
    x = torch.randn(2, 3, units.shape[1], generator=torch.Generator().manual_seed(0))
    expected = x.clone()
    for index, beta in zip(units.index[here].tolist(), units.beta[here].tolist(), strict=True):
        expected[..., index] = x[..., index] * (1 + 5.0 * beta)
    assert torch.allclose(displaced(AUSteer(units, 5.0), x, layer), expected, atol=1e-5)


def test_the_directional_rule_adds_alpha_mean_differences(tiny: Any, some_units: Any) -> None:
    units = some_units(tiny("llama"), "attention")
    layer = units.layer[0].item()
    here = units.layer == layer
    x = torch.randn(2, 3, units.shape[1], generator=torch.Generator().manual_seed(0))
    expected = x.clone()
    for index, mean in zip(units.index[here].tolist(), units.mean_difference[here].tolist(), strict=True):
        expected[..., index] = x[..., index] + 8.0 * mean
    assert torch.allclose(displaced(DirectionalAUSteer(units, 8.0), x, layer), expected, atol=1e-5)


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
