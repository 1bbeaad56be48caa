"""Checks of the exercises of chapter 7."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_common_share(common_share: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 7.1: which share of the squared differences the mean difference accounts for, layer by layer."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(6, 3, 4, generator=generator) for _ in range(2))
    positive[:, 1] += torch.tensor([2.0, 0.0, -1.0, 0.0])
    positive[:, 2] = negative[:, 2] + 1.0  # every pair differs alike: the share is 1
    found = call(common_share, positive.clone(), negative.clone())
    if isinstance(found, Verdict):
        return found
    found, difference = torch.as_tensor(found).float(), positive - negative
    if tuple(found.shape) != (3,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one share per layer is asked for, (3,).")
    mean, each = difference.mean(0).norm(dim=-1), difference.norm(dim=-1)
    right = mean**2 / (each**2).mean(0)
    if torch.allclose(found, right, atol=1e-5):
        return Verdict(
            True, "1 where every pair differs alike, near 1 over the number of pairs where nothing is common."
        )
    if torch.allclose(found, mean / each.mean(0), atol=1e-5) or torch.allclose(found, right.sqrt(), atol=1e-5):
        return Verdict(False, "these are lengths; the shares that add up to 1 are those of squared lengths.")
    if torch.allclose(found, mean**2 / each.mean(0) ** 2, atol=1e-5):
        return Verdict(False, "square each pair's difference before taking the mean over pairs, not after.")
    if torch.allclose(found, mean**2 / (difference**2).mean((0, 2)), atol=1e-4):
        return Verdict(False, "the sum over dimensions is missing below the line: a squared length is a sum.")
    return Verdict(False, f"on three layers it gives {found.tolist()}, and {right.tolist()} was expected.")


def check_matching(matching: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 7.2: the probability of the matching letter among the two letters."""
    log_p = torch.tensor([[0.20, 0.05], [0.02, 0.06], [0.40, 0.40], [0.10, 0.30]]).log()
    letter = torch.tensor([0, 0, 1, 1])
    found = call(matching, log_p.clone(), letter.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found).float(), torch.tensor([0.80, 0.25, 0.50, 0.75])
    if tuple(found.shape) != (4,):
        return Verdict(
            False, f"it returns shape {tuple(found.shape)}; one probability per question is asked for, (4,)."
        )
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "other tokens than the two letters do not count, and the matching letter may be either.")
    if torch.allclose(found, torch.tensor([0.20, 0.02, 0.40, 0.30]), atol=1e-4):
        return Verdict(False, "this is the letter's probability among all tokens; divide by that of the two letters.")
    if torch.allclose(found, torch.tensor([0.80, 0.25, 0.50, 0.25]), atol=1e-4):
        return Verdict(False, "this is the probability of A; the matching letter is B where `letter` is 1.")
    return Verdict(False, f"on four questions it gives {found.tolist()}, and {right.tolist()} was expected.")
