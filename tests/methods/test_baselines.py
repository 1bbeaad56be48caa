"""CAA, ITI and SADI choose and push what their papers say."""

from typing import Any

import pytest
import torch

import austeer as au
from austeer.methods import CAA, ITI, SADI
from austeer.methods.iti import _probe

THINGS = ("sea", "bus", "cat", "pie", "sun", "tea", "shoe", "hill")  # the last two are held out from the probes
PAIRS = [
    au.ContrastivePair(f"The {thing} was", f" {good} today.", f" {bad} today.", topic=thing)
    for thing in THINGS
    for good, bad in (("lovely", "awful"), ("kind", "cruel"), ("clean", "filthy"))
]


def values(steering: Any, layers: int, width: int) -> torch.Tensor:
    """The (layers, width) table of what the only operator holds, 0 where it does not write."""
    (operator,) = steering.operators
    table = torch.zeros(layers, width)
    table[operator.tensors["layer"], operator.tensors["index"]] = operator.tensors["value"]
    return table


def planted(model: Any, site: str, width: int, rows: dict[tuple[int, int], float]) -> au.ActivationMomentum:
    """A momentum whose mean difference is the given one."""
    positive = torch.zeros(len(PAIRS), au.sites.anatomy(model).layers, width)
    for (layer, index), value in rows.items():
        positive[:, layer, index] = value
    return au.momentum_of(positive, torch.zeros_like(positive), PAIRS, model, site)


def test_caa_adds_the_mean_difference_of_one_layer(tiny: Any) -> None:
    model = tiny("llama")
    positive, negative = au.collect(model, PAIRS, "residual")
    steering = CAA.fit(model, PAIRS, layer=1, alpha=2.0)
    expected = torch.zeros(3, 32)
    expected[1] = (positive - negative).mean(0)[1]
    assert torch.allclose(values(steering, 3, 32), expected, atol=1e-6)
    assert (steering.operators[0].site, steering.operators[0].strength) == ("residual", 2.0)


def test_caa_acts_from_the_last_token_of_the_prompt_on(tiny: Any) -> None:
    model = tiny("llama")
    audit = au.audit(model, CAA.fit(model, PAIRS, layer=1, alpha=2.0), "The sea was blue", max_new_tokens=3)
    (edited,) = audit.edited.values()
    assert edited.any(0).tolist() == [False] * (audit.prompt - 1) + [True] * 3 + [False]


def test_caa_generates_what_a_hook_generates(tiny: Any, plain_generate: Any, recorder: Any) -> None:
    model, prompts = tiny("llama"), ["The sea was", "Once upon a time there"]
    steering = CAA.fit(model, PAIRS, layer=1, alpha=30.0)
    vector = values(steering, 3, 32)[1] * 30.0

    def add(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, -1] += vector  # the prompt's last token, then each new one
        return x

    tokens, scores = plain_generate(model, prompts, {(1, "residual"): add}, 5)
    au.generate(model, prompts, steering, max_new_tokens=5, min_new_tokens=5, logits_processor=[recorder])
    own_tokens, own_scores = recorder.take()
    order = sorted(range(2), key=lambda row: (len(model.tokenizer(prompts[row]).input_ids), row))
    assert torch.equal(own_tokens, tokens[order])
    assert torch.allclose(own_scores, scores[order], atol=1e-3)


def test_caa_refuses_a_layer_that_is_not_there(tiny: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        CAA.fit(tiny("llama"), PAIRS, layer=3)


def test_a_probe_finds_the_one_head_that_tells_the_sides_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(60, 2, 3, 4, generator=generator) for _ in range(2))
    positive[:, 1, 2] += 3.0
    train = torch.arange(60) < 40
    accuracy = _probe(positive, negative, train)
    assert accuracy.argmax() == 5
    assert accuracy[1, 2] > 0.95
    assert accuracy.flatten()[:5].max() < 0.8


def test_a_probe_is_scored_on_pairs_that_it_has_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(40, 1, 1, 64, generator=generator) for _ in range(2))
    accuracy = _probe(positive, negative, torch.arange(40) < 30)  # 60 points in 64 dimensions are always separable
    assert accuracy.item() < 0.85


def test_iti_shifts_whole_heads_by_one_deviation_along_the_mean_difference(tiny: Any) -> None:
    model = tiny("llama")
    steering = ITI.fit(model, PAIRS, heads=3, alpha=4.0)
    table = values(steering, 3, 32).unflatten(1, (4, 8))
    positive, negative = (side.unflatten(2, (4, 8)) for side in au.collect(model, PAIRS, "attention"))
    chosen = table.abs().sum(-1).nonzero().tolist()
    assert len(chosen) == 3
    for layer, head in chosen:
        theta = (positive - negative)[:, layer, head].mean(0)
        theta = theta / theta.norm()
        sigma = torch.cat([positive, negative])[:, layer, head].matmul(theta).std()
        assert torch.allclose(table[layer, head], sigma * theta, atol=1e-5)
    assert steering.operators[0].strength == 4.0


def test_iti_holds_topics_out_of_a_part_that_was_split_by_topic(tiny: Any) -> None:
    pairs = au.split(au.load_pairs("formality")).train
    accuracy = ITI.fit(tiny("llama"), pairs, heads=1).about["probes"]
    assert accuracy * 80 == pytest.approx(round(accuracy * 80), abs=0.05)  # 5 of 25 topics, 8 pairs each, 2 sides


def test_iti_wants_topics_to_hold_out_and_no_more_heads_than_there_are(tiny: Any) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="from 1 to 12"):
        ITI.fit(model, PAIRS, heads=13)
    with pytest.raises(ValueError, match="more topics"):
        ITI.fit(model, PAIRS[:3], heads=2)


def test_sadi_turns_up_the_elements_that_differ_most(tiny: Any) -> None:
    model = tiny("llama")
    momentum = planted(model, "ffn", 32, {(0, 5): -3.0, (2, 7): 2.0, (1, 1): 1.0})
    steering = SADI(model, momentum, k=2, delta=5.0)
    expected = torch.zeros(3, 32)
    expected[0, 5] = expected[2, 7] = 1.0
    assert torch.equal(values(steering, 3, 32), expected)
    assert (steering.operators[0].name, steering.operators[0].strength) == ("scale", 5.0)


def test_sadi_counts_heads_at_the_attention_site(tiny: Any) -> None:
    model = tiny("llama")
    # head 1 of layer 0 has one large unit but two that cancel; head 3 of layer 2 has the largest mean
    momentum = planted(model, "attention", 32, {(0, 8): 9.0, (0, 9): -9.0, **{(2, 24 + i): 1.0 for i in range(8)}})
    steering = SADI(model, momentum, k=1, delta=2.0)
    expected = torch.zeros(3, 32)
    expected[2, 24:] = 1.0
    assert torch.equal(values(steering, 3, 32), expected)


def test_sadi_refuses_too_many(tiny: Any) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="from 1 to 12"):
        SADI(model, planted(model, "attention", 32, {}), k=13, delta=1.0)


def test_baselines_survive_saving(tiny: Any, tmp_path: Any) -> None:
    model = tiny("llama")
    momentum = planted(model, "ffn", 32, {(0, 5): 1.0})
    for steering in (CAA(momentum, 0, 1.5), ITI.fit(model, PAIRS, heads=2), SADI(model, momentum, 3, 2.0)):
        steering.save(tmp_path / "a.safetensors")
        again = au.Steering.load(tmp_path / "a.safetensors")
        assert again.about["method"] == type(steering).__name__
        assert torch.equal(values(again, 3, 32), values(steering, 3, 32))
