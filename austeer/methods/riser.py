"""RISER (arXiv 2601.09269): a router reads the prompt once, mixes vectors of a library, and is trained by reward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, normalize
from tqdm import tqdm

from austeer.models import info
from austeer.sites import Place, require_layer
from austeer.steering import Operator, Pass, Steering, require_strength

PROMPTS, ROLLOUTS = 64, 8  # of one step of the training
SPREAD = 0.1  # standard deviation of a sampled strength, as a share of the largest one


class RoutedShift(Operator):
    """h <- h + strength * sum_k w_k alpha_k v_k, with w and alpha read off h once, at the prompt's last token.

    Its tensors are `layer` (1,) int64, `library` (vectors, width), the router's of `route`, and `limit` and `threshold`
    (1,).
    """

    name = "routed shift"

    def reads(self) -> list[Place]:
        """Return the place where it writes."""
        return self.writes()

    def observe(self, place: Place, x: Tensor, now: Pass, state: dict) -> None:
        """Choose the run's push, (texts, width), when the prompt is read."""
        if place not in state:
            mixture = self.mixture(x[:, now.columns.tolist().index(now.prompt - 1)])
            state[place] = mixture @ self.tensors["library"].to(mixture)

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return the run's push at every token."""
        return state[place][:, None].expand(x.shape)

    def mixture(self, h: Tensor) -> Tensor:
        """Return (..., vectors), w_k alpha_k for h (..., width); w_k is 1 where p_k > threshold, else 0."""
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        router = {name: tensor.to(h) for name, tensor in self.tensors.items()}
        gate, alpha = route(h, router, router["limit"])
        return torch.where(gate > router["threshold"], alpha, 0.0)


class RISER(Steering):
    """A router over a library of vectors at one layer. Made by `RISER.fit`; `curve` is each step's mean reward."""

    curve: Tensor

    @classmethod
    def fit(
        cls, model, states: Tensor, library: Tensor, layer: int, reward: Callable[[Tensor, Tensor], Tensor] | None, *,
        limit: float, start: Tensor | None = None, steps: int = 200, hidden: int = 1024, learning_rate: float = 1e-3,
        threshold: float = 0.7, seed: int = 0,
    ) -> RISER:  # fmt: skip
        """Let a router imitate mixtures that are known to be good, then train it by the reward of those it draws.

        Args:
            model: a model from `load()`.
            states: (texts, width), the residual stream of the layer at each training prompt's last token.
            library: (vectors, width), such as `cognitive_vectors` gives it.
            layer: 0-based; read once, written from the prompt's last token on.
            reward: reward(rows (n,) int64, mixtures (n, vectors)) is (n,): what adding mixtures @ library after those
                prompts is worth; not asked for where `steps` is 0.
            limit: alpha_max, the largest strength of one vector, in the units of the activations.
            start: (texts, vectors), mixtures to imitate in 200 steps first, or None.
            steps: of the policy gradient.
            hidden, learning_rate: width of the inner layer; of Adam.
            threshold: once trained, a gate is open where p is above it.
            seed: of all that is drawn.

        Raises:
            ValueError: shapes that do not fit together, a layer that the model does not have, or a limit that is not
                positive.
        """
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (states, library, start)]
        layers, width = info(model).shape
        if {*states.shape[1:], *library.shape[1:]} != {width} or shapes[2] not in (None, (len(states), len(library))):
            wanted = f"(texts, {width}), (vectors, {width}) and (texts, vectors) or None"
            raise ValueError(f"states, library and start are {shapes[0]}, {shapes[1]}, {shapes[2]}; give {wanted}.")
        require_layer(layer, layers)
        if not require_strength(limit) > 0:
            raise ValueError(f"limit is {limit}; give the largest strength, a number above 0.")
        with torch.inference_mode(False), torch.enable_grad():
            settings = float(limit), steps, hidden, learning_rate, torch.Generator().manual_seed(seed)
            start = None if start is None else start.clone().float()
            router, curve = _train(states.clone().float(), len(library), start, reward, *settings)
        fixed = {"limit": torch.tensor([float(limit)]), "threshold": torch.tensor([float(threshold)])}
        tensors = {"layer": torch.tensor([layer]), "library": library.float(), **router, **fixed}
        about = {"method": "RISER", "vectors": len(library), "limit": float(limit), "steps": steps, "seed": seed}
        about |= {"warm-up": start is not None, "site": "residual", "shape": [layers, width]}
        steering = cls([RoutedShift("residual", tensors, "last")], info(model), about)
        steering.curve = curve
        return steering


