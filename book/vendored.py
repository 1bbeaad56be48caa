"""Lays what pages load from other hosts beside the pages, so that the site needs no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

FOLDER = "offline"  # below the site's _static: a site that was built online has no such folder
MATHJAX, WIDGETS = "mathjax/es5/tex-mml-chtml.js", "@jupyter-widgets/html-manager/dist/embed.js"
SETTINGS = {
    "mathjax_path": f"{FOLDER}/{MATHJAX}",
    "nb_ipywidgets_js": {f"{FOLDER}/{WIDGETS}": {"defer": "defer"}},
}


def packages(root: Path) -> Path:
    """Where `make book OFFLINE=1` installs the packages of book/package-lock.json."""
    return root / "_build" / "npm" / "node_modules"


def are_installed(root: Path) -> bool:
    """Whether the scripts that the pages load are there."""
    return all((packages(root) / script).is_file() for script in (MATHJAX, WIDGETS))


def copy(script: Path, target: Path) -> None:
    """Copies a script with what it loads from beside it: the other scripts there are bundles of the same code."""
    target.mkdir(parents=True)
    for path in script.parent.iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path == script or path.suffix not in (".js", ".map"):
            shutil.copyfile(path, target / path.name)


def stage(root: Path, source: Path) -> None:
    """Puts the scripts among the staged static files and points the staged settings at them."""
    static = source / "book" / "_static" / FOLDER
    for script in (MATHJAX, WIDGETS):
        copy(packages(root) / script, (static / script).parent)
    config = source / "_config.yml"
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["sphinx"]["config"].update(SETTINGS)
    config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")


def is_beside(html: Path) -> bool:
    """Whether a built site was given its scripts, and so needs no other host."""
    return (html / "_static" / FOLDER).is_dir()
