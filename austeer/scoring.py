"""Scores and prices of text: sentiment, perplexity under the unsteered model, repetition; comparison at equal price."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import TOKENS_PER_PASS
from austeer.data import load_pairs, load_prompts
from austeer.generation import quiet
from austeer.models import common_beginning, encode, several, token_ids
from austeer.remote import bundles, run
from austeer.steering import Operator, Steering, apply, require_steering

PAIRS = ("agreement", "concepts", "formality", "hedging", "refusal", "sentiment")
PROMPTS = ("dubious", "lookalikes", "openings", "requests")  # with the above: the texts that make the dictionary
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def sentiment(texts: Sequence[str]) -> Tensor:
    """Return VADER's compound score of each text: (texts,) float32 from -1 (negative) to 1 (positive); 0 if empty.

    VADER is a lexicon with rules (Hutto and Gilbert, 2014): it counts mood words and knows nothing of events.

    Example:
        >>> au.sentiment(["What a wonderful day.", "A table.", "I hate this."])
        tensor([ 0.5719,  0.0000, -0.5719])
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon: only when it is needed

    analyzer = SentimentIntensityAnalyzer()
    return torch.tensor([analyzer.polarity_scores(text)["compound"] for text in several(texts)])


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
    log_p, tokens, _ = _scored(model, texts, prompts, steering, tokens_per_pass)
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
    return log_probability_and_first(model, texts, prompts, steering)[0]


def log_probability_and_first(
    model, texts: Sequence[str], prompts: Sequence[str] | None = None, steering: Steering | None = None
) -> tuple[Tensor, Tensor]:
    """Return `log_probability` and, from the same pass, (texts,) int64: the likeliest token after each prompt or -1."""
    log_p, _, first = _scored(model, texts, prompts, steering, 4 * TOKENS_PER_PASS)
    return log_p, first.nan_to_num(-1).long()


