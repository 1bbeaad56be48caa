"""`check_*`: is a reader's answer right, or how is it wrong; a verdict is shown, a run is never stopped."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """What a check says; true if the answer is right."""

    right: bool
    says: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.says}"

    def _repr_html_(self) -> str:
        colour = "#2e7d32" if self.right else "#b45309"
        mark = "Right" if self.right else "Not yet"
        return f"<p style='border-left:4px solid {colour};padding-left:8px'><b>{mark}.</b> {html.escape(self.says)}</p>"


def check_swing(swing: Callable[[list[str], list[str]], float]) -> Verdict:
    """Check exercise 0.1: mean sentiment of the one list minus that of the other."""
    happy, sad = ["I love this wonderful day.", "A table."], ["I hate this.", "A sad, awful day."]
    found = _call(swing, happy, sad)
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
    found = _call(units_per_layer, units)
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


def check_head_writes(head_writes: Callable[[Tensor, Tensor, int], Tensor]) -> Verdict:
    """Check exercise 1.1: what each head writes, from activations and the output projection."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, generator=generator), torch.randn(5, 6, generator=generator)
    found = _call(head_writes, x, weight, 3)
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) == (5, 3):
        return Verdict(False, "it returns shape (5, 3); one row per head is asked for, (3, 5): transpose.")
    if tuple(found.shape) != (3, 5):
        return Verdict(False, f"for 3 heads and hidden size 5 it returns shape {tuple(found.shape)}, not (3, 5).")
    pieces = weight * x
    if torch.allclose(found, pieces.unflatten(1, (-1, 3)).sum(1).T, atol=1e-5):
        return Verdict(False, "unit i went to head i modulo 3; heads own blocks of neighbours: units 0 and 1, 2 and 3.")
    if not torch.allclose(found.sum(0), weight @ x, atol=1e-5):
        return Verdict(False, "its rows do not sum to W x: each unit must be counted once, slice times activation.")
    if not torch.allclose(found, pieces.unflatten(1, (3, -1)).sum(2).T, atol=1e-5):
        return Verdict(False, "the rows sum to W x, but the units are given to the wrong heads.")
    return Verdict(True, "each head is the sum of its own units, and the heads sum to W x.")


def check_contributions(contributions: Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]) -> Verdict:
    """Check exercise 1.2: each unit's direct contribution to one logit."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, generator=generator), torch.randn(5, 6, generator=generator)
    gain, row, rho = torch.rand(5, generator=generator) + 0.5, torch.randn(5, generator=generator), 3.0
    found = _call(contributions, x, weight, gain, rho, row)
    if isinstance(found, Verdict):
        return found
    right = x * ((gain * row / rho) @ weight)
    if tuple(found.shape) != (6,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per unit is asked for, (6,).")
    if torch.allclose(found, right * rho, atol=1e-5):
        return Verdict(False, "everything is rho times too large: the norm divides by rho.")
    if torch.allclose(found, x * ((row / rho) @ weight), atol=1e-5):
        return Verdict(False, "the gain gamma is missing: the norm multiplies every dimension by it.")
    if torch.allclose(found, (gain * row / rho) @ weight, atol=1e-5):
        return Verdict(False, "that is what the slices could add; multiply by the activations x.")
    if not torch.allclose(found, right, atol=1e-5):
        return Verdict(False, f"on a small example they sum to {found.sum():.3f}, and {right.sum():.3f} was expected.")
    return Verdict(True, "the contributions sum to the part of the logit that this block wrote.")


def check_scale_output(scale_output: Callable[[Tensor, int, float], Tensor]) -> Verdict:
    """Check exercise 1.3: the weight edit that scales one output dimension of a down projection."""
    weight = torch.arange(1.0, 13.0).view(3, 4)
    before = weight.clone()
    found = _call(scale_output, weight, 1, 2.0)
    if isinstance(found, Verdict):
        return found
    if not torch.equal(weight, before):
        return Verdict(False, "it changes the matrix that it was given; work on a copy (D.clone()).")
    if tuple(found.shape) != (3, 4):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; the new matrix is (3, 4), as the old one.")
    column, row = weight.clone(), weight.clone()
    column[:, 1] *= 2
    row[1] *= 2
    if torch.equal(found, column):
        return Verdict(False, "that scales column i, which is neuron i; an output dimension is a row of D.")
    if not torch.equal(found, row):
        return Verdict(False, "y_i is the sum of D_ij a_j over j: multiply all of row i, and nothing else, by s.")
    return Verdict(True, "row i carries the factor, so y_i does, for every text.")


def check_normalised_kl(normalised_kl: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 2.1: KL of each row to the last, as a share of the first row's."""
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]]).log()
    found = _call(normalised_kl, log_p)
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
    p = torch.tensor([0.9, 0.001, 0.019, 0.012, 0.045])
    found = _call(discoveries, p, 0.05)
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) != (5,) or found.dtype != torch.bool:
        return Verdict(False, "give one True or False per test, in the order of the tests: a boolean tensor, (5,).")
    if found.tolist() == (p < 0.05 / 5).tolist():
        return Verdict(False, "that is Bonferroni's rule, p < q / n for all; here the bar rises with the rank.")
    if found.tolist() == (p < 0.05).tolist():
        return Verdict(False, "that is p < q for each test alone; with many tests the bar for rank j is q j / n.")
    if found.tolist() != [False, True, True, True, False]:
        return Verdict(False, f"for p = {[round(v, 3) for v in p.tolist()]}, q = 0.05 it gives {found.tolist()}.")
    stepped = discoveries(torch.tensor([0.021, 0.022, 0.024]), 0.025)
    if stepped.tolist() != [True, True, True]:
        return Verdict(False, "p = 0.021, 0.022, 0.024 at q = 0.025 all pass: look for the LARGEST rank below its bar.")
    nothing = _call(discoveries, torch.tensor([0.5, 0.7, 0.6]), 0.05)
    if isinstance(nothing, Verdict) or nothing.any():
        return Verdict(False, "where no p value is below its bar, nothing is kept: return all False.")
    return Verdict(True, "the largest rank below its bar, and everything before it.")


