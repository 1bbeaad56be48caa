"""Every check passes a right answer, and tells an unwritten one and typical wrong ones apart with a useful sentence."""

import pkgutil
from collections import Counter
from collections.abc import Callable
from importlib import import_module

import answers
import pytest

from austeer import exercises

CHAPTERS = [import_module(f"answers.{found.name}") for found in pkgutil.iter_modules(answers.__path__)]
RIGHT = [answer for chapter in CHAPTERS for answer in chapter.RIGHT]
WRONG = [answer for chapter in CHAPTERS for answer in chapter.WRONG]


def test_every_check_is_tried_with_a_right_answer_and_two_wrong_ones() -> None:
    checks = {check for name, check in vars(exercises).items() if name.startswith("check_")}
    assert checks == {check for check, _ in RIGHT}
    wrong = Counter(check for check, *_ in WRONG)
    assert [check.__name__ for check in checks if wrong[check] < 2] == []


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_a_right_answer_passes(check: Callable, answer: Callable) -> None:
    assert check(answer), check(answer)


@pytest.mark.parametrize(("check", "answer", "says"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(check: Callable, answer: Callable, says: str) -> None:
    verdict = check(answer)
    assert not verdict
    assert says in verdict.says


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_an_unwritten_answer_is_no_error(check: Callable, _: Callable) -> None:
    assert "nothing yet" in check(lambda *arguments: None).says


def test_an_error_in_the_answer_is_shown_and_not_raised() -> None:
    verdict = exercises.check_fold(lambda weight, index, beta, alpha: weight / "2")
    assert not verdict
    assert "TypeError" in verdict.says


def test_a_verdict_escapes_markup() -> None:
    assert "<b>x" not in exercises.Verdict(False, "<b>x")._repr_html_()
