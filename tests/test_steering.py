"""Steering against plain PyTorch hooks: both rules, every site, every position, sums, saved files, baked weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LogitsProcessorList

import austeer as au
from austeer.methods import AUSteer, DirectionalAUSteer
from austeer.models import encode, fingerprint, info
from austeer.momentum import AtomicUnits
from austeer.sites import Place, Sites, anatomy
from austeer.steering import POSITIONS, Operator, Pass, Scale, Shift, Steering

RULES = {"scale": AUSteer, "shift": DirectionalAUSteer}
PROMPTS = [  # of growing length, so that the library keeps their order
    "Hello",
    "My sister told me",
    "When the train arrived at noon, everybody",
    "The teacher looked at the class for a long time before she said that",
]
ALPHA = 3.0
Edits = dict[tuple[int, str], Callable[[Tensor], Tensor]]


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["cache", "no cache"])
def use_cache(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="session")
def found_units(model) -> Callable[[str], AtomicUnits]:
    """The 20 best units of a site of the default model, from a few of the book's own pairs."""
    pairs, found = au.load_pairs("sentiment")[::24], {}

    def top(site: str) -> AtomicUnits:
        if site not in found:
            found[site] = au.activation_momentum(model, pairs, site=site).top(20)
        return found[site]

    return top


def as_hooks(units: AtomicUnits, rule: str, alpha: float) -> Edits:
    """Write a rule down as plain PyTorch edits, one per layer."""

    def of_layer(layer: int) -> Callable[[Tensor], Tensor]:
        here = units.layer == layer
        index, beta, difference = units.index[here], units.beta[here], units.mean_difference[here]

        def edit(x: Tensor) -> Tensor:
            new = x.clone()
            if rule == "scale":
                new[..., index] = x[..., index] * (1 + alpha * beta.to(x.dtype))
            else:
                new[..., index] = x[..., index] + alpha * difference.to(x.dtype)
            return new

        return edit

    return {(layer, units.site): of_layer(layer) for layer in units.layer.unique().tolist()}


def generated(model, recorder, steering, prompts: list[str], steps: int, **options) -> tuple[Tensor, Tensor]:
    """Generate with the library; return the tokens and their scores, (texts, steps) each."""
    au.generate(
        model, prompts, steering, max_new_tokens=steps, min_new_tokens=steps,
        logits_processor=LogitsProcessorList([recorder]), **options,
    )  # fmt: skip
    return recorder.take()


def logits(model, prompts: list[str], steering: Steering | None = None) -> Tensor:
    """The logits of a trace, steered or not, of the real tokens."""
    batch = encode(model, prompts)
    if steering is None:
        with torch.no_grad(), model.trace(batch):
            found = model.output.logits.save()
    else:
        with au.steered(model, steering) as copied, torch.no_grad(), copied.trace(batch):
            found = copied.output.logits.save()
    return found[batch["attention_mask"].bool()]


def reference_logits(module, hooked, batch: dict[str, Tensor], edits: Edits) -> Tensor:
    with hooked(module, edits):
        return module(**batch).logits[batch["attention_mask"].bool()]


