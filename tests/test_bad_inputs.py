"""Bad input, one line each: what a user does, and the exact sentence that answers; nothing is left, nothing is changed.

What needs more than one line to set up is tested beside the code that it is about.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import austeer as au
from austeer import methods
from austeer.data import load_results
from austeer.models import fingerprint, info
from austeer.sites import Place, projection, weight

ROW = {"prompt": "It was", "positive": " good.", "negative": " bad."}
PAIRS = [au.ContrastivePair(f"It {verb}", " well.", " ill.", topic=verb) for verb in ("was", "went", "felt", "looked")]
NAN, INF = math.nan, math.inf
MANY = 10_000_000  # characters


def rows(*changes: dict) -> str:
    """The text of a .jsonl file with one row for each change."""
    return "\n".join(json.dumps(ROW | change) for change in changes)


def unit(layer=0, index=1, value=1.0) -> dict[str, torch.Tensor]:
    """The tensors of a steering file whose first operator has these; one number is one unit."""
    given = {"layer": layer, "index": index, "value": value}
    return {f"0.{name}": torch.tensor(x if isinstance(x, list) else [x]) for name, x in given.items()}


NO_UNITS = (
    "The operator 'shift' needs the tensors layer, index and value, (k,) each: whole numbers from 0 on, no unit twice, "
    "and a number for each."
)
NO_FIT = (
    "ValueError: This steering was made for LlamaForCausalLM with (layers, hidden size) (3, 32); it does not fit "
    "LlamaForCausalLM with (3, 32). Fit it again on this model."
)
UNKNOWN = "is none of the book's own ({sets}), nor the path of a .jsonl file."
ONE_STRING = "ValueError: 'Hello there' is one string; give a list of texts, such as [text]."
NO_TEXT = "ValueError: None is not a text; give a string of whole characters."
NO_STEERING = "was given as steering; give a Steering, a list of them, or None."
NOT_LOADED = "TypeError: This LlamaForCausalLM did not come from au.load(); pass it through au.load() first."
UNREADABLE = "ValueError: {dir}/it.safetensors is no steering that austeer {version} can read: "

# What is done with a context `c` (see the fixture), and what it says: the kind of the error and its whole text.
CASES: dict[str, tuple[Callable, str]] = {
    # Texts
    "generate one string": (lambda c: c.say("Hello there"), ONE_STRING),
    "collect one string": (lambda c: au.collect(c.model, "Hello there"), ONE_STRING),
    "perplexity of one string": (lambda c: au.perplexity(c.model, "Hello there"), ONE_STRING),
    "perplexity after one string": (lambda c: au.perplexity(c.model, ["a"], "Hello there"), ONE_STRING),
    "log-probability of one string": (lambda c: au.log_probability(c.model, "Hello there"), ONE_STRING),
    "KL on one string": (lambda c: au.kl(c.model, "Hello there", c.shift), ONE_STRING),
    "sentiment of one string": (lambda c: au.sentiment("Hello there"), ONE_STRING),
    "repetition of one string": (lambda c: au.repetition("Hello there"), ONE_STRING),
    "generate nothing": (lambda c: c.say([]), "ValueError: No prompt was given; give at least one."),
    "collect nothing": (lambda c: au.collect(c.model, []), "ValueError: No pair or text was given; give at least one."),
    "KL on nothing": (
        lambda c: au.kl(c.model, [], c.shift), "ValueError: KL needs texts that are not empty, and [] was given.",
    ),
    "an empty prompt": (
        lambda c: c.say(["", "Hello"]), "ValueError: '' is not a text; give a string of at least one character.",
    ),
    "a prompt that is None": (lambda c: c.say([None]), NO_TEXT),
    "a chat with None": (lambda c: c.say([None], template="chat"), NO_TEXT),
    "activations of None": (lambda c: au.collect(c.model, [None]), NO_TEXT),
    "perplexity of None": (lambda c: au.perplexity(c.model, [None]), NO_TEXT),
    "sentiment of None": (lambda c: au.sentiment([None]), NO_TEXT),
    "half of a character": (
        lambda c: c.say(["Hello \ud83d"]),
        "ValueError: 'Hello \\ud83d' is not a text; give a string of whole characters.",
    ),
    "a prompt longer than the context": (
        lambda c: c.say(["go " * 300]),
        f"ValueError: '{'go ' * 20}'... has 301 tokens and 2 new ones, more than the context of 256; shorten it.",
    ),
    "a pair longer than the context": (
        lambda c: au.activation_momentum(c.model, [*PAIRS, au.ContrastivePair("x", " go" * 300, " no")]),
        f"ValueError: {('x' + ' go' * 300)[:60]!r}... has 301 tokens, more than the context of 256; shorten it.",
    ),
    "more new tokens than the context": (
        lambda c: c.say(["Hello"], max_new_tokens=300),
        "ValueError: 'Hello'... has 1 tokens and 300 new ones, more than the context of 256; shorten it.",
    ),
    "an unknown template": (
        lambda c: c.say(["Hello"], template="alpaca"),
        "ValueError: template is 'alpaca'; give None (raw text) or \"chat\".",
    ),
    "prompts without their texts": (
        lambda c: au.perplexity(c.model, ["a"], ["b", "c"]),
        "ValueError: 2 prompts were given for 1 texts; give one prompt per text.",
    ),
    # Generation
    "no new token": (
        lambda c: c.say(["Hello"], max_new_tokens=0),
        "ValueError: max_new_tokens is 0; give a whole number from 1 on.",
    ),
    "half a token": (
        lambda c: c.say(["Hello"], max_new_tokens=1.5),
        "ValueError: max_new_tokens is 1.5; give a whole number from 1 on.",
    ),
    "a negative batch": (
        lambda c: c.say(["Hello"], rows_per_pass=-1), "ValueError: rows_per_pass is -1; give a whole number from 1 on.",
    ),
    "beams": (
        lambda c: c.say(["Hello"], num_beams=3),
        "ValueError: num_beams is 3; give 1 or leave it out, since each prompt gets one text.",
    ),
    "a steering by its name": (lambda c: c.say(["Hello"], "joy"), f"ValueError: A str {NO_STEERING}"),
    "one steering too few": (
        lambda c: c.say(["a", "b"], [c.shift]),
        "ValueError: 1 steerings were given for 2 prompts; give one, or one per prompt.",
    ),
    "KL of no steering": (lambda c: au.kl(c.model, ["Hello"], None), f"ValueError: A NoneType {NO_STEERING}"),
    "a context of no steering": (
        lambda c: au.steered(c.model, None).__enter__(), f"ValueError: A NoneType {NO_STEERING}",
    ),
    "units to bake": (lambda c: au.bake(c.model, c.units), f"ValueError: A AtomicUnits {NO_STEERING}"),
    "units to audit": (lambda c: au.audit(c.model, c.units, "a"), f"ValueError: A AtomicUnits {NO_STEERING}"),
    "a model from elsewhere": (lambda c: au.generate(c.plain, ["Hello"]), NOT_LOADED),
    "activations of a model from elsewhere": (lambda c: au.collect(c.plain, ["Hello"]), NOT_LOADED),
    "momentum of a model from elsewhere": (lambda c: au.activation_momentum(c.plain, PAIRS), NOT_LOADED),
    # Pairs
    "one pair": (
        lambda c: au.activation_momentum(c.model, PAIRS[:1]),
        "ValueError: 1 pair was given; a sign statistic needs at least 2.",
    ),
    "no pair": (
        lambda c: au.momentum_of(torch.ones(0, 3, 32), torch.ones(0, 3, 32), [], c.model),
        "ValueError: 0 pair was given; a sign statistic needs at least 2.",
    ),
    "the name of a set for its pairs": (
        lambda c: au.activation_momentum(c.model, "sentiment"),
        "ValueError: 's' is not a ContrastivePair; give pairs, such as load_pairs() returns.",
    ),
    "texts for pairs": (
        lambda c: au.activation_momentum(c.model, ["good", "bad"]),
        "ValueError: 'good' is not a ContrastivePair; give pairs, such as load_pairs() returns.",
    ),
    "two equal sides": (
        lambda c: au.ContrastivePair("It was", " so.", " so."),
        "ValueError: The pair 'It was' has the same answer ' so.' on both sides.",
    ),
    "an empty side": (
        lambda c: au.ContrastivePair("It was", "", " so."),
        "ValueError: The pair 'It was' has an empty answer; give both answers.",
    ),
    "an empty opening": (lambda c: au.Prompt("", "sea"), "ValueError: A prompt of topic 'sea' is empty; give a text."),
    "a side that is no text": (
        lambda c: au.ContrastivePair("It was", [" so."], " so."),
        "ValueError: The field 'positive' is [' so.'], not a text.",
    ),
    "a side with half of a character": (
        lambda c: au.ContrastivePair("It was", " \udc80", " so."),
        "ValueError: The field 'positive' is ' \\udc80', not a text.",
    ),
    "split the name of a set": (
        lambda c: au.split("sentiment"),
        "ValueError: 'sentiment' is a name; give what load_pairs() or load_prompts() returns for it.",
    ),
    "split by a share that is no number": (
        lambda c: au.split(PAIRS, train=NAN),
        "ValueError: Shares of nan and 0.25 leave no test part; give two that sum to at most 1.",
    ),
    "swap one topic": (
        lambda c: au.swap_topics(PAIRS[:1] * 3),
        "ValueError: The pairs have 1 topic; half of the topics can be swapped from 2 on.",
    ),
    # Files of pairs
    "an unknown set": (lambda c: au.load_pairs("sentimnt"), f"ValueError: 'sentimnt' {UNKNOWN}"),
    "a path that climbs": (lambda c: au.load_pairs("../../etc/passwd"), f"ValueError: '../../etc/passwd' {UNKNOWN}"),
    "results that climb": (
        lambda c: load_results("../sentiment"),
        "ValueError: '../sentiment' is none of the book's own ({results}), nor the path of a .jsonl file.",
    ),
    "a file of another kind": (lambda c: au.load_pairs("pairs.csv"), f"ValueError: 'pairs.csv' {UNKNOWN}"),
    "no file": (
        lambda c: au.load_pairs("no.jsonl"),
        "FileNotFoundError: no.jsonl does not exist or is no file; give the path of a .jsonl file.",
    ),
    "a directory for a file": (
        lambda c: (c.dir / "it.jsonl").mkdir() or au.load_pairs(c.dir / "it.jsonl"),
        "FileNotFoundError: {dir}/it.jsonl does not exist or is no file; give the path of a .jsonl file.",
    ),
    "an empty file": (lambda c: c.pairs(""), "ValueError: {dir}/it.jsonl holds no rows."),
    "a field that is there twice": (
        lambda c: c.pairs('{"prompt": "a", "prompt": "b", "positive": "c", "negative": "d"}'),
        "ValueError: {dir}/it.jsonl, row 1: not JSON (a field is there twice).",
    ),
    "nothing but a byte-order mark": (lambda c: c.pairs("\ufeff\n"), "ValueError: {dir}/it.jsonl holds no rows."),
    "a byte-order mark in the middle": (
        lambda c: c.pairs(rows({}) + "\n\ufeff" + rows({})),
        "ValueError: {dir}/it.jsonl, row 2: not JSON "
        "(Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)).",
    ),
    "UTF-16": (
        lambda c: c.pairs(rows({}).encode("utf-16")),
        "ValueError: {dir}/it.jsonl is not UTF-8 "
        "('utf-8' codec can't decode byte 0xff in position 0: invalid start byte).",
    ),
    "Latin-1": (
        lambda c: c.pairs(b'{"prompt": "Caf\xe9"}'),
        "ValueError: {dir}/it.jsonl is not UTF-8 "
        "('utf-8' codec can't decode byte 0xe9 in position 15: invalid continuation byte).",
    ),
    "a file cut off in the middle": (
        lambda c: c.pairs(rows({}, {})[:90]),
        "ValueError: {dir}/it.jsonl, row 2: not JSON (Unterminated string starting at: line 1 column 22 (char 21)).",
    ),
    "an array in place of lines": (
        lambda c: c.pairs(json.dumps([ROW])),
        "ValueError: {dir}/it.jsonl, row 1: a list, not an object with named fields.",
    ),
    "a row of 10 MB that is cut off": (
        lambda c: c.pairs('{"prompt": "' + "x" * MANY),
        "ValueError: {dir}/it.jsonl, row 1: not JSON (Unterminated string starting at: line 1 column 12 (char 11)).",
    ),
    "a field of 10 MB that is no text": (
        lambda c: c.pairs(rows({"prompt": ["x" * MANY]})),
        "ValueError: {dir}/it.jsonl, row 1: The field 'prompt' is ['" + "x" * 58 + ", not a text.",
    ),
    "a field that is no number": (
        lambda c: c.pairs('{"prompt": NaN, "positive": "a", "negative": "b"}'),
        "ValueError: {dir}/it.jsonl, row 1: The field 'prompt' is nan, not a text.",
    ),
    "half of a character in a file": (
        lambda c: c.pairs(rows({"prompt": "\ud83d"})),
        "ValueError: {dir}/it.jsonl, row 1: The field 'prompt' is '\\ud83d', not a text.",
    ),
    "a field too few": (
        lambda c: c.pairs('{"prompt": "a", "positive": "b"}'),
        "ValueError: {dir}/it.jsonl, row 1: The field 'negative' is None, not a text.",
    ),
    "a row nested too deeply": (
        lambda c: c.pairs("[" * 200_000),
        "ValueError: {dir}/it.jsonl, row 1: not JSON "
        "(maximum recursion depth exceeded while decoding a JSON array from a unicode string).",
    ),
    "a number of 5,000 digits": (
        lambda c: c.pairs('{"prompt": ' + "1" * 5000 + "}"),
        "ValueError: {dir}/it.jsonl, row 1: not JSON (Exceeds the limit (4300 digits) for integer string conversion: "
        "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit).",
    ),
    "zero bytes": (
        lambda c: c.pairs(b"\0" * 50),
        "ValueError: {dir}/it.jsonl, row 1: not JSON (Expecting value: line 1 column 1 (char 0)).",
    ),
    # Units
    "an unknown site": (
        lambda c: au.activation_momentum(c.model, PAIRS, "head"),
        "ValueError: site is 'head'; give one of attention, gate, neuron, ffn, residual.",
    ),
    "an unknown site of activations in memory": (
        lambda c: au.momentum_of(torch.ones(4, 3, 32), torch.zeros(4, 3, 32), PAIRS, c.model, "head"),
        "ValueError: site is 'head'; give one of attention, gate, neuron, ffn, residual.",
    ),
    "activations without layers": (
        lambda c: au.momentum_of(torch.ones(4, 32), torch.zeros(4, 32), PAIRS, c.model),
        "ValueError: positive is (4, 32), negative (4, 32), for 4 pairs; give (pairs, layers, width) for both.",
    ),
    "activations that are not finite": (
        lambda c: au.momentum_of(torch.ones(4, 3, 32) * INF, torch.zeros(4, 3, 32), PAIRS, c.model),
        "ValueError: Some activations are not finite; check the model's weights and dtype.",
    ),
    "k of 0": (
        lambda c: c.momentum.top(0), "ValueError: k is 0; give a number from 1 to 96, the number of units.",
    ),
    "k beyond the units": (
        lambda c: c.momentum.random(97), "ValueError: k is 97; give a number from 1 to 96, the number of units.",
    ),
    "k that is no whole number": (
        lambda c: c.momentum.top(2.5), "ValueError: k is 2.5; give a number from 1 to 96, the number of units.",
    ),
    "k as text": (
        lambda c: c.momentum.top("3"), "ValueError: k is '3'; give a number from 1 to 96, the number of units.",
    ),
    "an unknown ranking": (
        lambda c: c.momentum.top(3, by="size"), "ValueError: by is 'size'; give \"momentum\" or \"mean_difference\".",
    ),
    "stability without a draw": (
        lambda c: c.momentum.stability(3, draws=0), "ValueError: draws is 0; give a number from 1 on.",
    ),
    "a null of too few topics": (
        lambda c: c.momentum.null(), "ValueError: The pairs have 4 topics; a null by swapping topics needs at least 5.",
    ),
    "one unit by its number": (
        lambda c: c.units[0], "TypeError: Units are taken by slice, such as units[:5], not by 0.",
    ),
    "differences of 0 to scale": (
        lambda c: replace(c.units, mean_difference=torch.zeros(5)).with_norm_of(c.units),
        "ValueError: All mean differences are 0, so no factor gives them another norm; choose other units.",
    ),
    "a layer beyond the model": (
        lambda c: weight(c.model, Place(3, "ffn")), "ValueError: layer is 3; give a number from 0 to 2.",
    ),
    "a layer counted from the end": (
        lambda c: projection(c.model, Place(-1, "attention")), "ValueError: layer is -1; give a number from 0 to 2.",
    ),
    # Methods
    "alpha inf": (
        lambda c: methods.AUSteer(c.units, INF), "ValueError: The strength is inf; give a finite number.",
    ),
    "alpha NaN": (
        lambda c: methods.DirectionalAUSteer(c.units, NAN), "ValueError: The strength is nan; give a finite number.",
    ),
    "alpha as a word": (
        lambda c: methods.AUSteer(c.units, "strong"), "ValueError: The strength is 'strong'; give a finite number.",
    ),
    "alpha as text": (
        lambda c: methods.CAA(c.momentum, 0, "2"), "ValueError: The strength is '2'; give a finite number.",
    ),
    "no alpha": (
        lambda c: methods.SADI(c.model, c.momentum, 2, None), "ValueError: The strength is None; give a finite number.",
    ),
    "units for momentum": (
        lambda c: methods.CAA(c.units, 0, 1.0),
        "ValueError: momentum is of type AtomicUnits; give an ActivationMomentum, from activation_momentum().",
    ),
    "momentum for units": (
        lambda c: methods.AUSteer(c.momentum, 1.0),
        "ValueError: units is of type ActivationMomentum; give AtomicUnits, such as momentum.top(20).",
    ),
    "unknown positions": (
        lambda c: methods.AUSteer(c.units, 1.0, "first"),
        "ValueError: positions is 'first'; give one of all, prompt, last, generated.",
    ),
    "CAA beyond the last layer": (
        lambda c: methods.CAA(c.momentum, 3, 1.0), "ValueError: layer is 3; give a number from 0 to 2.",
    ),
    "CAA between two layers": (
        lambda c: methods.CAA(c.momentum, 1.0, 1.0), "ValueError: layer is 1.0; give a number from 0 to 2.",
    ),
    "ITI without a head": (
        lambda c: methods.ITI.fit(c.model, PAIRS, heads=0), "ValueError: heads is 0; give a number from 1 to 12.",
    ),
    "ITI with too many heads": (
        lambda c: methods.ITI.fit(c.model, PAIRS, heads=13), "ValueError: heads is 13; give a number from 1 to 12.",
    ),
    "ITI on one topic": (
        lambda c: methods.ITI.fit(c.model, PAIRS[:1] * 4, heads=2),
        "ValueError: 4 pairs leave no topic to score probes on; give pairs of more topics.",
    ),
    "SADI with half a head": (
        lambda c: methods.SADI(c.model, c.momentum, 2.5, 1.0), "ValueError: k is 2.5; give a number from 1 to 12.",
    ),
    "a factor that is no number": (
        lambda c: c.shift * NAN, "ValueError: A steering is scaled by a finite number, not by nan.",
    ),
    "factors beyond all numbers": (
        lambda c: c.shift * 1e308 * 1e308, "ValueError: The strength is inf; give a finite number.",
    ),
    # Steering files
    "a file with another ending": (
        lambda c: c.shift.save(c.dir / "joy.pt"),
        "ValueError: '{dir}/joy.pt' does not end in .safetensors; steerings are kept as safetensors only.",
    ),
    "no steering file": (
        lambda c: au.Steering.load(c.dir / "no.safetensors"),
        "FileNotFoundError: {dir}/no.safetensors does not exist or is no file; "
        "give the path of a file that save() wrote.",
    ),
    "a directory for a steering": (
        lambda c: (c.dir / "it.safetensors").mkdir() or au.Steering.load(c.dir / "it.safetensors"),
        "FileNotFoundError: {dir}/it.safetensors does not exist or is no file; "
        "give the path of a file that save() wrote.",
    ),
    "weights in place of a steering": (
        lambda c: save_file({"weight": torch.ones(2)}, c.dir / "it.safetensors") or c.load(), UNREADABLE + "'austeer'.",
    ),
    "a steering file cut off": (
        lambda c: c.load(cut=-1),
        UNREADABLE + "Error while deserializing header: incomplete metadata, file not fully covered.",
    ),
    "a header nested too deeply": (
        lambda c: c.load(header="[" * 200_000),
        UNREADABLE + "maximum recursion depth exceeded while decoding a JSON array from a unicode string.",
    ),
    "an unknown operator": (
        lambda c: c.load(operator={"name": "gauge"}),
        UNREADABLE + "the operator 'gauge' is not known; it knows {operators}.",
    ),
    "a strength of NaN in a file": (
        lambda c: c.load(operator={"strength": NAN}), UNREADABLE + "The strength is nan; give a finite number.",
    ),
    "a strength as text in a file": (
        lambda c: c.load(operator={"strength": "1"}), UNREADABLE + "The strength is '1'; give a finite number.",
    ),
    "an unknown site in a file": (
        lambda c: c.load(operator={"site": ["ffn"]}),
        UNREADABLE + "site is ['ffn']; give one of attention, gate, neuron, ffn, residual.",
    ),
    "positions that a file makes up": (
        lambda c: c.load(operator={"positions": "some"}),
        UNREADABLE + "positions is 'some'; give one of all, prompt, last, generated.",
    ),
    "a setting that nobody knows": (
        lambda c: c.load(operator={"run": "rm"}),
        UNREADABLE + "Operator.__init__() got an unexpected keyword argument 'run'.",
    ),
    "a tensor of nobody": (
        lambda c: c.load(unit() | {"9.more": torch.ones(1)}),
        UNREADABLE + "the tensor '9.more' belongs to no operator.",
    ),
    "a value of NaN in a file": (
        lambda c: c.load(unit(value=NAN)),
        UNREADABLE + "The tensor 'value' of operator 'shift' holds values that are not finite.",
    ),
    "a unit twice": (lambda c: c.load(unit([0, 0], [1, 1], [1.0, 2.0])), UNREADABLE + NO_UNITS),
    "a layer below 0 in a file": (lambda c: c.load(unit(layer=-1)), UNREADABLE + NO_UNITS),
    "an index between units": (lambda c: c.load(unit(index=1.5)), UNREADABLE + NO_UNITS),
    "a value too few": (lambda c: c.load(unit([0, 0], [1, 2], 1.0)), UNREADABLE + NO_UNITS),
    "units in a square": (lambda c: c.load(unit([[0]], [[1]], [[1.0]])), UNREADABLE + NO_UNITS),
    "a file about nothing": (lambda c: c.load(about={"parts": 3}), UNREADABLE + "'int' object is not iterable."),
    "an index beyond the site": (lambda c: c.say(["a"], c.load(unit(index=32))), NO_FIT),
    "a layer beyond the model in a file": (lambda c: c.say(["a"], c.load(unit(layer=3))), NO_FIT),
    "a directory that does not exist": (
        lambda c: c.shift.save("no/it.safetensors"), "FileNotFoundError: no does not exist; make this directory first.",
    ),
    # Measuring
    "n-grams of no word": (lambda c: au.repetition(["a b"], n=0), "ValueError: n is 0; give a number from 1 on."),
    "effects without their prices": (
        lambda c: au.at_price([0.0, 1.0], [1.0], 1.5),
        "ValueError: 2 effects were given for 1 prices; give one of each per strength.",
    ),
    "a price of NaN": (
        lambda c: au.at_price([0.0, 1.0], [1.0, NAN], 1.5),
        "ValueError: The sweep ends at nan, below the price 1.5; add larger strengths.",
    ),
    "an effect of NaN": (
        lambda c: au.draws_at_price(torch.full((2, 3), NAN), torch.ones(2, 2, 3), torch.ones(3)),
        "ValueError: An effect or a perplexity is not finite; leave its item out of all three.",
    ),
    "a device by its kind": (
        lambda c: au.load(c.plain, tokenizer=c.model.tokenizer, device="gpu"),
        "ValueError: device is 'gpu'; give one such as \"cpu\", \"cuda\" or \"mps\", or \"auto\".",
    ),
    "a bootstrap without a draw": (
        lambda c: au.draws_at_price(torch.ones(2, 3), torch.ones(2, 2, 3), torch.ones(3), draws=0),
        "ValueError: draws is 0; give a number from 1 on.",
    ),
    "an unknown task": (
        lambda c: au.load_task("boolk"), "ValueError: 'boolk' is no task; give one of {tasks}.",
    ),
    "half an item": (
        lambda c: au.load_task("mood", n=2.5),
        "ValueError: The test part of 'mood' has 44 items to draw 2.5 from; n must be 1 to that.",
    ),
    "half an example": (
        lambda c: au.load_task("sentiment", shots=1.5),
        "ValueError: shots is 1.5; 'sentiment' has 192 items to show (two answers: equally often).",
    ),
    "a task of bare strings": (
        lambda c: au.own_task("taste", ["Hello"], len),
        "ValueError: The task 'taste' has the item 'Hello'; give pairs or prompts.",
    ),
    "a score of NaN": (
        lambda c: au.evaluation.score(c.model, au.own_task("taste", [au.Prompt("Hello")], c.no_number), None, None, {}),
        "ValueError: no_number returned values that are not finite; return a number for each text.",
    ),
    "candidates without names": (
        lambda c: au.select(c.model, "mood", [c.shift]),
        "ValueError: No candidate was given by name; give a dictionary of steerings.",
    ),
    "a cell of 10 MB": (
        lambda c: c.benchmark("mawps", **{"train.csv": "Question,Answer\n" + "x" * MANY, "dev.csv": "Question\n"}),
        "ValueError: {dir}/mawps/train.csv, row 2: not CSV (field larger than field limit (131072)).",
    ),
    # Loading
    "an unknown dtype": (
        lambda c: au.load(c.plain, dtype="int8"),
        "ValueError: dtype is 'int8'; give one of float32, bfloat16, float16, float64.",
    ),
    "a place that is none": (
        lambda c: au.load(remote="ndif"),
        "ValueError: remote is 'ndif'; give False, True (NDIF) or \"local\" (a rehearsal on this machine).",
    ),
    "a model without its tokenizer": (
        lambda c: au.load(c.plain),
        "ValueError: A PreTrainedModel came without its tokenizer; give au.load(model, tokenizer=...).",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tiny, plain, some_units) -> Iterator[SimpleNamespace]:
    """What all cases use; after the last of them the model says what it said before the first."""
    model = tiny("llama")
    units = some_units(model, "attention", k=5)
    shift = methods.DirectionalAUSteer(units, 3.0)
    before = [au.generate(model, ["Hello there"], one, max_new_tokens=8) for one in (None, shift)]
    momentum = au.activation_momentum(model, PAIRS)
    yield SimpleNamespace(model=model, plain=plain("llama"), units=units, shift=shift, momentum=momentum)
    assert [au.generate(model, ["Hello there"], one, max_new_tokens=8) for one in (None, shift)] == before


def no_number(texts: list[str]) -> list[float]:
    return [NAN for _ in texts]


@pytest.fixture
def c(kept: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The context of a case: a model, what was found in it, and a directory that is the current one."""
    monkeypatch.chdir(tmp_path)

    def say(prompts, steering=None, **how):
        return au.generate(kept.model, prompts, steering, **{"max_new_tokens": 2, **how})

    def pairs(content: str | bytes):
        path = tmp_path / "it.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return au.load_pairs(path)

    def load(tensors=None, operator=None, about=None, header=None, cut=None):
        path = tmp_path / "it.safetensors"
        plain = {"name": "shift", "site": "attention", "positions": "all", "strength": 1.0}
        whole = {"model": asdict(info(kept.model)), "about": about or {}, "operators": [plain | (operator or {})]}
        if not path.exists():
            save_file(tensors or unit(), path, metadata={"austeer": header or json.dumps(whole)})
        path.write_bytes(path.read_bytes()[:cut])
        return au.Steering.load(path)

    def benchmark(name: str, **files: str):
        monkeypatch.setenv("AUSTEER_DATA", str(tmp_path))
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        return au.load_task(name)

    return SimpleNamespace(
        **vars(kept), dir=tmp_path, say=say, pairs=pairs, load=load, benchmark=benchmark, no_number=no_number
    )


