"""Time `sweep` on every attention unit of one layer against the plain way, and compare what both say.

    python bench/unit_sweep.py        # or: make bench
    python bench/unit_sweep.py --all  # the plain way for every unit, not for a sample

The plain way is transformers with a hook: for each unit one forward pass of all prompts as one padded batch. It is
timed on a few units, after a warm-up, and multiplied. Exit status 1 if the two disagree.
"""

import argparse
import time

import torch
from torch import Tensor
from tqdm import tqdm

import austeer as au
from austeer import diagnostics
from austeer.sites import Place

PLACE, FACTOR = Place(15, "attention"), 5.0
PROMPTS, SAMPLE = 32, [3, 200, 575]
TOLERANCE = 1e-4


def swept(model, prompts: list[str], width: int, tokens: list[int]) -> Tensor:
    """Return (units, prompts) effects by `sweep`; the last row of its factor leaves all units alone."""
    factor = diagnostics.turned_up(width, [*([unit] for unit in range(width)), []], FACTOR)
    logits = diagnostics.unembed(model, diagnostics.sweep(model, prompts, PLACE, factor), tokens)
    difference = logits[..., 0] - logits[..., 1]
    return (difference[:, :-1] - difference[:, -1:]).T


class Plain:
    """The same with transformers alone: its module, a hook, and all prompts as one padded batch."""

    def __init__(self, model, prompts: list[str], tokens: list[int]):
        self.module, self.tokens = model._module, tokens
        self.batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
        self.batch["position_ids"] = (self.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    def difference(self, unit: int | None) -> Tensor:
        """Return (prompts,) the first token's logit minus the second's, with one unit turned up at the last token."""

        def turn_up(_, given: tuple[Tensor]) -> tuple[Tensor]:
            x = given[0].clone()
            x[:, -1, unit] *= FACTOR
            return (x,)

        projection = self.module.model.layers[PLACE.layer].self_attn.o_proj
        handle = None if unit is None else projection.register_forward_pre_hook(turn_up)
        try:
            with torch.no_grad():
                logits = self.module(**self.batch, use_cache=False, logits_to_keep=1).logits[:, 0]
        finally:
            if handle:
                handle.remove()
        return logits[:, self.tokens[0]] - logits[:, self.tokens[1]]


def main() -> int:
    """Time both ways, print seconds, ratio and largest difference; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run the plain way for every unit, not for a sample")
    every, model = parser.parse_args().all, au.load()
    prompts = [f"{pair.prompt}{pair.positive} It made me feel very" for pair in au.load_pairs("sentiment")[:PROMPTS]]
    width = au.sites.anatomy(model).widths["attention"]
    tokens = [diagnostics.token_id(model, word) for word in (" happy", " sad")]
    plain = Plain(model, prompts, tokens)
    unsteered = plain.difference(None)  # the warm-up, too
    units = list(range(width)) if every else SAMPLE
    start = time.perf_counter()
    slow = torch.stack([plain.difference(unit) for unit in tqdm(units, "the plain way", unit="unit")]) - unsteered
    plain_seconds = (time.perf_counter() - start) * width / len(units)
    start = time.perf_counter()
    fast = swept(model, prompts, width, tokens)
    seconds = time.perf_counter() - start

    worst = (fast[units] - slow).abs().max().item()
    how = "measured" if every else f"{len(units)} units measured, multiplied up to {width}"
    print(f"{width} units of layer {PLACE.layer}, {len(prompts)} prompts, {torch.get_num_threads()} threads")
    print(f"one unit at a time: {plain_seconds:8.1f} s ({how})\nsweep:              {seconds:8.1f} s")
    print(f"ratio:              {plain_seconds / seconds:8.1f}")
    print(f"largest effect of {len(units)} units: {slow.abs().max():.2g}, the two ways differ by {worst:.1e} at most")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
