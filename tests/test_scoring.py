"""Scores against hand-computed values; perplexity against the plain model."""

import math
from typing import Any

import pytest
import torch

import austeer as au
from austeer.scoring import coherence, hits, interval, known


def test_sentiment_has_the_sign_of_the_mood() -> None:
    happy, flat, sad, empty = au.sentiment(["I love this wonderful day!", "The table.", "I hate this awful mess.", ""])
    assert happy > 0.5 > 0 == flat == empty > sad


def by_hand(module: Any, ids: list[int], scored: int) -> float:
    with torch.no_grad():
        log_p = module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    chosen = [log_p[position - 1, ids[position]] for position in range(len(ids) - scored, len(ids))]
    return torch.stack(chosen).mean().neg().exp().item()


def test_perplexity_is_that_of_the_continuation_given_the_prompt(model: Any, twin: Any) -> None:
    prompts, texts = ["The soup was", "At noon"], [" warm and thick.", " my brother came home from school, tired."]
    found = au.perplexity(model, texts, prompts)
    for value, prompt, text in zip(found, prompts, texts, strict=True):
        ids, head = (model.tokenizer(t).input_ids for t in (prompt + text, prompt))
        assert value.item() == pytest.approx(by_hand(twin(model), ids, len(ids) - len(head)), rel=1e-3)


def test_without_a_prompt_the_first_token_is_not_scored(model: Any, twin: Any) -> None:
    ids = model.tokenizer("The soup was warm.").input_ids
    assert au.perplexity(model, ["The soup was warm."]).item() == pytest.approx(
        by_hand(twin(model), ids, len(ids) - 1), rel=1e-3
    )


@pytest.mark.parametrize("positions", ["all", "prompt", "last", "generated"])
def test_a_text_is_scored_under_a_steering_as_under_hooks(
    tiny: Any, twin: Any, hooked: Any, some_units: Any, kind: str, positions: str
) -> None:
    model = tiny(kind)
    prompts = ["The soup was", "At", "Late in the evening of that day, she"]
    texts = [" warm and thick, and", " noon my brother came home from school, tired.", " left us"]
    units = some_units(model, "attention", size=3.0)
    steering = au.methods.DirectionalAUSteer(units, alpha=2.0, positions=positions)
    found = au.log_probability(model, texts, prompts, steering)
    assert (found - au.log_probability(model, texts, prompts)).abs().min() > 1e-3
    for value, prompt, text in zip(found, prompts, texts, strict=True):
        ids, head = (model.tokenizer(t).input_ids for t in (prompt + text, prompt))
        columns = {
            "all": slice(None), "prompt": slice(len(head)), "last": slice(len(head) - 1, None),
            "generated": slice(len(head), None),
        }[positions]  # fmt: skip
        edits = {}
        for layer in set(units.layer.tolist()):
            here = units.layer == layer

            def push(x: torch.Tensor, here: torch.Tensor = here, columns: slice = columns) -> torch.Tensor:
                x = x.clone()
                x[:, columns, units.index[here]] += 2.0 * units.mean_difference[here]
                return x

            edits[layer, "attention"] = push
        with hooked(twin(model), edits):
            log_p = twin(model)(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(log_p[place - 1, ids[place]] for place in range(len(head), len(ids)))
        assert value.item() == pytest.approx(expected.item(), abs=2e-3)


def test_perplexity_is_the_mean_of_the_log_probability(model: Any) -> None:
    prompts, texts = ["The soup was"], [" warm and thick."]
    tokens = len(model.tokenizer(prompts[0] + texts[0]).input_ids) - len(model.tokenizer(prompts[0]).input_ids)
    log_p = au.log_probability(model, texts, prompts)
    assert au.perplexity(model, texts, prompts).item() == pytest.approx((-log_p / tokens).exp().item(), rel=1e-5)


def test_batches_do_not_change_perplexity_and_nothing_to_score_is_nan(model: Any) -> None:
    texts = ["The soup was warm.", "a", "My brother came home from school, tired and late."]
    one = au.perplexity(model, texts, tokens_per_pass=1)
    assert torch.allclose(one, au.perplexity(model, texts), rtol=1e-3, equal_nan=True)
    assert one.isnan().tolist() == [False, True, False]


def test_plain_text_is_likelier_than_shuffled_words(model: Any) -> None:
    plain, shuffled = au.perplexity(model, ["The cat sat on the mat.", "mat The the on sat cat."])
    assert plain < shuffled


def test_a_text_is_scored_where_its_first_token_swallows_the_prompts_last_space(model: Any, twin: Any) -> None:
    # "was " ends in a token for the space, "was warm" has none: counting the prompt's tokens would skip the text.
    ids = model.tokenizer("The soup was warm").input_ids
    assert len(ids) == len(model.tokenizer("The soup was ").input_ids)
    assert au.perplexity(model, ["warm"], ["The soup was "]).item() == pytest.approx(
        by_hand(twin(model), ids, 1), rel=1e-3
    )


def test_lists_of_other_lengths_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="1 prompts were given for 2 texts"):
        au.perplexity(model, ["a b", "c d"], ["x"])


