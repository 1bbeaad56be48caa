"""`load()` and `encode()`: the same model and the same tokens every time, and clear words where that cannot be."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants as hub
from nnsight import TransformersModel
from tokenizers.processors import TemplateProcessing

import austeer as au
from austeer.models import apply_template, encode, fingerprint, info, token_ids


def tiny_bert(**settings) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **settings
    )


@pytest.fixture
def own_tokenizer(tokenizer):
    """A tokenizer that a test may change."""
    return copy.deepcopy(tokenizer)


# Loading


def test_a_second_load_gives_the_same_model(model) -> None:
    assert info(au.load()) == info(model)


def test_the_default_model_says_what_it_is(model) -> None:
    found = info(model)
    assert (found.id, found.shape, found.bos, found.remote) == ("SmolLM2-135M-Instruct", (30, 576), False, False)
    assert len(found.fingerprint) == 16


def test_the_default_model_is_plain_float32(model) -> None:
    assert {parameter.dtype for parameter in model._module.parameters()} == {torch.float32}
    assert not hasattr(model._module.config, "quantization_config")


def test_a_loaded_model_evaluates_without_gradients_and_pads_left(tiny, kind: str) -> None:
    model = tiny(kind)
    assert isinstance(model, TransformersModel)
    assert not model._module.training
    assert not any(parameter.requires_grad for parameter in model._module.parameters())
    assert model.tokenizer.padding_side == "left"


def test_a_local_directory_loads_as_it_was_saved(plain, tokenizer, tmp_path: Path) -> None:
    module = plain("llama")
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = au.load(tmp_path)
    assert info(model).id == str(tmp_path)
    assert info(model).fingerprint == fingerprint(module)
    assert model._module.device.type == "cpu"
    assert token_ids(model, "Hello there") == tokenizer("Hello there").input_ids
    assert all(torch.equal(a, b) for a, b in zip(model._module.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize("name", ["float64", "bfloat16", "float16"])
def test_a_dtype_is_taken_by_name_or_as_torch_has_it(plain, tokenizer, name: str) -> None:
    for dtype in (name, getattr(torch, name)):
        assert au.load(plain("llama"), tokenizer=tokenizer, dtype=dtype)._module.dtype == getattr(torch, name)


def test_without_a_dtype_a_model_in_memory_keeps_its_own(plain, tokenizer) -> None:
    assert au.load(plain("llama", torch.bfloat16), tokenizer=tokenizer)._module.dtype == torch.bfloat16


def test_bfloat16_rounds_the_weights_but_not_the_rotary_frequencies(plain, tokenizer, tmp_path: Path) -> None:
    # Rounded frequencies turn the 200th token by up to half a radian; transformers keeps them in float32.
    plain("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    batch = {"input_ids": torch.arange(200)[None] + 1000}
    with torch.no_grad():
        assert torch.equal(au.load(tmp_path, dtype="bfloat16")._module(**batch).logits, expected(**batch).logits)


@pytest.mark.parametrize("dispatch", [True, False])
def test_an_nnsight_model_loads_whether_its_weights_are_here_or_not(
    plain, tokenizer, tmp_path: Path, dispatch: bool
) -> None:
    module = plain("llama")
    module.save_pretrained(tmp_path)
    given = TransformersModel(str(tmp_path), tokenizer=tokenizer, task="text-generation", dispatch=dispatch)
    assert info(au.load(given)).fingerprint == fingerprint(module)


def test_an_nnsight_model_is_put_into_eval_mode_without_gradients(plain, tokenizer) -> None:
    given = TransformersModel(plain("llama").train(), tokenizer=tokenizer, task="text-generation")
    model = au.load(given)
    assert not model._module.training
    assert not any(parameter.requires_grad for parameter in model._module.parameters())


def test_an_nnsight_model_takes_the_dtype_that_is_asked_for(plain, tokenizer) -> None:
    given = TransformersModel(plain("llama"), tokenizer=tokenizer, task="text-generation")
    assert au.load(given, dtype="float64")._module.dtype == torch.float64


def test_an_nnsight_model_takes_the_tokenizer_that_is_given(plain, tokenizer, own_tokenizer) -> None:
    given = TransformersModel(plain("llama"), tokenizer=tokenizer, task="text-generation")
    assert au.load(given, tokenizer=own_tokenizer).tokenizer is own_tokenizer


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(plain, own_tokenizer) -> None:
    own_tokenizer.pad_token = None
    model = au.load(plain("llama"), tokenizer=own_tokenizer)
    assert model.tokenizer.pad_token == model.tokenizer.eos_token


def test_a_remote_model_is_known_without_its_weights(plain, tokenizer, tmp_path: Path) -> None:
    plain("llama").config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = au.load(tmp_path, remote=True)
    assert info(model).remote is True
    assert info(model).shape == (3, 32)
    assert {parameter.device.type for parameter in model._module.parameters()} == {"meta"}
    assert encode(model, ["Hello"])["input_ids"].tolist() == [tokenizer("Hello").input_ids]


@pytest.mark.parametrize("dispatch", [True, False])
def test_a_remote_nnsight_model_loads_no_weights_and_moves_none(
    plain, tokenizer, tmp_path: Path, dispatch: bool
) -> None:
    plain("llama").save_pretrained(tmp_path)
    given = TransformersModel(str(tmp_path), tokenizer=tokenizer, task="text-generation", dispatch=dispatch)
    before = [(parameter.device, parameter.dtype) for parameter in given._module.parameters()]
    model = au.load(given, remote=True, device="cuda", dtype="float64")
    assert model.dispatched is dispatch
    assert [(parameter.device, parameter.dtype) for parameter in model._module.parameters()] == before
    assert (info(model).id, info(model).remote, info(model).shape) == (str(tmp_path), True, (3, 32))
    assert encode(model, ["Hello"])["input_ids"].tolist() == [tokenizer("Hello").input_ids]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_model_in_memory_stays_where_it_is_unless_a_device_is_asked_for(
    plain, tokenizer, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    module = plain("llama")
    given = TransformersModel(module, tokenizer=tokenizer, task="text-generation") if wrapped else module
    asked = []
    monkeypatch.setattr(module, "to", lambda device: asked.append(device) or module)
    au.load(given, tokenizer=tokenizer)
    assert asked == []
    au.load(given, tokenizer=tokenizer, device="cpu")
    assert asked == ["cpu"]


# What cannot be loaded


@pytest.mark.parametrize("remote", [False, "local"])
def test_cuda_is_used_where_it_is_and_missed_in_one_sentence(plain, tokenizer, remote: bool | str) -> None:
    given = {"tokenizer": tokenizer, "device": "cuda", "remote": remote}
    if torch.cuda.is_available():
        assert au.load(plain("llama"), **given)._module.device.type == "cuda"
    else:
        with pytest.raises(ValueError, match='no CUDA device here; use device="cpu" or remote=True'):
            au.load(plain("llama"), **given)


def test_an_encoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    tiny_bert(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertForMaskedLM.*not a causal language model"):
        au.load(tmp_path)


def test_an_encoder_in_memory_is_refused(tokenizer) -> None:
    with pytest.raises(ValueError, match="not a causal language model"):
        au.load(transformers.BertForMaskedLM(tiny_bert()), tokenizer=tokenizer)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a causal language model"):
        au.load(tmp_path)


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no configuration"):
        au.load(tmp_path)


def test_what_did_not_come_from_load_is_sent_there(plain) -> None:
    with pytest.raises(TypeError, match=r"au\.load\(\) first"):
        info(plain("llama"))


class Hub(BaseHTTPRequestHandler):
    """A hub that has one gated model and no other."""

    def do_GET(self) -> None:
        gated = "/gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def no_such_hub_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", hub.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.ENDPOINT, url))
    monkeypatch.setattr(hub, "ENDPOINT", url)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such/name!"])
def test_an_unknown_hub_id_is_refused(no_such_hub_model: None, name: str) -> None:
    with pytest.raises(ValueError, match="neither a model on the Hugging Face hub nor a local directory"):
        au.load(name)


def test_a_gated_model_says_how_to_be_let_in(no_such_hub_model: None) -> None:
    with pytest.raises(ValueError, match="gated: accept its licence.*hf auth login"):
        au.load("gated/model")


def test_without_a_network_the_error_names_the_model_that_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"nobody/some-model is not on this machine.*au\.load\(\)"):
        au.load("nobody/some-model")


# Fingerprints


def test_copies_in_other_dtypes_have_the_same_fingerprint(plain, kind: str) -> None:
    found = {fingerprint(plain(kind, dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)}
    assert len(found) == 1


def test_changing_any_one_tensor_changes_the_fingerprint(plain, kind: str) -> None:
    module = plain(kind).requires_grad_(False)
    seen = {fingerprint(module)}
    for parameter in module.parameters():
        before = parameter.clone()
        parameter.add_(1)
        seen.add(fingerprint(module))
        parameter.copy_(before)
    assert len(seen) == 1 + len(list(module.parameters()))


def test_changing_one_column_of_one_matrix_changes_the_fingerprint(model, twin) -> None:
    # Baking one unit changes just that much, and the result is another model.
    module = twin(model)
    column = module.model.layers[14].self_attn.o_proj.weight[:, 300]
    before = column.clone()
    column.mul_(3)
    after = fingerprint(module)
    column.copy_(before)
    assert after != fingerprint(module)


# Text to tokens


def test_texts_are_padded_on_the_left(model) -> None:
    batch = encode(model, ["One", "One two three"])
    short, long = model.tokenizer("One").input_ids, model.tokenizer("One two three").input_ids
    padding = len(long) - len(short)
    assert batch["input_ids"].tolist() == [[model.tokenizer.pad_token_id] * padding + short, long]
    assert batch["attention_mask"].tolist() == [[0] * padding + [1] * len(short), [1] * len(long)]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


@pytest.mark.parametrize("texts", [[""], ["fine", ""], [None], [3]])
def test_what_is_no_text_is_refused(tiny, texts: list) -> None:
    with pytest.raises(ValueError, match="is not a text"):
        encode(tiny("llama"), texts)


def test_a_bare_string_is_not_taken_for_a_list_of_letters(tiny) -> None:
    with pytest.raises(ValueError, match="list"):
        encode(tiny("llama"), "Hello")


def test_an_empty_list_of_texts_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="No text was given"):
        encode(tiny("llama"), [])


def test_a_text_longer_than_the_context_is_quoted(tiny, kind: str) -> None:
    with pytest.raises(ValueError, match=r"'Tell me a story Tell me.* more than the context of"):
        encode(tiny(kind), ["short", "Tell me a story " * 3000])


def test_an_unknown_template_is_refused(model) -> None:
    with pytest.raises(ValueError, match="template is 'alpaca'"):
        encode(model, ["Hello"], template="alpaca")


def test_the_chat_template_makes_a_users_turn(model) -> None:
    (text,) = apply_template(model, ["Hello there"], "chat")
    assert "<|im_start|>user\nHello there<|im_end|>\n" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert encode(model, ["Hello there"], "chat")["input_ids"].tolist() == [token_ids(model, text)]


def test_a_tokenizer_without_a_chat_template_says_so(plain, own_tokenizer) -> None:
    own_tokenizer.chat_template = None
    model = au.load(plain("llama"), tokenizer=own_tokenizer)
    with pytest.raises(ValueError, match="has no chat template; use template=None"):
        apply_template(model, ["Hello"], "chat")


def test_the_default_model_reads_no_bos_token(model) -> None:
    assert model.tokenizer.bos_token_id not in token_ids(model, "Hello there")


@pytest.mark.parametrize("text", ["Hello there", "<|im_start|>Hello there"])
def test_bos_is_added_once_and_never_twice(plain, tokenizer, text: str) -> None:
    ids = token_ids(au.load(plain("llama"), tokenizer=tokenizer, bos=True), text)
    assert ids == [tokenizer.bos_token_id, *tokenizer("Hello there").input_ids]


def test_a_chat_that_starts_with_bos_gets_no_second_one(plain, tokenizer) -> None:
    with_bos, without = (au.load(plain("llama"), tokenizer=tokenizer, bos=bos) for bos in (True, False))
    assert torch.equal(*(encode(model, ["Hello"], "chat")["input_ids"] for model in (with_bos, without)))


def test_the_models_own_convention_about_bos_is_found_at_load(plain, own_tokenizer) -> None:
    bos = (own_tokenizer.bos_token, own_tokenizer.bos_token_id)
    own_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    model = au.load(plain("llama"), tokenizer=own_tokenizer)
    assert info(model).bos
    assert token_ids(model, "Hello") == own_tokenizer("Hello").input_ids
    assert bos[1] not in token_ids(au.load(plain("llama"), tokenizer=own_tokenizer, bos=False), "Hello")


def test_bos_is_refused_where_the_tokenizer_has_none(plain, own_tokenizer) -> None:
    own_tokenizer.bos_token = None
    with pytest.raises(ValueError, match="has no BOS token; use bos=False"):
        au.load(plain("llama"), tokenizer=own_tokenizer, bos=True)
