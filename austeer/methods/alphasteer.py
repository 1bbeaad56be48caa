"""AlphaSteer (arXiv 2506.07022): push by as much as a gate says that is blind to benign prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from austeer.activations import collect
from austeer.momentum import ActivationMomentum, require_momentum
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering, require_strength


class GatedShift(Operator):
    """x <- x + strength * (h . gate) vector, with h the activation at the prompt's last token.

    Its tensors are `layer` (n,) int64, `gate` and `vector` (n, width) float32.
    """

    name = "gated shift"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return the same vector for all tokens of a text; the gate is read in the pass that holds the prompt's end."""
        if place not in state:
            row = self.tensors["layer"].tolist().index(place.layer)
            gate, vector = (self.tensors[name][row].to(x.device) for name in ("gate", "vector"))
            last = x[:, now.columns.tolist().index(now.prompt - 1)]
            state[place] = (last.to(gate.dtype) * gate).sum(-1)[:, None, None] * vector
        return state[place].expand(x.shape)


class AlphaSteer(Steering):
    """h <- h + alpha (h_last . w) r at the prompt's tokens; w is a ridge solution in the null space of benign prompts.

    The paper's matrix is M = P Delta with every row of its target equal to r, so it has rank one: h M = (h . w) r. The
    vectors w and r are kept in place of it. The paper counts layers by their input: its layer l is l - 1 here.

    Args:
        momentum: read at site "residual"; its mean difference is r, pointing to where harmful prompts are pushed.
        gates: w of each layer whose output is steered, (width,).
        alpha: strength; 1 pushes a prompt whose gate is 1 by the mean difference as it is.
        positions: "prompt" (as the official code), "all", "last" or "generated".

    Raises:
        ValueError: a layer that the model does not have, no gate, an alpha that is not finite, or unknown positions.
    """

    def __init__(
        self, momentum: ActivationMomentum, gates: Mapping[int, Tensor], alpha: float, positions: str = "prompt"
    ):
        require_momentum(momentum)
        layers, width = momentum.mean_difference.shape
        if not gates:
            raise ValueError("There is no gate; give one of at least one layer.")
        for number in gates:
            require_layer(number, layers)
        layer = torch.tensor(sorted(gates))
        gate = torch.stack([gates[number] for number in layer.tolist()]).float()
        tensors = {"layer": layer, "gate": gate, "vector": momentum.mean_difference[layer]}
        about = {"method": "AlphaSteer", "alpha": require_strength(alpha), "pairs": int(momentum.pairs.sum())}
        about |= {"site": momentum.site, "shape": [layers, width]}
        super().__init__([GatedShift(momentum.site, tensors, positions, alpha)], momentum.model, about)

    @classmethod
    def fit(
        cls, model, benign: Sequence[str], harmful: Sequence[str], momentum: ActivationMomentum, layers: Sequence[int],
        alpha: float = 1.0, *, share: float = 0.6, ridge: float = 10.0, positions: str = "prompt",
        template: str | None = "chat",
    ) -> AlphaSteer:  # fmt: skip
        """Read both kinds of prompts at their last token, and solve for the gate of every layer.

        Args:
            model: a model from `load()`.
            benign: prompts to leave alone, more than the width of the residual stream.
            harmful: prompts to push.
            momentum, layers, alpha, positions: as above.
            share: of the dimensions, which counts as null space (the paper's p, set by hand).
            ridge: the paper's lambda.
            template: None or "chat", of the prompts.

        Raises:
            ValueError: as above; a share or a ridge out of range; benign prompts that span fewer dimensions than there
                are; or as `collect`.
        """
        require_momentum(momentum)
        require_strength(alpha)
        if not 0 < share <= 1 or not ridge > 0:
            raise ValueError(
                f"share is {share} and ridge is {ridge}; give a share above 0, at most 1, and a ridge above 0."
            )
        if not layers:
            raise ValueError("layers is empty; give at least one.")
        for layer in layers:
            require_layer(layer, len(momentum.mean_difference))
        layers = sorted(set(layers))
        grams = [0.0] * len(layers)

        def add(_, x: Tensor) -> None:
            for number, layer in enumerate(layers):
                rows = x[:, layer].double()
                grams[number] = grams[number] + rows.T @ rows

        collect(model, benign, momentum.site, template=template, into=add)
        rank, width = min(int(torch.linalg.matrix_rank(gram, hermitian=True)) for gram in grams), len(grams[0])
        if rank < width:
            raise ValueError(
                f"{len(benign)} benign prompts span {rank} of {width} dimensions: what they miss they do not protect. "
                "Give more."
            )
        pushed = collect(model, harmful, momentum.site, template=template)
        gates = {
            layer: ridge_gate(pushed[:, layer], null_space(gram, share), ridge)
            for layer, gram in zip(layers, grams, strict=True)
        }
        steering = cls(momentum, gates, alpha, positions)
        about = {"benign": len(benign), "harmful": len(harmful), "share": share, "ridge": ridge, "template": template}
        steering.about |= about
        return steering


def null_space(gram: Tensor, share: float) -> Tensor:
    """Return the directions in which texts have least energy (AlphaSteer: the null space of benign activations).

    Args:
        gram: (width, width), the sum of h h^T over the texts, not centred.
        share: of the dimensions, in (0, 1].

    Returns:
        (width, k) float64 with orthonormal columns, least energy first.
    """
    return torch.linalg.eigh(gram.double()).eigenvectors[:, : int(share * len(gram))]


def ridge_gate(pushed: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Return the w in the span of a basis that minimises sum of (h . w - 1)^2 + ridge |w|^2 over the texts to push.

    Args:
        pushed: (texts, width) activations.
        basis: (width, k) with orthonormal columns.
        ridge: above 0.

    Returns:
        (width,) float64.
    """
    z = pushed.double() @ basis
    return basis @ torch.linalg.solve(z.T @ z + ridge * torch.eye(z.shape[1], dtype=z.dtype), z.sum(0))
