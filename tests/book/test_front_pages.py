"""What the front pages quote is what the chapters print: the example texts come out of chapter 0."""

import re

import nbformat
import pytest
from build import executed_path
from notebooks import ROOT


def quoted(page: str) -> list[str]:
    """The continuations in the example's table."""
    return re.findall(r"^\| (?:pushed|left)[^|]*\| \.\.\. (.*) \|$", (ROOT / page).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_example_is_what_chapter_0_prints(page: str) -> None:
    notebook = nbformat.read(executed_path(ROOT / "book" / "00_start.ipynb", ROOT), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout").replace("\\'", "'")
    texts = quoted(page)
    assert len(texts) == 3
    for text in texts:
        assert text in printed, f"{page} quotes {text!r}, which chapter 0 does not print"


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_nothing_is_left_to_fill_in(page: str) -> None:
    assert "%%" not in (ROOT / page).read_text("utf-8")


def test_no_sentence_is_lost_as_a_comment() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md", *(ROOT / "book").glob("*.md")]
    texts = {page.name: page.read_text("utf-8") for page in pages}
    for path in (ROOT / "book").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        texts[path.name] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    lost = [name for name, text in texts.items() if re.search(r"^\s*%", text, re.MULTILINE)]
    assert not lost, f"{', '.join(lost)}: MyST drops a line that begins with %"
