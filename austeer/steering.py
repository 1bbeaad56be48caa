"""`Steering`: operators that read and write sites; apply, compose, save, load, bake."""

from __future__ import annotations

import copy
import html
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from austeer.models import ModelInfo, cast, info, library_version
from austeer.sites import SITES, Place, Sites, anatomy, linear_weight, projection

POSITIONS = ("all", "prompt", "last", "generated")


class Pass:
    """One forward pass of a run, as an operator sees it: which step it is, and which tokens it may touch.

    Args:
        step: 0 for the pass over the prompt, then one per generated token.
        seen: how many columns the run has at the end of this pass.
        prompt: how many of them are the prompts', padding included.
        real: (texts, tokens) bool, False on padding; the last of these columns, as many as the pass computes.
    """

    def __init__(self, step: int, seen: int, prompt: int, real: Tensor):
        self.step, self.prompt, self.real = step, prompt, real
        self.columns = torch.arange(seen - real.shape[1], seen, device=real.device)

    def mask(self, positions: str) -> Tensor:
        """Return (texts, tokens) bool: where an operator with these positions writes; padding is never touched."""
        if positions == "all":
            return self.real
        if positions == "prompt":
            return self.real & (self.columns < self.prompt)
        return self.real & (self.columns >= self.prompt - (positions == "last"))


@dataclass(init=False, repr=False, eq=False)  # writes no method: a remote server can run source only, see `Place`
class Operator:
    """A named function of activations, given as tensors: f(x) = x + strength * displacement(x).

    A subclass sets `name`, gives `displacement`, and, where it acts elsewhere than at (`layer`, `index`), `reads` and
    `writes`. It holds no state of its own: what must last for a run goes into the `state` it is handed. Its methods
    travel to a remote model one by one, as source: they use torch, and neither `super()` nor decorators.

    Args:
        site: where it writes.
        tensors: everything it needs, by name; saved as they are.
        positions: "all", "prompt", "last" (the last prompt token and all generated ones) or "generated".
        strength: factor on the displacement.

    Raises:
        ValueError: an unknown site or positions, a strength or tensor that is not finite, or tensors that name no
            units, or one twice.
    """

    name: ClassVar[str] = ""
    site: str
    tensors: dict[str, Tensor]
    positions: str = "all"
    strength: float = 1.0

    def __init__(self, site: str, tensors: dict[str, Tensor], positions: str = "all", strength: float = 1.0):
        self.site, self.tensors, self.positions, self.strength = site, tensors, positions, require_strength(strength)
        self.__post_init__()

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise ValueError(f"site is {self.site!r}; give one of {', '.join(SITES)}.")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions is {self.positions!r}; give one of {', '.join(POSITIONS)}.")
        for name, tensor in self.tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"The tensor {name!r} of operator {self.name!r} holds values that are not finite.")
        if isinstance(self, (Scale, Shift)) and not _are_units(self.tensors):
            raise ValueError(
                f"The operator {self.name!r} needs the tensors layer, index and value, (k,) each: whole numbers from 0 "
                "on, no unit twice, and a number for each."
            )

    def reads(self) -> list[Place]:
        """Return the places whose activations `observe` wants to see."""
        return []

    def writes(self) -> list[Place]:
        """Return the places that it displaces."""
        return [Place(layer, self.site) for layer in sorted(set(self.tensors["layer"].tolist()))]

    def observe(self, place: Place, x: Tensor, now: Pass, state: dict) -> None:
        """Look at the activations of a place before anything is written there; keep what is needed in `state`."""

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return f(x) - x at strength 1 for x of shape (texts, tokens, width)."""
        raise NotImplementedError(f"The operator {self.name!r} must say how it displaces x.")

    def slices(self, place: Place, x: Tensor, state: dict) -> tuple[Tensor, Tensor]:
        """Return `index` and `value` of the units of a place, on x's device, looked up once a run."""
        if place not in state:
            here = self.tensors["layer"] == place.layer
            exact = torch.promote_types(x.dtype, torch.float32)
            state[place] = self.tensors["index"][here].to(x.device), self.tensors["value"][here].to(x.device, exact)
        return state[place]

    def __repr__(self) -> str:
        places = self.writes()
        layers = sorted({place.layer for place in places})
        count, what = (len(self.tensors["index"]), "unit") if "index" in self.tensors else (len(places), "place")
        where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
        if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
            where = f"layers {layers[0]} to {layers[-1]}"
        return (
            f"{self.strength:g} x {self.name} at {count:,} {what}{'s' * (count != 1)} of {self.site}, {where}, "
            f"positions: {self.positions}"
        )


