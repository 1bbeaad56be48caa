"""Checks of the exercises of chapter 10."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from austeer.exercises.verdict import Verdict, call


def check_euler(euler: Callable[[Callable[[Tensor], Tensor], Tensor, float, int], Tensor]) -> Verdict:
    """Check exercise 10.1: some Euler steps along a velocity that depends on where one is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator)
    turn = torch.randn(4, 4, generator=generator)
    before, asked = x.clone(), []

    def velocity(point: Tensor) -> Tensor:
        asked.append(point.clone())
        return point @ (turn - turn.T)

    found = call(euler, velocity, x, 1.2, 4)
    if isinstance(found, Verdict):
        return found
    if not torch.equal(x, before):
        return Verdict(False, "it changes the x that it was given; make a new tensor at every step.")
    if tuple(found.shape) != (5, 4):
        return Verdict(False, f"it returns shape {tuple(found.shape)}; the end has the shape of the start, (5, 4).")
    step = torch.eye(4) + 0.3 * (turn - turn.T)
    if torch.allclose(found, x @ torch.linalg.matrix_power(step, 4), atol=1e-4):
        if len(asked) > 4:
            return Verdict(False, f"right, but it asks for the velocity {len(asked)} times; one time a step is enough.")
        return Verdict(True, "each step goes time / steps along the velocity at the point where it starts.")
    if torch.allclose(found, x @ (torch.eye(4) + 1.2 * (turn - turn.T)), atol=1e-4):
        return Verdict(False, "all steps use the velocity at the start; ask for it again at the point reached.")
    if torch.allclose(found, x @ torch.linalg.matrix_power(torch.eye(4) + 1.2 * (turn - turn.T), 4), rtol=1e-3):
        return Verdict(False, "every step takes the whole time; it should take time / steps.")
    return Verdict(False, "the end is not where four steps of a quarter of the time lead.")


def check_sketch_matrix(sketch_matrix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """Check exercise 10.2: the matrix M for which u . M u is what a weighted degree-2 sketch of u gives."""
    generator = torch.Generator().manual_seed(1)
    width, components = 6, 8
    places = torch.randint(components, (2, width), generator=generator)
    signs = torch.randint(2, (2, width), generator=generator) * 2.0 - 1
    weight = torch.randn(components, generator=generator)
    found = call(sketch_matrix, places.clone(), signs.clone(), weight.clone())
    if isinstance(found, Verdict):
        return found
    if tuple(found.shape) != (width, width):
        return Verdict(
            False, f"it returns shape {tuple(found.shape)}; u has {width} entries, so give ({width}, {width})."
        )
    u = torch.randn(20, width, generator=generator)
    first, second = (
        torch.zeros(20, components).index_add(1, place, u * sign) for place, sign in zip(places, signs, strict=True)
    )
    sketch = torch.fft.irfft(torch.fft.rfft(first) * torch.fft.rfft(second), n=components)
    ours, theirs = torch.einsum("ni,ij,nj->n", u, found.float(), u), sketch @ weight
    if torch.allclose(ours, theirs, atol=1e-4):
        return Verdict(True, "the whole sketch with its weights is one quadratic form of u.")
    bare = weight[(places[0][:, None] + places[1]) % components]
    if torch.allclose(ours, torch.einsum("ni,ij,nj->n", u, bare, u), atol=1e-4):
        return Verdict(False, "the places are right, the signs are missing: the product u_i u_j carries both of them.")
    return Verdict(False, "u . M u is not what the sketch gives: where does the product of u_i and u_j land?")
