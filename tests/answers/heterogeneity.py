from __future__ import annotations

import torch
from scipy.stats import false_discovery_control

from austeer import exercises


def normalised_kl(log_p: torch.Tensor) -> torch.Tensor:
    distance = (log_p.exp() * (log_p - log_p[-1])).sum(-1)
    return distance / distance[0]


def kl_backwards(log_p: torch.Tensor) -> torch.Tensor:
    distance = (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1)
    return distance / distance[0]


def discoveries(p: torch.Tensor, q: float) -> torch.Tensor:
    return torch.from_numpy(false_discovery_control(p.double().numpy()) <= q)


def each_below_its_own_bar(p: torch.Tensor, q: float) -> torch.Tensor:
    rank = p.argsort().argsort() + 1
    return p <= rank / len(p) * q


def discoveries_or_crash(p: torch.Tensor, q: float) -> torch.Tensor:
    below = p.sort().values <= torch.arange(1, len(p) + 1) / len(p) * q
    return p <= p.sort().values[below.nonzero().max()]


def curse(choice: torch.Tensor, report: torch.Tensor, k: int) -> tuple[float, float]:
    best = choice.mean(0).topk(k).indices
    return choice[:, best].mean().item(), report[:, best].mean().item()


def curse_chosen_twice(choice: torch.Tensor, report: torch.Tensor, k: int) -> tuple[float, float]:
    return curse(choice, report, k)[0], curse(report, report, k)[0]


RIGHT = [
    (exercises.check_normalised_kl, normalised_kl),
    (exercises.check_discoveries, discoveries),
    (exercises.check_curse, curse),
]

WRONG = [
    (exercises.check_normalised_kl, lambda log_p: normalised_kl(log_p) * 2, "in logarithms"),
    (exercises.check_normalised_kl, kl_backwards, "swapped"),
    (
        exercises.check_normalised_kl,
        lambda log_p: (log_p.exp() * (log_p - log_p[-1])).sum(-1),
        "divide by the first",
    ),
    (exercises.check_discoveries, lambda p, q: p <= q / len(p), "Bonferroni"),
    (exercises.check_discoveries, lambda p, q: p <= q, "each test alone"),
    (exercises.check_discoveries, discoveries_or_crash, "all False"),
    (exercises.check_discoveries, each_below_its_own_bar, "LARGEST"),
    (exercises.check_discoveries, lambda p, q: discoveries(p, q).nonzero().flatten(), "boolean"),
    (exercises.check_curse, curse_chosen_twice, "chooses again"),
    (exercises.check_curse, lambda choice, report, k: curse(choice, report, k)[1], "two numbers"),
    (exercises.check_curse, lambda choice, report, k: curse(report, choice, k), "were expected"),
    (exercises.check_normalised_kl, lambda log_p: normalised_kl(log_p)[:2], "one number per row"),
    (exercises.check_discoveries, lambda p, q: discoveries(p, q).flip(0), "it gives"),
]
