"""AlphaSteer against numpy's solvers and plain hooks: null space, ridge solution, where and when it pushes."""

from typing import Any

import numpy as np
import pytest
import torch

import austeer as au
from austeer.methods import AlphaSteer, alphasteer
from austeer.methods.alphasteer import null_space, ridge_gate

BENIGN = [
    f"{verb} the {noun}."
    for verb in ("Wash", "Buy", "Draw", "Name", "Mend")
    for noun in ["sea", "bus", "cat", "pie", "sun", "tea", "shoe", "hill", "bed", "jar"]
]
HARMFUL = [f"Steal his {noun} and run" for noun in ["car", "boat", "coin", "ring", "lamp", "horse", "watch", "clock"]]
PAIRS = [au.ContrastivePair("Do it", f" no, {thing}.", f" yes, {thing}.", topic=thing) for thing in "abcdef"]


def activations(texts: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(texts, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted(tiny: Any) -> AlphaSteer:
    model = tiny("llama")
    momentum = au.activation_momentum(model, PAIRS, "residual")
    return AlphaSteer.fit(model, BENIGN, HARMFUL, momentum, [0, 1], 40.0, share=0.6, ridge=0.1, template=None)


def pushes(fitted: AlphaSteer) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Each layer's gate and its vector times the strength."""
    (operator,) = fitted.operators
    columns = (operator.tensors[name] for name in ("layer", "gate", "vector"))
    return {layer.item(): (gate, operator.strength * vector) for layer, gate, vector in zip(*columns, strict=True)}


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_the_null_space_is_that_of_numpys_singular_vectors(share: float) -> None:
    benign = activations(60, 20, 0) @ torch.diag(torch.logspace(0, -3, 20, dtype=torch.float64))
    basis = null_space(benign.T @ benign, share)
    _, _, rows = np.linalg.svd(benign.numpy())
    last = rows[20 - int(20 * share) :]
    assert np.allclose(basis @ basis.T, last.T @ last, atol=1e-9)
    assert torch.allclose(basis.T @ basis, torch.eye(int(20 * share), dtype=torch.float64), atol=1e-12)


def test_the_gate_is_the_papers_matrix_in_two_vectors() -> None:
    benign, harmful, vector = activations(60, 20, 0), activations(30, 20, 1).numpy(), activations(1, 20, 2)[0].numpy()
    basis = null_space(benign.T @ benign, 0.6)
    gate = ridge_gate(torch.from_numpy(harmful), basis, 10.0).numpy()
    projector = (basis @ basis.T).numpy()
    x, target = harmful @ projector, np.tile(vector, (30, 1))
    delta = np.linalg.pinv(x.T @ x + 10.0 * projector.T @ projector) @ x.T @ target
    assert np.allclose(projector @ delta, np.outer(gate, vector), atol=1e-10)
    assert np.linalg.matrix_rank(projector @ delta, tol=1e-8) == 1


def test_the_gate_is_the_ridge_solution_of_numpys_least_squares() -> None:
    harmful = activations(30, 20, 1)
    basis = null_space(torch.diag(torch.arange(20.0)), 0.5)
    rows = np.vstack([(harmful @ basis).numpy(), 10.0**0.5 * np.eye(10)])
    solution = np.linalg.lstsq(rows, np.r_[np.ones(30), np.zeros(10)], rcond=None)[0]
    assert np.allclose(ridge_gate(harmful, basis, 10.0), basis.numpy() @ solution, atol=1e-10)


def test_the_gate_does_not_see_texts_outside_the_null_space() -> None:
    benign = activations(60, 8, 0) @ activations(8, 20, 3)  # 12 dimensions are left
    basis = null_space(benign.T @ benign, 0.6)
    gate = ridge_gate(activations(30, 20, 1), basis, 0.1)
    assert (benign @ gate).abs().max() < 1e-9 < 0.1 < (activations(30, 20, 1) @ gate).mean()


def test_a_fit_solves_on_the_models_own_activations(tiny: Any, fitted: AlphaSteer) -> None:
    model = tiny("llama")
    benign, harmful = (au.collect(model, texts, "residual").double() for texts in (BENIGN, HARMFUL))
    momentum = au.activation_momentum(model, PAIRS, "residual")
    for layer, (gate, vector) in pushes(fitted).items():
        basis = null_space(benign[:, layer].T @ benign[:, layer], 0.6)
        expected = ridge_gate(harmful[:, layer], basis, 0.1)
        assert torch.allclose(gate, expected.float(), rtol=1e-4, atol=1e-6)
        assert torch.allclose(vector, 40.0 * momentum.mean_difference[layer])
    assert fitted.about["method"] == "AlphaSteer"
    assert (fitted.about["benign"], fitted.about["harmful"]) == (50, 8)


def edits(fitted: AlphaSteer, last: torch.Tensor | None = None) -> dict:
    """The same as hooks: the prompts end in the last column of the first pass, later passes have one."""

    def of_layer(gate: torch.Tensor, vector: torch.Tensor):
        def edit(x: torch.Tensor) -> torch.Tensor | None:
            return None if x.shape[1] == 1 else x + (x[:, -1] @ gate)[:, None, None] * vector

        return edit

    return {(layer, "residual"): of_layer(*push) for layer, push in pushes(fitted).items()}


@pytest.mark.parametrize("use_cache", [True, False])
def test_it_generates_what_a_hook_on_the_prompt_generates(
    tiny: Any, fitted: AlphaSteer, plain_generate: Any, recorder: Any, use_cache: bool
) -> None:
    model, prompts = tiny("llama"), ["Steal his pie", "Steal his boat and run away"]
    tokens, scores = plain_generate(model, prompts, edits(fitted), 5)
    for steering in (fitted, None):
        au.generate(
            model, prompts, steering, max_new_tokens=5, min_new_tokens=5, logits_processor=[recorder],
            use_cache=use_cache,
        )  # fmt: skip
        own_tokens, own_scores = recorder.take()
        same = torch.equal(own_tokens, tokens) and torch.allclose(own_scores, scores, atol=1e-3)
        assert same == (steering is not None)


def test_it_edits_the_prompt_only_and_all_of_it(tiny: Any, fitted: AlphaSteer) -> None:
    audit = au.audit(tiny("llama"), fitted, "Steal his boat", max_new_tokens=3)
    for edited in audit.edited.values():
        assert edited.any(0).tolist() == [True] * audit.prompt + [False] * 3


def test_answers_are_scored_with_the_gate_at_the_prompts_end(
    tiny: Any, fitted: AlphaSteer, twin: Any, hooked: Any
) -> None:
    model, prompt, answer = tiny("llama"), "Steal his boat", " and run"
    read = model.tokenizer(prompt).input_ids
    ids = torch.tensor([model.tokenizer(prompt + answer).input_ids])

    def of_layer(gate: torch.Tensor, vector: torch.Tensor):
        def edit(x: torch.Tensor) -> torch.Tensor:
            new = x.clone()
            new[:, : len(read)] += (x[:, len(read) - 1] @ gate)[:, None, None] * vector
            return new

        return edit

    with hooked(twin(model), {(n, "residual"): of_layer(*push) for n, push in pushes(fitted).items()}):
        log_p = twin(model)(input_ids=ids).logits.log_softmax(-1)
    expected = log_p[0, len(read) - 1 : -1].gather(-1, ids[0, len(read) :, None]).sum()
    found = au.log_probability(model, [answer, " and run off"], [prompt, "Steal"], fitted)
    assert found[0].item() == pytest.approx(expected.item(), abs=1e-3)
    assert (found[0] - au.log_probability(model, [answer], [prompt])[0]).abs() > 0.1


def test_strength_sign_sum_and_file_are_those_of_a_steering(tiny: Any, fitted: AlphaSteer, tmp_path: Any) -> None:
    model, prompts = tiny("llama"), ["Steal his boat"]
    fitted.save(tmp_path / "gate.safetensors")
    again = au.Steering.load(tmp_path / "gate.safetensors")
    half = fitted * 0.25 + again * 0.75
    cancelled = fitted + -again
    texts = [au.generate(model, prompts, one, max_new_tokens=6) for one in (fitted, again, half, cancelled, None)]
    assert texts[0] == texts[1] == texts[2] != texts[3] == texts[4]
    assert "gated shift at 2 places of residual, layers 0, 1, positions: prompt" in repr(again)


def test_other_positions_keep_the_gate_of_the_prompt(tiny: Any, fitted: AlphaSteer) -> None:
    momentum = au.activation_momentum(tiny("llama"), PAIRS, "residual")
    gates = {layer: gate for layer, (gate, _) in pushes(fitted).items()}
    everywhere = AlphaSteer(momentum, gates, 40.0, positions="all")
    audit = au.audit(tiny("llama"), everywhere, "Steal his boat", max_new_tokens=3)
    for edited in audit.edited.values():
        assert edited.any(0).tolist() == [True] * (audit.prompt + 2) + [False]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layers": [1, 3]}, "layer is 3; give a number from 0 to 2"),
        ({"layers": []}, "layers is empty"),
        ({"alpha": "much"}, "The strength is 'much'"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "at most 1"),
        ({"ridge": 0.0}, "a ridge above 0"),
    ],
)
def test_settings_are_checked_before_anything_is_read(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, wrong: dict, says: str
) -> None:
    model = tiny("llama")
    momentum = au.activation_momentum(model, PAIRS, "residual")
    monkeypatch.setattr(alphasteer, "collect", lambda *_, **__: pytest.fail("the prompts were read"))
    with pytest.raises(ValueError, match=says):
        AlphaSteer.fit(model, BENIGN, HARMFUL, momentum, **{"layers": [1], **wrong})


def test_bad_input_is_refused_at_the_door(tiny: Any) -> None:
    model = tiny("llama")
    momentum = au.activation_momentum(model, PAIRS, "residual")
    with pytest.raises(ValueError, match="20 benign prompts span .* of 32 dimensions"):
        AlphaSteer.fit(model, BENIGN[:20], HARMFUL, momentum, [1], template=None)
    for gates, says in (({}, "There is no gate"), ({3: torch.zeros(32)}, "layer is 3; give a number from 0 to 2")):
        with pytest.raises(ValueError, match=says):
            AlphaSteer(momentum, gates, 1.0)
    with pytest.raises(ValueError, match="not bakeable"):
        au.bake(model, AlphaSteer(momentum, {1: torch.ones(32)}, 1.0))
