"""`generate()` with or without a steering, `steered()` for traces of one's own, and `audit()` of what was edited."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import BaseStreamer, RepetitionPenaltyLogitsProcessor

from austeer.models import apply_template, encode, info, several, token_ids
from austeer.remote import bundles, run
from austeer.sites import Place, Sites
from austeer.steering import Operator, Steering, apply, require_steering

ROWS_PER_PASS = 32


def generate(
    model,
    prompts: Sequence[str],
    steering: Steering | Sequence[Steering | None] | None = None,
    *,
    max_new_tokens: int = 40,
    repetition_penalty: float = 1.0,
    template: str | None = None,
    rows_per_pass: int = ROWS_PER_PASS,
    **options,
) -> list[str]:
    """Continue prompts, greedily unless told otherwise, with every pass steered.

    Args:
        model: a model from `load()`.
        prompts: texts; sorted by length and batched inside, returned in the order given.
        steering: one for all prompts, or a list with one (or None) per prompt: a sweep is one batch.
        max_new_tokens: at most so many tokens; give `min_new_tokens` too to hold the end of text back.
        repetition_penalty: as transformers has it, but blind to padding, so that a batch changes nothing.
        template: None or "chat".
        rows_per_pass: prompts per batch.
        options: passed to transformers' `generate`, such as `do_sample`, `use_cache`; no beams, one text per prompt.

    Returns:
        The continuations only, special tokens left out.

    Raises:
        ValueError: one string in place of a list, no prompt, no new token or row, beams or several texts per prompt, a
            list of steerings of another length, what is no steering, a steering of another shape, or a prompt that
            leaves no room for the new tokens in the context.

    Example:
        >>> model = au.load()
        >>> units = au.activation_momentum(model, au.load_pairs("sentiment")[:16]).top(20)
        >>> joy = au.methods.DirectionalAUSteer(units, alpha=8.0)
        >>> sad, happy = au.generate(model, ["I think that today"] * 2, [-joy, joy], max_new_tokens=8)
        >>> sad == happy
        False
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("rows_per_pass", rows_per_pass)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} is {value!r}; give a whole number from 1 on.")
    for name in ("num_beams", "num_return_sequences"):  # both make other rows than those a steering was given for
        if (options.get(name) or 1) > 1:
            raise ValueError(f"{name} is {options[name]}; give 1 or leave it out, since each prompt gets one text.")
    prompts = apply_template(model, several(prompts), template)
    if not prompts:
        raise ValueError("No prompt was given; give at least one.")
    each = list(steering) if isinstance(steering, (list, tuple)) else [steering] * len(prompts)
    if len(each) != len(prompts):
        raise ValueError(f"{len(each)} steerings were given for {len(prompts)} prompts; give one, or one per prompt.")
    for one in {id(one): one for one in each if one is not None}.values():
        require_steering(one, model)
    options = {"do_sample": False, **options, "max_new_tokens": max_new_tokens}

    texts, done = [""] * len(prompts), 0
    order = sorted(range(len(prompts)), key=lambda row: (len(token_ids(model, prompts[row])), row))
    with tqdm(total=len(prompts) * max_new_tokens, desc="generating", unit="token", leave=False) as bar, quiet():

        def batch(rows: list[int]) -> tuple:
            tokens, own = encode(model, [prompts[row] for row in rows], room=max_new_tokens), dict(options)
            if repetition_penalty != 1.0:
                penalty = _PenaltyBlindToPadding(float(repetition_penalty), tokens["attention_mask"])
                own["logits_processor"] = LogitsProcessorList([penalty, *own.get("logits_processor", [])])
            if not info(model).remote:
                own["streamer"] = _Ticks(bar, len(rows))
            return rows, tokens, _parts([each[row] for row in rows]), own

        batches = (batch(order[start : start + rows_per_pass]) for start in range(0, len(order), rows_per_pass))
        for bundle, found in run(model, _continue, bundles(model, batches), again=batch):
            for (rows, *_), continuation in zip(bundle, found, strict=True):
                said = model.tokenizer.batch_decode(continuation, skip_special_tokens=True)
                for row, text in zip(rows, said, strict=True):
                    texts[row] = text
                done += len(rows)
                bar.update(done * max_new_tokens - bar.n)
    return texts