def require_strength(alpha: float) -> float:
    """Return a strength as a float; refuse what is no finite number, text among it."""
    try:
        number = math.nan if isinstance(alpha, str) else float(alpha)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"The strength is {alpha!r}; give a finite number.")
    return number


def _are_units(tensors: dict[str, Tensor]) -> bool:
    """Whether tensors name units, each once: with one twice, hooks and baked weights would differ."""
    if not tensors.keys() >= {"layer", "index", "value"}:
        return False
    layer, index, value = (tensors[name] for name in ("layer", "index", "value"))
    if layer.ndim != 1 or not layer.shape == index.shape == value.shape:
        return False
    if layer.is_floating_point() or index.is_floating_point() or (layer < 0).any() or (index < 0).any():
        return False
    return len((layer.long() * 2**32 + index).unique()) == len(layer)


class Scale(Operator):
    """x_i <- x_i (1 + strength * value_i): `layer`, `index` (k,) int64 and `value` (k,) float32."""

    name = "scale"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return value_i * x_i on the chosen units and 0 elsewhere."""
        index, value = self.slices(place, x, state)
        delta = torch.zeros_like(x, dtype=value.dtype)
        delta[..., index] = x[..., index] * value
        return delta


class Shift(Operator):
    """x_i <- x_i + strength * value_i: `layer`, `index` (k,) int64 and `value` (k,) float32."""

    name = "shift"

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        """Return value_i on the chosen units and 0 elsewhere."""
        index, value = self.slices(place, x, state)
        delta = torch.zeros_like(x, dtype=value.dtype)
        delta[..., index] = value
        return delta


class Steering:
    """Operators, and what must be said about them; data only, so it can be saved, shipped and explained.

    `a * s` scales the displacement, `-s` turns it round, `s + t` adds displacements that are read from the same x.

    Args:
        operators: what is done to the activations.
        model: the model it was made from.
        about: method, settings, template, seeds: everything a reader of a saved file must know.
    """

    def __init__(self, operators: Sequence[Operator], model: ModelInfo, about: dict):
        self.operators, self.model, self.about = tuple(operators), model, dict(about)

    def __mul__(self, factor: float) -> Steering:
        if not isinstance(factor, (int, float)) or not math.isfinite(factor):
            raise ValueError(f"A steering is scaled by a finite number, not by {factor!r}.")
        operators = [replace(operator, strength=operator.strength * factor) for operator in self.operators]
        return Steering(operators, self.model, {**self.about, "factor": self.about.get("factor", 1) * factor})

    __rmul__ = __mul__

    def __neg__(self) -> Steering:
        return self * -1

    def __add__(self, other: Steering) -> Steering:
        if not isinstance(other, Steering):
            return NotImplemented
        if self.model.shape != other.model.shape:
            raise ValueError(f"One steering is for {self.model.id}, the other for {other.model.id}, of another shape.")
        methods = [part.about.get("method", "unnamed") for part in (self, other)]
        about = {"method": " + ".join(methods), "parts": [self.about, other.about]}
        return Steering(self.operators + other.operators, self.model, about)

    def _said(self) -> list[tuple[str, str]]:
        return [(key, str(value)) for key, value in self.about.items() if value is not None and key != "shape"]

    def __repr__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self._said())
        lines = [f"Steering of {self.model.id} ({about})", *(f"  {operator!r}" for operator in self.operators)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [*self._said(), *(("does", repr(operator)) for operator in self.operators)]
        body = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows)
        title = html.escape(f"Steering of {self.model.id} ({self.model.fingerprint})")
        return f"<p>{title}</p><table>{body}</table>"

    def check(self, model) -> None:
        """Refuse a model of another shape; warn about other weights of the same shape.

        Raises:
            ValueError: the number of layers, the hidden size, or the width of a site differs.
        """
        shape, widths = info(model).shape, anatomy(model).widths
        fits = all(
            place.site in widths and place.layer in range(shape[0])
            for operator in self.operators
            for place in (*operator.reads(), *operator.writes())
        ) and not any(
            (operator.tensors.get("index", torch.zeros(0)) >= widths[operator.site]).any()
            for operator in self.operators
            if operator.site in widths
        )
        fits = fits and all(list(of) == [shape[0], widths.get(site)] for site, of in _sites(self.about))
        if shape != self.model.shape or not fits:
            raise ValueError(
                f"This steering was made for {self.model.id} with (layers, hidden size) {self.model.shape}; it does "
                f"not fit {info(model).id} with {shape}. Fit it again on this model."
            )
        if info(model).fingerprint != self.model.fingerprint:
            warnings.warn(
                f"This steering was made from other weights ({self.model.id}) than those of {info(model).id}; "
                "the units may not mean the same here.",
                stacklevel=4,
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write tensors and a JSON header to one safetensors file, beside the target first, then renamed.

        Raises:
            ValueError: a name that does not end in .safetensors.
            OSError: no such directory, or one that cannot be written, or a full disk.
        """
        path = _safetensors(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} does not exist; make this directory first.")
        header = {
            "austeer": library_version(),
            "model": asdict(self.model),
            "about": self.about,
            "operators": [
                {"name": o.name, "site": o.site, "positions": o.positions, "strength": o.strength}
                for o in self.operators
            ],
        }
        tensors = {
            f"{number}.{name}": tensor.clone().contiguous()  # operators of one sum may share theirs
            for number, operator in enumerate(self.operators)
            for name, tensor in operator.tensors.items()
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, beside, metadata={"austeer": json.dumps(header)})
            beside.replace(path)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}).") from error
        finally:
            beside.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike) -> Steering:
        """Read a steering that `save` wrote.

        Raises:
            ValueError: not a safetensors file of this library, or an operator that this version does not know.
            FileNotFoundError: no such file.
        """
        path = _safetensors(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist or is no file; give the path of a file that save() wrote.")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["austeer"])
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            operators, known = [], {kind.name: kind for kind in _derived(Operator)}
            for number, fields in enumerate(header["operators"]):
                name = fields.pop("name")
                if name not in known:
                    raise ValueError(f"the operator {name!r} is not known; it knows {', '.join(known)}")
                own = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{number}.")}
                operators.append(known[name](tensors=own, **fields))
            model = ModelInfo(**{**header["model"], "shape": tuple(header["model"]["shape"])})
            numbers = {str(number) for number in range(len(operators))}
            if foreign := sorted(key for key in tensors if key.split(".")[0] not in numbers):
                raise ValueError(f"the tensor {foreign[0]!r} belongs to no operator")
            list(_sites(header["about"]))
            return Steering(operators, model, header["about"])
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{path} is no steering that austeer {library_version()} can read: {reason}.") from error


def require_steering(value: object, model) -> None:
    """Refuse what is no steering, and one that does not fit a model: see `Steering.check`."""
    if not isinstance(value, Steering):
        raise ValueError(f"A {type(value).__name__} was given as steering; give a Steering, a list of them, or None.")
    value.check(model)


def apply(model, tracer, parts: Sequence[tuple[slice | Tensor, Sequence[Operator]]], prompt: int | None = None) -> None:
    """Steer every pass of a run: call it in the body of a trace, an edit, or `generate`.

    In nnsight an edit in the plain body reaches the first pass only, so the passes are walked with `tracer.iter`. The
    loop ends with the run: nothing after this call is executed.

    Args:
        model: the nnsight model, or edited copy, that the trace is opened on.
        tracer: what the trace's `with` statement gave.
        parts: which rows of the batch (`slice(None)` for all) which operators steer. Operators, not steerings: on a
            remote model what is named here travels with the request, class and all.
        prompt: how many columns of the first pass are the prompts'; all of them by default. Texts that are scored hold
            their answers, too: those columns count as generated.
    """
    sites = Sites(model)
    acting = [(rows, operator, {}) for rows, operators in parts for operator in operators]
    places = sorted(
        {place for _, operator, _ in acting for place in (*operator.reads(), *operator.writes())},
        key=lambda place: place.order,
    )
    readers = {place: [part for part in acting if place in part[1].reads()] for place in places}
    writers = {place: [part for part in acting if place in part[1].writes()] for place in places}
    width = None
    for step in tracer.iter[:]:
        positional, named = model.inputs
        ids = named["input_ids"] if "input_ids" in named else positional[0]
        tokens, mask = ids.shape[1], named.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -tokens:].bool()
        width = width or tokens  # one column is added per step, with or without a cache
        seen, prompts = width + step, prompt or width
        for place in places:
            x = sites.read(place)
            for rows, operator, state in readers[place]:
                operator.observe(place, x[rows], Pass(step, seen, prompts, real[rows]), state)
            delta = None
            for rows, operator, state in writers[place]:
                now = Pass(step, seen, prompts, real[rows])
                part = operator.displacement(place, x[rows], now, state) * operator.strength
                if delta is None:
                    delta = torch.zeros(x.shape, dtype=part.dtype, device=x.device)
                where = now.mask(operator.positions).to(part.device)  # layers may lie on several devices
                delta[rows] += torch.where(where[..., None], part, 0.0)
            if delta is not None:
                sites.write(place, (x + delta).to(x.dtype))


