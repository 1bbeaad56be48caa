"""A small language whose meaning is exact: product reviews of known sentiment, topic and formality, and their parser.

A review is a neutral sentence that names a product, then two sentences that judge it. Its attributes are drawn
independently of its form, so one form can be written with other attributes, and the words say again which they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product, takewhile
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from austeer.data import ContrastivePair

LENGTH = 32  # tokens of the longest review, BOS and EOS included
POSITIVE_SHARE = 0.7  # of all reviews: the two sides are not equally likely, as on most pages of reviews
BOS, EOS, PAD, UNKNOWN = SPECIAL = ("<s>", "</s>", "<pad>", "<unk>")

# Topic: names of the product; parts that are judged; parts that are judged beside them.
TOPICS = {
    "kettle": "kettle boiler : lid handle spout : whistle base",
    "novel": "novel thriller : plot ending dialogue : cover title",
    "hotel": "hotel inn : room breakfast view : lobby lift",
    "laptop": "laptop notebook : screen keyboard battery : charger speaker",
    "jacket": "jacket coat : zip lining hood : collar label",
    "cafe": "cafe bistro : soup coffee bread : music terrace",
    "camera": "camera camcorder : lens shutter flash : strap manual",
    "bicycle": "bicycle tricycle : saddle frame chain : bell basket",
}
# Positive and negative words, of the formal and of the informal register; a slot may be in one of them only.
_JUDGING = {
    ("adjective", "formal"): "excellent superb admirable impressive exemplary : "
    "inadequate deficient mediocre unsatisfactory substandard",
    ("adjective", "informal"): "great awesome lovely brilliant neat : rubbish awful lousy crummy naff",
    ("affected", "formal"): "delighted satisfied charmed : disappointed frustrated dismayed",
    ("affected", "informal"): "wowed thrilled tickled : bugged annoyed irked",
    ("manner", "formal"): "flawlessly reliably smoothly : erratically poorly unreliably",
    ("simile", "informal"): "magic clockwork silk : mud porridge molasses",
    ("advise", "formal"): "recommend endorse praise : reject condemn discourage",
    ("order", "informal"): "grab snag nab : skip ditch dodge",
    ("keep", "formal"): "retain preserve cherish : return discard relinquish",
    ("keep", "informal"): "treasure keep hoard : bin dump scrap",
    ("feeling", "formal"): "grateful content appreciative : displeased dissatisfied indignant",
    ("feeling", "informal"): "chuffed stoked happy : gutted miffed mad",
    ("value", "formal"): "justified reasonable fair : unjustified excessive exorbitant",
    ("value", "informal"): "steal bargain bonus : ripoff scam swindle",
    ("stars",): "five four : one two",
    ("opener", "formal"): "fortunately happily : regrettably sadly",
    ("opener", "informal"): "luckily yay : alas ugh",
}
# Words that say the register only, formal and informal, and words that say nothing.
_REGISTER = {
    "degree": "rather remarkably thoroughly decidedly : really super totally pretty",
    "closer": "overall ultimately therefore consequently : anyway so basically yeah",
    "span": "throughout consistently hitherto : nonstop daily lately",
}
_NEUTRAL = {
    "person": "sister brother father mother friend neighbour",
    "place": "paris oslo cork ghent",
    "scope": "already afterwards indoors outdoors",
    "when": "yesterday recently online abroad twice secondhand",
}
# What stands in [] may be left out; {x} is a word of slot x, {x!} one of the opposite sentiment. A second line is the
# informal form; without one the words alone tell the register.
_FRAMES = {
    "lead": """
        i bought this {item} [{when}] .
        my {person} gave me this {item} [{when}] .
        we tried the {item} in {place} [{when}] .
        this {item} came from {place} [{when}] .
        this is about the {item} [of my {person}] .
        we chose this {item} for my {person} [{when}] .
        we rented this {item} with my {person} [{when}] .
        some thoughts on the {item} [from {place}] .
    """,
    "judgement": """
        [{opener}] the {part} is [{degree}] {adjective} [{scope}] .
        [{opener}] i consider the {part} [{degree}] {adjective} [{scope}] .
            | [{opener}] i reckon the {part} is [{degree}] {adjective} [{scope}] .
        [{opener}] the {part} has [{degree}] {affected} me [{scope}] .
            | [{opener}] the {part} just [{degree}] {affected} me [{scope}] .
        [{opener}] the {part} is {adjective} although the {extra} is [{degree}] {adjective!} .
            | [{opener}] the {part} is {adjective} but the {extra} is [{degree}] {adjective!} .
        although the {extra} is {adjective!} the {part} is [{degree}] {adjective} .
            | sure the {extra} is {adjective!} but the {part} is [{degree}] {adjective} .
        [{opener}] both the {part} and the {extra} are [{degree}] {adjective} .
            | [{opener}] the {part} and the {extra} are both [{degree}] {adjective} .
        [{opener}] it is the {part} that has [{degree}] {affected} me .
            | [{opener}] it's the {part} that [{degree}] {affected} me .
        [{opener}] many find the {part} [{degree}] {adjective} [{scope}] .
            | [{opener}] you'll find the {part} [{degree}] {adjective} [{scope}] .
        [{opener}] the {part} seems [{degree}] {adjective} [{scope}] .
            | [{opener}] the {part} looks [{degree}] {adjective} [{scope}] .
        [{opener}] my {person} deems the {part} [{degree}] {adjective} .
            | [{opener}] my {person} says the {part} is [{degree}] {adjective} .
    """,
    "experience": """
        [{opener}] it has functioned {manner} [{span}] .
            | [{opener}] it worked like {simile} [{span}] .
        [{opener}] the {part} operates {manner} [{span}] .
            | [{opener}] the {part} runs like {simile} [{span}] .
        [{opener}] the delivery was [{degree}] {adjective} .
            | [{opener}] the shipping was [{degree}] {adjective} .
        [{opener}] it has {affected} my {person} [{span}] .
            | [{opener}] it just {affected} my {person} [{span}] .
        [{opener}] the {part} has {affected} my {person} [{span}] .
            | [{opener}] the {part} just {affected} my {person} [{span}] .
        [{opener}] the price is [{degree}] {value} [{scope}] .
            | [{opener}] it's a {value} [{scope}] .
    """,
    "verdict": """
        [{closer}] i would [{degree}] {advise} it .
            | [{closer}] go and [{degree}] {order} it .
        [{closer}] my {person} would [{degree}] {advise} it .
            | [{closer}] my {person} should {order} it .
        [{closer}] it deserves {stars} stars .
            | [{closer}] {stars} stars from me .
        [{closer}] we intend to {keep} it .
            | [{closer}] we're gonna {keep} it .
        [{closer}] i am [{degree}] {feeling} .
            | [{closer}] i'm [{degree}] {feeling} .
        [{closer}] i call the price [{degree}] {value} .
            | [{closer}] i call it a {value} .
    """,
}
_COINS = 3  # optional parts that a frame has at most
PLANS = (
    ("lead", "judgement", "verdict"),
    ("lead", "experience", "verdict"),
    ("lead", "experience", "judgement"),
    ("lead", "judgement", "experience"),
)
ATTRIBUTES = {
    "topic": tuple(TOPICS),
    "formality": ("formal", "informal"),
    "sentiment": ("positive", "negative"),
}
_ATTRIBUTE_OF = {value: name for name, values in ATTRIBUTES.items() for value in values}
_OPPOSITE = {"positive": "negative", "negative": "positive"}


class Attributes(NamedTuple):
    """What a review says; in a parsed text None where its words contradict each other or do not tell."""

    topic: str | None
    formality: str | None
    sentiment: str | None


class Review(NamedTuple):
    """A text and its attributes."""

    text: str
    attributes: Attributes

    @property
    def prompt(self) -> str:
        """The first sentence, which names the topic only, and a space: what a model is given to continue."""
        return first_sentence(self.text)


def first_sentence(text: str) -> str:
    """Return a review's first sentence with the space after it."""
    return text[: text.index(" . ") + 3]