@contextmanager
def steered(model, steering: Steering) -> Iterator:
    """Give a copy of a model whose local traces see the steered model, at every step, until the context ends.

    Args:
        model: a local model from `load()`; it stays as it is.
        steering: what to apply.

    Raises:
        ValueError: a steering of another shape, or a model or trace that is remote.

    Example:
        >>> model = au.load()
        >>> momentum = au.activation_momentum(model, au.load_pairs("sentiment")[:16])
        >>> with au.steered(model, au.methods.AUSteer(momentum.top(5), alpha=2.0)) as m, m.trace("Hello"):
        ...     logits = m.output.logits.save()
        >>> logits.shape
        torch.Size([1, 1, 49152])
    """
    require_steering(steering, model)
    if info(model).remote:
        raise ValueError("steered() works on local models; for a remote one use au.generate(..., steering=...).")
    with model.edit() as (tracer, copied):
        apply(copied, tracer, [(slice(None), steering.operators)])
    copied._remote_backend = _refuse_remote  # a request would not carry the steps of the edit
    try:
        with quiet():
            yield copied
    finally:
        copied.clear_edits()


@dataclass(frozen=True)
class Audit:
    """What a steering really changed in one run: for each place, the tokens whose activations differed afterwards.

    Args:
        tokens: the prompt's tokens and the generated ones, as text.
        prompt: how many of them are the prompt's.
        edited: for each place written, (steps, tokens) bool: in which pass the value at which token was changed.
    """

    tokens: list[str]
    prompt: int
    edited: dict[Place, Tensor]

    def __repr__(self) -> str:
        lines = [f"{len(self.tokens)} tokens, {self.prompt} of the prompt; x: changed in the pass that computed it"]
        for place, changed in self.edited.items():
            marks = "".join("x" if mark else "." for mark in changed.any(0).tolist())
            lines.append(f"layer {place.layer:3d} {place.site:9s} {marks[: self.prompt]}|{marks[self.prompt :]}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre style='white-space: pre-wrap'>{html.escape(repr(self))}</pre>"


def audit(model, steering: Steering, prompt: str, *, max_new_tokens: int = 8, template: str | None = None) -> Audit:
    """Generate with a steering and report which steps and positions were really edited.

    A second reader in the same run, placed after the steering, sees what flows on; it is compared with what the
    steering was handed.

    Args:
        model, steering, prompt, template: as in `generate`.
        max_new_tokens: how many steps to look at; the end of text is held back.

    Raises:
        ValueError: as `generate`.
    """
    require_steering(steering, model)
    batch = encode(model, apply_template(model, [prompt], template))
    places = sorted({p for o in steering.operators for p in o.writes()}, key=lambda place: place.order)
    steps = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False}
    with quiet():
        [(_, (ids, changes))] = run(model, _watch, [[batch]], steering.operators, places, steps)
    prompt_tokens = batch["input_ids"].shape[1]
    edited = {place: torch.zeros(max_new_tokens, len(ids), dtype=torch.bool) for place in places}
    for number, changed in enumerate(changes):
        step, place = divmod(number, len(places))
        edited[places[place]][step, prompt_tokens + step - len(changed) : prompt_tokens + step] = changed
    return Audit([model.tokenizer.decode([token]) for token in ids], prompt_tokens, edited)


def _watch(model, bundle: list[dict], operators, places: list[Place], steps: dict) -> tuple[Tensor, list[Tensor]]:
    """Generate from one prompt; return (tokens,) ids, and for each step and place which of its tokens were changed."""
    with torch.no_grad(), model.generate(**steps) as tracer:
        with tracer.invoke(bundle[0]):
            before = [].save()
            _record(model, tracer, places, before)
        with tracer.invoke():
            apply(model, tracer, [(slice(None), operators)])
        with tracer.invoke():
            after = [].save()
            _record(model, tracer, places, after)
        with tracer.invoke():
            ids = tracer.result.save()
    return ids[0].cpu(), [(old != new).any(-1)[0].cpu() for old, new in zip(before, after, strict=True)]


