"""Sites: found in five architectures, read and written as plain PyTorch hooks do, weighed exactly."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, MambaConfig, MambaForCausalLM, PreTrainedModel

import austeer as au
from austeer.models import encode
from austeer.sites import SITES, Place, Sites, anatomy, projection, weight

TEXTS = ["The cat sat on the mat because it", "Once", "It was late, and the last train had left"]
WIDTHS = {  # neuron, attention; ffn and residual are the hidden size of 32
    "llama": (48, 32), "qwen3": (48, 48), "gpt2": (128, 32), "gemma2": (48, 32), "gpt_neox": (40, 32),
    "qwen2": (48, 32), "mistral": (48, 32), "gemma3_text": (48, 32),
}  # fmt: skip
UNGATED = ("gpt2", "gpt_neox")


def places(model) -> list[Place]:
    found = anatomy(model)
    return [Place(layer, site) for layer in range(found.layers) for site in SITES if site in found.widths]


def test_the_anatomy_names_blocks_and_projections(tiny, paths, kind: str) -> None:
    found = anatomy(tiny(kind))
    assert (found.blocks, found.attention, found.down) == paths[kind]


def test_the_anatomy_counts_layers_and_units(tiny, kind: str) -> None:
    found, (neuron, attention) = anatomy(tiny(kind)), WIDTHS[kind]
    assert found.layers == (3 if kind in ("llama", "qwen3") else 2)
    gate = {} if kind in UNGATED else {"gate": neuron}
    assert found.widths == {"attention": attention, **gate, "neuron": neuron, "ffn": 32, "residual": 32}


def test_the_anatomy_of_a_plain_model_is_that_of_its_nnsight_model(tiny, plain, kind: str) -> None:
    assert anatomy(plain(kind)) == anatomy(tiny(kind))


def test_the_default_model_has_the_units_that_the_book_counts(model) -> None:
    found = anatomy(model)
    assert found.layers * found.widths["attention"] == found.layers * found.widths["ffn"] == 17_280
    assert found.layers * found.widths["neuron"] == 46_080
    assert found.heads == 9


def test_the_attention_units_of_a_head_are_as_many_as_the_model_computes(tiny, kind: str) -> None:
    found = anatomy(tiny(kind))
    assert found.heads == 4
    assert found.widths["attention"] == 4 * (12 if kind == "qwen3" else 8)


def test_places_sort_in_the_order_of_the_forward_pass() -> None:
    ordered = [*(Place(0, site) for site in ("attention", "gate", "neuron", "ffn", "residual")), Place(1, "attention")]
    assert sorted(reversed(ordered), key=lambda place: place.order) == ordered


def test_reading_sees_what_a_hook_sees_at_every_site_and_layer(tiny, twin, hooked, padded, kind: str) -> None:
    model, batch, seen = tiny(kind), padded(TEXTS), {}
    wanted = places(model)
    with hooked(twin(model), {place: lambda x, place=place: seen.update({place: x.clone()}) for place in wanted}):
        twin(model)(**batch)
    with torch.no_grad(), model.trace(encode(model, TEXTS)):
        sites = Sites(model)
        read = [sites.read(place).clone() for place in wanted].save()
    for place, value in zip(wanted, read, strict=True):
        assert torch.equal(value, seen[place]), place


@pytest.mark.parametrize("kind", [kind for kind in WIDTHS if kind not in UNGATED])
def test_a_gate_times_another_map_is_the_neuron(tiny, kind: str) -> None:
    model = tiny(kind)
    with torch.no_grad(), model.trace(encode(model, TEXTS)):
        sites = Sites(model)
        gate = sites.read(Place(1, "gate")).clone().save()
        up = model.model.layers[1].mlp.up_proj.output.clone().save()
        neuron = sites.read(Place(1, "neuron")).clone().save()
    assert torch.equal(gate * up, neuron)


def test_a_model_without_gates_says_so(tiny) -> None:
    with pytest.raises(ValueError, match="no 'gate' site .* it has attention, neuron, ffn, residual"):
        anatomy(tiny("gpt2")).require("gate")


def test_a_gate_has_no_projection_and_no_weight(tiny) -> None:
    for look in (projection, weight):
        with pytest.raises(ValueError, match="a factor of its neuron"):
            look(tiny("llama"), Place(0, "gate"))


def test_a_shift_of_gates_cannot_be_baked(tiny, some_units) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="a factor of its neuron"):
        au.bake(model, au.methods.DirectionalAUSteer(some_units(model, "gate"), 1.0))


@pytest.mark.parametrize(
    ("kind", "site"), [(kind, site) for kind in WIDTHS for site in SITES if site != "gate" or kind not in UNGATED]
)
def test_writing_replaces_what_a_hook_replaces(tiny, twin, hooked, padded, kind: str, site: str) -> None:
    model, batch = tiny(kind), padded(TEXTS)
    layers = range(anatomy(model).layers)
    with hooked(twin(model), {(layer, site): lambda x: 1.5 * x.flip(-1) + 0.1 for layer in layers}):
        expected = twin(model)(**batch).logits
    with torch.no_grad(), model.trace(encode(model, TEXTS)):
        sites = Sites(model)
        for layer in layers:
            sites.write(Place(layer, site), 1.5 * sites.read(Place(layer, site)).flip(-1) + 0.1)
        logits = model.output.logits.save()
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, twin(model)(**batch).logits)


@pytest.mark.parametrize("site", ["attention", "neuron"])
def test_units_times_weights_are_the_projections_output(tiny, plain, hooked, paths, kind: str, site: str) -> None:
    model, module, seen = tiny(kind, torch.float64), plain(kind, torch.float64), {}
    blocks, attention, down = paths[kind]
    linear = module.get_submodule(f"{blocks}.1.{attention if site == 'attention' else down}")
    linear.register_forward_hook(lambda _, given, output: seen.update(x=given[0], y=output))
    with torch.no_grad():
        module(**encode(model, TEXTS[:1]))
    columns = weight(model, Place(1, site))
    written = sum(seen["x"][..., i, None] * columns[:, i] for i in range(columns.shape[1]))
    expected = seen["y"] - (0 if linear.bias is None else linear.bias)
    assert torch.allclose(written, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("site", ["ffn", "residual"])
def test_an_output_unit_writes_itself(tiny, kind: str, site: str) -> None:
    assert torch.equal(weight(tiny(kind), Place(0, site)), torch.eye(32))


def test_a_projection_is_found_in_a_plain_model_too(plain, kind: str, paths) -> None:
    module, (blocks, _, down) = plain(kind), paths[kind]
    assert projection(module, Place(1, "neuron")) is module.get_submodule(f"{blocks}.1.{down}")


def test_the_residual_site_has_no_projection(tiny) -> None:
    with pytest.raises(ValueError, match="no projection"):
        projection(tiny("llama"), Place(0, "residual"))


def test_an_unknown_site_is_refused_with_the_known_ones(tiny) -> None:
    with pytest.raises(ValueError, match="'head'; give one of attention, gate, neuron, ffn, residual"):
        anatomy(tiny("llama")).require("head")


def test_a_model_without_blocks_is_refused() -> None:
    class Blockless(PreTrainedModel):
        config_class = LlamaConfig

        def __init__(self, config: LlamaConfig):
            super().__init__(config)
            self.only = torch.nn.Linear(4, 4)

    with pytest.raises(ValueError, match="no list of 3 decoder blocks"):
        anatomy(Blockless(LlamaConfig(num_hidden_layers=3)))


def test_a_model_without_attention_says_which_sites_it_has() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2))
    assert anatomy(mamba).heads == 0
    with pytest.raises(ValueError, match="no 'attention' site .* it has residual"):
        anatomy(mamba).require("attention")
