"""Make data/results/unit_effects.jsonl: what each unit of every block does to a mood question when turned up alone.

    python experiments/unit_effects.py

Resumable: a block whose row is already in the file is not run again; delete the file to start over. About 40 minutes
on two CPU cores.
"""

import torch
from rows import RESULTS, Rows, rounded
from tqdm.auto import tqdm

import austeer as au
from austeer import diagnostics
from austeer.sites import Place, anatomy

QUESTION, HAPPY, SAD = " It made me feel very", " happy", " sad"
FACTOR = 5.0


def main() -> None:
    """Run the blocks that are missing: one pair of texts for each topic of the training part."""
    model = au.load()
    pairs = list({pair.topic: pair for pair in au.split(au.load_pairs("sentiment")).train}.values())
    prompts = [p.prompt + side + QUESTION for p in pairs for side in (p.positive, p.negative)]
    tokens = [diagnostics.token_id(model, word) for word in (HAPPY, SAD)]
    rows = Rows(RESULTS / "unit_effects.jsonl", model, about=("site", "layer"))
    found = anatomy(model)
    grid = [Place(layer, site) for site in ("attention", "ffn") for layer in range(found.layers)]
    for place in tqdm([place for place in grid if not rows.get(site=place.site, layer=place.layer)], desc="blocks"):
        width = found.widths[place.site]
        factor = diagnostics.turned_up(width, [[], *([unit] for unit in range(width))], FACTOR)
        logits = diagnostics.unembed(model, diagnostics.sweep(model, prompts, place, factor), tokens)
        mood = logits[..., 0] - logits[..., 1]  # (prompts, rows): happy over sad
        happy, sad = (mood[:, 1:] - mood[:, :1]).view(len(pairs), 2, width).unbind(1)
        row = {
            "site": place.site,
            "layer": place.layer,
            "factor": FACTOR,
            "topics": [pair.topic for pair in pairs],
            "help": _over_pairs((happy - sad) / 2),
            "lean": _over_pairs((happy + sad) / 2),
        }
        rows.add(row)


def _over_pairs(values: torch.Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation over the pairs, one number for each unit."""
    return {"mean": rounded(values.mean(0), 5), "deviation": rounded(values.std(0), 5)}


if __name__ == "__main__":
    main()
