"""Diagnostics: what units write, their share of a logit, their effect alone, all against plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import austeer as au
from austeer.diagnostics import (
    LogitContributions,
    logit_contributions,
    sweep,
    token_id,
    top_tokens,
    turned_up,
    unembed,
    written_logits,
)
from austeer.models import encode
from austeer.sites import Place, anatomy

PROMPTS = [
    "Once",  # one token: nothing to read before it
    "The capital of France is",
    "It was late, and the last train had left the small station where my brother and I had been waiting since noon",
]
WINDOW = 16  # Gemma 2's sliding window in conftest.py
ADDING = ["llama", "qwen3", "gpt2", "gpt_neox"]  # their blocks add what their units write as it is


@pytest.fixture(scope="module")
def lively(plain: Any, tokenizer: Any) -> Any:
    """Gives a tiny model whose gains and biases are random: fresh ones are all 1 and 0, and hide mistakes."""
    made: dict[tuple[str, torch.dtype], Any] = {}

    def give(kind: str, dtype: torch.dtype = torch.float64) -> Any:
        if (kind, dtype) not in made:
            module, generator = plain(kind, dtype), torch.Generator().manual_seed(1)
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
            made[kind, dtype] = au.load(module, tokenizer=tokenizer)
        return made[kind, dtype]

    return give


def steered_logits(twin: Any, hooked: Any, model: Any, prompt: str, place: Place, factor: Tensor) -> Tensor:
    """(rows, vocabulary) at the last token: the whole prompt through a plain model, once for each row of `factor`."""

    def multiply_last(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], x[:, -1:] * factor[:, None]], 1)

    module, ids = twin(model), encode(model, [prompt])["input_ids"]
    with hooked(module, {place: multiply_last}):
        return module(ids.expand(len(factor), -1), logits_to_keep=1).logits[:, 0]


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the range of the logits."""
    return ((found - expected).abs().max() / (expected.max() - expected.min())).item()


def total(split: LogitContributions) -> float:
    return split.attention.sum().item() + split.neuron.sum().item() + split.remainder


def test_the_prompts_reach_the_edge_cases(model: Any) -> None:
    lengths = [encode(model, [prompt])["input_ids"].shape[1] for prompt in PROMPTS]
    assert lengths[0] == 1 and 1 < lengths[1] < WINDOW < lengths[2] - 1


@pytest.mark.parametrize("end", ["first", "last"])
def test_a_sweep_is_a_hook_on_the_last_token(tiny: Any, twin: Any, hooked: Any, kind: str, site: str, end: str) -> None:
    model = tiny(kind)
    found = anatomy(model)
    place = Place(0 if end == "first" else found.layers - 1, site)
    factor = turned_up(found.widths[site], [[0], [7], [31], [1, 2, 30], []], -4.0)
    hidden = sweep(model, PROMPTS, place, factor)
    assert hidden.shape == (3, 5, 32) and hidden.dtype == torch.float32
    for prompt, rows in zip(PROMPTS, unembed(model, hidden), strict=True):
        expected = steered_logits(twin, hooked, model, prompt, place, factor)
        assert apart(rows, expected) < 1e-5
        assert all(apart(row, expected[-1]) > 2e-5 for row in expected[:-1])  # every row but the empty set acts


def test_a_sweep_of_the_default_model_is_a_hook_on_the_last_token(model: Any, twin: Any, hooked: Any) -> None:
    place, factor = Place(15, "attention"), turned_up(576, [[3], [200], [575], []], 5.0)
    for prompt, rows in zip(PROMPTS, unembed(model, sweep(model, PROMPTS, place, factor)), strict=True):
        assert apart(rows, steered_logits(twin, hooked, model, prompt, place, factor)) < 1e-4


def test_every_prompt_of_a_sweep_is_on_its_own(tiny: Any) -> None:
    model, place, factor = tiny("gemma2"), Place(1, "neuron"), turned_up(48, [[5], [9]], 3.0)
    alone = torch.cat([sweep(model, [prompt], place, factor) for prompt in reversed(PROMPTS)])
    assert torch.equal(sweep(model, PROMPTS, place, factor), alone.flip(0))


