from __future__ import annotations

from collections import Counter

from austeer import exercises, sentiment


def swing(plus: list[str], minus: list[str]) -> float:
    return (sentiment(plus).mean() - sentiment(minus).mean()).item()


RIGHT = [
    (exercises.check_swing, swing),
    (exercises.check_units_per_layer, lambda units: dict(Counter(units.layer.tolist()))),
]

WRONG = [
    (exercises.check_swing, lambda plus, minus: swing(minus, plus), "turned round"),
    (exercises.check_swing, lambda plus, minus: (sentiment(plus).mean() + sentiment(minus).mean()).item(), "added"),
    (exercises.check_swing, lambda plus, minus: sentiment(plus) - sentiment(minus), "one number"),
    (exercises.check_units_per_layer, lambda units: dict(Counter(units.index.tolist())), "units.layer"),
    (exercises.check_units_per_layer, lambda units: units.layer.tolist(), "dictionary"),
    (exercises.check_units_per_layer, lambda units: {layer: 1 for layer in units.layer.tolist()}, "layer 3 has three"),
    (exercises.check_swing, lambda plus, minus: 7.0, "was expected"),
    (exercises.check_units_per_layer, lambda units: {0: 5}, "names the layers"),
]
