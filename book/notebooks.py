"""The normal form of the committed notebooks, and the rules that their cells keep."""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
CELL_METADATA = ("cellView", "jupyter", "mystnb", "tags")
CODE_WIDTH = 88  # What a page of 1280 pixels shows without scrolling.
ALT_LENGTH = 20  # Shorter than this, a text names a figure but does not say what it shows.

HEAD_LINKS = re.compile(r"\[Open in Colab\]\([^)\s]*\) · \[Source\]\([^)\s]*\)")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)")
LINK_TEXT = re.compile(r"!?\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])")
HTML_LINK = re.compile(r"""<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*["']([^"']+)""", re.IGNORECASE)
FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(?<![`}])(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)  # a role's backtick follows a brace
DIRECTIVE = re.compile(r"^[ \t]*(?:`{3,}|~{3,}|:{3,})[ \t]*\{", re.MULTILINE)
ROLE = re.compile(r"\{[A-Za-z][\w:.+-]*\}`")
TARGET = re.compile(r"^\([\w:.-]+\)=[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Address:
    """Where the book is published, and in which version: all of it from pyproject.toml."""

    repository: str
    version: str

    @property
    def path(self) -> str:
        """Owner and name, as in the repository's address."""
        return self.repository.removeprefix("https://github.com/")

    @property
    def site(self) -> str:
        """The address of the built site, with a slash at its end."""
        owner, name = self.path.split("/")
        return f"https://{owner}.github.io/{name}/"

    @property
    def set_up(self) -> str:
        """The text of the set-up cell, the same in every chapter; the cell of switches stands before it."""
        return (
            "# Set-up: installs the library where it is missing (Colab), and says what runs.\n"
            "import importlib.util\n\n"
            'if importlib.util.find_spec("austeer") is None:\n'
            f'    %pip install -q "austeer @ git+{self.repository}@v{self.version}"\n\n'
            "from austeer.models import describe_run\n\n"
            "print(describe_run(MODEL, DEVICE, REMOTE))"
        )

    def head_links(self, name: str) -> str:
        """The links of a chapter's first cell."""
        page = f"{self.path}/blob/main/book/{name}"
        return f"[Open in Colab](https://colab.research.google.com/github/{page}) · [Source](https://github.com/{page})"


def address(root: Path = ROOT) -> Address:
    """Reads the book's address and version from pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return Address(project["urls"]["Repository"].rstrip("/"), project["version"])


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def normal(notebook: NotebookNode, name: str, where: Address) -> NotebookNode:
    """A copy of a notebook in its normal form: no outputs, fixed metadata, generated parts up to date."""
    cells, seen = [], Counter()
    for cell in notebook.cells:
        source = cell.source.strip("\n")
        if "set-up" in tags(cell):
            source = where.set_up
        elif cell.cell_type == "code":
            source = "\n".join(line.rstrip() for line in source.split("\n"))
        elif not cells:
            source = HEAD_LINKS.sub(lambda _: where.head_links(name), source)
        if not source:
            continue
        metadata = {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        digest = hashlib.sha1(source.encode()).hexdigest()[:8]
        seen[digest] += 1
        new = nbformat.NotebookNode(cell_type=cell.cell_type, metadata=metadata, source=source)
        new.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            new.execution_count, new.outputs = None, []
        cells.append(new)
    return nbformat.from_dict({"cells": cells, "metadata": NOTEBOOK_METADATA, "nbformat": 4, "nbformat_minor": 5})


def to_text(notebook: NotebookNode) -> str:
    """The text of a notebook's file: JSON with an indent of one, and a newline at its end."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n"


def rewrite(path: Path, where: Address) -> bool:
    """Brings one file to its normal form, and says whether that changed it."""
    old = path.read_text("utf-8")
    new = to_text(normal(nbformat.reads(old, as_version=4), path.name, where))
    if new != old:
        path.write_text(new, "utf-8")
    return new != old


def problems(path: Path, where: Address | None = None) -> list[str]:
    """Everything that is wrong with a committed notebook, one sentence each, by cell."""
    where = where or address()
    text = path.read_text("utf-8")
    notebook = nbformat.from_dict(nbformat.reader.reads(text))  # as it is: no ids are added, nothing is upgraded
    if notebook.get("nbformat") != 4:
        return [f"{path.name}: is not in notebook format 4; run `make notebooks`"]
    found = _normal_problems(text, notebook, path.name, where)
    found += _chapter_problems(notebook, path.name, where)
    for number, cell in enumerate(notebook.cells, 1):
        rules = _markdown_problems if cell.cell_type == "markdown" else _code_problems
        found += [f"cell {number}: {problem}" for problem in rules(cell)]
    return [f"{path.name}, {problem}" for problem in found]


def _normal_problems(text: str, notebook: NotebookNode, name: str, where: Address) -> list[str]:
    """Names each cell that differs from its normal form, and the file if only its layout differs."""
    expected = normal(notebook, name, where)
    found = []
    if len(expected.cells) != len(notebook.cells):
        found.append("the file: has empty cells; run `make notebooks`")
    elif to_text(expected) != text:
        for number, (old, new) in enumerate(zip(notebook.cells, expected.cells, strict=True), 1):
            parts = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if parts:
                found.append(f"cell {number}: {', '.join(parts)} not in normal form; run `make notebooks`")
        if not found:
            found.append("the file: metadata or layout not in normal form; run `make notebooks`")
    return found


def _chapter_problems(notebook: NotebookNode, name: str, where: Address) -> list[str]:
    """What the chapter as a whole lacks: its head, its set-up and switches, its claims."""
    cells, found = notebook.cells, []
    head = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    blocks = [block.strip() for block in head.split("\n\n") if block.strip()]
    if len(blocks) < 3 or not re.match(r"# \S", blocks[0]):
        found.append("cell 1: is not a title, a sentence of promise, and the line of minutes, needs and links")
    else:
        if not re.search(r"[.!?]$", blocks[1]) or blocks[1].startswith("#"):
            found.append("cell 1: the paragraph below the title is no sentence of promise")
        if not re.search(r"\bminutes?\b", blocks[2]) or "builds on" not in blocks[2].lower():
            found.append("cell 1: the third paragraph does not say the minutes and what the chapter builds on")
        if where.head_links(name) not in blocks[2]:
            found.append("cell 1: the third paragraph lacks `[Open in Colab]() · [Source]()`: `make notebooks` fills")
    code = [cell for cell in cells if cell.cell_type == "code"]
    for number, tag in enumerate(("switches", "set-up")):
        count = sum(tag in tags(cell) for cell in code)
        if count != 1:
            found.append(f"the file: {count} code cells are tagged `{tag}`, not one")
        elif tag not in tags(code[number]):
            found.append(f"the file: code cell {number + 1} is not the one tagged `{tag}`")
    if not code or "claims" not in tags(code[-1]):
        found.append("the file: the last code cell is not tagged `claims`")
    return found


def _markdown_problems(cell: NotebookNode) -> list[str]:
    """MyST syntax, displayed equations that some renderer breaks, and links that work in one place only."""
    found = []
    if DIRECTIVE.search(cell.source):
        found.append("has a MyST directive, which Colab and GitHub print raw")
    prose = INLINE_CODE.sub("", FENCED.sub("", cell.source))
    if ROLE.search(prose) or TARGET.search(prose):
        found.append("has a MyST role or target, which Colab and GitHub print raw")
    found += _equation_problems(INLINE_CODE.sub("code", FENCED.sub("code", cell.source)))
    for link in LINK.findall(prose) + HTML_LINK.findall(prose):
        if not re.match(r"(https?://|mailto:|attachment:|data:|#)", link):
            found.append(f"the link `{link}` is not absolute, so it breaks in Colab")
    return found


def _equation_problems(text: str) -> list[str]:
    """Wrong surroundings of `$$`, and tags that MathJax refuses."""
    found, lines, start = [], [line.strip() for line in text.splitlines()], None
    for number, line in enumerate(lines):
        if "$$" not in line:
            continue
        if start is None and not line.startswith("$$"):
            found.append(f"`$$` stands inside a line of text: {line[:60]!r}")
            continue
        if start is None:
            start = number
            if number and lines[number - 1]:
                found.append(f"no blank line before the equation {line[:60]!r}")
            if len(line) < 4 or not line.endswith("$$"):
                continue  # it goes on below
        block = "\n".join(lines[start : number + 1]).strip("$\n ")
        if not line.endswith("$$") or (number + 1 < len(lines) and lines[number + 1]):
            found.append(f"no blank line after the equation {block[:60]!r}")
        if r"\tag" in block and ("\n" in block or r"\\" in block):
            found.append(f"`\\tag` in an equation of several lines, where MathJax refuses it: {block[:60]!r}")
        start = None
    if start is not None:
        found.append(f"the equation that starts with {lines[start][:60]!r} has no end")
    if r"\tag" in re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL):
        found.append("`\\tag` outside a displayed equation")
    return found


def _code_problems(cell: NotebookNode) -> list[str]:
    """Long lines, solutions that do not fold in Colab, figures without a text alternative."""
    found = []
    for line in cell.source.splitlines():
        if len(line) > CODE_WIDTH:
            found.append(f"a line of {len(line)} characters, over {CODE_WIDTH}: {line[:40]!r}")
    folds = cell.metadata.get("cellView") == "form" and cell.source.startswith("#@title")
    if "hide-cell" in tags(cell) and not folds:
        found.append("is tagged `hide-cell`, but lacks `cellView: form` or `#@title` in its first line")
    if "figure" in tags(cell) and len(alt_text(cell).strip()) < ALT_LENGTH:
        found.append(f"is tagged `figure`, but `mystnb.image.alt` has fewer than {ALT_LENGTH} characters")
    return found


def alt_text(cell: NotebookNode) -> str:
    """The text alternative of a cell's figures."""
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def untagged_figures(executed: NotebookNode) -> list[int]:
    """The numbers of the cells whose run drew an image although they are not tagged `figure`."""
    return [
        number
        for number, cell in enumerate(executed.cells, 1)
        if cell.cell_type == "code"
        and "figure" not in tags(cell)
        and any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


def main(paths: list[Path]) -> None:
    """Rewrites the notebooks, all of the book's if none is named."""
    where = address()
    for path in paths or sorted((ROOT / "book").glob("*.ipynb")):
        if rewrite(path, where):
            print(f"{path.name}: rewritten")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
