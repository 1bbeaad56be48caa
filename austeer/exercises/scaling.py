"""Checks of the exercises of chapter 8."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_slope(slope: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 8.1: the least-squares slope of an effect against the decimal logarithm of the size."""
    sizes = torch.tensor([1e5, 1e6, 1e7, 1e8])
    effects = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 5.0]])
    found = call(slope, sizes.clone(), effects.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found).float(), torch.tensor([-1.0, 0.0, 1.4])
    if tuple(found.shape) != (3,):
        return Verdict(
            False, f"it returns shape {tuple(found.shape)}; one slope per row of effects is asked for, (3,)."
        )
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "the effect that is won or lost with every factor of ten in size.")
    if torch.allclose(found, right / math.log(10), atol=1e-4):
        return Verdict(False, "this is the slope per factor of e; take log10 of the sizes.")
    if torch.allclose(found, torch.tensor([-1.0, 0.0, 5 / 3]), atol=1e-4):
        return Verdict(False, "this joins the first and the last size; least squares uses those between them, too.")
    return Verdict(False, f"on three rows it gives {found.tolist()}, and {right.tolist()} was expected.")


def check_log_odds(log_odds_change: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 8.2: what a steering changed, in log-odds."""
    before, after = torch.tensor([0.5, 0.7, 0.9]), torch.tensor([0.6, 0.7, 0.95])
    found = call(log_odds_change, before.clone(), after.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found).float(), torch.logit(after) - torch.logit(before)
    if tuple(found.shape) != (3,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one change per item is asked for, (3,).")
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "near 1 a small step in probability is a large one in log-odds.")
    if torch.allclose(found, after - before, atol=1e-4):
        return Verdict(False, "this is the change in probability, which has little room near 0 and 1.")
    if torch.allclose(found, after.log() - before.log(), atol=1e-4):
        return Verdict(False, "this is the change of log p; the odds are p / (1 - p).")
    if torch.allclose(found, -right, atol=1e-4):
        return Verdict(False, "the sign is turned round: after minus before.")
    return Verdict(False, f"on three items it gives {found.tolist()}, and {right.tolist()} was expected.")
