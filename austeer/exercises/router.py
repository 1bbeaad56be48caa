"""Checks of the exercises of chapter 12."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_advantages(advantages: Callable[[Tensor], Tensor]) -> Verdict:
    """Check exercise 12.1: rewards compared with the other draws of the same prompt."""
    rewards = torch.tensor([[1.0, 50.0, 2.0], [3.0, 10.0, 2.0], [5.0, 30.0, 2.0], [3.0, 30.0, 2.0]])
    found = call(advantages, rewards.clone())
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found)
    if tuple(found.shape) != (4, 3):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one number per reward is asked for, (4, 3).")
    if not found.isfinite().all():
        return Verdict(False, "a prompt whose draws all earn alike gives 0 / 0: add a small number to the deviation.")
    centred = rewards - rewards.mean(0)
    if torch.allclose(found, centred, atol=1e-3):
        return Verdict(False, "the means are right; divide by each prompt's standard deviation, too.")
    if torch.allclose(found, (rewards - rewards.mean()) / rewards.std(), atol=1e-3):
        return Verdict(False, "all prompts share one mean: take it over dimension 0, among the draws of one prompt.")
    if torch.allclose(found, (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True), atol=1e-3):
        return Verdict(False, "prompts are compared with each other: dimension 0 holds the draws of one prompt.")
    right = [centred / (rewards.std(0, correction=c) + 1e-6) for c in (0, 1)]
    if not any(torch.allclose(found, one, atol=1e-2) for one in right):
        return Verdict(False, f"for the draws 1, 3, 5, 3 it gives {found[:, 0].tolist()}; their mean is 3.")
    return Verdict(True, "easy and hard prompts count alike, and a prompt whose draws all earn the same says nothing.")


def check_target(target: Callable[[Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 12.2: the mixture of at most two vectors that a warm-up imitates, from a table of gains."""
    gains = torch.tensor([[0.2, 0.9, 0.5], [-0.1, -0.4, -0.2], [0.3, 0.6, 1.5], [0.7, 0.1, -2.0], [0.0, 0.0, 0.0]])
    levels = torch.tensor([5.0, 10.0, 20.0])
    found = call(target, gains.clone(), levels.clone())
    if isinstance(found, Verdict):
        return found
    found = torch.as_tensor(found).float()
    if tuple(found.shape) != (5,):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; one strength per vector is asked for, (5,).")
    if torch.equal(found, torch.tensor([10.0, 0, 20, 5, 0])):
        return Verdict(False, "all vectors that help are in it; keep the two that help most.")
    if torch.equal(found, torch.tensor([20.0, 0, 20, 0, 0])):
        return Verdict(False, "the largest strength is not always the best one: take the level of the largest gain.")
    if torch.allclose(found, torch.tensor([0.9, 0, 1.5, 0, 0])):
        return Verdict(False, "the two vectors are right; give their strengths, not what they gain.")
    if torch.equal(found, torch.tensor([1.0, 0, 2, 0, 0])):
        return Verdict(False, "these are places in `levels`; give the strengths that stand there.")
    if not torch.equal(found, torch.tensor([10.0, 0, 20, 0, 0])):
        said = [round(x, 2) for x in found.tolist()]
        return Verdict(False, f"it gives {said}, and [10, 0, 20, 0, 0] was expected: each at its own best strength.")
    alone = call(target, torch.tensor([[-1.0, -2.0], [0.5, 0.4], [-0.1, -3.0]]), torch.tensor([1.0, 2.0]))
    if isinstance(alone, Verdict) or torch.as_tensor(alone).tolist() != [0.0, 1.0, 0.0]:
        return Verdict(False, "where only one vector helps, the second place stays empty: a gain below 0 is no help.")
    return Verdict(True, "two vectors at most, each at its own best strength, and none that does harm.")
