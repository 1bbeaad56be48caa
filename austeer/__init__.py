"""AUSteer: steer language models through single atomic units. Start with `load`, `load_pairs`, `generate`."""

from importlib import import_module

from austeer import diagnostics, methods
from austeer.activations import collect
from austeer.data import ContrastivePair, Prompt, load_pairs, load_prompts, load_results, split, swap_topics
from austeer.evaluation import Report, evaluate
from austeer.generation import audit, generate, steered
from austeer.models import load
from austeer.momentum import ActivationMomentum, AtomicUnits, activation_momentum, momentum_of
from austeer.scoring import at_price, draws_at_price, kl, log_probability, perplexity, pooled, repetition, sentiment
from austeer.selection import Selection, select
from austeer.steering import Steering, bake
from austeer.tasks import load_task, pairs_of

_ON_DEMAND = ("claims", "exercises", "plots", "widgets")  # they import matplotlib, IPython and ipywidgets


def __getattr__(name: str):
    if name in _ON_DEMAND:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ActivationMomentum", "AtomicUnits", "ContrastivePair", "Prompt", "Report", "Selection", "Steering",
    "activation_momentum", "at_price", "audit", "bake", "collect", "diagnostics", "draws_at_price", "evaluate",
    "generate", "kl", "load", "load_pairs", "load_prompts", "load_results", "load_task", "log_probability",
    "methods", "momentum_of", "pairs_of", "perplexity", "pooled", "repetition", "select", "sentiment", "split",
    "steered", "swap_topics",
]  # fmt: skip
