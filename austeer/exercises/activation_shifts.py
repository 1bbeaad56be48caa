"""Checks of the exercises of chapter 14."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_replaced_share(replaced_share: Callable[[Tensor, float, float, float], float]) -> Verdict:
    """Check exercise 14.1: which share of a group of gates is replaced."""
    a = torch.tensor([0.05, -0.12, 0.0, 0.18, 0.4, -0.5, 0.6, -0.7, 2.0])  # sizes: median .4, their deviations' .28
    found = call(replaced_share, a.clone(), 0.35, 0.0, 1.0)
    if isinstance(found, Verdict):
        return found
    found, wrong = round(9 * float(found), 4), "on the nine gates of the check the share is not right:"
    if found != 3:  # below 1.4826 * .35 * .28 = .145 lie 0, .05 and .12
        if found == 2:
            return Verdict(
                False, f"{wrong} the factor 1.4826, which makes of the deviation a standard one, is missing."
            )
        if found == 5:
            return Verdict(False, f"{wrong} compare sizes; a gate far below zero is not near zero.")
        if found == 4:
            return Verdict(False, f"{wrong} the spread is the median distance of the sizes from their median.")
        return Verdict(False, f"{wrong} it is {found / 9:.3f}, and {3 / 9:.3f} was expected.")
    low, high = (float(replaced_share(a.clone(), 0.35, *bounds)) for bounds in ((0.5, 1.0), (0.0, 0.2)))
    if abs(low - 0.5) > 1e-6 or abs(high - 0.2) > 1e-6:
        return Verdict(False, "the share is right, but its two bounds do not hold yet: never below, never above.")
    return Verdict(True, "a share of what is there, between two bounds; where these bind, c does nothing.")


def check_elsewhere(elsewhere: Callable[[Tensor, torch.Generator], Tensor]) -> Verdict:
    """Check exercise 14.2: the same displacements at random entries."""
    delta = torch.zeros(60)
    delta[:12] = torch.linspace(-1, 2, 12)
    before = delta.clone()
    found = call(elsewhere, delta, torch.Generator().manual_seed(0))
    if isinstance(found, Verdict):
        return found
    if not torch.equal(delta, before):
        return Verdict(False, "it changes the displacements that it was given; return new ones.")
    found = torch.as_tensor(found)
    if tuple(found.shape) != (60,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; as many entries as it was given, (60,).")
    if int((found != 0).sum()) != 12:
        return Verdict(False, f"{int((found != 0).sum())} entries move, and 12 should: as many as before.")
    if not torch.allclose(found.sort().values, before.sort().values):
        return Verdict(False, "as many entries move, but not by the same amounts: the variance is another one.")
    again = elsewhere(before.clone(), torch.Generator().manual_seed(0))
    if not torch.equal(again, found):
        return Verdict(False, "the same seed gives another result; draw from the generator, not from the global one.")
    count = sum((elsewhere(before.clone(), torch.Generator().manual_seed(s)) != 0).float() for s in range(200))
    if count.max() > 80 or count.min() < 10:
        return Verdict(False, "over many seeds some entries move far more often than others; any entry may be hit.")
    return Verdict(True, "as many, as far, and anywhere: what is left of the method is only the choice of entries.")
