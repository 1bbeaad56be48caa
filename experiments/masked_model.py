"""Train the masked diffusion model of chapter 13 on the reviews of `austeer.small.grammar`.

    python experiments/masked_model.py [--scratch]

It starts from the causal model reviews-0.4M of chapter 8, loses its causal mask, and goes to
data/models/diffusion-0.4M, with its card. With --scratch the weights start at random, and it goes to
_build/models/diffusion-scratch, for the comparison in the chapter. One thread, so that sums are the same on every
number of cores. Resumable: a run that was stopped goes on from its last 50 steps, and a model that is there is not
trained again. Ten minutes on a quiet CPU core each.
"""

import argparse
import time

import torch
import transformers
from rows import RESULTS

from austeer import small
from austeer.small import diffusion, grammar, training

CAUSAL, LAYERS, RATE, SEED = "reviews-0.4M", 6, 0.003, 0
STEPS = {False: 5000, True: 4000}  # with random weights first or not
BUILD = RESULTS.parents[1] / "_build" / "models"
FOLDER = {False: RESULTS.parent / "models" / "diffusion-0.4M", True: BUILD / "diffusion-scratch"}


def held_out(module, reviews: int = 512, draws: int = 8) -> dict:
    """Return the bound on the loss of new reviews, with its standard error, and the least there is: nats per answer."""
    new = grammar.sample(reviews, torch.Generator().manual_seed(0))
    bound = diffusion.bound(module, new, draws, torch.Generator().manual_seed(1))
    least = -torch.tensor([diffusion.answer_log_probability(review) for review in new])
    excess = bound - least
    return {
        "bound, nats per answer": round(bound.mean().item(), 3), "least possible": round(least.mean().item(), 3),
        "standard error of the difference": round(excess.std().item() / reviews**0.5, 3),
    }  # fmt: skip


def make(scratch: bool) -> None:
    """Train a model, if it is not there."""
    if (FOLDER[scratch] / small.CARD).exists():
        return
    torch.set_num_threads(1)
    start, state = time.perf_counter(), BUILD / f"diffusion-{scratch}.safetensors"
    first = training.llama(LAYERS, SEED) if scratch else small.load(CAUSAL)._module
    module = diffusion.masked(first).requires_grad_(True)
    training.train(module, diffusion.masked_loss, STEPS[scratch], RATE, seed=SEED, resume=state)
    about = {
        "made by": "experiments/masked_model.py", "start": "random weights" if scratch else CAUSAL, "seed": SEED,
        "layers": LAYERS, "steps": STEPS[scratch], "reviews per step": training.BATCH, "learning rate": RATE,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "minutes": round((time.perf_counter() - start) / 60, 1), **held_out(module.half().float()),
    }  # fmt: skip
    small.save(module, FOLDER[scratch], about)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", action="store_true")
    make(parser.parse_args().scratch)
