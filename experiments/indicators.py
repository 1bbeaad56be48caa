"""Make data/results/indicators.jsonl: steered runs, what they wrote, and what went on inside the model meanwhile.

    python experiments/indicators.py [runs] [unseen] [light]

runs    ten concepts x three methods x two layers x strengths, and a random vector; eight openings each
unseen  two behaviours that the light of chapter 16 has not seen: a topic, and refusal of harmless requests
light   the two logistic regressions behind the traffic light, fitted on `runs`, into data/results/traffic_light.jsonl

Strengths were chosen in a first look at one concept: the weakest hardly acts, the strongest breaks the text.
Resumable: a run whose row is there is not run again. Ten minutes on two quiet CPU cores.
"""

import re
import sys
from collections.abc import Callable, Iterator

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer.data import by_word
from austeer.diagnostics import indicators
from austeer.evaluation import GREEDY_24, REFUSALS
from austeer.methods import CAA, DirectionalAUSteer, Rotation
from austeer.models import apply_template
from austeer.scoring import coherence, hits
from austeer.steering import Shift, Steering

PROMPTS, RUNS_AT_ONCE = 8, 16
LAYERS = (10, 18)
STRENGTHS = {
    "CAA": (0.2, 0.4, 0.6, 0.9),
    "Rotation": (0.1, 0.2, 0.3, 0.45),
    "AUSteer": (2.0, 4.0, 8.0, 16.0),
    "random": (0.4, 0.6, 0.9),
}  # of CAA and random in typical norms of the layer, of Rotation in angles to the vector; AUSteer's alpha
UNITS = 100
SEEN = ("family", "first_person", "food", "hedging", "money", "mood", "music", "numbers", "sea", "weather")
UNSEEN = ("garden", "refusal")
WORDS = {row["concept"]: set(row["words"]) for row in au.load_results("concept_words")}


def turns(model, prompts: list[str]) -> list[str]:
    """Return the prompts as a user's turns, without the default model's system message."""
    return [text[max(0, text.find("<|im_start|>user")) :] for text in apply_template(model, prompts, "chat")]


def score(concept: str) -> Callable[[list[str]], torch.Tensor]:
    """Return the function that says how much of a concept is in each text, from 0 to 1; no model has a say in it."""
    if concept == "mood":
        return lambda texts: (au.sentiment(texts) + 1) / 2
    if concept == "refusal":
        return lambda texts: torch.tensor([float(bool(REFUSALS.search(text))) for text in texts])
    if concept == "numbers":
        return lambda texts: hits([re.sub(r"\d[\d.,:]*", " five ", text) for text in texts], WORDS[concept])
    return lambda texts: hits(texts, WORDS[concept])


def pairs_of(model, concept: str) -> list[au.ContrastivePair]:
    """Return what a concept's direction is read from: twelve pairs, at every word.

    Up to tokens inside a word this is the mean over all tokens of both sides, as the paper has it.
    """
    if concept in ("mood", "hedging", "refusal"):
        pairs = au.split(au.load_pairs({"mood": "sentiment"}.get(concept, concept))).train
        pairs = pairs[:: len(pairs) // 12][:12]
    else:
        pairs = [pair for pair in au.load_pairs("concepts") if pair.topic == concept]
    if concept == "refusal":
        asked = turns(model, [pair.prompt for pair in pairs])
        pairs = [
            au.ContrastivePair(prompt, pair.positive.strip(), pair.negative.strip(), pair.topic)
            for prompt, pair in zip(asked, pairs, strict=True)
        ]
    return by_word(pairs)


def prompts_of(model, concept: str) -> list[str]:
    """Return a concept's eight prompts: openings that no other concept has, or harmless requests."""
    if concept == "refusal":
        items = au.split(au.load_prompts("requests")).test
        return turns(model, [item.prompt for item in items[:: len(items) // PROMPTS][:PROMPTS]])
    number = sorted((*SEEN, "garden")).index(concept)
    return [item.prompt for item in au.load_prompts("openings")][number::23][:PROMPTS]


def steerings(model, concept: str) -> Iterator[tuple[dict, Steering | None]]:
    """Yield what is run for a concept: what it is, and the steering."""
    pairs = pairs_of(model, concept)
    positive, negative = au.collect(model, pairs, "residual")
    momentum = au.momentum_of(positive, negative, pairs, model, "residual")
    typical = torch.cat([positive, negative]).norm(dim=-1).median(0).values
    units = au.activation_momentum(model, pairs).top(UNITS)
    vector = momentum.mean_difference
    yield {"concept": concept, "method": "none"}, None
    for layer in LAYERS:
        one = (typical[layer] / vector[layer].norm()).item()  # the multiplier that makes the vector as long as a state
        for alpha in STRENGTHS["CAA"]:
            cell = {"concept": concept, "method": "CAA", "layer": layer, "alpha": alpha}
            yield cell, CAA(momentum, layer, one * alpha)
        for alpha in STRENGTHS["Rotation"]:
            cell = {"concept": concept, "method": "Rotation", "layer": layer, "alpha": alpha}
            yield cell, Rotation(momentum, layer, alpha, "last")
    for alpha in STRENGTHS["AUSteer"]:
        cell = {"concept": concept, "method": "AUSteer", "layer": None, "alpha": alpha}
        yield cell, DirectionalAUSteer(units, alpha, "last")
    seed = (*SEEN, *UNSEEN).index(concept)
    drawn = torch.randn(vector.shape[1], generator=torch.Generator().manual_seed(seed))
    for alpha in STRENGTHS["random"]:
        cell = {"concept": concept, "method": "random", "layer": LAYERS[1], "alpha": alpha}
        tensors = {"layer": torch.full((len(drawn),), LAYERS[1]), "index": torch.arange(len(drawn))}
        tensors["value"] = drawn / drawn.norm() * typical[LAYERS[1]]
        yield cell, Steering([Shift("residual", tensors, "last", alpha)], momentum.model, {"method": "random"})


def runs(rows: Rows, model, concepts: tuple[str, ...]) -> None:
    """Run what is missing of some concepts, several runs in one batch."""
    for concept in tqdm(concepts, desc="concepts"):
        judge, prompts = score(concept), prompts_of(model, concept)
        missing = [(cell, steering) for cell, steering in steerings(model, concept) if not rows.get(cell=cell)]
        for start in tqdm(range(0, len(missing), RUNS_AT_ONCE), desc=concept, leave=False):
            part = missing[start : start + RUNS_AT_ONCE]
            each = [steering for _, steering in part for _ in prompts]
            texts = au.generate(model, prompts * len(part), each, rows_per_pass=len(each), **GREEDY_24)
            for number, (cell, steering) in enumerate(part):
                own = texts[number * PROMPTS :][:PROMPTS]
                found = indicators(model, prompts, own, steering)
                inside = {name: rounded(values, 3) for name, values in vars(found).items() if not values.isnan().any()}
                labels = {"behaviour": rounded(judge(own), 3), "coherence": rounded(coherence(own), 3)}
                rows.add({"cell": cell, **labels, **inside, "texts": own})


def main() -> None:
    """Run the parts that are named, or all."""
    model = au.load()
    rows = Rows(RESULTS / "indicators.jsonl", model)
    parts = sys.argv[1:] or ["runs", "unseen"]
    for name, concepts in (("runs", SEEN), ("unseen", UNSEEN)):
        if name in parts:
            runs(rows, model, concepts)


if __name__ == "__main__":
    main()
