"""The claims cell asserts on the default model, only shows on another one, and records what it found."""

from typing import Any

import pytest

import austeer as au
from austeer import claims


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr(claims, "display", lambda data, raw: outputs.append(data))
    return outputs


def test_true_claims_pass_and_are_recorded(model: Any, shown: list[dict[str, Any]]) -> None:
    au.claims.check_claims(model, values={"swing": (0.9, 0.92, 0.05)}, orderings={"more is more": True})
    record = shown[-1][claims.MIME]
    [row] = record["values"]
    assert row == {"name": "swing", "stated": 0.9, "found": 0.92, "tolerance": 0.05, "printed": ["0.9", "0.92"]}
    assert record["orderings"] == [{"name": "more is more", "holds": True}]
    assert record["published"] == []
    assert record["asserted"] is True


def test_published_figures_are_recorded_and_not_asserted(model: Any, shown: list[dict[str, Any]]) -> None:
    au.claims.check_claims(model, published={"accuracy": ("99 % (a large model)", "a paper", 0.1)})
    assert shown[-1][claims.MIME]["published"] == [
        {"name": "accuracy", "published": "99 % (a large model)", "source": "a paper", "measured": 0.1}
    ]


@pytest.mark.parametrize("found", [0.96, float("nan")])
def test_a_false_value_fails_by_name(model: Any, shown: list[dict[str, Any]], found: float) -> None:
    with pytest.raises(AssertionError, match="swing"):
        au.claims.check_claims(model, values={"swing": (0.9, found, 0.05)})


def test_a_false_ordering_fails_by_name(model: Any, shown: list[dict[str, Any]]) -> None:
    with pytest.raises(AssertionError, match="more is more"):
        au.claims.check_claims(model, orderings={"more is more": False})


def test_another_model_only_shows(tiny: Any, shown: list[dict[str, Any]]) -> None:
    au.claims.check_claims(tiny("llama"), values={"swing": (0.9, 0.1, 0.05)})
    assert shown[-1][claims.MIME]["asserted"] is False
    assert "0.1" in shown[0]["text/html"]


def test_names_are_escaped(tiny: Any, shown: list[dict[str, Any]]) -> None:
    au.claims.check_claims(tiny("llama"), orderings={"a < b": True})
    assert "a &lt; b" in shown[0]["text/html"]


def test_a_count_is_shown_with_all_of_its_digits() -> None:
    numbers = [63361, 17280.4, 999.96, 0.00001234, -2500, 0]
    assert [claims.shown(number) for number in numbers] == ["63,361", "17,280", "1000", "1.234e-05", "-2,500", "0"]
