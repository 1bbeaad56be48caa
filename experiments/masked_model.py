"""Train the masked diffusion model of chapter 13 on the reviews of `austeer.small.grammar`.

    python experiments/masked_model.py

It starts from the causal model reviews-0.4M of chapter 8, loses its causal mask, and goes to
data/models/diffusion-0.4M, with its card. One thread, so that sums are the same on every number of cores. Resumable: a
run that was stopped goes on from its last 50 steps, and a model that is there is not trained again. A second run on
the same kind of processor gives the same weights to the byte. Ten minutes on a quiet CPU core.
"""

import torch
import transformers
from rows import RESULTS

from austeer import small
from austeer.small import diffusion, grammar, training

START, FOLDER = "reviews-0.4M", RESULTS.parent / "models" / "diffusion-0.4M"
STEPS, RATE, SEED = 5000, 0.003, 0


def held_out(module, reviews: int = 512, draws: int = 8) -> dict:
    """Return the bound on the loss of new reviews, with its standard error, and the least there is: nats per answer."""
    new = grammar.sample(reviews, torch.Generator().manual_seed(0))
    bound = diffusion.bound(module, new, draws, torch.Generator().manual_seed(1))
    least = -torch.tensor([grammar.answer_log_probability(review) for review in new])
    excess = bound - least
    return {
        "bound, nats per answer": round(bound.mean().item(), 3), "least possible": round(least.mean().item(), 3),
        "standard error of the difference": round(excess.std().item() / reviews**0.5, 3),
    }  # fmt: skip


def main() -> None:
    """Train the model, if it is not there."""
    if (FOLDER / small.CARD).exists():
        return
    torch.set_num_threads(1)
    module = diffusion.masked(small.load(START)._module).requires_grad_(True)
    state = RESULTS.parents[1] / "_build" / "models" / "diffusion.safetensors"
    training.train(module, diffusion.masked_loss, STEPS, RATE, seed=SEED, resume=state)
    about = {
        "made by": "experiments/masked_model.py", "start": START, "seed": SEED, "layers": len(module.model.layers),
        "steps": STEPS, "reviews per step": training.BATCH, "learning rate": RATE, "torch": torch.__version__,
        "transformers": transformers.__version__, **held_out(module.half().float()),
    }  # fmt: skip
    small.save(module, FOLDER, about)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
