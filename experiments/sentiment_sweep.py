"""Make data/results/sentiment_sweep.jsonl: every method, size and strength of chapter 04, on the neutral openings.

    python experiments/sentiment_sweep.py

Resumable: a cell whose row is already in the file is not run again; delete the file to start over. About 20 minutes
on two CPU cores.
"""

from collections.abc import Iterator

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.steering import Steering

PROTOCOL = {"max_new_tokens": 24, "min_new_tokens": 24, "repetition_penalty": 1.1, "rows_per_pass": 256}


def cells(momentum: au.ActivationMomentum) -> Iterator[tuple[dict, Steering]]:
    """Yield (what the cell is, its steering at sign +) for the whole grid."""
    directional, paper = au.methods.DirectionalAUSteer, au.methods.AUSteer
    top = momentum.top(20)
    everything = momentum.beta.numel()
    for k, alphas in (
        (5, (8, 16, 24)),
        (20, (4, 8, 10, 12, 16, 20)),
        (100, (2, 4, 6, 8)),
        (everything, (0.5, 1, 1.5, 2)),
    ):
        for alpha in alphas:
            yield (
                {"rule": "directional", "choice": "momentum", "k": k, "alpha": alpha},
                directional(momentum.top(k), alpha),
            )
    for alpha in (2, 4, 6, 8, 10):
        units = momentum.top(20, by="mean_difference")
        yield {"rule": "directional", "choice": "mean difference", "k": 20, "alpha": alpha}, directional(units, alpha)
    for k, alphas in ((5, (5, 10)), (20, (1, 2, 5, 10, 15)), (100, (1, 2, 10))):
        for alpha in alphas:
            yield (
                {"rule": "multiplicative", "choice": "momentum", "k": k, "alpha": alpha},
                paper(momentum.top(k), alpha),
            )
    for seed in range(10):
        for alpha in (12, 24):
            units = momentum.random(20, seed).with_norm_of(top)
            cell = {"rule": "directional", "choice": "random units", "k": 20, "alpha": alpha, "seed": seed}
            yield cell, directional(units, alpha)
    for seed in range(5):
        cell = {"rule": "directional", "choice": "shuffled signs", "k": 20, "alpha": 12, "seed": seed}
        yield cell, directional(top.shuffled_signs(seed), 12)


def main() -> None:
    """Run the cells that are missing."""
    model = au.load()
    momentum = au.activation_momentum(model, au.split(au.load_pairs("sentiment")).train)
    openings = au.split(au.load_prompts("openings"))
    rows = Rows(RESULTS / "sentiment_sweep.jsonl", model)
    grid = [({"choice": "unsteered", "k": 0, "alpha": 0}, None), *cells(momentum)]
    for cell, steering in tqdm(grid, desc="cells"):
        if rows.get(cell=cell):
            continue
        # controls choose nothing, so they need no validation openings
        parts = (
            {"test": openings.test} if "seed" in cell else {"validation": openings.validation, "test": openings.test}
        )
        prompts = [opening.prompt for part in parts.values() for opening in part]
        signs = [None] if steering is None else [steering, -steering]
        texts = au.generate(model, prompts * len(signs), [sign for sign in signs for _ in prompts], **PROTOCOL)
        row = {
            "cell": cell,
            "part": [name for name, part in parts.items() for _ in part],
            "sentiment": _lists(au.sentiment(texts), len(prompts)),
            "perplexity": _lists(au.perplexity(model, texts, prompts * len(signs)), len(prompts)),
            "repetition": _lists(au.repetition(texts), len(prompts)),
        }
        rows.add(row)


def _lists(values: torch.Tensor, openings: int) -> list[list[float]]:
    """One list per sign, in the order +, -; four decimals."""
    return rounded(values.view(-1, openings))


if __name__ == "__main__":
    main()
