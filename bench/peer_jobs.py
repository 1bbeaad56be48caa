"""The jobs of bench/peers.py, each as a library's own users write it; runs in that library's environment.

    python bench/peer_jobs.py NAME DIRECTORY

DIRECTORY holds the model and `work.json`. A line with the name of a job on standard input runs it; "last" answers with
what it returned. A library's function sets up what a user sets up once, and returns two others: one without arguments
gives (layers, width) vectors, one continues prompts.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

BATCH = 8


def austeer(work: dict):
    """Set up `activation_momentum`, and CAA."""
    import austeer as au

    model, pairs = au.load(work["model"]), [au.ContrastivePair("", *pair) for pair in work["pairs"]]
    read = partial(au.activation_momentum, model, pairs, "residual")
    steering = au.methods.CAA(read(), work["layer"], work["strength"], positions="all")
    return lambda: read().mean_difference, lambda prompts: au.generate(model, prompts, steering, **work["how"])


def steering_vectors(work: dict):
    """Set up `train_steering_vector`, and `SteeringVector.apply`."""
    from steering_vectors import SteeringVector, train_steering_vector

    model, tokenizer = plain(work)
    steering = SteeringVector({work["layer"]: torch.tensor(work["vector"])})

    def extraction() -> torch.Tensor:
        found = train_steering_vector(model, tokenizer, work["pairs"], batch_size=BATCH).layer_activations
        return torch.stack([found[layer] for layer in sorted(found)])

    def generation(prompts: list[str]) -> list[str]:
        with steering.apply(model, multiplier=work["strength"]):
            return continued(model.generate, tokenizer, prompts, work)

    return extraction, generation


def repeng(work: dict):
    """Set up `ControlVector.train`, and `ControlModel.set_control`."""
    import numpy
    from repeng import ControlModel, ControlVector, DatasetEntry

    model, tokenizer = plain(work)
    entries = [DatasetEntry(*pair) for pair in work["pairs"]]
    control = ControlVector(model.config.model_type, {work["layer"]: numpy.float32(work["vector"])})
    how = {"method": "pca_center", "batch_size": BATCH, "hidden_layers": range(model.config.num_hidden_layers)}
    wrapped = ControlModel(model, [work["layer"]])

    def extraction() -> torch.Tensor:
        found = ControlVector.train(wrapped, tokenizer, entries, **how).directions
        return torch.stack([torch.from_numpy(found[layer]) for layer in sorted(found)])

    def generation(prompts: list[str]) -> list[str]:
        wrapped.set_control(control, work["strength"])
        texts = continued(wrapped.generate, tokenizer, prompts, work)
        wrapped.reset()
        return texts

    return extraction, generation


def pyvene(work: dict):
    """Set up `CollectIntervention` at every block, and `AdditionIntervention` at one."""
    from pyvene import AdditionIntervention, CollectIntervention, IntervenableModel

    model, tokenizer = plain(work)
    collect = {"component": "block_output", "intervention_type": CollectIntervention}
    reader = IntervenableModel([{"layer": layer, **collect} for layer in range(model.config.num_hidden_layers)], model)
    shift = AdditionIntervention(source_representation=torch.tensor(work["vector"]) * work["strength"])
    add = {"layer": work["layer"], "component": "block_output", "intervention": shift}
    writer = IntervenableModel(add, model)

    def read(texts: list[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], return_tensors="pt", padding=True)
            with torch.no_grad():
                (_, layers), _ = reader(batch, unit_locations={"base": batch["input_ids"].shape[1] - 1})
            found.append(torch.stack(layers)[:, :, 0])
        return torch.cat(found, dim=1)

    def generate(attention_mask: torch.Tensor, input_ids: torch.Tensor, **how) -> torch.Tensor:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        return writer.generate(batch, intervene_on_prompt=True, **how)[1]

    return lambda: mean_difference(read, work), lambda prompts: continued(generate, tokenizer, prompts, work)


def nnterp(work: dict):
    """Set up `collect_token_activations_batched`, and `steer` in every step of a trace."""
    from nnterp import StandardizedTransformer
    from nnterp.nnsight_utils import collect_token_activations_batched

    model = StandardizedTransformer(work["model"], device_map="cpu", dtype=torch.float32)
    vector, steps = torch.tensor(work["vector"]), work["how"]["max_new_tokens"]

    def read(texts: list[str]) -> torch.Tensor:
        return collect_token_activations_batched(model, texts, BATCH)

    def generation(prompts: list[str]) -> list[str]:
        with torch.no_grad(), model.generate(prompts, do_sample=False, **work["how"]) as tracer:
            with tracer.iter[:steps]:
                model.steer(work["layer"], vector, work["strength"])
            found = tracer.result.save()
        return model.tokenizer.batch_decode(found[:, -steps:], skip_special_tokens=True)

    return lambda: mean_difference(read, work), generation


def plain(work: dict) -> tuple:
    """Return model and tokenizer as transformers loads them, padding on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(work["model"], padding_side="left")


def mean_difference(read, work: dict) -> torch.Tensor:
    """Return (layers, width) from `read`, which returns (layers, texts, width)."""
    positive, negative = (read(list(texts)) for texts in zip(*work["pairs"], strict=True))
    return (positive - negative).mean(1)


def continued(generate, tokenizer, prompts: list[str], work: dict) -> list[str]:
    """Return the continuations by `generate`, called as transformers' own."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = generate(**batch, do_sample=False, **work["how"])
    return tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    """Set up, then answer to lines on standard input until it ends."""
    name, directory = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    work = json.loads(Path(directory, "work.json").read_text()) | {"model": str(Path(directory, "model"))}
    work["pairs"] = [tuple(pair) for pair in work["pairs"]]  # JSON has no tuples, and steering-vectors takes no lists
    extraction, generation = globals()[name.replace("-", "_")](work)
    jobs = {"extraction": extraction}
    jobs |= {f"generation {size}": partial(generation, work["prompts"][:size]) for size in work["sizes"]}
    said, last = "ready", None
    while True:
        print(said, file=answers, flush=True)
        if not (job := sys.stdin.readline().strip()):
            return
        if job == "last":
            said = json.dumps(last.tolist() if isinstance(last, torch.Tensor) else last)
        else:
            last, said = jobs[job](), "done"


if __name__ == "__main__":
    main()
