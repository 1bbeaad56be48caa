"""Time `activation_momentum` against plain transformers: `make bench`, or python bench/localisation.py.

The floor is what a plain user writes: for each side of the pairs, texts sorted by length, batches of eight, a forward
pass with all hidden states and the LM head. Two kinds of pairs: with nothing in common, and a long question with two
short answers. Both ways must count the same, but for rounding. Exit status 1 if they do not.
"""

import argparse
import time

import torch
from timing import ratio, record, take_turns
from torch import Tensor

import austeer as au
from austeer import momentum
from austeer.data import ContrastivePair
from austeer.momentum import unit_set

PAIRS, BATCH = 48, 8


def apart(pairs: list[ContrastivePair]) -> list[ContrastivePair]:
    """Return pairs of whole texts that begin differently: two topics each."""
    texts = [f"{pair.prompt}{pair.positive}" for pair in pairs], [f"{pair.prompt}{pair.negative}" for pair in pairs]
    return [
        ContrastivePair("", first, second, pair.topic)
        for first, second, pair in zip(texts[0], texts[1][len(pairs) // 2 :] + texts[1], pairs, strict=False)
    ]


def questions(pairs: list[ContrastivePair]) -> list[ContrastivePair]:
    """Return pairs of a passage of more than 100 tokens with a question, and two short answers."""
    made = []
    for row, pair in enumerate(pairs):
        near = [pairs[(row + step) % len(pairs)] for step in range(7)]
        passage = " ".join(f"{one.prompt}{one.positive}" for one in near)
        made.append(ContrastivePair(f"{passage}\nDoes this end well? Answer:", " yes", " no, not at all", pair.topic))
    return made


def plain(model, pairs: list[ContrastivePair]) -> tuple[Tensor, Tensor]:
    """Return the counts of higher and lower for the residual after each layer but the last, by transformers alone."""
    module, tokenizer, last = model._module, model.tokenizer, {}
    for side in ("positive", "negative"):
        texts = [pair.prompt + getattr(pair, side) for pair in pairs]
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        read = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad():
                hidden = module(**batch, output_hidden_states=True).hidden_states
            for number, row in enumerate(rows):
                read[row] = torch.stack([state[number, -1] for state in hidden[1:-1]])
        last[side] = torch.stack(read)
    difference = last["positive"] - last["negative"]
    return (difference > 0).sum(0), (difference < 0).sum(0)


def main() -> int:
    """Time both ways on both kinds of pairs, print the ratios, write the rows; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats, model, half = parser.parse_args().repeats, au.load(), au.load(dtype="bfloat16")
    base, rows, wrong = au.load_pairs("sentiment")[:PAIRS], [], False
    for kind, pairs in (("nothing in common", apart(base)), ("question and answers", questions(base))):
        higher, lower = plain(model, pairs)
        ours = au.activation_momentum(model, pairs, "residual")
        off = max(
            int((mine.sum(0)[:-1] - theirs).abs().max())
            for mine, theirs in ((ours.higher, higher), (ours.lower, lower))
        )
        seconds = take_turns(
            {
                "plain": lambda pairs=pairs: plain(model, pairs),
                "austeer": lambda pairs=pairs: au.activation_momentum(model, pairs, "residual"),
                "austeer, bfloat16": lambda pairs=pairs: au.activation_momentum(half, pairs, "residual"),
            },
            repeats,
        )
        for name in ("austeer", "austeer, bfloat16"):
            found = ratio(seconds, name, "plain")
            print(f"{kind}, {name}: {found[0]:.2f} of plain transformers ({found[1]:.2f} to {found[2]:.2f})")
            rows.append({"job": "localisation", "kind": kind, "way": f"{name} / plain", "ratio": found})
        print(f"{kind}: the counts differ by {off} of {len(pairs)} pairs at most")
        kept = unit_set(ours.top(100)) & unit_set(au.activation_momentum(half, pairs, "residual").top(100))
        same = len(kept) / 100
        print(f"{kind}: bfloat16 keeps {same:.2f} of the top 100")
        rows[-1]["top 100 kept"] = same
        wrong |= off > 1
    print(f"counting takes {100 * share_of_counting(model, base):.1f} % of the job")
    record("localisation", rows)
    return int(wrong)


def share_of_counting(model, pairs: list[ContrastivePair]) -> float:
    """Return which share of a job's time the statistics over units and pairs take."""
    spent, count = [0.0], momentum._count

    def timed(*given) -> None:
        start = time.perf_counter()
        count(*given)
        spent[0] += time.perf_counter() - start

    momentum._count = timed
    try:
        start = time.perf_counter()
        au.activation_momentum(model, pairs, "residual")
        return spent[0] / (time.perf_counter() - start)
    finally:
        momentum._count = count


if __name__ == "__main__":
    raise SystemExit(main())
