"""MiMiC (arXiv 2402.09631): carry the mean and covariance of one side over to those of the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from austeer.activations import collect
from austeer.data import ContrastivePair
from austeer.methods.linact import Transport, on_device
from austeer.models import info
from austeer.sites import Place, require_layer
from austeer.steering import Pass, Steering, require_strength

RIDGE = 1e-2  # on the diagonal of both covariances, as in the code


class GatedTransport(Transport):
    """x <- x + strength * (A x + bias - x) where gate . x + threshold < 0, at one layer.

    `A` (width, width), `bias` and `gate` (width,), `threshold` (1,), all float32.
    """

    name = "gated transport"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return A x + bias - x where the gate takes x for the side that it comes from, and 0 elsewhere."""
        A, bias, gate, threshold = on_device(self, ("A", "bias", "gate", "threshold"), x, state)
        x = x.to(A.dtype)
        return torch.where((x @ gate + threshold < 0)[..., None], x @ A.T + bias - x, 0.0)


class MiMiC(Steering):
    """The optimal map between two Gaussians, for activations that a linear probe takes for the negative side.

    A = S^(-1/2) (S^(1/2) T S^(1/2))^(1/2) S^(-1/2) with the covariances S of the negative and T of the positive side;
    x <- m_T + A (x - m_S). This is what ODESteer's official code compares with: the gate is a logistic regression.

    Args:
        model: a model from `load()`.
        positive, negative: (texts, layers, width), the residual stream at the last token, as `collect` gives it.
        layer: 0-based; this layer's output is carried over.
        alpha: which part of the way, at least 0.
        positions: "last" (as the code: the last token of every pass), "all", "prompt" or "generated".
        template: that of the activations, for the record.

    Raises:
        ValueError: a layer that the model does not have, an alpha below 0, or unknown positions.
    """

    def __init__(
        self, model, positive: Tensor, negative: Tensor, layer: int, alpha: float = 1.0, *, positions: str = "last",
        template: str | None = None,
    ):  # fmt: skip
        from sklearn.linear_model import LogisticRegression  # a second to import

        layers, width = positive.shape[1:]
        require_layer(layer, layers)
        target, source = positive[:, layer].double(), negative[:, layer].double()
        A = gaussian_map(covariance(source), covariance(target))
        label = torch.cat([torch.ones(len(target)), torch.zeros(len(source))])
        gate = LogisticRegression(max_iter=1000).fit(torch.cat([target, source]).numpy(), label.numpy())
        tensors = {
            "layer": torch.tensor([layer]), "A": A.float(), "bias": (target.mean(0) - A @ source.mean(0)).float(),
            "gate": torch.from_numpy(gate.coef_[0]).float(), "threshold": torch.from_numpy(gate.intercept_).float(),
        }  # fmt: skip
        about = {"method": "MiMiC", "layer": layer, "alpha": require_strength(alpha), "pairs": len(positive)}
        about |= {"template": template, "site": "residual", "shape": [layers, width]}
        super().__init__([GatedTransport("residual", tensors, positions, alpha)], info(model), about)

    @classmethod
    def fit(
        cls, model, pairs: Sequence[ContrastivePair], layer: int, alpha: float = 1.0, *, positions: str = "last",
        template: str | None = None,
    ) -> MiMiC:  # fmt: skip
        """Read both sides of every pair; the arguments are those of the class, errors also those of `collect`."""
        sides = collect(model, pairs, "residual", template=template)
        return cls(model, *sides, layer, alpha, positions=positions, template=template)


def covariance(x: Tensor) -> Tensor:
    """Return the covariance of the rows of x, (width, width), with `RIDGE` added to its diagonal."""
    return torch.cov(x.T) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)


def gaussian_map(S: Tensor, T: Tensor) -> Tensor:
    """Return the symmetric positive A with A S A = T, which carries N(0, S) to N(0, T) along the least way."""
    values, vectors = torch.linalg.eigh(S)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    values, vectors = torch.linalg.eigh(root @ T @ root)
    return inverse @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.T) @ inverse
