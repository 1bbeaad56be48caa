"""Code that a chapter derives and the library keeps is the same code in both."""

import ast
import inspect
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebooks import ROOT, tags

import austeer.methods.alphasteer
import austeer.methods.arm
import austeer.methods.odesteer
import austeer.methods.riser
import austeer.momentum
import austeer.small.diffusion
import austeer.sparsity

HOME = {
    "cett_at": austeer.sparsity,
    "corrupt": austeer.small.diffusion,
    "field": austeer.methods.odesteer,
    "null_space": austeer.methods.alphasteer,
    "policy_loss": austeer.methods.riser,
    "redistribute": austeer.methods.arm,
    "ridge_gate": austeer.methods.alphasteer,
    "signed_score": austeer.momentum,
}


def bare(source: str) -> str:
    """A function's code without docstring and annotations, which a chapter leaves out."""
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        function.body = function.body[1:]
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    return ast.unparse(function)


def derived() -> list[Any]:
    found = []
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if "derived" in tags(cell):
                found.append(pytest.param(path, cell.source, id=f"{path.stem}:{ast.parse(cell.source).body[0].name}"))
    return found


def test_there_is_derived_code() -> None:
    assert derived()


@pytest.mark.parametrize(("path", "source"), derived())
def test_the_chapter_and_the_library_agree(path: Path, source: str) -> None:
    name = ast.parse(source).body[0].name
    assert bare(source) == bare(inspect.getsource(getattr(HOME[name], name))), f"{path.name} derives another {name}"
