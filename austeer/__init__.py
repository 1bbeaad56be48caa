"""AUSteer: steer language models through single atomic units.

    import austeer as au

    model = au.load()
    pairs = au.split(au.load_pairs("sentiment")).train
    units = au.activation_momentum(model, pairs).top(20)
    joy = au.methods.DirectionalAUSteer(units, alpha=12.0)
    au.generate(model, ["When I opened the letter, I"], joy)

Get a model and texts
    `load` a model; `load_pairs`, `load_prompts` and `load_results` of the book; `ContrastivePair`, `Prompt` for yours;
    `split` by topic; `swap_topics` for labels without meaning
Find units
    `collect` activations; `activation_momentum` of pairs, `momentum_of` activations; they give `ActivationMomentum`,
    and its top(k) gives `AtomicUnits`
Steer
    `methods`: AUSteer, DirectionalAUSteer and their rivals, each a `Steering`; `generate` text; `steered` traces of
    your own; `audit` what was edited; `bake` plain weights
Measure
    `sentiment`, `log_probability`, `perplexity`, `pooled`, `repetition`, `kl`; `at_price` and `draws_at_price` compare
    at one price; `load_task`, `own_task`, `pairs_of`; `evaluate` gives a `Report`, `select` a `Selection`;
    `diagnostics` of single units
Show (imported when asked for)
    au.plots, au.widgets, au.exercises, au.claims
"""

from importlib import import_module

from austeer import diagnostics, methods, small
from austeer.activations import collect
from austeer.data import ContrastivePair, Prompt, load_pairs, load_prompts, load_results, split, swap_topics
from austeer.evaluation import Report, evaluate
from austeer.generation import audit, generate, steered
from austeer.models import load
from austeer.momentum import ActivationMomentum, AtomicUnits, activation_momentum, momentum_of
from austeer.scoring import at_price, draws_at_price, kl, log_probability, perplexity, pooled, repetition, sentiment
from austeer.selection import Selection, select
from austeer.steering import Steering, bake
from austeer.tasks import load_task, own_task, pairs_of

_ON_DEMAND = ("claims", "exercises", "plots", "widgets")  # they import matplotlib, IPython and ipywidgets


def __getattr__(name: str):
    if name in _ON_DEMAND:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ActivationMomentum", "AtomicUnits", "ContrastivePair", "Prompt", "Report", "Selection", "Steering",
    "activation_momentum", "at_price", "audit", "bake", "collect", "diagnostics", "draws_at_price", "evaluate",
    "generate", "kl", "load", "load_pairs", "load_prompts", "load_results", "load_task", "log_probability",
    "methods", "momentum_of", "own_task", "pairs_of", "perplexity", "pooled", "repetition", "select", "sentiment",
    "small", "split", "steered", "swap_topics",
]  # fmt: skip