class _Sentence(NamedTuple):
    """The form of a sentence: its frame, coins that keep optional parts, and a number that picks each slot's word."""

    kind: str
    frame: int
    coins: tuple[bool, ...]
    picks: dict[str, float]


class _Pattern(NamedTuple):
    """What a form of a sentence says: its kind, the registers that have it, which words count as their opposites."""

    kind: str
    registers: set[str]
    turned: tuple[bool, ...]
    log_p: float  # of the form, given kind and register


def _words() -> dict[str, dict[frozenset[str], list[str]]]:
    """Return for each slot the words that it may hold, by the attribute values that they say."""
    words: dict[str, dict[frozenset[str], list[str]]] = {}
    for topic, listed in TOPICS.items():
        for slot, own in zip(("item", "part", "extra"), listed.split(" : "), strict=True):
            words.setdefault(slot, {})[frozenset([topic])] = own.split()
    for (slot, *register), listed in _JUDGING.items():
        for sentiment, own in zip(ATTRIBUTES["sentiment"], listed.split(" : "), strict=True):
            words.setdefault(slot, {})[frozenset([*register, sentiment])] = own.split()
    for slot, listed in _REGISTER.items():
        for register, own in zip(ATTRIBUTES["formality"], listed.split(" : "), strict=True):
            words.setdefault(slot, {})[frozenset([register])] = own.split()
    for slot, listed in _NEUTRAL.items():
        words[slot] = {frozenset(): listed.split()}
    return words


