"""ODESteer (arXiv 2602.17560): flow along the gradient of a log density ratio, in Euler steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from austeer.activations import collect
from austeer.data import ContrastivePair
from austeer.models import info
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering, require_strength


class Flow(Operator):
    """x(0) = x, dx/dt = v(x), v the unit gradient of the barrier h(x) = weight . sketch(x / |x|), in Euler steps.

    `hash` (2, width + 1) int64, `sign` of that shape and `weight` (components,) float32 are a degree-2 TensorSketch;
    `gamma`, `unit` and `steps` have shape (1,). Strength is time, in multiples of `unit`: a * s flows s times as long,
    and -a runs along -v, which is the field of the swapped sides.
    """

    name = "flow"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return the mean velocity on the way, times `unit`; 0 where the positions do not reach."""
        exact = torch.promote_types(x.dtype, torch.float32)
        if place not in state:
            state[place] = [part.to(x.device, exact) for part in quadratic_form(self.tensors)]
        steps, unit = int(self.tensors["steps"]), float(self.tensors["unit"])
        chosen = now.mask(self.positions)
        point = x[chosen].to(exact)
        total = torch.zeros_like(point)
        for _ in range(steps):
            velocity = field(point, *state[place])
            total += velocity
            point = point + self.strength * unit / steps * velocity
        delta = torch.zeros(x.shape, dtype=exact, device=x.device)
        delta[chosen] = total * unit / steps
        return delta


def field(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Return the unit gradient of y . A y + b . y, y = x / |x|, for symmetric A: as x (..., width), at right angles."""
    y = x / x.norm(dim=-1, keepdim=True)
    slope = 2 * y @ A + b
    slope = slope - (slope * y).sum(-1, keepdim=True) * y
    return slope / slope.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def quadratic_form(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A (width, width), symmetric, and b (width,) of h = y . A y + b . y + constant, all that a sketch can be.

    It puts sign_1i sign_2j u_i u_j, with u = (sqrt(gamma) y, 1), into component (hash_1i + hash_2j) mod components.
    """
    one, two = tensors["hash"]
    weight, root = tensors["weight"], tensors["gamma"].sqrt()
    form = tensors["sign"][0][:, None] * tensors["sign"][1] * weight[(one[:, None] + two) % len(weight)]
    form = (form + form.T) / 2
    return root**2 * form[:-1, :-1], 2 * root * form[:-1, -1]


class ODESteer(Steering):
    """Flow towards where h, the log density ratio of the two sides, grows (the official code's rule).

    Args:
        model: a model from `load()`.
        positive, negative: (texts, layers, width), the residual stream at the last token, as `collect` gives it.
        layer: 0-based; this layer's output is steered.
        alpha: time T of the flow, in multiples of the median norm of these activations.
        steps: Euler steps (the code has 10; 1 is its one-step variant).
        components: of the sketch; None takes the exact polynomial kernel (gamma y . y' + 1)^2, without a sketch.
        gamma: weight of the direction y = x / norm(x) beside the constant 1.
        seed: of the sketch.
        positions: "last" (as the code: the last token of every pass), "all", "prompt" or "generated".
        template: that of the activations, for the record.

    Raises:
        ValueError: a layer that the model does not have, fewer than 1 step, or as `Steering`'s operators.
    """

    def __init__(
        self, model, positive: Tensor, negative: Tensor, layer: int, alpha: float = 0.5, *, steps: int = 10,
        components: int | None = 8000, gamma: float = 0.1, seed: int = 0, positions: str = "last",
        template: str | None = None,
    ):  # fmt: skip
        layers, width = positive.shape[1:]
        require_layer(layer, layers)
        alpha = require_strength(alpha)
        if steps < 1:
            raise ValueError(f"steps is {steps}; give 1 or more.")
        x = torch.cat([positive[:, layer], negative[:, layer]]).double()
        label = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
        unit = x.norm(dim=1).median()
        about = {"method": "ODESteer", "layer": layer, "T": round(alpha * unit.item(), 4), "steps": steps}
        about |= {"components": components, "gamma": gamma, "seed": None if components is None else seed}
        about |= {"pairs": len(positive), "template": template, "site": "residual", "shape": [layers, width]}
        scalars = {"gamma": torch.tensor([gamma]), "unit": unit.float()[None], "steps": torch.tensor([steps])}
        sketch = _sketch(x / x.norm(dim=1, keepdim=True), label, components, gamma, seed)
        tensors = {"layer": torch.tensor([layer]), **sketch, **scalars}
        super().__init__([Flow("residual", tensors, positions, alpha)], info(model), about)

    @classmethod
    def fit(
        cls, model, pairs: Sequence[ContrastivePair], layer: int, alpha: float = 0.5, *,
        template: str | None = None, **options,
    ) -> ODESteer:  # fmt: skip
        """Read both sides of every pair; the arguments are those of the class, errors also those of `collect`."""
        sides = collect(model, pairs, "residual", template=template)
        return cls(model, *sides, layer, alpha, template=template, **options)


def _sketch(y: Tensor, label: Tensor, components: int | None, gamma: float, seed: int) -> dict[str, Tensor]:
    """Fit a logistic regression on degree-2 features of directions y (texts, width); return hash, sign and weight."""
    from sklearn.kernel_approximation import PolynomialCountSketch
    from sklearn.linear_model import LogisticRegression  # a second to import

    regression, width = LogisticRegression(max_iter=1000), y.shape[1]
    if components is not None:
        sketch = PolynomialCountSketch(gamma=gamma, degree=2, coef0=1, n_components=components, random_state=seed)
        weight = regression.fit(sketch.fit_transform(y.numpy()), label.numpy()).coef_[0]
        hashes, signs = torch.from_numpy(sketch.indexHash_).long(), torch.from_numpy(sketch.bitHash_).float()
    else:  # all products u_i u_j, each in a component of its own; fitted in the span of the texts (kernel trick)
        u = torch.cat([gamma**0.5 * y, torch.ones(len(y), 1, dtype=y.dtype)], 1)
        values, vectors = torch.linalg.eigh((u @ u.T) ** 2)
        kept = values > 1e-10 * values[-1]
        root, vectors = values[kept].sqrt(), vectors[:, kept]
        found = torch.from_numpy(regression.fit((vectors * root).numpy(), label.numpy()).coef_[0])
        weight = (u.T * (vectors @ (found / root)) @ u).flatten().numpy()
        hashes = torch.stack([torch.arange(width + 1) * (width + 1), torch.arange(width + 1)])
        signs = torch.ones(2, width + 1)
    return {"hash": hashes, "sign": signs, "weight": torch.from_numpy(weight).float()}
