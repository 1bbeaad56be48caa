"""Where units live: find, read, write and weigh the sites of a decoder, from its module tree alone."""

from __future__ import annotations

from numbers import Integral
from operator import itemgetter

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

SITES = ("attention", "gate", "neuron", "ffn", "residual")  # in the order in which a block computes them


# What runs inside a trace may run on a server with another Python, where functions and classes arrive as source. The
# methods that NamedTuple and dataclass write have none: they would arrive as bytecode, which another Python cannot run.
# So these two classes are written out.
class Place(tuple):
    """One site of one layer (0-based), such as `Place(14, "attention")`; places sort in forward order."""

    def __new__(cls, layer: int, site: str) -> Place:  # noqa: D102
        return tuple.__new__(cls, (layer, site))

    layer = property(itemgetter(0), doc="0-based.")
    site = property(itemgetter(1), doc="One of `SITES`.")

    @property
    def order(self) -> tuple[int, int]:
        """The key that sorts places as the forward pass reaches them."""
        return self.layer, SITES.index(self.site)

    def __getnewargs__(self) -> tuple[int, str]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"Place(layer={self.layer!r}, site={self.site!r})"


class Anatomy:
    """Where a model keeps its blocks and projections: module paths, and the number of units of each site.

    Args:
        blocks: path of the list of decoder layers, such as "model.layers".
        attention: path, inside a layer, of the attention output projection; its input is the `attention` site.
        gate: path, inside a layer, of the activation function of a gated FFN: its output is the `gate` site, which
            times another map's output is the `neuron` site (None: no gate).
        down: path, inside a layer, of the FFN's down projection: its input is the `neuron` site, its output `ffn`.
        layers: how many layers there are.
        heads: attention heads per layer (0: none); head h is the h-th of as many equal blocks of attention units.
        widths: units per layer of each site that the model has.
    """

    def __init__(
        self, blocks: str, attention: str | None, gate: str | None, down: str | None, layers: int, heads: int,
        widths: dict[str, int],
    ):  # fmt: skip
        self.blocks, self.attention, self.gate, self.down = blocks, attention, gate, down
        self.layers, self.heads, self.widths = layers, heads, widths

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Anatomy) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Anatomy({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def require(self, site: str, layer: int = 0) -> int:
        """Return a site's width, or raise a ValueError that says which sites or layers there are."""
        if site not in SITES:
            raise ValueError(f"site is {site!r}; give one of {', '.join(SITES)}.")
        if site not in self.widths:
            raise ValueError(f"This model has no {site!r} site that can be found; it has {', '.join(self.widths)}.")
        if layer not in range(self.layers):
            raise ValueError(f"layer is {layer!r}; give a number from 0 to {self.layers - 1}.")
        return self.widths[site]


def require_layer(layer: int, layers: int) -> None:
    """Refuse what is not the number of one of so many layers.

    Raises:
        ValueError: no whole number, or none from 0 to `layers` - 1.
    """
    if not isinstance(layer, Integral) or layer not in range(layers):
        raise ValueError(f"layer is {layer!r}; give a number from 0 to {layers - 1}.")


def anatomy(model) -> Anatomy:
    """Find a decoder's blocks and their output projections by shape and position in the module tree.

    The blocks are the `ModuleList` with as many entries as the configuration has layers. Inside a block the output
    projection of attention (of the FFN) is the last linear map, below a child whose name says attention (FFN), that
    writes vectors of the hidden size. A FFN is gated if its other maps write two numbers for each neuron.

    Args:
        model: an nnsight model or a plain Hugging Face one.

    Raises:
        ValueError: no list of decoder blocks can be found.
    """
    module = getattr(model, "_module", model)
    config = module.config.get_text_config(decoder=True)
    hidden, count = config.hidden_size, config.num_hidden_layers
    blocks = [n for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not blocks:
        raise ValueError(f"{type(module).__name__} has no list of {count} decoder blocks, so it has no sites to steer.")
    block = module.get_submodule(blocks[0])[0]
    attention = _projection(block, hidden, ("attn", "attention"))
    down = _projection(block, hidden, ("mlp", "ffn", "feed_forward"))
    gate = _activation(block, down) if down else None
    widths = {"residual": hidden}
    if attention:
        widths["attention"] = linear_weight(block.get_submodule(attention)).shape[1]
    if down:
        widths["neuron"], widths["ffn"] = linear_weight(block.get_submodule(down)).shape[1], hidden
    if gate:
        widths["gate"] = widths["neuron"]
    kept = {site: widths[site] for site in SITES if site in widths}
    return Anatomy(blocks[0], attention, gate, down, count, getattr(config, "num_attention_heads", 0), kept)


def _projection(block: nn.Module, hidden: int, words: tuple[str, ...]) -> str | None:
    """Name the last linear map of size `hidden` among the direct children of the block's child named by `words`."""
    found = None
    for name, child in block.named_children():
        if any(word in name.lower() for word in words) and "norm" not in name.lower():
            for inner, linear in child.named_children():
                if isinstance(linear, (nn.Linear, Conv1D)) and linear_weight(linear).shape[0] == hidden:
                    found = f"{name}.{inner}"
    return found


def _activation(block: nn.Module, down: str) -> str | None:
    """Name the activation function beside the down projection of a gated FFN."""
    ffn, last = down.split(".")
    linears = {name: m for name, m in block.get_submodule(ffn).named_children() if isinstance(m, (nn.Linear, Conv1D))}
    neurons = linear_weight(linears.pop(last)).shape[1]
    if sum(linear_weight(linear).shape[0] for linear in linears.values()) != 2 * neurons:
        return None
    found = [name for name, _ in block.get_submodule(ffn).named_children() if name.startswith("act")]
    return f"{ffn}.{found[0]}" if found else None


def projection(model, place: Place):
    """Return the linear map at a place: its `nn.Module` for a plain model, its envoy for an nnsight model.

    Raises:
        ValueError: the residual or the gate site, which have no projection of their own, or a layer that the model
            does not have.
    """
    found = anatomy(model)
    found.require(place.site, place.layer)
    if place.site == "residual":
        raise ValueError("The residual site is a block's output and has no projection; use attention, neuron or ffn.")
    if place.site == "gate":
        raise ValueError("A gate writes nothing by itself: it is a factor of its neuron. Use the neuron site.")
    path = f"{found.blocks}.{place.layer}.{found.attention if place.site == 'attention' else found.down}"
    return model.get(path) if hasattr(model, "_module") else model.get_submodule(path)


def linear_weight(linear: nn.Module) -> torch.Tensor:
    """Return the (out, in) weight of a linear map; GPT-2's Conv1D stores its transpose."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def weight(model, place: Place) -> torch.Tensor:
    """Return the matrix whose column i is what unit i of a place writes: W[:, i] of y = sum_i x_i W[:, i].

    Args:
        model: an nnsight model or a plain Hugging Face one.
        place: for `ffn` and `residual`, whose units are output dimensions already, the matrix is the identity.

    Returns:
        (hidden, width) in the model's dtype.

    Raises:
        ValueError: a site or layer that the model does not have, the gate, which is only a factor, or a remote model.
    """
    found = anatomy(model)
    width = found.require(place.site, place.layer)
    module = getattr(model, "_module", model)
    if module.device.type == "meta":
        raise ValueError("The weights of a remote model are not here; use a local one to look at what a unit writes.")
    if place.site in ("ffn", "residual"):
        return torch.eye(width, dtype=module.dtype, device=module.device)
    return linear_weight(projection(module, place))


class Sites:
    """A model's sites inside a trace: `read` and `write` activations at a `Place`, in forward order.

    Args:
        model: the nnsight model that the trace is opened on.
    """

    def __init__(self, model):
        self.anatomy = anatomy(model)
        blocks = model.get(self.anatomy.blocks)
        self._blocks = [blocks[layer] for layer in range(self.anatomy.layers)]

    def _envoy(self, place: Place):
        paths = {"attention": self.anatomy.attention, "gate": self.anatomy.gate}
        return self._blocks[place.layer].get(paths.get(place.site, self.anatomy.down))

    def read(self, place: Place) -> torch.Tensor:
        """Return the activations at a place, (texts, tokens, width); only inside a trace."""
        if place.site == "residual":
            output = self._blocks[place.layer].output
            return output[0] if isinstance(output, tuple) else output
        module = self._envoy(place)
        return module.output if place.site in ("gate", "ffn") else module.input

    def write(self, place: Place, value: torch.Tensor) -> None:
        """Replace the activations at a place; only inside a trace, after they were read."""
        if place.site == "residual":
            block = self._blocks[place.layer]
            block.output = (value, *block.output[1:]) if isinstance(block.output, tuple) else value
        elif place.site in ("gate", "ffn"):
            self._envoy(place).output = value
        else:
            self._envoy(place).input = value