def _frames() -> dict[str, list[dict[str, list[tuple[str, bool]]]]]:
    """Return for each kind of sentence its frames: for each register, parts and whether they may be left out."""
    frames = {}
    for kind, text in _FRAMES.items():
        both = [line.split(" | ") for line in re.sub(r"\n\s*\|", " |", text).strip().split("\n")]
        frames[kind] = [
            {
                register: [(part.strip("[] "), part[0] == "[") for part in re.findall(r"\[[^]]*\]|[^[]+", form)]
                for register, form in zip(ATTRIBUTES["formality"], (forms[0].strip(), forms[-1].strip()), strict=True)
            }
            for forms in both
        ]
    return frames


def _patterns() -> dict[tuple[str, ...], _Pattern]:
    """Return every form of a sentence, as its words and slots."""
    patterns: dict[tuple[str, ...], _Pattern] = {}
    for kind, frames in FRAMES.items():
        for forms in frames:
            for register, parts in forms.items():
                coins = [optional for _, optional in parts]
                for kept in product(*((True, False) if optional else (True,) for optional in coins)):
                    said = " ".join(part for (part, _), here in zip(parts, kept, strict=True) if here).split()
                    key, turned = tuple(word.replace("!", "") for word in said), tuple("!" in word for word in said)
                    registers = {register} | (patterns[key].registers if key in patterns else set())
                    log_p = -math.log(len(frames)) - sum(coins) * math.log(2)
                    patterns[key] = _Pattern(kind, registers, turned, log_p)
    return patterns


WORDS, FRAMES = _words(), _frames()
PATTERNS = _patterns()
_TAGS = {word: (slot, values) for slot, lists in WORDS.items() for values, own in lists.items() for word in own}
_LITERAL = {word for pattern in PATTERNS for word in pattern if "{" not in word}
_SLOTS = sorted({word for pattern in PATTERNS for word in pattern if "{" in word} | {"{adjective!}"})
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *sorted({*_TAGS, *_LITERAL})))}


def sample(n: int, generator: torch.Generator) -> list[Review]:
    """Draw reviews: attributes first, then a form that knows nothing of them.

    Args:
        n: how many.
        generator: every draw comes from it.
    """
    return [Review(" ".join(_write(form, attributes)), attributes) for form, attributes in _draw(n, generator)]


def _draw(n: int, generator: torch.Generator) -> Iterator[tuple[list[_Sentence], Attributes]]:
    """Yield forms and attributes, n of each."""
    each = _COINS + 1 + len(_SLOTS)  # numbers that a sentence needs
    for numbers in torch.rand(n, 4 + max(map(len, PLANS)) * each, generator=generator).tolist():
        topic, register, positive, plan, *rest = numbers
        attributes = Attributes(
            _pick(ATTRIBUTES["topic"], topic),
            _pick(ATTRIBUTES["formality"], register),
            ATTRIBUTES["sentiment"][positive >= POSITIVE_SHARE],
        )
        form = []
        for place, kind in enumerate(_pick(PLANS, plan)):
            frame, *own = rest[place * each : (place + 1) * each]
            coins = tuple(coin < 0.5 for coin in own[:_COINS])
            form.append(
                _Sentence(kind, int(frame * len(FRAMES[kind])), coins, dict(zip(_SLOTS, own[_COINS:], strict=True)))
            )
        yield form, attributes


def _write(form: list[_Sentence], attributes: Attributes) -> list[str]:
    """Return the sentences of a form with these attributes."""
    said, turned = ({*attributes[:2], sentiment} for sentiment in (attributes[2], _OPPOSITE[attributes[2]]))
    sentences = []
    for kind, frame, coins, picks in form:
        coins, words = iter(coins), []
        for part, optional in FRAMES[kind][frame][attributes.formality]:
            if optional and not next(coins):
                continue
            for word in part.split():
                if word[0] == "{":
                    values = turned if "!" in word else said
                    lists = WORDS[word.strip("{!}")]
                    word = _pick(next(own for known, own in lists.items() if known <= values), picks[word])
                words.append(word)
        sentences.append(" ".join(words))
    return sentences


