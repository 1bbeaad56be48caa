"""Interactive figures that also work in a page without a kernel: every state is made beforehand, links do the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import ipywidgets
from ipywidgets import HTML, Button, FloatSlider, IntSlider, Layout, SelectionSlider, Stack, Textarea, VBox

from austeer.generation import generate
from austeer.steering import Steering


def chooser(panels: Sequence[Sequence[str]], outer: str, inner: str, start: tuple[int, int] = (0, 0)) -> VBox:
    """Show one of many HTML panels, chosen by two sliders.

    Args:
        panels: panels[i][j] is the HTML shown where the outer slider is at i and the inner one at j; every i has as
            many j.
        outer, inner: what the sliders choose, such as "head" and "unit".
        start: where the sliders stand at first.

    Raises:
        ValueError: no panel, or rows of different lengths.
    """
    widths = {len(row) for row in panels}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(f"The rows hold {sorted(widths)} panels; give at least one, and as many in each row.")
    slim, style = Layout(), ipywidgets.HTML().style  # shared: the page's state holds each of them once
    first = IntSlider(start[0], max=len(panels) - 1, description=outer)
    second = IntSlider(start[1], max=widths.pop() - 1, description=inner)
    stacks = [
        Stack([HTML(panel, layout=slim, style=style) for panel in row], selected_index=start[1], layout=slim)
        for row in panels
    ]
    for stack in stacks:
        ipywidgets.jslink((second, "value"), (stack, "selected_index"))
    whole = Stack(stacks, selected_index=start[0], layout=slim)
    ipywidgets.jslink((first, "value"), (whole, "selected_index"))
    return VBox([first, second, whole])


def states(panels: Mapping[str, str], name: str) -> VBox:
    """Show one of some HTML panels, chosen by a slider that stops at their names and begins in the middle.

    Args:
        panels: for each state, such as a strength, the HTML that is shown there.
        name: what the slider chooses, such as "strength".

    Raises:
        ValueError: fewer than 2 panels.
    """
    if len(panels) < 2:
        raise ValueError(f"{len(panels)} panel was given; a slider needs at least 2 to choose from.")
    middle = len(panels) // 2
    slider = SelectionSlider(options=list(panels), index=middle, description=name)
    stack = Stack([HTML(panel) for panel in panels.values()], selected_index=middle)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return VBox([slider, stack])


def playground(model, steering: Steering, opening: str, strongest: float = 2.0, **how) -> VBox:
    """Continue a text of your own at a strength of your own; needs a running kernel, so pages do not show it.

    Args:
        model: a model from `load()`.
        steering: pushed forwards and backwards, up to `strongest` times its own strength.
        opening: the text to begin with; it can be changed.
        strongest: the slider's end.
        how: settings of `generate`.
    """
    text = Textarea(opening, description="opening")
    slider = FloatSlider(1.0, min=-strongest, max=strongest, step=0.1, description="strength")
    button, shown = Button(description="continue"), HTML()

    def run(_) -> None:
        shown.value = escape(text.value + generate(model, [text.value], steering * slider.value, **how)[0])

    button.on_click(run)
    return VBox([text, slider, button, shown])
