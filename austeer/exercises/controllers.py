"""Checks of the exercises of chapter 11."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_last_gradient(last_gradient: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 11.1: the gradient of the scalar's loss on the last matrix of the controller."""
    generator = torch.Generator().manual_seed(0)
    hidden, target = torch.rand(8, 5, generator=generator), (torch.arange(8) < 3).float()
    matrix = torch.randn(4, 5, generator=generator)
    found = call(last_gradient, hidden.clone(), matrix.clone(), target.clone())
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (4, 5):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; the gradient has the matrix's shape, (4, 5).")
    error = hidden @ matrix[0] - target
    right = torch.zeros(4, 5)
    right[0] = 2 * (error[:, None] * hidden).mean(0)
    if torch.allclose(found, right, atol=1e-5):
        return Verdict(True, "only the first row moves: the rows of the layer weights stay as they were drawn.")
    if found[1:].abs().max() > 1e-6:
        return Verdict(False, "the loss holds the first output only; the other rows have no part in it.")
    for factor, what in ((0.5, "the 2 of the square"), (8, "the mean over prompts"), (-1, "the sign")):
        if torch.allclose(found, right * factor, atol=1e-5):
            return Verdict(False, f"{what} is not right yet.")
    return Verdict(False, "the first row is the mean of 2 (s - target) times the hidden layer; yours is another.")


def check_arrived(arrived: Callable[[Tensor, float, float], Tensor]) -> Verdict:
    """Check exercise 11.2: how much of the direction has been added to the stream by the end of each layer."""
    weights = torch.tensor([0.5, 0.25, 1.0, 0.75])
    found = call(arrived, weights.clone(), 0.5, 3.0)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (4,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number a layer was expected, (4,).")
    right = torch.tensor([0.75, 1.125, 2.625, 3.75])
    if torch.allclose(found, right, atol=1e-6):
        return Verdict(True, "what one layer adds, all later ones find in the stream: pushes add up.")
    if torch.allclose(found, 1.5 * weights, atol=1e-6):
        return Verdict(False, "this is what each layer adds; the stream also holds what the layers before added.")
    if torch.allclose(found, right.flip(0), atol=1e-6) or found[0] > found[-1]:
        return Verdict(False, "the sum runs from the first layer on, so the last layer has the most.")
    if torch.allclose(found, weights.cumsum(0), atol=1e-6):
        return Verdict(False, "the strength and the scalar are left out.")
    return Verdict(
        False, f"for weights {weights.tolist()} it gives {found.tolist()}, and {right.tolist()} was expected."
    )