def bake(model, steering: Steering):
    """Fold a steering into plain weights: a Hugging Face model with the same outputs and no hooks.

    Scaling unit i of y = W x scales column i of W; a shift adds W s to the bias. At `ffn` the rows are scaled and the
    shift is the bias itself. Sums are taken in float64, and rounded once to the model's dtype.

    Scales fold in every architecture. Shifts fold where the projection has a bias or its configuration can declare one
    (Llama, GPT-2, GPT-NeoX, attention of Qwen3 and Gemma); a Mistral or Qwen2 is written as a `LlamaForCausalLM` with
    biases that computes the same. Refused, with the reason: a shift in the FFN of Qwen3 or Gemma, gates, the residual
    stream, positions other than "all", and operators that are no fixed scale or shift.

    What `save_pretrained` writes, with the tokenizer beside it, is served like any other checkpoint: by
    `vllm serve DIRECTORY`, or by llama.cpp after `python convert_hf_to_gguf.py DIRECTORY --outfile steered.gguf`.

    Args:
        model: a local model from `load()`; it is not changed.
        steering: scales and shifts of attention, ffn and neuron units at all positions.

    Returns:
        A new `PreTrainedModel`; `save_pretrained` and `from_pretrained` keep it as it is.

    Raises:
        ValueError: what plain weights cannot express or this architecture cannot save, with the reason.

    Example:
        >>> model = au.load()
        >>> momentum = au.activation_momentum(model, au.load_pairs("sentiment")[:16])
        >>> plain = au.bake(model, au.methods.DirectionalAUSteer(momentum.top(20), alpha=8.0))
        >>> type(plain).__name__
        'LlamaForCausalLM'
    """
    require_steering(steering, model)
    if info(model).remote is True:
        raise ValueError("The weights of a remote model are not here; bake on a machine that holds them.")
    for operator in steering.operators:
        if operator.positions != "all":
            raise ValueError(f"Weights act at every position, this operator at {operator.positions!r}; not bakeable.")
        if operator.site == "residual":
            raise ValueError("The residual stream is a sum, with no weight of its own to fold into; not bakeable.")
        if operator.site == "gate":
            raise ValueError("A gate is a factor of its neuron, with no weight of its own to fold into; not bakeable.")
        if type(operator) not in (Scale, Shift):
            raise ValueError(f"The operator {operator.name!r} is no fixed scale or shift of units; not bakeable.")

    gains: dict[Place, dict[str, Tensor]] = {}
    for operator in steering.operators:
        for place in operator.writes():
            here = operator.tensors["layer"] == place.layer
            zero = torch.zeros(anatomy(model).widths[place.site], dtype=torch.float64)
            total = gains.setdefault(place, {}).setdefault(operator.name, zero)
            value = operator.tensors["value"][here].double() * operator.strength
            total.index_add_(0, operator.tensors["index"][here], value)

    shifted = {place.site for place, sums in gains.items() if "shift" in sums}
    baked = _with_biases(model._module, {"mlp" if site in ("ffn", "neuron") else "attention" for site in shifted})
    for place in sorted(gains, key=lambda place: place.order):
        _fold(projection(baked, place), place.site, gains[place].get("scale"), gains[place].get("shift"))
    return baked


