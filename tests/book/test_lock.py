"""The lock has exact public versions inside the package's ranges, and the builder that `make` uses."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = {Requirement(text).name: Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])}
LINES = [line for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if not line.startswith("#")]
LOCKED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def test_every_line_is_one_exact_version():
    wrong = [line for line in LINES if not re.fullmatch(r"[\w.-]+==\d[\w.]*", line)]
    assert wrong == [], "local builds, addresses or ranges bind the lock to one machine"


def test_no_cuda_build_is_locked():
    assert not [name for name in LOCKED if name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("name", sorted(WANTED))
def test_lock_is_inside_the_packages_range(name):
    assert LOCKED[canonicalize_name(name)] in WANTED[name].specifier