def assert_same_steps(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Token by token, and the score of each."""
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], rtol=0, atol=1e-3)


def under_hooks(model, module, hooked, padded, edits: Edits, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What a plain model under hooks says at every step of a text that is there already: one pass instead of many.

    If each token is the best one after those before it, then the text is what the model generates greedily.
    """
    batch, steps = padded(PROMPTS), tokens.shape[1]
    prompt, mask = batch["input_ids"].shape[1], batch["attention_mask"]
    whole = torch.cat([mask, torch.ones_like(tokens)], 1)
    with hooked(module, edits):
        logits = module(
            input_ids=torch.cat([batch["input_ids"], tokens], 1), attention_mask=whole,
            position_ids=(whole.cumsum(-1) - 1).clamp(min=0), logits_to_keep=steps + 1,
        ).logits[:, :-1]  # fmt: skip
    logits[..., model.tokenizer.eos_token_id] = -torch.inf  # the end of text is held back
    assert logits.shape[1] == steps < steps + prompt
    return logits.argmax(-1), logits.max(-1).values


# Both rules, four sites, against hooks


@pytest.mark.parametrize(("steps", "use_cache"), [(64, True), (16, False)], ids=["cache", "no cache"])
def test_the_default_model_generates_what_hooks_generate(
    model, found_units, recorder, twin, hooked, padded, site: str, rule: str, steps: int, use_cache: bool
) -> None:
    units = found_units(site)
    found = generated(model, recorder, RULES[rule](units, ALPHA), PROMPTS, steps, use_cache=use_cache)
    assert_same_steps(found, under_hooks(model, twin(model), hooked, padded, as_hooks(units, rule, ALPHA), found[0]))


def test_every_architecture_generates_what_hooks_generate(
    tiny, some_units, recorder, plain_generate, kind: str, site: str, rule: str, use_cache: bool
) -> None:
    model = tiny(kind)
    units = some_units(model, site)
    expected = plain_generate(model, PROMPTS, as_hooks(units, rule, ALPHA), 64, use_cache=use_cache)
    found = generated(model, recorder, RULES[rule](units, ALPHA), PROMPTS, 64, use_cache=use_cache)
    assert_same_steps(found, expected)


def test_every_steering_used_here_changes_what_is_said(tiny, some_units, kind: str, site: str, rule: str) -> None:
    # Otherwise the comparisons with hooks would prove nothing.
    model = tiny(kind)
    said = au.generate(model, PROMPTS, RULES[rule](some_units(model, site), ALPHA), max_new_tokens=8)
    assert said != au.generate(model, PROMPTS, max_new_tokens=8)


def test_a_trace_inside_steered_has_the_logits_of_the_hooks(
    tiny, some_units, twin, hooked, padded, kind: str, site: str, rule: str
) -> None:
    model = tiny(kind)
    units = some_units(model, site)
    expected = reference_logits(twin(model), hooked, padded(PROMPTS), as_hooks(units, rule, ALPHA))
    found = logits(model, PROMPTS, RULES[rule](units, ALPHA))
    assert (found - expected).abs().max() < 1e-5
    assert (found - logits(model, PROMPTS)).abs().max() > 1e-2


def test_a_trace_inside_steered_reads_the_steered_activations(
    tiny, some_units, twin, hooked, padded, kind: str, site: str, rule: str
) -> None:
    model, batch, seen = tiny(kind), padded(PROMPTS), []
    units = some_units(model, site)
    place, edits = Place(1, site), as_hooks(units, rule, ALPHA)
    change = edits[place]
    edits[place] = lambda x: seen.append(change(x)) or seen[0]
    with hooked(twin(model), edits):
        twin(model)(**batch)
    with au.steered(model, RULES[rule](units, ALPHA)) as copied, torch.no_grad(), copied.trace(encode(model, PROMPTS)):
        read = Sites(copied).read(place).clone().save()
    real = batch["attention_mask"].bool()
    assert torch.allclose(read[real], seen[0][real], rtol=0, atol=1e-5)


def test_a_bfloat16_model_is_steered_in_bfloat16(tiny, some_units, rule: str) -> None:
    model = tiny("llama", torch.bfloat16)
    units = some_units(model, "attention")
    assert logits(model, PROMPTS, RULES[rule](units, ALPHA)).dtype == torch.bfloat16


def test_every_invoke_inside_steered_is_steered(tiny, some_units) -> None:
    model = tiny("gpt2")
    steering = DirectionalAUSteer(some_units(model, "ffn"), ALPHA)
    with au.steered(model, steering) as copied, torch.no_grad(), copied.trace() as tracer:
        with tracer.invoke(PROMPTS[1]):
            short = copied.output.logits[0, -1].save()
        with tracer.invoke(PROMPTS[3]):
            long = copied.output.logits[0, -1].save()
    for found, prompt in ((short, PROMPTS[1]), (long, PROMPTS[3])):
        assert (found - logits(model, [prompt], steering)[-1]).abs().max() < 1e-5


def test_steered_contexts_nest_and_stand_side_by_side(tiny, some_units) -> None:
    model = tiny("llama")
    s, t = AUSteer(some_units(model, "attention"), ALPHA), DirectionalAUSteer(some_units(model, "residual"), 1.0)
    with au.steered(model, s) as one, au.steered(one, t) as both, au.steered(model, t) as other:
        found = [logits(copied, PROMPTS) for copied in (one, both, other)]
    for value, steering in zip(found, (s, s + t, t), strict=True):
        assert torch.equal(value, logits(model, PROMPTS, steering))


# Positions


def at_positions(change: Callable[[Tensor], Tensor], positions: str, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Restrict an edit to positions, counting the passes of one run; `mask` is the prompts' attention mask."""
    passes, prompt = count(), mask.shape[1]

    def edit(x: Tensor) -> Tensor:
        step = next(passes)
        column = torch.arange(prompt + step)
        real = torch.cat([mask.bool(), torch.ones(len(mask), step, dtype=torch.bool)], 1)
        where = {
            "all": column >= 0, "prompt": column < prompt, "last": column >= prompt - 1, "generated": column >= prompt
        }[positions]  # fmt: skip
        return torch.where((real & where)[:, -x.shape[1] :, None], change(x), x)

    return edit


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_are_those_of_masked_hooks(
    tiny, some_units, recorder, plain_generate, padded, kind: str, positions: str, use_cache: bool
) -> None:
    model, mask = tiny(kind), padded(PROMPTS)["attention_mask"]
    scaled, shifted = some_units(model, "neuron"), some_units(model, "residual")
    edits = as_hooks(scaled, "scale", ALPHA) | as_hooks(shifted, "shift", 1.0)
    edits = {place: at_positions(change, positions, mask) for place, change in edits.items()}
    expected = plain_generate(model, PROMPTS, edits, 12, use_cache=use_cache)
    steering = AUSteer(scaled, ALPHA, positions) + DirectionalAUSteer(shifted, 1.0, positions)
    assert_same_steps(generated(model, recorder, steering, PROMPTS, 12, use_cache=use_cache), expected)


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_mean_the_same_with_and_without_a_cache(tiny, some_units, kind: str, positions: str) -> None:
    model = tiny(kind)
    steering = DirectionalAUSteer(some_units(model, "ffn"), 1.0, positions)
    with_cache, without = (
        au.generate(model, PROMPTS, steering, max_new_tokens=12, use_cache=use_cache) for use_cache in (True, False)
    )
    assert with_cache == without


def test_the_four_positions_are_four_different_steerings(tiny, some_units) -> None:
    model = tiny("llama")
    units = some_units(model, "residual")
    said = [
        au.generate(model, PROMPTS[-1:], DirectionalAUSteer(units, 1.0, positions), max_new_tokens=8)[0]
        for positions in POSITIONS
    ]
    assert len(set(said)) == 4


def test_padding_is_never_touched(tiny, some_units, kind: str, site: str, rule: str) -> None:
    model = tiny(kind)
    # Padding of Gemma's later layers attends to every token, steered ones too; what we write shows in the first layer.
    batch, places = encode(model, PROMPTS), [Place(layer, site) for layer in range(1 if kind == "gemma2" else 2)]
    steering = RULES[rule](some_units(model, site), ALPHA)
    with torch.no_grad(), model.trace(batch):
        sites = Sites(model)
        before = [sites.read(place).clone() for place in places].save()
    with au.steered(model, steering) as copied, torch.no_grad(), copied.trace(batch):
        sites = Sites(copied)
        after = [sites.read(place).clone() for place in places].save()
    padding = batch["attention_mask"] == 0
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[padding], new[padding])
        assert not torch.equal(old[~padding], new[~padding])


def test_unknown_positions_are_refused(tiny, some_units) -> None:
    with pytest.raises(ValueError, match="'first'; give one of all, prompt, last, generated"):
        AUSteer(some_units(tiny("llama"), "ffn"), 1.0, positions="first")


# Strength, sign and sum


def test_no_strength_is_the_identity(tiny, some_units, rule: str) -> None:
    model = tiny("llama")
    assert torch.equal(
        logits(model, PROMPTS, 0 * RULES[rule](some_units(model, "attention"), ALPHA)), logits(model, PROMPTS)
    )


@pytest.mark.parametrize("rule", RULES)
def test_no_units_are_the_identity(tiny, some_units, rule: str) -> None:
    # A sweep over k starts at units[:0].
    model = tiny("llama")
    steering = RULES[rule](some_units(model, "attention")[:0], ALPHA)
    assert torch.equal(logits(model, PROMPTS, steering), logits(model, PROMPTS))


@pytest.mark.parametrize("factor", [-1, 0.5, 2])
def test_a_factor_is_a_factor_on_the_displacement(
    tiny, some_units, twin, hooked, padded, rule: str, factor: float
) -> None:
    model = tiny("llama")
    units = some_units(model, "neuron")
    expected = reference_logits(twin(model), hooked, padded(PROMPTS), as_hooks(units, rule, factor * ALPHA))
    steering = RULES[rule](units, ALPHA)
    for scaled in [factor * steering, steering * factor, *([-steering] if factor == -1 else [])]:
        assert (logits(model, PROMPTS, scaled) - expected).abs().max() < 1e-5


def test_a_sum_adds_displacements_read_from_the_same_x(
    tiny, some_units, twin, hooked, padded, kind: str, site: str
) -> None:
    model = tiny(kind)
    units = some_units(model, site)
    scale, shift = as_hooks(units, "scale", ALPHA), as_hooks(units, "shift", 1.0)
    edits = {place: lambda x, p=place: scale[p](x) + shift[p](x) - x for place in scale}
    expected = reference_logits(twin(model), hooked, padded(PROMPTS), edits)
    scaled, shifted = AUSteer(units, ALPHA), DirectionalAUSteer(units, 1.0)
    assert (logits(model, PROMPTS, scaled + shifted) - expected).abs().max() < 1e-5
    assert (logits(model, PROMPTS, shifted + scaled) - expected).abs().max() < 1e-5


def test_a_sum_works_across_sites_and_layers(tiny, some_units, twin, hooked, padded, kind: str) -> None:
    model = tiny(kind)
    edits, steering = {}, None
    for site, rule in (("residual", "shift"), ("attention", "scale"), ("ffn", "shift"), ("neuron", "scale")):
        units = some_units(model, site, k=5)
        edits |= as_hooks(units, rule, 1.0)
        part = RULES[rule](units, 1.0)
        steering = part if steering is None else steering + part
    expected = reference_logits(twin(model), hooked, padded(PROMPTS), edits)
    assert (logits(model, PROMPTS, steering) - expected).abs().max() < 1e-5


def test_a_factor_on_a_sum_reaches_each_part(tiny, some_units) -> None:
    model = tiny("llama")
    s, t = AUSteer(some_units(model, "ffn"), 1.0), DirectionalAUSteer(some_units(model, "neuron"), 1.0)
    assert torch.allclose(logits(model, PROMPTS, -2 * (s + t)), logits(model, PROMPTS, -2 * s + -2 * t), atol=1e-6)


def test_a_sum_does_not_change_its_parts(tiny, some_units) -> None:
    s = AUSteer(some_units(tiny("llama"), "ffn"), 1.0)
    before = repr(s)
    _ = -3 * (s + s)
    assert repr(s) == before


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "2", None])
def test_a_steering_is_scaled_by_finite_numbers_only(tiny, some_units, factor) -> None:
    with pytest.raises(ValueError, match="scaled by a finite number"):
        AUSteer(some_units(tiny("llama"), "ffn"), 1.0) * factor


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(tiny, some_units, rule: str, alpha: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        RULES[rule](some_units(tiny("llama"), "ffn"), alpha)


def test_a_tensor_that_is_not_finite_is_refused(tiny) -> None:
    tensors = {"layer": torch.tensor([0]), "index": torch.tensor([1]), "value": torch.tensor([float("nan")])}
    with pytest.raises(ValueError, match="'value' of operator 'shift' holds values that are not finite"):
        Shift("ffn", tensors)


def test_steerings_of_models_of_another_shape_do_not_add(tiny, some_units) -> None:
    with pytest.raises(ValueError, match="of another shape"):
        AUSteer(some_units(tiny("llama"), "ffn"), 1.0) + AUSteer(some_units(tiny("gpt2"), "ffn"), 1.0)


def test_a_steering_adds_to_a_steering_only(tiny, some_units) -> None:
    with pytest.raises(TypeError):
        AUSteer(some_units(tiny("llama"), "ffn"), 1.0) + 1


def test_steerings_that_say_nothing_about_themselves_add_too(tiny) -> None:
    one = Steering([Shift("ffn", one_unit())], info(tiny("llama")), {})
    assert len((one + one).operators) == 2


def one_unit(layer: int = 0, index: int = 3, value: float = 2.0) -> dict[str, Tensor]:
    return {"layer": torch.tensor([layer]), "index": torch.tensor([index]), "value": torch.tensor([value])}


# One steering per prompt


def test_one_steering_per_prompt_equals_each_alone(tiny, some_units, kind: str) -> None:
    model = tiny(kind)
    s = AUSteer(some_units(model, "attention"), ALPHA)
    t = DirectionalAUSteer(some_units(model, "residual"), 1.0, "last")
    each = [s, None, s + t, -t]
    alone = [au.generate(model, [prompt], one, max_new_tokens=12)[0] for prompt, one in zip(PROMPTS, each, strict=True)]
    assert au.generate(model, PROMPTS, each, max_new_tokens=12) == alone


def test_steerings_stay_with_their_prompts_when_prompts_are_sorted(tiny, some_units) -> None:
    model = tiny("gpt2")
    units = some_units(model, "ffn")
    each = [DirectionalAUSteer(units, alpha) for alpha in (0.5, 1.0, 2.0, 4.0)]
    forwards = au.generate(model, PROMPTS, each, max_new_tokens=8, rows_per_pass=3)
    backwards = au.generate(model, PROMPTS[::-1], each[::-1], max_new_tokens=8, rows_per_pass=3)
    assert forwards == backwards[::-1]


def test_a_sweep_on_one_prompt_is_one_batch(tiny, some_units) -> None:
    model = tiny("llama")
    units = some_units(model, "neuron")
    sweep = [RULES[rule](units[:k], alpha) for rule in RULES for k in (1, 6, 12) for alpha in (-1.0, 3.0)]
    alone = [au.generate(model, PROMPTS[1:2], one, max_new_tokens=6)[0] for one in sweep]
    assert au.generate(model, PROMPTS[1:2] * len(sweep), sweep, max_new_tokens=6) == alone


# Operators that read one place, write another, and keep a state for the run


class ReadOnceWriteLater(Operator):
    """As RISER: looks at the last prompt token of one layer, and adds a part of it to another layer later on."""

    name = "test-read-once-write-later"

    def reads(self) -> list[Place]:
        return [Place(int(self.tensors["from"]), "residual")]

    def observe(self, place: Place, x: Tensor, now: Pass, state: dict) -> None:
        if now.step == 0:
            state["seen"] = x[:, -1:]

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        return torch.zeros_like(x) if now.step == 0 else torch.zeros_like(x) + self.tensors["gain"] * state["seen"]


class LateToEarly(Operator):
    """Adds what a late layer held at the last token of a pass to an early layer in the next pass."""

    name = "test-late-to-early"

    def reads(self) -> list[Place]:
        return [Place(int(self.tensors["from"]), self.site)]

    def observe(self, place: Place, x: Tensor, now: Pass, state: dict) -> None:
        state["before"], state["last"] = state.get("last"), x[:, -1:]

    def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
        return torch.zeros_like(x) if state.get("last") is None else torch.zeros_like(x) + state["last"]


def moving(operator: type[Operator], source: int, target: int, site: str, strength: float = 1.0) -> Operator:
    tensors = {"from": torch.tensor(source), "layer": torch.tensor([target]), "gain": torch.tensor(0.5)}
    return operator(site, tensors, "generated", strength)


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (1, 1)])
def test_an_operator_may_read_the_prompt_and_write_elsewhere_at_every_later_step(
    tiny, recorder, plain_generate, padded, kind: str, source: int, target: int, use_cache: bool
) -> None:
    model, mask, seen = tiny(kind), padded(PROMPTS)["attention_mask"], []
    change = at_positions(lambda x: x + 0.5 * seen[0] if seen else x, "generated", mask)

    def read(x: Tensor) -> None:
        seen.append(x[:, -1:].clone())

    def read_and_change(x: Tensor) -> Tensor:
        read(x)
        return change(x)

    edits = {(1, "residual"): read_and_change} if source == target else {
        (source, "residual"): read, (target, "residual"): change,
    }  # fmt: skip
    expected = plain_generate(model, PROMPTS, edits, 12, use_cache=use_cache)
    steering = Steering([moving(ReadOnceWriteLater, source, target, "residual")], info(model), {"method": "test"})
    assert_same_steps(generated(model, recorder, steering, PROMPTS, 12, use_cache=use_cache), expected)


