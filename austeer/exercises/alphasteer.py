"""Checks of the exercises of chapter 9."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def _texts(count: int, seed: int) -> Tensor:
    """Activations with a common offset and few strong directions, as real ones have them: (count, 12) float64."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(1, -2, 12, dtype=torch.float64)
    texts = torch.randn(count, 12, generator=generator, dtype=torch.float64) * spread
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).Q
    return (texts + 3.0 * spread.flip(0)) @ turn


def check_projector(projector: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Check exercise 9.1: the projector on the directions in which texts have least energy."""
    texts, share = _texts(60, 0), 0.5
    found = call(projector, texts.clone(), share)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).double()
    if tuple(found.shape) != (12, 12):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; a matrix of shape (12, 12) was expected.")
    vectors = torch.linalg.eigh(texts.T @ texts).eigenvectors
    right = vectors[:, :6] @ vectors[:, :6].T
    if torch.allclose(found, right, atol=1e-4):
        return Verdict(True, "it keeps half of the directions, those in which the texts have least energy.")
    centred = texts - texts.mean(0)
    vectors_of_centred = torch.linalg.eigh(centred.T @ centred).eigenvectors
    if torch.allclose(found, vectors_of_centred[:, :6] @ vectors_of_centred[:, :6].T, atol=1e-4):
        return Verdict(False, "you took the mean off: then the mean itself may be pushed. Keep the texts as they are.")
    if torch.allclose(found, torch.eye(12, dtype=torch.float64) - right, atol=1e-4):
        return Verdict(False, "it keeps the directions with the most energy; keep the others.")
    if not torch.allclose(found @ found, found, atol=1e-4):
        return Verdict(False, "applied twice it is not what it is applied once, so it is no projector.")
    if abs(found.trace() - 6) > 1e-3:
        return Verdict(False, f"it keeps {found.trace():.1f} dimensions, and 6 of 12 were asked for.")
    return Verdict(False, "it keeps other directions than those in which the texts have least energy.")


def check_soft_gate(soft_gate: Callable[[Tensor, Tensor, float, float], Tensor]) -> Verdict:
    """Check exercise 9.2: a gate that pays for every benign prompt it moves, in place of a hard null space."""
    benign, harmful, cost, ridge = _texts(60, 0), _texts(20, 1) + 2.0, 5.0, 0.1
    found = call(soft_gate, benign.clone(), harmful.clone(), cost, ridge)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).double()
    if tuple(found.shape) != (12,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one vector of shape (12,) was expected.")

    def solution(cost: float, ridge: float) -> Tensor:
        gram = harmful.T @ harmful + cost * benign.T @ benign + ridge * torch.eye(12, dtype=torch.float64)
        return torch.linalg.solve(gram, harmful.sum(0))

    if torch.allclose(found, solution(cost, ridge), atol=1e-4):
        return Verdict(True, "a high cost gives the null space back where there is one, and a compromise where not.")
    for name, other in (
        ("the benign prompts do not count yet", solution(0.0, ridge)),
        ("the cost of the benign prompts is left out", solution(1.0, ridge)),
        ("the ridge is left out", solution(cost, 0.0)),
        ("sums, not means, belong into both terms", solution(cost * 20 / 60, ridge * 20)),
    ):
        if torch.allclose(found, other, atol=1e-4):
            return Verdict(False, f"{name}: look at the objective again.")
    return Verdict(False, "set the gradient of the objective to zero: it gives one linear system for w.")
