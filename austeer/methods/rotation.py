"""Rotation (compared with addition in arXiv 2602.01716): turn a state towards a vector and keep its norm."""

from __future__ import annotations

import torch
from torch import Tensor

from austeer.methods.linact import on_device
from austeer.momentum import ActivationMomentum, require_momentum
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering, require_strength


class Turn(Operator):
    """x <- x turned by strength * angle(x, vector) towards `vector` (width,) float32, in the plane of the two.

    The norm stays. A strength of 1 is the whole way, a negative one turns the other way by as much; where x and the
    vector lie on one line there is no plane, and x stays.
    """

    name = "turn"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return (turned x - x) / strength, since what is returned is multiplied by the strength; 0 at strength 0."""
        (vector,) = on_device(self, ("vector",), x, state)
        if self.strength == 0:
            return torch.zeros_like(x, dtype=vector.dtype)
        return (turned(x.to(vector.dtype), vector, self.strength) - x) / self.strength


def turned(x: Tensor, vector: Tensor, share: float) -> Tensor:
    """Return x (..., width) turned towards a vector (width,) by a share of the angle between the two, norms kept."""
    norm, unit = x.norm(dim=-1, keepdim=True), vector / vector.norm()
    along = (x * unit).sum(-1, keepdim=True)
    across = unit * norm**2 - x * along  # at right angles to x, in the plane of both
    length = across.norm(dim=-1, keepdim=True)  # norm^2 * sin(angle)
    angle = torch.atan2(length, along * norm)
    beside = across * norm / length.clamp(min=torch.finfo(x.dtype).tiny)  # as long as x
    moved = torch.cos(share * angle) * x + torch.sin(share * angle) * beside
    return torch.where(length > 1e-6 * norm**2, moved, x)


class Rotation(Steering):
    """Turn h towards v = mean of h+ - h- at one layer by alpha times the angle between them, in their plane.

    Where addition makes a state longer and longer, this keeps its norm. The official code's scale s is 320 alpha.

    Args:
        momentum: what was read, at site "residual" (or at another one: the block's own mean difference).
        layer: 0-based; this layer's output is turned.
        alpha: which part of the angle; at 1 the state points along v.
        positions: "all" (as the code), "prompt", "last" or "generated".

    Raises:
        ValueError: what is no momentum, a layer that the model does not have, a mean difference of zero, an alpha that
            is not finite, or unknown positions.
    """

    def __init__(self, momentum: ActivationMomentum, layer: int, alpha: float, positions: str = "all"):
        require_momentum(momentum)
        layers, width = momentum.mean_difference.shape
        require_layer(layer, layers)
        vector = momentum.mean_difference[layer]
        if not vector.any():
            raise ValueError(f"The mean difference of layer {layer} is zero, so there is nothing to turn towards.")
        about = {"method": "Rotation", "layer": layer, "alpha": require_strength(alpha)}
        about |= {"pairs": int(momentum.pairs.sum()), "template": momentum.template}
        about |= {"site": momentum.site, "shape": [layers, width]}
        tensors = {"layer": torch.tensor([layer]), "vector": vector}
        super().__init__([Turn(momentum.site, tensors, positions, alpha)], momentum.model, about)
