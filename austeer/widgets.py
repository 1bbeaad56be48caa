"""Interactive figures that also work in a page without a kernel: every state is made beforehand, links do the rest."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
from ipywidgets import HTML, IntSlider, Layout, Stack, VBox


def chooser(panels: Sequence[Sequence[str]], outer: str, inner: str) -> VBox:
    """Show one of many HTML panels, chosen by two sliders.

    Args:
        panels: panels[i][j] is the HTML shown where the outer slider is at i and the inner one at j; every i has as
            many j.
        outer, inner: what the sliders choose, such as "head" and "unit".

    Raises:
        ValueError: no panel, or rows of different lengths.
    """
    widths = {len(row) for row in panels}
    if len(widths) != 1 or widths == {0}:
        raise ValueError(f"The rows hold {sorted(widths)} panels; give at least one, and as many in each row.")
    slim, style = Layout(), ipywidgets.HTML().style  # shared: the page's state holds each of them once
    first = IntSlider(max=len(panels) - 1, description=outer)
    second = IntSlider(max=widths.pop() - 1, description=inner)
    stacks = [
        Stack([HTML(panel, layout=slim, style=style) for panel in row], selected_index=0, layout=slim)
        for row in panels
    ]
    for stack in stacks:
        ipywidgets.jslink((second, "value"), (stack, "selected_index"))
    whole = Stack(stacks, selected_index=0, layout=slim)
    ipywidgets.jslink((first, "value"), (whole, "selected_index"))
    return VBox([first, second, whole])
