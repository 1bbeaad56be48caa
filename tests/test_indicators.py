"""Mechanistic indicators: known distributions by hand, and the same numbers from plain PyTorch with hooks."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import austeer as au
from austeer.diagnostics import (
    Indicators,
    branching_factor,
    changes,
    divergence,
    entropy,
    indicators,
    probability,
    traffic_light,
    verdict,
)
from austeer.methods import CAA, DirectionalAUSteer
from austeer.models import encode, token_ids

PAIRS = [
    au.ContrastivePair(f"The {thing} was", " lovely today.", " awful today.", topic=thing)
    for thing in ("sea", "bus", "cat", "pie")
]
PROMPTS = ["The sea", "Once upon a time there was a king and", "My"]
TEXTS = [" was calm and", " his shoe", " tea is hot today"]


@pytest.fixture
def push(tiny: Any) -> Any:
    return CAA.fit(tiny("llama"), PAIRS, layer=1, alpha=30.0)


def test_branching_factor_of_known_distributions() -> None:
    uniform = torch.zeros(1, 8)
    certain = torch.tensor([[0.0, -1e9, -1e9, -1e9]])
    either = torch.tensor([[5.0, 5.0, -1e9, -1e9]])
    assert branching_factor(uniform).item() == pytest.approx(8, rel=1e-5)
    assert branching_factor(certain).item() == pytest.approx(1, rel=1e-5)
    assert branching_factor(either).item() == pytest.approx(2, rel=1e-5)
    steps = torch.cat([either, torch.zeros(1, 4)])  # two, then four: exp of the mean entropy is the geometric mean
    assert branching_factor(steps).item() == pytest.approx(math.sqrt(8), rel=1e-5)
    assert branching_factor(torch.zeros(3, 5, 8)).shape == (3,)


def test_entropy_may_meet_impossible_outcomes() -> None:
    assert entropy(torch.tensor([0.0, -torch.inf])).item() == 0
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert entropy(torch.tensor([0.25, 0.75]).log()).item() == pytest.approx(expected)


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5)
    assert divergence(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)
    assert divergence(p, p).item() == 0


def test_without_a_steering_before_and_after_are_the_same(tiny: Any) -> None:
    model = tiny("llama")
    found = indicators(model, PROMPTS, TEXTS, None)
    assert torch.equal(found.entropy, found.entropy_before) and torch.equal(found.reach, found.reach_before)
    assert found.shift.eq(0).all() and found.to_push.isnan().all() and found.to_push_before.isnan().all()
    assert torch.allclose(found.surprise, au.perplexity(model, TEXTS, PROMPTS).log(), atol=1e-5)


def lens(module: Any, x: Tensor) -> Tensor:
    """What a state says by itself, with a plain model's own final norm, head and cap."""
    base = module.get_decoder() if hasattr(module, "get_decoder") else module.base_model
    norm = next(getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(base, name))
    logits = module.get_output_embeddings()(norm(x))
    cap = getattr(module.config, "final_logit_softcapping", None)
    return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma2"])
def test_the_numbers_are_those_of_a_plain_model_with_hooks(tiny: Any, twin: Any, hooked: Any, kind: str) -> None:
    """One text at a time, without padding: logits, attention and states read from a plain model, averaged by hand."""
    model = tiny(kind)
    steering = CAA.fit(model, PAIRS, layer=0, alpha=20.0)
    vector = steering.operators[0].tensors["value"] * 20.0
    found = indicators(model, PROMPTS, TEXTS, steering)
    module = twin(model)
    module.set_attn_implementation("eager")
    for row, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        ids = torch.tensor([token_ids(model, prompt + text)])
        read = len(token_ids(model, prompt))
        steps = slice(read - 1, ids.shape[1] - 1)

        def shifted(x: Tensor, start: int = read - 1) -> Tensor:
            return torch.cat([x[:, :start], x[:, start:] + vector.to(x)], 1)

        with hooked(module, {}):
            plain = module(ids, output_attentions=True, output_hidden_states=True)
        with hooked(module, {(0, "residual"): shifted}):
            moved = module(ids, output_attentions=True)
        log_p, log_q = plain.logits[0, steps].log_softmax(-1), moved.logits[0, steps].log_softmax(-1)
        expected = {
            "entropy_before": -(log_p.exp() * log_p).sum(-1).mean(),
            "entropy": -(log_q.exp() * log_q).sum(-1).mean(),
            "shift": (log_q.exp() * (log_q - log_p)).sum(-1).mean(),
            "surprise": -log_p.gather(-1, ids[0, read:, None]).mean(),
        }
        for name, run in (("reach_before", plain), ("reach", moved)):
            weights = run.attentions[1][0, :, steps]
            expected[name] = (-(weights * weights.clamp(min=1e-30).log()).sum(-1)).exp().mean()
        with torch.no_grad():
            said, state = lens(module, vector), plain.hidden_states[1][0, steps]
            for name, one in (("to_push_before", state), ("to_push", state + vector)):
                expected[name] = (lens(module, one).exp() * (lens(module, one) - said)).sum(-1).mean()
        for name, value in expected.items():
            assert getattr(found, name)[row].item() == pytest.approx(value.item(), abs=2e-4, rel=2e-3), (name, row)