@pytest.mark.parametrize("rows_per_pass", [1, 3])
def test_batching_a_sweep_changes_nothing_beyond_rounding(tiny: Any, kind: str, rows_per_pass: int) -> None:
    model, place, factor = tiny(kind), Place(1, "ffn"), turned_up(32, [[i] for i in range(8)], 5.0)
    found = sweep(model, PROMPTS, place, factor, rows_per_pass=rows_per_pass)
    assert torch.allclose(found, sweep(model, PROMPTS, place, factor), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "factor",
    [
        torch.ones(2, 31), torch.ones(32), torch.ones(0, 32), torch.full((1, 32), torch.nan),
        torch.full((1, 32), torch.inf),
    ],
)  # fmt: skip
def test_a_factor_of_another_width_without_rows_or_not_finite_is_refused(tiny: Any, factor: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give finite numbers of shape \(rows, 32\)"):
        sweep(tiny("llama"), PROMPTS, Place(0, "attention"), factor)


def test_a_sweep_of_a_remote_model_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="works on local models"):
        sweep(tiny("llama", remote="local"), PROMPTS, Place(0, "attention"), torch.ones(1, 32))


def test_one_string_in_place_of_prompts_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="is one string; give a list"):
        sweep(tiny("llama"), PROMPTS[1], Place(0, "attention"), torch.ones(1, 32))


def test_a_bad_prompt_is_refused_before_the_others_are_swept(tiny: Any) -> None:
    model, read = tiny("llama"), []
    handle = model._module.register_forward_pre_hook(lambda *_: read.append(1))
    try:
        with pytest.raises(ValueError, match="'' is not a text"):
            sweep(model, [*PROMPTS, ""], Place(0, "attention"), torch.ones(1, 32))
        assert not read
        sweep(model, PROMPTS[:1], Place(0, "attention"), torch.ones(1, 32))
        assert read  # the hook does see a sweep
    finally:
        handle.remove()


