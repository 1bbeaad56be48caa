"""Settings are chosen on validation at a bounded price; what is reported comes from the test part."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import austeer as au
from austeer import selection
from austeer.benchmarks import Item
from austeer.tasks import Task

SCORES = {  # of each candidate on validation and test, and its price
    None: ([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0], 1.0),
    "quiet": ([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], 1.1),
    "good": ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], 1.4),
    "loud": ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], 1.6),
}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Gives candidates known scores and prices; returns which was scored on which part."""
    asked = []

    def part_of(name: str, part: str, **_: Any) -> Task:
        return Task(part, "choice", [Item(f"{part} {row}", (" a",), (" b",), "g") for row in range(4)], "here", "None.")

    def score(model: Any, task: Task, steering: Any, template: Any, paid: dict) -> au.Report:
        name = steering and steering.name
        asked.append((task.name, name))
        return au.Report(task, "m", str(name), {"accuracy": torch.tensor(SCORES[name][task.name == "test"])}, 0.5, paid)

    def prices(model: Any, steerings: list) -> list[dict]:
        return [{"perplexity": SCORES[one and one.name][2]} for one in steerings]

    monkeypatch.setattr(selection, "load_task", part_of)
    monkeypatch.setattr(selection, "score", score)
    monkeypatch.setattr(selection, "text_prices", prices)
    monkeypatch.setattr(selection, "price", lambda model, steering, _: prices(model, [steering])[0] | {"whole": 1.0})
    monkeypatch.setattr(selection, "unrelated_to", lambda _: None)
    return asked


def candidates(*names: str) -> dict[str, Any]:
    return {name: SimpleNamespace(name=name) for name in names}


def test_the_best_within_the_price_is_chosen_and_alone_sees_the_test_part(scored: list) -> None:
    found = au.select(None, "sst2", candidates("quiet", "good", "loud"))
    assert found.name == "good"
    assert {name for part, name in scored if part == "test"} == {None, "good"}
    assert [name for part, name in scored if part == "validation"] == [None, "quiet", "good", "loud"]
    assert found.test.price == {"perplexity": 1.4, "whole": 1.0}


def test_the_curse_is_the_gain_on_validation_minus_that_on_test(scored: list) -> None:
    found = au.select(None, "sst2", candidates("quiet", "good"))
    assert found.curse == pytest.approx(0.5 - 0.0)
    said = repr(found)
    assert "2 candidates" in said
    assert "-> " in said
    assert "+0.500" in said.split("curse")[1]


def test_a_task_of_ones_own_comes_in_two_parts(scored: list) -> None:
    parts = tuple(selection.load_task("mine", part) for part in ("validation", "test"))
    found = au.select(None, parts, candidates("quiet", "good"))
    assert found.name == "good"
    assert scored == [
        ("validation", None),
        ("test", None),
        ("validation", "quiet"),
        ("validation", "good"),
        ("test", "good"),
    ]


def test_a_notebook_shows_the_search_as_a_table_and_escapes_names(scored: list, monkeypatch) -> None:
    monkeypatch.setitem(SCORES, "<b>", SCORES["good"])
    shown = au.select(None, "sst2", candidates("quiet", "<b>"))._repr_html_()
    assert "<td>&lt;b&gt; (chosen)</td>" in shown
    assert "<td>quiet</td>" in shown
    assert "winner's curse +0.500" in shown


def test_a_larger_limit_lets_dearer_candidates_in(scored: list) -> None:
    assert au.select(None, "sst2", candidates("quiet", "loud"), limit=2.0).name == "loud"


def test_what_is_known_of_the_unsteered_model_is_not_measured_again(scored: list) -> None:
    first = au.select(None, "sst2", candidates("quiet"))
    scored.clear()
    again = au.select(None, "sst2", candidates("good"), unsteered=first.unsteered)
    assert None not in {name for _, name in scored}
    assert again.curse == pytest.approx(0.5)


def test_candidates_that_all_cost_too_much_are_refused(scored: list) -> None:
    with pytest.raises(ValueError, match=r"least 1\.60"):
        au.select(None, "sst2", candidates("loud"))


def test_no_candidate_is_no_search() -> None:
    with pytest.raises(ValueError, match="No candidate"):
        au.select(None, "sst2", {})


def test_a_real_search_reports_the_test_part(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUSTEER_DATA", raising=False)
    units = au.activation_momentum(model, au.split(au.load_pairs("formality")).train[:32]).top(20)
    push = au.methods.DirectionalAUSteer(units, alpha=6.0)
    found = au.select(model, "formality", {"towards": push, "away": -push}, n=8, limit=5.0)
    assert found.name == "towards"
    assert found.test.task.items == au.load_task("formality", "test", n=8).items
    away, plain, towards = (
        report.mean("margin") for report in (found.searched["away"], found.unsteered[0], found.searched["towards"])
    )
    assert away < plain < towards
    assert "kl on openings" in found.test.price
