"""A rotation keeps the norm, turns by the angle it says, and stays in the plane of the state and the vector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import austeer as au
from austeer.methods import Rotation
from austeer.methods.rotation import Turn, turned
from austeer.steering import Pass

PAIRS = [
    au.ContrastivePair(f"The {thing} was", " lovely today.", " awful today.", topic=thing)
    for thing in ("sea", "bus", "cat", "pie")
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(50, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7


@pytest.fixture
def vector() -> Tensor:
    return torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def angle(x: Tensor, y: Tensor) -> Tensor:
    return torch.cosine_similarity(x, y, dim=-1).clamp(-1, 1).acos()


def test_in_two_dimensions_it_is_what_a_ruler_says() -> None:
    east, north = torch.tensor([[3.0, 0.0]]), torch.tensor([0.0, 10.0])
    assert torch.allclose(turned(east, north, 1.0), torch.tensor([[0.0, 3.0]]), atol=1e-6)
    half = 3 / math.sqrt(2)
    assert torch.allclose(turned(east, north, 0.5), torch.tensor([[half, half]]), atol=1e-6)
    assert torch.allclose(turned(east, north, -0.5), torch.tensor([[half, -half]]), atol=1e-6)
    third = turned(east, torch.tensor([1.0, math.sqrt(3)]), 0.5)  # 60 degrees apart, so 30
    assert torch.allclose(third, torch.tensor([[3 * math.sqrt(3) / 2, 1.5]]), atol=1e-6)


@pytest.mark.parametrize("share", [-0.7, 0.2, 0.5, 1.0])
def test_the_norm_stays_and_the_angle_is_the_share(x: Tensor, vector: Tensor, share: float) -> None:
    new = turned(x, vector, share)
    assert torch.allclose(new.norm(dim=1), x.norm(dim=1), rtol=1e-10)
    assert torch.allclose(angle(new, x), abs(share) * angle(x, vector[None]), atol=1e-6)
    if share > 0:
        assert torch.allclose(angle(new, vector[None]), (1 - share) * angle(x, vector[None]), atol=1e-6)


def test_it_stays_in_the_plane_of_the_two(x: Tensor, vector: Tensor) -> None:
    for state, new in zip(x, turned(x, vector, 0.4), strict=True):
        basis = torch.linalg.qr(torch.stack([state, vector], 1)).Q
        assert torch.allclose(basis @ (basis.T @ new), new, atol=1e-8)


def test_the_length_of_the_vector_does_not_count(x: Tensor, vector: Tensor) -> None:
    assert torch.allclose(turned(x, vector, 0.3), turned(x, 1000 * vector, 0.3))


def test_on_one_line_with_the_vector_there_is_no_plane(vector: Tensor) -> None:
    line = torch.stack([2 * vector, -3 * vector, 0 * vector])
    assert torch.equal(turned(line, vector, 0.5), line)


def test_a_factor_multiplies_the_angle_and_a_minus_turns_the_other_way(tiny: Any, x: Tensor) -> None:
    model = tiny("llama")
    width = au.sites.anatomy(model).widths["residual"]
    states = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(2))
    now = Pass(0, 5, 5, torch.ones(1, 5, dtype=torch.bool))
    whole = Rotation(au.activation_momentum(model, PAIRS, "residual"), layer=1, alpha=0.8)

    def after(steering: Any) -> Tensor:
        (operator,) = steering.operators
        assert type(operator) is Turn
        return states + operator.strength * operator.displacement(operator.writes()[0], states, now, {})

    by = angle(after(whole), states)
    for factor in (0.5, -1.0, -0.25):
        new = after(whole * factor)
        assert torch.allclose(angle(new, states), abs(factor) * by, atol=1e-3)
        assert torch.allclose(new.norm(dim=-1), states.norm(dim=-1), rtol=1e-5)


def test_it_writes_what_a_hook_would(tiny: Any, plain_generate: Any, recorder: Any) -> None:
    from transformers import LogitsProcessorList

    model, prompts = tiny("llama"), ["The sea", "Once upon a time there was"]
    momentum = au.activation_momentum(model, PAIRS, "residual")
    vector = momentum.mean_difference[1]
    au.generate(
        model, prompts, Rotation(momentum, 1, 0.9), max_new_tokens=4, min_new_tokens=4,
        logits_processor=LogitsProcessorList([recorder]),
    )  # fmt: skip
    tokens, scores = recorder.take()
    expected = plain_generate(model, prompts, {(1, "residual"): lambda x: turned(x, vector, 0.9)}, 4)
    assert torch.equal(tokens, expected[0])
    assert torch.allclose(scores, expected[1], atol=1e-3)


def test_a_zero_vector_is_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    momentum = au.activation_momentum(tiny("llama"), PAIRS, "residual")
    monkeypatch.setattr(type(momentum), "mean_difference", torch.zeros_like(momentum.mean_difference))
    with pytest.raises(ValueError, match="nothing to turn towards"):
        Rotation(momentum, layer=2, alpha=0.5)
