from __future__ import annotations

import torch

from austeer import exercises


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-6)


def target(gains: torch.Tensor, levels: torch.Tensor, most: int = 2) -> torch.Tensor:
    best, where = gains.max(1)
    mixture = torch.zeros(len(gains))
    for vector in best.topk(most).indices:
        if best[vector] > 0:
            mixture[vector] = levels[where[vector]]
    return mixture


def even_if_harmful(gains: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    best, where = gains.max(1)
    chosen = best.topk(2).indices
    return torch.zeros(len(gains)).scatter(0, chosen, levels[where[chosen]])


def as_strong_as_possible(gains: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return target(gains, levels).sign() * levels.max()


RIGHT = [
    (exercises.check_advantages, advantages),
    (exercises.check_advantages, lambda r: (r - r.mean(0)) / (r.std(0, correction=0) + 1e-6)),
    (exercises.check_target, target),
]

WRONG = [
    (exercises.check_advantages, lambda r: (r - r.mean(0)) / r.std(0), "0 / 0"),
    (exercises.check_advantages, lambda r: r - r.mean(0), "standard deviation"),
    (exercises.check_advantages, lambda r: (r - r.mean()) / r.std(), "share one mean"),
    (exercises.check_advantages, lambda r: advantages(r.T).T, "with each other"),
    (exercises.check_advantages, lambda r: advantages(r).mean(0), "(4, 3)"),
    (exercises.check_advantages, lambda r: r / (r.std(0) + 1e-6), "their mean is 3"),
    (exercises.check_target, lambda gains, levels: target(gains, levels, 5), "keep the two"),
    (exercises.check_target, as_strong_as_possible, "not always the best"),
    (exercises.check_target, lambda gains, levels: target(gains, levels).sign() * gains.amax(1), "what they gain"),
    (exercises.check_target, lambda gains, levels: target(gains, torch.arange(3.0)), "places in `levels`"),
    (exercises.check_target, lambda gains, levels: target(gains, levels) / 2, "its own best strength"),
    (exercises.check_target, even_if_harmful, "second place stays empty"),
    (exercises.check_target, lambda gains, levels: gains.max(1).values.topk(2).indices, "(5,)"),
]
