from __future__ import annotations

from collections.abc import Callable

import torch

from austeer import exercises


def parameters(layers: int, width: int, inner: int, heads: int, kv_heads: int, vocabulary: int) -> int:
    attention = 2 * width * width + 2 * width * width * kv_heads // heads
    return layers * (attention + 3 * width * inner + 2 * width) + 2 * vocabulary * width + width


def halving(run: Callable[[list], list], rows: list) -> list:
    found, size = [], len(rows)
    while len(found) < len(rows):
        try:
            found += run(rows[len(found) : len(found) + size])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
    return found


def recursive(run: Callable[[list], list], rows: list) -> list:
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
        middle = len(rows) // 2
        return recursive(run, rows[:middle]) + recursive(run, rows[middle:])


def forgetful(run: Callable[[list], list], rows: list) -> list:
    found = []
    while len(found) < len(rows):
        size = len(rows) - len(found)
        while True:
            try:
                found += run(rows[len(found) : len(found) + size])
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = -(-size // 2)
    return found


def one_half(run: Callable[[list], list], rows: list) -> list:
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        return one_half(run, rows[: len(rows) // 2])


def swallowed(run: Callable[[list], list], rows: list) -> list:
    try:
        return halving(run, rows)
    except torch.OutOfMemoryError:
        return []


RIGHT = [
    (exercises.check_parameters, parameters),
    (exercises.check_halving, halving),
    (exercises.check_halving, recursive),
]

WRONG = [
    (exercises.check_parameters, lambda *s: parameters(*s[:4], s[3], s[5]), "kv_heads"),
    (exercises.check_parameters, lambda *s: parameters(*s) - s[5] * s[1], "not tied"),
    (exercises.check_parameters, lambda *s: parameters(*s) - s[0] * s[1] * s[2], "three matrices"),
    (exercises.check_parameters, lambda *s: parameters(*s) - 65 * s[1], "norms"),
    (exercises.check_parameters, lambda *s: 7_000_000_000, "was expected"),
    (exercises.check_halving, one_half, "both halves"),
    (exercises.check_halving, lambda run, rows: halving(run, rows[::-1]), "order"),
    (exercises.check_halving, lambda run, rows: [run([row])[0] for row in rows], "only halve"),
    (exercises.check_halving, forgetful, "remember"),
    (exercises.check_halving, lambda run, rows: halving(run, rows[:5]) + halving(run, rows[5:]), "one batch"),
    (exercises.check_halving, swallowed, "reach the caller"),
]
