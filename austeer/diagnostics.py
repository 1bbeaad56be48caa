"""What single units write and do, and what a steering does inside the model: measurements that steer nothing."""

from __future__ import annotations

import copy
import html
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from austeer.data import load_results
from austeer.evaluation import GREEDY_24
from austeer.generation import generate, quiet
from austeer.models import apply_template, common_beginning, encode, info, several, token_ids
from austeer.remote import run
from austeer.sites import Place, Sites, anatomy, linear_weight, projection, weight
from austeer.steering import Operator, Steering, apply, require_steering

ROWS_PER_PASS = 192  # more rows gain nothing on a CPU and cost memory
TEXTS_PER_PASS = 8  # each is read twice, and four distributions over the vocabulary are held for every token


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


def branching_factor(logits: Tensor) -> Tensor:
    """Return exp of the mean entropy of next-token distributions: between how many equal tokens a model hesitates.

    Args:
        logits: (..., steps, vocabulary), one distribution a step.

    Returns:
        (...,) float32, from 1 (no choice) to the size of the vocabulary (no idea).

    Example:
        >>> au.diagnostics.branching_factor(torch.tensor([[2.0, 2.0, 2.0, 2.0]]))
        tensor(4.)
    """
    return entropy(logits.float().log_softmax(-1)).mean(-1).exp()


