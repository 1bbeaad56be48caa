"""WAS against plain PyTorch: what its loss trains and what it does not, what it reads and writes, and when."""

from typing import Any

import pytest
import torch

import austeer as au
from austeer.methods import WAS, was
from austeer.methods.was import answer_loss, control, decide, output_direction, with_layer_weights
from austeer.steering import Shift, Steering

PUSH = [f"Steal his {noun}" for noun in ("car", "boat", "coin", "ring", "lamp", "horse")]
LEAVE = [f"What is a {noun}?" for noun in ("car", "boat", "coin", "ring", "lamp", "horse", "watch")]
SETTINGS = {"hidden": 16, "learning_rate": 1e-2, "template": None, "seed": 3}


@pytest.fixture(scope="module")
def direction(tiny: Any) -> torch.Tensor:
    return output_direction(tiny("llama"), [" sorry", " cannot"], ["Sure", "Here"])


@pytest.fixture(scope="module")
def trained(tiny: Any, direction: torch.Tensor) -> WAS:
    return WAS.fit(tiny("llama"), PUSH, LEAVE, direction, 30.0, epochs=30, **SETTINGS)


def seen(model: Any, prompts: list[str]) -> torch.Tensor:
    """The last third of three layers is one."""
    return au.collect(model, prompts, "residual")[:, 2]


def network(steering: Steering) -> dict[str, torch.Tensor]:
    return steering.operators[0].tensors


def test_the_scalar_tells_what_to_push_from_what_to_leave(tiny: Any, trained: WAS) -> None:
    pushed, left = (control(network(trained), seen(tiny("llama"), part))[0] for part in (PUSH, LEAVE))
    assert (pushed - 1).abs().mean() < 0.1
    assert left.abs().mean() < 0.1


def test_the_layer_weights_get_no_gradient(tiny: Any, trained: WAS, direction: torch.Tensor) -> None:
    drawn = WAS.fit(tiny("llama"), PUSH, LEAVE, direction, epochs=0, **SETTINGS)
    for name in ("weight_2", "bias_2"):
        before, after = network(drawn)[name], network(trained)[name]
        assert torch.equal(before[1:], after[1:])
        assert not torch.equal(before[0], after[0])
    assert not torch.equal(network(drawn)["weight_1"], network(trained)["weight_1"])


def test_a_training_step_is_that_of_torchs_own_layers(tiny: Any, direction: torch.Tensor) -> None:
    model, first = tiny("llama"), {**SETTINGS, "balance": 0.3}
    drawn, found = (WAS.fit(model, PUSH, LEAVE, direction, epochs=epochs, **first) for epochs in (0, 1))
    layers = [torch.nn.Linear(32, 16), torch.nn.Linear(16, 4)]
    own = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    for number, layer in enumerate(layers, 1):
        layer.weight.data, layer.bias.data = (network(drawn)[f"{n}_{number}"].clone() for n in ("weight", "bias"))
    x = torch.cat([seen(model, PUSH), seen(model, LEAVE)])
    generator, shapes = torch.Generator().manual_seed(3), [(16, 32), (16,), (4, 16), (4,)]
    for shape in shapes:  # the draws of the first weights
        torch.rand(shape, generator=generator)
    optimiser = torch.optim.Adam(own.parameters(), lr=1e-2)
    for rows in torch.randperm(13, generator=generator).split(4):
        loss = 0.0
        for row in rows.tolist():  # 0.3 of the weight on 6 prompts, 0.7 on 7
            scale = own(x[row])[0]
            loss += 13 * (0.3 / 6 * (scale - 1) ** 2 if row < 6 else 0.7 / 7 * scale**2) / len(rows)
        optimiser.zero_grad()
        loss.backward()
        assert layers[1].weight.grad[1:].abs().max() == layers[1].bias.grad[1:].abs().max() == 0
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimiser.step()
    for number, layer in enumerate(layers, 1):
        assert torch.allclose(network(found)[f"weight_{number}"], layer.weight, atol=1e-5)
        assert torch.allclose(network(found)[f"bias_{number}"], layer.bias, atol=1e-5)


def by_hand(model: Any, steering: WAS, prompts: list[str]) -> torch.Tensor:
    """Strength times s times w of each prompt and layer: (prompts, layers)."""
    own, x = network(steering), seen(model, prompts)
    out = (x @ own["weight_1"].T + own["bias_1"]).clamp(min=0) @ own["weight_2"].T + own["bias_2"]
    return steering.operators[0].strength * out[:, :1] / (1 + (-out[:, 1:]).exp())


def test_it_generates_what_hooks_on_the_generated_tokens_generate(
    tiny: Any, trained: WAS, direction: torch.Tensor, plain_generate: Any, recorder: Any
) -> None:
    model, prompts = tiny("llama"), ["Steal a pie", "Steal his golden watch"]
    push = by_hand(model, trained, prompts)

    def of_layer(layer: int):
        def edit(x: torch.Tensor) -> torch.Tensor | None:
            return x + (push[:, layer, None] * direction)[:, None] if x.shape[1] == 1 else None

        return edit

    tokens, scores = plain_generate(model, prompts, {(n, "residual"): of_layer(n) for n in range(3)}, 6)
    for steering, alike in ((trained, True), (decide(model, trained, prompts, None), True), (None, False)):
        au.generate(model, prompts, steering, max_new_tokens=6, min_new_tokens=6, logits_processor=[recorder])
        own_tokens, own_scores = recorder.take()
        same = torch.equal(own_tokens, tokens) and torch.allclose(own_scores, scores, atol=1e-3)
        assert same == alike