def _record(model, tracer, places: list[Place], into: list[Tensor]) -> None:
    """Append the activations of every place at every step; like `apply`, it ends with the run."""
    sites = Sites(model)
    for _ in tracer.iter[:] if places else ():  # a loop that reads nothing would never end
        for place in places:
            into.append(sites.read(place).clone())


def _continue(model, bundle: list[tuple]) -> list[Tensor]:
    """Generate batch by batch; return the new tokens of each, (texts, at most max_new_tokens)."""
    found = []
    for _, batch, parts, options in bundle:
        with torch.no_grad(), model.generate(**options) as tracer:
            with tracer.invoke(batch):
                if parts:
                    apply(model, tracer, parts)
            with tracer.invoke():
                ids = tracer.result.save()
        found.append(ids[:, batch["input_ids"].shape[1] :].cpu())
    return found


def _parts(each: list[Steering | None]) -> list[tuple[slice | Tensor, tuple[Operator, ...]]]:
    """Group the rows of a batch by the steering they get."""
    rows: dict[int, list[int]] = {}
    for row, steering in enumerate(each):
        if steering is not None and steering.operators:
            rows.setdefault(id(steering), []).append(row)
    if len(rows) == 1 and len(next(iter(rows.values()))) == len(each):
        return [(slice(None), each[0].operators)]
    return [(torch.tensor(own), each[own[0]].operators) for own in rows.values()]


class _PenaltyBlindToPadding(RepetitionPenaltyLogitsProcessor):
    """transformers' repetition penalty, told what is padding: it would penalise the padding token, which ends texts."""

    def __init__(self, penalty: float, attention_mask: Tensor):
        RepetitionPenaltyLogitsProcessor.__init__(self, penalty)  # `super` does not travel to a remote model
        self.attention_mask = attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = self.attention_mask.shape[1]
        padding = torch.zeros_like(input_ids, dtype=torch.bool)
        padding[:, :width] = self.attention_mask.to(input_ids.device) == 0
        last_of_prompt = input_ids[:, width - 1 : width]  # any real token will do: it is penalised once in any case
        seen = torch.where(padding, last_of_prompt, input_ids)
        return RepetitionPenaltyLogitsProcessor.__call__(self, seen, scores)


class Sampling(LogitsProcessor):
    """Turns the greedy choice into a draw from the model's distribution, at temperature 1, by a given generator.

    Gumbel noise is added to the scores: the largest sum is token t with exactly t's probability. transformers' own
    sampling draws from the global generator only. Runs on the same prompts with generators of the same seed get the
    same noise, so that what differs between them is the steering.

    Args:
        generator: on the CPU; every draw comes from it, batch by batch.
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with noise, (texts, vocabulary)."""
        return scores + gumbel(scores.shape, self.generator).to(scores)


def gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return Gumbel noise, float64: where scores + noise is largest is a draw from softmax(scores)."""
    return -(-torch.rand(shape, generator=generator, dtype=torch.float64).log()).log()


class _Ticks(BaseStreamer):
    """Move a progress bar by one batch of tokens at each step."""

    def __init__(self, bar: tqdm, rows: int):
        self.bar, self.rows, self.prompt_seen = bar, rows, False

    def put(self, value: Tensor) -> None:
        """Count the tokens of a step; the first call brings the prompt."""
        if self.prompt_seen:
            self.bar.update(self.rows)
        self.prompt_seen = True

    def end(self) -> None:
        """Do nothing: the bar is closed by its owner."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the one warning that an open `tracer.iter` gives by design: the loop asks for a step after the last."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        yield


def _refuse_remote(*_):
    raise ValueError("Inside steered() traces run here; for a remote model use au.generate(..., steering=...).")