def test_texts_together_and_alone_give_the_same(tiny: Any, push: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    together = indicators(model, PROMPTS, TEXTS, push)
    monkeypatch.setattr(au.diagnostics, "TEXTS_PER_PASS", 1)
    alone = indicators(model, PROMPTS, TEXTS, push)
    for one in fields(together):
        assert torch.allclose(getattr(together, one.name), getattr(alone, one.name), atol=1e-4), one.name


def test_a_steering_of_units_in_the_last_layer_is_read_there(tiny: Any, some_units: Any) -> None:
    model = tiny("llama")
    found = indicators(model, PROMPTS, TEXTS, DirectionalAUSteer(some_units(model, "neuron"), 20.0))
    assert all(getattr(found, one.name).isfinite().all() for one in fields(found))
    assert (found.shift > 0).all()


def test_the_model_is_left_as_it_was_even_if_it_breaks(tiny: Any, push: Any) -> None:
    model = tiny("llama")
    before = model._module.config._attn_implementation
    indicators(model, PROMPTS[:1], TEXTS[:1], push)
    assert model._module.config._attn_implementation == before
    with pytest.raises(ValueError, match="no token of its own"):
        indicators(model, PROMPTS[:1], [""], push)
    assert model._module.config._attn_implementation == before


def test_bad_inputs_are_refused(tiny: Any, push: Any) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="one prompt per text"):
        indicators(model, PROMPTS, TEXTS[:1], push)
    with pytest.raises(ValueError, match="list of texts"):
        indicators(model, "The sea", TEXTS, push)
    with pytest.raises(ValueError, match="give a Steering"):
        indicators(model, PROMPTS, TEXTS, "joy")
    with pytest.raises(ValueError, match="local models"):
        indicators(tiny("llama", remote="local"), PROMPTS, TEXTS, None)
    assert encode(model, PROMPTS)["input_ids"].shape[0] == 3


def made(**given: list[float]) -> Indicators:
    """Indicators of two texts: 1 everywhere but where given."""
    return Indicators(**{one.name: torch.tensor(given.get(one.name, [1.0, 1.0])) for one in fields(Indicators)})


def test_changes_by_hand() -> None:
    steered = made(
        entropy=[3.0, 2.0], entropy_before=[2.5, 2.0], reach=[8.0, 2.0], reach_before=[4.0, 4.0],
        to_push=[5.0, 6.0], to_push_before=[7.0, 6.0], shift=[0.0, math.e - 1],
    )  # fmt: skip
    found = changes(steered, made(entropy=[1.0, 2.0]))
    expected = {"hesitation": 1.0, "hesitation on one text": 0.25, "reach": 0.0, "towards the push": 1.0, "shift": 0.5}
    assert found == pytest.approx(expected, abs=1e-6)


def test_nothing_changes_without_a_steering(tiny: Any) -> None:
    plain = indicators(tiny("llama"), PROMPTS, TEXTS, None)
    assert set(changes(plain, plain).values()) == {0.0}


def test_a_probability_is_the_logistic_function_of_standardised_changes() -> None:
    row = {"bias": 0.5, "weight": {"reach": 2.0, "shift": -1.0}, "square": {}}
    row |= {"center": {"reach": 1.0, "shift": 0.0}, "scale": {"reach": 0.5, "shift": 2.0}}
    assert probability({"reach": 1.0, "shift": 0.0, "other": 9.0}, row) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert probability({"reach": 1.25, "shift": 3.0}, row) == pytest.approx(1 / (1 + math.exp(-0.5 - 1.0 + 1.5)))
    row["square"] = {"shift": -2.0}
    assert probability({"reach": 1.25, "shift": 3.0}, row) == pytest.approx(1 / (1 + math.exp(4.5)))


@pytest.mark.parametrize(
    ("coherent", "works", "colour"),
    [(0.4, 0.9, "red"), (0.9, 0.2, "amber"), (0.9, 0.6, "green"), (0.5, 0.5, "green")],
)
def test_the_colour_follows_from_the_two_probabilities(coherent: float, works: float, colour: str) -> None:
    found = changes(made(), made(entropy=[2.0, 2.0]))
    shown, reasons = verdict({"coherent": coherent, "works": works}, found)
    assert shown == colour
    assert f"{coherent:.2f}" in reasons[0] and "0.37 x" in reasons[1]


def test_the_light_is_a_dataclass_that_explains_itself(tiny: Any, push: Any) -> None:
    light = traffic_light(tiny("llama"), PROMPTS, push)
    assert light.colour in ("red", "amber", "green") and len(light.texts) == len(PROMPTS)
    assert set(light.numbers) == {"coherent", "works", *changes(made(), made())}
    assert repr(light).splitlines()[0] == light.colour
    assert light.colour in light._repr_html_()
    assert traffic_light(tiny("llama"), PROMPTS, push) == light
    with pytest.raises(ValueError, match="give a Steering"):
        traffic_light(tiny("llama"), PROMPTS, None)
    with pytest.raises(ValueError, match="local models"):
        traffic_light(tiny("llama", remote="local"), PROMPTS, push)
