"""Writes what the executed chapters recorded into the pages: results, run times, numbers in the text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from claims import recorded_claims
from nbformat import NotebookNode

PUBLISHED, STATED, RUNS = "<!-- published -->", "<!-- stated -->", "<!-- runs -->"  # lines that are replaced
SPEED, SIDE = "<!-- speed -->", "<!-- side by side -->"
FOUND = re.compile(r"<!-- found (\S+?): (.+?) -->")  # a number in the text: what a chapter found for one of its claims


def fill(
    page: str,
    chapters: Mapping[str, NotebookNode],
    speed: Iterable[Mapping] = (),
    side_by_side: Iterable[Mapping] = (),
) -> str:
    """Puts the tables of the executed chapters, given by address, and of shipped rows into the page."""
    found = {link: claims for link, notebook in chapters.items() if (claims := recorded_claims(notebook))}
    titles = {link: title(chapters[link]) for link in found}
    beside = [
        (f"{row['name']} ([{titles[link]}]({link}))", row["published"], row["source"], f"{row['measured']:.3g}")
        for link, claims in found.items()
        for row in claims["published"]
    ]
    stated = "\n\n".join(
        f"### {titles[link]}\n\n"
        + table(
            ("claim", "stated", "found in this run"),
            [(row["name"], *row["printed"]) for row in claims["values"]]
            + [(row["name"], "holds", "holds" if row["holds"] else "fails") for row in claims["orderings"]],
        )
        for link, claims in found.items()
    )
    numbers = {link.rpartition("/")[2].removesuffix(".html"): found_numbers(claims) for link, claims in found.items()}
    page = FOUND.sub(lambda mark: number_of(numbers, mark[1], mark[2]), page)
    published = table(("quantity", "published", "source", "measured here"), beside) if beside else ""
    page = page.replace(PUBLISHED, published).replace(STATED, stated)
    page = page.replace(RUNS, runs(chapters)).replace(SPEED, ratios(speed))
    return page.replace(SIDE, methods(side_by_side))


def found_numbers(claims: Mapping) -> dict[str, str]:
    """What a run found for each stated number, with as many digits as its tolerance leaves."""
    return {
        row["name"]: f"{row['found']:.{max(0, round(-math.log10(row['tolerance'] or 1)))}f}" for row in claims["values"]
    }


def number_of(numbers: Mapping[str, Mapping[str, str]], chapter: str, claim: str) -> str:
    """The number that a page takes from a chapter; a claim that the chapter does not make is an error."""
    if chapter not in numbers:
        return "(not run)"  # a site of one chapter
    if claim not in numbers[chapter]:
        raise ValueError(f"A page asks {chapter} for {claim!r}, which its claims cell does not record.")
    return numbers[chapter][claim]


def runs(chapters: Mapping[str, NotebookNode]) -> str:
    """How long each chapter's cells ran, and how much memory they took."""
    abouts = {link: notebook.metadata["austeer"] for link, notebook in chapters.items()}
    rows = [
        (f"[{title(chapters[link])}]({link})", f"{about['seconds']:.0f}", f"{about['gigabytes']:.1f}")
        for link, about in abouts.items()
    ]
    total = sum(about["seconds"] for about in abouts.values())
    most = max((about["gigabytes"] for about in abouts.values()), default=0)
    last = ("all, one after the other", f"{total:.0f}", f"{most:.1f}")
    return table(("chapter", "seconds", "gigabytes at most"), [*rows, last])


def ratios(speed: Iterable[Mapping]) -> str:
    """The rows of `make bench`: the time of one way as a multiple of that of another, with its interval."""
    rows = []
    for row in speed:
        middle, low, high = row["ratio"]
        rows.append((row["job"], row["kind"], row["way"], f"{middle:.2f} ({low:.2f} to {high:.2f})"))
    return table(("job", "of what", "way", "ratio of times"), rows)


def methods(rows: Iterable[Mapping]) -> str:
    """The rows of experiments/side_by_side.py: each method's effect at one price, its size, its fit, its cost."""
    lines = []
    for row in rows:
        found = row["effects"].items()
        effects = "; ".join(f"{of} {middle:+.2f} ({low:+.2f} to {high:+.2f})" for of, (middle, low, high) in found)
        size = (f"{row['scalars']:,}", f"{row['numbers']:,}", f"{row['fit seconds']:.0f} s", f"{row['token']:.2f}")
        lines.append((row["cell"]["method"], effects, f"{row['perplexity']:.1f}", *size))
    return table(("method", "effect", "perplexity", "scalars", "numbers", "fit", "token"), lines)


def title(chapter: NotebookNode) -> str:
    """The heading of a chapter."""
    return chapter.cells[0].source.partition("\n")[0].lstrip("# ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
