"""The training loop learns, follows from its seed alone, and goes on after an interruption as if none had been."""

from pathlib import Path

import pytest
import torch

from austeer.small import training
from austeer.small.training import llama, next_token_loss, train


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 16)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


@pytest.mark.parametrize("layers", [4, 6, 8, 12])
def test_models_of_all_sizes_have_the_same_proportions(layers: int) -> None:
    module = llama(layers)
    width = 12 * layers
    blocks = sum(weight.numel() for weight in module.model.layers.parameters())
    assert blocks == 1728 * layers**3 + 2 * layers * width  # and two norms a layer
    assert module.config.num_attention_heads * 24 == width == module.config.hidden_size
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_an_odd_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="even number"):
        llama(5)


def test_initial_weights_follow_from_the_seed_and_touch_no_global_generator() -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(weights(llama(2, seed=1)), weights(llama(2, seed=1)))
    assert not torch.equal(weights(llama(2, seed=1)), weights(llama(2, seed=2)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_activation_is_a_setting() -> None:
    assert llama(2, hidden_act="relu").config.hidden_act == "relu"


def test_the_loss_falls() -> None:
    losses = train(llama(2), next_token_loss, 40, 0.02)
    assert len(losses) == 40
    assert losses[0] > 5.4  # about log of the vocabulary's size
    assert sum(losses[-5:]) / 5 < 4.0


def test_the_loss_is_that_of_the_real_tokens() -> None:
    module, generator = llama(2), torch.Generator().manual_seed(0)
    found = next_token_loss(module, generator)
    texts = [review.text for review in training.grammar.sample(16, torch.Generator().manual_seed(0))]
    total, tokens = 0.0, 0
    for text in texts:  # one by one, without padding
        ids = training.grammar.encode([text])
        log_p = module(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        total -= log_p.gather(1, ids[0, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    assert found.item() == pytest.approx(total / tokens, abs=1e-4)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 4)
    whole = llama(2)
    expected = train(whole, next_token_loss, 10, 0.01, seed=3)
    calls = 0

    def stops(module: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return next_token_loss(module, generator)

    kept = tmp_path / "run" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(llama(2), stops, 10, 0.01, seed=3, resume=kept)
    resumed = llama(2, seed=9)  # its weights come from the file
    losses = train(resumed, next_token_loss, 10, 0.01, seed=3, resume=kept)
    assert losses == expected
    assert torch.equal(weights(resumed), weights(whole))
    assert not any(weight.requires_grad for weight in resumed.parameters())


def test_another_seed_sees_other_texts() -> None:
    one, other = (train(llama(2), next_token_loss, 3, 0.01, seed=seed) for seed in (0, 1))
    assert one != other
