"""ARM replaces the smallest gates by noise of their sign, and its control moves as much elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import austeer as au
from austeer.methods import ARM
from austeer.methods.arm import redistribute
from austeer.models import encode
from austeer.sites import Place, Sites
from austeer.steering import Pass

TEXTS = ["Once", "The sea was calm and the boats came home", "My shoe is wet again"]
SETTINGS = {"c": 0.5, "percentile": 80.0, "least": 0.1, "most": 0.4, "added": 0.0}


def by_hand(a: np.ndarray, noise: np.ndarray, c: float, percentile: float, least: float, most: float, added: float):
    """What the rule says of one group of numbers, written as loops and with numpy's own percentile."""
    size = np.abs(a)
    middle = np.sort(size)[(len(a) - 1) // 2]  # PyTorch's median: the lower one of two
    spread = np.sort(np.abs(size - middle))[(len(a) - 1) // 2]
    share = min(max(np.mean(size < 1.4826 * c * spread), least), most)
    new, top, lowest = a.copy(), np.percentile(a, percentile), min(a.min(), 0.0)
    for i in np.argsort(size, kind="stable")[: max(1, round(share * len(a)))]:
        target = noise[i] * (top if a[i] >= 0 else abs(lowest))
        new[i] = (target if a[i] >= 0 else -target) + added * a[i]
    return new


def test_a_case_worked_out_by_hand() -> None:
    a = torch.tensor([[0.1, -0.2, 0.0, 1.0, 2.0, -0.25, 3.0, 4.0]])
    noise = torch.tensor([[0.5, 0.5, 0.25, 0.9, 0.9, 0.8, 0.9, 0.9]])
    # sizes in order: 0, .1, .2, .25, 1, 2, 3, 4; median .25; deviations .25, .15, .05, 0, .75, 1.75, 2.75, 3.75, whose
    # median is .25; with c = 1 four of the eight sizes are below 1.4826 * .25 = .37. At 75 per cent of the way from
    # the least to the greatest of eight numbers, at 5.25, lies 2 + .25 * (3 - 2) = 2.25; the lowest gate is -.25.
    found = redistribute(a, noise, 1.0, 75.0, 0.0, 1.0, 0.0)
    assert torch.allclose(found, torch.tensor([[1.125, -0.125, 0.5625, 1.0, 2.0, -0.2, 3.0, 4.0]]))
    few = redistribute(a, noise, 1.0, 75.0, 0.0, 0.25, 0.0)  # no more than two: 0.0 and 0.1
    assert torch.allclose(few, torch.tensor([[1.125, -0.2, 0.5625, 1.0, 2.0, -0.25, 3.0, 4.0]]))
    many = redistribute(a, noise, 0.0, 75.0, 0.625, 1.0, 0.0)  # none is near zero, but five are asked for
    assert torch.allclose(many, torch.tensor([[1.125, -0.125, 0.5625, 2.025, 2.0, -0.2, 3.0, 4.0]]))
    added = redistribute(a, noise, 1.0, 75.0, 0.0, 1.0, 1.0)
    assert torch.allclose(added, torch.tensor([[1.225, -0.325, 0.5625, 1.0, 2.0, -0.45, 3.0, 4.0]]))


def test_one_entry_moves_where_none_is_near_zero() -> None:
    a, noise = torch.tensor([[2.0, 3.0, -4.0, 5.0]]), torch.full((1, 4), 0.5)
    assert torch.equal(redistribute(a, noise, 0.0, 100.0, 0.0, 1.0, 0.0), torch.tensor([[2.5, 3.0, -4.0, 5.0]]))


def test_where_no_gate_is_below_zero_the_percentile_is_the_bound() -> None:
    a, noise = torch.tensor([[0.0, 1.0, 2.0]]), torch.full((1, 3), 0.5)
    assert torch.equal(redistribute(a, noise, 0.0, 50.0, 0.34, 1.0, 0.0), torch.tensor([[0.5, 1.0, 2.0]]))


@pytest.mark.parametrize("added", [0.0, 1.0])
def test_the_rule_is_numpys(added: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.silu(torch.randn(6, 101, generator=generator).double())
    noise = torch.rand(6, 101, generator=generator).double()
    for c, percentile, least, most in ((0.1, 99.5, 0.02, 0.25), (0.5, 70.0, 0.2, 0.25), (3.0, 33.3, 0.0, 1.0)):
        found = redistribute(a, noise, c, percentile, least, most, added)
        for group, each, row in zip(a.numpy(), noise.numpy(), found.numpy(), strict=True):
            assert np.allclose(row, by_hand(group, each, c, percentile, least, most, added), rtol=0, atol=1e-12)


def draws(seed: int, width: int, tokens: int) -> Tensor:
    """The random numbers of the first tokens of any text: (tokens, 2, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(1, 2, width, generator=generator) for _ in range(tokens)])


def arm(model, **options) -> ARM:
    return ARM(model, 0.5, 80.0, least=0.1, most=0.4, **options)


@pytest.mark.parametrize("steps", [5])
def test_generation_is_that_of_a_plain_model_under_a_hook(tiny, plain_generate, recorder, steps: int) -> None:
    model = tiny("llama")
    for text in TEXTS:
        ids, done = model.tokenizer(text).input_ids, []

        def edit(x: Tensor, ids: list = ids, done: list = done) -> Tensor:
            first = len(done)
            done.extend(range(x.shape[1]))
            noise = draws(7, x.shape[-1], len(done))[first:, 0]
            assert x.shape[1] == (1 if first else len(ids))  # the prompt, then one token after the other
            group = by_hand(x.double().numpy().ravel(), noise.double().numpy().ravel(), **SETTINGS)
            return torch.from_numpy(group).view_as(x).to(x.dtype)

        expected = plain_generate(model, [text], {(1, "gate"): edit}, steps)
        au.generate(
            model, [text], arm(model, layer=1, seed=7), max_new_tokens=steps, min_new_tokens=steps,
            logits_processor=[recorder],
        )  # fmt: skip
        found = recorder.take()
        assert torch.equal(found[0], expected[0])
        assert torch.allclose(found[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cache_changes_nothing(tiny, recorder, elsewhere: bool) -> None:
    model = tiny("llama")
    said = []
    for use_cache in (True, False):
        au.generate(
            model, TEXTS, arm(model, elsewhere=elsewhere), max_new_tokens=6, min_new_tokens=6,
            logits_processor=[recorder], use_cache=use_cache,
        )  # fmt: skip
        said.append(recorder.take())
    assert torch.equal(said[0][0], said[1][0])
    assert torch.allclose(said[0][1], said[1][1], atol=1e-3)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_as_a_request_it_does_what_it_does_here(tiny, elsewhere: bool) -> None:
    here, there = tiny("llama"), tiny("llama", remote="local")
    said = [au.generate(model, TEXTS, arm(model, elsewhere=elsewhere), max_new_tokens=6) for model in (here, there)]
    assert said[0] == said[1]


def test_scoring_is_that_of_a_plain_model_under_a_hook(tiny, twin, hooked) -> None:
    model, answer = tiny("llama"), " again and went home"
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text + answer).input_ids])
        prompt = len(model.tokenizer(text).input_ids)
        assert ids[0, :prompt].tolist() == model.tokenizer(text).input_ids

        def edit(x: Tensor, prompt: int = prompt) -> Tensor:
            noise, new = draws(7, x.shape[-1], x.shape[1])[:, 0], x.clone()
            for part in (slice(0, prompt), *(slice(i, i + 1) for i in range(prompt, x.shape[1]))):
                group = by_hand(x[0, part].double().numpy().ravel(), noise[part].double().numpy().ravel(), **SETTINGS)
                new[0, part] = torch.from_numpy(group).view(-1, x.shape[-1]).to(x.dtype)
            return new

        with hooked(twin(model), {(1, "gate"): edit}):
            log_p = twin(model)(ids).logits.log_softmax(-1)[0, prompt - 1 : -1]
        expected = log_p.gather(-1, ids[0, prompt:, None]).sum()
        found = au.log_probability(model, [answer], [text], arm(model, layer=1, seed=7))
        assert torch.allclose(found, expected, atol=5e-4)
        assert not torch.allclose(found, au.log_probability(model, [answer], [text]), atol=5e-3)


def test_seeds_and_the_control_differ_and_a_seed_repeats_itself(tiny) -> None:
    model, seen = tiny("llama"), {}
    for name, options in {
        "one": {"seed": 1}, "again": {"seed": 1}, "two": {"seed": 2}, "elsewhere": {"seed": 1, "elsewhere": True},
        "added": {"seed": 1, "added": True}, "later": {"seed": 1, "layer": 2},
    }.items():  # fmt: skip
        seen[name] = au.log_probability(model, [" home again"] * 3, TEXTS, arm(model, **options))
    assert torch.equal(seen["one"], seen["again"])
    for name in ("two", "elsewhere", "added", "later"):
        assert not torch.allclose(seen["one"], seen[name], atol=1e-4), name


@pytest.fixture
def handed() -> tuple[Tensor, Pass]:
    """Gates of two texts, the second one's first two columns padding, and two columns after the prompts' four."""
    generator = torch.Generator().manual_seed(3)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, :2] = False
    return torch.nn.functional.silu(torch.randn(2, 6, 48, generator=generator)), Pass(0, 6, 4, real)


def displaced(steering: Any, x: Tensor, now: Pass) -> Tensor:
    (operator,) = steering.operators
    return operator.displacement(Place(0, "gate"), x, now, {})


def groups(now: Pass) -> list[tuple[int, Tensor]]:
    prompt = now.columns < now.prompt
    later = [(row, now.columns == column) for row in range(2) for column in (4, 5)]
    return [(row, now.real[row] & prompt) for row in range(2)] + later


def test_the_prompt_is_one_group_and_every_later_token_another(tiny, handed: Any) -> None:
    x, now = handed
    delta, noise = displaced(arm(tiny("llama"), seed=5), x, now), draws(5, 48, 6)[:, 0]
    assert delta[1, :2].abs().max() == 0  # padding
    for row, here in groups(now):
        places = now.columns[here] - (0, 2)[row]
        expected = by_hand(x[row, here].double().numpy().ravel(), noise[places].double().numpy().ravel(), **SETTINGS)
        found = x[row, here] + delta[row, here]
        assert np.allclose(found.numpy().ravel(), expected, atol=1e-6)


def test_the_control_moves_as_many_entries_by_the_same_amounts(tiny, handed: Any) -> None:
    x, now = handed
    there, elsewhere = (displaced(arm(tiny("llama"), elsewhere=flag), x, now) for flag in (False, True))
    for row, here in groups(now):
        one, other = there[row, here].flatten(), elsewhere[row, here].flatten()
        assert torch.equal(one.sort().values, other.sort().values)
        assert not torch.equal(one != 0, other != 0)
    assert elsewhere[1, :2].abs().max() == 0


def test_the_controls_entries_are_spread_evenly(tiny, handed: Any) -> None:
    x, now = handed
    count = torch.zeros(48)
    for seed in range(300):
        count += (displaced(arm(tiny("llama"), seed=seed, elsewhere=True), x, now)[0, :4] != 0).sum(0)
    expected = count.mean()
    assert ((count - expected) / expected.sqrt()).abs().max() < 4


def test_gates_keep_their_sign_and_large_ones_their_value(tiny, handed: Any) -> None:
    x, now = handed
    after = x + displaced(arm(tiny("llama")), x, now)
    assert ((after * x >= 0) | ~now.real[..., None]).all()
    for row, here in groups(now):
        kept = after[row, here] == x[row, here]
        assert x[row, here][kept].abs().min() >= x[row, here][~kept].abs().max()


@pytest.mark.parametrize(
    "options", [{"c": -0.1}, {"percentile": 101}, {"least": 0.3}, {"most": 1.5}, {"c": float("nan")}]
)
def test_a_setting_out_of_range_is_refused(tiny, options: dict) -> None:
    with pytest.raises(ValueError, match="c is .* percentile .* least .* most"):
        ARM(tiny("llama"), **options)


def test_a_layer_that_is_not_there_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="layer is 3; give a number from 0 to 2"):
        ARM(tiny("llama"), layer=3)


def test_a_model_without_gates_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="no 'gate' site"):
        ARM(tiny("gpt2"))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral"])
def test_it_acts_in_every_gated_architecture(tiny, kind: str) -> None:
    model, steering = tiny(kind), arm(tiny(kind))
    with torch.no_grad(), model.trace(encode(model, TEXTS)):
        before = Sites(model).read(Place(0, "neuron")).save()
    with torch.no_grad(), au.steered(model, steering) as m, m.trace(encode(model, TEXTS)):
        after = Sites(m).read(Place(0, "neuron")).save()
    assert not torch.allclose(before, after)
