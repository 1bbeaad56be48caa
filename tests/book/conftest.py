"""Throw-away books for the tests of the build; a server and a browser for those of the site."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
import yaml
from built_site import HTML, ROOT, needs

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No name is resolved, so that not even what a page asks of another host without a request gets out.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
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


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of a local server of the built site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that reaches this machine only."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    needs(executable, "Chromium is missing: install Debian's package `chromium`.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield running
        running.close()