def test_an_operator_may_read_a_late_layer_and_write_an_early_one_at_the_next_step(
    tiny, recorder, plain_generate, padded, kind: str, use_cache: bool
) -> None:
    model, mask, seen = tiny(kind), padded(PROMPTS)["attention_mask"], []
    edits = {
        (0, "ffn"): at_positions(lambda x: x + 2 * seen[-1] if seen else x, "generated", mask),
        (1, "ffn"): lambda x: seen.append(x[:, -1:].clone()),
    }
    expected = plain_generate(model, PROMPTS, edits, 12, use_cache=use_cache)
    steering = 2 * Steering([moving(LateToEarly, 1, 0, "ffn")], info(model), {"method": "test"})
    assert_same_steps(generated(model, recorder, steering, PROMPTS, 12, use_cache=use_cache), expected)
    assert not torch.equal(expected[0], plain_generate(model, PROMPTS, {}, 12)[0])


def test_what_an_operator_observes_is_not_yet_changed_there(tiny, recorder, plain_generate, padded) -> None:
    # A second operator writes where the first one reads: the first must see the model's own activation.
    model, mask, seen = tiny("llama"), padded(PROMPTS)["attention_mask"], []
    shift = Shift("residual", one_unit(layer=1, value=9.0))
    move = moving(ReadOnceWriteLater, 1, 2, "residual")

    def read_then_shift(x: Tensor) -> Tensor:
        seen.append(x[:, -1:].clone())
        new = x.clone()
        new[..., 3] += 9
        return new

    edits = {
        (1, "residual"): read_then_shift,
        (2, "residual"): at_positions(lambda x: x + 0.5 * seen[0], "generated", mask),
    }
    expected = plain_generate(model, PROMPTS, edits, 12)
    for operators in ([shift, move], [move, shift]):
        steering = Steering(operators, info(model), {"method": "test"})
        assert_same_steps(generated(model, recorder, steering, PROMPTS, 12), expected)


