"""AUSteer (arXiv 2602.04428): steer single units, by the paper's multiplicative rule or by a directional shift."""

from __future__ import annotations

from torch import Tensor

from austeer.momentum import AtomicUnits
from austeer.steering import Operator, Scale, Shift, Steering, require_strength


class AUSteer(Steering):
    """The paper's rule: x_i <- x_i (1 + alpha beta_i) (AUSteer, section 4).

    Args:
        units: the chosen units.
        alpha: strength, without unit; a unit's sign turns where alpha beta_i < -1.
        positions: "all" (as the paper), "prompt", "last" or "generated".

    Raises:
        ValueError: what are no units, an alpha that is not finite, or unknown positions.
    """

    def __init__(self, units: AtomicUnits, alpha: float, positions: str = "all"):
        super().__init__(*_on_units(Scale, units, units.beta, alpha, positions, "AUSteer"))


class DirectionalAUSteer(Steering):
    """The directional rule: x_i <- x_i + alpha mean_difference_i, the same push whatever the sign of x_i.

    Args:
        units: the chosen units.
        alpha: strength; 1 shifts every unit by the mean difference between the two sides.
        positions: "all", "prompt", "last" or "generated".

    Raises:
        ValueError: what are no units, an alpha that is not finite, or unknown positions.
    """

    def __init__(self, units: AtomicUnits, alpha: float, positions: str = "all"):
        super().__init__(*_on_units(Shift, units, units.mean_difference, alpha, positions, "DirectionalAUSteer"))


def _on_units(operator: type[Operator], units: AtomicUnits, value: Tensor, alpha: float, positions: str, method: str):
    if not isinstance(units, AtomicUnits):
        raise ValueError(f"units is of type {type(units).__name__}; give AtomicUnits, such as momentum.top(20).")
    tensors = {"layer": units.layer, "index": units.index, "value": value}
    about = {"method": method, "alpha": require_strength(alpha), "units": len(units), "site": units.site}
    about |= {"shape": list(units.shape), **units.about}
    return [operator(units.site, tensors, positions, alpha)], units.model, about
