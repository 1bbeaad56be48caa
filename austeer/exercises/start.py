"""Checks of the exercises of chapter 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_swing(swing: Callable[[list[str], list[str]], float]) -> Verdict:
    """Check exercise 0.1: mean sentiment of the one list minus that of the other."""
    happy, sad = ["I love this wonderful day.", "A table."], ["I hate this.", "A sad, awful day."]
    found = call(swing, happy, sad)
    if isinstance(found, Verdict):
        return found
    from austeer.scoring import sentiment

    plus, minus = sentiment(happy).mean().item(), sentiment(sad).mean().item()
    if not isinstance(found, (float, int, Tensor)) or (isinstance(found, Tensor) and found.numel() != 1):
        return Verdict(False, f"it returns {type(found).__name__}, but one number is asked for: take the means.")
    found = float(found)
    if abs(found - (minus - plus)) < 1e-5:
        return Verdict(False, "the sign is turned round: the + texts come first, and + minus - is asked for.")
    if abs(found - (plus + minus)) < 1e-5:
        return Verdict(False, "the two means are added; the swing is their difference.")
    if abs(found - (plus - minus)) > 1e-5:
        return Verdict(False, f"on two small lists it gives {found:.3f}, and {plus - minus:.3f} was expected.")
    return Verdict(True, "the mean mood of the one side minus that of the other.")


def check_units_per_layer(units_per_layer: Callable[[Any], dict[int, int]]) -> Verdict:
    """Check exercise 0.2: count the chosen units of each layer."""
    from types import SimpleNamespace

    units = SimpleNamespace(layer=torch.tensor([3, 7, 3, 3, 12]), index=torch.tensor([1, 2, 5, 9, 1]))
    found = call(units_per_layer, units)
    if isinstance(found, Verdict):
        return found
    if not isinstance(found, dict):
        return Verdict(False, f"it returns {type(found).__name__}; a dictionary {{layer: number}} is asked for.")
    found = {int(layer): int(number) for layer, number in found.items() if int(number)}
    if found == {1: 2, 2: 1, 5: 1, 9: 1}:
        return Verdict(False, "that counts the index inside the layer; use units.layer.")
    if set(found) != {3, 7, 12}:
        return Verdict(False, f"for units in layers 3, 7, 3, 3, 12 it names the layers {sorted(found)}.")
    if found != {3: 3, 7: 1, 12: 1}:
        return Verdict(False, f"for units in layers 3, 7, 3, 3, 12 it counts {found}; layer 3 has three.")
    return Verdict(True, "three in layer 3, one each in layers 7 and 12.")