def test_the_state_of_a_run_is_forgotten_with_the_run(tiny) -> None:
    model = tiny("llama")
    steering = Steering([moving(LateToEarly, 2, 0, "residual")], info(model), {"method": "test"})
    first = au.generate(model, PROMPTS, steering, max_new_tokens=8)
    assert au.generate(model, PROMPTS, steering, max_new_tokens=8) == first


def test_two_traces_inside_one_context_share_no_state(tiny) -> None:
    model = tiny("llama")
    operator = replace(moving(LateToEarly, 2, 0, "residual"), positions="all")
    batch = encode(model, PROMPTS)
    with au.steered(model, Steering([operator], info(model), {"method": "test"})) as copied, torch.no_grad():
        with copied.trace(batch):
            first = copied.output.logits.save()
        with copied.trace(batch):
            second = copied.output.logits.save()
    assert torch.equal(first, second)


def test_each_prompt_has_a_state_of_its_own(tiny) -> None:
    model = tiny("llama")
    one, other = (
        Steering([moving(ReadOnceWriteLater, 0, target, "residual", strength)], info(model), {"method": "test"})
        for target, strength in ((1, 1.0), (2, -2.0))
    )
    each = [one, other, None, one]
    alone = [au.generate(model, [prompt], one, max_new_tokens=8)[0] for prompt, one in zip(PROMPTS, each, strict=True)]
    assert au.generate(model, PROMPTS, each, max_new_tokens=8) == alone


