"""Train the models of chapter 08: four sizes of a Llama on the reviews of `austeer.small.grammar`, three seeds each.

    python experiments/review_models.py [--seeds 3] [size ...]

The models of seed 0 go to data/models, the others to _build/models, each with its card. Two are trained at a time, each
on one core, so that sums are the same on every number of cores. Resumable: a run that was stopped goes on from its last
50 steps, and a model that is there is not trained again. Under an hour on two CPU cores.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from rows import RESULTS
from tqdm.auto import tqdm

from austeer import small
from austeer.small import grammar, training

LAYERS = {"0.1M": 4, "0.4M": 6, "0.9M": 8, "3.0M": 12}
STEPS, RATE = 1500, 0.01  # of the smallest; the rate falls with the width, as the step of a weight should


def folder(size: str, seed: int) -> Path:
    """Return where a model is, or will be."""
    if seed == 0:
        return RESULTS.parent / "models" / f"reviews-{size}"
    return RESULTS.parents[1] / "_build" / "models" / f"reviews-{size}-seed{seed}"


def make(size: str, seed: int) -> None:
    """Train one model and save it."""
    torch.set_num_threads(1)
    module, start = training.llama(LAYERS[size], seed), time.perf_counter()
    rate, state = round(RATE * 4 / LAYERS[size], 5), folder(size, 1).with_name(f"{size}-{seed}.safetensors")
    training.train(module, training.next_token_loss, STEPS, rate, seed=seed, resume=state)
    about = {
        "made by": "experiments/review_models.py", "seed": seed, "layers": LAYERS[size], "steps": STEPS,
        "reviews per step": training.BATCH, "learning rate": rate, "torch": torch.__version__,
        "transformers": transformers.__version__, "minutes": round((time.perf_counter() - start) / 60, 1),
        **held_out(module.half().float()),
    }  # fmt: skip
    small.save(module, folder(size, seed), about)
    state.unlink(missing_ok=True)


def held_out(module) -> dict:
    """Return the loss on 2,000 new reviews, and the least that any model can have, both in nats per review."""
    texts = [review.text for review in grammar.sample(2000, torch.Generator().manual_seed(0))]
    ids = grammar.encode(texts)
    real = ids != grammar.VOCABULARY[grammar.PAD]
    with torch.no_grad():
        log_p = module(input_ids=ids, attention_mask=real.long()).logits[:, :-1].log_softmax(-1)
    own = -(log_p.gather(-1, ids[:, 1:, None])[..., 0] * real[:, 1:]).sum(-1)
    least = -torch.tensor([grammar.log_probability(text) for text in texts])
    return {"nats per review": round(own.mean().item(), 3), "least possible": round(least.mean().item(), 3)}


def main() -> None:
    """Train what is missing, the large ones first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", choices=[*LAYERS, []], help="all four by default")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    wanted = [(size, seed) for seed in range(given.seeds) for size in given.sizes or LAYERS][::-1]
    wanted = [one for one in wanted if not (folder(*one) / small.CARD).exists()]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for done in tqdm(as_completed([pool.submit(make, *one) for one in wanted]), total=len(wanted), desc="models"):
            done.result()


if __name__ == "__main__":
    main()
