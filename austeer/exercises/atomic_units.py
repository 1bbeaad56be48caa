"""Checks of the exercises of chapter 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_head_writes(head_writes: Callable[[Tensor, Tensor, int], Tensor]) -> Verdict:
    """Check exercise 1.1: what each head writes, from activations and the output projection."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, generator=generator), torch.randn(5, 6, generator=generator)
    found = call(head_writes, x, weight, 3)
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) == (5, 3):
        return Verdict(False, "it returns shape (5, 3); one row per head is asked for, (3, 5): transpose.")
    if tuple(found.shape) != (3, 5):
        return Verdict(False, f"for 3 heads and hidden size 5 it returns shape {tuple(found.shape)}, not (3, 5).")
    pieces = weight * x
    if torch.allclose(found, pieces.unflatten(1, (-1, 3)).sum(1).T, atol=1e-5):
        return Verdict(False, "unit i went to head i modulo 3; heads own blocks of neighbours: units 0 and 1, 2 and 3.")
    if not torch.allclose(found.sum(0), weight @ x, atol=1e-5):
        return Verdict(False, "its rows do not sum to W x: each unit must be counted once, slice times activation.")
    if not torch.allclose(found, pieces.unflatten(1, (3, -1)).sum(2).T, atol=1e-5):
        return Verdict(False, "the rows sum to W x, but the units are given to the wrong heads.")
    return Verdict(True, "each head is the sum of its own units, and the heads sum to W x.")


def check_contributions(contributions: Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]) -> Verdict:
    """Check exercise 1.2: each unit's direct contribution to one logit."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, generator=generator), torch.randn(5, 6, generator=generator)
    gain, row, rho = torch.rand(5, generator=generator) + 0.5, torch.randn(5, generator=generator), 3.0
    found = call(contributions, x, weight, gain, rho, row)
    if isinstance(found, Verdict):
        return found
    right = x * ((gain * row / rho) @ weight)
    if tuple(found.shape) != (6,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per unit is asked for, (6,).")
    if torch.allclose(found, right * rho, atol=1e-5):
        return Verdict(False, "everything is rho times too large: the norm divides by rho.")
    if torch.allclose(found, x * ((row / rho) @ weight), atol=1e-5):
        return Verdict(False, "the gain gamma is missing: the norm multiplies every dimension by it.")
    if torch.allclose(found, (gain * row / rho) @ weight, atol=1e-5):
        return Verdict(False, "that is what the slices could add; multiply by the activations x.")
    if not torch.allclose(found, right, atol=1e-5):
        return Verdict(False, f"on a small example they sum to {found.sum():.3f}, and {right.sum():.3f} was expected.")
    return Verdict(True, "the contributions sum to the part of the logit that this block wrote.")


def check_scale_output(scale_output: Callable[[Tensor, int, float], Tensor]) -> Verdict:
    """Check exercise 1.3: the weight edit that scales one output dimension of a down projection."""
    weight = torch.arange(1.0, 13.0).view(3, 4)
    before = weight.clone()
    found = call(scale_output, weight, 1, 2.0)
    if isinstance(found, Verdict):
        return found
    if not torch.equal(weight, before):
        return Verdict(False, "it changes the matrix that it was given; work on a copy (D.clone()).")
    if tuple(found.shape) != (3, 4):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; the new matrix is (3, 4), as the old one.")
    column, row = weight.clone(), weight.clone()
    column[:, 1] *= 2
    row[1] *= 2
    if torch.equal(found, column):
        return Verdict(False, "that scales column i, which is neuron i; an output dimension is a row of D.")
    if not torch.equal(found, row):
        return Verdict(False, "y_i is the sum of D_ij a_j over j: multiply all of row i, and nothing else, by s.")
    return Verdict(True, "row i carries the factor, so y_i does, for every text.")
