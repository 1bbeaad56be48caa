"""The public address and the version stand in pyproject.toml; every other place agrees with them."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from notebooks import address

ROOT = Path(__file__).resolve().parents[2]
WHERE = address(ROOT)
PLACES = ("*.md", "*.cff", "*.yml", "book/**/*.md", "book/**/*.ipynb", "book/**/*.py", "austeer/**/*.py", "data/*.md")
TEXTS = sorted(path for place in PLACES for path in ROOT.glob(place))
# Addresses of this book, wherever it is published: the repository's, the site's, Colab's and Binder's.
OURS = re.compile(
    r"(?:https://github\.com/|colab\.research\.google\.com/github/|mybinder\.org/v2/gh/)([\w.-]+/austeer[\w-]*)(?=[/)@\"'\s]|$)"
    r"|https://([\w-]+)\.github\.io/(austeer[\w-]*)"
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_address_of_the_book_is_the_one_of_pyproject(path):
    for match in OURS.finditer(path.read_text("utf-8")):
        named = match[1] or f"{match[2]}/{match[3]}"
        assert named == WHERE.path, f"{path.name} has {match[0]}; run `make notebooks` or edit it"


def test_settings_of_the_site():
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    assert config["repository"]["url"] == WHERE.repository
    assert config["html"]["baseurl"] == WHERE.site


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["repository-code"] == WHERE.repository
    assert citation["url"] == WHERE.site
    assert citation["version"] == WHERE.version
    assert f"note   = {{Version {WHERE.version}}}" in (ROOT / "book/index.md").read_text("utf-8")


def test_installed_version():
    assert version("austeer") == WHERE.version