# Files


@pytest.fixture
def some_steering(tiny, some_units) -> Steering:
    model = tiny("llama")
    return AUSteer(some_units(model, "attention"), 2.5) + -0.5 * DirectionalAUSteer(
        some_units(model, "neuron", seed=1), 8.0, "generated"
    )


def same(a: Steering, b: Steering) -> bool:
    def data(s: Steering) -> list:
        return [(type(o), o.site, o.positions, o.strength, sorted(o.tensors)) for o in s.operators]

    tensors = [
        (one.tensors[name], two.tensors[name])
        for one, two in zip(a.operators, b.operators, strict=True)
        for name in one.tensors
    ]
    return (
        data(a) == data(b)
        and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in tensors)
        and (a.about, a.model, repr(a)) == (b.about, b.model, repr(b))
    )


def test_what_is_loaded_is_what_was_saved(some_steering: Steering, tmp_path: Path) -> None:
    some_steering.save(tmp_path / "joy.safetensors")
    assert same(Steering.load(tmp_path / "joy.safetensors"), some_steering)


def test_a_loaded_steering_says_the_same(tiny, some_steering: Steering, tmp_path: Path) -> None:
    some_steering.save(tmp_path / "joy.safetensors")
    loaded = Steering.load(str(tmp_path / "joy.safetensors"))
    assert au.generate(tiny("llama"), PROMPTS, loaded, max_new_tokens=8) == au.generate(
        tiny("llama"), PROMPTS, some_steering, max_new_tokens=8
    )


