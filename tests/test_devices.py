"""Any device, any dtype, any amount of memory: what is proved without a GPU, and what needs one.

A tensor that is left on another device fails on the `meta` device as it does on a GPU, so that most of this runs here.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nnsight import TransformersModel

import austeer as au
from austeer.activations import last_tokens
from austeer.data import ContrastivePair
from austeer.diagnostics import sweep, turned_up
from austeer.generation import quiet
from austeer.methods import AUSteer, DirectionalAUSteer
from austeer.models import encode, info
from austeer.sites import Place, Sites, anatomy
from austeer.steering import apply

PROMPTS = ["Hello", "My sister told me", "When the train arrived at noon", "The soup", "Two birds and", "On the way"]
PAIRS = [
    ContrastivePair(f"{opening} {number}", " was wonderful", " was awful and cold", f"t{number % 5}")
    for number, opening in enumerate(PROMPTS * 4)
]
DTYPES = [torch.bfloat16, torch.float16]


@contextmanager
def memory_for(rows: int, model: Any) -> Iterator[list[int]]:
    """A model that has memory for so many rows; gives the sizes of the batches that fitted."""
    seen: list[int] = []

    def refuse(_, given: tuple) -> None:
        if len(given[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much.")
        seen.append(len(given[0]))

    handle = model._module.model.layers[0].mlp.register_forward_pre_hook(refuse)
    try:
        yield seen
    finally:
        handle.remove()


# Batches that are too large


JOBS: dict[str, Callable[[Any, Any], Any]] = {
    "collect": lambda model, _: au.collect(model, PROMPTS),
    "momentum": lambda model, _: au.activation_momentum(model, PAIRS).higher.sum(0),
    "generate": lambda model, steering: au.generate(
        model, PROMPTS, [steering, None, -steering] * 2, max_new_tokens=5, repetition_penalty=1.2
    ),
    "perplexity": lambda model, steering: au.perplexity(model, PROMPTS, steering=steering),
    "kl": lambda model, steering: au.kl(model, PROMPTS, steering),
    "sweep": lambda model, _: sweep(
        model,
        PROMPTS,
        Place(0, "attention"),
        turned_up(anatomy(model).widths["attention"], [[i] for i in range(8)], 3.0),
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_batch_is_halved_until_it_fits_and_says_so_once(tiny: Any, some_units: Any, job: str) -> None:
    model = tiny("llama")
    steering = DirectionalAUSteer(some_units(model, "attention"), 3.0)
    expected = JOBS[job](model, steering)
    with memory_for(2, model) as seen, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = JOBS[job](model, steering)
    assert max(seen) <= 2
    assert len([one for one in said if "memory is too small" in str(one.message)]) == 1
    if isinstance(found, list):
        assert found == expected
    else:
        assert torch.allclose(found.double(), expected.double(), atol=1e-4, equal_nan=True)


def test_later_batches_start_with_the_size_that_fitted(tiny: Any) -> None:
    model, tried = tiny("llama"), []
    handle = model._module.model.embed_tokens.register_forward_pre_hook(lambda _, given: tried.append(len(given[0])))
    with memory_for(8, model), pytest.warns(UserWarning, match="too small for 10 rows.* goes on with 5"):
        au.activation_momentum(model, PAIRS, tokens_per_pass=160)
    handle.remove()
    assert sum(size > 8 for size in tried) == 1


def test_the_size_in_the_message_is_the_one_that_fits(tiny: Any) -> None:
    model = tiny("llama")
    with memory_for(2, model), pytest.warns(UserWarning, match=r"too small for 6 rows in one pass.* goes on with 2"):
        au.collect(model, PROMPTS)


def test_a_row_that_does_not_fit_alone_is_an_error(tiny: Any) -> None:
    model = tiny("llama")
    with memory_for(0, model), pytest.raises(torch.OutOfMemoryError):
        au.collect(model, PROMPTS)


# The meta device


def on_meta(model: Any) -> Any:
    """The same model without weights, as `remote=True` has it, but with traces that run here."""
    config = copy.deepcopy(model._module.config)  # its attention is changed below, and tests share the model
    with torch.device("meta"):
        module = type(model._module)(config).to(model._module.dtype).eval().requires_grad_(False)
    module.set_attn_implementation("eager")  # the others look at the mask's values
    bare = TransformersModel(module, tokenizer=model.tokenizer, task="text-generation", device="meta")
    bare.tokenizer, bare.austeer_info = model.tokenizer, info(model)
    return bare


def test_a_steered_pass_leaves_nothing_on_another_device(
    tiny: Any, some_units: Any, padded: Any, kind: str, site: str
) -> None:
    model = tiny(kind)
    units = some_units(model, site)
    parts = [
        (slice(None), AUSteer(units, 2.0).operators),
        (torch.tensor([0]), DirectionalAUSteer(units, 2.0, "last").operators),
    ]
    bare = on_meta(model)
    batch = {name: tensor.to("meta") for name, tensor in padded(PROMPTS[:2]).items()}
    with torch.no_grad(), quiet(), bare.trace(use_cache=False) as tracer:
        with tracer.invoke(batch):
            apply(bare, tracer, parts)
        with tracer.invoke():
            logits = bare.output.logits.save()
    assert logits.device.type == "meta"


def test_a_model_on_two_devices_is_steered_on_both(plain: Any, tokenizer: Any, some_units: Any) -> None:
    module = plain("llama", attn_implementation="eager")
    last = module.model.layers[2]

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    model = au.load(module, tokenizer=tokenizer)
    for part in (last, module.model.norm, module.lm_head):
        part.to("meta")
    last.register_forward_pre_hook(
        lambda _, given, named: (move(given), {name: move(value) for name, value in named.items()}), with_kwargs=True
    )
    units = some_units(model, "residual", k=40)
    assert units.layer.unique().tolist() == [0, 1, 2]
    with torch.no_grad(), quiet(), model.trace(use_cache=False) as tracer:
        with tracer.invoke(encode(model, PROMPTS)):
            apply(model, tracer, [(slice(None), DirectionalAUSteer(units, 2.0).operators)])
        with tracer.invoke():
            sites = Sites(model)
            devices = [sites.read(Place(layer, "residual")).device.type for layer in range(3)].save()
    assert devices == ["cpu", "cpu", "meta"]
    # All layers' activations were brought together before they are copied to the CPU, which "meta" alone cannot do.
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        last_tokens(model, [([0], encode(model, PROMPTS[:1]), torch.tensor([[-1]]))], "residual")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_baking_happens_where_the_weights_are(tiny: Any, some_units: Any, kind: str) -> None:
    model = tiny(kind)
    steering = DirectionalAUSteer(some_units(model, "neuron"), 1.0) + AUSteer(some_units(model, "attention"), 1.0)
    baked = au.bake(on_meta(model), steering)
    assert {weight.device.type for weight in baked.parameters()} == {"meta"}


def test_70_billion_parameters_are_described_without_one_of_them() -> None:
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(config)
    found = anatomy(module)
    assert (found.layers, found.heads) == (80, 64)
    assert found.widths == {"attention": 8192, "gate": 28672, "neuron": 28672, "ffn": 8192, "residual": 8192}
    assert sum(weight.numel() for weight in module.parameters()) == 70_553_706_496


# Dtypes


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_is_added_up_in_double_precision(tiny: Any, dtype: torch.dtype, site: str) -> None:
    model = tiny("llama", dtype)
    positive, negative = au.collect(model, PAIRS, site)
    found = au.activation_momentum(model, PAIRS, site)
    assert torch.equal(found.total.sum(0), (positive.double() - negative.double()).sum(0))
    assert torch.equal(found.higher.sum(0), (positive > negative).sum(0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_momentum_in_half_precision_is_near_that_of_float32(plain: Any, tokenizer: Any, dtype: torch.dtype) -> None:
    # The same rounded weights in both: what differs is the arithmetic of the pass.
    half = au.load(plain("llama", dtype), tokenizer=tokenizer)
    full = au.load(plain("llama", dtype), tokenizer=tokenizer, dtype="float32")
    one, other = (au.activation_momentum(model, PAIRS) for model in (half, full))
    spread = other.mean_difference.std()
    assert (one.beta - other.beta).abs().median() < 0.05
    assert ((one.mean_difference - other.mean_difference).abs() < 0.05 * spread).float().mean() > 0.9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_displacement_is_added_in_float32_and_rounded_once(
    plain: Any, tokenizer: Any, some_units: Any, dtype: torch.dtype, device: str
) -> None:
    model = au.load(plain("llama", dtype), tokenizer=tokenizer, device=device)
    units = some_units(model, "ffn", k=30)
    # A thousand steps that are each below the spacing of the dtype add up to one that is not.
    small = DirectionalAUSteer(units, 1e-3)
    steering = au.Steering(small.operators * 1000, info(model), small.about)
    place, batch = Place(int(units.layer.min()), "ffn"), encode(model, PROMPTS[:1])
    here = units.layer == place.layer
    with torch.no_grad(), model.trace(batch):
        plain_x = Sites(model).read(place).clone().save()
    with au.steered(model, steering) as copied, torch.no_grad(), copied.trace(batch):
        found = Sites(copied).read(place).clone().save()
    expected = plain_x.float()
    index = units.index[here].to(expected.device)
    expected[..., index] += units.mean_difference[here].to(expected.device)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_a_steering_fits_the_model_in_any_dtype(tiny: Any, some_units: Any) -> None:
    steering = AUSteer(some_units(tiny("llama"), "attention"), 2.0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = tiny("llama", dtype)
        with au.steered(model, steering) as copied, torch.no_grad(), copied.trace(encode(model, PROMPTS)):
            logits = copied.output.logits.save()
        assert logits.dtype == dtype
        assert logits.isfinite().all()


# Loading onto devices


def test_auto_loads_the_same_model_where_there_is_one_device_only(plain: Any, tokenizer: Any, tmp_path: Path) -> None:
    plain("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    spread, whole = au.load(tmp_path, device="auto"), au.load(tmp_path)
    assert info(spread) == info(whole)
    said = [au.generate(model, PROMPTS[:2], max_new_tokens=3) for model in (spread, whole)]
    if not torch.cuda.is_available():
        assert said[0] == said[1]


def test_a_model_stays_on_the_cpu_of_a_machine_that_has_a_gpu(
    plain: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.pipelines.base, "is_torch_cuda_available", lambda: True)
    model = au.load(plain("llama"), tokenizer=tokenizer)  # moving it to "cuda:0" would fail
    assert model._module.device.type == "cpu"


def test_auto_is_refused_for_weights_that_lie_somewhere_already(plain: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="places weights while they are loaded"):
        au.load(plain("llama"), tokenizer=tokenizer, device="auto")


def test_a_model_that_does_not_fit_on_all_devices_is_refused(
    plain: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    there = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    there.lm_head.to("meta")  # as accelerate leaves what it keeps on the disk
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: there)
    with pytest.raises(ValueError, match="does not fit on the devices here"):
        au.load(tmp_path, device="auto")


def test_no_file_of_the_library_names_cuda_but_the_one_that_loads() -> None:
    library = Path(au.__file__).parent
    named = {path.name for path in library.rglob("*.py") if "cuda" in path.read_text("utf-8").lower()}
    assert named == {"models.py"}


# With a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("job", JOBS)
def test_a_gpu_gives_what_the_cpu_gives(plain: Any, tokenizer: Any, some_units: Any, job: str) -> None:
    here, there = (au.load(plain("llama"), tokenizer=tokenizer, device=device) for device in ("cpu", "cuda"))
    steering = DirectionalAUSteer(some_units(here, "attention"), 3.0)
    found, expected = JOBS[job](there, steering), JOBS[job](here, steering)
    if isinstance(found, list):
        assert found == expected
    else:
        assert torch.allclose(found.double(), expected.double(), atol=1e-2, equal_nan=True)


@pytest.mark.cuda
def test_a_gpu_bakes_what_the_cpu_bakes(plain: Any, tokenizer: Any, some_units: Any) -> None:
    here, there = (au.load(plain("llama"), tokenizer=tokenizer, device=device) for device in ("cpu", "cuda"))
    steering = DirectionalAUSteer(some_units(here, "neuron"), 3.0) + AUSteer(some_units(here, "attention"), 3.0)
    for one, other in zip(au.bake(here, steering).parameters(), au.bake(there, steering).parameters(), strict=True):
        assert torch.allclose(one, other.cpu(), atol=1e-6)
