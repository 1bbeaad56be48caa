from __future__ import annotations

import torch

from austeer import exercises


def overlap(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    chosen = [set(beta.abs().flatten().topk(k).indices.tolist()) for beta in (a, b)]
    return len(chosen[0] & chosen[1]) / k


def null_by_pairs(differences: torch.Tensor, generator: torch.Generator) -> float:
    coin = torch.randint(0, 2, (len(differences), 1, 1), generator=generator) * 2 - 1
    turned = differences * coin
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


def one_coin_for_all(differences: torch.Tensor, generator: torch.Generator) -> float:
    turned = differences * (torch.randint(0, 2, (1,), generator=generator) * 2 - 1)
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


def coin_per_unit(differences: torch.Tensor, generator: torch.Generator) -> float:
    coin = torch.randint(0, 2, differences.shape, generator=generator) * 2 - 1
    turned = differences * coin
    return max((turned > 0).float().mean(0).max().item(), (turned < 0).float().mean(0).max().item())


RIGHT = [
    (exercises.check_overlap, overlap),
    (exercises.check_null_by_pairs, null_by_pairs),
]

WRONG = [
    (exercises.check_overlap, lambda a, b, k: overlap(a, b, k) * k, "divide by k"),
    (exercises.check_overlap, lambda a, b, k: overlap(a.clamp(min=0), b.clamp(min=0), k), "by |beta|"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, g) * len(d), "divide by"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, torch.Generator().manual_seed(0)), "every seed"),
    (exercises.check_null_by_pairs, one_coin_for_all, "not swapped"),
    (exercises.check_null_by_pairs, coin_per_unit, "whole pair"),
    (exercises.check_overlap, lambda a, b, k: 0.5, "2 of the top 3 agree"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, g) + 0.3, "more than half"),
    (exercises.check_null_by_pairs, lambda d, g: null_by_pairs(d, g) - 0.3, "never below 0.5"),
]
