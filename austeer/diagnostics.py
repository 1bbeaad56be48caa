"""What single units write and do: their words, their share of a logit, their effect when they are turned up alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from austeer.models import encode, info
from austeer.remote import run
from austeer.sites import Place, Sites, anatomy, linear_weight, projection, weight

ROWS_PER_PASS = 192  # more rows gain nothing on a CPU and cost memory


@dataclass(frozen=True)
class LogitContributions:
    """One logit (or the difference of two) at a prompt's last token, split over all units that wrote to the residual.

    Args:
        attention: (layers, width) float64, contribution of each attention unit.
        neuron: (layers, width) float64, contribution of each neuron.
        remainder: what no unit wrote: the embedding, and the biases where the model has some.
        logit: what the model itself computed; the three above sum to it.
    """

    attention: Tensor
    neuron: Tensor
    remainder: float
    logit: float

    def top(self, k: int) -> list[tuple[Place, int, float]]:
        """Return the k units with the largest contributions, by size, as (place, index, contribution)."""
        flat = torch.cat([self.attention.flatten(), self.neuron.flatten()])
        rows = []
        for position in flat.abs().topk(k).indices.tolist():
            site, units = "attention", self.attention
            if position >= units.numel():
                site, units, position = "neuron", self.neuron, position - units.numel()
            layer, index = divmod(position, units.shape[1])
            rows.append((Place(layer, site), index, units[layer, index].item()))
        return rows


def logit_contributions(model, prompt: str, token: str, against: str | None = None) -> LogitContributions:
    """Split the logit of a token into what each unit contributes (direct logit attribution).

    The final norm divides by the size of the residual. That divisor is kept as it was in this run, so the split is
    exact; it is no forecast of what happens when a unit changes, which would move the divisor and all later layers.

    Args:
        model: a model from `load()`.
        prompt: raw text; its last token is looked at.
        token: the token, as text such as " Paris".
        against: split the logit of `token` minus that of this one.

    Raises:
        ValueError: a text that is not one token, a model whose weights are not here, or one whose blocks do not add
            what their units write (Gemma normalises it first).
    """
    if info(model).remote is True:
        raise ValueError("The weights of a remote model are not here; use a local one to split a logit.")
    ids = [token_id(model, text) for text in (token, against) if text is not None]
    found, name = anatomy(model), _head_name(model)
    site_names = ("attention", "neuron")
    with torch.no_grad(), model.trace(encode(model, [prompt]), remote=info(model).remote):
        sites, read = Sites(model), {site: [] for site in site_names}
        start = model.get(found.blocks)[0].input[0, -1].save()
        for layer in range(found.layers):
            for site in site_names:
                read[site].append(sites.read(Place(layer, site))[0, -1])
        final = sites.read(Place(found.layers - 1, "residual"))[0, -1].save()
        normed = model.get(name).input[0, -1].save()
        logits = model.output.logits[0, -1, ids].save()
        attention, neuron = torch.stack(read["attention"]).save(), torch.stack(read["neuron"]).save()

    norm, head = _final_norm(model), model._module.get_output_embeddings()
    final, normed, logits = final.double(), normed.double(), logits.double()
    bias = getattr(norm, "bias", None)
    bias = torch.zeros_like(normed) if bias is None else bias.double()
    frozen = _gain(norm, final)
    scale = (normed - bias) @ frozen / (frozen @ frozen)  # one over the size of the residual in this run
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=final.device)[: len(ids)]
    unembedding = linear_weight(head)[ids].double()
    head_bias = torch.zeros_like(logits) if getattr(head, "bias", None) is None else head.bias[ids].double()
    direction = sign @ unembedding
    reader = scale * _gain(norm, direction, transposed=True)  # what a vector in the residual adds to the logit

    constant = written = start.double()  # what no unit wrote; what everything wrote
    split = {}
    for site, x in zip(site_names, (attention, neuron), strict=True):
        rows = []
        for layer in range(found.layers):
            linear = projection(model._module, Place(layer, site))
            matrix, units = linear_weight(linear).double(), x[layer].double()
            rows.append(units * (reader @ matrix))
            written = written + matrix @ units
            if linear.bias is not None:
                constant, written = constant + linear.bias.double(), written + linear.bias.double()
        split[site] = torch.stack(rows).cpu()

    # Whole vectors are compared: a logit alone may agree by chance, and bfloat16 moves a small difference by a lot.
    off = (scale * _gain(norm, written) + bias - normed).norm() / normed.norm()
    rounding = 0.01 * logits.norm() + 1e-5 * normed.norm() * unembedding.norm()
    if off > 0.05 or (unembedding @ normed + head_bias - logits).norm() > rounding:
        raise ValueError(
            f"The units of {info(model).id} do not sum to its logits: its blocks or its head transform what is "
            "written. Use a model whose blocks add their outputs to the residual as they are."
        )
    remainder = constant @ reader + bias @ direction + sign @ head_bias
    return LogitContributions(**split, remainder=remainder.item(), logit=(sign @ logits).item())


def written_logits(model, place: Place, index: Sequence[int] | Tensor | slice = slice(None)) -> Tensor:
    """Return what units write to the vocabulary: their slices, through the final norm's gain and the unembedding.

    The size of the residual is left out (as 1), and so is everything that later layers make of the slice.

    Args:
        model: a local model from `load()`.
        place: layer and site.
        index: (k,) units of the place; all by default.

    Returns:
        (k, vocabulary) float32: change of each logit per unit of activation.
    """
    slices = weight(model, place)[:, index].float().T
    return _gain(_final_norm(model), slices) @ linear_weight(model._module.get_output_embeddings()).float().T


def top_tokens(model, logits: Tensor, k: int = 5) -> list[list[str]]:
    """Return the k tokens with the largest logits of each row, as text; `logits` is (rows, vocabulary)."""
    return [[model.tokenizer.decode([i]) for i in row] for row in logits.topk(k).indices.tolist()]


def token_id(model, text: str) -> int:
    """Return the id of a text that is one token.

    Raises:
        ValueError: the text is more than one token; the message lists them.
    """
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens ({model.tokenizer.batch_decode([[i] for i in ids])}); give 1.")
    return ids[0]


def sweep(model, prompts: Sequence[str], place: Place, factor: Tensor, *, rows_per_pass: int = ROWS_PER_PASS) -> Tensor:
    """Multiply a place's activations at each prompt's last token by every row of `factor`, each row on its own.

    A prompt is read once. The rows are then a batch of one-token passes on its key-value cache that begin at the
    steered layer, so one unit at a time costs little more than a few last tokens.

    Args:
        model: a local model from `load()`.
        prompts: raw texts; only the last token of each is steered.
        place: layer and site.
        factor: (rows, width); a row that turns up unit i alone is 1 everywhere but at i.
        rows_per_pass: bounds the memory of a pass; halved where that is too small.

    Returns:
        (prompts, rows, hidden) float32: what the unembedding reads at the last token; see `unembed`.

    Raises:
        ValueError: a factor of another width, without rows or not finite, a remote model, or what `encode` refuses.
    """
    width = anatomy(model).require(place.site)
    if factor.ndim != 2 or factor.shape[1] != width or not len(factor) or not factor.isfinite().all():
        raise ValueError(f"factor is {tuple(factor.shape)}; give finite numbers of shape (rows, {width}).")
    if info(model).remote:
        raise ValueError("sweep() keeps a prompt's cache between passes and works on local models; use generate().")
    encode(model, prompts)  # refuses a bad prompt before the work on the others, not after
    head = model._module.get_output_embeddings()
    result = torch.empty(len(prompts), len(factor), linear_weight(head).shape[1])
    prompt = ()  # the one in work: its number, its last token, and what was read of the others

    def batch(rows: list[int]) -> tuple:
        return rows, factor[rows]

    def batches() -> Iterator[list[tuple]]:
        nonlocal prompt
        for number, text in enumerate(prompts):
            prompt = number, encode(model, [text])["input_ids"][:, -1:], *_prefix(model, text, place)
            for rows in torch.arange(len(factor)).split(rows_per_pass):
                yield [batch(rows.tolist())]

    def last_token(model, bundle: list[tuple]) -> Tensor:
        [(_, part)], (_, last, cache, hidden) = bundle, prompt
        return _rows(model, last, place, part, cache, hidden).float().cpu()

    title = f"layer {place.layer} {place.site}"
    with tqdm(total=len(prompts) * len(factor), desc=title, unit="row", leave=False) as bar:
        for [(rows, _)], reached in run(model, last_token, batches(), again=batch):
            result[prompt[0], rows] = reached
            bar.update(len(rows))
    return result


def turned_up(width: int, sets: Sequence[Sequence[int]], by: float) -> Tensor:
    """Return a `factor` for `sweep`: row r multiplies the units of `sets[r]` by `by` and leaves the others alone.

    Returns:
        (len(sets), width) float32.
    """
    factor = torch.ones(len(sets), width)
    for row, units in zip(factor, sets, strict=True):
        row[torch.as_tensor(units, dtype=torch.int64)] = by
    return factor


def unembed(model, hidden: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
    """Turn what the unembedding reads into logits.

    Args:
        model: a local model from `load()`.
        hidden: (..., hidden), as `sweep` returns it.
        tokens: ids of the logits wanted; all by default.

    Returns:
        (..., tokens) float32.

    Raises:
        ValueError: a model that rescales its logits in a way that is not known here, or a remote one.
    """
    if info(model).remote is True:
        raise ValueError("The weights of a remote model are not here; use a local one to turn vectors into logits.")
    config, head = model._module.config, model._module.get_output_embeddings()
    for name in ("logit_scale", "logits_scaling"):  # Cohere, Granite
        if getattr(config, name, None) not in (None, 1):
            raise ValueError(f"{info(model).id} rescales its logits ({name}); unembed() knows plain and capped ones.")
    chosen = slice(None) if tokens is None else list(tokens)
    matrix = linear_weight(head)[chosen].float()
    logits = hidden.to(matrix.device) @ matrix.T
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[chosen].float()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return (cap * torch.tanh(logits / cap) if cap else logits).cpu()


def _final_norm(model) -> nn.Module:
    """Find the norm before the unembedding: the last module outside the blocks with one weight per dimension."""
    module, blocks = model._module, anatomy(model).blocks
    hidden = module.config.get_text_config(decoder=True).hidden_size
    found = [
        norm
        for name, norm in module.named_modules()
        if not name.startswith(f"{blocks}.") and getattr(getattr(norm, "weight", None), "shape", None) == (hidden,)
    ]
    return found[-1]


def _gain(norm: nn.Module, x: Tensor, transposed: bool = False) -> Tensor:
    """Apply the linear part of a norm, the division by the size of its input left out, to (..., hidden) vectors."""
    if isinstance(norm, nn.LayerNorm):
        gain = norm.weight.to(x.dtype)
        centred = (gain * x) if transposed else x
        centred = centred - centred.mean(-1, keepdim=True)
        return centred if transposed else gain * centred
    large = torch.full_like(norm.weight, 1e6, dtype=x.dtype)  # its own epsilon does not count here
    with torch.no_grad():
        return x * norm(large).to(x.dtype)


def _head_name(model) -> str:
    module = model._module
    return next(name for name, found in module.named_modules() if found is module.get_output_embeddings())


def _prefix(model, prompt: str, place: Place):
    """Read a prompt but for its last token into a cache; return it, and what enters the place's block at the last."""
    ids, layer = encode(model, [prompt])["input_ids"], place.layer
    cache = None
    with torch.no_grad():
        if ids.shape[1] > 1:
            with model.trace({"input_ids": ids[:, :-1]}, use_cache=True):
                cache = model.output.past_key_values.save()
        hidden = None
        if layer > 0:
            with model.trace({"input_ids": ids[:, -1:]}, past_key_values=_widen(cache, 1), use_cache=True) as tracer:
                hidden = Sites(model).read(Place(layer - 1, "residual")).save()
                tracer.stop()
    return cache, hidden


def _rows(model, last: Tensor, place: Place, factor: Tensor, cache, hidden: Tensor | None) -> Tensor:
    """Run the last token once per row of `factor`, from the place's block on; return (rows, hidden)."""
    count, name = len(factor), _head_name(model)
    batch = {"input_ids": last.expand(count, 1)}
    with torch.no_grad(), model.trace(batch, past_key_values=_widen(cache, count), use_cache=True) as tracer:
        sites = Sites(model)
        blocks = model.get(sites.anatomy.blocks)
        for layer in range(place.layer):
            blocks[layer].skip(hidden.expand(count, -1, -1))
        x = sites.read(place)
        sites.write(place, x * factor[:, None].to(x))
        reached = model.get(name).input[:, -1].save()
        tracer.stop()
    return reached


def _widen(cache, rows: int):
    """Return a copy of a one-row cache that a batch of rows may extend; rows are copied as layers are reached."""
    wide = copy.copy(cache)
    if cache is not None:
        wide.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in wide.layers:
            layer.keys, layer.values = (t.expand(rows, -1, -1, -1) for t in (layer.keys, layer.values))
    return wide