def places() -> dict[str, str]:
    """What the sentences list, which grows with the book."""
    data = Path(au.data.__file__).parent / "_data"
    data = data if data.exists() else data.parent.parent / "data"
    operators = au.steering._derived(au.steering.Operator)
    return {
        "sets": ", ".join(sorted(path.stem for path in data.glob("*.jsonl"))),
        "results": ", ".join(sorted(path.stem for path in (data / "results").glob("*.jsonl"))),
        "tasks": ", ".join(au.tasks.TASKS),
        "operators": ", ".join({kind.name: None for kind in operators}),
        "version": au.models.library_version(),
    }


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_answered_in_one_sentence_and_leaves_nothing(c: SimpleNamespace, case: str) -> None:
    act, says = CASES[case]
    weights, inputs = fingerprint(c.model._module), {"it.jsonl", "it.safetensors", "mawps", "train.csv", "dev.csv"}
    with pytest.raises(Exception) as error:
        act(c)
    expected = says
    for name, value in {"dir": str(c.dir), **places()}.items():
        expected = expected.replace(f"{{{name}}}", value)
    assert f"{type(error.value).__name__}: {error.value}" == expected
    assert {path.name for path in c.dir.rglob("*")} <= inputs
    assert fingerprint(c.model._module) == weights


def test_there_are_sixty_of_them() -> None:
    assert len(CASES) >= 60


