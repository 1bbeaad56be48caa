"""`collect()`: a site's activations at the last token of many texts, in batches, streamed to an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm import tqdm

from austeer.data import ContrastivePair
from austeer.models import apply_template, encode, info, token_ids
from austeer.sites import Place, Sites, anatomy

TOKENS_PER_PASS = 1024  # bounds the memory of a forward pass, whatever the number of texts

Accumulator = Callable[..., None]  # called with the rows' numbers and one (rows, layers, width) tensor per side


def collect(
    model,
    items: Sequence[ContrastivePair] | Sequence[str],
    site: str = "attention",
    *,
    template: str | None = None,
    into: Accumulator | None = None,
    tokens_per_pass: int = TOKENS_PER_PASS,
):
    """Read a site's activations of every layer at the last token of each text.

    Batches are sorted by length and bounded by tokens; a pass stops after the last layer that is read, without the
    LM head. Both sides of a pair are in one batch.

    Args:
        model: a model from `load()`.
        items: contrastive pairs, or texts.
        site: "attention", "ffn", "neuron" or "residual".
        template: None or "chat" (the prompt becomes a user's turn, the answer follows it).
        into: called for each batch as `into(rows, positive, negative)`, or `into(rows, activations)` for texts, with
            (batch, layers, width) float32 tensors on the CPU; nothing else is kept, so memory does not grow.
        tokens_per_pass: upper bound of rows x tokens in a forward pass (one item may exceed it).

    Returns:
        `(positive, negative)`, or one tensor for texts, each (items, layers, width) float32; None with `into`.

    Raises:
        ValueError: no item, an unknown site, or a text longer than the model's context (the message quotes it).

    Example:
        >>> au.collect(au.load(), ["The sun is out.", "It rains."], site="attention").shape
        torch.Size([2, 30, 576])
    """
    found = anatomy(model)
    width = found.require(site)
    if not items:
        raise ValueError("No pair or text was given; give at least one.")
    texts = [_sides(model, item, template) for item in items]
    stacked = None
    if into is None:
        stacked = torch.empty(len(texts[0]), len(items), found.layers, width)

    with tqdm(total=len(items), desc=f"reading {site}", unit="item", leave=False) as bar:
        for rows in _batches(model, texts, tokens_per_pass):
            sides = [side for row in rows for side in texts[row]]
            read = _last_token(model, sides, site).float().cpu()
            read = read.view(len(rows), -1, found.layers, width).transpose(0, 1)
            if into is None:
                stacked[:, rows] = read
            else:
                into(rows, *read)
            bar.update(len(rows))
    if into is None:
        return tuple(stacked) if len(stacked) > 1 else stacked[0]


def _sides(model, item: ContrastivePair | str, template: str | None) -> tuple[str, ...]:
    if isinstance(item, str):
        return tuple(apply_template(model, [item], template))
    prompt = apply_template(model, [item.prompt], template)[0]
    return prompt + item.positive, prompt + item.negative


def _batches(model, texts: list[tuple[str, ...]], tokens_per_pass: int) -> Iterator[list[int]]:
    """Yield row numbers, longest first (a pass that cannot fit fails at once), at most `tokens_per_pass` a batch."""
    lengths = [max(len(token_ids(model, side)) for side in sides) for sides in texts]
    batch, widest = [], 0
    for row in sorted(range(len(texts)), key=lambda row: (-lengths[row], row)):
        widest = widest or lengths[row]
        if batch and (len(batch) + 1) * len(texts[row]) * widest > tokens_per_pass:
            yield batch
            batch, widest = [], lengths[row]
        batch.append(row)
    yield batch


def _last_token(model, texts: list[str], site: str) -> torch.Tensor:
    """Run one forward pass and return (texts, layers, width) at the last token; left padding puts it at -1."""
    layers = anatomy(model).layers
    with torch.no_grad(), model.trace(encode(model, texts), use_cache=False, remote=info(model).remote) as tracer:
        sites, rows = Sites(model), []
        for layer in range(layers):
            rows.append(sites.read(Place(layer, site))[:, -1])
        activations = torch.stack(rows, 1).save()
        tracer.stop()
    return activations
