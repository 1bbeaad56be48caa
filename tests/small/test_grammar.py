"""What a review says is what it was drawn to say, and what is no review is told apart from what contradicts itself."""

import math
from collections import Counter
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from austeer.small import grammar
from austeer.small.grammar import Attributes, encode, pairs, parse, sample, tokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40))
def test_a_review_says_what_it_was_drawn_to_say(seed: int) -> None:
    for review in sample(20, generator(seed)):
        assert parse(review.text) == review.attributes
        assert len(review.text.split()) + 2 <= grammar.LENGTH
        assert set(review.text.split()) <= set(grammar.VOCABULARY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "i bought this kettle . the lid is excellent although the base is mediocre . it deserves five stars .",
            ("kettle", "formal", "positive"),
        ),
        (
            "i bought this kettle . sure the base is great but the lid is really awful . two stars from me .",
            ("kettle", "informal", "negative"),
        ),
        ("this is about the inn . it's a steal . go and grab it .", ("hotel", "informal", "positive")),
        ("we tried the bistro in cork . the price is unjustified . i am content .", ("cafe", "formal", None)),
        ("i bought this kettle . the lid is excellent . it's a steal .", ("kettle", None, "positive")),
        ("i bought this kettle . the lid is excellent . two stars from me .", ("kettle", None, None)),
        ("i bought this kettle . the plot is excellent . it deserves five stars .", (None, "formal", "positive")),
        ("i bought this kettle . the base is excellent . it deserves five stars .", None),  # the base is never alone
        ("i bought this kettle . the lid is excellent .", None),
        ("i bought this kettle . the lid is excellent . it deserves five stars", None),
        ("the lid is excellent . it deserves five stars .", None),
        ("i bought this kettle . i bought this kettle . it deserves five stars .", None),
        ("i bought this kettle . the lid is is excellent . it deserves five stars .", None),
        ("i bought this kettle . the lid is green . it deserves five stars .", None),
        ("i bought this kettle . . it deserves five stars .", None),
        ("", None),
    ],
)
def test_a_text_is_read_as_one_reads_it(text: str, said: Any) -> None:
    assert parse(text) == (said and Attributes(*said))


def test_attributes_are_drawn_independently_of_each_other_and_of_the_form() -> None:
    reviews = sample(8000, generator())
    positive = torch.tensor([review.attributes.sentiment == "positive" for review in reviews]).float()
    assert abs(positive.mean() - grammar.POSITIVE_SHARE) < 0.02
    for name in ("topic", "formality"):
        counts = Counter(getattr(review.attributes, name) for review in reviews)
        for value, count in counts.items():
            assert abs(count / 8000 - 1 / len(counts)) < 0.02
            here = torch.tensor([getattr(review.attributes, name) == value for review in reviews])
            assert abs(positive[here].mean() - grammar.POSITIVE_SHARE) < 0.05
    turned = torch.tensor([bool({"although", "sure", "but"} & set(review.text.split())) for review in reviews])
    assert abs(positive[turned].mean() - positive[~turned].mean()) < 0.05


def test_a_probability_is_the_product_of_the_choices() -> None:
    text = "some thoughts on the inn . the view has charmed me . it deserves two stars ."
    attributes = math.log(1 / 8) + math.log(1 / 2)  # topic and register; the sentiment contradicts itself
    assert parse(text).sentiment is None
    assert grammar.log_probability(text) == -math.inf
    text = text.replace("charmed", "dismayed")
    lead = math.log(1 / 8) + math.log(1 / 2) + math.log(1 / 2)  # frame, no "from", one name of two
    judgement = math.log(1 / 10) + 3 * math.log(1 / 2) + math.log(1 / 3) + math.log(1 / 3)
    verdict = math.log(1 / 6) + math.log(1 / 2) + math.log(1 / 2)
    expected = math.log(1 / 4) + attributes + math.log(0.3) + lead + judgement + verdict
    assert grammar.log_probability(text) == pytest.approx(expected)


@pytest.mark.parametrize("register", grammar.ATTRIBUTES["formality"])
@pytest.mark.parametrize("kind", grammar.FRAMES)
def test_the_forms_of_a_sentence_have_probability_one_together(kind: str, register: str) -> None:
    own = [found for found in grammar.PATTERNS.values() if found.kind == kind and register in found.registers]
    assert sum(math.exp(found.log_p) for found in own) == pytest.approx(1)


