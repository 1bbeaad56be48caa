"""Which numbers of a text count as statements, and when a recorded value equals one."""

import nbformat
import pytest
from claims import MIME, broken, recorded_claims, stated_numbers, unrecorded


def texts(markdown: str) -> list[str]:
    return [stated.text for stated in stated_numbers(markdown)]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("The swing is 0.81 (5.1).", ["0.81", "5.1"]),
        ("It ends with 0.81.", ["0.81"]),
        ("a share of 56 % or 57%", ["56 %", "57%"]),
        ("5 to 10 %, 96–99 %", ["5 %", "10 %", "96 %", "99 %"]),
        ("from −0.2 to +0.3, within ±0.1", ["−0.2", "+0.3", "±0.1"]),
        ("between 0.2-0.4", ["0.2", "0.4"]),
        ("0.1,0.2", ["0.1", "0.2"]),
        ("all 17,280 units, 17,280.5 of them", ["17,280.5"]),
        ("p < 0.001 and x > 3.0", ["0.001", "3.0"]),
        ("about 1.5x and 3.5GB in 1.0e-5 s", ["1.5", "3.5", "1.0e-5"]),
        ("**0.75**, |0.25|, x=0.5", ["0.75", "0.25", "0.5"]),
        ("| a | b |\n|---|---|\n| 0.1 | 20 % |", ["0.1", "20 %"]),
        ("20 units in 3 layers", []),
        ("## 3.1 Ranking takes 12 %", ["12 %"]),
    ],
)
def test_numbers_with_a_point_or_a_percent_sign_are_statements(markdown, expected):
    assert texts(markdown) == expected


@pytest.mark.parametrize(
    "markdown",
    [
        "$0.5$ and $\\beta = 0.7$",
        "$$\n0.5 \\tag{3.1}\n$$",
        "`0.5` and ``0.6``",
        "```python\nx = 0.5\n```",
        "~~~\n0.5\n~~~",
        "[the 0.5 of it](https://a.org/0.6) and https://a.org/v0.7",
        "![a share of 0.5](https://a.org/a.png)",
        '<img src="https://a.org/a.png" width="50%">',
        "Exercise 3.1, equation (3.2), Section 3.3, §3.4, chapter 3.5, version 0.1, Python 3.11",
        "Equations 3.1, 3.2 and 3.3",
        "arXiv 2602.04428, arXiv:2602.04428",
        "v0.1, 2.13.0, SmolLM2-1.7B, Llama-3.1-8B, Qwen2.5",
        "2.5 minutes · [Open in Colab](x) · [Source](y)",
    ],
)
def test_labels_mathematics_code_and_links_are_not(markdown):
    assert texts(markdown) == []


@pytest.mark.parametrize(
    ("markdown", "recorded", "equal"),
    [
        ("0.81", 0.8123, True),
        ("0.81", 0.8151, False),
        ("0.8", 0.81, True),
        ("0.80", 0.81, False),
        ("56 %", 0.5601, True),
        ("56 %", 56.2, True),
        ("56 %", 0.57, False),
        ("56.0 %", 0.5601, True),
        ("56.0 %", 0.561, False),
        ("0.56", 56.0, False),
        ("0.2", -0.2, True),
        ("−0.2", -0.2, True),
        ("-0.2", 0.2, False),
        ("+0.2", -0.2, False),
        ("±0.2", -0.2, True),
        ("17,280.5", 17280.5, True),
        ("1.0e-5", 1.04e-5, True),
        ("1.0e-5", 1.1e-5, False),
        ("0.5", float("nan"), False),
    ],
)
def test_equality_at_the_printed_precision(markdown, recorded, equal):
    assert stated_numbers(markdown)[0].equals(recorded) is equal


def chapter(*markdown: str, **published: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell(text) for text in markdown]
    cells += [nbformat.v4.new_markdown_cell(text, metadata={"tags": ["published"]}) for text in published.values()]
    return nbformat.v4.new_notebook(cells=cells)


def test_a_number_that_is_not_recorded_is_named_with_its_cell():
    assert unrecorded(chapter("0.1 and 0.2", "0.3", paper="0.9"), [0.1, 0.3]) == [
        "cell 1 states 0.2, which the claims cell does not record"
    ]


def test_the_claims_are_the_output_of_the_last_code_cell():
    record = {"values": [], "orderings": [], "asserted": True}
    output = nbformat.v4.new_output("execute_result", {MIME: record}, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("claims", outputs=[output])])
    assert recorded_claims(notebook) == record
    notebook.cells.append(nbformat.v4.new_code_cell("other"))
    assert recorded_claims(notebook) is None


def test_claims_that_do_not_hold_are_named():
    def record(found: float, holds: bool, asserted: bool) -> dict:
        return {
            "values": [{"name": "swing", "stated": 0.8, "found": found, "tolerance": 0.05}],
            "orderings": [{"name": "few beat all", "holds": holds}],
            "asserted": asserted,
        }

    assert broken(record(0.82, True, True)) == []
    assert broken(record(0.9, False, True)) == [
        "swing: stated 0.8, found 0.9, tolerance 0.05",
        "few beat all: does not hold",
    ]
    assert len(broken(record(float("nan"), True, False))) == 2