def kl(model, texts: Sequence[str], steering: Steering) -> Tensor:
    """Return how far a steering moves the next-token distributions of a text: the mean KL(unsteered || steered).

    Args:
        model: a model from `load()`.
        texts: read as they are; at positions "last" and "generated" all tokens but the first count as generated.
        steering: what is applied.

    Returns:
        (texts,) float32, nats per token, at every token from the first on.

    Raises:
        ValueError: no text, an empty one, one longer than the context, or a steering of another shape.
    """
    require_steering(steering, model)
    texts = several(texts)
    if not all(texts or [""]):
        raise ValueError(f"KL needs texts that are not empty, and {texts!r:.60} was given.")
    result = torch.zeros(len(texts))
    rows = sorted(range(len(texts)), key=lambda row: -len(token_ids(model, texts[row])))

    def batch(part: list[int]) -> tuple[list[int], dict]:
        return part, encode(model, [texts[row] for row in part] * 2)

    def batches() -> Iterator[tuple[list[int], dict]]:
        start = 0
        while start < len(rows):
            part = rows[start : start + max(1, TOKENS_PER_PASS // len(token_ids(model, texts[rows[start]])))]
            yield batch(part)
            start += len(part)

    with tqdm(total=len(rows), desc="comparing", unit="text", leave=False) as bar, quiet():
        for bundle, found in run(model, _divergence, bundles(model, batches()), steering.operators, again=batch):
            for (part, _), values in zip(bundle, found, strict=True):
                result[part] = values
                bar.update(len(part))
    return result


def _divergence(model, bundle: list[tuple], operators: Sequence[Operator]) -> list[Tensor]:
    """Return (texts,) for each batch, which holds every text twice: the mean KL from the first copy to the second."""
    means = []
    for _, batch in bundle:
        half = len(batch["input_ids"]) // 2
        steered, real = torch.arange(half, 2 * half), batch["attention_mask"][:half].bool()
        with torch.no_grad(), model.trace(use_cache=False) as tracer:
            with tracer.invoke(batch):
                apply(model, tracer, [(steered, operators)], 1)
            with tracer.invoke():
                logits = model.output.logits.float()
                plain, moved = logits[:half].log_softmax(-1), logits[half:].log_softmax(-1)
                found = (plain.exp() * (plain - moved)).sum(-1).cpu().save()
        means.append(torch.where(real, found, 0.0).sum(-1) / real.sum(-1))
    return means


def pooled(perplexities: Tensor) -> float:
    """Return one perplexity for texts of equal length: the geometric mean, which is exp of the mean over all tokens."""
    return perplexities.log().nanmean().exp().item()


def repetition(texts: Sequence[str], n: int = 3) -> Tensor:
    """Return the share of each text's word n-grams that occurred in it before: (texts,) float32 in [0, 1).

    Repetition lowers perplexity, so it is reported beside it.

    Example:
        >>> au.repetition(["a b c a b c", "a b c d e f"])
        tensor([0.2500, 0.0000])
    """
    if n < 1:
        raise ValueError(f"n is {n}; give a number from 1 on.")
    shares = []
    for text in several(texts):
        words = text.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares)


def hits(texts: Sequence[str], words: Collection[str], most: int = 3) -> Tensor:
    """Return how many of a text's words are in a list, counted up to `most`, as a share of it: (texts,) in [0, 1].

    Example:
        >>> from austeer.scoring import hits
        >>> hits(["The sea, the sea!", "A field."], {"sea", "wave"}, most=2)
        tensor([1., 0.])
    """
    found = [sum(word in words for word in WORD.findall(text.lower())) for text in several(texts)]
    return torch.tensor(found).clamp(max=most) / most


def coherence(texts: Sequence[str]) -> Tensor:
    """Return the share of known words times the share of word 3-grams that are no repetition: (texts,) in [0, 1].

    A stretch between two spaces is known if it is a number of up to four digits, or if each of its words is in the
    dictionary or looks like a name (one capital, then small letters). The dictionary holds the words of the book's own
    hand-written sets, about 8,000. No language model has a say in it, and none in what makes a sentence: salad of real
    words passes.

    Example:
        >>> from austeer.scoring import coherence
        >>> coherence(["The baby looked at Lily.", "The thq bxby looked.", "the sea the sea the sea"])
        tensor([1.0000, 0.5000, 0.5000])
    """
    return known(texts) * (1 - repetition(texts))


def known(texts: Sequence[str]) -> Tensor:
    """Return the share of stretches between spaces that are known, as `coherence` has it: (texts,), 0 if empty."""
    shares = []
    for text in several(texts):
        stretches = [_known(stretch) for stretch in text.split()]
        shares.append(sum(stretches) / len(stretches) if stretches else 0.0)
    return torch.tensor(shares)


def _known(stretch: str) -> bool:
    stretch = re.sub(r"(?<=\d)(st|nd|rd|th|s)\b", "", stretch)  # 2nd, 1990s
    if re.search(r"\d{5}|[^\W\d_]\d|\d[^\W\d_]|\ufffd", stretch):
        return False
    words = WORD.findall(stretch)
    if not words:
        return bool(re.search(r"\d", stretch)) or stretch in ("-", "–", "—", "*", "&", "...")
    return all(_is_word(word) for word in words)


def _is_word(word: str) -> bool:
    small = word.lower().replace("’", "'")
    whole = small in _dictionary() or small.split("'")[0] in _dictionary()  # "Tom's", "couldn't"
    return (whole and len(small) > 1) or small in ("a", "i") or bool(re.fullmatch("[A-Z][a-z]+('s)?", word))


@cache
def _dictionary() -> frozenset[str]:
    pairs = [pair for name in PAIRS for pair in load_pairs(name)]
    texts = [text for pair in pairs for text in (pair.prompt, pair.positive, pair.negative)]
    texts += [item.prompt for name in PROMPTS for item in load_prompts(name)]
    return frozenset(word for text in texts for word in WORD.findall(text.lower().replace("’", "'")))


def at_price(effects: Sequence[float], prices: Sequence[float], price: float) -> float:
    """Return the effect where a sweep of strengths first reaches a price, by linear interpolation.

    Args:
        effects, prices: of one method at growing strengths, from strength 0 on.
        price: such as 1.5 times the unsteered perplexity.

    Returns:
        The interpolated effect.

    Raises:
        ValueError: the sweep starts above the price, or never reaches it, or lists of different lengths.

    Example:
        >>> au.at_price(effects=[0.0, 0.5, 1.0], prices=[1.0, 1.25, 1.75], price=1.5)
        0.75
    """
    if len(effects) != len(prices):
        raise ValueError(f"{len(effects)} effects were given for {len(prices)} prices; give one of each per strength.")
    if not prices or prices[0] > price:
        raise ValueError(f"The sweep must start below the price {price:.3g}, at strength 0; it starts at {prices[:1]}.")
    for (e0, p0), (e1, p1) in pairwise(list(zip(effects, prices, strict=True))):
        if p0 == price:
            return e0
        if p1 >= price:
            return e0 + (e1 - e0) * (price - p0) / (p1 - p0)
    raise ValueError(f"The sweep ends at {prices[-1]:.3g}, below the price {price:.3g}; add larger strengths.")


def draws_at_price(
    effects: Tensor, perplexities: Tensor, unsteered: Tensor, price: float = 1.5, draws: int = 2000, seed: int = 0
) -> Tensor:
    """Return the effect at a price, for the items as they are and for items drawn again with replacement.

    Draws of one seed take the same items, so that the draws of two methods may be subtracted: a paired comparison.
    Where a draw does not reach the price, the last two strengths are extrapolated.

    Args:
        effects: (strengths, items), at growing strength, without strength 0.
        perplexities: (strengths, signs, items), of the texts under the unsteered model; the worse sign is the price.
        unsteered: (items,), of the unsteered texts.
        price: as a multiple of the unsteered perplexity.
        draws, seed: of the bootstrap.

    Returns:
        (1 + draws,) float64; the first is the estimate, quantiles of the others are its interval: see `interval`.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, or no draw.
    """
    strengths, items = effects.shape
    if perplexities.ndim != 3 or perplexities.shape[::2] != (strengths, items) or unsteered.shape != (items,):
        raise ValueError(
            f"effects is {tuple(effects.shape)}, perplexities {tuple(perplexities.shape)}, unsteered "
            f"{tuple(unsteered.shape)}; give (strengths, items), (strengths, signs, items) and (items,)."
        )
    if draws < 1:
        raise ValueError(f"draws is {draws}; give a number from 1 on.")
    if not all(values.isfinite().all() for values in (effects, perplexities, unsteered)):
        raise ValueError("An effect or a perplexity is not finite; leave its item out of all three.")
    chosen = torch.randint(items, (draws, items), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([torch.arange(items)[None], chosen])  # (1 + draws, items)
    base = unsteered.double().log()[chosen].mean(-1)
    prices = (perplexities.double().log()[..., chosen].mean(-1).amax(1) - base).exp()  # (strengths, 1 + draws)
    found = effects.double()[:, chosen].mean(-1)
    prices, found = (torch.cat([torch.full_like(x[:1], at_zero), x]) for x, at_zero in ((prices, 1.0), (found, 0.0)))
    above = (prices >= price).double()
    above[-1] = 1.0
    after = above.argmax(0).clamp(min=1)[None]
    (p0, p1), (e0, e1) = ((x.gather(0, after - 1)[0], x.gather(0, after)[0]) for x in (prices, found))
    return e0 + (e1 - e0) * (price - p0) / (p1 - p0)


def interval(draws: Tensor) -> Tensor:
    """Return (3,): the estimate and the ends of its 95 % interval, from `draws_at_price` or the difference of two."""
    ends = torch.tensor([0.025, 0.975], dtype=draws.dtype)
    return torch.cat([draws[:1], draws[1:].quantile(ends)])


def _scored(
    model, texts: Sequence[str], prompts: Sequence[str] | None, steering: Steering | None, tokens_per_pass: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each text's log-probability, number of tokens and likeliest first token, (texts,) each, NaN if none.

    Texts that differ in their last token only, such as one-word answers, are read once for all.
    """
    texts = several(texts)
    prompts = [""] * len(texts) if prompts is None else several(prompts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts were given for {len(texts)} texts; give one prompt per text.")
    if steering is not None:
        require_steering(steering, model)
    alike: dict[tuple, dict[int, int]] = {}  # (tokens read, tokens scored but the last): the last one of each text
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = token_ids(model, prompt + text)
        read = max(1, common_beginning([token_ids(model, prompt), ids]))
        if len(ids) > read:
            alike.setdefault((tuple(ids[:read]), tuple(ids[read:-1])), {})[number] = ids[-1]
    rows = sorted(alike.items(), key=lambda row: (-len(row[0][0]) - len(row[0][1]), -len(row[0][0])))
    if rows:  # a text that is too long fails before the others run
        longest = next(iter(rows[0][1]))
        encode(model, [prompts[longest] + texts[longest]])
    result = torch.full((3, len(texts)), torch.nan)

    def batch(part: list) -> tuple:
        return part, _batch(model, part)

    def batches() -> Iterator[tuple]:
        start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and (end + 1 - start) * _columns(rows[start : end + 1]) <= tokens_per_pass:
                end += 1
            yield batch(rows[start:end])
            start = end

    operators = () if steering is None else steering.operators
    with tqdm(total=len(texts), desc="scoring", unit="text", leave=False) as bar, quiet():
        for bundle, scores in run(model, _log_probability, bundles(model, batches()), operators, again=batch):
            for (part, _), found in zip(bundle, scores, strict=True):
                for ((_, scored), ends), body, last, first in zip(part, *found, strict=True):
                    for number, value in zip(ends, last.tolist(), strict=False):
                        result[:, number] = torch.tensor([body + value, len(scored) + 1, first])
                    bar.update(len(ends))
    return result[0], result[1], result[2]


def _columns(rows: list) -> int:
    """Count the columns of a batch: prompts end in the same column, and so do the answers' beginnings."""
    return max(len(read) for (read, _), _ in rows) + _longest(rows)


def _batch(model, rows: list) -> tuple:
    """Return the tokens of a pass, the column of the first one scored, and what `_log_probability` looks up.

    The prompts are padded on the left and the answers on the right, so that all prompts end in the same column.
    """
    prompt, answer = _columns(rows) - _longest(rows), _longest(rows)
    ends = max(len(last) for _, last in rows)
    ids = torch.full((len(rows), prompt + answer), model.tokenizer.pad_token_id)
    mask, last = torch.zeros_like(ids), torch.zeros(len(rows), ends, dtype=torch.long)
    for row, ((read, scored), numbers) in enumerate(rows):
        here = slice(prompt - len(read), prompt + len(scored))
        ids[row, here], mask[row, here] = torch.tensor(read + scored), 1
        last[row, : len(numbers)] = torch.tensor(list(numbers.values()))
    length = torch.tensor([len(scored) for (_, scored), _ in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # models with learned positions must not count padding
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, prompt, length, last


def _log_probability(model, bundle: list[tuple], operators: Sequence[Operator]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each row log p of what it scores without the last token, of each last one, and the likeliest first.

    The shapes are, for each batch, (rows,), (rows, most last ones) and (rows,).
    """
    scores = []
    for _, (batch, prompt, length, last) in bundle:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        columns, following, real, every = ids.shape[1], ids[:, prompt:], mask[:, prompt:], torch.arange(len(ids))
        with torch.no_grad(), model.trace(use_cache=False) as tracer:
            with tracer.invoke(batch):
                if operators:
                    apply(model, tracer, [(slice(None), operators)], prompt)
            with tracer.invoke():
                logits = model.output.logits[:, prompt - 1 : columns].float().cpu()
                total = logits.logsumexp(-1)
                chosen = logits[:, :-1].gather(-1, following[..., None]).squeeze(-1) - total[:, :-1]
                body = (chosen * real).sum(-1).save()
                final = (logits[every, length].gather(-1, last) - total[every, length, None]).save()
                first = logits[:, 0].argmax(-1).save()
        scores.append((body, final, first))
    return scores


def _longest(rows: list) -> int:
    return max(len(scored) for (_, scored), _ in rows)
