"""`collect()`: a site's activations at the last token of many texts, in batches, streamed to an accumulator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.data import ContrastivePair
from austeer.models import apply_template, common_beginning, encode, info, several, token_ids
from austeer.remote import bundles, run
from austeer.sites import Place, Sites, anatomy

TOKENS_PER_PASS = 1024  # bounds the memory of a forward pass, whatever the number of texts
_LEAST_TOKENS = 16  # what an item counts at least: what is read of it takes memory, too

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
    LM head. Both sides of a pair are in one batch, and what they begin with in common is computed once.

    Args:
        model: a model from `load()`.
        items: contrastive pairs, or texts.
        site: "attention", "ffn", "neuron", "residual", or, where the FFN is gated, "gate".
        template: None or "chat" (the prompt becomes a user's turn, the answer follows it).
        into: called for each batch as `into(rows, positive, negative)`, or `into(rows, activations)` for texts, with
            (batch, layers, width) float32 tensors on the CPU; nothing else is kept, so memory does not grow (on a
            remote model all is kept until the end, so that a broken job can go on).
        tokens_per_pass: upper bound of rows x tokens in a forward pass (one item may exceed it; less than 16 tokens
            count as 16).

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
    texts = Texts.of(model, items, template)
    stacked = None
    if into is None:
        stacked = torch.empty(len(texts.sides[0]), len(items), found.layers, width)

    def read_size(batch: tuple) -> int:
        return len(batch[0]) * len(texts.sides[0]) * found.layers * width * 4

    def batch(rows: list[int]) -> tuple:
        return rows, *texts.encode(model, rows)

    parts = map(batch, texts.batches(tokens_per_pass))
    with tqdm(total=len(items), desc=f"reading {site}", unit="item", leave=False) as bar:
        for bundle, activations in run(model, last_tokens, bundles(model, parts, read_size), site, again=batch):
            for (rows, *_), read in zip(bundle, activations, strict=True):
                require_finite(read)
                read = read.view(len(rows), -1, found.layers, width).transpose(0, 1)
                if into is None:
                    stacked[:, rows] = read
                else:
                    into(rows, *read)
                bar.update(len(rows))
    if into is None:
        return tuple(stacked) if len(stacked) > 1 else stacked[0]


@dataclass(frozen=True)
class Texts:
    """The items that a job reads, and how they lie in a pass: what the sides of a pair share is computed once.

    Args:
        sides: each item's texts, one for a text and two for a pair.
        columns: how many tokens of a pass each item takes, 16 at least.
        joined: whether the sides of an item are one row, in which no side sees another one.
    """

    sides: list[tuple[str, ...]]
    columns: list[int]
    joined: bool

    @classmethod
    def of(cls, model, items: Sequence[ContrastivePair] | Sequence[str], template: str | None) -> Texts:
        """Lay out some items.

        Raises:
            ValueError: no item, or a text longer than the model's context.
        """
        several(items if isinstance(items, str) else [item for item in items if not isinstance(item, ContrastivePair)])
        if not items:
            raise ValueError("No pair or text was given; give at least one.")
        sides, columns, alone = [_sides(model, item, template) for item in items], [], []
        for texts in sides:
            ids = [token_ids(model, side) for side in texts]
            columns.append(sum(map(len, _shared_and_own(ids))))
            alone.append(len(ids) * max(map(len, ids)))
        encode(model, list(sides[alone.index(max(alone))]))  # what cannot fit fails at once
        joined = len(sides[0]) > 1 and _may_join(model, max(columns))
        return cls(sides, [max(length, _LEAST_TOKENS) for length in (columns if joined else alone)], joined)

    def batches(self, tokens_per_pass: int, rows: Iterable[int] | None = None) -> Iterator[list[int]]:
        """Yield the numbers of items, longest first, in batches of at most `tokens_per_pass` tokens."""
        batch, widest = [], 0
        rows = range(len(self.sides)) if rows is None else rows
        for row in sorted(rows, key=lambda row: (-self.columns[row], row)):
            widest = widest or self.columns[row]
            if batch and (len(batch) + 1) * widest > tokens_per_pass:
                yield batch
                batch, widest = [], self.columns[row]
            batch.append(row)
        yield batch

    def encode(self, model, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs of a pass over some items, and in which columns each of its rows has its last tokens."""
        if not self.joined:
            batch = encode(model, [side for row in rows for side in self.sides[row]])
            return batch, torch.full((len(batch["input_ids"]), 1), -1)
        ids = [_shared_and_own([token_ids(model, side) for side in self.sides[row]]) for row in rows]
        width = max(sum(map(len, parts)) for parts in ids)
        tokens = torch.full((len(rows), width), model.tokenizer.pad_token_id)
        branch, position = torch.full_like(tokens, -1), torch.zeros_like(tokens)  # branch: -1 padding, 0 what is shared
        ends = torch.empty(len(rows), len(self.sides[0]), dtype=torch.long)
        for row, (shared, *own) in enumerate(ids):
            column = width - len(shared) - sum(map(len, own))
            for number, part in enumerate([shared, *own]):
                here, first = slice(column, column + len(part)), len(shared) if number else 0
                tokens[row, here], branch[row, here] = torch.tensor(part, dtype=torch.long), number
                position[row, here] = torch.arange(first, first + len(part))
                column += len(part)
                if number:
                    ends[row, number - 1] = column - 1
        seen = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
        seen &= torch.ones(width, width, dtype=torch.bool).tril()
        dtype = model._module.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        return {"input_ids": tokens, "attention_mask": mask[:, None], "position_ids": position}, ends


