"""`collect()`: a site's activations at the last token of many texts, in batches, streamed to an accumulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from tqdm import tqdm

from austeer.data import ContrastivePair
from austeer.models import apply_template, encode, info, several, token_ids
from austeer.remote import bundles, run
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
            (batch, layers, width) float32 tensors on the CPU; nothing else is kept, so memory does not grow (on a
            remote model all is kept until the end, so that a broken job can go on).
        tokens_per_pass: upper bound of rows x tokens in a forward pass (one item may exceed it).

    Returns:
        `(positive, negative)`, or one tensor for texts, each (items, layers, width) float32; None with `into`.

    Raises:
        ValueError: no item, one string, an unknown site, a text longer than the model's context (the message quotes
            it), or activations that are not finite.

    Example:
        >>> au.collect(au.load(), ["The sun is out.", "It rains."], site="attention").shape
        torch.Size([2, 30, 576])
    """
    info(model)
    found = anatomy(model)
    width = found.require(site)
    texts, lengths = sides_and_lengths(model, items, template)
    stacked = None
    if into is None:
        stacked = torch.empty(len(texts[0]), len(items), found.layers, width)

    def read_size(batch: tuple[list[int], dict]) -> int:
        return len(batch[1]["input_ids"]) * found.layers * width * 4

    def batch(rows: list[int]) -> tuple[list[int], dict]:
        return rows, encode_sides(model, texts, rows)

    parts = map(batch, by_length(lengths, len(texts[0]), tokens_per_pass))
    with tqdm(total=len(items), desc=f"reading {site}", unit="item", leave=False) as bar:
        for bundle, activations in run(model, last_tokens, bundles(model, parts, read_size), site, again=batch):
            for (rows, _), read in zip(bundle, activations, strict=True):
                require_finite(read)
                read = read.view(len(rows), -1, found.layers, width).transpose(0, 1)
                if into is None:
                    stacked[:, rows] = read
                else:
                    into(rows, *read)
                bar.update(len(rows))
    if into is None:
        return tuple(stacked) if len(stacked) > 1 else stacked[0]


def sides_and_lengths(
    model, items: Sequence[ContrastivePair] | Sequence[str], template: str | None
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return each item's texts, one for a text and two for a pair, and the number of tokens of the longer one.

    Raises:
        ValueError: no item, or a text longer than the model's context.
    """
    several(items if isinstance(items, str) else [item for item in items if not isinstance(item, ContrastivePair)])
    if not items:
        raise ValueError("No pair or text was given; give at least one.")
    texts = [_sides(model, item, template) for item in items]
    lengths = [max(len(token_ids(model, side)) for side in sides) for sides in texts]
    encode_sides(model, texts, [max(range(len(texts)), key=lengths.__getitem__)])  # what cannot fit fails at once
    return texts, lengths


def encode_sides(model, texts: list[tuple[str, ...]], rows: list[int]) -> dict[str, torch.Tensor]:
    """Return the tokens of some items, both sides of a pair in rows beside each other."""
    return encode(model, [side for row in rows for side in texts[row]])


def by_length(
    lengths: list[int], sides: int, tokens_per_pass: int, rows: Iterable[int] | None = None
) -> Iterator[list[int]]:
    """Yield row numbers, longest first, in batches of at most `tokens_per_pass` tokens."""
    batch, widest = [], 0
    for row in sorted(range(len(lengths)) if rows is None else rows, key=lambda row: (-lengths[row], row)):
        widest = widest or lengths[row]
        if batch and (len(batch) + 1) * sides * widest > tokens_per_pass:
            yield batch
            batch, widest = [], lengths[row]
        batch.append(row)
    yield batch


def last_tokens(model, bundle: list[tuple], site: str) -> list[torch.Tensor]:
    """Return (texts, layers, width) float32 for each batch, the second entry of a tuple; left padding puts it at -1."""
    found = []
    for _, batch, *_ in bundle:
        with torch.no_grad(), model.trace(batch, use_cache=False) as tracer:
            sites, read = Sites(model), []
            for layer in range(sites.anatomy.layers):
                read.append(sites.read(Place(layer, site))[:, -1].clone())  # a view would keep all tokens
            # The layers of a model on several devices meet on the last one.
            activations = torch.stack([x.to(read[-1].device) for x in read], 1).save()
            tracer.stop()
        found.append(activations.float().cpu())
    return found


def require_finite(values: torch.Tensor) -> None:
    """Refuse activations, or sums of them, that are not finite."""
    if not values.isfinite().all():
        raise ValueError("Some activations are not finite; check the model's weights and dtype.")


def _sides(model, item: ContrastivePair | str, template: str | None) -> tuple[str, ...]:
    if isinstance(item, str):
        return tuple(apply_template(model, [item], template))
    prompt = apply_template(model, [item.prompt], template)[0]
    return prompt + item.positive, prompt + item.negative
