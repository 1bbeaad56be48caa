from __future__ import annotations

import torch
from torch import Tensor

from austeer import exercises


def replaced_share(a: Tensor, c: float, least: float, most: float) -> float:
    size = a.abs()
    spread = (size - size.median()).abs().median()
    return (size < 1.4826 * c * spread).float().mean().clamp(least, most).item()


def without_bounds(a: Tensor, c: float, least: float, most: float) -> float:
    return replaced_share(a, c, 0.0, 1.0)


def without_factor(a: Tensor, c: float, least: float, most: float) -> float:
    return replaced_share(a, c / 1.4826, least, most)


def median_alone(a: Tensor, c: float, least: float, most: float) -> float:
    return (a.abs() < 1.4826 * c * a.abs().median()).float().mean().clamp(least, most).item()


def signed(a: Tensor, c: float, least: float, most: float) -> float:
    size = a.abs()
    spread = (size - size.median()).abs().median()
    return (a < 1.4826 * c * spread).float().mean().clamp(least, most).item()


def elsewhere(delta: Tensor, generator: torch.Generator) -> Tensor:
    return delta[torch.randperm(len(delta), generator=generator)]


def fresh(delta: Tensor, generator: torch.Generator) -> Tensor:
    found = torch.zeros_like(delta)
    moved = delta[delta != 0]
    found[torch.randperm(len(delta), generator=generator)[: len(moved)]] = moved.std() * torch.rand(
        len(moved), generator=generator
    )
    return found


def in_place(delta: Tensor, generator: torch.Generator) -> Tensor:
    delta[:] = elsewhere(delta, generator)
    return delta


def dense(delta: Tensor, generator: torch.Generator) -> Tensor:
    return delta.std() * torch.randn(len(delta), generator=generator)


RIGHT = [
    (exercises.check_replaced_share, replaced_share),
    (exercises.check_elsewhere, elsewhere),
]

WRONG = [
    (exercises.check_replaced_share, without_bounds, "bounds"),
    (exercises.check_replaced_share, without_factor, "1.4826"),
    (exercises.check_replaced_share, signed, "sizes"),
    (exercises.check_replaced_share, median_alone, "median distance"),
    (exercises.check_replaced_share, lambda a, c, least, most: 0.9, "was expected"),
    (exercises.check_elsewhere, fresh, "same amounts"),
    (exercises.check_elsewhere, in_place, "changes the displacements"),
    (exercises.check_elsewhere, dense, "as many as before"),
    (exercises.check_elsewhere, lambda delta, generator: delta[torch.randperm(len(delta))], "same seed"),
    (exercises.check_elsewhere, lambda delta, generator: delta.flip(0), "far more often"),
    (exercises.check_elsewhere, lambda delta, generator: delta[delta != 0], "shape"),
]
