"""Prints the lowest versions that pyproject.toml allows, as constraints for pip: `make versions` tests with them."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]


def lowest(requirement: str) -> str:
    """Turn "torch>=2.6,<3" into "torch==2.6"."""
    name, version = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
    return f"{name}=={version}"


if __name__ == "__main__":
    print(*map(lowest, PROJECT["dependencies"]), sep="\n")
