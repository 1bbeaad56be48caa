"""WAS, "Guiding Giants" (arXiv 2505.20309): a small network reads the prompt and decides how hard to push."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import collect
from austeer.models import encode, info, token_ids
from austeer.sites import Place, Sites, linear_weight
from austeer.steering import Operator, Pass, Shift, Steering, require_strength


class ControlledShift(Operator):
    """x <- x + strength * s w_l direction at every layer l, where a network gives s and w for the prompt's last token.

    Its tensors are `layer` (n,) and `read` (r,) int64, the layers written and read; `direction` (width,); and the
    network's `weight_1`, `bias_1`, `weight_2`, `bias_2`: r * width inputs, one hidden layer, 1 + n outputs.
    """

    name = "controlled shift"

    def reads(self) -> list[Place]:
        """Return the places that the network reads."""
        return [Place(layer, self.site) for layer in self.tensors["read"].tolist()]

    def observe(self, place: Place, x: Tensor, now: Pass, state: dict) -> None:
        """Keep the activation at the prompt's last token, in the first pass."""
        if place not in state:
            state[place] = x[:, now.columns.tolist().index(now.prompt - 1)]

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return s w_l direction for all tokens of a text.

        Raises:
            ValueError: a place is to be written before all that the network reads has been computed.
        """
        if "push" not in state and all(read in state for read in self.reads()):
            scale, weights = control(self.tensors, torch.cat([state[read] for read in self.reads()], -1))
            state["push"] = scale[:, None] * weights
        if "push" not in state:
            if now.mask(self.positions).any():
                raise ValueError(
                    f"The network reads the prompt's end up to layer {max(self.reads()).layer}, so layer {place.layer} "
                    "cannot follow it in the same pass over prompt and answer: score with the steerings that "
                    "austeer.methods.was.decide() gives, one for each prompt."
                )
            return torch.zeros_like(x)
        row = self.tensors["layer"].tolist().index(place.layer)
        return (state["push"][:, row, None, None] * self.tensors["direction"].to(x.device)).expand(x.shape)


class WAS(Steering):
    """h_l <- h_l + alpha s w_l direction at every layer and generated token; made by `WAS.fit`."""

    @classmethod
    def fit(
        cls, model, push: Sequence[str], leave: Sequence[str], direction: Tensor, alpha: float = 2.0, *,
        balance: float = 0.5, hidden: int = 1024, epochs: int = 4, learning_rate: float = 5e-5,
        template: str | None = "chat", seed: int = 0,
    ) -> WAS:  # fmt: skip
        """Train the network on its scalar alone: mean (s - 1)^2 of the prompts to push, and mean s^2 of the others.

        The layer weights get no gradient from this loss: their rows of the network stay as they were drawn.

        Args:
            model: a model from `load()`.
            push, leave: prompts on which to act, and not to.
            direction: (width,), such as `output_direction` gives it.
            alpha: strength.
            balance: the paper's lambda, the weight of the prompts to push.
            hidden, epochs, learning_rate: of the network and of Adam, on batches of 4, gradients clipped at norm 1.
            template: None or "chat", of the prompts.
            seed: of the first weights and of the order of the prompts.

        Raises:
            ValueError: a direction of another width, or as `collect`.
        """
        require_strength(alpha)
        generator, (layers, width) = torch.Generator().manual_seed(seed), info(model).shape
        if direction.shape != (width,):
            raise ValueError(f"The direction is {tuple(direction.shape)}; give ({width},), as output_direction() does.")
        read = torch.arange(layers - layers // 3, layers)
        x = torch.cat([collect(model, part, "residual", template=template) for part in (push, leave)])
        x, target = x[:, read].flatten(1), (torch.arange(len(x)) < len(push)).float()
        share = torch.where(target > 0, balance / len(push), (1 - balance) / len(leave)) * len(x)
        with torch.inference_mode(False), torch.enable_grad():
            sizes = x.shape[1], hidden, 1 + layers
            network = _train(x.clone(), target.clone(), share.clone(), sizes, epochs, learning_rate, generator)
        tensors = {"layer": torch.arange(layers), "read": read, "direction": direction.float()}
        tensors |= {name: tensor.detach() for name, tensor in network.items()}
        about = {"method": "WAS", "alpha": float(alpha), "push": len(push), "leave": len(leave)}
        about |= {"balance": balance, "epochs": epochs, "seed": seed, "template": template}
        about |= {"site": "residual", "shape": [layers, width]}
        return cls([ControlledShift("residual", tensors, "generated", alpha)], info(model), about)


def _train(
    x: Tensor, target: Tensor, share: Tensor, sizes: Sequence[int], epochs: int, learning_rate: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the network after training its scalar s on the mean of share (s - target)^2 over the prompts."""
    network = {}
    for number, (ins, outs) in enumerate(pairwise(sizes), 1):
        for name, shape in ((f"weight_{number}", (outs, ins)), (f"bias_{number}", (outs,))):
            network[name] = ((2 * torch.rand(shape, generator=generator) - 1) / ins**0.5).requires_grad_()
    optimiser = torch.optim.Adam(network.values(), lr=learning_rate)
    for _ in tqdm(range(epochs), desc="training the controller", unit="epoch", leave=False):
        for rows in torch.randperm(len(x), generator=generator).split(4):
            optimiser.zero_grad()
            scale, _ = control(network, x[rows])
            (share[rows] * (scale - target[rows]) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_(network.values(), 1.0)
            optimiser.step()
    return network


def control(network: dict[str, Tensor], seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scalar s (texts,) and the layer weights w (texts, n) in (0, 1); `seen` is (texts, inputs)."""
    first, *others = (network[name].to(seen.device) for name in ("weight_1", "bias_1", "weight_2", "bias_2"))
    out = torch.relu(seen.to(first.dtype) @ first.T + others[0]) @ others[1].T + others[2]
    return out[:, 0], out[:, 1:].sigmoid()


def output_direction(model, towards: Sequence[str], away: Sequence[str]) -> Tensor:
    """Return the unit vector from the mean output-embedding row of the tokens of `away` to that of `towards`, (width,).

    Raises:
        ValueError: a remote model, whose weights are not here.
    """
    if info(model).remote is True:
        raise ValueError("The output embedding of a remote model is not here; take the direction from a local copy.")
    rows = linear_weight(model._module.get_output_embeddings()).float().cpu()
    ends = [
        rows[[i for text in texts for i in model.tokenizer(text, add_special_tokens=False).input_ids]].mean(0)
        for texts in (towards, away)
    ]
    return (ends[0] - ends[1]) / (ends[0] - ends[1]).norm()


def answer_loss(model, prompts: Sequence[str], answer: str, direction: Tensor, pushes: Tensor) -> Tensor:
    """Return the mean loss, in nats a token, of one answer to all prompts when layer l adds pushes_l direction to it.

    The paper's loss does not see the model; this one does, so it has a gradient for every layer.

    Args:
        model: a local model from `load()`.
        prompts: as the model reads them; answer: what follows each of them.
        direction: (width,).
        pushes: (layers,), alpha s w_l; may require a gradient.
    """
    batch = encode(model, [prompt + answer for prompt in prompts])
    said = len(token_ids(model, answer))
    columns = batch["input_ids"].shape[1]
    answered = (torch.arange(columns) >= columns - said).float()[:, None]
    with torch.enable_grad(), model.trace(batch, use_cache=False):
        sites = Sites(model)
        for layer in range(len(pushes)):
            place = Place(layer, "residual")
            sites.write(place, sites.read(place) + pushes[layer] * answered * direction)
        logits = model.output.logits.save()
    log_p = logits[:, -said - 1 : -1].log_softmax(-1)
    return -log_p.gather(-1, batch["input_ids"][:, -said:, None]).mean()


def decide(model, steering: Steering, prompts: Sequence[str], template: str | None = "chat") -> list[Steering]:
    """Read each prompt once, unsteered, and return what the network makes of it: a plain shift of every layer."""
    (operator,) = steering.operators
    layers, direction = operator.tensors["layer"], operator.tensors["direction"]
    seen = collect(model, prompts, operator.site, template=template)[:, operator.tensors["read"]]
    scale, weights = control(operator.tensors, seen.flatten(1))
    layer, index = layers.repeat_interleave(len(direction)), torch.arange(len(direction)).repeat(len(layers))
    return [
        Steering([Shift(operator.site, {"layer": layer, "index": index, "value": value}, operator.positions,
                        operator.strength)], steering.model, {"method": "WAS, decided for one prompt"})
        for value in (scale[:, None, None] * weights[..., None] * direction).flatten(1)
    ]  # fmt: skip


def with_layer_weights(steering: Steering, weights: Tensor) -> Steering:
    """Return the steering with fixed layer weights, (n,) in (0, 1), the same for every prompt; s is as it was."""
    (operator,) = steering.operators
    weight, bias = (operator.tensors[name].clone() for name in ("weight_2", "bias_2"))
    weight[1:], bias[1:] = 0.0, weights.logit()
    tensors = {**operator.tensors, "weight_2": weight, "bias_2": bias}
    return Steering([replace(operator, tensors=tensors)], steering.model, {**steering.about, "layer weights": "fixed"})