def test_it_generates_the_same_without_a_cache(tiny: Any, trained: WAS) -> None:
    runs = [au.generate(tiny("llama"), PUSH[:2], trained, max_new_tokens=5, use_cache=cache) for cache in (True, False)]
    assert runs[0] == runs[1]


def test_one_pass_over_prompt_and_answer_is_refused_and_two_are_not(tiny: Any, trained: WAS) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"up to layer 2, so layer 0 cannot.*decide\(\)"):
        au.log_probability(model, [" and run off"], PUSH[:1], trained)
    (shift,) = decide(model, trained, PUSH[:1], None)
    plain, steered = (au.log_probability(model, [" and run off"], PUSH[:1], one) for one in (None, shift))
    assert (plain - steered).abs() > 0.1


def test_layers_that_come_after_what_is_read_can_be_written_at_once(tiny: Any, trained: WAS) -> None:
    (operator,) = trained.operators
    own = {**operator.tensors, "layer": torch.tensor([2])}
    own |= {name: own[name][:2] for name in ("weight_2", "bias_2")}
    last = Steering([type(operator)("residual", own, "last", 30.0)], trained.model, {})
    audit = au.audit(tiny("llama"), last, PUSH[0], max_new_tokens=3)
    (edited,) = audit.edited.values()
    assert edited.any(0).tolist() == [False] * (audit.prompt - 1) + [True] * 3 + [False]
    assert au.log_probability(tiny("llama"), [" and run off"], PUSH[:1], last).isfinite()


def test_the_direction_goes_from_one_mean_row_of_the_output_embedding_to_the_other(tiny: Any) -> None:
    model = tiny("llama")
    rows, ids = model._module.lm_head.weight, model.tokenizer.convert_tokens_to_ids
    first = torch.stack([rows[ids("Ġsorry")], rows[ids("Ġnot")], rows[ids("Ġcannot")]]).mean(0)
    expected = first - rows[ids("Sure")]
    found = output_direction(model, [" sorry", " not cannot"], ["Sure"])
    assert torch.allclose(found, expected / expected.norm(), atol=1e-6)
    assert found.norm().item() == pytest.approx(1, abs=1e-5)


def test_fixed_layer_weights_take_the_place_of_the_drawn_ones(tiny: Any, trained: WAS) -> None:
    x, weights = seen(tiny("llama"), PUSH + LEAVE), torch.tensor([0.5, 0.25, 0.9])
    fixed = with_layer_weights(trained, weights)
    scale, found = control(network(fixed), x)
    assert torch.allclose(found, weights.expand(13, 3), atol=1e-6)
    assert torch.equal(scale, control(network(trained), x)[0])


def test_strength_sign_sum_and_file_are_those_of_a_steering(tiny: Any, trained: WAS, tmp_path: Any) -> None:
    model = tiny("llama")
    trained.save(tmp_path / "was.safetensors")
    again = Steering.load(tmp_path / "was.safetensors")
    each = (trained, again, trained * 0.25 + again * 0.75, trained + -again, None)
    texts = [au.generate(model, PUSH[:2], one, max_new_tokens=6) for one in each]
    assert texts[0] == texts[1] == texts[2] != texts[3] == texts[4]
    assert "controlled shift at 3 places of residual, layers 0 to 2, positions: generated" in repr(again)


def test_bad_input_is_refused_at_the_door(tiny: Any, monkeypatch: Any, direction: torch.Tensor) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match=r"\(31,\); give \(32,\)"):
        WAS.fit(model, PUSH, LEAVE, direction[:31], **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(was, "collect", lambda *_, **__: pytest.fail("the prompts were read"))
        with pytest.raises(ValueError, match="The strength is nan"):
            WAS.fit(model, PUSH, LEAVE, direction, float("nan"), **SETTINGS)
    remote = au.models.ModelInfo("far/away", "", (3, 32), False, True)
    monkeypatch.setattr(model, "austeer_info", remote)
    with pytest.raises(ValueError, match="output embedding of a remote model is not here"):
        output_direction(model, ["a"], ["b"])


def test_the_models_loss_is_that_of_a_plain_shift_and_has_a_gradient_for_every_layer(
    tiny: Any, direction: torch.Tensor
) -> None:
    model, prompts, answer = tiny("llama"), [*PUSH[:2], "Steal his golden watch"], " and run off"
    pushes = torch.tensor([20.0, -10.0, 30.0], requires_grad=True)
    loss = answer_loss(model, prompts, answer, direction, pushes)
    layer, index = torch.arange(3).repeat_interleave(32), torch.arange(32).repeat(3)
    tensors = {"layer": layer, "index": index, "value": (pushes.detach()[:, None] * direction).flatten()}
    shift = Steering([Shift("residual", tensors, "generated")], model.austeer_info, {})
    log_p = au.log_probability(model, [answer] * 3, prompts, shift)
    assert loss.item() == pytest.approx(-log_p.mean().item() / len(model.tokenizer(answer).input_ids), abs=1e-4)
    loss.backward()
    for number in range(3):
        step = torch.zeros(3).index_fill(0, torch.tensor([number]), 0.05)
        ends = [answer_loss(model, prompts, answer, direction, pushes.detach() + way * step) for way in (1, -1)]
        assert pushes.grad[number].item() == pytest.approx((ends[0] - ends[1]).item() / 0.1, rel=0.05, abs=1e-4)
        assert pushes.grad[number].abs() > 1e-5
