"""The built site: every chapter was executed as it is now, its numbers hold, and its pages are whole."""

import functools
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import build
import claims
import nbformat
import notebooks
import pytest
from built_site import HTML, MADE_BY_SPHINX, PAGES, ROOT, SOURCE, SOURCE_FOLDER, TOC, each_page, open_page, parsed

CHAPTERS = build.chapters(ROOT)

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


@functools.cache
def executed(chapter: Path) -> nbformat.NotebookNode:
    path = build.executed_path(chapter, ROOT)
    assert path.exists(), f"{chapter.name} was not executed: run `make book`"
    return nbformat.read(path, as_version=4)


def test_table_of_contents_names_every_chapter():
    listed = set(build.toc_files(TOC))
    files = {path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "book").glob("*.ipynb")}
    assert files <= listed
    assert all((ROOT / f"{name}.ipynb").exists() or (ROOT / f"{name}.md").exists() for name in listed)


@each_chapter
def test_chapter_was_executed_as_it_is_now(chapter):
    executed(chapter)
    assert build.is_current(chapter, ROOT), f"{chapter.name} changed after it was executed: run `make book`"


@each_chapter
def test_chapter_ran_without_an_error(chapter):
    for number, cell in enumerate(executed(chapter).cells, 1):
        if cell.cell_type == "code":
            assert cell.execution_count, f"cell {number} was not executed"
            wrong = [output for output in cell.outputs if output.output_type == "error"]
            assert not wrong or "raises-exception" in notebooks.tags(cell), f"cell {number} has an error"


@each_chapter
def test_figures_of_the_run_are_tagged(chapter):
    cells = notebooks.untagged_figures(executed(chapter))
    assert not cells, f"cells {cells} draw a figure: tag them `figure` and describe it in `mystnb.image.alt`"


@each_chapter
def test_claims_hold(chapter):
    record = claims.recorded_claims(executed(chapter))
    assert record is not None, "the last code cell shows no claims"
    assert claims.broken(record) == []


@each_chapter
def test_prose_states_only_recorded_numbers(chapter):
    record = claims.recorded_claims(executed(chapter))
    assert record is not None, "the last code cell shows no claims"
    assert claims.unrecorded(executed(chapter), [claim["stated"] for claim in record["values"]]) == []


@each_page
def test_page_exists(page):
    assert (HTML / page).is_file()


def test_no_page_is_left_out_of_the_tests():
    found = {path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html")}
    pages = {page for page in found if page == SOURCE or not page.startswith(("_static/", SOURCE_FOLDER))}
    assert pages == {"index.html", *PAGES, *MADE_BY_SPHINX}
    assert f"url={PAGES[0]}" in (HTML / "index.html").read_text("utf-8"), "index.html only leads to the first page"


@each_page
def test_page_is_light(page):
    path = HTML / page
    states = parsed(path).select('script[type="application/vnd.jupyter.widget-state+json"]')
    state = sum(len(script.get_text().encode()) for script in states)
    figures = {image["src"] for image in parsed(path).select("main img") if not urlsplit(image["src"]).scheme}
    assert state < 1.5e6
    assert path.stat().st_size - state + sum((path.parent / unquote(src)).stat().st_size for src in figures) < 1e6


@each_page
def test_images_are_described(page):
    for image in parsed(HTML / page).select("main img"):
        alt, source = image.get("alt", "").strip(), image.get("src", "")
        assert alt, f"{source} has no text alternative"
        stem = Path(urlsplit(source).path).name
        assert alt not in (source, stem) and "/" not in alt and not alt.endswith((".png", ".svg", ".jpg")), (
            f"{source} is described by a file name"
        )


@each_page
def test_local_links_lead_somewhere(page):
    path = HTML / page
    for element in parsed(path).select("[href], [src]"):
        address = element.get("href") or element.get("src") or ""
        if urlsplit(address).scheme or address.startswith("//"):
            continue
        address, anchor = urldefrag(address)
        target = path.parent / unquote(urlsplit(address).path) if address else path
        assert target.is_file(), f"{element.name} leads to {address}, which is not there"
        if anchor and target.suffix == ".html" and element.name == "a":
            names = parsed(target.resolve()).select(f'[id="{unquote(anchor)}"], [name="{unquote(anchor)}"]')
            assert names, f"{address}#{anchor} is not there"


@each_page
def test_mathematics_was_understood(page):
    main = parsed(HTML / page).select_one("main")
    for block in main.select("div.math"):
        text = block.get_text()
        assert not (r"\tag" in text and r"\begin{split}" in text), f"MathJax refuses the tag of {text.strip()[:60]}"
    for quiet in [*parsed(HTML / page).select("main pre, main code, main script, main .math")]:
        quiet = quiet.get_text()
        assert "merror" not in quiet
    prose = "".join(
        text
        for text in main.find_all(string=True)
        if not text.find_parents(["pre", "code", "script", "style"]) and not text.find_parents(class_="math")
    )
    assert "$$" not in prose and r"\tag" not in prose, "an equation is printed raw"
    assert "{ref}`" not in prose and "{doc}`" not in prose, "a role is printed raw"


@each_chapter
def test_page_of_a_chapter_says_how_it_ran(chapter):
    last = parsed(HTML / "book" / f"{chapter.stem}.html").select("main small")
    assert last and "The cells of this page ran in" in last[-1].get_text()


@each_chapter
def test_buttons_of_a_chapter_open_its_file(chapter):
    page = parsed(HTML / "book" / f"{chapter.stem}.html")
    links = [link["href"] for link in page.select(".header-article-items a[href]")]
    where = notebooks.address(ROOT)
    file = f"book/{chapter.name}"
    assert f"https://colab.research.google.com/github/{where.path}/blob/main/{file}" in links
    assert f"https://mybinder.org/v2/gh/{where.path}/main?urlpath=lab/tree/{file}" in links
    assert any(link.startswith(f"{where.repository}/blob/main/{file}") for link in links)


# In a browser: needs Chromium, and no network, since nothing but the site itself is let through.


@each_page
def test_page_opens_without_errors_and_fits_a_phone(page, site, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.route(lambda url: not url.startswith(site), lambda route: route.abort())
    tab, errors = context.new_page(), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on(
        "console",
        lambda message: (
            errors.append(message.text)
            if message.type == "error" and message.location.get("url", "").startswith(site)
            else None
        ),
    )
    open_page(tab, site + page)
    widths = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    displays = tab.evaluate("[...document.querySelectorAll('div.math')].map(box => getComputedStyle(box).display)")
    context.close()
    assert "flex" not in displays, "a centred equation that is wider than a phone loses its left part"
    assert errors == []
    assert widths[0] <= widths[1], f"the page is {widths[0]} pixels wide on a phone of {widths[1]}"