def entropy(log_p: Tensor) -> Tensor:
    """Return the entropy of distributions in nats; `log_p` is (..., outcomes), and may hold minus infinity."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats: by how much p is worse described by q than by itself; both (..., outcomes)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class Indicators:
    """What happens inside a model at the tokens of a text, with the steering (after) and without it (before).

    Both models read the same texts, so nothing but the steering differs. Every value is (texts,) float32, a mean over
    the steps at which a token of the text was chosen; steps of one text are not independent.

    Args:
        entropy, entropy_before: of the next-token distribution, in nats; exp of it is the branching factor.
        reach, reach_before: how many tokens an attention head reads: exp of the entropy of its weights, averaged over
            the heads of the layer after the last one that is written.
        to_push, to_push_before: KL divergence, in nats, from what the state of the last written layer says by itself
            (through the final norm and the unembedding) to what the push says by itself; the push is the text's mean
            displacement of that state. NaN without a steering.
        shift: KL(steered || unsteered) of the next-token distributions, in nats.
        surprise: negative log-probability of the text's tokens under the unsteered model, in nats: the logarithm of
            the perplexity that is the price everywhere in this book.
    """

    entropy: Tensor
    entropy_before: Tensor
    reach: Tensor
    reach_before: Tensor
    to_push: Tensor
    to_push_before: Tensor
    shift: Tensor
    surprise: Tensor


def indicators(model, prompts: Sequence[str], texts: Sequence[str], steering: Steering | None) -> Indicators:
    """Read texts twice, with a steering and without it, and say what it does inside the model.

    The distributions are the model's own: of a repetition penalty under which a text was written they know nothing.

    Args:
        model: a local model from `load()`.
        prompts: what the texts continue; a template is already applied.
        texts: continuations, as `generate` gives them.
        steering: under which they were written; None for unsteered ones, whose before and after are the same.

    Raises:
        ValueError: lists of different lengths, a text without a token, a steering of another shape, a remote model, or
            one whose attention weights cannot be read.
    """
    _require_local(model)
    prompts, texts = several(prompts), several(texts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts were given for {len(texts)} texts; give one prompt per text.")
    operators, layers = (), anatomy(model).layers
    if steering is not None:
        require_steering(steering, model)
        operators = steering.operators
    last = max((place.layer for operator in operators for place in operator.writes()), default=layers - 1)
    places = Place(last, "residual"), min(last + 1, layers - 1)
    found = []
    with _eager(model), torch.no_grad(), quiet(), tqdm(total=len(texts), desc="indicators", leave=False) as bar:
        for start in range(0, len(texts), TEXTS_PER_PASS):
            part = slice(start, start + TEXTS_PER_PASS)
            found.append(_read_twice(model, *_aligned(model, prompts[part], texts[part]), operators, places))
            bar.update(len(texts[part]))
    return Indicators(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def changes(steered: Indicators, unsteered: Indicators) -> dict[str, float]:
    """Return what a run's indicators say as a few numbers, each a mean over its texts and 0 where nothing is steered.

    Args:
        steered: of the texts that the steered model wrote.
        unsteered: of those that the model wrote for the same prompts without a steering.

    Returns:
        hesitation: log of the branching factor over that without steering.
        hesitation on one text: log of the branching factor over that of the unsteered model on the same text.
        reach: log of the tokens read over those that the unsteered model reads in the same text.
        towards the push: KL to what the push says, before minus after, in nats.
        shift: log of 1 + KL(steered || unsteered), nats.
    """
    return {
        "hesitation": (steered.entropy.mean() - unsteered.entropy.mean()).item(),
        "hesitation on one text": (steered.entropy - steered.entropy_before).mean().item(),
        "reach": (steered.reach / steered.reach_before).log().mean().item(),
        "towards the push": (steered.to_push_before - steered.to_push).nan_to_num().mean().item(),
        "shift": steered.shift.log1p().mean().item(),
    }


@dataclass(frozen=True)
class TrafficLight:
    """What to expect of a steering, from inside the model alone: no text was judged.

    Args:
        colour: "red" (its texts are likely to fall apart), "amber" (readable, but the behaviour is not likely to show)
            or "green".
        reasons: one sentence for each thing that was looked at.
        numbers: the two probabilities, and the changes that they come from.
        texts: what the steered model wrote, for the reader's own eyes.
    """

    colour: str
    reasons: list[str]
    numbers: dict[str, float]
    texts: list[str] = field(repr=False)

    def __repr__(self) -> str:
        return "\n  ".join([self.colour, *self.reasons])

    def _repr_html_(self) -> str:
        shade = {"red": "#c62828", "amber": "#b45309", "green": "#2e7d32"}[self.colour]
        lines = "<br>".join(html.escape(reason) for reason in self.reasons)
        return f"<p style='border-left:6px solid {shade};padding-left:8px'><b>{self.colour}</b><br>{lines}</p>"


def traffic_light(model, prompts: Sequence[str], steering: Steering, *, template: str | None = None) -> TrafficLight:
    """Say what to expect of a steering: 24 greedy tokens for each prompt, with it and without it, and one look inside.

    Two logistic regressions on `changes`, fitted on the steered runs of chapter 16: one for coherent texts, one, with
    squares, for texts that are coherent and show the behaviour. They come from one small model and ten behaviours.

    Args:
        model: a local model from `load()`.
        prompts: eight or so, of the kind that the steering is for.
        steering: any.
        template: None or "chat".

    Raises:
        ValueError: as `generate` and `indicators`.
    """
    _require_local(model)
    require_steering(steering, model)
    prompts = apply_template(model, several(prompts), template)
    texts = generate(model, prompts * 2, [None] * len(prompts) + [steering] * len(prompts), **GREEDY_24)
    plain, steered = texts[: len(prompts)], texts[len(prompts) :]
    found = changes(indicators(model, prompts, steered, steering), indicators(model, prompts, plain, None))
    chance = {row["predicts"]: probability(found, row) for row in load_results("traffic_light")}
    return TrafficLight(*verdict(chance, found), {**chance, **found}, steered)


def probability(found: dict[str, float], row: dict) -> float:
    """Return what a logistic regression makes of `changes`, each of them standardised, and of their squares.

    Args:
        found: what `changes` gave.
        row: `bias`, and by name `center`, `scale`, `weight` and, where squares count, `square`.
    """
    total = row["bias"]
    for name, per_deviation in row["weight"].items():
        z = (found[name] - row["center"][name]) / row["scale"][name]
        total += per_deviation * z + row["square"].get(name, 0.0) * z**2
    return 1 / (1 + math.exp(-total))


def verdict(chance: dict[str, float], found: dict[str, float]) -> tuple[str, list[str]]:
    """Return the colour of a traffic light and its reasons, from two probabilities and the changes behind them."""
    coherent, works = chance["coherent"], chance["works"]
    colour = "red" if coherent < 0.5 else "green" if works >= 0.5 else "amber"
    times = {name: math.exp(found[name]) for name in ("hesitation", "hesitation on one text", "reach")}
    return colour, [
        f"texts stay whole with probability {coherent:.2f}, and show the behaviour, too, with {works:.2f}",
        f"branching factor: {times['hesitation']:.2f} x that without steering, "
        f"{times['hesitation on one text']:.2f} x on the same text",
        f"a head reads {times['reach']:.2f} x as many tokens",
        f"KL to what the push says: {found['towards the push']:+.2f} nats nearer",
        f"KL(steered || unsteered): {math.expm1(found['shift']):.2f} nats per token",
    ]


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


def _require_local(model) -> None:
    if info(model).remote:
        raise ValueError("Attention weights are read on local models only; load the model without remote.")


@contextmanager
def _eager(model) -> Iterator[None]:
    """Let attention hand out its weights for a while: only transformers' eager implementation does."""
    module = model._module
    kept = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(kept)


