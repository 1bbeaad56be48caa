"""A/B questions ask what the pairs said, with no letter favoured unless that is wanted."""

from typing import Any

import pytest
import torch

import austeer as au
from austeer.methods.caa import ab_pairs

PAIRS = [
    au.ContrastivePair(f"The {thing} was", " lovely today.", " awful today.", topic=thing) for thing in ("sea", "bus")
]


def test_a_question_lists_both_answers_and_its_answers_are_letters() -> None:
    first, second = ab_pairs(PAIRS)
    assert first.prompt == "The sea was\n\nChoices:\n (A) lovely today.\n (B) awful today.\n\nAnswer:"
    assert (first.positive, first.negative, first.topic) == (" (A", " (B", "sea")
    assert second.prompt == "The bus was\n\nChoices:\n (A) awful today.\n (B) lovely today.\n\nAnswer:"
    assert (second.positive, second.negative) == (" (B", " (A")


def test_unbalanced_questions_have_the_positive_answer_first() -> None:
    assert {(pair.positive, pair.negative) for pair in ab_pairs(PAIRS, balanced=False)} == {(" (A", " (B")}


@pytest.mark.parametrize("name", ["agreement", "refusal"])
def test_the_letters_of_a_part_are_balanced(name: str) -> None:
    for part in au.split(au.load_pairs(name)):
        matching = [pair.positive for pair in ab_pairs(part)]
        assert matching.count(" (A") == matching.count(" (B")


def test_the_vector_of_questions_is_read_at_the_letter(model: Any) -> None:
    asked = ab_pairs(au.load_pairs("agreement")[:2])
    ids = [au.models.token_ids(model, pair.prompt + pair.positive)[-1] for pair in asked]
    assert model.tokenizer.convert_ids_to_tokens(ids) == ["A", "B"]
    positive, negative = au.collect(model, asked, "residual")
    vector = au.methods.CAA.fit(model, asked, layer=3).operators[0].tensors["value"]
    assert torch.allclose(vector, (positive - negative).mean(0)[3], atol=1e-5)
