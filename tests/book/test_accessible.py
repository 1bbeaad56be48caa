"""The built site with a screen reader and a keyboard: axe finds nothing, and each part is reached and seen."""

import pytest
import vendored
from built_site import HTML, PAGES, ROOT, each_page, every_page, needs, open_page, parsed

AXE = vendored.packages(ROOT) / "axe-core" / "axe.min.js"
# What the theme does and the book cannot undo, as "rule: selector of the only part that is excused".
EXCUSED = {
    # The book's sign stands beside the navigation, and not in it.
    "region": ".navbar-brand *",
    # The button's hidden pictures have titles ("Light", "Dark"), which nobody sees and axe takes for its text.
    "label-content-name-mismatch": ".theme-switch-button",
}
# Folded cells and notes are opened, since axe looks only at what is shown.
UNFOLD = "document.querySelectorAll('details').forEach(part => { part.open = true; })"
RUN = """async excused => {
    const found = (await axe.run(document, { resultTypes: ["violations"] })).violations;
    const isExcused = (rule, target) => rule in excused && document.querySelector(target)?.matches(excused[rule]);
    return found.flatMap(({ id, impact, nodes }) =>
        nodes
            .filter(({ target }) => !isExcused(id, target.join(" ")))
            .map(({ html, failureSummary }) => `${id} (${impact}): ${html.slice(0, 200)}: ${failureSummary}`));
}"""


@pytest.fixture
def tab(browser):
    """An empty tab whose page is still: nothing fades in while it is looked at."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield context.new_page()
    context.close()


@every_page
def test_axe_finds_nothing_in_light_and_dark(page, site, tab):
    needs(AXE.is_file(), "axe-core is missing: `make book OFFLINE=1` installs it.")
    open_page(tab, site + page)
    tab.add_style_tag(content="* { animation: none !important; transition: none !important; }")  # half-way colours
    tab.evaluate(UNFOLD)
    tab.evaluate(AXE.read_text("utf-8"))
    for mode in ("light", "dark"):
        tab.emulate_media(color_scheme=mode)
        tab.wait_for_function("mode => document.documentElement.dataset.theme === mode", arg=mode)
        assert tab.evaluate(RUN, EXCUSED) == [], mode


# What a reader can act on, numbered; and the part that has the focus: its number, and whether its frame shows that.
PARTS = """[...document.querySelectorAll("a[href], button, summary, input, select, [role=slider], [tabindex='0']")]
    .filter(part => part.checkVisibility({ visibilityProperty: true }) && !part.disabled && part.tabIndex >= 0)"""
FRAME = """(part => [null, "::after"].map(layer => {
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(part, layer);
    return [outlineStyle, outlineWidth, boxShadow];
}).join())"""
NUMBER = f"""{PARTS}.map((part, number) => {{
    Object.assign(part.dataset, {{ number, frame: {FRAME}(part) }});
    return part.outerHTML.slice(0, 160);
}})"""
FOCUS = f"""() => {{
    const part = document.activeElement, framed = {FRAME}(part) !== part.dataset.frame;
    return [part.dataset.number ?? null, framed && part.checkVisibility({{ opacityProperty: true }})];
}}"""


@every_page
def test_tab_key_reaches_every_part_and_shows_it(page, site, tab):
    open_page(tab, site + page)
    parts = tab.evaluate(NUMBER)
    assert len(parts) > 10
    unseen, unreached = [], set(range(len(parts)))
    for _ in range(len(parts) + 50):
        tab.keyboard.press("Tab")
        number, seen = tab.evaluate(FOCUS)
        if number is not None:
            unreached.discard(int(number))
            unseen += [] if seen else [parts[int(number)]]
        if not unreached:
            break
    assert [parts[number] for number in sorted(unreached)] == []
    assert unseen == []


@each_page
def test_enter_key_opens_what_is_folded(page, site, tab):
    open_page(tab, site + page)
    for number in range(tab.locator("main summary").count()):
        summary = tab.locator("main summary").nth(number)
        folded = summary.evaluate("part => part.parentElement.open")
        summary.focus()
        tab.keyboard.press("Enter")
        assert summary.evaluate("part => part.parentElement.open") != folded


def test_some_pages_have_folded_parts():
    assert sum(bool(parsed(HTML / page).select("main summary")) for page in PAGES) >= 3


def test_enter_key_works_the_buttons_of_the_header(site, tab):
    open_page(tab, site + PAGES[1])
    tab.locator(".article-header-buttons .dropdown-toggle").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".article-header-buttons .dropdown-menu.show a")
    tab.keyboard.press("Escape")
    mode = tab.evaluate("document.documentElement.dataset.mode")
    tab.locator(".article-header-buttons .theme-switch-button").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.documentElement.dataset.mode") != mode
