"""Make data/results/few_against_block.jsonl: in every block, a few chosen units against the block that holds them.

    python experiments/few_against_block.py

Units are chosen on the training topics, by the rows of unit_effects.jsonl, and reported on the other topics. Resumable:
a block whose row is already in the file is not run again; delete the file to start over. About 15 minutes on two CPU
cores.
"""

import torch
from rows import RESULTS, Rows, rounded
from scipy.stats import false_discovery_control
from scipy.stats import t as student
from tqdm.auto import tqdm

import austeer as au
from austeer import diagnostics
from austeer.sites import Place, anatomy

QUESTION, HAPPY, SAD = " It made me feel very", " happy", " sad"
STRENGTHS = (1.5, 2, 3, 5, 9, 17, 33)


def choices(row: dict) -> dict[str, list[int]]:
    """Return the sets of units to compare in one block, from its row of single-unit effects."""
    pairs = len(row["topics"])
    mean, deviation = (torch.tensor(row["help"][name], dtype=torch.float64) for name in ("mean", "deviation"))
    p = 2 * student.sf(mean.abs() / (deviation.clamp(min=1e-9) / pairs**0.5), pairs - 1)
    found = torch.from_numpy(false_discovery_control(p) <= 0.05)
    helpful, harmful = ((found & (mean * sign > 0)).nonzero().flatten() for sign in (1, -1))
    generator = torch.Generator().manual_seed(0)
    return {
        "best 20": mean.argsort(descending=True)[:20].tolist(),
        "all helpful": helpful.tolist(),
        "20 helpful": helpful[torch.randperm(len(helpful), generator=generator)[:20]].tolist(),
        "block without harmful": sorted(set(range(len(mean))) - set(harmful.tolist())),
        "whole block": list(range(len(mean))),
        "20 random": torch.randperm(len(mean), generator=generator)[:20].tolist(),
    }


def main() -> None:
    """Run the blocks that are missing."""
    model = au.load()
    parts = au.split(au.load_pairs("sentiment"))
    pairs = list({pair.topic: pair for pair in parts.validation + parts.test}.values())
    prompts = [p.prompt + side + QUESTION for p in pairs for side in (p.positive, p.negative)]
    openings = list({o.topic: o.prompt for o in au.split(au.load_prompts("openings")).train}.values())
    tokens = [diagnostics.token_id(model, word) for word in (HAPPY, SAD)]
    rows = Rows(RESULTS / "few_against_block.jsonl", model, about=("site", "layer"))
    blocks = au.load_results("unit_effects")
    effects = [row for row in blocks if not rows.get(site=row["site"], layer=row["layer"])]
    for block in tqdm(effects, desc="blocks"):
        place, sets = Place(block["layer"], block["site"]), choices(block)
        width = anatomy(model).widths[place.site]
        edits = [diagnostics.turned_up(width, [units], by) for units in sets.values() for by in STRENGTHS]
        factor = torch.cat([diagnostics.turned_up(width, [[]], 1.0), *edits])
        logits = diagnostics.unembed(model, diagnostics.sweep(model, prompts, place, factor), tokens)
        mood = logits[..., 0] - logits[..., 1]
        happy, sad = (mood[:, 1:] - mood[:, :1]).view(len(pairs), 2, -1).unbind(1)
        neutral = diagnostics.unembed(model, diagnostics.sweep(model, openings, place, factor)).log_softmax(-1)
        kl = (neutral[:, :1].exp() * (neutral[:, :1] - neutral[:, 1:])).sum(-1).mean(0)
        row = {
            "site": place.site,
            "layer": place.layer,
            "units": {name: len(units) for name, units in sets.items()},
            "strengths": list(STRENGTHS),
            "help": _by_choice(sets, (happy - sad).T / 2, 3),
            "price": _by_choice(sets, kl, 5),
        }
        rows.add(row)


def _by_choice(sets: dict, values: torch.Tensor, digits: int) -> dict[str, list]:
    """One list per choice, in the order of the strengths."""
    parts = rounded(values, digits)
    return {name: parts[n * len(STRENGTHS) : (n + 1) * len(STRENGTHS)] for n, name in enumerate(sets)}


if __name__ == "__main__":
    main()
