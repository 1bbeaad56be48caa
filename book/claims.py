"""Compares the numbers that the prose of a chapter states with those that its last cell recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nbformat import NotebookNode
from notebooks import FENCED, INLINE_CODE, LINK_TEXT, tags

MIME = "application/vnd.austeer.claims+json"

_NAMED = (
    "exercise|equation|eq|eq\\.|section|chapter|figure|table|version|arxiv|doi"
    "|python|torch|transformers|nnsight|llama|qwen|gemma|gpt"
)
_LABEL = r"\(?\d+(?:\.\d+)*\)?"

# What is no statement about a result, in the order in which it is taken out.
NOT_PROSE = (
    re.compile(r"^.*\[Open in Colab\].*$", re.MULTILINE),  # the head's line of minutes and links
    FENCED,
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    INLINE_CODE,
    re.compile(r"(?<![\\$])\$(?![\s$])(?:\\.|[^$\\\n]|\n(?!\n))*?(?<![\s\\])\$(?!\d)"),
    re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL),
    LINK_TEXT,
    re.compile(r"https?://\S+"),
    re.compile(r"<!--.*?-->|</?[A-Za-z][^>]*>", re.DOTALL),
    # "## 3.1 Ranking", "## Exercise 3.1: ..."
    re.compile(r"^#+[ \t]*\d+(?:\.\d+)*", re.MULTILINE),
    # "equations 3.1, 3.2 and 3.3"
    re.compile(rf"(?:\b(?:{_NAMED})s|§§)\s*{_LABEL}(?:(?:\s*(?:,|–|-|and|to|or)\s*)+{_LABEL})*", re.IGNORECASE),
    # "Exercise 3.1", "equation (3.1)", "version 0.1", "arXiv 2602.04428", "Llama 3.1"
    re.compile(rf"(?:\b(?:{_NAMED})|§):?\s*\(?\d[\w./]*\)?", re.IGNORECASE),
    # "SmolLM2-1.7B"
    re.compile(r"\b[A-Za-z][\w.]*-\d[\w.-]*"),
)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
# A number with its sign, its exponent and its percent sign, if it has them; "2.13.0" and "v0.1" are none.
NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-−+±])?(?P<digits>{DIGITS})(?!\d|\.\d)(?:e(?P<exponent>[-+]?\d+))?(?P<percent>\s?%)?"
)
# "5 to 10 %", "5–10 %": the percent sign belongs to both.
RANGE = re.compile(rf"({DIGITS})(\s*(?:–|-|to|and|or)\s*)(?=[-−+]?{DIGITS}\s?%)")


@dataclass(frozen=True)
class Stated:
    """A number as the prose prints it."""

    text: str
    value: float
    decimals: int
    sign: str
    percent: bool

    def equals(self, recorded: float) -> bool:
        """Whether a recorded value is this number at its printed precision; a sign counts only where it is printed."""
        if self.sign in ("", "±"):
            recorded = abs(recorded)
        value = -self.value if self.sign in ("-", "−") else self.value
        half = 0.5 * 10.0**-self.decimals * (1 + 1e-9)
        scales = (1.0, 100.0) if self.percent else (1.0,)
        return any(abs(recorded * scale - value) <= half + 1e-12 for scale in scales)


def stated_numbers(markdown: str) -> list[Stated]:
    """The numbers of a Markdown text that have a decimal point or a percent sign and state a result."""
    for pattern in NOT_PROSE:
        markdown = pattern.sub(" ", markdown)
    markdown = RANGE.sub(r"\1 %\2", markdown)
    found = []
    for match in NUMBER.finditer(markdown):
        digits = match["digits"].replace(",", "")
        if "." in digits or match["percent"]:
            exponent = int(match["exponent"] or 0)
            decimals = len(digits.partition(".")[2]) - exponent
            value = float(f"{digits}e{exponent}")
            found.append(Stated(match[0].strip(), value, decimals, match["sign"] or "", bool(match["percent"])))
    return found


def unrecorded(notebook: NotebookNode, recorded: Iterable[float]) -> list[str]:
    """The numbers of a chapter's prose that no recorded value equals, with the cell that states them."""
    recorded = list(recorded)
    return [
        f"cell {number} states {stated.text}, which the claims cell does not record"
        for number, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "markdown" and "published" not in tags(cell)
        for stated in stated_numbers(cell.source)
        if not any(stated.equals(value) for value in recorded)
    ]


def recorded_claims(executed: NotebookNode) -> dict | None:
    """What the last code cell of an executed chapter recorded, or None."""
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    for output in code[-1].outputs if code else ():
        if MIME in output.get("data", {}):
            return output.data[MIME]
    return None


def broken(claims: dict) -> list[str]:
    """The recorded claims that do not hold."""
    found = [
        f"{claim['name']}: stated {claim['stated']}, found {claim['found']}, tolerance {claim['tolerance']}"
        for claim in claims["values"]
        if not abs(claim["found"] - claim["stated"]) <= claim["tolerance"]
    ]
    found += [f"{claim['name']}: does not hold" for claim in claims["orderings"] if not claim["holds"]]
    return found if claims["asserted"] else [*found, "the run asserted nothing, as if it had another model"]
