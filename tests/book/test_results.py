"""The page of results holds what the chapters recorded, and nothing is left to be filled in."""

import nbformat
import pytest
from build import chapters, executed_path, shipped_rows
from claims import MIME, recorded_claims
from notebooks import ROOT
from results import PUBLISHED, RUNS, SIDE, SPEED, STATED, fill, table

RECORD = {
    "values": [
        {"name": "swing | mood", "stated": 0.8, "found": 0.8213, "tolerance": 0.05, "printed": ["0.8", "0.8213"]}
    ],
    "orderings": [{"name": "few beat all", "holds": True}],
    "published": [{"name": "BoolQ", "published": "70.5 %", "source": "a paper", "measured": 0.512}],
    "asserted": True,
}


def executed(*records: dict) -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("display_data", {MIME: record}) for record in records]
    cells = [nbformat.v4.new_markdown_cell("# Of units\n\nText."), nbformat.v4.new_code_cell("1", outputs=outputs)]
    about = {"seconds": 61.2, "gigabytes": 1.34}
    return nbformat.v4.new_notebook(cells=cells, metadata={"austeer": about})


def test_a_page_gets_what_chapters_recorded():
    page = fill(f"a\n{PUBLISHED}\nb\n{STATED}\n", {"book/x.html": executed(RECORD), "book/y.html": executed()})
    assert "| BoolQ ([Of units](book/x.html)) | 70.5 % | a paper | 0.512 |" in page
    assert "### Of units" in page
    assert r"| swing \| mood | 0.8 | 0.8213 |" in page
    assert "| few beat all | holds | holds |" in page
    assert "y.html" not in page
    assert "<!--" not in page


def test_without_published_figures_there_is_no_empty_table():
    assert fill(PUBLISHED, {"x": executed(RECORD | {"published": []})}) == ""


def test_a_number_in_the_text_is_what_its_chapter_found():
    chapters = {"https://x.org/book/05_a.html": executed(RECORD)}
    assert fill("It is <!-- found 05_a: swing | mood -->.", chapters) == "It is 0.8."
    assert fill("It is <!-- found 06_b: swing -->.", chapters) == "It is (not run)."
    with pytest.raises(ValueError, match="A page asks 05_a for 'swing', which its claims cell does not record"):
        fill("<!-- found 05_a: swing -->", chapters)


def test_run_times_are_listed_and_summed():
    page = fill(RUNS, {"book/x.html": executed(), "book/y.html": executed()})
    assert page.count("| [Of units](book/x.html) | 61 | 1.3 |") == 1
    assert page.endswith("| all, one after the other | 122 | 1.3 |")


def test_the_rows_of_the_benchmarks_are_shown():
    row = {"job": "localisation", "kind": "pairs", "way": "austeer / plain", "ratio": [0.704, 0.69, 0.722]}
    assert "| localisation | pairs | austeer / plain | 0.70 (0.69 to 0.72) |" in fill(SPEED, {}, [row])


def test_methods_stand_side_by_side():
    row = {"cell": {"behaviour": "mood", "method": "`CAA`"}, "effects": {"mood": [0.9081, 0.7395, 1.0791]}}
    row |= {"alpha": 2.9, "perplexity": 14.72, "scalars": 576, "numbers": 17280, "fit seconds": 7.6, "token": 1.004}
    line = "| `CAA` | mood +0.91 (+0.74 to +1.08) | 14.7 | 576 | 17,280 | 8 s | 1.00 |"
    assert line in fill(SIDE, {}, side_by_side=[row])


@pytest.mark.parametrize(
    ("method", "of", "chapter", "claim"),
    [
        ("`CAA`", "mood", "05_evaluation", "CAA on test"),
        ("`AlphaSteer`", "dubious", "09_alphasteer", "AlphaSteer, dubious"),
        ("`WAS`", "dubious", "11_controllers", "WAS as drawn"),
    ],
)
def test_the_table_of_methods_says_what_the_chapters_say(method, of, chapter, claim):
    (row,) = (row for row in shipped_rows(ROOT, "side_by_side") if row["cell"]["method"] == method)
    claims = recorded_claims(nbformat.read(executed_path(ROOT / "book" / f"{chapter}.ipynb", ROOT), as_version=4))
    (found,) = (value["found"] for value in claims["values"] if value["name"] == claim)
    assert row["effects"][of][0] == pytest.approx(found, abs=1e-3)


def test_a_table_has_one_line_per_row():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("chapter", chapters(ROOT), ids=lambda path: path.stem)
def test_the_built_page_has_every_claim_of_every_chapter(chapter):
    page = (ROOT / "_build" / "html" / "book" / "results.html").read_text("utf-8")
    claims = recorded_claims(nbformat.read(executed_path(chapter, ROOT), as_version=4))
    assert page.count("holds</p>") >= 2 * len(claims["orderings"])
    for row in claims["values"]:
        assert row["printed"][1] in page.replace("\u2212", "-")
