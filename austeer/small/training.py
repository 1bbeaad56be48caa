"""`llama()` and `train()`: the small models and the one loop that trains them, resumable and exact by its seed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from austeer.small import grammar

BATCH = 64  # reviews in a step
WARM_UP = 0.1  # share of the steps in which the learning rate rises
KEEP_EVERY = 50  # steps between two states that are kept


def llama(layers: int, seed: int = 0, hidden_act: str = "silu") -> LlamaForCausalLM:
    """Return an untrained model of the family: transformers' own Llama, 12 dimensions wide for each of its layers.

    A head has 24 dimensions, the FFN is 8/3 as wide as the model, and the input and output embeddings are one. So the
    blocks hold 1,728 layers^3 weights, and models of all sizes have the same proportions.

    Args:
        layers: 4, 6, 8 and 12 give 0.1, 0.4, 0.9 and 3.0 million parameters.
        seed: of the initial weights.
        hidden_act: of the gated FFN, such as "silu" or "relu".

    Raises:
        ValueError: a number of layers that is not even.
    """
    if layers < 2 or layers % 2:
        raise ValueError(f"layers is {layers}; give an even number, so that heads of 24 dimensions fill the width.")
    width, number = 12 * layers, grammar.VOCABULARY
    config = LlamaConfig(
        vocab_size=len(number), hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 24, max_position_embeddings=2 * grammar.LENGTH, tie_word_embeddings=True,
        hidden_act=hidden_act, bos_token_id=number[grammar.BOS], eos_token_id=number[grammar.EOS],
        pad_token_id=number[grammar.PAD],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers draws initial weights from the global generator only
        return LlamaForCausalLM(config)


def next_token_loss(module: nn.Module, generator: torch.Generator) -> Tensor:
    """Return the mean negative log-probability of a new batch of reviews, in nats per token."""
    ids = grammar.encode(review.text for review in grammar.sample(BATCH, generator)).to(module.device)
    real = ids != grammar.VOCABULARY[grammar.PAD]
    logits = module(input_ids=ids, attention_mask=real.long()).logits
    return nn.functional.cross_entropy(logits[:, :-1][real[:, 1:]], ids[:, 1:][real[:, 1:]])


def train(
    module: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    steps: int,
    learning_rate: float,
    *,
    seed: int = 0,
    resume: str | os.PathLike | None = None,
) -> list[float]:
    """Minimise a loss with AdamW: the rate rises over the first tenth of the steps, and falls to 0 along a cosine.

    Args:
        module: trained in place; left in eval mode, without gradients.
        loss: called as `loss(module, generator)`; it draws a batch from the generator, which follows from seed and
            number of the step alone.
        steps: how many.
        learning_rate: the highest.
        seed: of the batches.
        resume: a .safetensors file for the state of the run every 50 steps; a run whose file is there goes on from it.

    Returns:
        The loss of each step.
    """
    weights = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(weights.values(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    losses = _restore(Path(resume), weights, optimizer) if resume and Path(resume).exists() else []
    module.train()
    with tqdm(total=steps, initial=len(losses), desc="training", unit="step", leave=False) as bar:
        for step in range(len(losses), steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _rate((step + 1) / steps)
            found = loss(module, torch.Generator().manual_seed(1_000_000 * (seed + 1) + step))
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            losses.append(found.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
            if resume and len(losses) % KEEP_EVERY == 0:
                _keep(Path(resume), weights, optimizer, losses)
    module.eval().requires_grad_(False)
    return losses


def _rate(done: float) -> float:
    """Return the learning rate as a share of the highest, from the share of the steps that are done."""
    return done / WARM_UP if done < WARM_UP else (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def _keep(path: Path, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
    """Write weights, moments and losses beside the file, then rename: a killed run leaves a whole one."""
    tensors = {f"weight {name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{moment} {name}": optimizer.state[weight][moment] for moment in ("exp_avg", "exp_avg_sq")}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    save_file(tensors, beside, metadata={"losses": json.dumps(losses)})
    beside.replace(path)


def _restore(path: Path, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    """Read what `_keep` wrote into weights and optimizer; return the losses so far."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        losses = json.loads(file.metadata()["losses"])
        for name, weight in weights.items():
            weight.copy_(file.get_tensor(f"weight {name}"))
            moments = {moment: file.get_tensor(f"{moment} {name}") for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.tensor(float(len(losses))), **moments}
    return losses
