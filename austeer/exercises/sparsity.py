"""Checks of the exercises of chapter 15."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_effective_number(effective_number: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 15.1: how many neurons carry a token's output, by the participation ratio of their norms."""
    norms = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0], [10.0, 20.0, 0.0, 0.0]])
    found = call(effective_number, norms.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found).float(), torch.tensor([4.0, 1.0, 1.8, 1.8])
    if tuple(found.shape) != (4,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per token is asked for, (4,).")
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "k equal outputs count k, and neither a unit of length nor a threshold is needed.")
    if torch.allclose(found, 1 / right, atol=1e-4):
        return Verdict(False, "this is one over the number: turn the fraction round.")
    if torch.allclose(found, right / 4, atol=1e-4):
        return Verdict(False, "this is a share of the neurons; a number of them is asked for.")
    if torch.allclose(found, (norms > 0).sum(-1).float()):
        return Verdict(False, "this counts neurons, each as one; a neuron that hardly writes should hardly count.")
    return Verdict(False, f"on four tokens it gives {found.tolist()}, and {right.tolist()} was expected.")


def check_cett_curve(cett_curve: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 15.2: one token's CETT for every number of silenced neurons, those with short outputs first."""
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(6, generator=generator), torch.randn(3, 6, generator=generator)
    matrix[:, 0] *= 5.0  # so that the order of the outputs is not that of the activations
    matrix[:, 5] = -1.3 * (matrix[:, :5] @ x[:5]) / x[5]  # takes back most of what the others write
    found = call(cett_curve, x.clone(), matrix.clone())
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (6,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per neuron is asked for, (6,).")
    outputs, whole = x * matrix, (matrix @ x).norm()
    order, by_activation = outputs.norm(dim=0).argsort(), x.abs().argsort()
    right = outputs[:, order].cumsum(1).norm(dim=0) / whole
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "it ends at 1, when nothing is left, and may be above 1 before: outputs cancel.")
    lengths = outputs.norm(dim=0)[order].cumsum(0)
    if any(torch.allclose(found, lengths / of, atol=1e-4) for of in (whole, lengths[-1])):
        return Verdict(False, "this adds lengths; outputs point in different directions: add the vectors first.")
    if torch.allclose(found, outputs[:, by_activation].cumsum(1).norm(dim=0) / whole, atol=1e-4):
        return Verdict(False, "sort by the length of what a neuron writes, not by its activation.")
    if torch.allclose(found, outputs[:, order.flip(0)].cumsum(1).norm(dim=0) / whole, atol=1e-4):
        return Verdict(False, "the longest outputs are silenced first here; begin with the shortest.")
    if torch.allclose(found, right * whole, atol=1e-4):
        return Verdict(False, "divide by the length of what the whole layer writes.")
    if torch.allclose(found, right.clamp(max=1), atol=1e-4):
        return Verdict(False, "leave what exceeds 1: outputs cancel, so a part can be longer than the whole.")
    said, expected = ([round(v, 3) for v in one.tolist()] for one in (found, right))
    return Verdict(False, f"on one token it gives {said}, and {expected} was expected.")