def test_a_row_of_10_mb_that_is_whole_is_read(c: SimpleNamespace) -> None:
    (pair,) = c.pairs(rows({"prompt": "x" * MANY}))
    assert len(pair.prompt) == MANY


def test_unicode_of_every_plane_is_read_as_it_was_written(c: SimpleNamespace) -> None:
    text = "é\u202e\u2028\U0001f600\U0010ffff中\u0301"
    assert [pair.prompt for pair in c.pairs(json.dumps(ROW | {"prompt": text}, ensure_ascii=False))] == [text]


def test_the_file_that_a_refused_one_stood_beside_is_kept(c: SimpleNamespace) -> None:
    c.shift.save(c.dir / "good.safetensors")
    before = (c.dir / "good.safetensors").read_bytes()
    (c.dir / "bad.safetensors").write_bytes(pickle.dumps(before))
    with pytest.raises(ValueError, match=r"bad\.safetensors is no steering"):
        au.Steering.load(c.dir / "bad.safetensors")
    assert (c.dir / "good.safetensors").read_bytes() == before


def test_weights_that_are_not_finite_are_refused_by_whatever_reads_them(plain, tokenizer) -> None:
    module = plain("llama").requires_grad_(False)
    module.model.layers[1].mlp.down_proj.weight[3, 3] = NAN
    model = au.load(module, tokenizer=tokenizer)
    for read in (
        lambda: au.collect(model, ["Hello"], "ffn"),
        lambda: au.activation_momentum(model, PAIRS, "ffn"),
        lambda: methods.CAA.fit(model, PAIRS, layer=1),
        lambda: methods.ITI.fit(model, PAIRS, heads=2),
    ):
        with pytest.raises(ValueError, match="^Some activations are not finite; check the model's weights and dtype.$"):
            read()
