"""The committed notebooks are in normal form, and the linter sees what it should see."""

import re
from pathlib import Path

import nbformat
import notebooks
import pytest

from austeer.models import describe_run

ROOT = Path(__file__).resolve().parents[2]
WHERE = notebooks.Address("https://github.com/someone/some-book", "1.2.3")


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path):
    assert notebooks.problems(path) == []


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_chapter_links_its_terms(path):
    assert len(set(re.findall(r"/glossary\.html#([\w-]+)\)", path.read_text("utf-8")))) >= 2


def markdown(source: str, **metadata) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source, metadata=metadata)


def code(source: str, *tags: str, **metadata) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={**metadata, **({"tags": list(tags)} if tags else {})})


HEAD = "# 3 A chapter\n\nRank all units.\n\nTwo minutes · builds on chapter 01 · [Open in Colab]() · [Source]()"


def write(path: Path, *cells: nbformat.NotebookNode, head: str = HEAD) -> Path:
    """A chapter that keeps every rule, with the given cells in its middle."""
    first = [markdown(head), code("SEED = 0", "switches"), code("", "set-up")]
    notebook = nbformat.v4.new_notebook(cells=[*first, *cells, code("claims", "claims")])
    path.write_text(notebooks.to_text(notebooks.normal(notebook, path.name, WHERE)), "utf-8")
    return path


def found(path: Path) -> str:
    return "\n".join(notebooks.problems(path, WHERE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "03_some.ipynb"


def test_normal_form_is_stable_and_has_no_problems(path):
    write(path, markdown("Text.\n\n$$y = x \\tag{3.1}$$\n\nMore."), code("1"), code("1"))
    before = path.read_text("utf-8")
    assert found(path) == ""
    assert notebooks.rewrite(path, WHERE) is False
    assert path.read_text("utf-8") == before
    assert before.endswith("}\n") and '\n "cells"' in before
    ids = [cell.id for cell in nbformat.read(path, 4).cells]
    assert len(set(ids)) == len(ids) and ids[5] == f"{ids[4]}-2"


def test_generated_parts_follow_the_address(path):
    write(path)
    cells = nbformat.read(path, 4).cells
    assert "github/someone/some-book/blob/main/book/03_some.ipynb" in cells[0].source
    assert "git+https://github.com/someone/some-book@v1.2.3" in cells[2].source
    other = notebooks.Address("https://github.com/another/book", "2.0")
    assert "cell 3: " in "\n".join(notebooks.problems(path, other))
    assert notebooks.rewrite(path, other) is True
    assert notebooks.problems(path, other) == []


def test_set_up_cell_is_short_enough_and_runs_where_the_library_is_installed(capsys):
    text = notebooks.address().set_up
    assert max(map(len, text.splitlines())) <= notebooks.CODE_WIDTH
    from IPython.core.inputtransformer2 import TransformerManager

    exec(TransformerManager().transform_cell(text), {"MODEL": None, "DEVICE": "cpu", "REMOTE": False})
    said = capsys.readouterr().out
    assert said.startswith("SmolLM2-135M-Instruct on the CPU (") and "austeer " in said and "torch " in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("org/model", "cuda:1", False), "org/model on cuda:1 "),
        ((None, "cpu", True), "on NDIF "),
        ((None, "cpu", "local"), "rehearsing NDIF"),
    ],
)
def test_set_up_says_where_it_runs(arguments, said):
    assert said in describe_run(*arguments)


def test_each_cell_that_is_not_normal_is_named(path):
    write(path, code("print(1)"), code("2"))
    notebook = nbformat.read(path, 4)
    notebook.cells[3].execution_count = 7
    notebook.cells[4].outputs = [nbformat.v4.new_output("stream", text="2")]
    notebook.cells[4].metadata["collapsed"] = True
    path.write_text(notebooks.to_text(notebook), "utf-8")
    problems = notebooks.problems(path, WHERE)
    assert [problem.split(":")[0] for problem in problems] == ["03_some.ipynb, cell 4", "03_some.ipynb, cell 5"]
    assert "execution_count" in problems[0] and "metadata, outputs" in problems[1]
    notebooks.rewrite(path, WHERE)
    assert found(path) == ""


