"""The loss is the bound that enumeration gives, a model sees both ways, and the sampler fills in what it should."""

import json
import math
from collections.abc import Callable
from itertools import combinations, permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import austeer as au
from austeer import small
from austeer.methods import CAA, DirectionalAUSteer
from austeer.small import diffusion, grammar, training
from austeer.small.diffusion import ANSWER, bidirectional, canvas, corrupt, denoise, denoising, estimate, llada

MASK = 2  # of the vocabulary 0, 1, mask
REVIEWS = grammar.sample(12, torch.Generator().manual_seed(0))
PROMPTS = [review.prompt for review in REVIEWS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An untrained masked diffusion model with large weights, saved and loaded again."""
    module = diffusion.masked(training.llama(4, seed=1)).eval().requires_grad_(False)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight *= 8
    folder = tmp_path_factory.getbasetemp() / "tiny-diffusion"
    small.save(module, folder, {})
    return small.load(folder)


@pytest.fixture(scope="module")
def three_tokens() -> Any:
    """A random model of the vocabulary 0, 1, mask that sees both ways."""
    config = LlamaConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, mask_token_id=MASK,
    )  # fmt: skip
    torch.manual_seed(0)
    return bidirectional(LlamaForCausalLM(config)).eval().requires_grad_(False)


def losses(module: Any, text: tuple[int, ...], masked: tuple[int, ...]) -> dict[int, float]:
    """-log p of each masked token of a text, given the others."""
    ids = torch.tensor([[MASK if place in masked else token for place, token in enumerate(text)]])
    log_p = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    return {place: -log_p[place, text[place]].item() for place in masked}


def sets(free: range) -> list[tuple[int, ...]]:
    """Every set of masks."""
    return [masked for k in range(1, len(free) + 1) for masked in combinations(free, k)]


def estimated(module: Any, text: tuple[int, ...], free: range, rows: int) -> tuple[float, float]:
    """The mean of many estimates, and its standard error."""
    ids = torch.tensor([text] * rows)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, free.start :] = True
    found = estimate(module, ids, torch.ones_like(answer), answer, generator())
    return found.mean().item(), found.std().item() / rows**0.5


@pytest.mark.parametrize("text", [(0, 1, 1, 0), (1, 1, 1, 1), (0, 0, 1, 1)])
def test_the_loss_is_the_enumerated_one_on_a_vocabulary_of_three_tokens(three_tokens: Any, text: Any) -> None:
    free = range(1, 4)  # the first token is given
    paid = {masked: sum(losses(three_tokens, text, masked).values()) for masked in sets(free)}
    exact = sum(loss / (len(masked) * math.comb(3, len(masked))) for masked, loss in paid.items())
    mean, error = estimated(three_tokens, text, free, 3000)
    assert mean == pytest.approx(exact, abs=4 * error)
    assert error < 0.02 * exact
    in_orders = [
        sum(losses(three_tokens, text, order[place:])[order[place]] for place in range(3))
        for order in permutations(free)
    ]
    assert sum(in_orders) / 6 == pytest.approx(exact, abs=1e-5)  # what is lost in all orders of filling in, on average
    shares = (torch.arange(400) + 0.5) / 400  # the same as an integral over the share t, as the papers write it
    weight = [(shares**k * (1 - shares) ** (3 - k) / shares).mean().item() for k in range(4)]
    integral = sum(weight[len(masked)] * loss for masked, loss in paid.items())
    assert integral == pytest.approx(exact, rel=1e-3)


def test_with_exact_conditionals_the_bound_is_the_log_probability() -> None:
    weights = torch.rand(8, generator=generator()) + 0.1
    joint = dict(zip(product((0, 1), repeat=3), (weights / weights.sum()).tolist(), strict=True))

    def exact(input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.full((*input_ids.shape, 3), -30.0)
        for row, ids in enumerate(input_ids.tolist()):
            alike = {
                text: p for text, p in joint.items() if all(a in (b, MASK) for a, b in zip(ids, text, strict=True))
            }
            for place in range(3):
                for token in (0, 1):
                    p = sum(p for text, p in alike.items() if text[place] == token)
                    logits[row, place, token] = math.log(p) if p else -30.0
        return SimpleNamespace(logits=logits)

    exact.config, exact.device = SimpleNamespace(mask_token_id=MASK), "cpu"  # type: ignore[attr-defined]
    for text, p in joint.items():
        mean, error = estimated(exact, text, range(3), 3000)
        assert mean == pytest.approx(-math.log(p), abs=4 * error + 1e-4)


def test_masks_fall_on_the_answer_and_their_numbers_are_even() -> None:
    answer = torch.tensor([[False, True, True, True, True]] * 400 + [[False, False, False, True, True]] * 400)
    masked, weight = corrupt(answer, generator())
    assert not masked[~answer].any()
    k = masked.sum(-1)
    assert torch.allclose(weight[:, 0], answer.sum(-1) / k)
    assert torch.bincount(k[:400], minlength=5).tolist()[1:] == pytest.approx([100] * 4, abs=20)
    assert (masked[:400, 1:].float().mean(0) - 5 / 8).abs().max() < 0.05  # every place alike
    assert torch.equal(corrupt(answer, generator())[0], masked)


def test_reviews_are_laid_out_as_the_sampler_reads_them(masked: Any) -> None:
    ids, real, answer = canvas(REVIEWS)
    batch = au.models.encode(masked, PROMPTS)
    assert torch.equal(ids[:, :-ANSWER], batch["input_ids"])
    assert torch.equal(real[:, :-ANSWER], batch["attention_mask"].bool())
    assert answer[:, -ANSWER:].all() and not answer[:, :-ANSWER].any()
    for review, row in zip(REVIEWS, ids, strict=True):
        assert masked.tokenizer.decode(row, skip_special_tokens=True) == review.text
        assert row[-1] == masked.tokenizer.eos_token_id


@pytest.mark.parametrize("padding", [0, 2])
def test_a_token_sees_later_ones_whether_there_is_padding_or_not(masked: Any, padding: int) -> None:
    ids = torch.tensor([[masked.tokenizer.pad_token_id] * padding + [0, 5, 6, 7], [0] * padding + [0, 5, 6, 7]])
    mask = (torch.arange(4 + padding) >= padding).long().expand(2, -1).clone()
    mask[1] = 1
    other = ids.clone()
    other[:, -1] = 8
    one, two = (masked._module(input_ids=x, attention_mask=mask).logits for x in (ids, other))
    assert (one - two)[:, padding].abs().amax(-1).min() > 1e-3
    alone = masked._module(input_ids=ids[:1, padding:]).logits
    assert torch.allclose(one[0, padding:], alone[0], atol=1e-4)  # padding is not seen


def test_both_sides_of_a_pair_are_read_alone(masked: Any) -> None:
    pairs = grammar.pairs("positive", "negative", 5, generator())
    positive, negative = au.collect(masked, pairs, "residual")
    for read, texts in (
        (positive, [p.prompt + p.positive for p in pairs]),
        (negative, [p.prompt + p.negative for p in pairs]),
    ):
        assert torch.allclose(read, au.collect(masked, texts, "residual"), atol=1e-4)


@pytest.mark.parametrize("where", ["first", "last", "mean", "masks"])
def test_states_are_those_that_a_hook_sees(masked: Any, where: str) -> None:
    found, mask = diffusion.states(masked, PROMPTS[:4], where=where), masked._module.config.mask_token_id
    assert found.shape == (4, 4, 48)
    for prompt, own in zip(PROMPTS[:4], found, strict=True):
        given, seen = au.models.token_ids(masked, prompt), []
        hooks = [
            layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0]))
            for layer in masked._module.model.layers
        ]
        masked._module(input_ids=torch.tensor([given + [mask] * ANSWER * (where == "masks")]))
        for hook in hooks:
            hook.remove()
        here = {"first": slice(1), "last": slice(-1, None), "mean": slice(None), "masks": slice(-ANSWER, None)}[where]
        assert torch.allclose(own, torch.stack([x[here].mean(0) for x in seen]), atol=1e-4)
    if where == "last":
        for site in ("residual", "attention"):
            found = diffusion.states(masked, PROMPTS[:4], site)
            assert torch.allclose(found, au.collect(masked, PROMPTS[:4], site), atol=1e-4)


def test_states_of_an_unknown_place_are_refused(masked: Any) -> None:
    with pytest.raises(ValueError, match="where is 'middle'"):
        diffusion.states(masked, PROMPTS, where="middle")


def reference(masked: Any, prompt: str, steps: int, blocks: int, shift: Callable | None, steered: Any) -> list[int]:
    """One text, token by token, with a plain hook."""
    module, mask = masked._module, masked._module.config.mask_token_id
    given = au.models.token_ids(masked, prompt)
    ids = [*given, *[mask] * ANSWER]
    for step in range(steps):
        handle = None
        if shift and step in steered:
            handle = module.model.layers[1].register_forward_hook(lambda _, __, out: shift(out, len(given)))
        logits = module(input_ids=torch.tensor([ids])).logits[0].float()
        if handle:
            handle.remove()
        logits[:, mask] = -math.inf  # probabilities are those of the other tokens
        log_p = logits.log_softmax(-1)
        block, turn = step // (steps // blocks), step % (steps // blocks)
        size, turns = ANSWER // blocks, steps // blocks
        many = size // turns + (1 if turn < size % turns else 0)
        first = len(given) + block * size
        best = sorted((-log_p[i].exp().max().item(), i) for i in range(first, first + size) if ids[i] == mask)
        for _, place in best[:many]:
            ids[place] = int(log_p[place].argmax())
    return ids[len(given) :]


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", None])
@pytest.mark.parametrize(("steps", "blocks", "steered"), [(24, 1, range(24)), (6, 3, range(2, 4)), (5, 1, [0])])
def test_the_sampler_is_the_one_of_a_plain_loop(
    masked: Any, steps: int, blocks: int, steered: Any, positions: Any
) -> None:
    value = 6 * torch.randn(48, generator=generator(3))
    tensors = {"layer": torch.ones(48, dtype=torch.long), "index": torch.arange(48), "value": value}
    steering, shift = None, None
    if positions:
        steering = au.Steering([au.steering.Shift("residual", tensors, positions)], masked.austeer_info, {})

        def shift(x: torch.Tensor, prompt: int) -> torch.Tensor:
            here = {"all": slice(None), "prompt": slice(prompt), "generated": slice(prompt, None)}[positions]
            x = x.clone()
            x[:, here] += value
            return x

    found = [*denoising(masked, PROMPTS[:4], steering, steps=steps, blocks=blocks, steered=steered)]
    assert len(found) == steps
    left = [(ids == masked._module.config.mask_token_id).sum(1).tolist() for ids in found]
    assert left[-1] == [0] * 4
    expected = [reference(masked, prompt, steps, blocks, shift, steered) for prompt in PROMPTS[:4]]
    assert found[-1].tolist() == expected
    if positions:
        assert found[-1].tolist() != [reference(masked, prompt, steps, blocks, None, ()) for prompt in PROMPTS[:4]]


def test_draws_follow_from_the_generator_and_at_strength_zero_nothing_changes(masked: Any) -> None:
    momentum = au.activation_momentum(masked, grammar.pairs("positive", "negative", 16, generator()), "residual")
    caa = CAA(momentum, 2, 30.0, "all")
    texts = [denoise(masked, PROMPTS, s, steps=8, generator=generator(seed)) for s, seed in
             ((None, 0), (caa * 0, 0), (caa, 0), (None, 1))]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != texts[3]
    units = DirectionalAUSteer(momentum.top(5), 30.0, "generated")
    assert denoise(masked, PROMPTS, units, steps=8, generator=generator()) != texts[0]


def test_drawn_tokens_have_the_models_probabilities(masked: Any) -> None:
    prompts = PROMPTS[:1] * 2000
    (ids,) = denoising(masked, prompts, new_tokens=1, generator=generator())
    logits = masked._module(input_ids=torch.tensor([[*au.models.token_ids(masked, PROMPTS[0]), 3]])).logits[0, -1]
    logits[3] = -math.inf
    share = torch.bincount(ids[:, 0], minlength=len(logits)) / 2000
    p = logits.softmax(-1)
    assert (share - p).abs().max() < 0.03
    assert p.max() < 0.9


def test_what_stands_behind_the_end_is_cut_off(masked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    end, word = masked.tokenizer.eos_token_id, masked.tokenizer.convert_tokens_to_ids("kettle")
    answers = torch.tensor([[word, end, word, end], [word, word, word, word], [end, word, word, word]])
    monkeypatch.setattr(diffusion, "denoising", lambda *_, **__: iter([answers]))
    assert denoise(masked, ["a", "b", "c"]) == ["kettle", "kettle kettle kettle kettle", ""]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 25}, "25 steps for 24 tokens"),
        ({"steps": 12, "blocks": 5}, "in 5 blocks"),
        ({"steps": 8, "blocks": 3}, "divide both"),
        ({"new_tokens": 80}, "more than the context"),
        ({"steering": "joy"}, "A str was given"),
    ],
)
def test_bad_input_is_refused(masked: Any, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        denoise(masked, PROMPTS[:1], **options)


def test_a_causal_model_one_string_and_no_prompt_are_refused(masked: Any, tiny: Any) -> None:
    with pytest.raises(ValueError, match="sees one way only"):
        denoise(tiny("llama"), ["The sea"])
    with pytest.raises(ValueError, match="is one string"):
        denoise(masked, PROMPTS[0])
    with pytest.raises(ValueError, match="No text"):
        denoise(masked, [])


LLADA = {  # the names of GSAI-ML/LLaDA-8B-Instruct's config.json, with small numbers
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_layers": 2, "n_heads": 4,
    "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": 271, "embedding_size": 272, "max_sequence_length": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "mask_token_id": 271, "eos_token_id": 1, "weight_tying": False,
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "include_bias": False,
    "include_qkv_bias": False, "attention_layer_norm": False, "alibi": False,
}  # fmt: skip


def llada_weights() -> dict[str, torch.Tensor]:
    """A random checkpoint with LLaDA's names and shapes."""
    d, f, v, seed = 32, 48, 272, generator(5)
    shapes = {"wte": (v, d), "ln_f": (d,), "ff_out": (v, d)}
    for block in range(2):
        square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (d, d))
        own = {**square, "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f), "attn_norm": (d,), "ff_norm": (d,)}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in own.items()}
    return {
        f"model.transformer.{name}.weight": torch.randn(shape, generator=seed) * 0.3 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def llada_forward(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What LLaDA computes, written down from its description: no causal mask, SwiGLU, rotary halves, RMS norms."""
    at = {name.removeprefix("model.transformer.").removesuffix(".weight"): w for name, w in weights.items()}
    tokens, size = ids.shape[1], 8

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * at[name]

    angle = torch.arange(tokens)[:, None] * 500000.0 ** (-torch.arange(0, size, 2) / size)  # (tokens, 4)

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    h = at["wte"][ids]
    for block in ("blocks.0.", "blocks.1."):
        x = norm(h, f"{block}attn_norm")
        q, k, v = (
            (x @ at[f"{block}{name}"].T).unflatten(-1, (4, size)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        weight = (turned(q) @ turned(k).transpose(-1, -2) / size**0.5).softmax(-1)
        h = h + (weight @ v).transpose(1, 2).flatten(2) @ at[f"{block}attn_out"].T
        x = norm(h, f"{block}ff_norm")
        gate = functional.silu(x @ at[f"{block}ff_proj"].T)
        h = h + (gate * (x @ at[f"{block}up_proj"].T)) @ at[f"{block}ff_out"].T
    return norm(h, "ln_f") @ at["ff_out"].T


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory as the hub has it, in two files, with a tokenizer."""
    weights = llada_weights()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), 1):
        save_file({name: weights[name] for name in part}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    grammar.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLADA))
    return tmp_path


