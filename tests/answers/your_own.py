from __future__ import annotations

from austeer import exercises


def balance(positive: list[str], negative: list[str]) -> tuple[float, float]:
    ends = [[text.split()[-1].strip(".!?").lower() for text in side] for side in (positive, negative)]
    same = sum(a == b for a, b in zip(*ends, strict=True)) / len(positive)
    shorter, longer = sorted(sum(len(text.split()) for text in side) / len(side) for side in (positive, negative))
    return same, (longer - shorter) / longer


def choose(scores: list[float], prices: list[float], limit: float) -> int | None:
    within = [i for i, price in enumerate(prices) if price <= limit]
    return max(within, key=lambda i: (scores[i], -prices[i]), default=None)


def choose_strictly(scores: list[float], prices: list[float], limit: float) -> int | None:
    return choose(scores, [price * 1.001 for price in prices], limit)


def choose_or_stop(scores: list[float], prices: list[float], limit: float) -> int | None:
    return max((i for i, price in enumerate(prices) if price <= limit), key=lambda i: (scores[i], -prices[i]))


RIGHT = [
    (exercises.check_balance, balance),
    (exercises.check_choose, choose),
]

WRONG = [
    (exercises.check_balance, lambda a, b: balance(a, b)[0], "two numbers"),
    (
        exercises.check_balance,
        lambda a, b: (sum(x.split()[-1] == y.split()[-1] for x, y in zip(a, b, strict=True)) / len(a), 0.0),
        "the same word",
    ),
    (exercises.check_balance, lambda a, b: (balance(a, b)[0] * len(a), 0.0), "divide by their number"),
    (exercises.check_balance, lambda a, b: (balance(a, b)[0], 0.5), "divide it by the mean length"),
    (exercises.check_balance, lambda a, b: (balance(a, b)[0], 2 / 12), "LONGER"),
    (exercises.check_choose, lambda scores, prices, limit: scores.index(max(scores)), "above the limit"),
    (exercises.check_choose, lambda scores, prices, limit: 2, "the cheaper one"),
    (exercises.check_choose, lambda scores, prices, limit: 0.6, "not its score"),
    (exercises.check_choose, lambda scores, prices, limit: prices.index(min(prices)), "3 was expected"),
    (exercises.check_choose, choose_strictly, "just the limit"),
    (exercises.check_choose, choose_or_stop, "return None"),
    (exercises.check_choose, lambda s, p, limit: choose(s, p, limit) or 0, "returns 0"),
    (exercises.check_balance, lambda a, b: (0.1, balance(a, b)[1]), "a share of 0.10"),
    (exercises.check_balance, lambda a, b: (balance(a, b)[0], 0.3), "0.143 of the longer"),
]
