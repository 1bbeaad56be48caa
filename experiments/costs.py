"""Make data/results/costs.jsonl: seconds and peak memory of a momentum job against pairs, length, width and layers.

    python experiments/costs.py

On random Llamas of several shapes and on the default model, on one thread: the seconds are those that the processor
worked, whatever else it had to do. Memory is read from /proc, so it needs Linux: the peak of what lives at one time,
and "kept", the peak where glibc's allocator keeps pieces that were freed. Resumable. About 15 minutes.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from rows import RESULTS, Rows
from tqdm.auto import tqdm

import austeer as au
from austeer.data import ContrastivePair

RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once: this costs time
BASE = {"pairs": 200, "length": 32, "width": 256, "layers": 8}
STEPS = {"pairs": (100, 400), "length": (16, 64, 128), "width": (128, 512), "layers": (4, 16)}
ONE_AT_A_TIME = [BASE, *({**BASE, name: value} for name, values in STEPS.items() for value in values)]
SITES = (("attention", 100), ("neuron", 100), ("ffn", 100), ("residual", 100), ("attention", 1000), ("attention", 5000))
DEFAULT = [{"model": au.models.DEFAULT, "site": site, "pairs": pairs, "length": 6} for site, pairs in SITES]


def llama(width: int, layers: int):
    """Return a random Llama of this shape through `au.load`."""
    tokenizer = au.load().tokenizer
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return au.load(transformers.LlamaForCausalLM(config), tokenizer=tokenizer)


def texts(pairs: int, length: int) -> list[ContrastivePair]:
    """Return pairs of two texts of exactly so many tokens, which begin differently, in 100 topics."""
    one, two = (start + " and" * (length - 2) + end for start, end in (("One", " good"), ("Two", " bad")))
    return [ContrastivePair("", one, two, f"topic {number % 100}") for number in range(pairs)]


def memory(name: str) -> int:
    """Return a line of this process's status in bytes: "VmRSS" now, "VmHWM" at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(cell: dict) -> dict:
    """Run one job in this process; return its seconds, and in bytes its peak over the model and the model's own."""
    torch.set_num_threads(1)
    model = au.load() if "model" in cell else llama(cell["width"], cell["layers"])
    site, pairs = cell.get("site", "attention"), texts(cell["pairs"], cell["length"])
    weights = list(model._module.parameters())
    au.activation_momentum(model, pairs[:2], site)  # the first pass loads what every later one uses
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the highest value begins anew
    before, start = memory("VmRSS"), time.process_time()
    au.activation_momentum(model, pairs, site)
    seconds = time.process_time() - start
    blocks = model._module.get_submodule(au.sites.anatomy(model).blocks)
    return {
        "cell": cell,
        "seconds": round(seconds, 3),
        "peak": memory("VmHWM") - before,
        "own": sum(weight.numel() * weight.element_size() for weight in weights),
        "block_weights": sum(weight.numel() for weight in blocks.parameters()),
    }


def alone(cell: dict, **settings: str) -> dict:
    """Measure a cell in a process of its own, with nothing of another job in its memory."""
    job = [sys.executable, __file__, "--one", json.dumps(cell)]
    said = subprocess.run(job, check=True, capture_output=True, text=True, env={**os.environ, **settings}).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    """Measure the cells that are missing, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=json.loads, help="measure this cell only, and print its row")
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(one)))
        return
    rows = Rows(RESULTS / "costs.jsonl", au.load())
    for cell in tqdm([*ONE_AT_A_TIME, *DEFAULT], unit="cell"):
        if not rows.get(cell=cell):
            found, lives = alone(cell), alone(cell, **RETURN_AT_ONCE)
            rows.add({**found, "peak": lives["peak"], "kept": found["peak"]})


if __name__ == "__main__":
    main()
