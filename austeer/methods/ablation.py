"""Directional ablation (arXiv 2406.11717, 2512.24143): remove one direction from the residual stream, everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from austeer.activations import collect
from austeer.data import ContrastivePair
from austeer.methods.linact import on_device
from austeer.models import info
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering


class Projection(Operator):
    """h <- h - strength * (h . v) v: `layer` (n,) int64, `direction` (width,) float32 of length 1.

    A strength of 1 leaves nothing of h along v, a smaller one a part, 2 mirrors h.

    Raises:
        ValueError: a strength below 0, or a direction that is not of length 1.
    """

    name = "projection"

    def __post_init__(self) -> None:
        Operator.__post_init__(self)  # super() does not travel
        if self.strength < 0:
            raise ValueError(
                f"The strength of a {self.name} is {self.strength:g}, but a projection has no sign: v and -v are "
                "removed alike. To push along a direction, add it (CAA)."
            )
        length = self.tensors["direction"].norm().item()
        if abs(length - 1) > 1e-3:
            raise ValueError(f"The direction has length {length:.3g}; give one of length 1.")

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return -(x . v) v."""
        (v,) = on_device(self, ("direction",), x, state)
        return -(x * v).sum(-1, keepdim=True) * v


class DirectionAblation(Steering):
    """h <- h - (h . v) v at the output of every layer and at every token; in a diffusion model at every step.

    The papers remove v also from what attention adds inside a block, before its FFN reads it; here the stream is
    cleaned once a block. There is no strength to choose; `* s` removes a part, and a minus is refused.

    Args:
        model: a model from `load()`.
        direction: (width,), of any length but 0; its sign does not matter.
        layers: 0-based; all by default.
        positions: "all" (as the papers), "prompt", "last" or "generated".

    Raises:
        ValueError: a direction of another width or of length 0, a layer that the model does not have, or unknown
            positions.

    Example:
        >>> model = au.load()
        >>> pairs = au.load_pairs("sentiment")[:16]
        >>> au.methods.DirectionAblation.fit(model, pairs, layer=20)
        Steering of SmolLM2-135M-Instruct (method DirectionAblation, positions all, site residual, read at 20)
          1 x projection at 30 places of residual, layers 0 to 29, positions: all
    """

    def __init__(self, model, direction: Tensor, layers: Sequence[int] | None = None, positions: str = "all"):
        count, width = info(model).shape
        if direction.shape != (width,) or not direction.norm() > 0:
            raise ValueError(
                f"The direction is {tuple(direction.shape)}, of length {direction.norm():.3g}; give one of shape "
                f"({width},) that is not 0."
            )
        layers = range(count) if layers is None else sorted(set(layers))
        for layer in layers:
            require_layer(layer, count)
        tensors = {"layer": torch.tensor(layers), "direction": (direction / direction.norm()).float()}
        about = {"method": "DirectionAblation", "positions": positions, "site": "residual", "shape": [count, width]}
        super().__init__([Projection("residual", tensors, positions)], info(model), about)

    @classmethod
    def fit(
        cls, model, sides: Sequence[ContrastivePair] | tuple[Sequence[str], Sequence[str]], layer: int,
        layers: Sequence[int] | None = None, *, positions: str = "all", template: str | None = None,
    ) -> DirectionAblation:  # fmt: skip
        """Take the direction from one mean to the other, at the last token of texts of two kinds.

        Args:
            model: a model from `load()`.
            sides: contrastive pairs; or texts with the behaviour and texts without it, as a tuple of two lists, which
                need not be of one length.
            layer: where the direction is read.
            layers, positions: as above.
            template: None or "chat".

        Raises:
            ValueError: as above, and as `collect`.
        """
        require_layer(layer, info(model).shape[0])
        if isinstance(sides, tuple):
            sides = tuple(list(side) for side in sides)
            with_it, without_it = (collect(model, side, "residual", template=template) for side in sides)
        else:
            with_it, without_it = collect(model, sides, "residual", template=template)
        steering = cls(model, with_it[:, layer].mean(0) - without_it[:, layer].mean(0), layers, positions)
        steering.about |= {"read at": layer, "template": template}
        return steering
