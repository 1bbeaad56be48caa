from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer import exercises


def euler(velocity: Callable[[Tensor], Tensor], x: Tensor, time: float, steps: int) -> Tensor:
    for _ in range(steps):
        x = x + time / steps * velocity(x)
    return x


def euler_in_place(velocity: Callable[[Tensor], Tensor], x: Tensor, time: float, steps: int) -> Tensor:
    for _ in range(steps):
        x += time / steps * velocity(x)
    return x


def euler_from_the_start(velocity: Callable[[Tensor], Tensor], x: Tensor, time: float, steps: int) -> Tensor:
    return x + time * velocity(x)


def euler_twice(velocity: Callable[[Tensor], Tensor], x: Tensor, time: float, steps: int) -> Tensor:
    for _ in range(steps):
        velocity(x)
        x = x + time / steps * velocity(x)
    return x


def sketch_matrix(places: Tensor, signs: Tensor, weight: Tensor) -> Tensor:
    land = (places[0][:, None] + places[1]) % len(weight)
    return signs[0][:, None] * signs[1] * weight[land]


RIGHT = [
    (exercises.check_euler, euler),
    (exercises.check_sketch_matrix, sketch_matrix),
]

WRONG = [
    (exercises.check_euler, euler_in_place, "changes the x"),
    (exercises.check_euler, euler_from_the_start, "at the point reached"),
    (exercises.check_euler, lambda v, x, time, steps: euler(v, x, time * steps, steps), "time / steps"),
    (exercises.check_euler, lambda v, x, time, steps: euler(v, x, time, 2 * steps), "a quarter of the time"),
    (exercises.check_euler, lambda v, x, time, steps: euler(v, x, time, steps)[0], "shape"),
    (exercises.check_euler, euler_twice, "one time a step"),
    (
        exercises.check_sketch_matrix,
        lambda places, signs, weight: weight[(places[0][:, None] + places[1]) % len(weight)],
        "signs are missing",
    ),
    (
        exercises.check_sketch_matrix,
        lambda places, signs, weight: torch.outer(weight[places[0]], weight[places[1]]),
        "where does the product",
    ),
    (exercises.check_sketch_matrix, lambda places, signs, weight: torch.outer(weight, weight), "entries"),
]
