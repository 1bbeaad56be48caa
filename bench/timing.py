"""What the benchmarks share: runs that take turns, so that a slow minute hits all of them, and ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap
from tqdm import tqdm

ROWS = Path(__file__).parents[1] / "data" / "results" / "speed.jsonl"


def take_turns(runs: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Return the seconds of each run, repeated; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in tqdm(range(repeats + 1), "rounds", unit="round"):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, floor: str) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, and its 95 % interval."""
    found = np.array(seconds[name]) / np.array(seconds[floor])
    drawn = bootstrap((found,), np.median, method="percentile", rng=0).confidence_interval
    return statistics.median(found), float(drawn.low), float(drawn.high)


def record(job: str, rows: list[dict]) -> None:
    """Put a benchmark's rows into data/results/speed.jsonl, in the place of its older ones."""
    old = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    kept = [row for row in old if row["job"] != job]
    new = [{**row, "ratio": [round(value, 3) for value in row["ratio"]]} for row in rows]
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *new]))
