from __future__ import annotations

import torch

from austeer import exercises


def projector(texts: torch.Tensor, share: float) -> torch.Tensor:
    vectors = torch.linalg.eigh(texts.double().T @ texts.double()).eigenvectors
    basis = vectors[:, : int(share * len(vectors))]
    return basis @ basis.T


def soft_gate(benign: torch.Tensor, harmful: torch.Tensor, cost: float, ridge: float) -> torch.Tensor:
    gram = harmful.T @ harmful + cost * benign.T @ benign + ridge * torch.eye(harmful.shape[1])
    return torch.linalg.solve(gram, harmful.sum(0))


RIGHT = [
    (exercises.check_projector, projector),
    (exercises.check_soft_gate, soft_gate),
]

WRONG = [
    (exercises.check_projector, lambda texts, share: texts.T @ texts, "no projector"),
    (exercises.check_projector, lambda texts, share: projector(texts - texts.mean(0), share), "took the mean off"),
    (exercises.check_projector, lambda texts, share: torch.eye(12) - projector(texts, share), "most energy"),
    (exercises.check_projector, lambda texts, share: projector(texts, 0.25), "6 of 12"),
    (exercises.check_projector, lambda texts, share: projector(texts[:, :11], share), "shape (11, 11)"),
    (exercises.check_projector, lambda texts, share: projector(texts.flip(1), share), "other directions"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: soft_gate(b, h, 0.0, ridge), "do not count yet"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: soft_gate(b, h, 1.0, ridge), "cost of the benign"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: soft_gate(b, h, cost, 0.0), "ridge is left out"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: soft_gate(b, h, cost / 3, ridge * 20), "sums, not means"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: soft_gate(h, b, cost, ridge), "gradient"),
    (exercises.check_soft_gate, lambda b, h, cost, ridge: torch.outer(h.sum(0), h.sum(0)), "(12,)"),
]
