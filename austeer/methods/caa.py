"""CAA (arXiv 2312.06681): add the mean difference of a block's output to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from austeer.data import ContrastivePair
from austeer.momentum import ActivationMomentum, activation_momentum, require_momentum
from austeer.sites import require_layer
from austeer.steering import Shift, Steering, require_strength


class CAA(Steering):
    """Contrastive activation addition: h <- h + alpha v at one layer, v = mean of h+ - h- at the last token.

    Args:
        momentum: what was read, at site "residual" (or at another one: the block's own mean difference).
        layer: 0-based; the vector is added to this layer's output.
        alpha: strength; 1 adds the mean difference as it is.
        positions: "last" (the end of the prompt and every generated token, as the paper), "all", "prompt", "generated".

    Raises:
        ValueError: what is no momentum, a layer that the model does not have, an alpha that is not finite, or unknown
            positions.
    """

    def __init__(self, momentum: ActivationMomentum, layer: int, alpha: float, positions: str = "last"):
        require_momentum(momentum)
        layers, width = momentum.mean_difference.shape
        require_layer(layer, layers)
        everywhere = torch.arange(width)
        tensors = {
            "layer": torch.full_like(everywhere, layer),
            "index": everywhere,
            "value": momentum.mean_difference[layer],
        }
        about = {"method": "CAA", "alpha": require_strength(alpha), "pairs": int(momentum.pairs.sum())}
        about |= {"template": momentum.template, "site": momentum.site, "shape": [layers, width]}
        super().__init__([Shift(momentum.site, tensors, positions, alpha)], momentum.model, about)

    @classmethod
    def fit(
        cls, model, pairs: Sequence[ContrastivePair], layer: int, alpha: float = 1.0, *, positions: str = "last",
        template: str | None = None,
    ) -> CAA:  # fmt: skip
        """Read the residual stream of both sides of every pair, and return the steering.

        Args:
            model: a model from `load()`.
            pairs: contrastive pairs.
            layer, alpha, positions: as above.
            template: None or "chat".

        Raises:
            ValueError: as above, and as `activation_momentum`.
        """
        return cls(activation_momentum(model, pairs, "residual", template=template), layer, alpha, positions)


def ab_pairs(pairs: Sequence[ContrastivePair], balanced: bool = True) -> list[ContrastivePair]:
    """Ask which of a pair's two answers is given, A or B: the form in which the paper fits and tests.

    The prompt lists both answers, the answers are their letters. So the last token of either side is a letter, which is
    where the paper reads.

    Args:
        pairs: contrastive pairs.
        balanced: the positive answer is A in every other pair, from the first on; else it is always A, a flaw that the
            mean difference cannot tell from the behaviour.
    """
    asked = []
    for number, pair in enumerate(pairs):
        answers, letters = (pair.positive, pair.negative), (" (A", " (B")
        if balanced and number % 2:
            answers, letters = answers[::-1], letters[::-1]
        first, second = (answer.strip() for answer in answers)
        prompt = f"{pair.prompt.strip()}\n\nChoices:\n (A) {first}\n (B) {second}\n\nAnswer:"
        asked.append(ContrastivePair(prompt, *letters, topic=pair.topic))
    return asked