def last_tokens(model, bundle: list[tuple], site: str) -> list[Tensor]:
    """Return (texts, layers, width) float32 for each batch `(rows, inputs, columns of the last tokens, ...)`."""
    found = []
    for _, batch, ends, *_ in bundle:
        with torch.no_grad(), model.trace(batch, use_cache=False) as tracer:
            sites, activations = Sites(model), None
            every = torch.arange(len(ends))[:, None]
            for layer in range(sites.anatomy.layers):
                x = sites.read(Place(layer, site))[every, ends].flatten(0, 1)
                if activations is None:  # one tensor from the start: a list, stacked at the end, takes twice its memory
                    activations = x.new_empty(len(x), sites.anatomy.layers, x.shape[-1]).save()
                activations[:, layer] = x  # also from another device
            tracer.stop()
        found.append(activations.float().cpu())
    return found


def require_finite(values: Tensor) -> None:
    """Refuse activations, or sums of them, that are not finite."""
    if not values.isfinite().all():
        raise ValueError("Some activations are not finite; check the model's weights and dtype.")


def _may_join(model, columns: int) -> bool:
    """Whether the model takes a mask of ours: we must know how it attends, and no window may end within a row."""
    config, forward = model._module.config.get_text_config(), model._module.forward
    windows = [getattr(config, name, None) or columns for name in ("sliding_window", "attention_chunk_size")]
    takes = "position_ids" in inspect.signature(forward).parameters
    known = getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
    known &= getattr(config, "is_causal", True)  # a model that sees both ways would be made to see one way
    return takes and known and info(model).remote is not True and columns <= min(windows)


def _shared_and_own(sides: list[list[int]]) -> list[list[int]]:
    """Split the tokens of texts into what all begin with and what each has of its own, at least one token."""
    shared = min(common_beginning(sides), min(map(len, sides)) - 1)
    return [sides[0][:shared], *(side[shared:] for side in sides)]


def _sides(model, item: ContrastivePair | str, template: str | None) -> tuple[str, ...]:
    if isinstance(item, str):
        return tuple(apply_template(model, [item], template))
    prompt = apply_template(model, [item.prompt], template)[0]
    return prompt + item.positive, prompt + item.negative
