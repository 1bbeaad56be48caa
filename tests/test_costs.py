"""What a momentum job costs beyond the model's own memory: bounded, and the same for 100 and for 5,000 pairs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import austeer as au

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from /proc")


def measured(pairs: int) -> dict:
    """One job in a process of its own, on a random Llama of two layers; most of its weights are embeddings."""
    cell = {"pairs": pairs, "length": 6, "width": 256, "layers": 2}
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once: what lives is measured
    command = [sys.executable, str(ROOT / "experiments" / "costs.py"), "--one", json.dumps(cell)]
    run = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def test_memory_is_bounded_and_does_not_grow_with_the_number_of_pairs() -> None:
    few, many = measured(100), measured(5000)
    assert many["peak"] < 0.25 * many["own"]
    assert many["peak"] - few["peak"] < 0.05 * many["own"]


def test_the_measured_rows_keep_the_bound_on_the_default_model_for_every_site_and_number_of_pairs() -> None:
    rows = [row for row in au.load_results("costs") if "model" in row["cell"]]
    assert {row["cell"]["site"] for row in rows} == {"attention", "ffn", "neuron", "residual"}
    assert max(row["peak"] / row["own"] for row in rows) < 0.25
    pairs = {row["cell"]["pairs"]: row["peak"] / row["own"] for row in rows if row["cell"]["site"] == "attention"}
    assert set(pairs) == {100, 1000, 5000}
    assert max(pairs.values()) - min(pairs.values()) < 0.05
