"""RISER: the library, the router inside a run, and both losses against independent computations."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import austeer as au
from austeer.methods.riser import RISER, RoutedShift, cognitive_vectors, imitation_loss, policy_loss, route
from austeer.steering import Steering

PROMPTS = ["Hello there", "My sister told me", "When the train arrived at noon, everybody"]  # of growing length
LAYER, WIDTH, COUNT = 1, 32, 3


def some_router(seed: int = 0, limit: float = 30.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "layer": torch.tensor([LAYER]), "library": torch.nn.functional.normalize(draw(COUNT, WIDTH), dim=-1),
        "inner": draw(8, WIDTH) / 20, "inner_bias": draw(8), "heads": draw(2 * COUNT, 8), "heads_bias": draw(2 * COUNT),
        "limit": torch.tensor([limit]), "threshold": torch.tensor([0.5]),
    }  # fmt: skip


def steering_of(model: Any, tensors: dict[str, torch.Tensor], positions: str = "last") -> RISER:
    about = {"method": "RISER", "site": "residual", "shape": [au.sites.anatomy(model).layers, WIDTH]}
    return RISER([RoutedShift("residual", tensors, positions)], au.models.info(model), about)


def by_hand(h: np.ndarray, t: dict[str, torch.Tensor]) -> np.ndarray:
    """The mixture of one state, written down in NumPy from the equations."""
    t = {name: tensor.double().numpy() for name, tensor in t.items()}
    inner = t["inner"] @ h + t["inner_bias"]
    inner = inner / (1 + np.exp(-inner))
    out = 1 / (1 + np.exp(-(t["heads"] @ inner + t["heads_bias"])))
    return np.where(out[:COUNT] > t["threshold"], t["limit"] * out[COUNT:], 0.0)


def blobs(per_blob: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[9.0, 0, 0, 0], [0, 9.0, 3.0, 0], [-5.0, 0, 0, 5.0]])
    noise = torch.randn(3, per_blob, 4, generator=generator)
    return centres[:, None] + noise, centres


def test_the_library_holds_the_unit_centres_of_planted_groups() -> None:
    points, _ = blobs()
    means = points.mean(1)
    expected = means / means.norm(dim=-1, keepdim=True)
    found = cognitive_vectors(points.flatten(0, 1)[torch.randperm(60)], 3)
    nearest = (found @ expected.T).argmax(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    assert torch.allclose(found, expected[nearest], atol=1e-5)


def test_k_means_ends_where_lloyds_algorithm_ends() -> None:
    points = blobs()[0].flatten(0, 1)
    centres = points[[0, 20, 40]]
    for _ in range(20):
        own = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[own == k].mean(0) for k in range(3)])
    expected = centres / centres.norm(dim=-1, keepdim=True)
    found = cognitive_vectors(points, 3)
    assert torch.allclose((found @ expected.T).amax(1), torch.ones(3), atol=1e-6)


def test_the_router_is_the_network_that_the_paper_describes() -> None:
    tensors = some_router()
    h = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3)) * 3
    found = RoutedShift("residual", tensors).mixture(h)
    expected = np.stack([by_hand(row, tensors) for row in h.double().numpy()])
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    assert 0 < (found == 0).sum() < found.numel()  # some gates are open and some are not


@pytest.mark.parametrize("positions", ["last", "generated"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_a_run_reads_once_and_adds_the_same_push_from_then_on(
    tiny: Any, kind: str, plain_generate: Any, padded: Any, recorder: Any, positions: str, use_cache: bool
) -> None:
    model, tensors = tiny(kind), some_router()
    prompt, pushes = padded(PROMPTS)["input_ids"].shape[1], []
    first = prompt - (positions == "last")

    def edit(x: torch.Tensor) -> torch.Tensor:
        if not pushes:
            mixtures = np.stack([by_hand(row, tensors) for row in x[:, -1].double().numpy()])
            pushes.append(torch.from_numpy(mixtures).float() @ tensors["library"])
            edit.seen = prompt
        else:
            edit.seen += 1
        x = x.clone()
        columns = torch.arange(edit.seen - x.shape[1], edit.seen)
        x[:, columns >= first] += pushes[0][:, None]
        return x

    expected = plain_generate(model, PROMPTS, {(LAYER, "residual"): edit}, 6, use_cache=use_cache)
    steering = steering_of(model, tensors, positions)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "use_cache": use_cache}
    au.generate(model, PROMPTS, steering, logits_processor=[recorder], **options)
    tokens, scores = recorder.take()
    assert len(pushes[0].unique(dim=0)) == len(PROMPTS)  # each prompt has its own
    assert torch.equal(tokens, expected[0])
    assert torch.allclose(scores, expected[1], atol=1e-3)
    assert not torch.equal(tokens, plain_generate(model, PROMPTS, {}, 6)[0])


def test_scoring_an_answer_reads_the_router_at_the_prompts_end(tiny: Any) -> None:
    model, steering = tiny("llama"), steering_of(tiny("llama"), some_router())
    states = au.collect(model, PROMPTS, "residual")[:, LAYER]
    pushes = steering.operators[0].mixture(states) @ steering.operators[0].tensors["library"]
    answers = [" and the rest", " a story", " got up"]
    found = au.log_probability(model, answers, PROMPTS, steering)
    for prompt, answer, push, score in zip(PROMPTS, answers, pushes, found, strict=True):
        index = torch.arange(WIDTH)
        tensors = {"layer": torch.full_like(index, LAYER), "index": index, "value": push}
        fixed = Steering([au.steering.Shift("residual", tensors, "last")], au.models.info(model), {"method": "push"})
        assert torch.allclose(au.log_probability(model, [answer], [prompt], fixed)[0], score, atol=1e-3)


def test_a_router_composes_and_is_saved(tiny: Any, tmp_path: Any) -> None:
    model = tiny("llama")
    steering = steering_of(model, some_router())
    (steering * 0.5 + -steering).save(tmp_path / "r.safetensors")
    again = Steering.load(tmp_path / "r.safetensors")
    half = au.log_probability(model, [" one two"], PROMPTS[:1], steering * -0.5)
    assert torch.allclose(au.log_probability(model, [" one two"], PROMPTS[:1], again), half, atol=1e-4)
    assert "routed shift" in repr(again)


# Training


def exact_gradient(logit: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """The gradient of the expected reward of Bernoulli gates by counting all of them."""
    logit = logit.clone().requires_grad_()
    expected = torch.zeros(())
    for gates, reward in zip(product([0.0, 1.0], repeat=len(logit)), rewards, strict=True):
        gates = torch.tensor(gates)
        expected = expected + reward * (gates * logit.sigmoid() + (1 - gates) * (1 - logit.sigmoid())).prod()
    return torch.autograd.grad(expected, logit)[0]


def test_the_policy_gradient_is_the_gradient_of_the_expected_reward() -> None:
    generator, draws = torch.Generator().manual_seed(0), 200_000
    logit = torch.tensor([0.3, -0.8, 0.1], requires_grad=True)
    table = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, 0.0, 1.0, 3.0])  # of 000, 001, 010 ...
    gate = logit.sigmoid().expand(draws, 3)
    opened = torch.bernoulli(gate.detach(), generator=generator)
    rewards = table[(opened @ torch.tensor([4.0, 2.0, 1.0])).long()]
    alpha = torch.ones(draws, 3)
    loss = policy_loss(gate, alpha, opened, alpha, rewards[:, None], 0.1)
    found = -torch.autograd.grad(loss, logit)[0] * rewards.std()
    assert torch.allclose(found, exact_gradient(logit.detach(), table), atol=0.01)


def test_the_gradient_of_a_strength_is_that_of_the_mean_reward() -> None:
    generator, draws, spread = torch.Generator().manual_seed(0), 400_000, 0.2
    alpha = torch.tensor([1.0, 0.4], requires_grad=True)
    drawn = alpha.detach() + spread * torch.randn(draws, 2, generator=generator)
    opened = torch.tensor([1.0, 0.0]).expand(draws, 2)
    rewards = -((drawn[:, 0] - 1.5) ** 2)  # its mean has the slope 2 (1.5 - alpha) = 1 at alpha = 1
    gate = torch.full((draws, 2), 0.5)
    loss = policy_loss(gate, alpha.expand(draws, 2), opened, drawn, rewards[:, None], spread)
    found = -torch.autograd.grad(loss, alpha)[0] * rewards.std()
    assert found[0].item() == pytest.approx(1.0, abs=0.03)
    assert found[1].item() == 0.0  # a closed gate's strength did nothing


def test_rewards_are_compared_within_a_prompt() -> None:
    generator = torch.Generator().manual_seed(0)
    gate, opened = torch.rand(12, 2, generator=generator), torch.rand(12, 2, generator=generator).round()
    rewards = torch.rand(4, 3, generator=generator)
    shifted = rewards * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 100.0, -7.0])
    losses = [policy_loss(gate, gate, opened, gate, r, 0.1) for r in (rewards, shifted)]
    assert torch.allclose(*losses, atol=1e-3)
    assert policy_loss(gate, gate, opened, gate, torch.ones(4, 3), 0.1) == 0  # alike rewards say nothing


def test_imitation_is_cross_entropy_and_the_error_of_open_strengths() -> None:
    gate, alpha = torch.tensor([[0.9, 0.2]]), torch.tensor([[1.0, 0.3]])
    found = imitation_loss(gate, alpha, torch.tensor([[1.5, 0.0]]), limit=2.0)
    assert found.item() == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2 + 0.25**2, abs=1e-6)


WANTED = torch.tensor([[1.6, 0.0], [0.0, 0.8]])  # what each of two kinds of prompts needs


def toy(texts: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """States that say which kind a prompt is, far from zero and of unequal scale, among noise."""
    kind = torch.arange(texts) % 2
    states = torch.randn(texts, WIDTH, generator=torch.Generator().manual_seed(1))
    states[:, 0] += 8.0 * (kind - 0.5)
    scale = torch.ones(WIDTH)
    scale[0], scale[-1] = 100.0, 0.01
    return states * scale + 50.0, kind


def train(model: Any, **options: Any) -> tuple[RISER, torch.Tensor]:
    states, kind = toy()
    library = torch.eye(2, WIDTH)

    def reward(rows: torch.Tensor, mixtures: torch.Tensor) -> torch.Tensor:
        return -(mixtures - WANTED[kind[rows]]).square().sum(-1)

    settings = {"limit": 2.0, "steps": 300, "hidden": 32, "learning_rate": 1e-2, **options}
    steering = RISER.fit(model, states, library, 1, reward, **settings)
    return steering, (steering.operators[0].mixture(states) - WANTED[kind]).abs().amax(0)


def test_training_reaches_the_known_optimum(tiny: Any) -> None:
    steering, off = train(tiny("llama"))
    assert off.max() < 0.2
    # what is left at the optimum is the spread of the one strength that is drawn: 0.2 squared
    assert steering.curve[-50:].mean().item() == pytest.approx(-0.04, abs=0.02)
    assert steering.curve[:10].mean() < -0.8


def test_the_warm_up_alone_learns_to_imitate(tiny: Any) -> None:
    steering, off = train(tiny("llama"), start=WANTED[toy()[1]], steps=0)
    assert off.max() < 0.2
    assert len(steering.curve) == 0


def test_training_is_the_same_under_a_seed(tiny: Any) -> None:
    one, two, other = (train(tiny("llama"), steps=5, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.curve, two.curve)
    assert all(torch.equal(t, two.operators[0].tensors[name]) for name, t in one.operators[0].tensors.items())
    assert not torch.equal(one.curve, other.curve)


def test_the_network_is_seen_through_the_standardisation(tiny: Any) -> None:
    steering, _ = train(tiny("llama"), steps=1)
    tensors = steering.operators[0].tensors
    states, _ = toy()
    gate, _ = route(states, tensors, tensors["limit"])
    assert gate.std() < 0.3 and gate.min() > 0.01  # an untrained router is undecided whatever the scale of the states


def test_what_does_not_fit_is_refused_before_anything_is_trained(tiny: Any) -> None:
    model, states, library = tiny("llama"), torch.zeros(3, WIDTH), torch.eye(2, WIDTH)
    with pytest.raises(ValueError, match=r"\(3, 31\)"):
        RISER.fit(model, states[:, 1:], library, 1, None, limit=1.0)
    with pytest.raises(ValueError, match=r"\(2, 31\)"):
        RISER.fit(model, states, library[:, 1:], 1, None, limit=1.0)
    with pytest.raises(ValueError, match="start"):
        RISER.fit(model, states, library, 1, None, limit=1.0, start=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="layer is 3"):
        RISER.fit(model, states, library, 3, None, limit=1.0)
    with pytest.raises(ValueError, match="limit is 0"):
        RISER.fit(model, states, library, 1, None, limit=0.0)
    with pytest.raises(ValueError, match="finite"):
        RISER.fit(model, states, library, 1, None, limit=float("nan"))
