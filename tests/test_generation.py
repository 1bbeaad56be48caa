"""Generation does not depend on the batch, steering ends with its context, and the audit sees what was edited."""

import warnings
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import RepetitionPenaltyLogitsProcessor

import austeer as au
from austeer.generation import Sampling
from austeer.methods import AUSteer, DirectionalAUSteer
from austeer.models import encode
from austeer.steering import POSITIONS, Steering

PROMPTS = ["Hello", "When the train arrived at noon, everybody", "My sister told me", "The soup was"]


@pytest.fixture
def shift(tiny: Any, some_units: Any) -> Any:
    return DirectionalAUSteer(some_units(tiny("llama"), "attention"), 3.0)


def test_a_prompt_alone_gets_the_tokens_of_the_batch(model: Any) -> None:
    options = {"max_new_tokens": 12, "repetition_penalty": 1.1}
    together = au.generate(model, PROMPTS, **options)
    assert together == [au.generate(model, [prompt], **options)[0] for prompt in PROMPTS]
    assert together == au.generate(model, PROMPTS, rows_per_pass=2, **options)
    assert together[::-1] == au.generate(model, PROMPTS[::-1], **options)


def test_sampling_draws_a_token_as_often_as_its_probability_says() -> None:
    share = torch.tensor([0.6, 0.3, 0.1])
    noisy = Sampling(torch.Generator().manual_seed(0))(torch.zeros(20_000, 1), share.log().expand(20_000, 3))
    drawn = torch.bincount(noisy.argmax(-1), minlength=3) / 20_000
    assert torch.allclose(drawn, share, atol=0.015)


def test_samples_follow_from_the_generator_alone(tiny: Any) -> None:
    def sampled(seed: int) -> list[str]:
        sampling = Sampling(torch.Generator().manual_seed(seed))
        return au.generate(tiny("llama"), PROMPTS, max_new_tokens=8, logits_processor=[sampling])

    first, state = sampled(0), torch.random.get_rng_state()
    assert sampled(0) == first != sampled(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_text_that_ends_early_ends_alike_in_a_batch(model: Any) -> None:
    prompts = ["Yes.", "My name is Anna and I live in a small house by the sea."]
    options = {"max_new_tokens": 12, "repetition_penalty": 1.1}
    together = au.generate(model, prompts, **options)
    assert together == [au.generate(model, [prompt], **options)[0] for prompt in prompts]
    short, long = (len(model.tokenizer(text).input_ids) for text in together)
    assert short < long == 12


def test_the_penalty_does_not_count_padding_as_text(tiny: Any, twin: Any) -> None:
    # The padding token ends texts. Here every text wants to end at once, and a penalised token would come last.
    model = tiny("llama")
    end = model.tokenizer.eos_token_id
    options = {"sequence_bias": {(end,): 100.0}, "max_new_tokens": 3}
    assert au.generate(model, PROMPTS, repetition_penalty=1000.0, **options) == [""] * 4
    batch = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    naive = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1000.0)])
    ids = twin(model).generate(**batch, do_sample=False, logits_processor=naive, **options)
    assert (ids[:, batch["input_ids"].shape[1]] == end).tolist() == [False, True, False, False]


def test_each_prompt_may_have_its_own_steering(tiny: Any, shift: Any, some_units: Any) -> None:
    model = tiny("llama")
    scale = AUSteer(some_units(model, "neuron"), 2.0)
    each = [shift, None, -shift, shift + scale]
    alone = [au.generate(model, [p], s, max_new_tokens=12)[0] for p, s in zip(PROMPTS, each, strict=True)]
    assert au.generate(model, PROMPTS, each, max_new_tokens=12) == alone
    assert alone != au.generate(model, PROMPTS, max_new_tokens=12)


def test_one_steering_too_few_is_refused(tiny: Any, shift: Any) -> None:
    with pytest.raises(ValueError, match="1 steerings were given for 4 prompts"):
        au.generate(tiny("llama"), PROMPTS, [shift])


@pytest.mark.parametrize("steering", [None, []])
def test_no_prompt_is_refused(tiny: Any, steering: Any) -> None:
    with pytest.raises(ValueError, match="No prompt was given"):
        au.generate(tiny("llama"), [], steering)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_more_than_one_row_per_prompt_is_refused(tiny: Any, shift: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 3; give 1 or leave it out"):
        au.generate(tiny("llama"), PROMPTS, shift, max_new_tokens=3, do_sample=True, **{name: 3})
    assert au.generate(tiny("llama"), PROMPTS, shift, max_new_tokens=3, **{name: 1}) == au.generate(
        tiny("llama"), PROMPTS, shift, max_new_tokens=3
    )


def test_what_is_no_steering_is_refused_by_its_type(tiny: Any, shift: Any, some_units: Any) -> None:
    units = some_units(tiny("llama"), "attention")
    for steering, name in (([shift, None, 12.0, None], "float"), ([units] * 4, "AtomicUnits"), (units, "AtomicUnits")):
        with pytest.raises(ValueError, match=f"A {name} was given as steering; give a Steering"):
            au.generate(tiny("llama"), PROMPTS, steering)


def test_a_continuation_beyond_the_context_is_refused_before_it_starts(tiny: Any) -> None:
    # GPT-2 has no position there; the others would run on where they were never trained.
    with pytest.raises(ValueError, match="context of 256"):
        au.generate(tiny("gpt2"), ["word " * 250], max_new_tokens=20)


def test_a_logits_processor_of_ones_own_works_beside_the_penalty(tiny: Any, recorder: Any) -> None:
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "repetition_penalty": 1.1}
    au.generate(tiny("llama"), PROMPTS[:1], logits_processor=LogitsProcessorList([recorder]), **options)
    assert len(recorder.steps) == 3