def check_curse(curse: Callable[[Tensor, Tensor, int], tuple[float, float]]) -> Verdict:
    """Check exercise 2.3: what the k best on one set show there, and on another."""
    choice = torch.tensor([[0.0, 4.0, 1.0, 3.0], [0.0, 2.0, 1.0, 5.0]])
    report = torch.tensor([[9.0, 1.0, 0.0, 2.0], [9.0, 1.0, 0.0, 0.0]])
    found = _call(curse, choice, report, 2)
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


def check_overlap(overlap: Callable[[Tensor, Tensor, int], float]) -> Verdict:
    """Check exercise 3.1: the share of the top k by |beta| that two score tables have in common."""
    first = torch.tensor([[0.9, -0.8, 0.1], [0.2, 0.7, -0.3]])
    second = torch.tensor([[0.9, 0.1, -0.2], [-0.8, 0.7, 0.3]])
    found = _call(overlap, first, second, 3)
    if isinstance(found, Verdict):
        return found
    found = float(found)
    if abs(found - 2) < 1e-6:
        return Verdict(False, "it gives the number of common units; divide by k for the share.")
    if abs(found - 2 / 3) > 1e-6:
        return Verdict(False, f"on a small example it gives {found:.3f}; 2 of the top 3 agree, so 0.667 was expected.")
    third = torch.tensor([[-0.9, 0.1, 0.2], [0.8, -0.7, 0.3]])
    if abs(float(overlap(second, third, 3)) - 1) > 1e-6:
        return Verdict(False, "with all signs turned it should still be 1: rank by |beta|, not by beta.")
    if abs(float(overlap(first, first.T.contiguous().T, 2)) - 1) > 1e-6:
        return Verdict(False, "a table should agree with itself completely.")
    return Verdict(True, "the share of the top k that both tables choose.")


def check_null_by_pairs(null_by_pairs: Callable[[Tensor, torch.Generator], float]) -> Verdict:
    """Check exercise 3.2: the largest |beta| when each pair is swapped on its own coin."""
    differences = torch.ones(400, 1, 3)
    found = _call(null_by_pairs, differences, torch.Generator().manual_seed(0))
    if isinstance(found, Verdict):
        return found
    draws = [float(null_by_pairs(differences, torch.Generator().manual_seed(seed))) for seed in range(40)]
    if max(draws) > 1.0001:
        return Verdict(False, f"it gives {max(draws):.3f}, but |beta| is a share of pairs: divide by their number.")
    if min(draws) > 0.99:
        return Verdict(False, "400 pairs that all agree still give 1: the sides are not swapped.")
    if len(set(draws)) == 1:
        return Verdict(False, "every seed gives the same value: draw the coins from the generator that is passed in.")
    if max(draws) > 0.7:
        return Verdict(False, "some draws swap far more than half of the pairs together: one coin for each pair.")
    if min(draws) < 0.499:
        return Verdict(False, f"it gives {min(draws):.3f}; without ties |beta| = max(r+, r-) is never below 0.5.")
    signs = torch.ones(400, 1, 2)
    signs[:, :, 1] = -1
    if abs(float(null_by_pairs(signs, torch.Generator().manual_seed(1))) - float(
        null_by_pairs(signs[..., :1], torch.Generator().manual_seed(1))
    )) > 1e-6:  # fmt: skip
        return Verdict(False, "mirror-image units get different coins: swap a whole pair, all units at once.")
    return Verdict(True, "one coin a pair, the same for all units, and the largest |beta| that is left.")


