"""A small model comes back as it was saved, the library works on it, and the shipped ones are what their cards say."""

from pathlib import Path
from typing import Any

import pytest
import torch

import austeer as au
from austeer import small
from austeer.generation import Sampling
from austeer.small import grammar, training

NAMES = sorted(folder.parent.name for folder in au.data.own_folder("models").glob("reviews-*/card.json"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    module = training.llama(2, seed=5).eval()
    folder = tmp_path_factory.getbasetemp() / "models" / "tiny"
    small.save(module, folder, {"seed": 5})
    return module, folder


def test_a_model_comes_back_in_float32_and_rounded_to_16_bits(saved: Any) -> None:
    module, folder = saved
    model = small.load(folder)
    for (name, weight), (own, loaded) in zip(module.named_parameters(), model._module.named_parameters(), strict=True):
        assert name == own
        assert weight.dtype == loaded.dtype == torch.float32
        assert torch.equal(weight.half().float(), loaded)
    assert small.card(folder) | {"seed": 5, "parameters": sum(w.numel() for w in module.parameters())} == small.card(
        folder
    )


def test_a_result_names_the_model_and_not_a_path_of_this_machine(saved: Any) -> None:
    assert au.models.info(small.load(saved[1])).id == "tiny"


def test_the_library_reads_it_as_it_was_trained(saved: Any) -> None:
    model = small.load(saved[1])
    review = grammar.sample(1, torch.Generator().manual_seed(0))[0]
    rest = review.text.removeprefix(review.prompt)
    found = au.log_probability(model, [rest], [review.prompt]).item()
    ids = grammar.encode([review.text])[:, :-1]
    log_p = model._module(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert found == pytest.approx(log_p[-len(rest.split()) :].sum().item(), abs=1e-3)


def test_altered_weights_are_refused(saved: Any, tmp_path: Path) -> None:
    small.save(saved[0], tmp_path / "other", {})
    weights = tmp_path / "other" / small.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(OSError, match="altered"):
        small.load(tmp_path / "other")


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"reviews-0\.1M"):
        small.load("reviews-9M")


def test_the_shipped_models_are_a_family_of_under_12_megabytes() -> None:
    folder = au.data.own_folder("models")
    assert NAMES == ["reviews-0.1M", "reviews-0.4M", "reviews-0.9M", "reviews-3.0M"]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12_000_000
    sizes = [small.card(name)["parameters"] for name in NAMES]
    assert sizes == sorted(sizes) and sizes[0] < 130_000 and sizes[-1] > 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_learned_the_language(name: str) -> None:
    model, card = small.load(name), small.card(name)
    reviews = grammar.sample(128, torch.Generator().manual_seed(1))
    texts = [review.text for review in reviews]
    own = -au.log_probability(model, [f"{text} </s>" for text in texts], [""] * len(texts)).mean().item()
    least = -sum(map(grammar.log_probability, texts)) / len(texts)
    assert own == pytest.approx(card["nats per review"] - card["least possible"] + least, abs=1.0)
    sampling = Sampling(torch.Generator().manual_seed(0))
    prompts = [review.prompt for review in reviews]
    continued = au.generate(model, prompts, max_new_tokens=28, logits_processor=[sampling], rows_per_pass=len(prompts))
    parsed = [grammar.parse(prompt + text) for prompt, text in zip(prompts, continued, strict=True)]
    assert sum(said is not None and None not in said for said in parsed) > 0.8 * len(parsed)