def _aligned(model, prompts: list[str], texts: list[str]) -> tuple[dict[str, Tensor], int]:
    """Return a batch in which all prompts end in one column, and how many columns they fill.

    The prompts are padded on the left and the texts on the right.
    """
    rows = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = token_ids(model, prompt + text)
        read = max(1, common_beginning([token_ids(model, prompt), ids]))
        if len(ids) == read:
            raise ValueError(f"The text {text!r:.60} has no token of its own; give texts that are not empty.")
        rows.append((ids[:read], ids[read:]))
    left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
    ids = torch.full((len(rows), left + right), model.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (read, own) in enumerate(rows):
        here = slice(left - len(read), left + len(own))
        ids[row, here], mask[row, here] = torch.tensor(read + own), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, left


def _read_twice(
    model, batch: dict[str, Tensor], prompt: int, operators: Sequence[Operator], places: tuple[Place, int]
) -> list[Tensor]:
    """Return the fields of `Indicators` for one batch, (texts,) each; with operators every text is read twice."""
    (place, layer), rows = places, len(batch["input_ids"])
    twice = {name: torch.cat([tensor] * 2) for name, tensor in batch.items()} if operators else batch
    steps = slice(prompt - 1, batch["input_ids"].shape[1] - 1)  # where the text's tokens are chosen
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke(twice):
            if operators:
                apply(model, tracer, [(torch.arange(rows, 2 * rows), operators)], prompt)
        with tracer.invoke():
            if layer == place.layer:  # a block's attention comes before its output
                heads = _attention_weights(model, layer)[:, :, steps].float().cpu().save()
            state = Sites(model).read(place)[:, steps].float().cpu().save()
            if layer != place.layer:
                heads = _attention_weights(model, layer)[:, :, steps].float().cpu().save()
            logits = model.output.logits[:, steps].float().cpu().save()
    chosen = batch["input_ids"][:, prompt:, None]
    real = batch["attention_mask"][:, prompt:].float()

    def mean(values: Tensor) -> Tensor:
        return (values * real).sum(-1) / real.sum(-1)

    log_p = logits.log_softmax(-1).split(rows)  # before, after
    read = entropy(heads.log()).exp().mean(1).split(rows)
    shift, push = torch.zeros(rows), [torch.full((rows,), torch.nan)] * 2
    if operators:
        shift = mean(divergence(log_p[1], log_p[0]))
        before, after = state.split(rows)
        along = ((after - before) * real[..., None]).sum(1) / real.sum(-1, keepdim=True)
        said = _said_by(model, along)[:, None]  # (texts, 1, vocabulary)
        push = [mean(divergence(_said_by(model, one), said)) for one in (after, before)]
    surprise = -mean(log_p[0].gather(-1, chosen)[..., 0])
    pairs = [mean(entropy(one)) for one in (log_p[-1], log_p[0])] + [mean(one) for one in (read[-1], read[0])]
    return [*pairs, *push, shift, surprise]


def _said_by(model, state: Tensor) -> Tensor:
    """Return the log-probabilities that a state of the residual stream, (..., hidden), has for the next token."""
    norm = _final_norm(model)
    with torch.no_grad():
        return unembed(model, norm(state.to(norm.weight)).float()).log_softmax(-1)


def _attention_weights(model, layer: int) -> Tensor:
    """Return a layer's attention weights inside a trace, (texts, heads, tokens, tokens read)."""
    found = anatomy(model)
    return model.get(f"{found.blocks}.{layer}.{found.attention.rsplit('.', 1)[0]}").output[1]