def test_turned_up_multiplies_the_units_of_each_set() -> None:
    expected = torch.tensor([[1.0, 5.0, 1.0, 1.0], [5.0, 1.0, 1.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(turned_up(4, [[1], [0, 3], []], 5.0), expected)


def test_unembedding_gives_the_models_own_logits(tiny: Any, twin: Any, kind: str) -> None:
    model = tiny(kind)
    with torch.no_grad():
        output = twin(model)(encode(model, PROMPTS[2:])["input_ids"], output_hidden_states=True)
    logits = unembed(model, output.hidden_states[-1])  # transformers has applied the final norm to the last
    assert logits.shape == output.logits.shape
    assert torch.allclose(logits, output.logits, rtol=0, atol=1e-5)


def test_unembedding_caps_the_logits_of_gemma(tiny: Any) -> None:
    model, hidden = tiny("gemma2"), torch.full((32,), 100.0)
    plain = model._module.lm_head.weight @ hidden
    assert plain.abs().max() > 100
    assert torch.allclose(unembed(model, hidden), 30 * torch.tanh(plain / 30), rtol=0, atol=1e-4)


def test_unembedding_gives_only_the_tokens_asked_for(tiny: Any, kind: str) -> None:
    model, hidden = tiny(kind), torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(unembed(model, hidden, [7, 3]), unembed(model, hidden)[..., [7, 3]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ADDING)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_units_and_remainder_sum_to_the_logit(lively: Any, twin: Any, kind: str, prompt: str) -> None:
    model = lively(kind)
    found, split = anatomy(model), logit_contributions(model, prompt, " Paris")
    with torch.no_grad():
        logit = twin(model)(encode(model, [prompt])["input_ids"]).logits[0, -1, token_id(model, " Paris")].item()
    assert split.logit == pytest.approx(logit, abs=1e-12)
    assert total(split) == pytest.approx(logit, abs=1e-5)  # transformers computes RMSNorms in float32
    assert split.attention.shape == (found.layers, found.widths["attention"])
    assert split.neuron.shape == (found.layers, found.widths["neuron"])


def test_units_and_remainder_sum_to_the_logit_of_the_default_model(model: Any, twin: Any) -> None:
    split = logit_contributions(model, PROMPTS[1], " Paris", " London")
    with torch.no_grad():
        logits = twin(model)(encode(model, PROMPTS[1:2])["input_ids"]).logits[0, -1]
    paris, london = token_id(model, " Paris"), token_id(model, " London")
    assert split.logit == pytest.approx((logits[paris] - logits[london]).item(), abs=1e-3)
    assert total(split) == pytest.approx(split.logit, abs=1e-3)


def test_contributions_of_llama_are_those_computed_by_hand(lively: Any, twin: Any, hooked: Any) -> None:
    model, token, seen = lively("llama"), " Paris", {}
    module = twin(model)
    look = {(1, "attention"): "attention", (1, "neuron"): "neuron", (2, "residual"): "end"}
    ids = encode(model, PROMPTS[1:2])["input_ids"]
    with hooked(module, {place: lambda x, name=name: seen.update({name: x[0, -1]}) for place, name in look.items()}):
        module(ids)
    size = (seen["end"].pow(2).mean() + module.config.rms_norm_eps).sqrt()
    row = module.lm_head.weight[token_id(model, token)]

    def adds(vector: Tensor) -> float:
        return (vector / size * module.model.norm.weight @ row).item()

    split, layer = logit_contributions(model, PROMPTS[1], token), module.model.layers[1]
    attention = seen["attention"][5] * layer.self_attn.o_proj.weight[:, 5]
    neuron = seen["neuron"][40] * layer.mlp.down_proj.weight[:, 40]
    embedding = module.model.embed_tokens.weight[ids[0, -1]]
    assert split.attention[1, 5].item() == pytest.approx(adds(attention), abs=1e-5)
    assert split.neuron[1, 40].item() == pytest.approx(adds(neuron), abs=1e-5)
    assert split.remainder == pytest.approx(adds(embedding), abs=1e-5)
    assert min(abs(adds(vector)) for vector in (attention, neuron, embedding)) > 1e-3


def test_contributions_of_gpt2_are_those_computed_by_hand(lively: Any, twin: Any, hooked: Any) -> None:
    # LayerNorm takes the mean out of what a unit writes, too.
    model, seen = lively("gpt2"), {}
    module, ids = twin(model), encode(model, PROMPTS[1:2])["input_ids"]
    look = {(0, "attention"): "x", (1, "residual"): "end"}
    with hooked(module, {place: lambda x, name=name: seen.update({name: x[0, -1]}) for place, name in look.items()}):
        module(ids)
    norm = module.transformer.ln_f
    size = (seen["end"].var(unbiased=False) + norm.eps).sqrt()
    wrote = seen["x"][5] * module.transformer.h[0].attn.c_proj.weight[5]
    expected = (wrote - wrote.mean()) / size * norm.weight @ module.lm_head.weight[token_id(model, " Paris")]
    split = logit_contributions(model, PROMPTS[1], " Paris")
    assert split.attention[0, 5].item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("kind", ADDING)
def test_against_is_the_difference_of_two_splits_and_swapping_turns_the_signs(lively: Any, kind: str) -> None:
    model = lively(kind)
    paris, london = (logit_contributions(model, PROMPTS[1], token) for token in (" Paris", " London"))
    both = logit_contributions(model, PROMPTS[1], " Paris", " London")
    swapped = logit_contributions(model, PROMPTS[1], " London", " Paris")
    for part in ("attention", "neuron", "remainder", "logit"):
        found, expected = (
            torch.as_tensor(x) for x in (getattr(both, part), getattr(paris, part) - getattr(london, part))
        )
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        assert torch.allclose(torch.as_tensor(getattr(swapped, part)), -found, rtol=0, atol=1e-9)


def test_a_bias_of_the_unembedding_is_counted(plain: Any, tokenizer: Any) -> None:
    module = plain("llama", torch.float64)
    module.lm_head.bias = torch.nn.Parameter(torch.linspace(-5, 5, 49152, dtype=torch.float64))
    model = au.load(module, tokenizer=tokenizer)
    split = logit_contributions(model, PROMPTS[1], " Paris", " London")
    with torch.no_grad():
        output = module(encode(model, PROMPTS[1:2])["input_ids"], output_hidden_states=True)
    paris, london = output.logits[0, -1, [token_id(model, " Paris"), token_id(model, " London")]].tolist()
    assert total(split) == pytest.approx(paris - london, abs=1e-5)
    assert torch.allclose(unembed(model, output.hidden_states[-1].float()).double(), output.logits, rtol=0, atol=1e-5)


def test_contributions_are_the_same_in_a_rehearsal_of_a_remote_trace(tiny: Any) -> None:
    here, there = (logit_contributions(tiny("llama", remote=r), PROMPTS[1], " Paris") for r in (False, "local"))
    assert torch.equal(here.attention, there.attention) and torch.equal(here.neuron, there.neuron)


@pytest.mark.parametrize("token", [" Paris", " Town", " just", " sh"])  # the sum is within 1% of some of the logits
def test_a_model_that_normalises_what_units_write_is_refused(tiny: Any, token: str) -> None:
    with pytest.raises(ValueError, match="units of Gemma2ForCausalLM do not sum to its logits"):
        logit_contributions(tiny("gemma2"), "The cat sat", token)


def test_a_head_that_transforms_its_logits_is_refused(plain: Any, tokenizer: Any) -> None:
    module = plain("llama")
    module.lm_head.register_forward_hook(lambda _, given, logits: logits / 4)
    with pytest.raises(ValueError, match="do not sum to its logits"):
        logit_contributions(au.load(module, tokenizer=tokenizer), PROMPTS[1], " Paris")


@pytest.mark.parametrize("token", [" Rome", " cat", " is", " was"])  # small differences of large logits
def test_the_rounding_of_bfloat16_is_not_mistaken_for_a_model_that_transforms(tiny: Any, token: str) -> None:
    model = tiny("llama", torch.bfloat16)
    split = logit_contributions(model, PROMPTS[1], " Paris", token)
    assert total(split) == pytest.approx(split.logit, abs=0.1)


def test_a_text_of_several_tokens_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="' Paris London' is 2 tokens"):
        logit_contributions(tiny("llama"), PROMPTS[1], " Paris London")
    with pytest.raises(ValueError, match="' Paris London' is 2 tokens"):
        logit_contributions(tiny("llama"), PROMPTS[1], " Paris", " Paris London")


def test_the_top_units_are_the_largest_of_both_sites() -> None:
    attention = torch.tensor([[0.1, -5.0], [2.0, 0.0]], dtype=torch.float64)
    neuron = torch.tensor([[0.2, 0.3, 0.4], [0.5, 3.0, -4.0]], dtype=torch.float64)
    split = LogitContributions(attention, neuron, remainder=9.0, logit=6.5)
    assert split.top(5) == [
        (Place(0, "attention"), 1, -5.0),
        (Place(1, "neuron"), 2, -4.0),
        (Place(1, "neuron"), 1, 3.0),
        (Place(1, "attention"), 0, 2.0),
        (Place(1, "neuron"), 0, 0.5),
    ]


@pytest.mark.parametrize("index", [[3, 0, 9], torch.tensor([3, 0, 9]), slice(2, 5)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("site", ["attention", "neuron", "ffn"])
def test_what_units_write_is_their_slices_through_gain_and_unembedding(
    lively: Any, twin: Any, kind: str, site: str, index: Any
) -> None:
    model = lively(kind, torch.float32)
    module = twin(model)
    if kind == "gpt2":
        block, gain = module.transformer.h[1], module.transformer.ln_f.weight
        slices = {"attention": block.attn.c_proj.weight, "neuron": block.mlp.c_proj.weight, "ffn": torch.eye(32)}[site]
        slices = slices - slices.mean(1, keepdim=True)
    else:
        block, gain = module.model.layers[1], module.model.norm.weight + (1 if kind == "gemma2" else 0)
        projections = {"attention": block.self_attn.o_proj.weight, "neuron": block.mlp.down_proj.weight}
        slices = projections.get(site, torch.eye(32)).T
    expected = (gain * slices[index]) @ module.lm_head.weight.T
    found = written_logits(model, Place(1, site), index)
    assert found.shape == (3, 49152) and found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_all_units_of_a_place_are_the_default(lively: Any) -> None:
    model, place = lively("llama", torch.float32), Place(0, "neuron")
    assert torch.equal(written_logits(model, place), written_logits(model, place, list(range(48))))


def test_top_tokens_are_those_with_the_largest_logits_as_text(model: Any) -> None:
    paris, london, rome = (model.tokenizer(text).input_ids[0] for text in (" Paris", " London", " Rome"))
    logits = torch.zeros(2, 49152)
    logits[0, [london, paris, rome]] = torch.tensor([1.0, 3.0, 2.0])
    logits[1] = -9.0
    logits[1, [london, rome]] = torch.tensor([-1.0, -2.0])
    assert top_tokens(model, logits, 2) == [[" Paris", " Rome"], [" London", " Rome"]]


def test_a_token_is_found_by_its_text(model: Any) -> None:
    found = token_id(model, " Paris")
    assert model.tokenizer.convert_ids_to_tokens(found) == "ĠParis"


@pytest.mark.parametrize(
    ("text", "message"), [(" Paris London", r"is 2 tokens \(\[' Paris', ' London'\]\)"), ("", "is 0 tokens")]
)
def test_a_text_that_is_not_one_token_is_refused(model: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_id(model, text)
