"""Make data/results/indicators.jsonl: steered runs, what they wrote, and what went on inside the model meanwhile.

    python experiments/indicators.py [CONCEPT ...]

Ten concepts and two behaviours that the traffic light has not seen (a topic, and refusal of harmless requests), three
methods, two layers, strengths, and a random vector; six prompts each, no two concepts with the same.

Strengths were chosen in a first look at two concepts: the weakest hardly acts, the strongest breaks the text.
Resumable: a run whose row is there is not run again. The same command gives the same rows: texts are greedy, so only a
near tie can turn them on another CPU, and the numbers of the same text agree within 0.01. Ten minutes on two quiet CPU
cores.
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

PROMPTS, RUNS_AT_ONCE = 6, 12
LAYERS = (10, 18)
STRENGTHS = {
    "CAA": (0.2, 0.4, 0.8, 1.4),
    "Rotation": (0.1, 0.2, 0.4, 0.65),
    "AUSteer": (4.0, 9.0, 20.0),
    "random": (0.4, 1.4),
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


def labels(concept: str, texts: list[str]) -> dict[str, list[float]]:
    """Return the labels of a run's texts."""
    return {"behaviour": rounded(score(concept)(texts), 3), "coherence": rounded(coherence(texts), 3)}


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
    """Return a concept's six prompts: openings that no other concept has, or harmless requests."""
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


def runs(rows: Rows, model, concepts: list[str]) -> None:
    """Run what is missing of some concepts, several runs in one batch."""
    for concept in tqdm(concepts, desc="concepts"):
        prompts = prompts_of(model, concept)
        missing = [(cell, steering) for cell, steering in steerings(model, concept) if not rows.get(cell=cell)]
        for start in tqdm(range(0, len(missing), RUNS_AT_ONCE), desc=concept, leave=False):
            part = missing[start : start + RUNS_AT_ONCE]
            each = [steering for _, steering in part for _ in prompts]
            texts = au.generate(model, prompts * len(part), each, rows_per_pass=len(each), **GREEDY_24)
            for number, (cell, steering) in enumerate(part):
                own = texts[number * PROMPTS :][:PROMPTS]
                found = indicators(model, prompts, own, steering)
                inside = {name: rounded(values, 3) for name, values in vars(found).items() if not values.isnan().any()}
                rows.add({"cell": cell, **labels(concept, own), **inside, "texts": own})


def main() -> None:
    """Run the concepts that are named, or all; then label every text anew, should a rule have changed."""
    model = au.load()
    rows = Rows(RESULTS / "indicators.jsonl", model)
    runs(rows, model, sys.argv[1:] or [*SEEN, *UNSEEN])
    for row in list(rows.known.values()):
        now = labels(row["cell"]["concept"], row["texts"])
        if now != {name: row[name] for name in now}:
            rows.add(row | now)


if __name__ == "__main__":
    main()
