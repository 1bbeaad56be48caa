"""SADI (arXiv 2410.12299): turn up the elements that differ most between the two sides, in proportion to themselves."""

from __future__ import annotations

import torch

from austeer.momentum import ActivationMomentum, require_count, require_momentum
from austeer.sites import anatomy
from austeer.steering import Scale, Steering, require_strength


class SADI(Steering):
    """Semantics-adaptive dynamic intervention: A <- A + delta (A * M), M the mask of the K largest differences.

    At site "attention" K counts heads, scored by the size of the mean difference's mean over their units; at "neuron"
    and "ffn" it counts single elements. This is the rule of the paper. Its official code ranks signed differences,
    replaces all heads by values of an unsteered pass, and touches the last token of the prompt only.

    Args:
        model: a model from `load()`, for its number of heads.
        momentum: what was read, at site "attention", "neuron" or "ffn".
        k: how many heads or elements of all layers together.
        delta: strength, without unit.
        positions: "last" (as the paper), "all", "prompt" or "generated".

    Raises:
        ValueError: a k out of range, a delta that is not finite, or unknown positions.
    """

    def __init__(self, model, momentum: ActivationMomentum, k: int, delta: float, positions: str = "last"):
        require_momentum(momentum)
        layers, width = momentum.mean_difference.shape
        bundle = width // anatomy(model).heads if momentum.site == "attention" else 1
        score = momentum.mean_difference.unflatten(1, (-1, bundle)).mean(-1).abs()  # (layers, bundles)
        require_count("k", k, score.numel())
        best = score.flatten().argsort(descending=True, stable=True)[:k]
        layer, number = best // score.shape[1], best % score.shape[1]
        index = number[:, None] * bundle + torch.arange(bundle)
        tensors = {
            "layer": layer[:, None].expand_as(index).flatten(), "index": index.flatten(),
            "value": torch.ones(index.numel()),
        }  # fmt: skip
        about = {"method": "SADI", "delta": require_strength(delta), "k": k, "pairs": int(momentum.pairs.sum())}
        about |= {"template": momentum.template, "site": momentum.site, "shape": [layers, width]}
        super().__init__([Scale(momentum.site, tensors, positions, delta)], momentum.model, about)
