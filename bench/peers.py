"""Time the library against its peers, each in an environment of its own: `make bench`, or python bench/peers.py.

Each peer is installed below _build/peers, with the torch of the running environment, and gets a process
(bench/peer_jobs.py) that loads the default model and waits. The processes take turns. *Extraction* is the mean
difference of every block's output at the last token of 64 contrastive pairs; *generation* is 24 greedy tokens after one
prompt, and after sixteen, while one vector is added at one layer to every token, the prompt's and the new ones.

What is not the same for all:

- steering-vectors asks for transformers below 5, so it has 4.57, and the others today's.
- repeng has no mean difference. Of its methods `pca_center` is the closest: the first principal component of both sides
  around each pair's middle, of unit norm, by scikit-learn. Its last layer is read after the final norm. So its vectors
  are compared by their cosine, at the layer that is steered.
- pyvene and nnterp collect and steer; the mean over pairs is taken by hand. pyvene steers all tokens, the prompt's and
  the new ones, where it gets no location and `intervene_on_prompt`.
- nnterp asks for nnsight from 0.6 on, but imports a module that 0.8 no longer has ("No module named
  'nnsight.intervention.tracing'"), so it has 0.7.
- The peers read eight texts at a time, in the order given, each side whole, and all but nnterp go on to the logits. The
  library sorts by length, reads both sides of a pair together and what they begin with once, and stops after the last
  layer that it reads; it has no batch size, but a number of tokens per pass. It counts signs and squares, too.

Exit status 1 if vectors or continuations are not the same (for repeng: a cosine below 0.95).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from timing import ratio, record, take_turns

import austeer as au

PEERS = {  # what pip is asked for, beside torch
    "steering-vectors": ("steering-vectors==0.12.2", "transformers==4.57.6"),
    "repeng": ("repeng==0.4.0", f"transformers=={transformers.__version__}"),
    "pyvene": ("pyvene==0.1.8", f"transformers=={transformers.__version__}"),
    "nnterp": ("nnterp==1.3.0", f"transformers=={transformers.__version__}", "nnsight==0.7.0"),
}
PAIRS, SIZES, LAYER, STRENGTH, HOW = 64, (1, 16), 14, 2.0, {"max_new_tokens": 24, "min_new_tokens": 24}
HERE = Path(__file__).parent


def installed(name: str) -> Path:
    """Return the Python of a peer's own environment, made or brought up to date."""
    home = HERE.parent / "_build" / "peers" / name
    python = home / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", *PEERS[name]]
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *wanted], check=True)
    return python


def leave_work(directory: Path) -> None:
    """Save the default model and what is to be done with it."""
    model, pairs = au.load(), au.load_pairs("sentiment")[:PAIRS]
    model._module.save_pretrained(directory / "model")
    model.tokenizer.save_pretrained(directory / "model")
    # Names that transformers 4 reads; without the first it takes another base of its rotations, and says nothing.
    own = {"rope_theta": model._module.config.rope_parameters["rope_theta"]}
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    for file, more in (("config.json", own), ("tokenizer_config.json", names)):
        path = directory / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    work = {
        "pairs": [(pair.prompt + pair.positive, pair.prompt + pair.negative) for pair in pairs],
        "prompts": [opening.prompt for opening in au.load_prompts("openings")[: max(SIZES)]],
        "vector": au.activation_momentum(model, pairs, "residual").mean_difference[LAYER].tolist(),
    }
    work |= {"sizes": SIZES, "layer": LAYER, "strength": STRENGTH, "how": HOW}
    (directory / "work.json").write_text(json.dumps(work))


class Worker:
    """A process that has one library and the model, and does one job at a time when it is told to."""

    def __init__(self, name: str, python: list[str | Path], directory: Path):
        self.name, quiet = name, {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(
            [*python, HERE / "peer_jobs.py", name, directory],
            env={**os.environ, **quiet}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def answer(self) -> str:
        """Wait for a line."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The process of {self.name} ended; what it wrote above says why.")
        return line

    def ask(self, what: str) -> str:
        """Give a job, or ask for the last one's result, and wait for the answer."""
        print(what, file=self.process.stdin, flush=True)
        return self.answer()


def agree(name: str, job: str, found, ours) -> bool:
    """Say how far a peer's result is from ours, and return whether that is as it should be."""
    if job != "extraction":
        same = sum(text == other for text, other in zip(found, ours, strict=True))
        print(f"{job}: {name} says the same for {same} of {len(ours)} prompts")
        return same == len(ours)
    theirs, own = torch.tensor(found), torch.tensor(ours)
    cosine = torch.cosine_similarity(theirs, own).tolist()
    off = ((theirs - own).norm(dim=1) / own.norm(dim=1)).max().item()
    print(f"{job}: {name}: cosine {cosine[LAYER]:.3f} at layer {LAYER}, {min(cosine):.3f} at least; off by {off:.1e}")
    return cosine[LAYER] > 0.95 if name == "repeng" else off < 1e-4


def main() -> int:
    """Install, check, time, print the ratios, write the rows; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats, rows, right = parser.parse_args().repeats, [], True
    pythons = {"austeer": [sys.executable], **{name: [installed(name), "-I"] for name in PEERS}}  # -I: no path of ours
    with tempfile.TemporaryDirectory() as directory:
        leave_work(Path(directory))
        workers = [Worker(name, python, Path(directory)) for name, python in pythons.items()]
        try:
            for worker in workers:
                worker.answer()
            for job in ("extraction", *(f"generation {size}" for size in SIZES)):
                seconds = take_turns(
                    {worker.name: lambda worker=worker, job=job: worker.ask(job) for worker in workers}, repeats
                )
                ours, *others = (json.loads(worker.ask("last")) for worker in workers)
                for name, found in zip(PEERS, others, strict=True):
                    right &= agree(name, job, found, ours)
                    middle, low, high = ratio(seconds, name, "austeer")
                    print(f"{job}: {name} takes {middle:.2f} of austeer's time ({low:.2f} to {high:.2f})")
                    kind = f"{PAIRS} pairs" if job == "extraction" else f"batch of {job.split()[1]}"
                    row = {"kind": f"{job.split()[0]}, {kind}", "way": f"{name} / austeer"}
                    rows.append({"job": "peers", **row, "ratio": (middle, low, high)})
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
    record("peers", rows)
    return int(not right)


if __name__ == "__main__":
    raise SystemExit(main())
