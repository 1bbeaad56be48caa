"""CETT and its searches against cases computed by hand; steerings that silence neurons against plain hooks."""

import copy

import pytest
import torch

import austeer as au
from austeer import sparsity
from austeer.sites import Place, weight
from austeer.small import grammar, training

LONG = "My shoe is lost again, said he, and nobody has seen it since the dog ran into the garden with the other one"
TEXTS = ["The sea was calm", LONG, "Once upon a time there was a king and his dog"]  # read in another order
LAYER = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # two neurons that write at a right angle, 3 and 4 long


@pytest.fixture(params=["llama", "gpt2"])
def small(request, tiny):
    return tiny(request.param)


def reference(twin, model, text: str, hooked, edits: dict) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Return what the down projections read, by layer, and -log p of the text, with plain hooks."""
    seen, module = {}, twin(model)
    ids = model.tokenizer(text, return_tensors="pt").input_ids

    def keep(layer: int, edit):
        def look(x):
            new = edit(x) if edit else x
            seen[layer] = new[0]
            return new

        return look

    layers = range(au.sites.anatomy(model).layers)
    with hooked(module, {(layer, "neuron"): keep(layer, edits.get(layer)) for layer in layers}):
        logits = module(ids).logits[0, :-1].float()
    return seen, torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")


@pytest.mark.parametrize(
    ("x", "threshold", "expected"),
    [
        ([[1.0, 1.0]], 2.9, 0.0),
        ([[1.0, 1.0]], 3.0, 3 / 5),  # a norm equal to the threshold is silenced
        ([[1.0, 1.0]], 4.0, 1.0),
        ([[-2.0, 1.0]], 4.0, 4 / 52**0.5),  # outputs of norm 6 and 4
        ([[1.0, 1.0], [-2.0, 1.0]], 4.0, (1 + 4 / 52**0.5) / 2),  # the mean over tokens
        ([[0.0, 0.0], [1.0, 1.0]], 3.0, 3 / 10),  # where nothing is written there is nothing to lose
    ],
)
def test_cett_of_two_neurons(x, threshold, expected):
    assert sparsity.cett(torch.tensor(x), LAYER, threshold) == pytest.approx(expected, abs=1e-6)


def test_cett_is_of_the_sum_and_not_a_sum_of_lengths():
    opposed = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.1, 5.0]])
    assert sparsity.cett(torch.ones(1, 3), opposed, 2.0) == pytest.approx(0.1 / 5.1)


def test_the_threshold_is_the_largest_of_a_grid_whose_cett_is_below_the_target():
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(40, 24, generator=generator), torch.randn(8, 24, generator=generator)
    norms = x.abs() * matrix.norm(dim=0)
    grid = torch.linspace(norms.min().item(), norms.quantile(0.99).item(), 65_536)
    for target in (0.05, 0.3, 0.7):
        found = sparsity.threshold_at(x, matrix, target)
        coarse = [sparsity.cett(x, matrix, threshold.item()) for threshold in grid[::64]]
        below = max(number for number, value in enumerate(coarse) if value <= target)
        assert grid[64 * below] <= found <= grid[64 * (below + 1)]
        following = grid[int((grid <= found).sum())].item()
        assert sparsity.cett(x, matrix, found) <= target < sparsity.cett(x, matrix, following)


def test_the_longest_outputs_are_never_silenced_and_a_target_too_small_gives_the_least_threshold():
    x = torch.arange(1.0, 201.0)[:, None]
    matrix = torch.ones(1, 1)  # every output is all there is: CETT is the share of tokens that are silenced
    assert sparsity.threshold_at(x, matrix, 1.0) == pytest.approx(198.01, abs=0.01)
    assert sparsity.threshold_at(x, matrix, 0.5) == pytest.approx(101.0, abs=0.01)
    assert sparsity.threshold_at(torch.ones(1, 2), LAYER, 0.1) == 3.0  # where the paper's code takes the largest


def test_thresholds_are_found_layer_by_layer(tiny):
    model = tiny("llama")
    x = sparsity.neuron_activations(model, TEXTS)
    found = sparsity.thresholds_at(model, x, 0.3)
    each = [sparsity.threshold_at(x[:, n], weight(model, Place(n, "neuron")), 0.3) for n in range(3)]
    assert found.tolist() == pytest.approx(each)


def test_ppl_p_is_where_perplexity_is_up_by_p():
    asked = []

    def ratio(target: float) -> float:
        asked.append(target)
        return 1 + target**2

    assert sparsity.cett_at(ratio, 1.0) == pytest.approx(0.1, abs=2**-16)
    assert asked[:4] == [0.5, 0.25, 0.125, 0.0625] and len(asked) == 15
    assert sparsity.cett_at(ratio, 25.0, evaluations=10) == pytest.approx(0.5, abs=2**-10)
    assert sparsity.cett_at(lambda target: 0.9) == pytest.approx(1.0, abs=1e-4)  # nothing matters: all is silenced


def test_every_token_is_read_in_order_without_padding(small, twin, hooked):
    read = sparsity.neuron_activations(small, TEXTS)
    expected = []
    for text in TEXTS:
        seen, _ = reference(twin, small, text, hooked, {})
        expected.append(torch.stack([seen[layer] for layer in range(len(seen))], 1))
    assert torch.allclose(read, torch.cat(expected), atol=1e-4)


@pytest.mark.parametrize("rule", ["threshold", "top-k", "fat"])
def test_silencing_is_what_plain_hooks_do(small, twin, hooked, rule):
    model = small
    layers, width = au.sites.anatomy(model).layers, au.sites.anatomy(model).widths["neuron"]
    thresholds = torch.linspace(0.3, 0.5, layers)
    norms = [weight(model, Place(layer, "neuron")).norm(dim=0) for layer in range(layers)]

    def edit(layer: int):
        def silence(x):
            if rule == "top-k":
                kept = torch.zeros_like(x).scatter(-1, x.abs().topk(width // 4, dim=-1).indices, 1.0)
                return x * kept
            cut = thresholds[layer] / norms[layer] if rule == "threshold" else 0.05
            return torch.where(x.abs() < cut, 0.0, x)

        return silence

    steering = {
        "threshold": lambda: sparsity.sparsified(model, thresholds),
        "top-k": lambda: sparsity.top_k(model, 0.25),
        "fat": lambda: sparsity.fat(model, 0.05),
    }[rule]()
    found = sparsity.activity(model, TEXTS, steering)
    nats, active, size = [], [], []
    for text in TEXTS:
        seen, lost = reference(twin, model, text, hooked, {layer: edit(layer) for layer in range(layers)})
        stacked = torch.stack([seen[layer] for layer in range(layers)])
        nats.append(lost)
        active.append((stacked != 0).float().sum(1))
        size.append(stacked.abs().sum(1))
    assert torch.allclose(found.nats.float(), torch.stack(nats), rtol=1e-4)
    assert torch.allclose(found.active * found.tokens, torch.stack(active).sum(0), atol=0.51)  # one tie by rounding
    assert torch.allclose(found.size * found.tokens, torch.stack(size).sum(0), rtol=1e-3, atol=1e-3)
    assert 0.1 < found.active.mean() < 0.95
    again = -au.log_probability(model, TEXTS, steering=steering)  # the library's own path
    assert torch.allclose(found.nats.float(), again, rtol=1e-4)


@pytest.mark.parametrize("rule", ["top-k", "fat"])
def test_a_gate_that_is_silenced_silences_its_neuron(tiny, twin, rule):
    model = tiny("llama")
    steering = {"top-k": sparsity.top_k(model, 0.25, "gate"), "fat": sparsity.fat(model, 0.05, "gate")}[rule]

    def silence(module, args, x):
        if rule == "fat":
            return torch.where(x.abs() < 0.05, 0.0, x)
        return x * torch.zeros_like(x).scatter(-1, x.abs().topk(x.shape[-1] // 4, dim=-1).indices, 1.0)

    module, shares = copy.deepcopy(twin(model)), []
    for layer in module.model.layers:
        layer.mlp.act_fn.register_forward_hook(silence)
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: shares.append((args[0] != 0).float().mean()))
    ids = model.tokenizer(TEXTS[0], return_tensors="pt").input_ids
    lost = torch.nn.functional.cross_entropy(module(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum")
    found = sparsity.activity(model, TEXTS[:1], steering)
    assert found.nats.item() == pytest.approx(lost.item(), rel=1e-4)
    assert found.active.mean().item() == pytest.approx(torch.stack(shares).mean().item(), abs=1e-3)
    assert 0.1 < found.active.mean() < 0.95


def test_perplexity_is_over_all_tokens(tiny):
    model = tiny("llama")
    found = sparsity.activity(model, TEXTS)
    assert found.tokens == found.scored.sum() + len(TEXTS)
    lost = [-au.log_probability(model, [text]).item() for text in TEXTS]
    tokens = [len(model.tokenizer(text).input_ids) - 1 for text in TEXTS]
    assert found.scored.tolist() == tokens and len(set(tokens)) > 1
    assert found.nats.tolist() == pytest.approx(lost, rel=1e-4)
    assert found.perplexity() == pytest.approx(2.718281828 ** (sum(lost) / sum(tokens)), rel=1e-4)
    assert (found.active == 1).all()


def test_only_relu_has_neurons_that_are_exactly_zero():
    texts = [review.text for review in grammar.sample(4, torch.Generator().manual_seed(0))]
    share = {}
    for kind in ("relu", "silu"):
        model = au.load(training.llama(2, 0, kind), tokenizer=grammar.tokenizer(), bos=True)
        share[kind] = sparsity.activity(model, texts).active.mean().item()
    assert share["silu"] == 1 and 0.3 < share["relu"] < 0.7


def test_a_sparse_model_can_be_saved_rehearsed_and_generates(tiny, tmp_path):
    model = tiny("llama")
    for steering in (sparsity.sparsified(model, torch.full((3,), 0.4)), sparsity.top_k(model, 0.2)):
        steering.save(tmp_path / "sparse.safetensors")
        loaded = au.Steering.load(tmp_path / "sparse.safetensors")
        texts = au.generate(model, TEXTS[:1], steering, max_new_tokens=3)
        assert au.generate(model, TEXTS[:1], loaded, max_new_tokens=3) == texts
        here = sparsity.activity(model, TEXTS, steering)
        there = sparsity.activity(tiny("llama", remote="local"), TEXTS, loaded)
        assert torch.allclose(here.nats, there.nats, rtol=1e-5) and torch.equal(here.active, there.active)
        assert here.active.mean() < 0.9


def test_bad_input_is_named(tiny):
    model = tiny("llama")
    with pytest.raises(ValueError, match="3 finite numbers"):
        sparsity.sparsified(model, torch.ones(2))
    with pytest.raises(ValueError, match="3 finite numbers"):
        sparsity.sparsified(model, torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="a share of the 48 neurons"):
        sparsity.top_k(model, 0.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        sparsity.threshold_at(torch.ones(1, 2), LAYER, 1.5)
    with pytest.raises(ValueError, match="one token long"):
        sparsity.activity(model, ["Hello there", "a"])
    with pytest.raises(ValueError, match="at least one"):
        sparsity.activity(model, [])
    with pytest.raises(ValueError, match="does not fit"):
        sparsity.activity(tiny("gpt2"), TEXTS, sparsity.top_k(model, 0.5))