def _fold(linear, site: str, scale: Tensor | None, shift: Tensor | None) -> None:
    """Change one projection in place; sums in float64, so that only the final rounding is left."""
    with torch.no_grad():
        weight = linear_weight(linear)
        exact = weight.double()
        scale, shift = (None if gain is None else gain.to(exact.device) for gain in (scale, shift))
        bias = exact.new_zeros(len(weight)) if linear.bias is None else linear.bias.double()
        bias, exact = bias.clone(), exact.clone()
        if site == "ffn":
            if scale is not None:
                exact *= (1 + scale)[:, None]
                bias *= 1 + scale
            if shift is not None:
                bias += shift
        else:
            if shift is not None:
                bias += exact @ shift
            if scale is not None:
                exact *= 1 + scale
        weight.copy_(exact)
        if linear.bias is not None:
            linear.bias.copy_(bias)


def _with_biases(module, parts: set[str]):
    """Copy a model, with zero biases on the output projections of `parts`, as a Llama where its own kind has none."""
    place = {"attention": Place(0, "attention"), "mlp": Place(0, "ffn")}
    lacking = [part for part in parts if projection(module, place[part]).bias is None]
    config, kind = copy.deepcopy(module.config), type(module)
    if any(not hasattr(config, f"{part}_bias") for part in lacking) and _is_llama_by_another_name(config):
        own = LlamaConfig().to_dict().keys() - {"model_type", "architectures"}
        kind, config = LlamaForCausalLM, LlamaConfig(**{k: v for k, v in config.to_dict().items() if k in own})
        config.attention_bias = module.get_submodule("model.layers.0.self_attn.q_proj").bias is not None
    for part in lacking:
        if not hasattr(config, f"{part}_bias"):
            raise ValueError(
                f"A shift needs a bias on the {part} output projection, which {type(module).__name__} cannot "
                "declare; use a scale, or steer with hooks."
            )
        setattr(config, f"{part}_bias", True)
    device = "cpu" if getattr(module, "hf_device_map", None) else module.device  # what is spread fits on no one card
    copied = cast(kind(config).to(device), module.dtype).eval().requires_grad_(False)
    missing, _ = copied.load_state_dict(module.state_dict(), strict=False)
    for name in missing:  # the biases that the configuration has just declared
        copied.get_parameter(name).zero_()
    copied.generation_config = copy.deepcopy(module.generation_config)
    return copied


def _is_llama_by_another_name(config) -> bool:
    """Whether a Llama with biases computes the same: Mistral and Qwen2, if no window hides tokens of their context."""
    window = getattr(config, "sliding_window", None)
    hidden = window is not None and window < config.max_position_embeddings
    return config.model_type in ("mistral", "qwen2") and not hidden


def _derived(kind: type[Operator]) -> Iterator[type[Operator]]:
    for child in kind.__subclasses__():
        yield child
        yield from _derived(child)


def _sites(about: dict) -> Iterator[tuple[str, list[int]]]:
    """Yield (site, its (layers, width)) of a method or of the parts of a sum, where they say so."""
    if "shape" in about:
        yield about["site"], about["shape"]
    for part in about.get("parts", ()):
        yield from _sites(part)


def _safetensors(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{str(path)!r} does not end in .safetensors; steerings are kept as safetensors only.")
    return path
