"""Checks of the exercises of chapter 3."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_overlap(overlap: Callable[[Tensor, Tensor, int], float]) -> Verdict:
    """Check exercise 3.1: the share of the top k by `|beta|` that two score tables have in common."""
    first = torch.tensor([[0.9, -0.8, 0.1], [0.2, 0.7, -0.3]])
    second = torch.tensor([[0.9, 0.1, -0.2], [-0.8, 0.7, 0.3]])
    found = call(overlap, first, second, 3)
    if isinstance(found, Verdict):
        return found
    found = float(found)
    if abs(found - 2) < 1e-6:
        return Verdict(False, "it gives the number of common units; divide by k for the share.")
    if abs(found - 2 / 3) > 1e-6:
        return Verdict(False, f"on a small example it gives {found:.3f}; 2 of the top 3 agree, so 0.667 was expected.")
    third = torch.tensor([[-0.9, 0.1, 0.2], [0.8, -0.7, 0.3]])
    if abs(float(overlap(second, third, 3)) - 1) > 1e-6:
        return Verdict(False, "with all signs turned it should still be 1: rank by |beta|, not by beta.")
    if abs(float(overlap(first, first.T.contiguous().T, 2)) - 1) > 1e-6:
        return Verdict(False, "a table should agree with itself completely.")
    return Verdict(True, "the share of the top k that both tables choose.")


def check_null_by_pairs(null_by_pairs: Callable[[Tensor, torch.Generator], float]) -> Verdict:
    """Check exercise 3.2: the largest `|beta|` when each pair is swapped on its own coin."""
    differences = torch.ones(400, 1, 3)
    found = call(null_by_pairs, differences, torch.Generator().manual_seed(0))
    if isinstance(found, Verdict):
        return found
    draws = [float(null_by_pairs(differences, torch.Generator().manual_seed(seed))) for seed in range(40)]
    if max(draws) > 1.0001:
        return Verdict(False, f"it gives {max(draws):.3f}, but |beta| is a share of pairs: divide by their number.")
    if min(draws) > 0.99:
        return Verdict(False, "400 pairs that all agree still give 1: the sides are not swapped.")
    if len(set(draws)) == 1:
        return Verdict(False, "every seed gives the same value: draw the coins from the generator that is passed in.")
    if max(draws) > 0.7:
        return Verdict(False, "some draws swap far more than half of the pairs together: one coin for each pair.")
    if min(draws) < 0.499:
        return Verdict(False, f"it gives {min(draws):.3f}; without ties |beta| = max(r+, r-) is never below 0.5.")
    signs = torch.ones(400, 1, 2)
    signs[:, :, 1] = -1
    if abs(float(null_by_pairs(signs, torch.Generator().manual_seed(1))) - float(
        null_by_pairs(signs[..., :1], torch.Generator().manual_seed(1))
    )) > 1e-6:  # fmt: skip
        return Verdict(False, "mirror-image units get different coins: swap a whole pair, all units at once.")
    return Verdict(True, "one coin a pair, the same for all units, and the largest |beta| that is left.")
