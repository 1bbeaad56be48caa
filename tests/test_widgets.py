"""Widgets are alive without a kernel: every state is there, and browser-side links choose among them."""

import json

import pytest
from ipywidgets import HTML
from ipywidgets.embed import embed_data

from austeer.widgets import chooser

PANELS = [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


def test_every_panel_is_in_its_place() -> None:
    first, second, whole = chooser(PANELS, "head", "unit").children
    assert (first.description, first.min, first.max) == ("head", 0, 1)
    assert (second.description, second.min, second.max) == ("unit", 0, 2)
    assert [[panel.value for panel in stack.children] for stack in whole.children] == PANELS


def test_the_first_state_shows_the_first_panel() -> None:
    *_, whole = chooser(PANELS, "head", "unit").children
    assert whole.selected_index == 0
    assert all(stack.selected_index == 0 for stack in whole.children)


def test_links_run_in_the_browser_from_each_slider_to_its_stacks() -> None:
    chosen = chooser(PANELS, "head", "unit")
    first, second, whole = chosen.children
    models = embed_data([chosen])["manager_state"]["state"].values()
    links = {
        (model["state"]["source"][0], model["state"]["target"][0])
        for model in models
        if model["model_name"] == "LinkModel"
    }
    expected = {(first, whole), *((second, stack) for stack in whole.children)}
    assert {(f"IPY_MODEL_{a.model_id}", f"IPY_MODEL_{b.model_id}") for a, b in expected} <= links


def test_shared_layouts_keep_the_state_small() -> None:
    text = "x" * 200
    chosen = chooser([[text] * 64 for _ in range(9)], "head", "unit")
    state = json.dumps(embed_data([chosen])["manager_state"])
    assert len(state) < 9 * 64 * (len(text) + 700)
    assert sum(isinstance(panel, HTML) for stack in chosen.children[2].children for panel in stack.children) == 576


@pytest.mark.parametrize("panels", [[], [[]], [["a"], ["b", "c"]]])
def test_rows_must_be_alike_and_hold_something(panels: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="as many in each row"):
        chooser(panels, "head", "unit")
