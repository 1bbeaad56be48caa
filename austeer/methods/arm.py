"""ARM, "Meaningless Tokens" (arXiv 2510.01032): replace a layer's smallest gates by random numbers of their sign."""

from __future__ import annotations

import torch
from torch import Tensor

from austeer.models import info
from austeer.sites import Place, anatomy, require_layer
from austeer.steering import Operator, Pass, Steering


class Redistribution(Operator):
    """a <- a + strength * (redistribute(a) - a): a text's prompt is one group of gates, every later token another.

    Its tensors have shape (1,): `layer` and `seed` int64; `c`, `percentile`, `least` and `most` float32; `added` and
    `elsewhere` bool. The random numbers follow from the seed and from the place of a token in its text, and from
    nothing else: neither a batch nor a cache changes them, and all texts meet the same ones. With `elsewhere` the
    displacements of a group go to random entries of the group.
    """

    name = "redistribution"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return redistribute(x) - x."""
        if "start" not in state:  # the first pass holds the beginning of every text
            state["start"] = now.columns[now.real.int().argmax(1)]
            state["generator"] = torch.Generator().manual_seed(int(self.tensors["seed"]))
            state["drawn"] = torch.empty(0, 2, x.shape[-1])
        before = (now.columns - state["start"][:, None]).clamp(min=0).cpu()  # how many tokens of its text
        missing = range(len(state["drawn"]), int(before.max()) + 1)
        fresh = [torch.rand(1, 2, x.shape[-1], generator=state["generator"]) for _ in missing]
        state["drawn"] = torch.cat([state["drawn"], *fresh])

        a = x.to(torch.promote_types(x.dtype, torch.float32))
        delta, prompt = torch.zeros_like(a), now.columns < now.prompt
        groups = [(row, now.real[row] & prompt) for row in range(len(x))]
        groups += [(row, now.real[row] & ~prompt) for row in range(len(x))]
        for row, here in groups:
            if here.any():
                size = (1, -1) if prompt[here].all() else (int(here.sum()), -1)
                drawn = state["drawn"][before[row, here.cpu()]].to(a.device, a.dtype)
                noise, keys = drawn[:, 0].reshape(size), drawn[:, 1].reshape(size)
                gates = a[row, here].reshape(size)
                settings = [float(self.tensors[name]) for name in ("c", "percentile", "least", "most", "added")]
                moved = redistribute(gates, noise, *settings) - gates
                if self.tensors["elsewhere"]:
                    moved = moved.gather(-1, keys.argsort(-1))
                delta[row, here] = moved.reshape(-1, x.shape[-1])
        return delta


def redistribute(
    a: Tensor, noise: Tensor, c: float, percentile: float, least: float, most: float, added: float
) -> Tensor:
    """Return gates whose smallest entries are replaced by noise of their sign (ARM, as in the official code).

    Args:
        a: (groups, entries) gates; each group has its own thresholds.
        noise: (groups, entries), uniform in [0, 1).
        c: an entry is near zero below 1.4826 c times the median absolute deviation of the sizes.
        percentile: of a: how far gates above zero may go; those below zero go as far as the lowest one.
        least, most: bounds of the share that is replaced, whatever is near zero.
        added: 0 to replace, 1 to add to what is there.

    Returns:
        (groups, entries).
    """
    size, entries = a.abs(), a.shape[-1]
    middle = size.median(-1, keepdim=True).values
    spread = (size - middle).abs().median(-1, keepdim=True).values
    near_zero = (size < 1.4826 * c * spread).to(a.dtype).mean(-1, keepdim=True)
    count = (near_zero.clamp(least, most) * entries).round().clamp(min=1)
    smallest = size.argsort(dim=-1, stable=True).argsort(-1) < count
    ordered, at = a.sort(-1).values, percentile / 100 * (entries - 1)
    low, high = ordered[:, int(at), None], ordered[:, min(int(at) + 1, entries - 1), None]
    bound = torch.where(a < 0, ordered[:, :1], low + at % 1 * (high - low))
    return torch.where(smallest, noise * bound + added * a, a)


class ARM(Steering):
    """Activation redistribution: the smallest gates of one layer become random numbers of their sign.

    Where paper and official code differ, this is the code: it replaces, where the paper adds. The code takes its
    thresholds from all that a pass holds, padding included; here they are those of each text, as in the code's batches
    of one: of its whole prompt, then of every new token. Strength 1; half of it goes half of the way, -1 as far to the
    other side of each gate.

    Args:
        model: a model from `load()`, with gated FFNs.
        c, percentile, least, most: see `redistribute`; the defaults are those of the code for Qwen2 (that for Llama
            has `least` at 0.2).
        layer: 0-based.
        added: add to the smallest gates, as the paper says, in place of replacing them.
        elsewhere: the control: the same displacements, each at a random entry, so as much noise of the same size.
        seed: of the random numbers.
        positions: "all" (as the code), "prompt", "last" or "generated".

    Raises:
        ValueError: a model without gates, a layer that it does not have, or a setting out of range.
    """

    def __init__(
        self, model, c: float = 0.13, percentile: float = 99.5, *, least: float = 0.02, most: float = 0.25,
        layer: int = 0, added: bool = False, elsewhere: bool = False, seed: int = 0, positions: str = "all",
    ):  # fmt: skip
        found = anatomy(model)
        width = found.require("gate")
        require_layer(layer, found.layers)
        if not (c >= 0 and 0 <= percentile <= 100 and 0 <= least <= most <= 1):
            raise ValueError(
                f"c is {c}, percentile {percentile}, least {least} and most {most}; give a c of at least 0, a "
                "percentile from 0 to 100, and shares 0 <= least <= most <= 1."
            )
        shares = {"c": float(c), "percentile": float(percentile), "least": float(least), "most": float(most)}
        others = {"layer": layer, "seed": seed, "added": added, "elsewhere": elsewhere}
        tensors = {name: torch.tensor([value]) for name, value in {**shares, **others}.items()}
        about = {"method": "ARM", **shares, **others, "site": "gate", "shape": [found.layers, width]}
        super().__init__([Redistribution("gate", tensors, positions)], info(model), about)
