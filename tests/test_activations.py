"""`collect` reads what a plain forward pass computes, whatever the batching."""

from typing import Any

import pytest
import torch
from torch import Tensor

import austeer as au
from austeer import ContrastivePair
from austeer.activations import Texts
from austeer.models import encode, token_ids

PAIRS = [
    ContrastivePair("The soup was", " warm and good.", " cold."),
    ContrastivePair("When the long train had at last arrived at the small station, my brother", " sang.", " wept."),
    ContrastivePair("He said", " yes.", " no, never, not at all, and left."),
]
TEXTS = [pair.prompt + pair.positive for pair in PAIRS]


def alone(model: Any, twin: Any, hooked: Any, site: str, text: str) -> Tensor:
    """(layers, width) at the last token, one text at a time, with plain hooks on a plain model."""
    seen: dict[int, Tensor] = {}

    def look(layer: int) -> Any:
        return lambda x: seen.__setitem__(layer, x[0, -1].clone())

    module = twin(model)
    layers = module.config.num_hidden_layers
    with torch.no_grad(), hooked(module, {(layer, site): look(layer) for layer in range(layers)}):
        module(encode(model, [text])["input_ids"])
    return torch.stack([seen[layer] for layer in range(layers)])


def test_activations_are_those_of_one_text_alone(tiny: Any, twin: Any, hooked: Any, kind: str, site: str) -> None:
    model = tiny(kind)
    expected = torch.stack([alone(model, twin, hooked, site, text) for text in TEXTS])
    assert torch.allclose(au.collect(model, TEXTS, site), expected, rtol=0, atol=1e-5)


def test_both_sides_of_a_pair_are_its_two_texts(tiny: Any, kind: str, site: str) -> None:
    model = tiny(kind)
    positive, negative = au.collect(model, PAIRS, site)
    assert torch.allclose(positive, au.collect(model, TEXTS, site), rtol=0, atol=1e-5)
    assert torch.allclose(negative, au.collect(model, [p.prompt + p.negative for p in PAIRS], site), rtol=0, atol=1e-5)


def test_what_both_sides_begin_with_is_computed_once(tiny: Any) -> None:
    model = tiny("llama")
    texts = Texts.of(model, PAIRS, None)
    assert texts.joined
    for row, (positive, negative) in enumerate(texts.sides):
        prompt, *both = (token_ids(model, text) for text in (PAIRS[row].prompt, positive, negative))
        batch, ends = texts.encode(model, [row])
        assert batch["input_ids"].tolist() == [both[0] + both[1][len(prompt) :]]
        assert ends.tolist() == [[len(both[0]) - 1, len(both[0] + both[1][len(prompt) :]) - 1]]


def test_a_side_that_the_other_begins_with_keeps_a_token_of_its_own(tiny: Any) -> None:
    model = tiny("llama")
    positive, negative = au.collect(model, [ContrastivePair("He said", " yes.", " yes. No.")])
    assert torch.allclose(positive, au.collect(model, ["He said yes."]), atol=1e-6)
    assert torch.allclose(negative, au.collect(model, ["He said yes. No."]), atol=1e-6)


@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
@pytest.mark.parametrize(("window", "joined"), [(200, True), (10, False)])
def test_sides_are_not_joined_where_a_window_could_end_within_them(
    tiny: Any, name: str, window: int, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("mistral")
    monkeypatch.setattr(model._module.config, name, window, raising=False)
    assert Texts.of(model, PAIRS, None).joined is joined


def test_sides_are_not_joined_where_attention_may_take_no_mask_of_ours(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    assert Texts.of(model, PAIRS, None).joined
    monkeypatch.setattr(type(model._module.config), "_attn_implementation", "flash_attention_2")
    assert not Texts.of(model, PAIRS, None).joined


@pytest.mark.parametrize("tokens_per_pass", [1, 40, 10_000])
def test_batching_changes_nothing_beyond_rounding(tiny: Any, kind: str, tokens_per_pass: int) -> None:
    model = tiny(kind)
    found = au.collect(model, TEXTS, "ffn", tokens_per_pass=tokens_per_pass)
    assert torch.allclose(found, au.collect(model, TEXTS, "ffn"), rtol=0, atol=1e-5)


def test_a_pass_is_bounded_in_tokens_not_only_in_rows(tiny: Any) -> None:
    model = tiny("llama")
    texts = ["word " * words for words in (2, 3, 2, 40, 3, 20, 2, 60)]
    lengths = [len(model.tokenizer(text).input_ids) for text in texts]
    batches: list[list[int]] = []
    au.collect(model, texts, into=lambda rows, _: batches.append(rows), tokens_per_pass=50)
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 50
    assert sorted(row for rows in batches for row in rows) == list(range(8))
    assert len(batches) < 8


def test_the_order_of_the_items_changes_nothing_beyond_rounding(tiny: Any, kind: str) -> None:
    model = tiny(kind)
    backwards = au.collect(model, TEXTS[::-1], "residual", tokens_per_pass=40)
    assert torch.allclose(backwards.flip(0), au.collect(model, TEXTS, "residual"), rtol=0, atol=1e-5)


def test_the_residual_site_is_what_transformers_calls_hidden_states(tiny: Any, twin: Any) -> None:
    # All but the last, to which transformers has applied the final norm already.
    model = tiny("llama")
    with torch.no_grad():
        hidden = twin(model)(**encode(model, TEXTS[:1]), output_hidden_states=True).hidden_states
    assert torch.allclose(
        au.collect(model, TEXTS[:1], "residual")[0, :2], torch.stack([h[0, -1] for h in hidden[1:3]]), rtol=0, atol=1e-5
    )


def test_an_accumulator_sees_every_row_once_and_nothing_is_returned(tiny: Any) -> None:
    seen: dict[int, Tensor] = {}

    def into(rows: list[int], positive: Tensor, negative: Tensor) -> None:
        assert positive.shape == negative.shape
        for row, values in zip(rows, positive, strict=True):
            assert row not in seen
            seen[row] = values

    model = tiny("llama")
    assert au.collect(model, PAIRS, into=into, tokens_per_pass=30) is None
    assert torch.allclose(torch.stack([seen[row] for row in range(3)]), au.collect(model, TEXTS), atol=1e-6)


def test_the_chat_template_wraps_the_prompt_and_not_the_answer(model: Any) -> None:
    wrapped = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": PAIRS[0].prompt}], tokenize=False, add_generation_prompt=True
    )
    expected = au.collect(model, [wrapped + PAIRS[0].positive])
    assert torch.allclose(au.collect(model, PAIRS[:1], template="chat")[0], expected, atol=1e-4)


def test_a_rehearsal_of_ndif_gives_the_same_numbers(tiny: Any) -> None:
    assert torch.equal(au.collect(tiny("llama", remote="local"), TEXTS), au.collect(tiny("llama"), TEXTS))


def test_a_text_longer_than_the_context_is_quoted(tiny: Any) -> None:
    with pytest.raises(ValueError, match="'again again.*more than the context"):
        au.collect(tiny("llama"), ["short", "again " * 20_000])


def test_no_item_and_an_unknown_site_are_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        au.collect(tiny("llama"), [])
    with pytest.raises(ValueError, match="'heads'; give one of"):
        au.collect(tiny("llama"), TEXTS, "heads")
