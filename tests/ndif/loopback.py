"""Starts the loopback NDIF in an environment of its own, and tells it which faults to show."""

from __future__ import annotations

import secrets
import subprocess
import uuid
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx
from packaging.requirements import Requirement

# What NDIF installs to run jobs, as far as our jobs could miss it, and tornado, which serves HTTP and WebSocket here.
WANTED = ("nnsight", "torch", "numpy", "transformers", "accelerate", "tornado", "packaging")


def make_environment(directory: Path) -> Path:
    """Make a Python environment of links to some installed packages and what they need; return its interpreter."""
    venv.create(directory, symlinks=True)
    site = next(directory.glob("lib/python*/site-packages"))
    for name in _closure(WANTED):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    return directory / "bin" / "python"


def _closure(names: tuple[str, ...]) -> set[str]:
    """Return packages with all that they require on this machine, extras left out."""
    seen, left = set(), list(names)
    while left:
        name = left.pop()
        if name not in seen:
            try:
                wanted = [Requirement(text) for text in distribution(name).requires or []]
            except PackageNotFoundError:
                assert name not in names, f"{name} is not installed"
                continue  # a requirement of another platform's build
            seen.add(name)
            left += [found.name for found in wanted if not found.marker or found.marker.evaluate({"extra": ""})]
    return seen


class Loopback:
    """The server as its tests see it: where it is, the key that it knows, its faults, what was asked of it.

    Args:
        python: an interpreter, of an environment that `make_environment` made.
        models: directories of models.
        log: where its standard error goes.
    """

    def __init__(self, python: Path, models: list[Path], log: Path):
        self.api_key = str(uuid.UUID(bytes=secrets.token_bytes(16)))
        command = [python, "-I", Path(__file__).with_name("server.py"), "--api-key", self.api_key]
        command += [part for path in models for part in ("--model", str(path))]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        port = self.process.stdout.readline().strip()  # said when it listens; empty if it has ended
        assert port, log.read_text()
        self.host = f"http://127.0.0.1:{port}"

    def faults(self, **faults) -> None:
        """Set faults, as `QUIET` in server.py names them, and forget the jobs so far."""
        httpx.post(f"{self.host}/control", json=faults, trust_env=False).raise_for_status()

    def jobs(self) -> list[dict]:
        """Return what was asked and answered since the last `faults`."""
        return httpx.get(f"{self.host}/control", trust_env=False).json()["jobs"]

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
