from __future__ import annotations

import torch

from austeer import exercises


def common_share(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    difference = positive - negative
    return difference.mean(0).pow(2).sum(-1) / difference.pow(2).sum(-1).mean(0)


def matching(log_p: torch.Tensor, letter: torch.Tensor) -> torch.Tensor:
    return log_p.softmax(-1).gather(-1, letter[:, None])[:, 0]


RIGHT = [
    (exercises.check_common_share, common_share),
    (exercises.check_matching, matching),
]

WRONG = [
    (exercises.check_common_share, lambda p, n: common_share(p, n).sqrt(), "squared lengths"),
    (exercises.check_common_share, lambda p, n: (p - n).mean(0).norm(dim=-1) / (p - n).norm(dim=-1).mean(0), "lengths"),
    (
        exercises.check_common_share,
        lambda p, n: ((p - n).mean(0).norm(dim=-1) / (p - n).norm(dim=-1).mean(0)) ** 2,
        "before taking the mean",
    ),
    (exercises.check_common_share, lambda p, n: common_share(p, n) * 4, "sum over dimensions"),
    (exercises.check_common_share, lambda p, n: common_share(p, n).mean(), "one share per layer"),
    (exercises.check_common_share, lambda p, n: 1 - common_share(p, n), "expected"),
    (exercises.check_matching, lambda log_p, letter: log_p.exp().gather(-1, letter[:, None])[:, 0], "two letters"),
    (exercises.check_matching, lambda log_p, letter: log_p.softmax(-1)[:, 0], "probability of A"),
    (exercises.check_matching, lambda log_p, letter: matching(log_p, letter).mean(), "per question"),
    (exercises.check_matching, lambda log_p, letter: matching(log_p, 1 - letter), "expected"),
]
