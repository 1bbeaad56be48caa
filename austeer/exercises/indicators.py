"""Checks of the exercises of chapter 16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from austeer.exercises.verdict import Verdict, call


def check_turn(turn: Callable[[Tensor, Tensor, float], Tensor]) -> Verdict:
    """Check exercise 16.1: states turned by an angle towards a vector, in the plane of the two, norms kept."""
    states = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.0, 1.0]])
    vector, angle = torch.tensor([0.0, 0.0, 5.0]), 0.5
    found = call(turn, states.clone(), vector.clone(), angle)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if found.shape != states.shape:
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one turned state for each is asked for, (3, 3).")
    unit = normalize(vector, dim=0)
    across = normalize(unit - (states @ unit)[:, None] * states / states.norm(dim=1, keepdim=True) ** 2, dim=1)
    c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    right = c * states + s * across * states.norm(dim=1, keepdim=True)
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "the norms stay, and whatever the length of the vector, the angle is the one asked for.")
    if torch.allclose(found, c * states - s * across * states.norm(dim=1, keepdim=True), atol=1e-4):
        return Verdict(False, "this turns away from the vector; the sign of the sine is the wrong one.")
    if torch.allclose(found, c * states + s * across, atol=1e-4):
        return Verdict(False, "the part at right angles must be as long as the state, or the norm changes.")
    if not torch.allclose(found.norm(dim=1), states.norm(dim=1), atol=1e-4):
        before, after = ([round(x, 2) for x in one.norm(dim=1).tolist()] for one in (states, found))
        return Verdict(False, f"the norms were {before} and are {after} now.")
    expected = [[round(x, 2) for x in row] for row in right.tolist()]
    return Verdict(False, f"the norms are right, the directions are not: {expected} was expected, for 0.5 radians.")


def check_alike(alike: Callable[[Tensor, Tensor, Tensor], float]) -> Verdict:
    """Check exercise 16.2: AUROC over pairs of runs that have the same setting."""
    score = torch.tensor([0.9, 0.2, 0.4, 0.3, 0.8, 0.35, 0.7, 0.5, 0.5])
    success = torch.tensor([True, False, True, True, False, False, False, True, False])
    setting = torch.tensor([0, 0, 1, 1, 1, 1, 2, 3, 3])
    found = call(alike, score.clone(), success.clone(), setting.clone())
    if isinstance(found, Verdict):
        return found
    found, right = float(found), (1 + 1 + 0.5) / 6  # pairs: one in setting 0, four in 1, none in 2, a tie in 3
    if abs(found - right) < 1e-4:
        return Verdict(True, "a pair with different settings says nothing here, and a tie counts half.")
    difference = score[success][:, None] - score[~success]
    if abs(found - ((difference > 0).float() + 0.5 * (difference == 0)).mean().item()) < 1e-4:
        return Verdict(False, "this is the AUROC over all pairs; only those with the same setting count.")
    if abs(found - 2 / 6) < 1e-4 or abs(found - 3 / 6) < 1e-4:
        return Verdict(False, "a tie counts half, neither as a hit nor as a miss.")
    if abs(found - (1 + 1 / 4 + 0.5) / 3) < 1e-4:
        return Verdict(False, "count the pairs of all settings together; do not average over settings.")
    return Verdict(False, f"on nine runs it gives {found:.4f}, and {right:.4f} was expected.")
