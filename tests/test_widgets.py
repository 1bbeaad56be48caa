"""Widgets are alive without a kernel: every state is there, and browser-side links choose among them."""

import html
import json

import pytest
from ipywidgets import HTML
from ipywidgets.embed import embed_data

import austeer as au
from austeer.widgets import chooser, playground, states

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


def test_the_sliders_may_stand_elsewhere_at_first() -> None:
    first, second, whole = chooser(PANELS, "head", "unit", (1, 2)).children
    assert (first.value, second.value, whole.selected_index) == (1, 2, 1)
    assert all(stack.selected_index == 2 for stack in whole.children)


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


def test_a_slider_of_states_stops_at_their_names_and_shows_their_panels() -> None:
    slider, stack = states({"-8": "sad", "0": "so", "8": "happy"}, "strength").children
    assert (slider.description, slider.options) == ("strength", ("-8", "0", "8"))
    assert [panel.value for panel in stack.children] == ["sad", "so", "happy"]
    assert (slider.index, stack.selected_index) == (1, 1)


def test_the_slider_of_states_is_linked_in_the_browser() -> None:
    shown = states({"1": "a", "2": "b"}, "k")
    slider, stack = shown.children
    models = embed_data([shown])["manager_state"]["state"].values()
    links = [model["state"] for model in models if model["model_name"] == "LinkModel"]
    ends = [f"IPY_MODEL_{slider.model_id}", "index"], [f"IPY_MODEL_{stack.model_id}", "selected_index"]
    assert ends in [(link["source"], link["target"]) for link in links]


def test_one_state_is_no_choice() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        states({"1": "a"}, "k")


def test_the_playground_continues_what_was_typed_at_the_chosen_strength(tiny, some_units) -> None:
    model = tiny("llama")
    steering = au.methods.DirectionalAUSteer(some_units(model, "attention"), alpha=1.0)
    text, slider, button, shown = playground(model, steering, "A bee", max_new_tokens=4).children
    text.value, slider.value = "<b>A tree", -1.5
    button.click()
    expected = "<b>A tree" + au.generate(model, ["<b>A tree"], steering * -1.5, max_new_tokens=4)[0]
    assert html.unescape(shown.value) == expected
    assert "<" not in shown.value
