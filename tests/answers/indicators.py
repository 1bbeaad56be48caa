from __future__ import annotations

import torch

from austeer import exercises


def turn(states: torch.Tensor, vector: torch.Tensor, angle: float, sign: float = 1.0) -> torch.Tensor:
    norm, unit = states.norm(dim=1, keepdim=True), vector / vector.norm()
    along = states / norm
    across = unit - (along @ unit)[:, None] * along
    across = across / across.norm(dim=1, keepdim=True)
    angle = torch.tensor(angle)
    return norm * (angle.cos() * along + sign * angle.sin() * across)


def alike(score: torch.Tensor, success: torch.Tensor, setting: torch.Tensor, tie: float = 0.5) -> float:
    pairs = success[:, None] & ~success & (setting[:, None] == setting)
    difference = score[:, None] - score
    return ((difference > 0) + tie * (difference == 0))[pairs].mean().item()


def averaged(score: torch.Tensor, success: torch.Tensor, setting: torch.Tensor) -> float:
    parts = [alike(*(x[setting == one] for x in (score, success, setting))) for one in (0, 1, 3)]
    return sum(parts) / len(parts)


RIGHT = [
    (exercises.check_turn, turn),
    (exercises.check_alike, alike),
]

WRONG = [
    (exercises.check_turn, lambda x, v, a: turn(x, v, a, -1.0), "turns away"),
    (exercises.check_turn, lambda x, v, a: x + a * v, "the norms were"),
    (
        exercises.check_turn,
        lambda x, v, a: (
            torch.tensor(a).cos() * x + (turn(x, v, a) - torch.tensor(a).cos() * x) / x.norm(dim=1)[:, None]
        ),
        "as long as the state",
    ),
    (exercises.check_turn, lambda x, v, a: turn(x, v, 2 * a), "directions are not"),
    (exercises.check_turn, lambda x, v, a: turn(x, v, a)[0], "one turned state"),
    (exercises.check_alike, lambda score, success, setting: alike(score, success, torch.zeros(9)), "over all pairs"),
    (exercises.check_alike, lambda score, success, setting: alike(score, success, setting, 0.0), "a tie counts half"),
    (exercises.check_alike, lambda score, success, setting: alike(score, success, setting, 1.0), "a tie counts half"),
    (exercises.check_alike, averaged, "do not average"),
    (exercises.check_alike, lambda score, success, setting: 0.9, "was expected"),
]
