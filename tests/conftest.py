"""Models small enough to test with, and plain PyTorch hooks as the reference that knows nothing of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import austeer as au
from austeer.momentum import AtomicUnits

# A large initial range makes the random models as far from linear as trained ones; a context of 256 is enough here.
COMMON = {"vocab_size": 49152, "initializer_range": 0.2, "tie_word_embeddings": False}
ROTARY = {**COMMON, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 256}
GROUPED = {**ROTARY, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda **own: transformers.LlamaConfig(**GROUPED | own, num_hidden_layers=3),
    "qwen3": lambda **own: transformers.Qwen3Config(**GROUPED | own, num_hidden_layers=3, head_dim=12),
    "gpt2": lambda **own: transformers.GPT2Config(**COMMON | own, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gemma2": lambda **own: transformers.Gemma2Config(
        **GROUPED | own, num_hidden_layers=2, head_dim=8, sliding_window=16
    ),
    "gpt_neox": lambda **own: transformers.GPTNeoXConfig(**ROTARY | own, intermediate_size=40, num_hidden_layers=2),
    "qwen2": lambda **own: transformers.Qwen2Config(**GROUPED | own, num_hidden_layers=2),
    "mistral": lambda **own: transformers.MistralConfig(**GROUPED | own, num_hidden_layers=2, sliding_window=None),
    "gemma3_text": lambda **own: transformers.Gemma3TextConfig(
        **GROUPED | own, num_hidden_layers=2, head_dim=8, sliding_window=16
    ),
}
# Where the projections really are, written down by hand: (blocks, attention output projection, FFN down projection).
PATHS = {
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "gemma2": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "qwen2": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "mistral": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gemma3_text": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
}
Edit = Callable[[Tensor], Tensor | None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none here"))


@pytest.fixture(scope="session", params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=["attention", "neuron", "ffn", "residual"])
def site(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def model():
    return au.load()


@pytest.fixture(scope="session")
def tokenizer(model):
    return model.tokenizer


@pytest.fixture(scope="session")
def paths() -> dict[str, tuple[str, str, str]]:
    return PATHS


@pytest.fixture(scope="session")
def plain(tokenizer) -> Callable[..., PreTrainedModel]:
    """Makes a new Hugging Face model of a kind, always with the same weights; more settings may be given by name."""

    def make(kind: str, dtype: torch.dtype = torch.float32, **settings) -> PreTrainedModel:
        config = CONFIGS[kind](eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings)
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def tiny(plain, tokenizer) -> Callable:
    """Gives the model of a kind through `au.load`; tests share it, so they must not change it."""
    made = {}

    def give(kind: str, dtype: torch.dtype = torch.float32, remote: bool | str = False):
        key = kind, dtype, remote
        if key not in made:
            made[key] = au.load(plain(kind, dtype), tokenizer=tokenizer, remote=remote)
        return made[key]

    return give


@pytest.fixture(scope="session")
def twin() -> Callable[..., PreTrainedModel]:
    """Gives a plain copy of a model's weights that nnsight has never touched, for the references."""
    made = {}

    def give(model) -> PreTrainedModel:
        if model not in made:
            module = model._module
            copied = type(module)(module.config).to(module.dtype).eval().requires_grad_(False)
            copied.load_state_dict(module.state_dict())
            copied.generation_config = module.generation_config
            made[model] = copied
        return made[model]

    return give


@pytest.fixture(scope="session")
def padded(tokenizer) -> Callable[[list[str]], dict[str, Tensor]]:
    """Tokenises texts with padding on the left, each token at its own position, as a plain forward pass needs it."""

    def tokens(texts: list[str]) -> dict[str, Tensor]:
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return {**batch, "position_ids": positions}

    return tokens


@pytest.fixture(scope="session")
def hooked() -> Callable:
    """Runs a plain model with hooks: `hooked(module, {(layer, site): edit})`, where edit(x) is the new x or None."""

    @contextmanager
    def run(module: PreTrainedModel, edits: dict[tuple[int, str], Edit]) -> Iterator[None]:
        handles = [_hook(module, layer, site, edit) for (layer, site), edit in edits.items()]
        try:
            with torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    return run


def _hook(module: PreTrainedModel, layer: int, site: str, edit: Edit):
    blocks, attention, down = PATHS[module.config.model_type]
    block = module.get_submodule(f"{blocks}.{layer}")

    def before(_, given: tuple) -> tuple | None:
        new = edit(given[0])
        return None if new is None else (new, *given[1:])

    def after(_, given: tuple, output):
        new = edit(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if isinstance(output, tuple) and new is not None else new

    if site == "gate":
        return block.get_submodule("mlp.act_fn").register_forward_hook(after)
    if site in ("attention", "neuron"):
        return block.get_submodule(attention if site == "attention" else down).register_forward_pre_hook(before)
    return (block if site == "residual" else block.get_submodule(down)).register_forward_hook(after)


class Recorder(LogitsProcessor):
    """Keeps the best token and its score at every step: `au.generate` returns text, and two tokens may print alike."""

    def __init__(self):
        self.steps: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.max(-1)
        self.steps.append((best.indices, best.values))
        return scores

    def take(self) -> tuple[Tensor, Tensor]:
        """Return tokens and scores, (texts, steps) each, and forget them."""
        tokens, scores = (torch.stack(column, 1) for column in zip(*self.steps, strict=True))
        self.steps.clear()
        return tokens, scores


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def plain_generate(twin, hooked) -> Callable[..., tuple[Tensor, Tensor]]:
    """Generates greedily with a plain model under hooks: tokens and their scores, (texts, steps) each."""

    def run(model, prompts: list[str], edits: dict[tuple[int, str], Edit], steps: int, **options):
        module, seen = twin(model), Recorder()
        batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
        with hooked(module, edits):
            module.generate(
                **batch, do_sample=False, max_new_tokens=steps, min_new_tokens=steps,
                logits_processor=LogitsProcessorList([seen]), **options,
            )  # fmt: skip
        return seen.take()

    return run


@pytest.fixture(scope="session")
def some_units() -> Callable[..., AtomicUnits]:
    """Draws k units of a site with random scores, large enough to change what a model says."""

    def draw(model, site: str, k: int = 12, seed: int = 0, size: float = 1.0) -> AtomicUnits:
        found = au.sites.anatomy(model)
        generator, width = torch.Generator().manual_seed(seed), found.widths[site]
        order = torch.randperm(found.layers * width, generator=generator)[:k]
        beta = torch.rand(k, generator=generator) * 2 - 1
        difference = torch.randn(k, generator=generator) * size
        shape = (found.layers, width)
        return AtomicUnits(site, order // width, order % width, beta, difference, au.models.info(model), shape)

    return draw
