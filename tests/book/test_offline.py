"""A site that was built with OFFLINE=1, without a network: its pages ask nobody, and everything on them works."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from built_site import HTML, PAGES, built_offline, every_page, needs, open_page, parsed

WIDE = {"width": 1280, "height": 900}
VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]'
LOOK = """() => ({
    unset: [...document.querySelectorAll("main .math")].filter(box => !box.querySelector("mjx-container")).length,
    // An unknown command is no error to MathJax: it is printed in red.
    refused: [...document.querySelectorAll("mjx-merror, [data-mjx-error], mjx-mtext[style*=red]")].map(
        mark => mark.closest("mjx-container").outerHTML.slice(0, 300)),
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
})"""


@dataclass
class Visit:
    """What a browser asked for, complained of and showed while it had a page open."""

    requests: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    shown: dict = field(default_factory=dict)


@pytest.fixture(autouse=True)
def offline_site():
    """The site as `make book OFFLINE=1` leaves it."""
    needs(built_offline(), "The site loads scripts from other hosts: build it with `make book OFFLINE=1`.")


@pytest.fixture(scope="module")
def visits(site, browser):
    """Opens a page once and remembers what happened."""
    done = {}

    def visit(page: str) -> Visit:
        if page not in done:
            context, seen = browser.new_context(viewport=WIDE), Visit()
            tab = context.new_page()
            tab.on("request", lambda request: seen.requests.append(request.url))
            tab.on("response", lambda reply: seen.refusals.append(reply.url) if reply.status >= 400 else None)
            tab.on("pageerror", lambda error: seen.errors.append(str(error)))
            tab.on("console", lambda line: seen.errors.append(line.text) if line.type == "error" else None)
            open_page(tab, site + page)
            seen.shown = tab.evaluate(LOOK)
            context.close()
            done[page] = seen
        return done[page]

    return visit


@every_page
def test_page_names_no_other_host_to_load_from(page):
    loads = parsed(HTML / page).select("[src], [srcset], [poster], object[data], link[href]:not([rel=canonical])")
    assert loads
    for element in loads:
        for attribute in ("src", "srcset", "poster", "data", "href"):
            address = urlsplit(element.get(attribute, ""))
            assert not address.netloc and address.scheme in ("", "data"), f"{element.name} loads {element[attribute]}"


def test_styles_name_no_other_host():
    for style in (HTML / "_static").rglob("*.css"):
        text = style.read_text("utf-8")
        assert "url(http" not in text and "url(//" not in text and '@import "http' not in text, style.name


@every_page
def test_page_asks_only_its_own_host(page, site, visits):
    asked = visits(page).requests
    assert len(asked) > 5
    assert [address for address in asked if not address.startswith((site, "data:", "blob:"))] == []


@every_page
def test_page_gets_all_that_it_asks_for(page, visits):
    assert visits(page).refusals == []


@every_page
def test_console_has_no_error(page, visits):
    assert visits(page).errors == []


@every_page
def test_mathematics_is_set(page, visits):
    shown = visits(page).shown
    assert shown["unset"] == 0 and shown["refused"] == []


def test_some_pages_have_mathematics():
    assert sum(bool(parsed(HTML / page).select("main .math")) for page in PAGES) >= 3


@every_page
def test_images_are_loaded(page, visits):
    assert visits(page).shown["broken"] == []


@pytest.fixture
def chooser(site, browser):
    """The page that has the two sliders, open."""
    pages = [page for page in PAGES if parsed(HTML / page).select(VIEW)]
    assert pages, "no page has a widget"
    context = browser.new_context(viewport=WIDE)
    tab = context.new_page()
    open_page(tab, site + pages[0])
    yield tab
    context.close()


SHOWN = "[...document.querySelectorAll('.widget-html-content')].filter(box => box.checkVisibility())"


def test_each_slider_changes_what_is_shown(chooser):
    sliders = chooser.get_by_role("slider")
    assert sliders.count() >= 2
    for number in range(sliders.count()):
        before = chooser.evaluate(f"{SHOWN}.map(box => box.textContent)")
        assert len(before) == 1 and before[0].strip()
        sliders.nth(number).focus()
        chooser.keyboard.press("ArrowRight")
        chooser.wait_for_function(f"before => {SHOWN}.map(box => box.textContent).join() !== before", arg=before[0])


def test_search_finds_the_words_of_a_chapter(site, browser):
    context = browser.new_context(viewport=WIDE)
    tab = context.new_page()
    open_page(tab, site + PAGES[1])
    tab.keyboard.press("Control+k")
    tab.keyboard.type("momentum")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=momentum*")
    tab.wait_for_selector("#search-results li a[href*='book/03_momentum.html']")
    context.close()
