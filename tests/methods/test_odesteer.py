"""ODESteer flows along the gradient of what its sketch computes, LinAcT and MiMiC carry distributions over."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_approximation import PolynomialCountSketch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import austeer as au
from austeer.methods import LinAcT, MiMiC, ODESteer
from austeer.methods.mimic import covariance, gaussian_map
from austeer.methods.odesteer import field, quadratic_form
from austeer.steering import Pass

THINGS = ("sea", "bus", "cat", "pie", "sun", "tea", "shoe", "hill")
PAIRS = [
    au.ContrastivePair(f"The {thing} was", f" {good} today.", f" {bad} today.", topic=thing)
    for thing in THINGS
    for good, bad in (("lovely", "awful"), ("kind", "cruel"), ("clean", "filthy"))
]
WIDTH, LAYERS = 32, 3


@pytest.fixture(scope="module")
def sides() -> tuple[Tensor, Tensor]:
    """Activations whose sides differ in a mean, in the variance of some dimensions, and in a product of two."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(60, LAYERS, WIDTH, generator=generator) for _ in range(2))
    positive[..., 0] += 1.0
    positive[..., 1:6] *= 2.0
    positive[..., 7] += positive[..., 6]
    return positive * 3, negative * 3


def moved(steering: Any, x: Tensor, positions: Tensor | None = None) -> Tensor:
    """What the only operator of a steering makes of (texts, width), each at the last token of a prompt of two."""
    (operator,) = steering.operators
    (place,) = operator.writes()
    both = torch.stack([torch.full_like(x, 7.0), x], 1)
    now = Pass(0, 2, 2, torch.ones(len(x), 2, dtype=torch.bool))
    displacement = operator.displacement(place, both, now, {})
    return x + operator.strength * displacement[:, 1]


def sketched(sides: tuple[Tensor, Tensor], seed: int = 0, components: int = 256) -> tuple[Any, Any]:
    """scikit-learn's sketch of directions and the logistic regression on it: the reference."""
    x = torch.cat([side[:, 1] for side in sides]).double().numpy()
    y = x / np.linalg.norm(x, axis=1, keepdims=True)
    sketch = PolynomialCountSketch(degree=2, gamma=0.1, coef0=1, n_components=components, random_state=seed).fit(y)
    label = np.repeat([1, 0], len(x) // 2)
    return sketch, LogisticRegression(max_iter=1000).fit(sketch.transform(y), label)


def test_the_quadratic_form_is_what_the_sketch_computes(tiny: Any, sides: Any) -> None:
    sketch, regression = sketched(sides)
    steering = ODESteer(tiny("llama"), *sides, layer=1, components=256)
    A, b = (part.double() for part in quadratic_form(steering.operators[0].tensors))
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    y = x / x.norm(dim=1, keepdim=True)
    ours = torch.einsum("ni,ij,nj->n", y, A, y) + y @ b
    theirs = torch.from_numpy(sketch.transform(y.numpy()) @ regression.coef_[0])
    constant = theirs - ours
    assert constant.std() < 1e-6 * theirs.std() + 1e-7
    assert torch.allclose(A, A.T)


def test_the_sketch_agrees_with_the_kernel_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.nn.functional.normalize(torch.randn(6, WIDTH, generator=generator).double(), dim=1).numpy()
    exact = (0.1 * y @ y.T + 1) ** 2
    drawn = []
    for seed in range(400):
        sketch = PolynomialCountSketch(degree=2, gamma=0.1, coef0=1, n_components=64, random_state=seed)
        features = sketch.fit_transform(y)
        drawn.append(features @ features.T)
    error = np.std(drawn, axis=0) / 20
    assert (np.abs(np.mean(drawn, axis=0) - exact) < 4.5 * error + 1e-9).all()


def test_the_field_is_the_gradient_of_the_sketched_classifier(tiny: Any, sides: Any) -> None:
    sketch, regression = sketched(sides)
    steering = ODESteer(tiny("llama"), *sides, layer=1, components=256)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2)).double() * 5

    def h(points: np.ndarray) -> np.ndarray:
        return sketch.transform(points / np.linalg.norm(points, axis=1, keepdims=True)) @ regression.coef_[0]

    slope = torch.zeros_like(x)
    for i in range(WIDTH):  # central differences of scikit-learn's own numbers
        step = np.zeros(WIDTH)
        step[i] = 1e-4
        slope[:, i] = torch.from_numpy(h(x.numpy() + step) - h(x.numpy() - step)) / 2e-4
    expected = slope / slope.norm(dim=1, keepdim=True)
    assert torch.allclose(field(x, *(p.double() for p in quadratic_form(steering.operators[0].tensors))), expected,
                          atol=1e-5)  # fmt: skip