def test_both_rules_on_the_same_units_save_as_one_steering(tiny, some_units, tmp_path: Path) -> None:
    units = some_units(tiny("llama"), "attention")
    both = AUSteer(units, 2.0) + DirectionalAUSteer(units[:5], 3.0) + AUSteer(units, 1.0)
    both.save(tmp_path / "both.safetensors")
    assert same(Steering.load(tmp_path / "both.safetensors"), both)


def test_an_operator_of_ones_own_saves_and_loads(tiny, tmp_path: Path) -> None:
    model = tiny("llama")
    steering = Steering([moving(LateToEarly, 2, 0, "ffn", 0.1)], info(model), {"method": "test"})
    steering.save(tmp_path / "own.safetensors")
    assert same(Steering.load(tmp_path / "own.safetensors"), steering)


def test_an_operator_derived_from_scale_saves_and_loads(tiny, tmp_path: Path) -> None:
    class ScaleHalf(Scale):
        name = "test-scale-half"

    steering = Steering([ScaleHalf("ffn", one_unit())], info(tiny("llama")), {"method": "test"})
    steering.save(tmp_path / "derived.safetensors")
    assert same(Steering.load(tmp_path / "derived.safetensors"), steering)


def test_units_found_by_momentum_save_with_all_they_say(model, found_units, tmp_path: Path) -> None:
    steering = AUSteer(found_units("attention").shuffled_signs(seed=3), np.float32(2.5))
    steering.save(tmp_path / "control.safetensors")
    loaded = Steering.load(tmp_path / "control.safetensors")
    assert same(loaded, steering)
    assert loaded.about["control"] == "shuffled signs, seed 3"


def test_the_header_can_be_read_without_the_library(some_steering: Steering, tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    some_steering.save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["austeer"])
        assert set(file.keys()) == {f"{number}.{name}" for number in (0, 1) for name in ("layer", "index", "value")}
    assert header["model"]["fingerprint"] == some_steering.model.fingerprint
    assert header["model"]["id"] == "LlamaForCausalLM"
    assert header["model"]["bos"] is False
    assert [part["method"] for part in header["about"]["parts"]] == ["AUSteer", "DirectionalAUSteer"]
    assert [operator["site"] for operator in header["operators"]] == ["attention", "neuron"]
    assert header["austeer"]


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(some_steering: Steering, tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    (2 * some_steering).save(path)
    some_steering.save(path)
    assert same(Steering.load(path), some_steering)
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_nothing_beside(some_steering: Steering, tmp_path: Path) -> None:
    taken = tmp_path / "joy.safetensors"
    taken.mkdir()
    with pytest.raises(OSError, match="joy"):
        some_steering.save(taken)
    assert list(tmp_path.iterdir()) == [taken]
    assert list(taken.iterdir()) == []


def test_a_save_that_fails_keeps_the_file_that_was_there(some_steering: Steering, tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    some_steering.save(path)
    before = path.read_bytes()
    unspeakable = Steering(some_steering.operators, some_steering.model, {"method": object()})
    with pytest.raises(TypeError):
        unspeakable.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["joy.pt", "joy", "joy.pkl"])
def test_only_safetensors_are_written_or_read(some_steering: Steering, tmp_path: Path, name: str) -> None:
    for use in (some_steering.save, Steering.load):
        with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
            use(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        Steering.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused_by_name(some_steering: Steering, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "joy.safetensors"
    some_steering.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"joy\.safetensors is no steering"):
        Steering.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"austeer": "not JSON"}, {"austeer": "[]"}, {"austeer": '{"operators": [1]}'}]
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, metadata: dict | None) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"weights\.safetensors is no steering"):
        Steering.load(path)


def test_an_unknown_operator_is_refused_with_the_known_ones(some_steering: Steering, tmp_path: Path) -> None:
    path = tmp_path / "joy.safetensors"
    some_steering.save(path)
    path.write_bytes(path.read_bytes().replace(rb"\"name\": \"scale\"", rb"\"name\": \"gauge\""))
    with pytest.raises(ValueError, match="operator 'gauge' is not known.*scale, shift"):
        Steering.load(path)


def test_the_repr_says_how_much_what_where_and_when(some_steering: Steering) -> None:
    some_steering.about |= {"template": None, "shape": [3, 32]}
    text = repr(some_steering)
    assert not {"None", "shape"} & set(text.replace(",", " ").split())
    assert "Steering of LlamaForCausalLM" in text
    assert "2.5 x scale at 12 units of attention, layers 0 to 2, positions: all" in text
    assert "-4 x shift at 12 units of neuron" in text
    assert "positions: generated" in text


def test_a_notebook_shows_a_card_and_escapes_what_was_written_into_it(some_steering: Steering) -> None:
    some_steering.about["topic"] = "<script>"
    card = some_steering._repr_html_()
    assert "<td>topic</td><td>&lt;script&gt;</td>" in card
    assert "2.5 x scale at 12 units of attention" in card
    assert some_steering.model.fingerprint in card


