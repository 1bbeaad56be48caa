"""Load and save small models: those that ship with the book, or one of your own."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path

import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from austeer import models
from austeer.data import own_folder
from austeer.small import diffusion, grammar

WEIGHTS, CARD = "model.safetensors", "card.json"


def load(name: str | os.PathLike, *, device: str = "cpu") -> TransformersModel:
    """Load a small model in float32, with a BOS token in front of every text.

    Args:
        name: a model that ships with the book, such as "reviews-0.1M", or a directory that `save` wrote.
        device: as in `au.load`.

    Returns:
        What `au.load` returns, so that the whole library works on it.

    Raises:
        ValueError: neither a shipped model nor such a directory; the message lists the models.
        OSError: the weights do not have the hash that their card states.
    """
    folder = _folder(name)
    models.require_hash(folder / WEIGHTS, card(name)["sha256"])
    with models.no_widget_bars():
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    if not getattr(module.config, "is_causal", True):
        diffusion.bidirectional(module)  # the configuration alone restores one half of it
    module.config._name_or_path = folder.name  # not the path on this machine: it goes into every saved steering
    return models.load(module, tokenizer=grammar.tokenizer(), device=device, bos=True)


def card(name: str | os.PathLike) -> dict:
    """Return what is known of a small model: sha256 of its weights, parameters, and what `save` was told.

    Raises:
        ValueError: as `load`.
    """
    return json.loads((_folder(name) / CARD).read_text("utf-8"))


def save(module: PreTrainedModel, folder: str | os.PathLike, about: dict) -> None:
    """Write a model of reviews as float16 safetensors, with configuration, tokenizer and card; it stays as it is.

    Whatever reads a Hugging Face directory reads this one.

    Args:
        module: the model.
        folder: made if it is not there.
        about: how the model was made, for the card; JSON types only.
    """
    folder = Path(folder)
    copy.deepcopy(module).half().save_pretrained(folder)
    grammar.tokenizer().save_pretrained(folder)
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    said = {"sha256": digest, "parameters": sum(weight.numel() for weight in module.parameters()), **about}
    beside = folder / f"{CARD}.partial"  # a folder without a card is no model, so a killed run leaves none
    beside.write_text(json.dumps(said, indent=1) + "\n", "utf-8")
    beside.replace(folder / CARD)


def _folder(name: str | os.PathLike) -> Path:
    """Find a model among those that ship, or take the name as a path."""
    shipped = own_folder("models")
    for folder in (shipped / name, Path(name)):
        if (folder / CARD).exists():
            return folder
    known = ", ".join(sorted(found.parent.name for found in shipped.glob(f"*/{CARD}")))
    raise ValueError(f"{str(name)!r} is no directory with weights and a card, and none of the models {known}.")
