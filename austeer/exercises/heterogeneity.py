"""Checks of the exercises of chapter 2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_normalised_kl(normalised_kl: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 2.1: KL of each row to the last, as a share of the first row's."""
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]]).log()
    found = call(normalised_kl, log_p)
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) != (3,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per row is asked for, (3,).")
    forwards = (log_p.exp() * (log_p - log_p[-1])).sum(-1)
    backwards = (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1)
    if torch.allclose(found, forwards, atol=1e-5):
        return Verdict(False, "these are the distances themselves; divide by the first, so that the curve starts at 1.")
    if torch.allclose(found, backwards / backwards[0], atol=1e-5):
        return Verdict(False, "the two distributions are swapped: the weights in the sum are those of the row itself.")
    if not torch.allclose(found, forwards / forwards[0], atol=1e-5):
        return Verdict(False, f"on three small distributions it gives {found.tolist()}; the input is in logarithms.")
    return Verdict(True, "it starts at 1 and ends at 0, and in between it says how far the limit is.")


def check_discoveries(discoveries: Callable[[Tensor, float], Tensor]) -> Verdict:
    """Check exercise 2.2: the rule of Benjamini and Hochberg."""
    p = torch.tensor([0.9, 0.001, 0.019, 0.045, 0.012])
    found = call(discoveries, p, 0.05)
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) != (5,) or found.dtype != torch.bool:
        return Verdict(False, "give one True or False per test, in the order of the tests: a boolean tensor, (5,).")
    if found.tolist() == (p < 0.05 / 5).tolist():
        return Verdict(False, "that is Bonferroni's rule, p < q / n for all; here the bar rises with the rank.")
    if found.tolist() == (p < 0.05).tolist():
        return Verdict(False, "that is p < q for each test alone; with many tests the bar for rank j is q j / n.")
    if found.tolist() != [False, True, True, False, True]:
        return Verdict(False, f"for p = {[round(v, 3) for v in p.tolist()]}, q = 0.05 it gives {found.tolist()}.")
    stepped = discoveries(torch.tensor([0.021, 0.022, 0.024]), 0.025)
    if stepped.tolist() != [True, True, True]:
        return Verdict(False, "p = 0.021, 0.022, 0.024 at q = 0.025 all pass: look for the LARGEST rank below its bar.")
    nothing = call(discoveries, torch.tensor([0.5, 0.7, 0.6]), 0.05)
    if isinstance(nothing, Verdict) or nothing.any():
        return Verdict(False, "where no p value is below its bar, nothing is kept: return all False.")
    return Verdict(True, "the largest rank below its bar, and everything before it.")


def check_curse(curse: Callable[[Tensor, Tensor, int], tuple[float, float]]) -> Verdict:
    """Check exercise 2.3: what the k best on one set show there, and on another."""
    choice = torch.tensor([[0.0, 4.0, 1.0, 3.0], [0.0, 2.0, 1.0, 5.0]])
    report = torch.tensor([[9.0, 1.0, 0.0, 2.0], [9.0, 1.0, 0.0, 0.0]])
    found = call(curse, choice, report, 2)
    if isinstance(found, Verdict):
        return found
    try:
        first, second = (float(value) for value in found)
    except (TypeError, ValueError):
        return Verdict(False, "it should return two numbers: the mean where the units were chosen, and elsewhere.")
    if abs(second - 5.0) < 1e-6:
        return Verdict(False, "the second number chooses again on the report set; use the units chosen on the first.")
    if abs(first - 3.5) > 1e-6 or abs(second - 1.0) > 1e-6:
        return Verdict(False, f"on a small example it gives {first:.2f} and {second:.2f}; 3.50 and 1.00 were expected.")
    return Verdict(True, "one choice, two readings; the difference is the winner's curse.")