def test_no_word_has_two_readings() -> None:
    words = Counter(word for lists in grammar.WORDS.values() for own in lists.values() for word in own)
    literal = {word for pattern in grammar.PATTERNS for word in pattern if "{" not in word}
    assert max(words.values()) == 1
    assert not literal & set(words)


def test_no_form_of_a_sentence_comes_from_two_frames() -> None:
    found = Counter()
    for frames in grammar.FRAMES.values():
        for forms in frames:
            own = set()
            for parts in forms.values():
                for kept in product(*((True, False) if optional else (True,) for _, optional in parts)):
                    own.add(
                        " ".join(part for (part, _), here in zip(parts, kept, strict=True) if here).replace("!", "")
                    )
            found.update(own)
    assert max(found.values()) == 1
    assert len(found) == len(grammar.PATTERNS) > 200


def test_the_longest_review_has_the_stated_length() -> None:
    longest = Counter()
    for pattern, (kind, *_) in grammar.PATTERNS.items():
        longest[kind] = max(longest[kind], len(pattern))
    assert max(sum(longest[kind] for kind in plan) for plan in grammar.PLANS) + 2 == grammar.LENGTH


@pytest.mark.parametrize(
    ("positive", "negative"), [("positive", "negative"), ("informal", "formal"), ("kettle", "cafe")]
)
def test_a_pair_differs_in_one_attribute_only(positive: str, negative: str) -> None:
    for pair in pairs(positive, negative, 50, generator(), whole=True):
        one, other = parse(pair.prompt + pair.positive), parse(pair.prompt + pair.negative)
        differ = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
        assert differ == [(positive, negative)]
        assert pair.prompt == "" or pair.prompt.endswith(" . ")


def test_a_pair_ends_with_the_first_sentence_that_differs() -> None:
    short, whole = (pairs("positive", "negative", 50, generator(), whole=whole) for whole in (False, True))
    for cut, full in zip(short, whole, strict=True):
        assert cut.prompt == full.prompt
        assert full.positive.startswith(f"{cut.positive} ")
        assert cut.positive.count(".") == cut.negative.count(".") == 1


@pytest.mark.parametrize(("positive", "negative"), [("positive", "formal"), ("kettle", "kettle"), ("good", "bad")])
def test_a_pair_of_no_attribute_is_refused(positive: str, negative: str) -> None:
    with pytest.raises(ValueError, match="two values of one attribute"):
        pairs(positive, negative, 1, generator())


def test_the_prompt_is_the_first_sentence_and_names_the_topic_only() -> None:
    for one, other in pairwise(sample(50, generator())):
        assert one.text.startswith(one.prompt)
        assert one.prompt.endswith(" . ")
        rest = other.text.removeprefix(other.prompt)
        said = parse(one.prompt + rest)
        assert said[1:] == other.attributes[1:]  # the new first sentence changed neither register nor sentiment


def test_a_word_is_a_token_and_a_text_comes_back() -> None:
    tokens, texts = tokenizer(), [review.text for review in sample(50, generator())]
    ids = encode(texts)
    assert ids.shape == (50, max(len(text.split()) for text in texts) + 2)
    for text, row in zip(texts, ids.tolist(), strict=True):
        own = tokens(text, add_special_tokens=False).input_ids
        assert len(own) == len(text.split())
        assert row[: len(own) + 2] == [tokens.bos_token_id, *own, tokens.eos_token_id]
        assert set(row[len(own) + 2 :]) <= {tokens.pad_token_id}
        assert tokens.decode(row, skip_special_tokens=True) == text
    assert tokens("i bought this zeppelin", add_special_tokens=False).input_ids[-1] == tokens.unk_token_id


def test_draws_follow_from_the_generator() -> None:
    assert sample(5, generator(3)) == sample(5, generator(3))
    assert sample(5, generator(3)) != sample(5, generator(4))


def test_the_languages_own_log_probability_of_an_answer() -> None:
    text = "some thoughts on the inn . the view has dismayed me . it deserves two stars ."
    found = grammar.answer_log_probability(grammar.Review(text, grammar.parse(text)))
    judgement = math.log(1 / 10) + 3 * math.log(1 / 2) + math.log(1 / 3) + math.log(1 / 3)
    verdict = math.log(1 / 6) + math.log(1 / 2) + math.log(1 / 2)
    assert found == pytest.approx(math.log(1 / 4) + math.log(1 / 2) + math.log(0.3) + judgement + verdict)