def test_a_rehearsal_of_ndif_gives_the_same_perplexity(tiny: Any) -> None:
    here, there = (au.perplexity(tiny("llama", remote=remote), ["one two three"]) for remote in (False, "local"))
    assert torch.equal(here, there)


def test_pooled_is_the_geometric_mean_and_leaves_nan_out() -> None:
    assert au.pooled(torch.tensor([2.0, 8.0, torch.nan])) == pytest.approx(4)


def test_repetition_counts_n_grams_seen_before() -> None:
    found = au.repetition(["a b c a b c", "a b c d", "A B a b", "a", ""])
    assert found.tolist() == pytest.approx([0.25, 0, 0, 0, 0])
    assert au.repetition(["a a a a"], n=1).tolist() == pytest.approx([0.75])


def test_hits_are_whole_words_up_to_a_limit() -> None:
    texts = ["The sea, the SEA! Waves.", "Seas of wheat, a seaside.", ""]
    assert torch.equal(hits(texts, {"sea", "waves"}), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(hits(texts, ["sea"], most=4), torch.tensor([0.5, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The baby looked at the sea.", 1.0),
        ("In 1874, Marguerite counted 12 hares (at 7:45) on the 2nd.", 1.0),  # numbers, and what looks like a name
        ("She said - it's well, and Tom's is not.", 1.0),  # a dash is no error
        ("The zqx looked", 2 / 3),
        ("the XQZ looked", 2 / 3),
        ("well-known zq-known", 1 / 2),
        ("The u looked ( (", 2 / 5),  # single letters and marks alone say nothing
        (".0589217643828288 and", 1 / 2),
        ("at-182SARADT63 The80%", 0.0),
        ("\ufffd\ufffd \\\\ famous\ufffd", 0.0),
        ("", 0.0),
    ],
)
def test_known_stretches_by_hand(text: str, share: float) -> None:
    assert known([text]).item() == pytest.approx(share)


def test_coherence_is_known_words_times_what_is_no_repetition() -> None:
    texts = ["the sea the sea the sea", "the sea the zqx the sea", "We walked to the sea and it was cold."]
    assert coherence(texts).tolist() == pytest.approx([0.5, 5 / 6, 1.0])


def test_the_effect_at_a_price_is_interpolated() -> None:
    assert au.at_price([0, 1, 2], [1, 1.4, 1.8], 1.5) == pytest.approx(1.25)
    assert au.at_price([0, 1], [1, 1.5], 1.5) == pytest.approx(1)
    assert au.at_price([0, 1, 5], [1, 2, 1.2], 1.5) == pytest.approx(0.5)  # where it is reached first


def test_a_sweep_that_starts_at_the_price_has_the_effect_of_its_start() -> None:
    assert au.at_price([0.5, 1], [1.5, 1.8], 1.5) == pytest.approx(0.5)
    assert au.at_price([0.5, 1], [1.5, 1.5], 1.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("prices", "says"), [([2, 3], "must start below"), ([1, 1.2], "ends at 1.2"), ([], "start")])
def test_a_sweep_that_misses_the_price_is_refused(prices: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        au.at_price([0, 1][: len(prices)], prices, 1.5)


def test_answers_that_differ_in_their_last_token_are_read_once(
    model: Any, twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from austeer import scoring

    prompt, texts = "Is the sky blue? Answer:", [" yes", " no", " yes, it is", " yes, it was", ""]
    rows, batch = [], scoring._batch
    monkeypatch.setattr(scoring, "_batch", lambda model, part: rows.extend(part) or batch(model, part))
    log_p, first = scoring.log_probability_and_first(model, texts, [prompt] * 5)
    assert len(rows) == 2
    head = model.tokenizer(prompt).input_ids
    with torch.no_grad():
        logits = twin(model)(torch.tensor([head])).logits[0, -1]
    assert first.tolist() == [logits.argmax().item()] * 4 + [-1]
    for value, text in zip(log_p[:4], texts[:4], strict=True):
        ids = model.tokenizer(prompt + text).input_ids
        alone = by_hand(twin(model), ids, len(ids) - len(head))
        assert value.item() == pytest.approx(-math.log(alone) * (len(ids) - len(head)), rel=1e-3)
    assert log_p[4].isnan()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_kl_is_that_of_the_two_models_run_apart(tiny: Any, some_units: Any, kind: str, positions: str) -> None:
    model, texts = tiny(kind), ["The soup was warm and thick.", "At noon"]
    units = some_units(model, "attention", size=3.0)
    steering = au.methods.DirectionalAUSteer(units, alpha=2.0, positions=positions)
    found = au.kl(model, texts, steering)
    for value, text in zip(found, texts, strict=True):
        with model.trace(text):
            plain = model.output.logits[0].double().log_softmax(-1).save()
        with au.steered(model, au.methods.DirectionalAUSteer(units, alpha=2.0)) as other, other.trace(text):
            moved = other.output.logits[0].double().log_softmax(-1).save()
        assert value.item() == pytest.approx((plain.exp() * (plain - moved)).sum(-1).mean().item(), rel=1e-3)
    assert au.kl(model, texts, steering * 0.0).abs().max() < 1e-6


@pytest.mark.parametrize("texts", [[], ["a", ""]])
def test_kl_needs_texts(model: Any, some_units: Any, texts: list[str]) -> None:
    steering = au.methods.DirectionalAUSteer(some_units(model, "attention"), alpha=1.0)
    with pytest.raises(ValueError, match="not empty"):
        au.kl(model, texts, steering)


def line(strengths: list[float], items: int, slope: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Effects and perplexities that grow evenly with strength: every item alike, the minus sign the dearer one."""
    strength = torch.tensor(strengths)
    effects = slope * strength[:, None].expand(-1, items)
    cost = 4.0 * torch.stack([1 + strength / 2, 1 + strength], 1)[..., None].expand(-1, -1, items)
    return effects, cost, torch.full((items,), 4.0)


@pytest.mark.parametrize("strengths", [[0.4, 0.8], [0.1, 0.2, 0.3], [0.7, 0.9]])
def test_the_effect_at_a_price_is_read_between_the_strengths_or_beyond(strengths: list[float]) -> None:
    draws = au.draws_at_price(*line(strengths, 5), price=1.5, draws=20)
    assert draws.shape == (21,)
    assert draws.tolist() == pytest.approx([0.5] * 21)


def test_draws_agree_with_the_estimate_and_pair_by_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    effects, cost, unsteered = line([0.4, 0.8], 60)
    noise = torch.randn(60, generator=generator)
    noisy = effects + noise, cost * (0.1 * torch.randn(cost.shape, generator=generator)).exp(), unsteered
    draws = au.draws_at_price(*noisy)
    estimate, low, high = interval(draws).tolist()
    inside = ((draws[1:] >= low) & (draws[1:] <= high)).double().mean().item()
    assert estimate == draws[0]
    assert inside == pytest.approx(0.95, abs=0.002)
    means, prices = noisy[0].mean(1).tolist(), noisy[1].log().mean(-1).amax(1).exp().div(4).tolist()
    assert draws[0].item() == pytest.approx(au.at_price([0.0, *means], [1.0, *prices], 1.5), rel=1e-5)
    assert draws[1:].std().item() == pytest.approx(noise.std().item() / 60**0.5, rel=0.3)
    better = au.draws_at_price(noisy[0] + 0.2, *noisy[1:])
    assert (better - draws).std() < 0.1 * draws.std()
    assert not torch.equal(draws[1:], au.draws_at_price(*noisy, seed=1)[1:])


def test_effects_and_perplexities_must_be_of_the_same_items() -> None:
    effects, cost, unsteered = line([0.4, 0.8], 5)
    with pytest.raises(ValueError, match=r"\(strengths, signs, items\)"):
        au.draws_at_price(effects, cost[..., :4], unsteered)
