"""The contract that every method keeps: a method is listed once, with what it is exempt from and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import austeer as au
from austeer import methods
from austeer.methods.riser import cognitive_vectors
from austeer.methods.was import output_direction
from austeer.models import cast
from austeer.sites import Place
from austeer.steering import Pass, Steering

THINGS = ("sea", "bus", "cat", "pie", "sun", "tea", "shoe", "hill")
PAIRS = [
    au.ContrastivePair(f"The {thing} was", f" {good} today.", f" {bad} today.", topic=thing)
    for thing in THINGS
    for good, bad in (("lovely", "awful"), ("kind", "cruel"), ("clean", "filthy"))
]
PROMPTS = ["The sea", "Once upon a time there was a king and his", "My shoe"]
TASKS = [f"{verb} the {noun}." for verb in ("Wash", "Buy", "Draw", "Name", "Mend") for noun in (*THINGS, "king", "jar")]
THEFTS = [f"Steal his {thing} and run" for thing in THINGS]
STEPS = 6


@dataclass(frozen=True)
class Listed:
    """A method.

    Args:
        name: what `about` calls it.
        fit: makes it from a model, strong enough to change what the tiny model says.
        exempt: for each rule of the contract that it does not keep, by the test's name, the reason.
    """

    name: str
    fit: Callable[..., Steering]
    exempt: dict[str, str] = field(default_factory=dict)


def units(model, site: str = "attention") -> au.AtomicUnits:
    return au.activation_momentum(model, PAIRS, site).top(12)


def gated(model) -> Steering:
    momentum = au.activation_momentum(model, PAIRS, "residual")
    return methods.AlphaSteer.fit(model, TASKS, THEFTS, momentum, [0, 1], 90.0, ridge=0.1, template=None)


def controlled(model) -> Steering:
    direction = output_direction(model, [" no", " never"], [" yes"])
    return methods.WAS.fit(model, THEFTS, TASKS, direction, 90.0, hidden=16, template=None)


def routed(model) -> Steering:
    sides = au.collect(model, PAIRS, "residual")
    library = cognitive_vectors((sides[0] - sides[1])[:, 1], 3)
    states = au.collect(model, TASKS, "residual")[:, 1]
    options = {"limit": 90.0, "steps": 5, "hidden": 16, "threshold": 0.4}
    return methods.RISER.fit(model, states, library, 1, lambda rows, mixtures: mixtures.sum(1), **options)


FIRST_PASS = (  # rules that are tried in a first pass over activations
    "a_factor_scales_the_displacement",
    "a_minus_negates_the_displacement",
    "a_sum_adds_displacements_read_from_the_same_activations",
)
CONTRACT = [
    Listed("AUSteer", lambda model: methods.AUSteer(units(model), alpha=20.0)),
    Listed("DirectionalAUSteer", lambda model: methods.DirectionalAUSteer(units(model, "neuron"), alpha=30.0)),
    Listed("CAA", lambda model: methods.CAA.fit(model, PAIRS, layer=1, alpha=30.0)),
    Listed("ITI", lambda model: methods.ITI.fit(model, PAIRS, heads=3, alpha=30.0)),
    Listed("SADI", lambda model: methods.SADI(model, au.activation_momentum(model, PAIRS), k=3, delta=20.0)),
    Listed(
        "ODESteer",
        lambda model: methods.ODESteer.fit(model, PAIRS, layer=1, alpha=4.0),
        {
            "a_factor_scales_the_displacement": "Its strength is the time of a flow, whose path bends.",
            "a_minus_negates_the_displacement": "It runs the flow along the opposite field, whose path bends, too.",
        },
    ),
    Listed(
        "LinAcT",
        lambda model: methods.LinAcT.fit(model, PAIRS, layer=1, alpha=40.0),
        {"a_minus_negates_the_displacement": "A map has no negative: it is refused."},
    ),
    Listed(
        "MiMiC",
        lambda model: methods.MiMiC.fit(model, PAIRS, layer=1, alpha=40.0),
        {"a_minus_negates_the_displacement": "A map has no negative: it is refused."},
    ),
    Listed(
        "Rotation",
        lambda model: methods.Rotation(au.activation_momentum(model, PAIRS, "residual"), layer=1, alpha=0.9),
        {
            "a_factor_scales_the_displacement": "Its strength is an angle, and half the angle is not half the chord.",
            "a_minus_negates_the_displacement": "It turns the other way by the same angle, along another chord.",
        },
    ),
    Listed("AlphaSteer", lambda model: gated(model)),
    Listed(
        "DirectionAblation",
        lambda model: methods.DirectionAblation.fit(model, PAIRS, layer=1),
        {"a_minus_negates_the_displacement": "A projection has no sign: it is refused."},
    ),
    Listed("ARM", lambda model: methods.ARM(model, least=0.25) * 20),
    Listed("RISER", lambda model: routed(model)),
    Listed("WAS", lambda model: controlled(model), dict.fromkeys(FIRST_PASS, "It leaves the prompt's own pass alone.")),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each method that is not exempt; what an exempt one does instead is tested in its own file."""
    if "listed" in metafunc.fixturenames:
        rule = metafunc.function.__name__.removeprefix("test_")
        bound = [listed for listed in CONTRACT if rule not in listed.exempt]
        metafunc.parametrize("listed", bound, ids=lambda listed: listed.name)