def check_fold(fold: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Verdict:
    """Check exercise 4.1: fold x_i <- x_i (1 + alpha beta_i) into a weight matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    index, beta = torch.tensor([1, 4]), torch.tensor([0.9, -0.8], dtype=torch.float64)
    before = weight.clone()
    found = _call(fold, weight, index, beta, 5.0)
    if isinstance(found, Verdict):
        return found
    if not torch.equal(weight, before):
        return Verdict(False, "it changes the matrix that it was given; work on a copy (weight.clone()).")
    if tuple(found.shape) != (4, 6):
        return Verdict(
            False, f"it returns shape {tuple(found.shape)}; the new matrix has the shape of the old, (4, 6)."
        )
    steered = x.clone()
    steered[:, index] *= 1 + 5.0 * beta
    if torch.allclose(x @ found.T, steered @ weight.T):
        return Verdict(True, "the folded matrix gives on x what the old one gives on the steered x.")
    only = weight.clone()
    only[:, index] *= 5.0 * beta
    if torch.allclose(found, only):
        return Verdict(False, "the columns are multiplied by alpha beta; the rule multiplies by 1 + alpha beta.")
    return Verdict(False, "the folded matrix on x is not the old one on the steered x: scale columns W[:, i].")


def check_right_way(right_way: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 4.2: the share of texts in which the multiplicative rule pushes a unit to its positive side."""
    x = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, -3.0], [0.5, 1.0, -1.0], [4.0, -2.0, -2.0]])
    beta = torch.tensor([0.9, 0.8, -0.7])
    found = _call(right_way, x, beta)
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (3,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one share per unit is asked for, (3,).")
    if torch.allclose(found, torch.tensor([1.0, 0.25, 0.75])):
        return Verdict(
            False,
            "where beta < 0 the right way is down: compare the sign of the push, beta x, with the sign of beta.",
        )
    if not torch.allclose(found, torch.tensor([1.0, 0.25, 0.25])):
        return Verdict(False, f"on a small example it gives {found.tolist()}, and [1.0, 0.25, 0.25] was expected.")
    return Verdict(True, "the push alpha beta x has beta's sign exactly where x > 0.")


def check_mcnemar(mcnemar: Callable[[Tensor, Tensor], float]) -> Verdict:
    """Check exercise 5.1: the exact two-sided p of a paired comparison of right and wrong answers."""
    before, after = torch.zeros(40), torch.zeros(40)
    before[:12], after[3:14], after[30:39] = 1, 1, 1  # 3 lost, 11 won
    found = _call(mcnemar, before.bool(), after.bool())
    if isinstance(found, Verdict):
        return found
    found, p = float(found), 2 * sum(math.comb(14, k) for k in range(4)) / 2**14
    if abs(found - p) < 1e-6:
        worse = float(mcnemar(after.bool(), before.bool()))
        if abs(worse - p) > 1e-6:
            return Verdict(False, "with the two turned round it gives another p; a two-sided test does not mind.")
        if not abs(float(mcnemar(before.bool(), before.bool())) - 1) < 1e-6:
            return Verdict(False, "where nothing changes, p is 1.")
        return Verdict(True, "only the items that changed count, and each is a fair coin if nothing is going on.")
    if abs(found - p / 2) < 1e-6:
        return Verdict(False, "this is one-sided: a loss as large would have surprised as much, so double it.")
    if found > 0.3:
        return Verdict(False, "all items seem to count; those that are right, or wrong, both times say nothing.")
    return Verdict(False, f"with 11 answers won and 3 lost it gives {found:.4f}, and {p:.4f} was expected.")


def check_calibrated(calibrated: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 5.2: which label each item gets when a label's popularity over all items is taken off."""
    log_p = torch.tensor([[-1.0, -4.0, -2.0], [-2.0, -3.0, -2.5], [-1.5, -4.5, -1.8], [-1.5, -3.7, -2.9]])
    found = _call(calibrated, log_p.clone())
    if isinstance(found, Verdict):
        return found
    found, right = torch.as_tensor(found), (log_p - log_p.mean(0)).argmax(1)
    if tuple(found.shape) != (4,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one label's number per item is asked for, (4,).")
    if torch.equal(found.long(), log_p.argmax(1)):
        return Verdict(False, "every item gets its likeliest label: take off each label's mean over all items.")
    if not torch.equal(found.long(), right):
        return Verdict(False, f"on four items it gives {found.tolist()}, and {right.tolist()} was expected.")
    return Verdict(True, "a label wins where it is likelier than it usually is.")


def _call(answer: Callable, *arguments) -> Any:
    """Run a reader's function; an error or an unwritten body becomes a verdict that says so."""
    try:
        found = answer(*arguments)
    except Exception as error:  # whatever a reader's code raises is shown, not raised
        return Verdict(False, f"your function stopped with {type(error).__name__}: {error}")
    if found is None or found is ...:
        return Verdict(False, "your function returns nothing yet; write its body.")
    return found
