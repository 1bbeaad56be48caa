from __future__ import annotations

import torch
from scipy.stats import binomtest

from austeer import exercises


def mcnemar(before: torch.Tensor, after: torch.Tensor) -> float:
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return binomtest(won, won + lost).pvalue if won + lost else 1.0


def calibrated(log_p: torch.Tensor) -> torch.Tensor:
    return (log_p - log_p.mean(0)).argmax(1)


RIGHT = [
    (exercises.check_mcnemar, mcnemar),
    (exercises.check_calibrated, calibrated),
]

WRONG = [
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) / 2, "one-sided"),
    (exercises.check_mcnemar, lambda a, b: binomtest(int(b.sum()), 40, 0.5).pvalue, "both times say nothing"),
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) if b.sum() > a.sum() else 1.0, "turned round"),
    (exercises.check_mcnemar, lambda a, b: mcnemar(a, b) if not torch.equal(a, b) else 0.0, "p is 1"),
    (exercises.check_mcnemar, lambda a, b: 0.01, "expected"),
    (exercises.check_calibrated, lambda log_p: (log_p - log_p.mean(1, keepdim=True)).argmax(1), "over all items"),
    (exercises.check_calibrated, lambda log_p: (log_p - log_p.mean(0)).argmax(0), "one label's number"),
    (exercises.check_calibrated, lambda log_p: (log_p + log_p.mean(0)).argmin(1), "expected"),
]
