"""What a check says, and how a reader's function is run."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
        return f"<p style='border-left:4px solid {colour};padding-left:8px'><b>{mark}:</b> {html.escape(self.says)}</p>"


def call(answer: Callable, *arguments) -> Any:
    """Run a reader's function; an error or an unwritten body becomes a verdict that says so."""
    try:
        found = answer(*arguments)
    except Exception as error:  # whatever a reader's code raises is shown, not raised
        return Verdict(False, f"your function stopped with {type(error).__name__}: {error}")
    if found is None or found is ...:
        return Verdict(False, "your function returns nothing yet; write its body.")
    return found