def test_a_file_with_another_layout_or_other_metadata_is_named(path):
    notebook = nbformat.read(write(path), 4)
    notebook.metadata["widgets"] = {}
    path.write_text(notebooks.to_text(notebook), "utf-8")
    assert "the file: metadata" in found(path)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("```{note}\nHello.\n```", "MyST directive"),
        (":::{tip}\nHello.\n:::", "MyST directive"),
        ("See {ref}`there`.", "MyST role"),
        ("(label)=\n## Heading", "MyST role or target"),
        ("Text\n$$y = x$$\n\nText", "no blank line before"),
        ("Text\n\n$$y = x$$\nText", "no blank line after"),
        ("Text\n\n$$\ny = x\n$$\nText", "no blank line after"),
        ("Text with $$y = x$$ inside", "inside a line"),
        ("$$\ny = x", "has no end"),
        ("$$\ny = x \\\\\nz = x \\tag{3.1}\n$$", "MathJax refuses"),
        ("$$y = x \\\\ z = x \\tag{3.1}$$", "MathJax refuses"),
        ("The number \\tag{3.1} of it", "outside a displayed equation"),
        ("[next](04_next.ipynb)", "is not absolute"),
        ("![a figure](figure.png)", "is not absolute"),
        ('<img src="figure.png" alt="a figure">', "is not absolute"),
    ],
)
def test_markdown_that_breaks_somewhere_is_named(path, source, problem):
    assert problem in found(write(path, markdown(source)))


@pytest.mark.parametrize(
    "source",
    [
        "A set `{a}` and a call `f({b})` in code.",
        "```python\nf(`{x}`)  # [a](b.ipynb) $$ \\tag{1}\n```",
        "$$\ny = x \\tag{3.1}\n$$",
        "$$\\begin{aligned}y &= x \\\\ z &= x\\end{aligned}$$",
        "- point\n\n  $$y = x$$\n\n- point",
        "[here](#below), [there](https://a.org/b.html), [mail](mailto:a@b.org)",
        "A money sum of \\$5.",
    ],
)
def test_markdown_that_works_everywhere_is_not_named(path, source):
    assert found(write(path, markdown(source))) == ""


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (code("x = '" + 84 * "a" + "'"), "a line of 90 characters"),
        (code("x = 1", "hide-cell"), "lacks `cellView: form`"),
        (code("x = 1", "hide-cell", cellView="form"), "lacks `cellView: form`"),
        (code("plots.bar()", "figure"), "image.alt"),
        (code("plots.bar()", "figure", mystnb={"image": {"alt": "a figure"}}), "image.alt"),
        (code("SEED = 1", "switches"), "2 code cells are tagged `switches`"),
    ],
)
def test_code_cells_that_break_a_rule_are_named(path, cell, problem):
    assert problem in found(write(path, cell))


def test_code_cells_that_keep_the_rules_are_not_named(path):
    solution = code("#@title Solution\nx = 1", "hide-cell", cellView="form")
    figure = code("plots.bar()", "figure", mystnb={"image": {"alt": "Bars that grow with the layer."}})
    assert found(write(path, solution, figure, code("x" * notebooks.CODE_WIDTH))) == ""


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (HEAD.replace("# 3", "## 3"), "is not a title"),
        (HEAD.replace("Rank all units.\n\n", ""), "is not a title"),
        (HEAD.replace("Rank all units.", "Ranking"), "no sentence of promise"),
        (HEAD.replace("Two minutes · b", "B"), "does not say the minutes"),
        (HEAD.replace(" · [Open in Colab]() · [Source]()", ""), "lacks `[Open in Colab]()"),
    ],
)
def test_a_wrong_head_is_named(path, head, problem):
    assert problem in found(write(path, head=head))


def test_a_chapter_without_claims_at_its_end_is_named(path):
    notebook = nbformat.read(write(path), 4)
    notebook.cells.append(code("x = 1"))
    path.write_text(notebooks.to_text(notebooks.normal(notebook, path.name, WHERE)), "utf-8")
    assert "not tagged `claims`" in found(path)


def test_figures_of_a_run_must_be_tagged():
    drawn = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    tagged, untagged = code("draw()", "figure"), code("draw()")
    tagged.outputs = untagged.outputs = [drawn]
    assert notebooks.untagged_figures(nbformat.v4.new_notebook(cells=[tagged, untagged, code("1")])) == [2]
