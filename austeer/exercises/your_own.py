"""Checks of the exercises of chapter 17."""

from __future__ import annotations

from collections.abc import Callable

from austeer.exercises.verdict import Verdict, call


def check_balance(balance: Callable[[list[str], list[str]], tuple[float, float]]) -> Verdict:
    """Check exercise 17.1: how often both sides end in the same word, and how far apart their mean lengths are."""
    positive = [" It may rain today.", " Perhaps not!", " They could come by train.", " I think so."]
    negative = [" It will rain today.", " No.", " They come by Train.", " He says so?"]
    found = call(balance, list(positive), list(negative))
    if isinstance(found, Verdict):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return Verdict(False, f"it returns {found!r}; two numbers are asked for: a share, and a difference of lengths.")
    same, apart = map(float, found)
    if abs(same - 0.5) < 1e-6 or abs(same - 0.25) < 1e-6:
        return Verdict(False, "'train.' and 'Train.', 'so.' and 'so?' are the same word: drop the mark, mind capitals.")
    if abs(same - 3) < 1e-6:
        return Verdict(False, "it counts the pairs; a share is asked for, so divide by their number.")
    if abs(same - 0.75) > 1e-6:
        return Verdict(False, f"three of four pairs end in the same word, and it gives a share of {same:.2f}.")
    if abs(apart + 2 / 14) < 1e-6 or abs(apart - 2 / 12) < 1e-6:
        return Verdict(False, "the difference is a share of the LONGER side, whichever that is, and not negative.")
    if abs(apart - 0.5) < 1e-6:
        return Verdict(False, "that is the difference in words; divide it by the mean length of the longer side.")
    if abs(apart - 2 / 14) > 1e-6:
        return Verdict(False, f"the means are 3.5 and 3 words, so 0.143 of the longer; it gives {apart:.3f}.")
    turned = balance(list(negative), list(positive))
    if abs(float(turned[1]) - 2 / 14) > 1e-6:
        return Verdict(False, "with the two sides exchanged it gives another difference; it should not mind.")
    return Verdict(True, "three of four end alike, and the lengths are a seventh apart: too much for a real set.")


def check_choose(choose: Callable[[list[float], list[float], float], int | None]) -> Verdict:
    """Check exercise 17.2: the best candidate within a price, the cheaper of two equals, or None."""
    scores, prices = [0.2, 0.9, 0.6, 0.6, 0.1], [1.0, 1.8, 1.4, 1.2, 1.1]
    found = call(choose, list(scores), list(prices), 1.5)
    if isinstance(found, Verdict):
        return found
    if found == 1:
        return Verdict(False, "that candidate costs 1.8, above the limit of 1.5: look only at those within it.")
    if found == 2:
        return Verdict(False, "two candidates reach 0.6; take the cheaper one.")
    if isinstance(found, float):
        return Verdict(False, f"it returns {found}; the candidate's number is asked for, not its score.")
    if found != 3:
        return Verdict(False, f"it returns {found!r}, and 3 was expected: score 0.6 at a price of 1.2.")
    if choose([0.5], [1.5], 1.5) != 0:
        return Verdict(False, "a candidate whose price is just the limit is within it.")
    try:
        nothing = choose([0.5], [2.0], 1.5)
    except Exception as error:  # whatever a reader's code raises is shown, not raised
        return Verdict(
            False, f"where no candidate is within the limit it stops with {type(error).__name__}; return None."
        )
    if nothing is not None:
        return Verdict(False, f"where no candidate is within the limit it returns {nothing!r}; return None.")
    return Verdict(True, "the best that you can afford.")
