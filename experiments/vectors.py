"""What the experiments on CAA share: the vectors of all layers at comparable norms, and the margins that they move."""

import torch

import austeer as au
from austeer.methods import CAA
from austeer.steering import Steering


class Vectors:
    """The mean difference of every layer's residual stream, and the typical norm of what it is added to.

    Args:
        model: a model from `load()`.
        pairs: what is read, at the last token of both sides.
    """

    def __init__(self, model, pairs: list):
        positive, negative = au.collect(model, pairs, "residual")
        self.momentum = au.momentum_of(positive, negative, pairs, model, "residual")
        typical = torch.cat([positive, negative]).norm(dim=-1).median(0).values
        self.multiplier = typical / self.momentum.mean_difference.norm(dim=-1)  # (layers,): makes a vector that long

    def at(self, layer: int, norm: float) -> CAA:
        """Return the steering at a layer; its norm is given in typical norms of the layer."""
        return CAA(self.momentum, layer, norm * self.multiplier[layer].item())


class Margins:
    """By how much log p(positive answer) exceeds log p(negative answer), in nats.

    Args:
        model: a model from `load()`.
        pairs: what is scored.
    """

    def __init__(self, model, pairs: list):
        self.model, self.pairs = model, pairs

    def under(self, steering: Steering | None) -> torch.Tensor:
        """Return the margins, (pairs,)."""
        answers = [pair.positive for pair in self.pairs] + [pair.negative for pair in self.pairs]
        log_p = au.log_probability(self.model, answers, [pair.prompt for pair in self.pairs] * 2, steering)
        return log_p[: len(self.pairs)] - log_p[len(self.pairs) :]