def _pick(items: Sequence, number: float):
    """Return the item that a number in [0, 1) stands for."""
    return items[int(number * len(items))]


def pairs(
    positive: str, negative: str, n: int, generator: torch.Generator, whole: bool = False
) -> list[ContrastivePair]:
    """Draw pairs of reviews of one form that differ in one attribute only.

    Args:
        positive, negative: two values of one attribute, such as "positive" and "negative", or "kettle" and "novel".
        n: how many.
        generator: every draw comes from it.
        whole: the answers are the rest of the review; by default they end with the first sentence that differs, where
            a model that reads on still needs to know the attribute.

    Returns:
        The prompt is what both sides share and ends in a space (it is empty where topics differ).

    Raises:
        ValueError: not two values of one attribute.
    """
    names = [name for name, values in ATTRIBUTES.items() if {positive, negative} <= set(values)]
    if not names or positive == negative:
        known = "; ".join(f"{name}: {', '.join(values)}" for name, values in ATTRIBUTES.items())
        raise ValueError(f"{positive!r} and {negative!r} are not two values of one attribute ({known}).")
    found = []
    for form, attributes in _draw(n, generator):
        sides = [_write(form, attributes._replace(**{names[0]: value})) for value in (positive, negative)]
        shared = len(list(takewhile(lambda two: two[0] == two[1], zip(*sides, strict=True))))
        prompt = "".join(f"{sentence} " for sentence in sides[0][:shared])
        end = None if whole else shared + 1
        answers = [" ".join(side[shared:end]) for side in sides]
        found.append(ContrastivePair(prompt, *answers, topic=attributes.topic))
    return found


def parse(text: str) -> Attributes | None:
    """Return what a review says, or None if it is not in the grammar.

    An attribute is None where the words contradict each other: such a text has the forms of the language and is in the
    grammar in every respect but that one.
    """
    said: dict[str, set[str]] = {name: set() for name in ATTRIBUTES}
    kinds = []
    for words in _sentences(text):
        if (found := PATTERNS.get(_pattern(words))) is None:
            return None
        kinds.append(found.kind)
        said["formality"] |= found.registers if len(found.registers) == 1 else set()
        for word, turn in zip(words, found.turned, strict=True):
            for value in _TAGS[word][1] if word in _TAGS else ():
                said[_ATTRIBUTE_OF[value]].add(_OPPOSITE.get(value, value) if turn else value)
    if tuple(kinds) not in PLANS:
        return None
    return Attributes(*(values.pop() if len(values) == 1 else None for values in said.values()))


def log_probability(text: str) -> float:
    """Return the log-probability, in nats, with which `sample` writes a text; -inf if it never does."""
    attributes = parse(text)
    if attributes is None or None in attributes:
        return -math.inf
    share = POSITIVE_SHARE if attributes.sentiment == "positive" else 1 - POSITIVE_SHARE
    choices = [len(PLANS), len(ATTRIBUTES["topic"]), len(ATTRIBUTES["formality"])]
    return math.log(share) + sum(map(_log_p, _sentences(text))) - sum(map(math.log, choices))


def answer_log_probability(review: Review) -> float:
    """Return the log-probability, in nats, of a review after its first sentence."""
    return log_probability(review.text) - _log_p(review.prompt.split()) + math.log(len(TOPICS))


def _log_p(words: list[str]) -> float:
    """Return the log-probability of a sentence, once its attributes and its place are known."""
    choices = [len(WORDS[slot][values]) for slot, values in (_TAGS[word] for word in words if word in _TAGS)]
    return PATTERNS[_pattern(words)].log_p - sum(map(math.log, choices))


def _sentences(text: str) -> list[list[str]]:
    """Split a text into the words of its sentences, each with its full stop."""
    return [sentence.split() for sentence in re.findall(r"[^.]+\.|[^.]+$|\.", text.strip())]


def _pattern(words: list[str]) -> tuple[str, ...]:
    return tuple(f"{{{_TAGS[word][0]}}}" if word in _TAGS else word for word in words)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of the language: a word is what stands between spaces, and every word is one token."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN, model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(texts: Iterable[str]) -> Tensor:
    """Return (texts, longest) int64 token ids, BOS in front, EOS behind, padding on the right.

    Raises:
        KeyError: a word that is not in the language.
    """
    ids = [[VOCABULARY[word] for word in (BOS, *text.split(), EOS)] for text in texts]
    width = max(map(len, ids))
    return torch.tensor([row + [VOCABULARY[PAD]] * (width - len(row)) for row in ids])
