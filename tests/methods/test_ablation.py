"""What is left has nothing along the direction, at every layer, token and step; hooks that do it say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import austeer as au
from austeer.methods import DirectionAblation
from austeer.methods.ablation import Projection
from austeer.small import diffusion, grammar, training
from austeer.steering import Steering

THINGS = ("sea", "bus", "cat", "pie", "sun", "tea")
PAIRS = [au.ContrastivePair(f"The {thing} was", " lovely today.", " awful.", topic=thing) for thing in THINGS]
PROMPTS = ["The sea", "Once upon a time there was a king and his", "My shoe"]


@pytest.fixture
def direction() -> torch.Tensor:
    return 3.0 * torch.randn(32, generator=torch.Generator().manual_seed(1))


def removed(v: torch.Tensor, part: float = 1.0) -> Any:
    unit = v / v.norm()
    return lambda x: x - part * (x * unit).sum(-1, keepdim=True) * unit


def test_two_dimensions_by_hand() -> None:
    tensors = {"layer": torch.tensor([0]), "direction": torch.tensor([0.6, 0.8])}
    x = torch.tensor([[[5.0, 0.0], [0.8, -0.6]]])  # along v: 3 and 0
    delta = Projection("residual", tensors).displacement(au.sites.Place(0, "residual"), x, None, {})
    assert torch.allclose(x + delta, torch.tensor([[[3.2, -2.4], [0.8, -0.6]]]))
    assert torch.allclose(x + 2 * delta, torch.tensor([[[1.4, -4.8], [0.8, -0.6]]]), atol=1e-6)  # mirrored


def test_nothing_is_left_along_the_direction_after_any_layer(tiny: Any, direction: torch.Tensor) -> None:
    model, unit = tiny("llama"), direction / direction.norm()
    with au.steered(model, DirectionAblation(model, direction)) as m, torch.no_grad(), m.trace(PROMPTS[1]):
        sites = au.sites.Sites(m)
        left = torch.stack([(sites.read(au.sites.Place(n, "residual")) @ unit).abs().max() for n in range(3)]).save()
    plain = au.collect(model, PROMPTS, "residual") @ unit
    assert left.max() < 1e-4
    assert plain.abs().amin() > 1e-3


@pytest.mark.parametrize(("layers", "part"), [(None, 1.0), ([1], 1.0), ([0, 2], 0.5)])
def test_it_generates_what_hooks_generate(
    tiny: Any, direction: torch.Tensor, plain_generate: Any, recorder: Any, layers: Any, part: float
) -> None:
    model = tiny("llama")
    steering = DirectionAblation(model, direction, layers) * part
    edits = {(layer, "residual"): removed(direction, part) for layer in layers or range(3)}
    tokens, scores = plain_generate(model, PROMPTS, edits, 6)
    order = sorted(range(3), key=lambda row: (len(model.tokenizer(PROMPTS[row]).input_ids), row))
    au.generate(model, PROMPTS, steering, max_new_tokens=6, min_new_tokens=6, logits_processor=[recorder])
    own_tokens, own_scores = recorder.take()
    assert torch.equal(own_tokens, tokens[order])
    assert torch.allclose(own_scores, scores[order], atol=1e-3)
    au.generate(model, PROMPTS, max_new_tokens=6, min_new_tokens=6, logits_processor=[recorder])
    assert not torch.allclose(recorder.take()[1], own_scores, atol=1e-2)


def test_the_direction_goes_from_mean_to_mean_of_pairs_or_of_two_lists(tiny: Any) -> None:
    model = tiny("llama")
    positive, negative = au.collect(model, PAIRS, "residual")
    expected = (positive - negative)[:, 1].mean(0)
    from_pairs = DirectionAblation.fit(model, PAIRS, 1)
    texts = [[pair.prompt + pair.positive for pair in PAIRS], [pair.prompt + pair.negative for pair in PAIRS]]
    from_texts = DirectionAblation.fit(model, tuple(texts), 1)
    uneven = DirectionAblation.fit(model, (texts[0][:2], texts[1]), 1)
    for steering, mean in (
        (from_pairs, expected),
        (from_texts, expected),
        (uneven, positive[:2, 1].mean(0) - negative[:, 1].mean(0)),
    ):
        (operator,) = steering.operators
        assert torch.allclose(operator.tensors["direction"], mean / mean.norm(), atol=1e-4)
        assert operator.tensors["layer"].tolist() == [0, 1, 2]
    assert from_pairs.about["read at"] == 1


def test_the_sign_of_the_direction_does_not_matter_and_a_minus_is_refused(tiny: Any, direction: torch.Tensor) -> None:
    model = tiny("llama")
    one, other = (DirectionAblation(model, way * direction) for way in (1, -1))
    texts = [au.generate(model, PROMPTS, steering, max_new_tokens=6) for steering in (one, other, None)]
    assert texts[0] == texts[1] != texts[2]
    with pytest.raises(ValueError, match="a projection has no sign"):
        _ = -one


def test_a_file_keeps_it(tiny: Any, direction: torch.Tensor, tmp_path: Any) -> None:
    model = tiny("llama")
    steering = DirectionAblation(model, direction, [0, 2], "prompt")
    steering.save(tmp_path / "it.safetensors")
    again = Steering.load(tmp_path / "it.safetensors")
    assert "projection at 2 places of residual, layers 0, 2, positions: prompt" in repr(again)
    assert au.generate(model, PROMPTS, again) == au.generate(model, PROMPTS, steering)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"direction": torch.ones(31)}, r"\(31,\).*give one of shape \(32,\)"),
        ({"direction": torch.zeros(32)}, "length 0"),
        ({"layers": [3]}, "layer is 3"),
        ({"positions": "some"}, "positions is 'some'"),
    ],
)
def test_bad_input_is_refused(tiny: Any, direction: torch.Tensor, change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DirectionAblation(tiny("llama"), **({"direction": direction} | change))
    with pytest.raises(ValueError, match="length 2"):
        Projection("residual", {"layer": torch.tensor([0]), "direction": torch.tensor([2.0, 0.0])})


def test_in_a_diffusion_model_it_acts_in_every_step(tmp_path: Any) -> None:
    module = diffusion.masked(training.llama(2, seed=2)).half().float().eval().requires_grad_(False)
    for weight in module.parameters():
        weight *= 8 if weight.ndim > 1 else 1  # or what it says would hang on the noise alone
    au.small.save(module, tmp_path, {})
    model, prompts = au.small.load(tmp_path), [review.prompt for review in grammar.sample(3, torch.Generator())]
    v = torch.randn(24, generator=torch.Generator().manual_seed(0))

    def written(model: Any, steering: Steering | None = None) -> list[str]:
        return diffusion.denoise(model, prompts, steering, steps=12, generator=torch.Generator().manual_seed(0))

    found, plain = written(model, DirectionAblation(model, v)), written(model)
    for layer in module.model.layers:
        layer.register_forward_hook(lambda _, __, out: removed(v)(out))
    hooked = au.load(module, tokenizer=grammar.tokenizer(), bos=True)
    assert plain != found == written(hooked)
