"""An offline site of a throw-away book: its pages have the scripts beside them, and nothing else changes."""

import json

import build
import pytest
import vendored
import yaml
from built_site import ROOT


@pytest.fixture
def book(small_book, monkeypatch):
    """A book of one page with mathematics, and packages that are empty but for the names of their files."""
    monkeypatch.setattr(build, "library_is_installed", lambda root: True)
    root = small_book("# Index\n\n$$\nx\n$$\n")
    (root / "book" / "_static").mkdir()
    config = yaml.safe_load((root / "_config.yml").read_text())
    config["sphinx"]["config"]["html_static_path"] = ["book/_static"]
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    modules = vendored.packages(root)
    for name in (vendored.MATHJAX, vendored.WIDGETS, "mathjax/es5/output/font.woff", "mathjax/es5/tex-svg.js"):
        (modules / name).parent.mkdir(parents=True, exist_ok=True)
        (modules / name).write_text("")
    return root


def test_offline_site_loads_from_itself(book):
    assert build.main(book, None, offline=True) == 0
    html = book / "_build" / "html"
    page = (html / "book" / "index.html").read_text("utf-8")
    assert f'src="../_static/offline/{vendored.MATHJAX}' in page and "cdn." not in page
    assert vendored.is_beside(html)
    files = {path.name for path in (html / "_static" / "offline").rglob("*") if path.is_file()}
    assert files == {"tex-mml-chtml.js", "font.woff", "embed.js"}  # no other bundle of MathJax
    assert "mathjax_path" not in (book / "_config.yml").read_text()


def test_online_site_after_an_offline_one_has_nothing_of_it(book):
    assert build.main(book, None, offline=True) == 0
    assert build.main(book, None) == 0
    html = book / "_build" / "html"
    assert not vendored.is_beside(html)
    assert "https://cdn.jsdelivr.net/npm/mathjax" in (html / "book" / "index.html").read_text("utf-8")


def test_missing_packages_are_named_before_anything_runs(book, capsys):
    (vendored.packages(book) / vendored.WIDGETS).unlink()
    assert build.main(book, None, offline=True) == 1
    assert "make book OFFLINE=1" in capsys.readouterr().out
    assert not (book / "_build" / "html").exists()


def locked() -> dict[str, str]:
    packages = json.loads((ROOT / "book" / "package-lock.json").read_text("utf-8"))["packages"]
    return {path.removeprefix("node_modules/"): entry["version"] for path, entry in packages.items() if path}


def test_online_site_has_the_locked_widget_manager():
    settings = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["sphinx"]["config"]
    (address,) = settings["nb_ipywidgets_js"]
    name = "@jupyter-widgets/html-manager"
    assert address.endswith(f"/{name}@{locked()[name]}/dist/embed.js")


def test_lock_is_of_the_packages_and_names_no_host():
    wanted = json.loads((ROOT / "book" / "package.json").read_text("utf-8"))
    versions = locked()
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert versions[name] == version
    text = (ROOT / "book" / "package-lock.json").read_text("utf-8")
    addresses = text.count('"resolved": ')
    assert addresses == text.count('"resolved": "https://registry.npmjs.org/')
