"""Scores and prices of text: sentiment, perplexity under the unsteered model, repetition; comparison at equal price."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import TOKENS_PER_PASS
from austeer.generation import quiet
from austeer.models import encode, info, token_ids
from austeer.steering import Steering, apply


def sentiment(texts: Sequence[str]) -> Tensor:
    """Return VADER's compound score of each text: (texts,) float32 from -1 (negative) to 1 (positive); 0 if empty.

    VADER is a lexicon with rules (Hutto and Gilbert, 2014): it counts mood words and knows nothing of events.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon: only when it is needed

    analyzer = SentimentIntensityAnalyzer()
    return torch.tensor([analyzer.polarity_scores(text)["compound"] for text in texts])


def perplexity(
    model,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    steering: Steering | None = None,
    tokens_per_pass: int = 4 * TOKENS_PER_PASS,
) -> Tensor:
    """Return each text's perplexity: exp of the mean negative log-probability of its tokens.

    Args:
        model: a model from `load()`.
        texts: the texts, or the continuations of `prompts`.
        prompts: read before the texts but not scored; without them a text's first token is not scored.
        steering: the model is steered while it reads; by default it is not, which is the price of a steered text.
        tokens_per_pass: bounds the memory of a pass.

    Returns:
        (texts,) float32; NaN where a text has no token to score.

    Raises:
        ValueError: lists of different lengths, or a text longer than the context.
    """
    log_p, tokens = _scored(model, texts, prompts, steering, tokens_per_pass)
    return (-log_p / tokens).exp()


def log_probability(
    model,
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    steering: Steering | None = None,
) -> Tensor:
    """Return the log-probability of each text, all its tokens together: (texts,) float32, in nats; NaN if it has none.

    The arguments are those of `perplexity`. A steering at positions "last" acts from the prompt's last token on, at
    "generated" on the text's own tokens, as it would while they are generated.
    """
    return _scored(model, texts, prompts, steering, 4 * TOKENS_PER_PASS)[0]


def pooled(perplexities: Tensor) -> float:
    """Return one perplexity for texts of equal length: the geometric mean, which is exp of the mean over all tokens."""
    return perplexities.log().nanmean().exp().item()


def repetition(texts: Sequence[str], n: int = 3) -> Tensor:
    """Return the share of each text's word n-grams that occurred in it before: (texts,) float32 in [0, 1).

    Repetition lowers perplexity, so it is reported beside it.
    """
    shares = []
    for text in texts:
        words = text.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares)


def at_price(effects: Sequence[float], prices: Sequence[float], price: float) -> float:
    """Return the effect where a sweep of strengths first reaches a price, by linear interpolation.

    Args:
        effects, prices: of one method at growing strengths, from strength 0 on.
        price: such as 1.5 times the unsteered perplexity.

    Returns:
        The interpolated effect.

    Raises:
        ValueError: the sweep starts above the price, or never reaches it.
    """
    if not prices or prices[0] > price:
        raise ValueError(f"The sweep must start below the price {price:.3g}, at strength 0; it starts at {prices[:1]}.")
    for (e0, p0), (e1, p1) in pairwise(list(zip(effects, prices, strict=True))):
        if p0 == price:
            return e0
        if p1 >= price:
            return e0 + (e1 - e0) * (price - p0) / (p1 - p0)
    raise ValueError(f"The sweep ends at {prices[-1]:.3g}, below the price {price:.3g}; add larger strengths.")


def _shared(prompt: list[int], whole: list[int]) -> int:
    """Count the tokens that a text begins with as its prompt does; a joint may make one token of two."""
    pairs = enumerate(zip(prompt, whole, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(prompt), len(whole)))


def _scored(
    model, texts: Sequence[str], prompts: Sequence[str] | None, steering: Steering | None, tokens_per_pass: int
) -> tuple[Tensor, Tensor]:
    """Return (texts,) log-probability and (texts,) number of tokens, both NaN where there is no token to score."""
    texts = list(texts)
    prompts = [""] * len(texts) if prompts is None else list(prompts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts were given for {len(texts)} texts; give one prompt per text.")
    if steering is not None:
        steering.check(model)
    rows = []  # for each text: its number, the tokens that are only read, those that are scored
    whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    for number, (prompt, text) in enumerate(zip(prompts, whole, strict=True)):
        ids = token_ids(model, text)
        read = max(1, _shared(token_ids(model, prompt), ids))
        if len(ids) > read:
            rows.append((number, ids[:read], ids[read:]))
    if rows:
        encode(model, [whole[number] for number, *_ in rows])  # a text that is too long fails before the others run
    rows.sort(key=lambda row: (-len(row[1]) - len(row[2]), -len(row[1])))
    result = torch.full((2, len(texts)), torch.nan)
    with tqdm(total=len(rows), desc="scoring", unit="text", leave=False) as bar:
        while rows:
            fits = 1
            while fits < len(rows) and (fits + 1) * sum(map(_longest, _sides(rows[: fits + 1]))) <= tokens_per_pass:
                fits += 1
            part, rows = rows[:fits], rows[fits:]
            log_p = _log_probability(model, *_sides(part), steering)
            for (number, _, scored), row in zip(part, log_p, strict=True):
                result[:, number] = torch.tensor([row[: len(scored)].sum(), len(scored)])
            bar.update(fits)
    return result[0], result[1]


def _sides(rows: list[tuple[int, list[int], list[int]]]) -> tuple[list[list[int]], list[list[int]]]:
    return [row[1] for row in rows], [row[2] for row in rows]


def _longest(side: list[list[int]]) -> int:
    return max(map(len, side))


def _log_probability(model, read: list[list[int]], scored: list[list[int]], steering: Steering | None) -> Tensor:
    """Return (texts, longest scored) float32: log p of each scored token, given those before it.

    The prompts are padded on the left and the texts on the right, so that all prompts end in the same column.
    """
    prompt, answer, pad = _longest(read), _longest(scored), model.tokenizer.pad_token_id
    ids, real = [], []
    for one, other in zip(read, scored, strict=True):
        left, right = prompt - len(one), answer - len(other)
        ids.append([pad] * left + one + other + [pad] * right)
        real.append([0] * left + [1] * (len(one) + len(other)) + [0] * right)
    mask = torch.tensor(real)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # models with learned positions must not count padding
    batch = {"input_ids": torch.tensor(ids), "attention_mask": mask, "position_ids": positions}
    operators = () if steering is None else steering.operators
    with torch.no_grad(), quiet(), model.trace(use_cache=False, remote=info(model).remote) as tracer:
        with tracer.invoke(batch):
            if operators:
                apply(model, tracer, [(slice(None), operators)], prompt)
        with tracer.invoke():
            logits = model.output.logits[:, prompt - 1 : -1].float()
            chosen = logits.gather(-1, batch["input_ids"][:, prompt:, None].to(logits.device)).squeeze(-1)
            log_probability = (chosen - logits.logsumexp(-1)).cpu().save()
    return log_probability
