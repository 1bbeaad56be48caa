"""Make data/results/scaling.jsonl: what contrastive activation addition does to models of several sizes.

    python experiments/scaling.py                                       the review models and the default model
    python experiments/scaling.py [--device cuda] [--dtype bfloat16] ID ...     models of the hub, such as
                                                                        HuggingFaceTB/SmolLM2-360M-Instruct

At every layer of a model the vector is added at one norm, measured in typical norms of the residual stream, and at the
best layer at several. The effect is by how much it moves log p(positive answer) - log p(negative answer) of pairs that
it was not fitted on; the layer is chosen on validation pairs and reported on test pairs. The review models of seed 0
also write: sampled texts are parsed, for three ways of steering, at strengths that reach 1.5 times the unsteered
perplexity. Rows of hub models go to _build/scaling.jsonl. Resumable; twenty minutes on two quiet CPU cores, after
experiments/review_models.py.
"""

import argparse
from collections.abc import Iterator

import torch
from review_models import LAYERS, folder
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm
from vectors import Margins, Vectors, best_layer, random_like

import austeer as au
from austeer import small
from austeer.generation import Sampling
from austeer.methods import DirectionalAUSteer
from austeer.small import grammar
from austeer.steering import Steering

NORM, NORMS = 0.1, (0.05, 0.1, 0.2, 0.4)  # where layers are compared, and what is run at the best one
PRICE, FACTOR, TRIES = 1.5, 1.7, 6
VALUES = {"sentiment": ("positive", "negative"), "formality": ("formal", "informal")}  # of the reviews
BOOK = ("sentiment", "refusal")  # sets of the book, for other models


def doses(rows: Rows, same: dict, vectors: Vectors, test: Margins, layer: int) -> None:
    """Measure the best layer on test pairs, item by item, at several norms."""
    for norm in NORMS:
        cell = {**same, "measure": "dose", "layer": layer, "norm": norm}
        if rows.get(cell=cell) is None:
            change = test.change(vectors.at(layer, norm))
            rows.add({
                "cell": cell, "change": rounded(change, 3), "unsteered": rounded(test.unsteered, 3),
                "multiplier": round(vectors.multiplier[layer].item(), 4),
            })  # fmt: skip


def read(texts: list[str], leads: list[au.ContrastivePair]) -> dict[str, str]:
    """Parse continuations: for each attribute one letter a text, the value's first, m if mixed, x if no review."""
    said = [grammar.parse(lead.prompt + text) for lead, text in zip(leads, texts, strict=True)]
    kept = [one and ("kept" if one.topic == lead.topic else "mixed") for one, lead in zip(said, leads, strict=True)]
    return {
        "sentiment": "".join("x" if one is None else (one.sentiment or "mixed")[0] for one in said),
        "formality": "".join("x" if one is None else (one.formality or "mixed")[0] for one in said),
        "topic": "".join((topic or "x")[0] for topic in kept),
    }


def write(model, leads: list[au.ContrastivePair], steering: Steering | None) -> dict:
    """Sample a continuation of each prompt, with the same noise whatever the steering, and say what it is."""
    prompts = [lead.prompt for lead in leads]
    sampling = Sampling(torch.Generator().manual_seed(0))
    options = {"max_new_tokens": grammar.LENGTH, "rows_per_pass": len(prompts), "logits_processor": [sampling]}
    texts = au.generate(model, prompts, steering, **options)
    texts = [text or "." for text in texts]  # an empty text has no perplexity
    return {**read(texts, leads), "perplexity": rounded(au.perplexity(model, texts, prompts), 2)}


def at_price(rows: Rows, same: dict, model, leads: list, steering: Steering, strength: float) -> None:
    """Raise or lower the strength until the price of the worse sign is crossed."""
    plain = rows.get(cell={**same, "method": "none"}) or rows.add({
        "cell": {**same, "method": "none"}, **write(model, leads, None),
    })  # fmt: skip
    base = torch.tensor(plain["perplexity"]).log().mean()
    seen: dict[float, float] = {}
    for _ in range(TRIES):
        cell = {**same, "strength": float(f"{strength:.3g}")}
        row = rows.get(cell=cell)
        if row is None:
            both = [write(model, leads, steering * (sign * cell["strength"])) for sign in (1, -1)]
            row = rows.add({"cell": cell, **{name: [side[name] for side in both] for name in both[0]}})
        price = (torch.tensor(row["perplexity"]).log().mean(1).max() - base).exp().item()
        seen[cell["strength"]] = price
        below, above = ([s for s, p in seen.items() if (p >= PRICE) == over] for over in (False, True))
        if below and above:
            return
        strength = max(seen) * FACTOR if below else min(seen) / FACTOR


def methods(model, pairs: list, vectors: Vectors, layer: int) -> Iterator[tuple[str, Steering, float]]:
    """Yield what is compared at an equal price: name, steering at strength 1, first strength."""
    caa = vectors.at(layer, 1.0)
    yield "CAA", caa, 0.4
    yield "random direction", random_like(caa, 0), 0.6
    momentum = au.activation_momentum(model, pairs, "attention")
    yield "directional, 20 units", DirectionalAUSteer(momentum.top(20), 1.0), 4.0


def review_model(size: str, seed: int) -> None:
    """Run one model of the family."""
    model = small.load(folder(size, seed))
    rows, same, layers = Rows(RESULTS / "scaling.jsonl", model), {"model": size, "seed": seed}, range(LAYERS[size])
    train, validation, test = (torch.Generator().manual_seed(number) for number in range(3))
    for name, values in VALUES.items():
        pairs, about = grammar.pairs(*values, 256, train), {**same, "set": name}
        choose, report = (Margins(model, grammar.pairs(*values, 128, part)) for part in (validation, test))
        vectors = Vectors(model, pairs)
        layer = best_layer(rows, about, vectors, choose, layers, NORM)
        doses(rows, about, vectors, report, layer)
        if name == "sentiment" and seed == 0:
            compared = tqdm([*methods(model, pairs, vectors, layer)], desc=f"{size}, text", leave=False)
            for method, steering, strength in compared:
                about = {**same, "measure": "text", "method": method}
                at_price(rows, about, model, report.pairs, steering, strength)


def other_model(rows: Rows, model) -> None:
    """Run a model on two sets of the book: every fourth layer on half of the validation pairs, the best on all test."""
    for name in BOOK:
        train, validation, test = au.split(au.load_pairs(name))
        same, vectors = {"model": model.austeer_info.id, "set": name}, Vectors(model, train)
        choose, report = Margins(model, validation[::2]), Margins(model, test)
        layer = best_layer(rows, same, vectors, choose, range(1, len(vectors.multiplier), 4), NORM)
        doses(rows, same, vectors, report, layer)


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="hub ids; by default the review models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype")
    given = parser.parse_args()
    if given.models:
        for name in tqdm(given.models, desc="models"):
            model = au.load(name, device=given.device, dtype=given.dtype)
            other_model(Rows(RESULTS.parents[1] / "_build" / "scaling.jsonl", model), model)
        return
    for size, seed in tqdm([(size, seed) for size in LAYERS for seed in range(3)], desc="models"):
        review_model(size, seed)
    model = au.load()
    other_model(Rows(RESULTS / "scaling.jsonl", model), model)


if __name__ == "__main__":
    main()