def test_options_reach_transformers(tiny: Any) -> None:
    torch.manual_seed(0)
    sampled = au.generate(tiny("llama"), PROMPTS, do_sample=True, temperature=5.0, max_new_tokens=6)
    assert sampled != au.generate(tiny("llama"), PROMPTS, max_new_tokens=6)


def test_only_the_continuation_is_returned(model: Any, twin: Any) -> None:
    ids = model.tokenizer("My sister told me", return_tensors="pt")
    with torch.no_grad():
        whole = twin(model).generate(**ids, max_new_tokens=6, do_sample=False)[0]
    prompt = ids["input_ids"].shape[1]
    assert au.generate(model, ["My sister told me"], max_new_tokens=6) == [model.tokenizer.decode(whole[prompt:])]


def test_a_rehearsal_of_ndif_says_the_same(tiny: Any, shift: Any) -> None:
    options = {"max_new_tokens": 8, "repetition_penalty": 1.2}
    here, there = (
        au.generate(tiny("llama", remote=r), PROMPTS, [shift, None, -shift, shift], **options) for r in (False, "local")
    )
    assert here == there


def logits(model: Any, text: str = "The soup was") -> torch.Tensor:
    with torch.no_grad(), model.trace(encode_for(model, text)):
        found = model.output.logits.save()
    return found


def encode_for(model: Any, text: str) -> dict[str, torch.Tensor]:
    return encode(model, [text])


def test_steering_ends_with_its_context_even_on_an_error(tiny: Any, shift: Any) -> None:
    model = tiny("llama")
    before = logits(model)
    with pytest.raises(RuntimeError, match="mine"), au.steered(model, shift) as copied:
        assert not torch.equal(logits(copied), before)
        raise RuntimeError("mine")
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(copied), before)


def test_the_model_itself_is_not_steered_inside(tiny: Any, shift: Any) -> None:
    model = tiny("llama")
    before = logits(model)
    with au.steered(model, shift):
        assert torch.equal(logits(model), before)


def test_steered_generation_of_ones_own_is_steered_at_every_step(tiny: Any, shift: Any) -> None:
    model = tiny("llama")
    with au.steered(model, shift) as copied, torch.no_grad(), copied.generate(
        encode_for(model, "The soup was"), max_new_tokens=12, do_sample=False
    ) as tracer:  # fmt: skip
        ids = tracer.result.save()
    text = model.tokenizer.decode(ids[0, len(encode_for(model, "The soup was")["input_ids"][0]) :])
    assert text == au.generate(model, ["The soup was"], shift, max_new_tokens=12)[0]


def test_no_warning_reaches_the_reader(tiny: Any, shift: Any) -> None:
    model = tiny("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        au.generate(model, PROMPTS, shift, max_new_tokens=4)
        with au.steered(model, shift) as copied:
            logits(copied)


@pytest.mark.parametrize("remote", [True, "local"])
def test_a_remote_trace_inside_is_refused(tiny: Any, shift: Any, remote: bool | str) -> None:
    with au.steered(tiny("llama"), shift) as copied, pytest.raises(ValueError, match=r"use au\.generate"):
        copied.trace("The soup", remote=remote)


def test_a_remote_model_is_refused(tiny: Any, shift: Any) -> None:
    with pytest.raises(ValueError, match="works on local models"), au.steered(tiny("llama", remote="local"), shift):
        pass


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_audit_marks_what_was_edited(tiny: Any, some_units: Any, positions: str) -> None:
    model = tiny("llama")
    units = some_units(model, "attention")
    report = au.audit(model, DirectionalAUSteer(units, 3.0, positions), "The soup was warm", max_new_tokens=5)
    prompt = len(model.tokenizer("The soup was warm").input_ids)
    expected = torch.zeros(5, prompt + 5, dtype=torch.bool)
    if positions in ("all", "prompt"):
        expected[0, :prompt] = True
    if positions in ("all", "last"):
        expected[0, prompt - 1] = True
    if positions != "prompt":
        for step in range(1, 5):
            expected[step, prompt + step - 1] = True
    assert report.prompt == prompt
    assert len(report.edited) == len(units.layer.unique())
    for changed in report.edited.values():
        assert torch.equal(changed, expected)


def test_the_audit_sees_every_site_of_every_architecture(tiny: Any, some_units: Any, kind: str, site: str) -> None:
    model = tiny(kind)
    report = au.audit(model, AUSteer(some_units(model, site), 3.0), "The soup was warm", max_new_tokens=3)
    expected = torch.zeros(3, report.prompt + 3, dtype=torch.bool)
    expected[0, : report.prompt] = expected[1, report.prompt] = expected[2, report.prompt + 1] = True
    assert {place.site for place in report.edited} == {site}
    for changed in report.edited.values():
        assert torch.equal(changed, expected)


@pytest.mark.timeout(60)
def test_the_audit_of_no_operators_ends_and_is_empty(tiny: Any, shift: Any) -> None:
    report = au.audit(tiny("llama"), Steering([], shift.model, {"method": "none"}), "The soup was", max_new_tokens=3)
    assert report.edited == {}


def test_the_audit_of_no_strength_marks_nothing(tiny: Any, shift: Any) -> None:
    report = au.audit(tiny("llama"), 0 * shift, "The soup was", max_new_tokens=3)
    assert not any(changed.any() for changed in report.edited.values())
    assert "x" not in repr(report).split("\n", 1)[1].replace("attention", "")
