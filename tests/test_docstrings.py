"""The examples in the docstrings run as they are printed, and every public name explains itself."""

import doctest
import inspect
import pkgutil
import re
from importlib import import_module

import pytest
import torch

import austeer as au

MODULES = [
    import_module(found.name)
    for found in pkgutil.walk_packages(au.__path__, "austeer.")
    if not found.name.startswith("austeer._")
]
EXAMPLES = [
    test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs={"au": au, "torch": torch})
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_the_example_gives_what_it_prints(example: doctest.DocTest) -> None:
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert tried and not failed, "".join(said)


@pytest.mark.parametrize("name", au.__all__)
def test_every_public_name_explains_itself(name: str) -> None:
    assert inspect.getdoc(getattr(au, name)), f"au.{name} has no docstring"
    if not inspect.ismodule(getattr(au, name)):
        assert inspect.getdoc(au).count(f"`{name}`") == 1, f"`help(au)` does not list {name} once"


def test_the_table_of_contents_names_nothing_that_is_not_there() -> None:
    assert set(re.findall(r"`(\w+)`", inspect.getdoc(au))) <= set(au.__all__)
