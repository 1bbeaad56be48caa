"""Time steered generation against unsteered, and baked weights against plain ones: `make bench`.

    python bench/generation.py

24 greedy tokens after openings of the book, one at a time and sixteen at a time. Steered and unsteered both go through
`au.generate`; the baked model and the plain one through transformers alone.
"""

import argparse

import torch
from timing import ratio, record, take_turns

import austeer as au
from austeer.evaluation import GREEDY_24


def main() -> None:
    """Time all ways, print the ratios, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats, model, rows = parser.parse_args().repeats, au.load(), []
    units = au.activation_momentum(model, au.load_pairs("sentiment")[:64]).top(20)
    steering = au.methods.DirectionalAUSteer(units, 8.0)
    baked = au.bake(model, steering)
    for size in (1, 16):
        prompts = [opening.prompt for opening in au.load_prompts("openings")[:size]]
        batch = au.models.encode(model, prompts)
        how = {**GREEDY_24, "do_sample": False, "pad_token_id": model.tokenizer.pad_token_id}

        def alone(module, batch=batch, how=how) -> None:
            with torch.no_grad():
                module.generate(**batch, **how)

        seconds = take_turns(
            {
                "unsteered": lambda prompts=prompts: au.generate(model, prompts, **GREEDY_24),
                "steered": lambda prompts=prompts: au.generate(model, prompts, steering, **GREEDY_24),
                "plain": lambda: alone(model._module),
                "baked": lambda: alone(baked),
            },
            repeats,
        )
        for name, floor in (("steered", "unsteered"), ("baked", "plain"), ("unsteered", "plain")):
            found = ratio(seconds, name, floor)
            print(f"batch of {size}: {name} takes {found[0]:.2f} of {floor} ({found[1]:.2f} to {found[2]:.2f})")
            rows.append({"job": "generation", "kind": f"batch of {size}", "way": f"{name} / {floor}", "ratio": found})
    record("generation", rows)


if __name__ == "__main__":
    main()
