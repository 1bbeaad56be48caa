"""LinAcT (arXiv 2410.23054): carry each dimension's distribution on one side over to that on the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from austeer.activations import collect
from austeer.data import ContrastivePair
from austeer.models import info
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering, require_strength


class Transport(Operator):
    """x <- x + strength * (weight x + bias - x) at one layer: `weight` and `bias` (width,) float32.

    A strength of 1 is the whole way; beyond it the map is extrapolated.

    Raises:
        ValueError: a strength below 0.
    """

    name = "transport"

    def __post_init__(self) -> None:
        Operator.__post_init__(self)  # super() does not travel
        if self.strength < 0:
            raise ValueError(
                f"The strength of a {self.name} is {self.strength:g}, but a map has no negative; fit one for the way "
                "back, with the two sides swapped."
            )

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return weight x + bias - x."""
        weight, bias = on_device(self, ("weight", "bias"), x, state)
        return (weight - 1) * x + bias


def on_device(operator: Operator, names: Sequence[str], x: Tensor, state: dict) -> list[Tensor]:
    """Return the tensors of these names on x's device, in float32 or what is more exact, looked up once a run."""
    if "tensors" not in state:
        exact = torch.promote_types(x.dtype, torch.float32)
        state["tensors"] = [operator.tensors[name].to(x.device, exact) for name in names]
    return state["tensors"]


class LinAcT(Steering):
    """Linear activation transport at one layer: x_i <- w_i x_i + b_i, the optimal linear map of each dimension.

    w = sum s t / sum s^2 over both sides' centred and sorted values s (source) and t (target), b = mean t - w mean s.
    This is what ODESteer's official code compares with. The paper of LinAcT maps many layers, each fitted behind the
    maps before it.

    Args:
        model: a model from `load()`.
        positive, negative: (texts, layers, width), the residual stream at the last token, as `collect` gives it.
        layer: 0-based; this layer's output is carried from the negative side to the positive.
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
        layers, width = positive.shape[1:]
        require_layer(layer, layers)
        target, source = positive[:, layer].double(), negative[:, layer].double()
        t, s = ((side - side.mean(0)).sort(0).values for side in (target, source))
        weight = (s * t).sum(0) / (s**2).sum(0).clamp(min=1e-10)
        bias = target.mean(0) - weight * source.mean(0)
        tensors = {"layer": torch.tensor([layer]), "weight": weight.float(), "bias": bias.float()}
        about = {"method": "LinAcT", "layer": layer, "alpha": require_strength(alpha), "pairs": len(positive)}
        about |= {"template": template, "site": "residual", "shape": [layers, width]}
        super().__init__([Transport("residual", tensors, positions, alpha)], info(model), about)

    @classmethod
    def fit(
        cls, model, pairs: Sequence[ContrastivePair], layer: int, alpha: float = 1.0, *, positions: str = "last",
        template: str | None = None,
    ) -> LinAcT:  # fmt: skip
        """Read both sides of every pair; the arguments are those of the class, errors also those of `collect`."""
        sides = collect(model, pairs, "residual", template=template)
        return cls(model, *sides, layer, alpha, positions=positions, template=template)
