"""Throw-away books for the tests of the build, and the real one's places."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
title: A book
only_build_toc_files: true
execute: {execute_notebooks: "off"}
sphinx: {config: {myst_heading_anchors: 3}}
"""


@pytest.fixture
def small_book(tmp_path: Path) -> Callable[..., Path]:
    """Makes a book of one page and of chapters whose cells are given as `name=[source, ...]`; "#" starts Markdown."""

    def make(index: str = "# Index\n", **chapters: list[str]) -> Path:
        root = tmp_path / "a_book"
        for folder in ("book", "austeer", "data"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ("pyproject.toml", "requirements.lock"):
            shutil.copyfile(ROOT / name, root / name)
        (root / "austeer" / "part.py").write_text("ONE = 1\n")
        (root / "data" / "pairs.jsonl").write_text("{}\n")
        (root / "_config.yml").write_text(CONFIG)
        toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": f"book/{name}"} for name in chapters]}
        (root / "_toc.yml").write_text(yaml.safe_dump(toc))
        (root / "book" / "index.md").write_text(index)
        for name, sources in chapters.items():
            cells = [
                nbformat.v4.new_markdown_cell(source) if source.startswith("#") else nbformat.v4.new_code_cell(source)
                for source in sources
            ]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "book" / f"{name}.ipynb")
        return root

    return make