def test_lladas_weights_compute_in_a_llama_what_they_compute_in_llada(checkpoint: Path) -> None:
    model = llada(checkpoint, dtype="float32")
    ids = torch.randint(271, (2, 20), generator=generator())
    with torch.no_grad():
        found = model._module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(found, llada_forward(llada_weights(), ids), atol=2e-4)
    config = model._module.config
    assert (config.mask_token_id, config.eos_token_id, config.is_causal) == (271, 1, False)
    (answer,) = denoise(model, PROMPTS[:1], new_tokens=4, steps=2)
    assert isinstance(answer, str)
    assert llada(checkpoint)._module.dtype == torch.bfloat16


def test_the_names_are_those_of_a_llama_of_the_size_of_llada_8b() -> None:
    config = LlamaConfig(
        vocab_size=126464, hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_attention_heads=32,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).named_parameters()}
    d, f, v = 4096, 12288, 126464
    square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (d, d))
    own = {**square, "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f), "attn_norm": (d,), "ff_norm": (d,)}
    names = {"wte": (v, d), "ln_f": (d,), "ff_out": (v, d)}
    names |= {f"blocks.{block}.{name}": shape for block in range(32) for name, shape in own.items()}
    found = {diffusion.llama_name(f"model.transformer.{name}.weight"): shape for name, shape in names.items()}
    assert len(found) == 291
    assert found == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config, weights: config.update(include_bias=True), "include_bias is True"),
        (lambda config, weights: config.update(block_type="sequential"), "block_type"),
        (lambda config, weights: weights.pop("model.transformer.ln_f.weight"), "model.norm.weight is missing"),
        (lambda config, weights: weights.update({"model.transformer.wpe.weight": torch.ones(2)}), "wpe"),
        (lambda config, weights: config.update(mlp_hidden_size=47), "of another shape"),
    ],
)
def test_a_checkpoint_that_is_no_llama_is_refused(tmp_path: Path, change: Callable, says: str) -> None:
    config, weights = dict(LLADA), llada_weights()
    change(config, weights)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        llada(tmp_path)