@pytest.fixture(scope="module")
def made(tiny) -> Callable[[Listed], Steering]:
    kept: dict[str, Steering] = {}

    def make(listed: Listed) -> Steering:
        if listed.name not in kept:
            kept[listed.name] = listed.fit(tiny("llama"))
        return kept[listed.name]

    return make


def said(model, recorder, steering: Steering | None, prompts: list[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    """Tokens and scores of every step, (texts, steps) each."""
    au.generate(
        model, prompts, steering, max_new_tokens=STEPS, min_new_tokens=STEPS,
        logits_processor=LogitsProcessorList([recorder]),
    )  # fmt: skip
    return recorder.take()


def displacements(steering: Steering, model, x: dict[Place, Tensor]) -> dict[Place, Tensor]:
    """What a steering adds at each place, in a first pass over activations that are handed to it."""
    now, found = Pass(0, 5, 5, torch.ones(2, 5, dtype=torch.bool)), {}
    for operator in steering.operators:
        state: dict = {}
        for place in sorted({*operator.reads(), *operator.writes()}, key=lambda place: place.order):
            if place in operator.reads():
                operator.observe(place, x[place], now, state)
            if place in operator.writes():
                delta = operator.displacement(place, x[place], now, state) * operator.strength
                delta = torch.where(now.mask(operator.positions)[..., None], delta, 0.0)
                found[place] = found.get(place, 0) + delta
    return found


@pytest.fixture
def handed(tiny) -> dict[Place, Tensor]:
    """Activations of two texts of five tokens at every place of the tiny model, drawn from a seed."""
    generator, anatomy = torch.Generator().manual_seed(0), au.sites.anatomy(tiny("llama"))
    return {
        Place(layer, site): torch.randn(2, 5, width, generator=generator)
        for layer in range(anatomy.layers)
        for site, width in anatomy.widths.items()
    }


def assert_scaled(found: dict[Place, Tensor], plain: dict[Place, Tensor], factor: float) -> None:
    assert found.keys() == plain.keys()
    assert any(delta.abs().max() > 0 for delta in plain.values())
    for place, delta in plain.items():
        assert torch.allclose(found[place], factor * delta, rtol=1e-5, atol=1e-5)


def test_every_method_is_listed() -> None:
    assert {listed.name for listed in CONTRACT} == set(methods.__all__)
    assert all(f"test_{rule}" in globals() for listed in CONTRACT for rule in listed.exempt)
    assert all(reason.endswith(".") for listed in CONTRACT for reason in listed.exempt.values())


def test_fitting_again_gives_the_same(tiny, made, listed: Listed) -> None:
    first, again = made(listed), listed.fit(tiny("llama"))
    assert first.about == again.about
    for one, other in zip(first.operators, again.operators, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_fitting_neither_uses_nor_moves_the_global_random_numbers(tiny, made, listed: Listed) -> None:
    made(listed)  # fitted under whatever state there was
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    again = listed.fit(tiny("llama"))
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(made(listed).operators, again.operators, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_method_names_itself(made, listed: Listed) -> None:
    assert made(listed).about["method"] == listed.name
    assert listed.name in repr(made(listed))


def test_it_changes_what_is_said(tiny, made, recorder, listed: Listed) -> None:
    model = tiny("llama")
    assert not torch.equal(said(model, recorder, made(listed))[0], said(model, recorder, None)[0])


def test_at_strength_zero_nothing_changes(tiny, made, recorder, listed: Listed) -> None:
    model = tiny("llama")
    for found, plain in zip(said(model, recorder, made(listed) * 0.0), said(model, recorder, None), strict=True):
        assert torch.equal(found, plain)


def test_a_factor_scales_the_displacement(tiny, made, handed, listed: Listed) -> None:
    model, steering = tiny("llama"), made(listed)
    assert_scaled(displacements(steering * 0.5, model, handed), displacements(steering, model, handed), 0.5)


def test_a_minus_negates_the_displacement(tiny, made, handed, listed: Listed) -> None:
    model, steering = tiny("llama"), made(listed)
    assert_scaled(displacements(-steering, model, handed), displacements(steering, model, handed), -1.0)


def test_a_sum_adds_displacements_read_from_the_same_activations(tiny, made, handed, listed: Listed) -> None:
    model, steering = tiny("llama"), made(listed)
    assert_scaled(displacements(steering + steering, model, handed), displacements(steering, model, handed), 2.0)


def test_a_sum_is_the_same_from_either_side(tiny, made, some_units, recorder, listed: Listed) -> None:
    model, steering = tiny("llama"), made(listed)
    other = methods.DirectionalAUSteer(some_units(model, "residual"), 1.0)
    there, back = said(model, recorder, steering + other), said(model, recorder, other + steering)
    assert torch.equal(there[0], back[0])
    assert torch.allclose(there[1], back[1], rtol=0, atol=1e-3)
    assert not torch.equal(there[1], said(model, recorder, steering)[1])


def test_a_saved_steering_is_the_same(tiny, made, recorder, tmp_path, listed: Listed) -> None:
    steering, path = made(listed), tmp_path / "it.safetensors"
    steering.save(path)
    again = Steering.load(path)
    assert (again.about, again.model) == (steering.about, steering.model)
    for one, other in zip(steering.operators, again.operators, strict=True):
        assert type(one) is type(other)
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    model = tiny("llama")
    for found, expected in zip(said(model, recorder, again), said(model, recorder, steering), strict=True):
        assert torch.equal(found, expected)


def test_a_batch_says_what_each_prompt_says_alone(tiny, made, recorder, listed: Listed) -> None:
    model, steering = tiny("llama"), made(listed)
    together = said(model, recorder, steering)
    order = sorted(range(len(PROMPTS)), key=lambda row: (len(model.tokenizer(PROMPTS[row]).input_ids), row))
    for place, row in enumerate(order):
        alone = said(model, recorder, steering, [PROMPTS[row]])
        assert torch.equal(together[0][place], alone[0][0])
        assert torch.allclose(together[1][place], alone[1][0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_it_ends_with_its_context_whatever_happens_inside(tiny, made, recorder, listed: Listed, stop) -> None:
    model, steering = tiny("llama"), made(listed)
    before = said(model, recorder, None)
    with pytest.raises(stop), au.steered(model, steering) as m:
        with m.trace(PROMPTS[0]):
            m.output.logits.save()
        raise stop
    assert torch.equal(said(model, recorder, None)[1], before[1])
    with torch.no_grad(), model.trace(PROMPTS[0]):
        plain = model.output.logits.save()
    with torch.no_grad(), m.trace(PROMPTS[0]):  # the copy outlives its context, what was done to it does not
        after = m.output.logits.save()
    assert torch.equal(after, plain)


class StopsAt(LogitsProcessor):
    """Breaks a generation off at a step."""

    def __init__(self, step: int, stop: type[BaseException]):
        self.left, self.stop = step, stop

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.stop
        return scores


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_generation_that_is_broken_off_leaves_no_steering(tiny, made, recorder, listed: Listed, stop) -> None:
    model, steering = tiny("llama"), made(listed)
    before = said(model, recorder, None), said(model, recorder, steering)
    for step in (0, 2):
        with pytest.raises(BaseException) as error:  # nnsight may wrap it
            au.generate(
                model, PROMPTS, steering, max_new_tokens=STEPS, min_new_tokens=STEPS,
                logits_processor=LogitsProcessorList([StopsAt(step, stop)]),
            )  # fmt: skip
        assert stop.__name__ in repr(error.value) or isinstance(error.value, stop)
    for steered, (tokens, scores) in zip((None, steering), before, strict=True):
        again = said(model, recorder, steered)
        assert torch.equal(again[0], tokens)
        assert torch.equal(again[1], scores)


def test_the_weights_stay_as_they_are(tiny, made, recorder, listed: Listed) -> None:
    model = tiny("llama")

    def bits() -> dict[str, bytes]:
        named = [*model._module.named_parameters(), *model._module.named_buffers()]
        return {name: tensor.detach().view(torch.uint8).numpy().tobytes() for name, tensor in named}

    before = bits()
    said(model, recorder, made(listed))
    with au.steered(model, made(listed)) as m, torch.no_grad(), m.trace(PROMPTS[0]):
        m.output.logits.save()
    listed.fit(model)
    assert bits() == before


def test_it_works_in_inference_mode(tiny, made, recorder, listed: Listed) -> None:
    model = tiny("llama")
    expected = said(model, recorder, made(listed))
    with torch.inference_mode():
        found = said(model, recorder, made(listed))
        fitted = listed.fit(model)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(said(model, recorder, fitted)[0], expected[0])  # and what was fitted there works outside


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_in_half_precision(plain, tokenizer, made, recorder, listed: Listed, dtype) -> None:
    half = au.load(cast(plain("llama"), dtype), tokenizer=tokenizer)
    steering = replace_model(made(listed), half)
    tokens, scores = said(half, recorder, steering)
    assert scores.isfinite().all()
    assert not torch.equal(tokens, said(half, recorder, None)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_fitted_in_half_precision(plain, tokenizer, recorder, listed: Listed, dtype) -> None:
    half = au.load(cast(plain("llama"), dtype), tokenizer=tokenizer)
    tokens, scores = said(half, recorder, listed.fit(half))
    assert scores.isfinite().all()
    assert not torch.equal(tokens, said(half, recorder, None)[0])


def test_it_works_with_tied_weights(plain, tokenizer, recorder, listed: Listed) -> None:
    module = plain("llama", tie_word_embeddings=True)
    model = au.load(module, tokenizer=tokenizer)
    steering = listed.fit(model)
    assert not torch.equal(said(model, recorder, steering)[0], said(model, recorder, None)[0])
    assert module.lm_head.weight is module.model.embed_tokens.weight


@pytest.mark.parametrize("settings", [{"num_hidden_layers": 2}, {"hidden_size": 64}])
def test_another_shape_is_refused(plain, tokenizer, made, listed: Listed, settings: dict) -> None:
    other = plain("llama")
    config = type(other.config)(**other.config.to_dict() | {"head_dim": None} | settings)
    model, steering = au.load(type(other)(config).eval(), tokenizer=tokenizer), made(listed)
    for use in (lambda: au.generate(model, PROMPTS, steering), lambda: au.steered(model, steering).__enter__()):
        with pytest.raises(ValueError, match="does not fit"):
            use()


def replace_model(steering: Steering, model) -> Steering:
    """The same steering, said to come from another copy of the weights, so that no warning is given."""
    return Steering(
        steering.operators, replace(steering.model, fingerprint=au.models.info(model).fingerprint), steering.about
    )