def test_the_field_is_autograds(tiny: Any, sides: Any) -> None:
    A, b = quadratic_form(ODESteer(tiny("llama"), *sides, layer=2).operators[0].tensors)
    x = (torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(3)) * 5).requires_grad_()
    y = x / x.norm(dim=1, keepdim=True)
    (slope,) = torch.autograd.grad((torch.einsum("ni,ij,nj->n", y, A, y) + y @ b).sum(), x)
    assert torch.allclose(field(x.detach(), A, b), slope / slope.norm(dim=1, keepdim=True), atol=1e-5)


def test_the_field_is_of_unit_length_and_has_no_radial_part(tiny: Any, sides: Any) -> None:
    A, b = quadratic_form(ODESteer(tiny("llama"), *sides, layer=1).operators[0].tensors)
    x = torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(4)) * 9
    v = field(x, A, b)
    assert torch.allclose(v.norm(dim=1), torch.ones(100), atol=1e-5)
    assert (v * x).sum(1).abs().max() / 9 < 1e-4


def test_the_norm_after_some_steps_is_pythagoras(tiny: Any, sides: Any) -> None:
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(5)) * 3
    for steps in (1, 4, 10):
        steering = ODESteer(tiny("llama"), *sides, layer=1, alpha=0.8, steps=steps)
        time = 0.8 * steering.operators[0].tensors["unit"].item()
        assert torch.allclose(moved(steering, x).norm(dim=1) ** 2, x.norm(dim=1) ** 2 + time**2 / steps, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.7, -0.7])
def test_the_steps_are_torchdiffeqs(tiny: Any, sides: Any, alpha: float) -> None:
    from torchdiffeq import odeint

    steering = ODESteer(tiny("llama"), *sides, layer=1, alpha=alpha)
    A, b = quadratic_form(steering.operators[0].tensors)
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(6)) * 15
    time = 0.7 * steering.operators[0].tensors["unit"].item()
    towards = 1 if alpha > 0 else -1
    (_, end) = odeint(
        lambda _, state: towards * field(state, A, b), x, torch.tensor([0.0, time]), method="euler",
        options={"step_size": time / 10},
    )  # fmt: skip
    assert torch.allclose(moved(steering, x), end, atol=1e-3)
    many = ODESteer(tiny("llama"), *sides, layer=1, alpha=alpha, steps=300)
    (_, exact) = odeint(lambda _, state: towards * field(state, A, b), x, torch.tensor([0.0, time]), rtol=1e-6)
    assert (moved(many, x) - exact).norm(dim=1).max() < 0.2 * (end - exact).norm(dim=1).max()


def test_strength_is_time_and_minus_swaps_the_sides(tiny: Any, sides: Any) -> None:
    model, (positive, negative) = tiny("llama"), sides
    x = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(7)) * 15
    half = ODESteer(model, positive, negative, layer=1, alpha=0.4)
    assert torch.allclose(moved(half * 2, x), moved(ODESteer(model, positive, negative, layer=1, alpha=0.8), x))
    swapped = ODESteer(model, negative, positive, layer=1, alpha=0.4)
    assert torch.allclose(moved(-half, x), moved(swapped, x), atol=0.05)  # two fits, each to its tolerance
    one = ODESteer(model, positive, negative, layer=1, alpha=1.0, steps=1)
    assert torch.allclose(moved(one * 0.3, x) - x, 0.3 * (moved(one, x) - x), atol=1e-4)
    assert torch.equal(moved(one * 0, x), x)


