"""Checks of the exercises of chapter 13."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_mask_weight(mask_weight: Callable[[int, int], float]) -> Verdict:
    """Check exercise 13.1: what a set of k masks among n tokens weighs once the share t is integrated out."""
    cases = [(1, 1), (3, 1), (3, 2), (3, 3), (24, 1), (24, 10)]
    found = [call(mask_weight, n, k) for n, k in cases]
    for one in found:
        if isinstance(one, Verdict):
            return one
    found = torch.tensor([float(one) for one in found], dtype=torch.float64)

    def alike(weight: Callable[[int, int], float]) -> bool:
        return torch.allclose(found, torch.tensor([weight(n, k) for n, k in cases], dtype=torch.float64))

    if alike(lambda n, k: 1 / (k * math.comb(n, k))):
        return Verdict(
            True,
            "all sets of k masks together weigh 1 / k, which is n / k times the chance 1 / n of this k.",
        )
    if alike(lambda n, k: 1 / ((n + 1) * math.comb(n, k))):
        return Verdict(False, "this is the chance of the set alone; the loss is weighed by 1 / t besides.")
    if alike(lambda n, k: 1 / k):
        return Verdict(False, "this is what all sets of k masks weigh together; there are C(n, k) of them.")
    if alike(lambda n, k: 1 / math.comb(n, k)):
        return Verdict(False, "a factor 1 / k is missing: look at (k - 1)! (n - k)! / n! again.")
    return Verdict(False, f"for (n, k) = (3, 2) it gives {found[2]:.4f}, and {1 / 6:.4f} was expected.")


def check_unmask(unmask: Callable[[Tensor, Tensor, int, int], Tensor]) -> Verdict:
    """Check exercise 13.2: one pass of the sampler, which fills in the masks that the model is surest of."""
    mask, probability = 4, torch.full((2, 4, 5), 0.02)
    best = [[(1, 0.9), (2, 0.5), (0, 0.6), (3, 0.7)], [(3, 0.8), (0, 0.95), (1, 0.9), (2, 0.99)]]
    for row, places in enumerate(best):
        for place, (token, p) in enumerate(places):
            probability[row, place, :mask] = (1 - p) / 3
            probability[row, place, token] = p
    probability[0, 2] = torch.tensor([0.6, 0.398, 0.001, 0.001, 0.02])  # sure, with a rival
    probability[0, 3, mask] = 0.98  # a mask is no token to fill in
    logits = probability.log() + torch.tensor([[[3.0], [5.0], [-2.0], [0.0]]])  # a constant changes no probability
    ids = torch.tensor([[0, mask, mask, mask], [mask, mask, mask, 2]])
    before, given_logits = ids.clone(), logits.clone()
    found = call(unmask, ids, logits, 2, mask)
    if isinstance(found, Verdict):
        return found
    for name, now, then in (("ids", ids, before), ("logits", logits, given_logits)):
        if not torch.equal(now, then):
            return Verdict(False, f"it changes the {name} that it was given; work on a copy ({name}.clone()).")
    found = torch.as_tensor(found)
    if tuple(found.shape) != (2, 4):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; the new ids are asked for, (2, 4).")
    if torch.equal(found, torch.tensor([[0, mask, 0, 3], [mask, 0, 1, 2]])):
        return Verdict(True, "two masks of each row are filled in, those with the largest probability.")
    given = before != mask
    if not torch.equal(found[given], before[given]):
        return Verdict(False, "it overwrites tokens that are there already; only masks are filled in.")
    left = (found == mask).sum(1).tolist()
    if left != [1, 1]:
        return Verdict(
            False, f"it leaves {left} masks, and [1, 1] was expected: two of each row's three are filled in."
        )
    if torch.equal(found, torch.tensor([[0, 2, mask, 3], [3, 0, mask, 2]])):
        return Verdict(False, "it goes by the size of the logits; a softmax over the vocabulary makes them comparable.")
    return Verdict(
        False,
        "it fills in other masks, or other tokens, than those of the largest probability once the mask is ruled out.",
    )
