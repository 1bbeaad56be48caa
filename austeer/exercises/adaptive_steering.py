"""Checks of the exercises of chapter 4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_fold(fold: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Verdict:
    """Check exercise 4.1: fold x_i <- x_i (1 + alpha beta_i) into a weight matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    index, beta = torch.tensor([1, 4]), torch.tensor([0.9, -0.8], dtype=torch.float64)
    before = weight.clone()
    found = call(fold, weight, index, beta, 5.0)
    if isinstance(found, Verdict):
        return found
    if not torch.equal(weight, before):
        return Verdict(False, "it changes the matrix that it was given; work on a copy (weight.clone()).")
    if tuple(found.shape) != (4, 6):
        return Verdict(
            False, f"it returns shape {tuple(found.shape)}; the new matrix has the shape of the old, (4, 6)."
        )
    steered = x.clone()
    steered[:, index] *= 1 + 5.0 * beta
    if torch.allclose(x @ found.T, steered @ weight.T):
        return Verdict(True, "the folded matrix gives on x what the old one gives on the steered x.")
    only = weight.clone()
    only[:, index] *= 5.0 * beta
    if torch.allclose(found, only):
        return Verdict(False, "the columns are multiplied by alpha beta; the rule multiplies by 1 + alpha beta.")
    return Verdict(False, "the folded matrix on x is not the old one on the steered x: scale columns W[:, i].")


def check_right_way(right_way: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 4.2: the share of texts in which the multiplicative rule pushes a unit to its positive side."""
    x = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, -3.0], [0.5, 1.0, -1.0], [4.0, -2.0, -2.0]])
    beta = torch.tensor([0.9, 0.8, -0.7])
    found = call(right_way, x, beta)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (3,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one share per unit is asked for, (3,).")
    if torch.allclose(found, torch.tensor([1.0, 0.25, 0.75])):
        return Verdict(
            False,
            "where beta < 0 the right way is down: compare the sign of the push, beta x, with the sign of beta.",
        )
    if not torch.allclose(found, torch.tensor([1.0, 0.25, 0.25])):
        return Verdict(False, f"on a small example it gives {found.tolist()}, and [1.0, 0.25, 0.25] was expected.")
    return Verdict(True, "the push alpha beta x has beta's sign exactly where x > 0.")