def test_without_a_sketch_it_is_the_kernel_machine(tiny: Any, sides: Any) -> None:
    steering = ODESteer(tiny("llama"), *sides, layer=1, components=None)
    A, b = (part.double() for part in quadratic_form(steering.operators[0].tensors))
    x = torch.cat([side[:, 1] for side in sides]).double()
    y = x / x.norm(dim=1, keepdim=True)
    products = np.stack([np.outer(u, u).ravel() for u in torch.cat([0.1**0.5 * y, torch.ones(120, 1)], 1).numpy()])
    label = np.repeat([1, 0], 60)
    regression = LogisticRegression(max_iter=10000, tol=1e-10).fit(products, label)  # all products, one by one
    ours = torch.einsum("ni,ij,nj->n", y, A, y) + y @ b
    theirs = torch.from_numpy(products @ regression.coef_[0])
    assert ((ours - ours.mean()) - (theirs - theirs.mean())).abs().max() < 0.01 * theirs.std()


def test_many_components_come_near_the_kernel_and_few_do_not(tiny: Any, sides: Any) -> None:
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(8))

    def along(components: int | None, seed: int = 0) -> Tensor:
        steering = ODESteer(tiny("llama"), *sides, layer=1, components=components, seed=seed)
        return field(x, *quadratic_form(steering.operators[0].tensors))

    exact = along(None)
    few, many = ((along(n, 1) * exact).sum(1).mean() for n in (64, 8000))
    assert few + 0.1 < many
    assert torch.equal(along(64, 3), along(64, 3))
    assert not torch.allclose(along(64, 3), along(64, 4), atol=0.1)


def test_the_last_token_alone_is_moved(tiny: Any, sides: Any) -> None:
    model = tiny("llama")
    for steering in (ODESteer.fit(model, PAIRS, layer=1), LinAcT.fit(model, PAIRS, layer=1)):
        audit = au.audit(model, steering, "The sea was blue", max_new_tokens=3)
        (edited,) = audit.edited.values()
        assert edited.any(0).tolist() == [False] * (audit.prompt - 1) + [True] * 3 + [False]


@pytest.mark.parametrize("method", [ODESteer, LinAcT, MiMiC])
def test_a_method_generates_what_a_hook_generates(tiny: Any, plain_generate: Any, recorder: Any, method: Any) -> None:
    model, prompts = tiny("llama"), ["The sea was", "Once upon a time there"]
    steering = method.fit(model, PAIRS, layer=1, alpha=0.9)

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, -1] = moved(steering, x[:, -1])  # the prompt's last token, then each new one
        return x

    tokens, scores = plain_generate(model, prompts, {(1, "residual"): change}, 5)
    au.generate(model, prompts, steering, max_new_tokens=5, min_new_tokens=5, logits_processor=[recorder])
    own_tokens, own_scores = recorder.take()
    order = sorted(range(2), key=lambda row: (len(model.tokenizer(prompts[row]).input_ids), row))
    assert torch.equal(own_tokens, tokens[order])
    assert torch.allclose(own_scores, scores[order], atol=1e-3)


@pytest.mark.parametrize("method", [ODESteer, LinAcT, MiMiC])
def test_a_method_says_the_same_where_a_request_would_go_out(tiny: Any, tmp_path: Any, method: Any) -> None:
    local, remote, prompts = tiny("llama"), tiny("llama", remote="local"), ["The sea was"]
    steering = method.fit(local, PAIRS, layer=1, alpha=0.9)
    steering.save(tmp_path / "a.safetensors")
    again = au.Steering.load(tmp_path / "a.safetensors")
    assert again.about == {**steering.about, "shape": [3, 32]}
    said = au.generate(local, prompts, steering, max_new_tokens=6)
    assert said == au.generate(local, prompts, again, max_new_tokens=6)
    assert said == au.generate(remote, prompts, again, max_new_tokens=6)


