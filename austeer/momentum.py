"""Activation momentum: in how many pairs is a unit higher on the positive side, and which units stand out."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from austeer.activations import TOKENS_PER_PASS, Texts, last_tokens, require_finite
from austeer.data import ContrastivePair
from austeer.models import ModelInfo, info
from austeer.remote import BYTES_PER_REQUEST, PASSES_PER_REQUEST, run
from austeer.sites import anatomy

MAX_GROUPS = 64  # topics beyond these share a group, so that memory does not grow with the number of topics
_COUNT_BYTES = 16  # what comes back from a remote model for a unit and a group: two int32 and two float32


@dataclass(frozen=True)
class AtomicUnits:
    """Chosen units of one site, best first.

    Args:
        site: "attention", "ffn", "neuron", "residual", or, where the FFN is gated, "gate".
        layer: (k,) int64, 0-based.
        index: (k,) int64, the dimension inside the layer.
        beta: (k,) float32, the signed score in [-1, 1].
        mean_difference: (k,) float32, mean of x+ - x-, in the activation's own units.
        model: the model they were read from.
        shape: (layers, width) of the site.
        tied: how many units have the size of score at the cut; above 1 the last choice was made by the tie rule.
        about: template, number of pairs, and how the units were chosen.
    """

    site: str
    layer: Tensor
    index: Tensor
    beta: Tensor
    mean_difference: Tensor
    model: ModelInfo
    shape: tuple[int, int]
    tied: int = 1
    about: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, rows: slice) -> AtomicUnits:
        """Return the units of a slice, such as `units[:5]`."""
        if not isinstance(rows, slice):
            raise TypeError(f"Units are taken by slice, such as units[:5], not by {rows!r}.")
        names = ("layer", "index", "beta", "mean_difference")
        return replace(self, **{name: getattr(self, name)[rows] for name in names}, tied=1)

    def shuffled_signs(self, seed: int = 0) -> AtomicUnits:
        """Return the same units with a random half of the signs of beta and mean difference turned: a control."""
        generator = torch.Generator().manual_seed(seed)
        sign = torch.ones(len(self))
        sign[torch.randperm(len(self), generator=generator)[: (len(self) + 1) // 2]] = -1
        about = {**self.about, "control": f"shuffled signs, seed {seed}"}
        return replace(self, beta=self.beta * sign, mean_difference=self.mean_difference * sign, about=about)

    def with_norm_of(self, other: AtomicUnits) -> AtomicUnits:
        """Return the same units with the mean difference scaled to the norm of another choice's: a control.

        Raises:
            ValueError: units whose mean differences are all 0.
        """
        if not self.mean_difference.any():
            raise ValueError("All mean differences are 0, so no factor gives them another norm; choose other units.")
        scale = other.mean_difference.norm() / self.mean_difference.norm()
        about = {**self.about, "norm": float(other.mean_difference.norm())}
        return replace(self, mean_difference=self.mean_difference * scale, about=about)

    def _rows(self) -> list[tuple[int, int, float, float]]:
        columns = (self.layer, self.index, self.beta, self.mean_difference)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _title(self) -> str:
        total = self.shape[0] * self.shape[1]
        how = ", ".join(f"{key} {value}" for key, value in self.about.items() if value is not None)
        ties = f"; {self.tied} units tie at the cut" if self.tied > 1 else "; no tie at the cut"
        return f"{len(self)} of {total:,} {self.site} units of {self.model.id} ({how}{ties})"

    def __repr__(self) -> str:
        shown = self._rows()[:20]
        lines = [f"{'layer':>7} {'index':>6} {'beta':>7} {'mean difference':>16}"]
        lines += [f"{layer:7d} {index:6d} {beta:7.3f} {mean:16.4f}" for layer, index, beta, mean in shown]
        lines += [f"    ... and {len(self) - len(shown)} more"] if len(self) > len(shown) else []
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{layer}</td><td>{index}</td><td>{beta:.3f}</td><td>{mean:.4f}</td></tr>"
            for layer, index, beta, mean in self._rows()[:20]
        )
        more = f"<p>... and {len(self) - 20} more</p>" if len(self) > 20 else ""
        head = "<tr><th>layer</th><th>index</th><th>beta</th><th>mean difference</th></tr>"
        return f"<p>{html.escape(self._title())}</p><table>{head}{rows}</table>{more}"


@dataclass(frozen=True)
class ActivationMomentum:
    """Counts and sums of x+ - x- for every unit, kept by topic, and what follows from them.

    Args:
        site: the site that was read.
        higher: (groups, layers, width) int32, pairs with x+ > x-, by group of topics.
        lower: the same for x+ < x-; a tie counts as neither.
        total: (groups, layers, width) float64, sum of x+ - x-.
        squares: (groups, layers, width) float64, sum of (x+ - x-)^2.
        pairs: (groups,) int64, pairs in each group.
        model: the model.
        template: None or "chat".
    """

    site: str
    higher: Tensor
    lower: Tensor
    total: Tensor
    squares: Tensor
    pairs: Tensor
    model: ModelInfo
    template: str | None = None

    @property
    def beta(self) -> Tensor:
        """The signed score, (layers, width) float32 in [-1, 1]; r+ if r+ >= r-, else -r- (AUSteer, section 4)."""
        return signed_score(self.higher.sum(0), self.lower.sum(0), int(self.pairs.sum()))

    @property
    def mean_difference(self) -> Tensor:
        """The mean of x+ - x- over all pairs, (layers, width) float32."""
        return (self.total.sum(0) / self.pairs.sum()).float()

    @property
    def standardised(self) -> Tensor:
        """Size of the mean difference over the differences' standard deviation, (layers, width) float32; breaks ties.

        Infinite where a difference never varies, but 0 where it is always 0.
        """
        pairs = self.pairs.sum()
        mean = self.total.sum(0) / pairs
        variance = self.squares.sum(0) / pairs - mean**2
        rounding = 2 * pairs * torch.finfo(torch.float64).eps * mean**2  # what sums of so many numbers may be off by
        score = mean.abs() / torch.where(variance > rounding, variance, 0.0).sqrt()
        return torch.where(mean == 0, 0.0, score).float()

    @property
    def log_p(self) -> Tensor:
        """Natural log of the p value of a two-sided sign test, (layers, width) float64.

        The test takes pairs as independent and drops ties. Pairs that share a topic are not: `null` is the honest one.
        """
        from scipy.stats import binom  # half a second to import, so only when it is asked for

        higher, lower = self.higher.sum(0).numpy(), self.lower.sum(0).numpy()
        votes, fewer = higher + lower, np.minimum(higher, lower)
        log_p = np.zeros(votes.shape)
        for n in np.unique(votes):  # few different ones, since ties are rare; scipy's own logcdf underflows to -inf
            one_side = np.logaddexp.accumulate(binom.logpmf(np.arange(n + 1), n, 0.5))
            log_p[votes == n] = one_side[fewer[votes == n]] + np.log(2)
        return torch.from_numpy(log_p.clip(max=0.0))

    def null(self, seed: int = 0) -> float:
        """Return the largest `|beta|` over all units when whole topics have their sides swapped at random.

        If the behaviour had nothing to do with the activations, the true maximum would be one more such draw.

        Raises:
            ValueError: fewer than 5 groups of topics, which cannot be swapped in enough ways.
        """
        groups = len(self.pairs)
        if groups < 5:
            raise ValueError(f"The pairs have {groups} topics; a null by swapping topics needs at least 5.")
        swap = torch.rand(groups, generator=torch.Generator().manual_seed(seed)) < 0.5
        swap = swap[:, None, None]
        higher = torch.where(swap, self.lower, self.higher).sum(0)
        lower = torch.where(swap, self.higher, self.lower).sum(0)
        return signed_score(higher, lower, int(self.pairs.sum())).abs().max().item()

    def top(self, k: int, by: str = "momentum") -> AtomicUnits:
        """Return the k units of all layers with the largest score.

        Args:
            k: how many.
            by: "momentum" (`|beta|`, ties broken by `standardised`, then by layer and index) or
                "mean_difference" (its size, the plain alternative).

        Raises:
            ValueError: k below 1 or above the number of units, or an unknown `by`.
        """
        self._require(k)
        if by not in ("momentum", "mean_difference"):
            raise ValueError(f'by is {by!r}; give "momentum" or "mean_difference".')
        score = (self.beta if by == "momentum" else self.mean_difference).abs().flatten()
        order = torch.argsort(self.standardised.flatten(), descending=True, stable=True)
        order = order[torch.argsort(score[order], descending=True, stable=True)][:k]
        return self._units(order, tied=int((score == score[order[-1]]).sum()), chosen=by)

    def random(self, k: int, seed: int = 0) -> AtomicUnits:
        """Return k units drawn at random from all layers, with their own beta and mean difference: a control.

        Raises:
            ValueError: k below 1 or above the number of units.
        """
        self._require(k)
        order = torch.randperm(self.beta.numel(), generator=torch.Generator().manual_seed(seed))[:k]
        return self._units(order, tied=1, chosen=f"random, seed {seed}")

    def stability(self, k: int, draws: int = 10, seed: int = 0) -> float:
        """Return the mean share of the top k units that two random halves of the topics have in common.

        Raises:
            ValueError: fewer than 2 groups of topics, a bad k, or no draw.
        """
        groups = len(self.pairs)
        if draws < 1:
            raise ValueError(f"draws is {draws}; give a number from 1 on.")
        if groups < 2:
            raise ValueError(f"The pairs have {groups} topic; halves need at least 2.")
        generator, shared = torch.Generator().manual_seed(seed), 0.0
        for _ in range(draws):
            order = torch.randperm(groups, generator=generator)
            first, second = (self.subset(half).top(k) for half in (order[: groups // 2], order[groups // 2 :]))
            shared += len(unit_set(first) & unit_set(second)) / k / draws
        return shared

    def subset(self, groups: Tensor) -> ActivationMomentum:
        """Return the momentum of some groups of topics only; `groups` is (n,) int64, positions in `pairs`."""
        names = ("higher", "lower", "total", "squares", "pairs")
        return replace(self, **{name: getattr(self, name)[groups] for name in names})

    def _require(self, k: int) -> None:
        require_count("k", k, self.higher[0].numel(), ", the number of units")

    def _units(self, order: Tensor, tied: int, chosen: str) -> AtomicUnits:
        width = self.higher.shape[2]
        about = {"pairs": int(self.pairs.sum()), "template": self.template, "by": chosen}
        return AtomicUnits(
            self.site, order // width, order % width, self.beta.flatten()[order],
            self.mean_difference.flatten()[order], self.model, tuple(self.higher.shape[1:]), tied, about,
        )  # fmt: skip

    def __repr__(self) -> str:
        layers, width = self.higher.shape[1:]
        return (
            f"Momentum of {layers * width:,} {self.site} units of {self.model.id} over {int(self.pairs.sum())} pairs "
            f"in {len(self.pairs)} groups of topics; largest |beta| {self.beta.abs().max():.3f}"
        )


def activation_momentum(
    model,
    pairs: Sequence[ContrastivePair],
    site: str = "attention",
    *,
    template: str | None = None,
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> ActivationMomentum:
    """Compare x+ with x- at the last token of every pair, for every unit of a site (AUSteer, section 4).

    On a remote model the pairs are counted there: what comes back is the counts and sums of each group of topics, in
    as many requests as there are bounded numbers of pairs and topics, not the activations.

    Args:
        model: a model from `load()`.
        pairs: contrastive pairs; pairs of one topic are swapped together by `null`.
        site: "attention", "ffn", "neuron", "residual", or, where the FFN is gated, "gate".
        template: None or "chat".
        tokens_per_pass: bounds the memory of a pass; the result does not depend on it beyond rounding.

    Raises:
        ValueError: fewer than 2 pairs, what is no pair, an unknown site, a pair longer than the context, or activations
            that are not finite.

    Example:
        >>> model, pairs = au.load(), au.load_pairs("sentiment")[:16]
        >>> momentum = au.activation_momentum(model, pairs, site="attention")
        >>> momentum.beta.shape
        torch.Size([30, 576])
        >>> momentum.top(20).beta.abs().min() > 0.9
        tensor(True)
    """
    remote, found, group = info(model).remote, anatomy(model), _groups(pairs)
    shape = found.layers, found.require(site)
    texts = Texts.of(model, pairs, template)
    counts = _empty(int(group.max()) + 1, shape)
    per_request = max(1, BYTES_PER_REQUEST // (_COUNT_BYTES * shape[0] * shape[1]))  # groups
    shares = _shares(texts.columns, group, per_request, tokens_per_pass) if remote else [None]

    def batch(rows: list[int]) -> tuple:
        return rows, *texts.encode(model, rows), group[rows]

    def bundles() -> Iterator[list[tuple]]:
        for share in shares:
            batches = map(batch, texts.batches(tokens_per_pass, share))
            yield from [list(batches)] if remote else ([one] for one in batches)

    with tqdm(total=len(pairs), desc=f"reading {site}", unit="item", leave=False) as bar:
        if remote:
            for bundle, (groups, *found_counts) in run(model, _statistics, bundles(), site):
                for count, part in zip(counts, found_counts, strict=True):
                    count.index_add_(0, groups, part.to(count.dtype))
                bar.update(sum(len(rows) for rows, *_ in bundle))
        else:
            for [(rows, *_)], [activations] in run(model, last_tokens, bundles(), site, again=batch):
                _count(counts, group[rows], activations[::2], activations[1::2])
                bar.update(len(rows))
                del activations  # or they would be there during the next pass, too
    require_finite(counts[2])
    return ActivationMomentum(site, *counts, torch.bincount(group), info(model), template)


def momentum_of(positive: Tensor, negative: Tensor, pairs: Sequence[ContrastivePair], model, site: str = "attention"):
    """Return the momentum of activations that are already here, such as `collect` returns them.

    Args:
        positive, negative: (pairs, layers, width).
        pairs: the pairs they belong to, in order; gives the topics.
        model, site: where they were read.

    Raises:
        ValueError: shapes that differ, fewer than 2 pairs, an unknown site, or activations that are not finite.
    """
    info(model), anatomy(model).require(site)
    if positive.shape != negative.shape or len(positive) != len(pairs) or positive.ndim != 3:
        raise ValueError(
            f"positive is {tuple(positive.shape)}, negative {tuple(negative.shape)}, for {len(pairs)} pairs; "
            "give (pairs, layers, width) for both."
        )
    group = _groups(pairs)
    counts = _empty(int(group.max()) + 1, positive.shape[1:])
    _count(counts, group, positive, negative)
    require_finite(counts[2])
    return ActivationMomentum(site, *counts, torch.bincount(group), info(model))


def signed_score(higher: Tensor, lower: Tensor, pairs: int) -> Tensor:
    """Return beta = r+ if r+ >= r-, else -r-, from counts (AUSteer, section 4).

    Args:
        higher, lower: counts of pairs with x+ > x- and x+ < x-, any shape.
        pairs: the number of pairs, ties included.

    Returns:
        float32 of the same shape, in [-1, 1].
    """
    return torch.where(higher >= lower, higher, -lower).float() / pairs


def require_count(name: str, value: int, most: int, of: str = "") -> None:
    """Refuse what is no whole number from 1 to `most`."""
    if not isinstance(value, Integral) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; give a number from 1 to {most:,}{of}.")


def require_momentum(momentum: ActivationMomentum) -> None:
    """Refuse what is no momentum, such as the units that were chosen by it."""
    if not isinstance(momentum, ActivationMomentum):
        raise ValueError(
            f"momentum is of type {type(momentum).__name__}; give an ActivationMomentum, from activation_momentum()."
        )


def unit_set(units: AtomicUnits) -> set[tuple[int, int]]:
    """Return the units as a set of (layer, index), to compare choices."""
    return set(zip(units.layer.tolist(), units.index.tolist(), strict=True))


def _groups(pairs: Sequence[ContrastivePair]) -> Tensor:
    """Number the topics in order of appearance; a pair without a topic is a topic of its own; at most MAX_GROUPS."""
    for pair in pairs:
        if not isinstance(pair, ContrastivePair):
            raise ValueError(f"{pair!r:.60} is not a ContrastivePair; give pairs, such as load_pairs() returns.")
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pair was given; a sign statistic needs at least 2.")
    number: dict[object, int] = {}
    for row, pair in enumerate(pairs):
        number.setdefault(pair.topic or row, len(number))
    return torch.tensor([number[pair.topic or row] % MAX_GROUPS for row, pair in enumerate(pairs)])


def _shares(columns: list[int], group: Tensor, groups: int, tokens_per_pass: int) -> Iterator[list[int]]:
    """Divide rows among requests: at most so many groups each, all of a group in one unless it is too long for that."""
    share, seen, tokens = [], set(), 0
    for row in group.argsort(stable=True).tolist():
        number, cost = int(group[row]), columns[row]
        too_long = tokens + cost > PASSES_PER_REQUEST * tokens_per_pass
        if share and (too_long or (number not in seen and len(seen) == groups)):
            yield share
            share, seen, tokens = [], set(), 0
        share.append(row)
        seen.add(number)
        tokens += cost
    yield share


def _statistics(model, bundle: list[tuple], site: str) -> tuple[Tensor, ...]:
    """Read batches of pairs and count them where the model is; return the groups that occur, and their counts and sums.

    Only this leaves a remote model: (groups,) int64, and for each of these groups what `ActivationMomentum` holds, the
    sums as float32.
    """
    groups = torch.cat([group for *_, group in bundle]).unique()
    counts = None
    for batch in bundle:
        activations = last_tokens(model, [batch], site)[0]
        counts = counts or _empty(len(groups), activations.shape[1:])
        _count(counts, torch.searchsorted(groups, batch[-1]), activations[::2], activations[1::2])
    higher, lower, total, squares = counts
    return groups, higher, lower, total.float(), squares.float()


def _empty(groups: int, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = (torch.zeros(groups, *shape, dtype=torch.int32) for _ in range(2))
    sums = (torch.zeros(groups, *shape, dtype=torch.float64) for _ in range(2))
    return (*counts, *sums)


def _count(counts: tuple[Tensor, ...], group: Tensor, positive: Tensor, negative: Tensor) -> None:
    for layer in range(positive.shape[1]):  # one at a time: differences in float64 are large
        difference = positive[:, layer].double() - negative[:, layer].double()
        higher, lower, total, squares = (count[:, layer] for count in counts)
        higher.index_add_(0, group, (difference > 0).int())
        lower.index_add_(0, group, (difference < 0).int())
        total.index_add_(0, group, difference)
        squares.index_add_(0, group, difference**2)