def _train(
    states: Tensor, vectors: int, start: Tensor | None, reward: Callable | None, limit: float, steps: int, hidden: int,
    learning_rate: float, generator: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Return the router's tensors and the mean reward of every step of the policy gradient, (steps,)."""
    mean, deviation = states.mean(0), states.std(0).clamp(min=1e-6)
    x = (states - mean) / deviation
    router = {}
    for name, shape in (("inner", (hidden, x.shape[1])), ("heads", (2 * vectors, hidden))):
        router[name] = (torch.randn(shape, generator=generator) / shape[1] ** 0.5).requires_grad_()
        router[f"{name}_bias"] = torch.zeros(shape[0], requires_grad=True)
    optimiser = torch.optim.Adam(router.values(), lr=learning_rate)

    def descend(loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    for _ in range(0 if start is None else 200):
        rows = torch.randint(len(x), (PROMPTS,), generator=generator)
        descend(imitation_loss(*route(x[rows], router, limit), start[rows], limit))
    curve = torch.zeros(steps)
    for step in tqdm(range(steps), desc="training the router", unit="step", leave=False):
        rows = torch.randint(len(x), (PROMPTS,), generator=generator).repeat(ROLLOUTS)
        gate, alpha = route(x[rows], router, limit)
        opened = torch.bernoulli(gate.detach(), generator=generator)
        drawn = alpha.detach() + SPREAD * limit * torch.randn(alpha.shape, generator=generator)
        rewards = reward(rows, opened * drawn.clamp(0, limit))
        descend(policy_loss(gate, alpha, opened, drawn, rewards.view(ROLLOUTS, -1), SPREAD * limit))
        curve[step] = rewards.mean()
    router = {name: tensor.detach() for name, tensor in router.items()}
    router["inner"] = router["inner"] / deviation  # the standardisation is folded into the first layer
    router["inner_bias"] = router["inner_bias"] - router["inner"] @ mean
    return router, curve


def cognitive_vectors(differences: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return (count, width) float32: the centres of k-means on (pairs, width) differences h+ - h-, at unit length."""
    from sklearn.cluster import KMeans  # a second to import

    found = KMeans(count, n_init=10, random_state=seed).fit(differences.double().numpy())
    return normalize(torch.from_numpy(found.cluster_centers_), dim=-1).float()


def route(h: Tensor, router: dict[str, Tensor], limit: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return gate probabilities in [0, 1] and strengths in [0, limit], (..., vectors) each, for h (..., width).

    The router's tensors are `inner` (hidden, width), `heads` (2 vectors, hidden), `inner_bias` and `heads_bias`.
    """
    inner = torch.nn.functional.silu(h @ router["inner"].T + router["inner_bias"])
    gate, alpha = (inner @ router["heads"].T + router["heads_bias"]).sigmoid().chunk(2, -1)
    return gate, limit * alpha


def imitation_loss(gate: Tensor, alpha: Tensor, target: Tensor, limit: float) -> Tensor:
    """Return the loss of the warm-up: cross-entropy of the gates, squared error of the strengths of open ones."""
    opened = (target > 0).float()
    apart = ((alpha - target) / limit).square() * opened
    return binary_cross_entropy(gate, opened) + apart.sum() / opened.sum().clamp(min=1)


def policy_loss(gate: Tensor, alpha: Tensor, opened: Tensor, drawn: Tensor, rewards: Tensor, spread: float) -> Tensor:
    """Return minus the mean of advantage x log-probability; an advantage compares the draws of one prompt.

    Args:
        gate, alpha, opened, drawn: (rollouts x prompts, vectors): what the router said, and the gates and strengths
            drawn from it; a closed gate's strength did nothing and does not count.
        rewards: (rollouts, prompts).
        spread: standard deviation of the strengths drawn.
    """
    advantage = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-6)
    of_gates = -binary_cross_entropy(gate, opened, reduction="none")
    of_strengths = -0.5 * opened * ((drawn - alpha) / spread).square()
    return -(advantage.flatten() * (of_gates + of_strengths).sum(-1)).mean()
