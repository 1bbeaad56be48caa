"""Checks of the exercises of chapter 6."""

from __future__ import annotations

from collections.abc import Callable

import torch

from austeer.exercises.verdict import Verdict, call

_LLAMA_8B = {"layers": 32, "width": 4096, "inner": 14336, "heads": 32, "kv_heads": 8, "vocabulary": 128256}
_WEIGHTS = 8_030_261_248


def check_parameters(parameters: Callable[..., int]) -> Verdict:
    """Check exercise 6.1: how many weights a Llama has, from its shapes."""
    found = call(parameters, *_LLAMA_8B.values())
    if isinstance(found, Verdict):
        return found
    found = int(found)
    layers, width, inner, vocabulary = (_LLAMA_8B[name] for name in ("layers", "width", "inner", "vocabulary"))
    if found == _WEIGHTS:
        return Verdict(True, "8,030,261,248: at two bytes each, the 16 GB that such a model needs.")
    wrong = {
        2 * layers * width * (width - width * 8 // 32): "keys and values have kv_heads heads only, not heads.",
        -vocabulary * width: "the vocabulary is there twice: embedding and unembedding are not tied here.",
        -layers * width * inner: "a gated FFN has three matrices: gate, up and down.",
        -(2 * layers + 1) * width: "only the norms are missing: two vectors per layer, and one at the end.",
    }
    if found - _WEIGHTS in wrong:
        return Verdict(False, wrong[found - _WEIGHTS])
    return Verdict(False, f"for the shapes of an 8B Llama it gives {found:,}, and {_WEIGHTS:,} was expected.")


def check_halving(halving: Callable[[Callable[[list], list], list], list]) -> Verdict:
    """Check exercise 6.2: run rows in batches that fit, halving where the memory is too small."""

    def machine(room: int) -> tuple[Callable[[list], list], list[int]]:
        tried: list[int] = []

        def run(rows: list) -> list:
            tried.append(len(rows))
            if len(tried) > 500:
                raise RuntimeError("it tries for ever")
            if len(rows) > room:
                raise torch.OutOfMemoryError("out of memory")
            return [row * row for row in rows]

        return run, tried

    rows = list(range(37))
    run, tried = machine(5)
    found = call(halving, run, list(rows))
    if isinstance(found, Verdict):
        return found
    if sorted(found) != [row * row for row in rows]:
        return Verdict(False, f"37 rows went in and {len(found)} right results came out; keep both halves.")
    if list(found) != [row * row for row in rows]:
        return Verdict(False, "the results are not in the order of the rows.")
    run, tried = machine(5)
    halving(run, list(rows))
    if max(size for size in tried if size <= 5) < 3:
        return Verdict(False, f"it ran batches of {max(size for size in tried if size <= 5)}, where 4 fit: only halve.")
    if sum(size > 5 for size in tried) > 8:
        return Verdict(False, "each batch fails anew at the full size; remember the size that fitted.")
    run, tried = machine(100)
    halving(run, list(rows))
    if tried != [37]:
        return Verdict(False, "with enough memory one batch is enough.")
    run, tried = machine(0)
    try:
        halving(run, [1, 2])
    except torch.OutOfMemoryError:
        return Verdict(True, "halved until it fits, in order, and an error where one row alone does not fit.")
    except Exception as error:
        return Verdict(False, f"where one row does not fit it stops with {type(error).__name__}: {error}")
    return Verdict(False, "where one row alone does not fit the error must reach the caller.")
