from __future__ import annotations

import torch

from austeer import exercises


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


RIGHT = [
    (exercises.check_fold, fold),
    (exercises.check_right_way, right_way),
]

WRONG = [
    (exercises.check_fold, fold_in_place, "copy"),
    (exercises.check_fold, fold_rows, "columns"),
    (exercises.check_fold, fold_without_one, "1 + alpha beta"),
    (exercises.check_right_way, lambda x, beta: (beta * x > 0).float().mean(0), "right way is down"),
    (exercises.check_right_way, lambda x, beta: right_way(x, beta).mean(), "per unit"),
    (exercises.check_right_way, lambda x, beta: 1 - right_way(x, beta), "expected"),
    (exercises.check_fold, lambda weight, index, beta, alpha: weight[:, :3].clone(), "shape of the old"),
]
