"""Executes each chapter once, alone, and builds the site from the executed copies."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import nbformat
import vendored
import yaml
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from notebooks import address
from results import fill, table

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600  # seconds, of one cell
CORES = os.cpu_count() or 1
COLOUR = re.compile(r"\x1b\[[\d;]*m")
OWN_DATA = "application/vnd.austeer."  # outputs for the tests, which no page can show
WIDGET = "application/vnd.jupyter.widget-view+json"
TAGGED = re.compile(r"^\$\$(.*\\tag\{[^}]*\})\$\$$", re.MULTILINE)  # an equation with a number
FOLDED = re.compile(r"#@title (.+)\n")  # the first line of a solution, as Colab shows it
NOT_STAGED = ("*.py", "*.ipynb", "__pycache__", "package*.json")  # of book/; chapters are staged as executed
INCLUDED = ("data/README.md", "CHANGELOG.md")  # what pages of the book take in from elsewhere
VERSIONS = ("austeer", "torch", "transformers")  # what a page's last line names


def toc_files(toc: dict) -> Iterator[str]:
    """The pages of a table of contents in reading order, as written there."""
    if "root" in toc or "file" in toc:
        yield toc.get("root") or toc["file"]
    for branch in ("parts", "chapters", "sections"):
        for entry in toc.get(branch, ()):
            yield from toc_files(entry)


def without(toc: dict, missing: set[str]) -> dict:
    """A table of contents without the missing pages and without parts that they leave empty."""
    branches = ("parts", "chapters", "sections")
    kept = {key: value for key, value in toc.items() if key not in branches}
    for branch in branches:
        entries = [without(entry, missing) for entry in toc.get(branch, ()) if entry.get("file") not in missing]
        entries = [entry for entry in entries if branch != "parts" or entry.get("chapters")]
        if entries:
            kept[branch] = entries
    return kept


def chapters(root: Path) -> list[Path]:
    """The notebooks of the table of contents, in reading order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    return [root / f"{file}.ipynb" for file in toc_files(toc) if (root / f"{file}.ipynb").exists()]


def library_files(root: Path) -> list[Path]:
    """The files whose change makes every executed chapter out of date."""
    files = [*(root / "austeer").rglob("*.py"), *(path for path in (root / "data").rglob("*") if path.is_file())]
    return [*sorted(files), root / "requirements.lock"]


def key(notebook: Path, root: Path) -> str:
    """The hash of all that a chapter's run depends on: itself, the library, the data, the lock."""
    digest = hashlib.sha256()
    for path in (notebook, *library_files(root)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def executed_path(notebook: Path, root: Path) -> Path:
    """Where the executed copy of a chapter is kept."""
    return root / "_build" / "executed" / notebook.name


def is_current(notebook: Path, root: Path) -> bool:
    """Whether the executed copy of a chapter was made from what is there now."""
    copy = executed_path(notebook, root)
    return copy.exists() and json.loads(copy.read_text("utf-8"))["metadata"]["austeer"]["key"] == key(notebook, root)


def library_is_installed(root: Path) -> bool:
    """Whether the library that the chapters will import is the checkout's, and not an older one."""
    spec = importlib.util.find_spec("austeer")
    if spec is None or not spec.submodule_search_locations:
        return False
    installed = Path(spec.submodule_search_locations[0])
    return all(
        (installed / path.relative_to(root / "austeer")).is_file()
        and (installed / path.relative_to(root / "austeer")).read_bytes() == path.read_bytes()
        for path in (root / "austeer").rglob("*.py")
    )


def jobs() -> int:
    """How many chapters run at a time: each has two cores and four gigabytes, which the longest needs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(CORES // 2, int(memory // 4e9)))


def clean_environment(scratch: Path) -> dict[str, str]:
    """The environment of a run that sees nothing of the checkout and nothing of the user's Python settings."""
    unwanted = ("PYTHON", "PYTEST", "JUPYTER", "IPYTHON", "MPL", "AUSTEER_DATA")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"IPYTHONDIR": str(scratch), "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONNOUSERSITE": "1"}


