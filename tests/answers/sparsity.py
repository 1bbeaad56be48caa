from __future__ import annotations

import torch

from austeer import exercises


def effective_number(norms: torch.Tensor) -> torch.Tensor:
    return norms.sum(-1) ** 2 / (norms**2).sum(-1)


def cett_curve(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    outputs = x * matrix
    order = outputs.norm(dim=0).argsort()
    return outputs[:, order].cumsum(1).norm(dim=0) / (matrix @ x).norm()


def of_lengths(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return (x * matrix).norm(dim=0).sort().values.cumsum(0) / (matrix @ x).norm()


def by_activation(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    order = x.abs().argsort()
    return (x * matrix)[:, order].cumsum(1).norm(dim=0) / (matrix @ x).norm()


def longest_first(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    outputs = x * matrix
    order = outputs.norm(dim=0).argsort(descending=True)
    return outputs[:, order].cumsum(1).norm(dim=0) / (matrix @ x).norm()


RIGHT = [
    (exercises.check_effective_number, effective_number),
    (exercises.check_cett_curve, cett_curve),
]

WRONG = [
    (exercises.check_effective_number, lambda norms: 1 / effective_number(norms), "turn the fraction"),
    (exercises.check_effective_number, lambda norms: effective_number(norms) / norms.shape[-1], "a share"),
    (exercises.check_effective_number, lambda norms: (norms > 0).sum(-1), "each as one"),
    (exercises.check_effective_number, lambda norms: effective_number(norms).mean(), "per token"),
    (exercises.check_effective_number, lambda norms: norms.sum(-1), "expected"),
    (exercises.check_cett_curve, of_lengths, "add the vectors"),
    (
        exercises.check_cett_curve,
        lambda x, matrix: of_lengths(x, matrix) / of_lengths(x, matrix)[-1],
        "add the vectors",
    ),
    (exercises.check_cett_curve, lambda x, matrix: cett_curve(x, matrix).clamp(max=1), "exceeds 1"),
    (exercises.check_cett_curve, by_activation, "not by its activation"),
    (exercises.check_cett_curve, longest_first, "begin with the shortest"),
    (exercises.check_cett_curve, lambda x, matrix: cett_curve(x, matrix) * (matrix @ x).norm(), "divide by"),
    (exercises.check_cett_curve, lambda x, matrix: cett_curve(x, matrix)[:3], "per neuron"),
    (exercises.check_cett_curve, lambda x, matrix: 1 - cett_curve(x, matrix), "expected"),
]
