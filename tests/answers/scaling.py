from __future__ import annotations

import math

import torch

from austeer import exercises


def slope(sizes: torch.Tensor, effects: torch.Tensor) -> torch.Tensor:
    x = sizes.log10() - sizes.log10().mean()
    return (effects * x).sum(-1) / (x * x).sum()


def log_odds_change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return torch.logit(after) - torch.logit(before)


RIGHT = [
    (exercises.check_slope, slope),
    (exercises.check_log_odds, log_odds_change),
]

WRONG = [
    (exercises.check_slope, lambda sizes, effects: slope(sizes, effects) / math.log(10), "log10"),
    (exercises.check_slope, lambda sizes, effects: (effects[:, -1] - effects[:, 0]) / 3, "between them"),
    (exercises.check_slope, lambda sizes, effects: slope(sizes, effects).mean(), "one slope per row"),
    (exercises.check_slope, lambda sizes, effects: -slope(sizes, effects), "expected"),
    (exercises.check_log_odds, lambda before, after: after - before, "little room"),
    (exercises.check_log_odds, lambda before, after: after.log() - before.log(), "p / (1 - p)"),
    (exercises.check_log_odds, lambda before, after: log_odds_change(after, before), "turned round"),
    (exercises.check_log_odds, lambda before, after: log_odds_change(before, after).mean(), "per item"),
    (exercises.check_log_odds, lambda before, after: 2 * log_odds_change(before, after), "expected"),
]
