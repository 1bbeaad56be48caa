"""Make data/results/sparsity_family.jsonl: how many neurons matter along the training of small models, ReLU and SiLU.

    python experiments/sparsity_family.py

Two sizes of the Llama of `austeer.small`, each with both activations and two seeds, are trained on reviews and measured
on 500 other reviews on the way; thresholds come from every fourth. No weights are kept. Two are trained at a time, each
on one core, so that sums are the same on every number of cores: a second run on the same kind of processor gives the
same rows. Resumable; ten minutes on two quiet CPU cores.
"""

import copy
import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer import sparsity
from austeer.small import grammar, training

LAYERS = {"0.1M": 4, "0.4M": 6}
STEPS, RATE = 1500, 0.01  # of the smallest; the rate falls with the width
ACTIVATIONS, SEEDS = ("relu", "silu"), 2
MEASURED = (0, 100, 200, 400, 800, STEPS)  # steps that are done
REVIEWS, EVALUATIONS = 500, 9


def measure(module, about: dict) -> None:
    """Find the CETT at which perplexity is up by 1 %, and write the share of active neurons there."""
    model = au.load(copy.deepcopy(module), tokenizer=grammar.tokenizer(), bos=True)
    rows = Rows(RESULTS / "sparsity_family.jsonl", model)
    if rows.get(cell=about) is not None:
        return
    texts = [review.text for review in grammar.sample(REVIEWS, torch.Generator().manual_seed(0))]
    dense, activations = sparsity.activity(model, texts), sparsity.neuron_activations(model, texts[::4])
    seen: dict[float, sparsity.Activity] = {}

    def ratio(target: float) -> float:
        steering = sparsity.sparsified(model, sparsity.thresholds_at(model, activations, target))
        seen[target] = sparsity.activity(model, texts, steering)
        return seen[target].perplexity() / dense.perplexity()

    target = sparsity.cett_at(ratio, 1.0, EVALUATIONS)
    near = min(seen, key=lambda one: abs(one - target))
    rows.add({
        "cell": about, "perplexity": round(dense.perplexity(), 4), "not zero": round(dense.active.mean().item(), 5),
        "tokens": dense.tokens, "target": near, "ratio": round(seen[near].perplexity() / dense.perplexity(), 5),
        "share": round(seen[near].active.mean().item(), 5), "layers": rounded(seen[near].active.mean(1)),
        "seldom": round((seen[near].active < 0.001).float().mean().item(), 4),
    })  # fmt: skip


def follow(size: str, activation: str, seed: int) -> None:
    """Train one model, and measure it on the way."""
    torch.set_num_threads(1)
    about = {"model": size, "activation": activation, "seed": seed}
    module = training.llama(LAYERS[size], seed, activation)

    def loss(module, generator: torch.Generator) -> torch.Tensor:
        done = generator.initial_seed() % 1_000_000
        if done in MEASURED:
            measure(module, {**about, "steps": done})
        return training.next_token_loss(module, generator)

    state = RESULTS.parents[1] / "_build" / "models" / f"sparsity-{size}-{activation}-{seed}.safetensors"
    training.train(module, loss, STEPS, round(RATE * 4 / LAYERS[size], 5), seed=seed, resume=state)
    measure(module, {**about, "steps": STEPS})


def main() -> None:
    """Follow every model whose rows are not all there, the large ones of a seed first."""
    wanted = [(size, kind, seed) for seed in range(SEEDS) for size in [*LAYERS][::-1] for kind in ACTIVATIONS]
    path = RESULTS / "sparsity_family.jsonl"
    cells = [json.loads(line)["cell"] for line in path.read_text().splitlines()] if path.exists() else []
    rows = Counter((cell["model"], cell["activation"], cell["seed"]) for cell in cells)
    wanted = [one for one in wanted if rows[one] < len(MEASURED)]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for done in tqdm(as_completed([pool.submit(follow, *one) for one in wanted]), total=len(wanted), desc="models"):
            done.result()


if __name__ == "__main__":
    main()
