"""The set-up cell where the library is missing: it installs this book's wheel, and keeps every package there is."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import build
import nbformat
import notebooks
import pytest

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = 'MODEL = None\nDEVICE = "cpu"\nREMOTE = False\nSEED = 0'
BODY = """\
import austeer as au
model = au.load(MODEL, device=DEVICE, remote=REMOTE)
print(au.__file__)
print(au.generate(model, ["A bee is"], max_new_tokens=3))"""


@pytest.fixture
def bare() -> Path:
    """An environment with all that this one has, but for the library; its files are hard links, and so cost nothing."""
    environment = ROOT / "_build" / "bare"
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": environment}))
    own = shutil.ignore_patterns("austeer", "austeer-*")
    shutil.copytree(sysconfig.get_path("purelib"), packages, copy_function=os.link, ignore=own, dirs_exist_ok=True)
    yield environment
    shutil.rmtree(environment)


def test_the_cell_installs_the_wheel_and_keeps_what_is_there(bare: Path, tmp_path: Path):
    (wheel,) = (ROOT / "_build" / "wheel").glob("*.whl")
    where = notebooks.address()
    set_up = where.set_up.replace(f"git+{where.repository}@v{where.version}", wheel.as_uri())
    assert wheel.name in set_up
    cells = [nbformat.v4.new_code_cell(source) for source in (SWITCHES, set_up, BODY)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "chapter.ipynb")
    packages = Path(sysconfig.get_path("purelib", vars={"base": bare}))
    before = {path.name for path in packages.glob("*.dist-info")}

    command = [bare / "bin" / "python", "-m", "pytest", "--nbmake", "--overwrite", "-q", "-p", "no:cacheprovider"]
    scratch = tmp_path / "scratch"
    run = subprocess.run(
        [*command, "-c", os.devnull, f"--rootdir={tmp_path}", "chapter.ipynb"],
        cwd=tmp_path, env=build.clean_environment(scratch), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    shown = nbformat.read(tmp_path / "chapter.ipynb", 4).cells
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in shown]
    assert "SmolLM2-135M-Instruct on the CPU" in printed[1] and f"austeer {where.version}" in printed[1]
    assert str(packages) in printed[2]
    assert {path.name for path in packages.glob("*.dist-info")} - before == {f"austeer-{where.version}.dist-info"}
    assert before <= {path.name for path in packages.glob("*.dist-info")}, "a package was replaced by another version"
