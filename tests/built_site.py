"""What the tests of the built site share: where it is, its pages, and what may be missing."""

import functools
import os
from pathlib import Path

import build
import pytest
import vendored
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
# The library's source as pages, one per module: they differ in their text alone, so the tests look at one.
SOURCE_FOLDER, SOURCE = "_modules/austeer/", "_modules/austeer/momentum.html"
PAGES = [f"{name}.html" for name in build.toc_files(TOC)]
MADE_BY_SPHINX = ["search.html", "genindex.html", "py-modindex.html", "_modules/index.html", SOURCE]

each_page = pytest.mark.parametrize("page", PAGES)
every_page = pytest.mark.parametrize("page", PAGES + MADE_BY_SPHINX)


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    """A page as its file has it, before any script ran."""
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def needs(present: object, otherwise: str) -> None:
    """Skips a test whose tool is missing, and fails it where AUSTEER_BROWSER says that nothing may be."""
    if not present:
        if os.environ.get("AUSTEER_BROWSER") == "required":
            pytest.fail(otherwise)
        pytest.skip(otherwise)


def built_offline() -> bool:
    """Whether the site was built to load nothing from other hosts."""
    return vendored.is_beside(HTML)


def open_page(tab, address: str) -> None:
    """Opens a page and waits until its mathematics is set and its widgets are drawn, where the site can do that."""
    tab.goto(address, wait_until="networkidle")
    if built_offline():
        tab.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        views = 'script[type="application/vnd.jupyter.widget-view+json"]'
        drawn = "views => document.querySelectorAll('.widget-subarea > *').length"
        tab.wait_for_function(f"{drawn} === document.querySelectorAll(views).length", arg=views)
