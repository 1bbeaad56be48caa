"""Scores and prices of text: sentiment, perplexity under the unsteered model, repetition; comparison at equal price."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import TOKENS_PER_PASS
from austeer.models import encode, info, token_ids


def sentiment(texts: Sequence[str]) -> Tensor:
    """Return VADER's compound score of each text: (texts,) float32 from -1 (negative) to 1 (positive); 0 if empty.

    VADER is a lexicon with rules (Hutto and Gilbert, 2014): it counts mood words and knows nothing of events.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon: only when it is needed

    analyzer = SentimentIntensityAnalyzer()
    return torch.tensor([analyzer.polarity_scores(text)["compound"] for text in texts])


def perplexity(
    model, texts: Sequence[str], prompts: Sequence[str] | None = None, tokens_per_pass: int = 4 * TOKENS_PER_PASS
) -> Tensor:
    """Return each text's perplexity under the unsteered model: exp of the mean negative log-probability of its tokens.

    Args:
        model: a model from `load()`.
        texts: the texts, or the continuations of `prompts`.
        prompts: read before the texts but not scored; without them a text's first token is not scored.
        tokens_per_pass: bounds the memory of a pass.

    Returns:
        (texts,) float32; NaN where a text has no token to score.

    Raises:
        ValueError: lists of different lengths, or a text longer than the context.
    """
    texts = list(texts)
    prompts = [""] * len(texts) if prompts is None else list(prompts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts were given for {len(texts)} texts; give one prompt per text.")
    result = torch.full((len(texts),), torch.nan)
    whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    lengths = [len(token_ids(model, text)) for text in whole]
    skipped = [
        max(1, _shared(token_ids(model, prompt), token_ids(model, text)))
        for prompt, text in zip(prompts, whole, strict=True)
    ]
    waiting = sorted((row for row in range(len(texts)) if lengths[row] > skipped[row]), key=lambda row: -lengths[row])
    with tqdm(total=len(waiting), desc="perplexity", unit="text", leave=False) as bar:
        while waiting:
            fits = max(1, tokens_per_pass // lengths[waiting[0]])
            rows, waiting = waiting[:fits], waiting[fits:]
            batch = encode(model, [whole[row] for row in rows])
            scored = _log_probability(model, batch)
            for row, log_probability in zip(rows, scored, strict=True):
                result[row] = (-log_probability[-(lengths[row] - skipped[row]) :].mean()).exp()
            bar.update(len(rows))
    return result


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


def _log_probability(model, batch: dict[str, Tensor]) -> Tensor:
    """Return (texts, tokens - 1) float32: log p of each token but the first, given those before it."""
    with torch.no_grad(), model.trace(batch, use_cache=False, remote=info(model).remote):
        logits = model.output.logits[:, :-1].float()
        chosen = logits.gather(-1, batch["input_ids"][:, 1:, None].to(logits.device)).squeeze(-1)
        log_probability = (chosen - logits.logsumexp(-1)).cpu().save()
    return log_probability
