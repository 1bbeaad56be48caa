"""Small models of a language whose meaning is exact: `load()` one that ships with the book, or one of your own."""

from austeer.small import diffusion, grammar, training
from austeer.small.weights import CARD, WEIGHTS, card, load, save

__all__ = ["CARD", "WEIGHTS", "card", "diffusion", "grammar", "load", "save", "training"]