@pytest.mark.parametrize("method", [ODESteer, LinAcT, MiMiC])
def test_a_method_adds_up_and_works_in_half_precision(tiny: Any, method: Any) -> None:
    model = tiny("llama", torch.bfloat16)
    steering = method.fit(model, PAIRS, layer=1, alpha=0.5)
    both = steering + au.methods.CAA.fit(model, PAIRS, layer=2)
    assert len(au.generate(model, ["The sea was"], both, max_new_tokens=3)) == 1


@pytest.mark.parametrize("method", [ODESteer, LinAcT, MiMiC])
def test_a_layer_that_is_not_there_is_refused(tiny: Any, sides: Any, method: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        method(tiny("llama"), *sides, layer=3)


def test_at_least_one_step_is_wanted(tiny: Any, sides: Any) -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        ODESteer(tiny("llama"), *sides, layer=0, steps=0)


# Transport


@pytest.mark.parametrize("method", [LinAcT, MiMiC])
def test_a_transport_has_parts_but_no_negative(tiny: Any, sides: Any, method: Any) -> None:
    steering = method(tiny("llama"), *sides, layer=1)
    x = sides[1][:, 1]
    whole = moved(steering, x) - x
    assert torch.allclose(moved(steering * 0.25, x) - x, 0.25 * whole, atol=1e-4)
    with pytest.raises(ValueError, match="no negative; fit one for the way back"):
        _ = -steering


def test_linact_carries_each_dimension_over(tiny: Any, sides: Any) -> None:
    positive, negative = sides
    arrived = moved(LinAcT(tiny("llama"), positive, negative, layer=1), negative[:, 1])
    target = positive[:, 1]
    assert torch.allclose(arrived.mean(0), target.mean(0), atol=1e-4)
    # no affine map of a dimension comes nearer to the sorted target than the least-squares line of the sorted values
    for i in range(WIDTH):
        line = np.polyfit(negative[:, 1, i].sort().values.numpy(), target[:, i].sort().values.numpy(), 1)
        assert np.allclose(np.polyval(line, negative[:, 1, i].numpy()), arrived[:, i].numpy(), atol=1e-3)


def test_linact_of_one_distribution_to_its_affine_image_is_that_map(tiny: Any, sides: Any) -> None:
    x = sides[1]
    steering = LinAcT(tiny("llama"), 2.5 * x + 1, x, layer=0)
    assert torch.allclose(moved(steering, x[:, 0]), 2.5 * x[:, 0] + 1, atol=1e-4)


def test_the_gaussian_map_carries_the_covariance_and_is_the_least_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = (torch.randn(2, 40, 8, generator=generator) @ torch.randn(2, 8, 8, generator=generator)).double()
    S, T = map(covariance, mixed)
    A = gaussian_map(S, T)
    assert torch.allclose(A @ S @ A, T, rtol=1e-8)
    assert torch.allclose(A, A.T) and torch.linalg.eigvalsh(A).min() > 0  # Brenier: the map is then the optimal one
    from scipy.linalg import sqrtm

    root = sqrtm(S.numpy())
    inverse = np.linalg.inv(root)
    assert np.allclose(A.numpy(), (inverse @ sqrtm(root @ T.numpy() @ root) @ inverse).real, rtol=1e-6)


def test_mimic_carries_over_what_its_gate_takes_for_negative(tiny: Any, sides: Any) -> None:
    positive, negative = (side[:, 1] for side in sides)
    steering = MiMiC(tiny("llama"), *sides, layer=1)
    probe = LogisticRegression(max_iter=1000).fit(torch.cat([positive, negative]).numpy(), np.repeat([1, 0], 60))
    taken = torch.from_numpy(probe.predict(negative.numpy())) == 0
    A = gaussian_map(covariance(negative.double()), covariance(positive.double()))
    expected = (positive.mean(0) + (negative - negative.mean(0)).double() @ A.T).float()
    arrived = moved(steering, negative)
    assert 30 < taken.sum() < 60
    assert torch.allclose(arrived[taken], expected[taken], atol=1e-3)
    assert torch.equal(arrived[~taken], negative[~taken])
