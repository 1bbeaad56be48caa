"""The build of throw-away books: what makes a chapter run again, what a failing one leaves, where links lead."""

import json
from pathlib import Path

import build
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = "https://austeer.github.io/austeer-book/"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The throw-away books have a library of their own, which is not installed."""
    monkeypatch.setattr(build, "library_is_installed", lambda root: root != ROOT)


def test_installed_library_is_the_checkouts(monkeypatch):
    monkeypatch.undo()
    assert build.library_is_installed(ROOT)


@pytest.mark.parametrize(
    "changed",
    ["book/a.ipynb", "austeer/part.py", "austeer/b/new.py", "data/pairs.jsonl", "data/new.bin", "requirements.lock"],
)
def test_key_changes_with_all_that_a_run_depends_on(small_book, changed):
    root = small_book(a=["1"], b=["2"])
    before = build.key(root / "book/a.ipynb", root)
    (root / changed).parent.mkdir(exist_ok=True)
    with (root / changed).open("a") as file:
        file.write("\n")
    assert build.key(root / "book/a.ipynb", root) != before


@pytest.mark.parametrize("changed", ["book/b.ipynb", "book/index.md", "_config.yml", "pyproject.toml", "austeer/n.txt"])
def test_key_does_not_change_with_anything_else(small_book, changed):
    root = small_book(a=["1"], b=["2"])
    before = build.key(root / "book/a.ipynb", root)
    with (root / changed).open("a") as file:
        file.write("\n")
    assert build.key(root / "book/a.ipynb", root) == before


def test_key_changes_when_a_file_is_renamed(small_book):
    root = small_book(a=["1"])
    before = build.key(root / "book/a.ipynb", root)
    (root / "data/pairs.jsonl").rename(root / "data/others.jsonl")
    assert build.key(root / "book/a.ipynb", root) != before


def test_a_book_is_built_once_and_then_kept(small_book, capsys):
    alone = "import os\nassert os.listdir() == ['a.ipynb'], os.listdir()\nassert 'PYTHONPATH' not in os.environ"
    alone += "\nheld = bytearray(300_000_000)"
    root = small_book("# Index\n\n[a](a.ipynb#more)\n", a=["# A\n\n## More", alone, "1 + 1"])
    assert build.main(root, None) == 0
    assert "a.ipynb: executed in" in capsys.readouterr().out
    executed = json.loads((root / "_build/executed/a.ipynb").read_text())
    assert executed["cells"][2]["outputs"][0]["data"]["text/plain"] in ("2", ["2"])
    about = executed["metadata"]["austeer"]
    assert set(about["versions"]) == {"austeer", "torch", "transformers"}
    assert 0.3 < about["gigabytes"] < 1, "the peak is the kernel's, which holds a list of 300 million bytes"
    page = (root / "_build/html/book/a.html").read_text("utf-8")
    assert "The cells of this page ran in" in page
    assert 'href="a.html#more"' in (root / "_build/html/book/index.html").read_text("utf-8")
    assert build.main(root, None) == 0
    assert "a.ipynb: unchanged" in capsys.readouterr().out


def test_chapters_share_the_cores(monkeypatch):
    pages = int(64e9) // 4096
    monkeypatch.setattr(build.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.get)
    for cores, expected in ((1, 1), (2, 1), (8, 4), (64, 16)):
        monkeypatch.setattr(build, "CORES", cores)
        assert build.jobs() == expected


def test_a_failing_chapter_keeps_nothing_and_the_others_go_on(small_book, capsys):
    root = small_book(bad=["# Bad", "print('before')", "1 / 0"], good=["# Good", "1"])
    stale = root / "_build/executed/bad.ipynb"
    stale.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(metadata={"austeer": {"key": "old"}}), stale)
    assert build.main(root, None) == 1
    printed = capsys.readouterr().out
    assert "bad.ipynb: FAILED" in printed and "cell 3:\n1 / 0" in printed and "ZeroDivisionError" in printed
    assert [path.name for path in (root / "_build/executed").iterdir()] == ["good.ipynb"]


def test_a_broken_reference_fails(small_book, capsys):
    root = small_book("# Index\n\n[nowhere](nowhere.md)\n")
    assert build.main(root, None) == 1
    assert "nowhere" in capsys.readouterr().out


def test_a_link_to_a_page_of_the_site_that_is_missing_fails(small_book, capsys):
    root = small_book(f"# Index\n\n[nowhere]({SITE}book/nowhere.html)\n")
    assert build.main(root, None) == 1
    assert "nowhere" in capsys.readouterr().out


def test_one_chapter_alone(small_book, capsys):
    links = f"[b]({SITE}book/b.html#part) and [index]({SITE}book/index.html)"
    chapters = {"00_a": [f"# A\n\n{links}", "1"], "b": ["# B", "1"]}
    root = small_book("# Index\n\n[a](00_a.ipynb), [b](b.ipynb)\n", **chapters)
    assert build.main(root, "00") == 0
    printed = capsys.readouterr().out
    assert "00_a.ipynb: executed" in printed and "b.ipynb: executed" not in printed
    page = (root / "_build/html/book/00_a.html").read_text("utf-8")
    assert f'href="{SITE}book/b.html#part"' in page and 'href="index.html"' in page
    assert f'href="{SITE}book/b.html"' in (root / "_build/html/book/index.html").read_text("utf-8")
    assert build.main(root, "07") == 1
    assert "There is no chapter '07'" in capsys.readouterr().out


def test_an_installed_library_that_differs_is_refused(small_book, monkeypatch, capsys):
    monkeypatch.undo()
    assert build.main(small_book(a=["1"]), None) == 1
    assert "make book" in capsys.readouterr().out


def test_links_of_a_whole_book_become_local():
    def local(text: str) -> str:
        page = ROOT / "book" / "00_start.ipynb"
        return build.localise(text, page, {"book/index", "book/build"}, True, SITE)

    assert local(f"[a]({SITE}book/glossary.html#unit) b") == "[a](glossary.md#unit) b"
    assert local("[a](https://a.org/b.html)") == "[a](https://a.org/b.html)"
    assert local(f"[a]({SITE})") == f"[a]({SITE})"


def test_cards_of_pages_that_are_not_staged_lead_to_the_site():
    cards = ":link: 00_a\n:link-type: doc\nA\n:link: 01_b\n:link-type: doc"
    page = ROOT / "book" / "index.md"
    assert build.localise(cards, page, {"book/00_a"}, False, SITE) == (
        f":link: 00_a\n:link-type: doc\nA\n:link: {SITE}book/01_b.html\n:link-type: url"
    )
    assert build.localise(cards, page, {"book/00_a"}, True, SITE) == cards  # a whole build reports what is missing


def test_a_table_of_contents_without_missing_pages():
    toc = yaml.safe_load(
        "{root: index, parts: [{caption: one, chapters: [{file: a, sections: [{file: b}]}]}, "
        "{caption: two, chapters: [{file: c}]}]}"
    )
    assert list(build.toc_files(toc)) == ["index", "a", "b", "c"]
    assert list(build.toc_files(build.without(toc, {"b", "c"}))) == ["index", "a"]
    assert [part["caption"] for part in build.without(toc, {"c"})["parts"]] == ["one"]


def test_outputs_that_only_tests_read_stay_out_of_the_page():
    kind = build.OWN_DATA + "claims+json"
    outputs = [
        nbformat.v4.new_output("display_data", {kind: {}}),
        nbformat.v4.new_output("display_data", {kind: {}, "text/plain": "all hold"}),
        nbformat.v4.new_output("stream", text="text"),
    ]
    about = {"key": "", "seconds": 61.2, "gigabytes": 1.34, "versions": {"austeer": "0.1.0"}}
    cells = [nbformat.v4.new_code_cell("1", outputs=outputs)]
    page = build.page_of(nbformat.v4.new_notebook(cells=cells, metadata={"austeer": about}))
    assert [output.get("data") for output in page.cells[0].outputs] == [{"text/plain": "all hold"}, None]
    assert page.cells[-1].source == (
        "<small>The cells of this page ran in 61 s, and took 1.3 GB of memory at most, with austeer 0.1.0.</small>"
    )


def test_folded_cells_are_named_on_the_site_and_on_paper():
    solution = nbformat.v4.new_code_cell("#@title Solution 4.1\nx = 1", metadata={"tags": ["hide-cell"]})
    claims = nbformat.v4.new_code_cell("check()", metadata={"tags": ["claims"]})
    about = {"seconds": 1, "gigabytes": 1, "versions": {}}
    page = build.page_of(nbformat.v4.new_notebook(cells=[solution, claims], metadata={"austeer": about}))
    assert page.cells[0].source == "x = 1"
    assert page.cells[0].metadata["mystnb"]["code_prompt_show"] == "Solution 4.1"
    assert "hide-input" in page.cells[1].metadata.tags
    paper = build.printed(page)
    assert [cell.source.partition("\n")[0] for cell in paper.cells[:2]] == [
        "# Solution 4.1",
        "# The code that asserts them",
    ]


def test_paper_shows_tables_and_numbered_equations_and_no_sliders():
    html = "<table><tr><th>opening</th><th>plus</th></tr><tr><td>It <b>rains</b></td><td>a | b</td></tr></table>"
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": "<HTML object>"}),
        nbformat.v4.new_output("display_data", {build.WIDGET: {}, "text/plain": "VBox()"}),
        nbformat.v4.new_output("stream", text="swing 0.93"),
    ]
    text = nbformat.v4.new_markdown_cell("So\n\n$$y = \\sum_i x_i \\tag{0.1}$$\n\nand\n\n$$z$$")
    cells = [text, nbformat.v4.new_code_cell("1", outputs=outputs)]
    page = build.printed(nbformat.v4.new_notebook(cells=cells))
    assert page.cells[0].source == "So\n\n\\begin{equation*}y = \\sum_i x_i \\tag{0.1}\\end{equation*}\n\nand\n\n$$z$$"
    table, stream = page.cells[1].outputs
    assert table.data == {"text/markdown": "| opening | plus |\n| --- | --- |\n| It rains | a \\| b |"}
    assert stream.text == "swing 0.93"