# Whose steering it is


def test_a_steering_of_another_shape_is_refused_everywhere(tiny, some_units) -> None:
    steering, other = AUSteer(some_units(tiny("llama"), "ffn"), 1.0), tiny("gpt2")
    uses = [
        lambda: au.generate(other, PROMPTS, steering),
        lambda: au.audit(other, steering, PROMPTS[0]),
        lambda: au.bake(other, steering),
        lambda: au.steered(other, steering).__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"LlamaForCausalLM with .* \(3, 32\).* GPT2LMHeadModel with \(2, 32\)"):
            use()


def test_a_steering_of_a_narrower_site_is_refused(plain, tokenizer, tiny, some_units) -> None:
    # The same layers and hidden size, but 64 neurons instead of 48: unit 5 of one is not unit 5 of the other.
    config = plain("llama").config
    config.intermediate_size = 64
    other = au.load(transformers.LlamaForCausalLM(config), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="does not fit"):
        AUSteer(some_units(tiny("llama"), "neuron"), 1.0).check(other)


def test_other_weights_of_the_same_shape_are_warned_about(plain, tokenizer, tiny, some_units) -> None:
    module = plain("llama").requires_grad_(False)
    module.model.norm.weight.add_(1)
    other = au.load(module, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="made from other weights"):
        au.generate(other, PROMPTS[:1], AUSteer(some_units(tiny("llama"), "ffn"), 1.0), max_new_tokens=2)


def test_the_same_weights_in_another_dtype_are_not_warned_about(tiny, some_units) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AUSteer(some_units(tiny("llama"), "ffn"), 1.0).check(tiny("llama", torch.bfloat16))


# Plain weights

NO_FFN_BIAS = ("qwen3", "gemma2", "gemma3_text")  # their configurations cannot declare one


@pytest.mark.parametrize("site", ["attention", "neuron", "ffn"])
def test_baked_weights_have_the_steered_models_logits(
    tiny, some_units, padded, kind: str, site: str, rule: str
) -> None:
    model = tiny(kind, torch.float64)
    steering = RULES[rule](some_units(model, site), ALPHA)
    if rule == "shift" and site != "attention" and kind in NO_FFN_BIAS:
        with pytest.raises(ValueError, match="needs a bias on the mlp output projection"):
            au.bake(model, steering)
        return
    with torch.no_grad():
        found = au.bake(model, steering)(**padded(PROMPTS[-1:])).logits[0]
    assert (found - logits(model, PROMPTS[-1:], steering)).abs().max() < 1e-10
    assert (found - logits(model, PROMPTS[-1:])).abs().max() > 1e-2


@pytest.mark.parametrize("site", ["attention", "neuron", "ffn"])
def test_the_default_model_bakes_to_rounding_error(model, found_units, padded, site: str, rule: str) -> None:
    steering, batch = RULES[rule](found_units(site), ALPHA), padded(PROMPTS)
    with torch.no_grad():
        found = au.bake(model, steering)(**batch).logits[batch["attention_mask"].bool()]
    expected = logits(model, PROMPTS, steering)
    assert (found - expected).abs().max() < 1e-5 * (expected.max() - expected.min())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_sum_at_one_place_and_across_one_ffn_bakes_exactly(tiny, some_units, padded, kind: str) -> None:
    model, everywhere = tiny(kind, torch.float64), ("attention", "neuron", "ffn")
    steering = AUSteer(some_units(model, "ffn"), 0.5)
    for site in everywhere:
        units = some_units(model, site)
        steering = steering + AUSteer(units, ALPHA) + -1 * DirectionalAUSteer(units, 1.0)
    with torch.no_grad():
        found = au.bake(model, steering)(**padded(PROMPTS[-1:])).logits[0]
    assert (found - logits(model, PROMPTS[-1:], steering)).abs().max() < 1e-10


def test_padding_does_not_leak_into_baked_outputs(tiny, some_units, padded) -> None:
    model, batch = tiny("gpt2", torch.float64), padded(PROMPTS)
    steering = DirectionalAUSteer(some_units(model, "attention"), ALPHA)
    with torch.no_grad():
        found = au.bake(model, steering)(**batch).logits[batch["attention_mask"].bool()]
    assert (found - logits(model, PROMPTS, steering)).abs().max() < 1e-10


def test_a_baked_model_generates_what_the_steered_one_does(model, found_units, padded) -> None:
    steering, batch = DirectionalAUSteer(found_units("attention"), ALPHA), padded(PROMPTS)
    ids = au.bake(model, steering).generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=12
    )
    texts = model.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts == au.generate(model, PROMPTS, steering, max_new_tokens=12)


def test_baking_leaves_the_model_as_it_was(plain, tokenizer, some_units, kind: str) -> None:
    model = au.load(plain(kind), tokenizer=tokenizer)
    before = {name: value.clone() for name, value in model._module.state_dict().items()}
    config = model._module.config.to_dict()
    au.bake(
        model, AUSteer(some_units(model, "attention"), 2.0) + DirectionalAUSteer(some_units(model, "attention"), 1.0)
    )
    after = model._module.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model._module.config.to_dict() == config