def execute(notebook: Path, root: Path) -> bool:
    """Runs one chapter in an empty directory; keeps its executed copy if every cell went through."""
    target = executed_path(notebook, root)
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    made_of, start = key(notebook, root), time.monotonic()
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as scratch:
        copy = Path(directory) / notebook.name
        shutil.copyfile(notebook, copy)
        command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", f"--nbmake-timeout={TIMEOUT}", "-q"]
        command += ["-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={directory}", notebook.name]
        environment = clean_environment(Path(scratch)) | {"OMP_NUM_THREADS": str(max(1, CORES // jobs()))}
        with (Path(scratch) / "log").open("w+") as log:
            run = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(run.pid, 0)  # with what the kernel, its child, has used
            run.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - start
            result = nbformat.read(copy, as_version=4)
            print(f"{notebook.name}: {'executed' if run.returncode == 0 else 'FAILED'} in {seconds:.0f} s", flush=True)
            if run.returncode:
                log.seek(0)
                print(failure(result) or log.read(), flush=True)
                return False
    result.metadata["austeer"] = {
        "key": made_of,
        "seconds": round(sum(map(cell_seconds, result.cells)), 1),
        "gigabytes": round(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 2),
        "versions": {name: version(name) for name in VERSIONS},
    }
    part = target.with_suffix(".part")
    nbformat.write(result, part)
    part.replace(target)
    return True


def failure(executed: NotebookNode) -> str:
    """The cell at which a run stopped and its error, as text; empty if no cell has an error."""
    for number, cell in enumerate(executed.cells, 1):
        for output in cell.get("outputs", ()):
            if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", ()):
                trace = COLOUR.sub("", "\n".join(output.traceback))
                return f"--- cell {number}:\n{cell.source}\n--- error:\n{trace}"
    return ""


def cell_seconds(cell: NotebookNode) -> float:
    """The time that a cell ran, from the kernel's own messages; 0 where they are missing."""
    times = cell.metadata.get("execution", {})
    begin, end = times.get("iopub.execute_input"), times.get("shell.execute_reply")
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() if begin and end else 0.0


def localise(text: str, page: Path, staged: set[str], whole: bool, site: str) -> str:
    """Points links and cards at the book's own pages to the staged files, and to the site where a page is not staged.

    `staged` holds the pages as in the table of contents; in a whole build every link to the site becomes local, so
    that the build reports those which lead nowhere.
    """

    def change(match: re.Match[str]) -> str:
        link, _, anchor = match[1].partition("#")
        anchor = anchor and f"#{anchor}"
        if link.startswith(site) and link.endswith(".html"):
            name = link.removeprefix(site).removesuffix(".html")
            if whole or name in staged:
                suffix = ".ipynb" if page.parent.joinpath(Path(name).name + ".ipynb").exists() else ".md"
                return f"]({os.path.relpath(name, page.parent.name)}{suffix}{anchor})"
        elif link.endswith(".ipynb") and "://" not in link and not whole:
            name = f"{page.parent.name}/{link.removesuffix('.ipynb')}"
            if name not in staged:
                return f"]({site}{name}.html{anchor})"
        return match[0]

    def change_card(match: re.Match[str]) -> str:
        name = f"{page.parent.name}/{match[1]}"
        return match[0] if whole or name in staged else f":link: {site}{name}.html\n:link-type: url"

    text = re.sub(r"^:link: (\S+)\n:link-type: doc$", change_card, text, flags=re.MULTILINE)
    return re.sub(r"\]\(([^)\s]+)\)", change, text)


def run_line(executed: NotebookNode) -> str:
    """The small last line of a page: how long its run took, with what."""
    about = executed.metadata["austeer"]
    used = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    cost = f"{about['seconds']:.0f} s, and took {about['gigabytes']:.1f} GB of memory at most,"
    return f"<small>The cells of this page ran in {cost} with {used}.</small>"


def page_of(executed: NotebookNode) -> NotebookNode:
    """An executed chapter as its page shows it: without the data that only tests read, with the line of its run.

    Folded cells say what is in them; the last one, which asserts, is folded too.
    """
    for output in (output for cell in executed.cells for output in cell.get("outputs", ())):
        if "data" in output:
            output.data = {kind: value for kind, value in output.data.items() if not kind.startswith(OWN_DATA)}
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
            if named := FOLDED.match(cell.source):
                cell.source = cell.source[named.end() :]
                fold(cell, named[1])
            elif "claims" in cell.metadata.get("tags", ()):
                cell.metadata.tags.append("hide-input")
                fold(cell, "The code that asserts them")
    executed.cells.append(nbformat.v4.new_markdown_cell(run_line(executed)))
    return executed


def fold(cell: NotebookNode, name: str) -> None:
    """Names what a folded cell shows when it is opened, and when it is closed again."""
    cell.metadata.setdefault("mystnb", {}).update(code_prompt_show=name, code_prompt_hide=f"{name} (close)")


def printed(page: NotebookNode) -> NotebookNode:
    """A chapter's page as paper can show it: no sliders, tables without HTML, numbered equations as TeX has them."""
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = TAGGED.sub(r"\\begin{equation*}\1\\end{equation*}", cell.source)
            continue
        if name := cell.metadata.get("mystnb", {}).get("code_prompt_show"):  # nothing is folded on paper
            cell.source = f"# {name}\n{cell.source}"
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", ())]
        for output in cell.outputs:
            lines = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser").find_all("tr")
            if lines:
                head, *rows = ([part.get_text(" ", strip=True) for part in line(["td", "th"])] for line in lines)
                output.data = {"text/markdown": table(head, rows)}
    return page


def stage(root: Path, whole: bool, pdf: bool = False) -> Path:
    """Lays out what jupyter-book reads: settings, pages and the executed chapters."""
    source, site = root / "_build" / "source", address(root).site
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "book", source / "book", ignore=shutil.ignore_patterns(*NOT_STAGED))
    shutil.copyfile(root / "_config.yml", source / "_config.yml")
    for name in INCLUDED:
        if (root / name).exists():
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(root / name, source / name)
    toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    missing = {
        path.relative_to(root).with_suffix("").as_posix()
        for path in chapters(root)
        if not executed_path(path, root).exists()
    }
    staged = set(toc_files(toc)) - missing
    (source / "_toc.yml").write_text(yaml.safe_dump(without(toc, missing), sort_keys=False), "utf-8")
    for path in chapters(root):
        if path.relative_to(root).with_suffix("").as_posix() in staged:
            notebook = page_of(nbformat.read(executed_path(path, root), as_version=4))
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = localise(cell.source, path, staged, whole, site)
            nbformat.write(printed(notebook) if pdf else notebook, source / path.relative_to(root))
    executed = {
        f"{site}{path.relative_to(root).with_suffix('.html').as_posix()}": nbformat.read(executed_path(path, root), 4)
        for path in chapters(root)
        if executed_path(path, root).exists()
    }
    rows = {name: shipped_rows(root, name) for name in ("speed", "side_by_side")}
    for path in (source / "book").rglob("*.md"):
        original = root / path.relative_to(source)
        text = fill(path.read_text("utf-8"), executed, **rows)
        path.write_text(localise(text, original, staged, whole, site), "utf-8")
    return source


def shipped_rows(root: Path, name: str) -> list[dict]:
    """The rows of data/results/NAME.jsonl; none where it is not there, as in a copy with one chapter."""
    path = root / "data" / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def build_site(root: Path, whole: bool, offline: bool = False) -> bool:
    """Builds the pages into _build/html, where every warning is an error."""
    source = stage(root, whole)
    if offline:
        vendored.stage(root, source)
    return jupyter_book(root, source, "html", root / "_build" / "html" / "index.html", "-n", "-W", "--keep-going")


def build_pdf(root: Path, whole: bool) -> bool:
    """Builds the whole book as one PDF in _build/latex."""
    return jupyter_book(root, stage(root, whole, pdf=True), "pdflatex", root / "_build" / "latex" / "austeer-book.pdf")


def jupyter_book(root: Path, source: Path, builder: str, made: Path, *settings: str) -> bool:
    """Builds anew what `made` belongs to, says where it is, and whether it is there."""
    for leftover in (made.parent, root / "_build" / ".doctrees"):
        shutil.rmtree(leftover, ignore_errors=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source, "--path-output", root]
    command += ["--builder", builder, "-q", *settings]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if run.returncode or not made.exists():
        print(COLOUR.sub("", run.stdout + run.stderr) + f"No {made.name}: the lines above say why.")
        return False
    print(f"The book is at {made}", flush=True)
    return True


def main(root: Path, chapter: str | None, offline: bool = False, pdf: bool = False) -> int:
    """Executes what is out of date, builds the site or the PDF, and returns the exit status."""
    if offline and not vendored.are_installed(root):
        print("The packages of an offline site are not in _build/npm: run `make book OFFLINE=1`, which installs them.")
        return 1
    if not library_is_installed(root):
        print("The installed library is not the one of this checkout: run `make book`, which installs it first.")
        return 1
    todo = chapters(root)
    if chapter:
        todo = [path for path in todo if path.stem == chapter or path.stem.startswith(f"{chapter}_")]
        if not todo:
            names = ", ".join(path.stem for path in chapters(root))
            print(f"There is no chapter {chapter!r} in _toc.yml: it has {names}.")
            return 1
        print("One chapter only: the site gets this one, the pages, and the chapters that were executed before.")
    stale = [path for path in todo if not is_current(path, root)]
    for path in todo:
        if path not in stale:
            print(f"{path.name}: unchanged, its executed copy is kept", flush=True)
    with ThreadPoolExecutor(jobs()) as pool:
        ran = list(pool.map(lambda path: execute(path, root), stale))
    failed = [path.name for path, went_through in zip(stale, ran, strict=True) if not went_through]
    if failed and not chapter:
        print(f"No site without {', '.join(failed)}.", flush=True)
        return 1
    built = build_pdf(root, not chapter) if pdf else build_site(root, not chapter, offline)
    return int(bool(failed) or not built)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chapter", help="number or name of the only chapter to execute", default=None)
    parser.add_argument("--offline", help="build a site that loads nothing from other hosts", action="store_true")
    parser.add_argument("--pdf", help="build one PDF, not the site; needs latexmk and xelatex", action="store_true")
    arguments = parser.parse_args()
    sys.exit(main(ROOT, arguments.chapter or None, arguments.offline, arguments.pdf))
