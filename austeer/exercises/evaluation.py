"""Checks of the exercises of chapter 5."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_mcnemar(mcnemar: Callable[[Tensor, Tensor], float]) -> Verdict:
    """Check exercise 5.1: the exact two-sided p of a paired comparison of right and wrong answers."""
    before, after = torch.zeros(40), torch.zeros(40)
    before[:12], after[3:14], after[30:39] = 1, 1, 1  # 3 lost, 11 won
    found = call(mcnemar, before.bool(), after.bool())
    if isinstance(found, Verdict):
        return found
    found, p = float(found), 2 * sum(math.comb(14, k) for k in range(4)) / 2**14
    if abs(found - p) < 1e-6:
        worse = float(mcnemar(after.bool(), before.bool()))
        if abs(worse - p) > 1e-6:
            return Verdict(False, "with the two turned round it gives another p; a two-sided test does not mind.")
        if not abs(float(mcnemar(before.bool(), before.bool())) - 1) < 1e-6:
            return Verdict(False, "where nothing changes, p is 1.")
        return Verdict(True, "only the items that changed count, and each is a fair coin if nothing is going on.")
    if abs(found - p / 2) < 1e-6:
        return Verdict(False, "this is one-sided: a loss as large would have surprised as much, so double it.")
    if found > 0.3:
        return Verdict(False, "all items seem to count; those that are right, or wrong, both times say nothing.")
    return Verdict(False, f"with 11 answers won and 3 lost it gives {found:.4f}, and {p:.4f} was expected.")


def check_calibrated(calibrated: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 5.2: which label each item gets when a label's popularity over all items is taken off."""
    log_p = torch.tensor([[-1.0, -4.0, -2.0], [-2.0, -3.0, -2.5], [-1.5, -4.5, -1.8], [-1.5, -3.7, -2.9]])
    found = call(calibrated, log_p.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found), (log_p - log_p.mean(0)).argmax(1)
    if tuple(found.shape) != (4,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one label's number per item is asked for, (4,).")
    if torch.equal(found.long(), log_p.argmax(1)):
        return Verdict(False, "every item gets its likeliest label: take off each label's mean over all items.")
    if not torch.equal(found.long(), right):
        return Verdict(False, f"on four items it gives {found.tolist()}, and {right.tolist()} was expected.")
    return Verdict(True, "a label wins where it is likelier than it usually is.")