def test_a_baked_model_survives_saving(tiny, some_units, padded, tmp_path: Path, kind: str) -> None:
    model, batch = tiny(kind), padded(PROMPTS)
    baked = au.bake(model, DirectionalAUSteer(some_units(model, "attention"), ALPHA))
    baked.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, baked(**batch).logits)
    assert again.generation_config.to_dict() == baked.generation_config.to_dict()


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_where_a_kind_has_no_bias_the_baked_model_is_a_llama_with_biases(tiny, some_units, kind: str) -> None:
    model = tiny(kind)
    shifted, scaled = (rule(some_units(model, "ffn"), ALPHA) for rule in (DirectionalAUSteer, AUSteer))
    baked = au.bake(model, shifted)
    assert type(baked) is transformers.LlamaForCausalLM
    assert (baked.config.mlp_bias, baked.config.attention_bias) == (True, kind == "qwen2")
    assert baked.config.vocab_size == model._module.config.vocab_size
    assert type(au.bake(model, scaled)) is type(model._module)


def test_a_window_that_hides_tokens_is_no_llama(plain, tokenizer, some_units) -> None:
    module = plain("mistral")
    module.config.sliding_window = 64  # of a context of 256
    model = au.load(module, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="MistralForCausalLM cannot declare"):
        au.bake(model, DirectionalAUSteer(some_units(model, "ffn"), ALPHA))


def test_a_window_as_long_as_the_context_hides_nothing(plain, tokenizer, some_units) -> None:
    module = plain("mistral")
    module.config.sliding_window = module.config.max_position_embeddings
    model = au.load(module, tokenizer=tokenizer)
    baked = au.bake(model, DirectionalAUSteer(some_units(model, "ffn"), ALPHA))
    assert type(baked) is transformers.LlamaForCausalLM


def test_the_baked_default_model_survives_saving(model, found_units, padded, tmp_path: Path) -> None:
    baked = au.bake(model, DirectionalAUSteer(found_units("ffn"), ALPHA))
    baked.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(**padded(PROMPTS)).logits, baked(**padded(PROMPTS)).logits)


def test_a_baked_model_is_plain(tiny, some_units, kind: str) -> None:
    model = tiny(kind)
    baked = au.bake(model, AUSteer(some_units(model, "neuron"), ALPHA))
    assert type(baked) is type(model._module)
    assert not baked.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in baked.modules())
    assert not any("forward" in vars(module) for module in baked.modules())


def test_a_baked_model_is_another_model(tiny, some_units) -> None:
    model = tiny("llama")
    assert fingerprint(au.bake(model, AUSteer(some_units(model, "neuron"), ALPHA))) != info(model).fingerprint


def test_baking_in_bfloat16_keeps_the_rotary_frequencies(plain, tokenizer, some_units, tmp_path: Path) -> None:
    plain("llama").save_pretrained(tmp_path)
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = au.load(module, tokenizer=tokenizer)
    baked = dict(au.bake(model, AUSteer(some_units(model, "neuron"), ALPHA)).named_buffers())
    for name, value in module.named_buffers():
        assert baked[name].dtype == value.dtype
        assert torch.equal(baked[name], value)


def test_the_residual_stream_is_not_bakeable(tiny, some_units) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="residual stream is a sum"):
        au.bake(model, AUSteer(some_units(model, "residual"), 1.0))


@pytest.mark.parametrize("positions", ["prompt", "last", "generated"])
def test_positions_are_not_bakeable(tiny, some_units, positions: str) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match=f"'{positions}'; not bakeable"):
        au.bake(model, AUSteer(some_units(model, "ffn"), 1.0, positions))


def test_an_operator_of_ones_own_is_not_bakeable(tiny) -> None:
    model = tiny("llama")
    operator = replace(moving(LateToEarly, 2, 0, "ffn"), positions="all")
    with pytest.raises(ValueError, match="'test-late-to-early' is no fixed scale or shift"):
        au.bake(model, Steering([operator], info(model), {"method": "test"}))


def test_an_operator_derived_from_scale_is_not_taken_for_one(tiny) -> None:
    class ScaleUpTo(Scale):
        name = "test-scale-up-to"

        def displacement(self, place: Place, x: Tensor, now: Pass, state: dict) -> Tensor:
            return super().displacement(place, x, now, state).clamp(max=1)

    model = tiny("llama")
    with pytest.raises(ValueError, match="'test-scale-up-to' is no fixed scale or shift"):
        au.bake(model, Steering([ScaleUpTo("ffn", one_unit())], info(model), {"method": "test"}))


def test_a_remote_models_weights_are_not_here_to_bake(plain, tokenizer, some_units) -> None:
    model = au.load(plain("llama"), tokenizer=tokenizer)
    steering = AUSteer(some_units(model, "ffn"), 1.0)
    model.austeer_info = replace(info(model), remote=True)
    with pytest.raises(ValueError, match="weights of a remote model are not here"):
        au.bake(model, steering)


def test_anatomy_of_a_baked_model_is_unchanged(tiny, some_units, kind: str) -> None:
    model = tiny(kind)
    assert anatomy(au.bake(model, DirectionalAUSteer(some_units(model, "attention"), 1.0))) == anatomy(model)
