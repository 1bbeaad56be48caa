from __future__ import annotations

import torch

from austeer import exercises


def head_writes(x: torch.Tensor, W: torch.Tensor, heads: int) -> torch.Tensor:
    return (W * x).unflatten(1, (heads, -1)).sum(2).T


def contributions(x: torch.Tensor, W: torch.Tensor, gain: torch.Tensor, rho: float, row: torch.Tensor) -> torch.Tensor:
    return x * ((gain * row / rho) @ W)


def scale_output(D: torch.Tensor, unit: int, s: float) -> torch.Tensor:
    scaled = D.clone()
    scaled[unit] *= s
    return scaled


def scale_in_place(D: torch.Tensor, unit: int, s: float) -> torch.Tensor:
    D[unit] *= s
    return D


RIGHT = [
    (exercises.check_scale_output, scale_output),
    (exercises.check_head_writes, head_writes),
    (exercises.check_contributions, contributions),
]

WRONG = [
    (exercises.check_scale_output, scale_in_place, "copy"),
    (exercises.check_scale_output, lambda D, unit, s: scale_output(D.T, unit, s).T, "neuron i"),
    (exercises.check_scale_output, lambda D, unit, s: D * s, "nothing else"),
    (exercises.check_head_writes, lambda x, W, heads: head_writes(x, W, heads).T, "transpose"),
    (exercises.check_head_writes, lambda x, W, heads: (W * x).unflatten(1, (-1, heads)).sum(1).T, "modulo"),
    (exercises.check_head_writes, lambda x, W, heads: W.unflatten(1, (heads, -1)).sum(2).T, "slice times activation"),
    (exercises.check_head_writes, lambda x, W, heads: head_writes(x, W, heads).flip(0), "wrong heads"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: x * ((gain * row) @ W), "rho times too large"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: x * ((row / rho) @ W), "gamma is missing"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: (gain * row / rho) @ W, "activations"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: (W * x).T @ row, "was expected"),
    (exercises.check_contributions, lambda x, W, gain, rho, row: gain, "one number per unit"),
    (exercises.check_head_writes, lambda x, W, heads: head_writes(x, W, heads)[:2], "not (3, 5)"),
    (exercises.check_scale_output, lambda D, unit, s: D[:2].clone(), "as the old one"),
]
