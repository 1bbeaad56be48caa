"""A baked checkpoint in an engine that knows neither this library nor PyTorch: CTranslate2 says the same tokens.

Its converter reads the directory that `save_pretrained` wrote; its own kernels run it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import austeer as au
from austeer.methods import AUSteer, DirectionalAUSteer

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the second engine: pip install ctranslate2")

PROMPTS = ["When I opened the letter, I", "My sister told me", "The soup"]
STEPS = 12


@pytest.fixture
def served(tmp_path: Path) -> Callable:
    """Gives the greedy continuations, in tokens, of a checkpoint that is saved, converted and run elsewhere."""

    def generate(baked: Any, tokenizer: Any) -> list[list[int]]:
        baked.save_pretrained(tmp_path / "baked")
        tokenizer.save_pretrained(tmp_path / "baked")
        convert = ctranslate2.converters.TransformersConverter(str(tmp_path / "baked"))
        engine = ctranslate2.Generator(convert.convert(str(tmp_path / "engine")), compute_type="float32")
        prompts = [tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids) for prompt in PROMPTS]
        results = engine.generate_batch(
            prompts, max_length=STEPS, min_length=STEPS, sampling_topk=1, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    return generate


def here(baked: Any, tokenizer: Any) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        new = baked.generate(ids, do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS)
        found.append(new[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("rule", [AUSteer, DirectionalAUSteer])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_another_engine_says_the_same_tokens(tiny: Any, some_units: Any, served: Any, kind: str, rule: type) -> None:
    # A shift makes a Llama with biases of all three.
    model = tiny(kind)
    steering = rule(some_units(model, "attention"), 3.0) + rule(some_units(model, "neuron"), 3.0)
    baked = au.bake(model, steering)
    said = served(baked, model.tokenizer)
    assert said == here(baked, model.tokenizer)
    assert said != here(model._module, model.tokenizer)


def test_another_engine_says_what_the_steered_default_model_says(model: Any, served: Any) -> None:
    units = au.activation_momentum(model, au.load_pairs("sentiment")[::24]).top(20)
    steering = DirectionalAUSteer(units, 12.0)
    said = [model.tokenizer.decode(ids) for ids in served(au.bake(model, steering), model.tokenizer)]
    assert said == au.generate(model, PROMPTS, steering, max_new_tokens=STEPS, min_new_tokens=STEPS)
