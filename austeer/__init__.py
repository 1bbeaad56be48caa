"""AUSteer: steer language models through single atomic units. Start with `load`, `load_pairs`, `generate`."""

from importlib import import_module

from austeer import diagnostics, methods
from austeer.activations import collect
from austeer.data import ContrastivePair, Prompt, load_pairs, load_prompts, load_results, split
from austeer.evaluation import at_price, log_probability, perplexity, pooled, repetition, sentiment
from austeer.generation import audit, generate, steered
from austeer.models import load
from austeer.momentum import ActivationMomentum, AtomicUnits, activation_momentum, momentum_of
from austeer.steering import Steering, bake

_ON_DEMAND = ("claims", "exercises", "plots", "widgets")  # they import matplotlib, IPython and ipywidgets


def __getattr__(name: str):
    if name in _ON_DEMAND:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ActivationMomentum", "AtomicUnits", "ContrastivePair", "Prompt", "Steering", "activation_momentum", "at_price",
    "audit", "bake", "collect", "diagnostics", "generate", "load", "load_pairs", "load_prompts", "load_results",
    "log_probability", "methods", "momentum_of", "perplexity", "pooled", "repetition", "sentiment", "split", "steered",
]  # fmt: skip
