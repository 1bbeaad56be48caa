from __future__ import annotations

import torch

from austeer import exercises


def last_gradient(hidden: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    matrix = matrix.clone().requires_grad_()
    (((hidden @ matrix.T)[:, 0] - target) ** 2).mean().backward()
    return matrix.grad


def arrived(weights: torch.Tensor, scale: float, alpha: float) -> torch.Tensor:
    return alpha * scale * weights.cumsum(0)


def everything(hidden: torch.Tensor, matrix: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (hidden @ matrix.T - target[:, None]).T @ hidden / len(hidden)


RIGHT = [
    (exercises.check_last_gradient, last_gradient),
    (exercises.check_arrived, arrived),
]

WRONG = [
    (exercises.check_last_gradient, everything, "first output only"),
    (exercises.check_last_gradient, lambda h, m, y: last_gradient(h, m, y) / 2, "2 of the square"),
    (exercises.check_last_gradient, lambda h, m, y: last_gradient(h, m, y) * 8, "mean over prompts"),
    (exercises.check_last_gradient, lambda h, m, y: -last_gradient(h, m, y), "the sign"),
    (exercises.check_last_gradient, lambda h, m, y: last_gradient(h, m, 1 - y), "yours is another"),
    (exercises.check_last_gradient, lambda h, m, y: last_gradient(h, m, y)[0], "matrix's shape"),
    (exercises.check_arrived, lambda w, s, alpha: alpha * s * w, "before added"),
    (exercises.check_arrived, lambda w, s, alpha: (alpha * s * w).flip(0).cumsum(0).flip(0), "last layer has the most"),
    (exercises.check_arrived, lambda w, s, alpha: w.cumsum(0), "left out"),
    (exercises.check_arrived, lambda w, s, alpha: 3 * arrived(w, s, alpha), "expected"),
    (exercises.check_arrived, lambda w, s, alpha: alpha * s * w.sum(), "one number a layer"),
]
