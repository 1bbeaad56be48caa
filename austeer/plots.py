"""The figures of the chapters; every function returns a matplotlib figure with an opaque ground."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from austeer.momentum import ActivationMomentum, AtomicUnits

PLUS, MINUS, CHANCE, INK = "#c2570c", "#1d5fa8", "#9aa0a6", "#222222"  # distinct without colour vision, too
_STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 110,
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=[PLUS, MINUS, "#2e7d32", "#7b3fa0", "#8a6d00", INK]),
}  # fmt: skip


def _axes(height: float = 3.4, columns: int = 1, **options):
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(7.2, height), layout="constrained", **options)
    plt.close(figure)  # shown once, as the cell's value
    return figure, axes


def beta_against_chance(momentum: ActivationMomentum, luck: Sequence[float]) -> Figure:
    """Draw the distribution of beta over all units, and the band that chance alone reaches in `luck`'s draws."""
    figure, axes = _axes()
    limit = max(luck)
    axes.axvspan(-limit, limit, color=CHANCE, alpha=0.3, lw=0, label=f"chance: best of {len(luck)} swaps")
    axes.hist(momentum.beta.flatten().numpy(), bins=torch.linspace(-1, 1, 81).numpy(), color=INK, histtype="step")
    beyond = momentum.beta[momentum.beta.abs() > limit]
    axes.hist(beyond.numpy(), bins=torch.linspace(-1, 1, 81).numpy(), color=PLUS, label="beyond chance")
    axes.set(yscale="log", xlabel=r"signed score $\beta$ (share of pairs)", ylabel=f"{momentum.site} units")
    axes.legend(loc="lower center")
    return figure


def units_by_layer(units: AtomicUnits, layers: int) -> Figure:
    """Draw how many chosen units each layer has, those with beta > 0 upwards and those with beta < 0 downwards."""
    figure, axes = _axes(2.8)
    for sign, colour, name in ((1, PLUS, r"$\beta > 0$"), (-1, MINUS, r"$\beta < 0$")):
        count = torch.bincount(units.layer[units.beta * sign > 0], minlength=layers)
        axes.bar(range(layers), (sign * count).tolist(), color=colour, label=name)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xlabel="layer (0-based)", ylabel="chosen units (down: negative)")
    axes.legend(loc="upper left")
    return figure


def stability(pairs: Sequence[int], shared: dict[int, Tensor], total: int) -> Figure:
    """Draw the share of the top k that two rankings of disjoint pairs have in common, against pairs in each.

    Args:
        pairs: numbers of pairs in each half.
        shared: for each k, (numbers, draws) shares.
        total: number of units, for the share that two random choices would have.
    """
    figure, axes = _axes(3.2)
    for (k, values), mark in zip(shared.items(), "osv^", strict=False):
        middle, low, high = values.mean(1), values.min(1).values, values.max(1).values
        line = axes.plot(pairs, middle, marker=mark, label=f"top {k} (random choice: {k / total:.3f})")[0]
        axes.fill_between(pairs, low, high, color=line.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel="pairs in each of two disjoint sets", ylabel="share of top k in common", ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


def dose(curves: dict[str, tuple[Sequence[float], Tensor, Tensor]], unsteered: float) -> Figure:
    """Draw mean sentiment against strength, one panel per rule, one line per number of units.

    Args:
        curves: for each "rule, k units", (alphas, mean sentiment of +, mean sentiment of -).
        unsteered: the unsteered mean sentiment.
    """
    rules = list(dict.fromkeys(name.split(",")[0] for name in curves))
    figure, panels = _axes(3.6, len(rules), sharey=True)
    for panel, rule in zip([panels] if len(rules) == 1 else panels, rules, strict=True):
        own = {name: curve for name, curve in curves.items() if name.split(",")[0] == rule}
        for (name, (alphas, plus, minus)), mark in zip(own.items(), "osv^", strict=False):
            signed = [-alpha for alpha in reversed(alphas)] + [0] + list(alphas)
            values = [*reversed(minus.tolist()), unsteered, *plus.tolist()]
            panel.plot(signed, values, marker=mark, ms=4, label=name.split(", ")[1])
        panel.axhline(unsteered, color=CHANCE, lw=1, ls="--")
        panel.axvline(0, color=CHANCE, lw=1)
        panel.set(title=rule, xlabel=r"signed strength $\alpha$")
        panel.legend(loc="upper left", fontsize=8)
    (panels if len(rules) == 1 else panels[0]).set_ylabel("mean VADER compound")
    return figure


def effect_against_price(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    price: float,
    xlabel: str = "perplexity of the worse side / unsteered perplexity",
    ylabel: str = "swing of mean VADER compound",
    prices: tuple[float, float] = (0.95, 3.0),
    scale: str = "linear",
) -> Figure:
    """Draw effect against price, one line per method; grey where the name says random.

    Args:
        curves: for each method, (effects, prices), at growing strength.
        price: where methods are compared.
        xlabel, ylabel: what price and effect are.
        prices: the range of prices shown.
        scale: "linear" or "log", of the prices.
    """
    figure, axes = _axes(4.0)
    marks, labelled = iter("osv^DPX*" * 3), False
    for name, (effects, own) in curves.items():
        if scale == "log":  # strength 0 costs nothing, which such an axis does not have
            effects, own = zip(*((e, p) for e, p in zip(effects, own, strict=True) if p > 0), strict=True)
        if name.startswith("random"):
            axes.plot(own, effects, color=CHANCE, lw=1, label=None if labelled else "random units, ten draws")
            labelled = True
        else:
            axes.plot(own, effects, marker=next(marks), ms=5, label=name)
    axes.axvline(price, color=INK, lw=0.8, ls=":")
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=scale, xlim=prices)
    axes.legend(fontsize=8, loc="best")
    return figure


def effect_by_units(curves: dict[str, tuple[Sequence[int], Tensor]], levels: dict[str, Tensor], ylabel: str) -> Figure:
    """Draw effect against the number of units, with intervals, and, as bands, that of methods without such a number.

    Args:
        curves: for each name, numbers of units and (numbers, 3) effect, low, high; grey dots where it says random.
        levels: for each name, (3,) effect, low, high.
        ylabel: what the effect is.
    """
    figure, axes = _axes(4.2)
    for (name, (effect, low, high)), colour in zip(levels.items(), ("#2e7d32", "#7b3fa0", "#8a6d00"), strict=False):
        axes.axhspan(low, high, color=colour, alpha=0.10, lw=0)
        axes.axhline(effect, color=colour, lw=1.2, ls="--", label=name)
    for (name, (numbers, values)), mark, colour in zip(curves.items(), "os^", (PLUS, MINUS, CHANCE), strict=False):
        if name.startswith("random"):
            axes.plot(numbers, values[:, 0].tolist(), mark, ms=4, color=colour, label=name)
        else:
            errors = torch.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]).tolist()
            axes.errorbar(
                numbers, values[:, 0].tolist(), yerr=errors, fmt=f"{mark}-", ms=5, lw=1.3, color=colour, label=name
            )
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xscale="log", xlabel="number of steered units", ylabel=ylabel)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def share_positive(shares: Tensor, everything: Tensor) -> Figure:
    """Draw in which share of texts each unit's activation is above zero: all units, and the chosen ones as ticks."""
    figure, axes = _axes(2.8)
    axes.hist(everything.flatten().numpy(), bins=40, range=(0, 1), color=CHANCE, label="all units")
    axes.plot(
        shares.numpy(), torch.full_like(shares, 0), "|", ms=22, color=PLUS, label="the chosen units", clip_on=False
    )
    axes.set(xlabel=r"share of texts with $x_i > 0$", ylabel="units")
    axes.legend()
    return figure


def side_by_side(openings: Sequence[str], columns: dict[str, Sequence[str]]):
    """Show continuations under several steerings as a table; text is escaped.

    Returns:
        an IPython HTML object.
    """
    from IPython.display import HTML

    def cell(text: str) -> str:
        return html.escape(textwrap.shorten(text, 220, placeholder=" ..."))

    head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in ("opening", *columns))
    rows = "".join(
        f"<tr><td style='text-align:left;vertical-align:top'><b>{html.escape(opening)}</b></td>"
        + "".join(
            f"<td style='text-align:left;vertical-align:top'>{cell(column[i])}</td>" for column in columns.values()
        )
        + "</tr>"
        for i, opening in enumerate(openings)
    )
    return HTML(f"<table>{'<tr>' + head + '</tr>'}{rows}</table>")


def bars(panels: dict[str, Tensor], ylabel: str) -> Figure:
    """Draw one panel of bars for each tensor of values; bars above zero and below it have different colours.

    Args:
        panels: for each "title, name of the x axis", (bars,) values.
        ylabel: what the values are, with their unit.
    """
    figure, axes = _axes(3.2, len(panels), squeeze=False)
    for panel, (name, values) in zip(axes[0], panels.items(), strict=True):
        title, xlabel = name.rsplit(", ", 1)
        colours = [PLUS if value > 0 else MINUS for value in values.tolist()]
        panel.bar(range(len(values)), values.tolist(), width=1.0 if len(values) > 40 else 0.8, color=colours)
        panel.axhline(0, color=INK, lw=0.8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))  # layers, heads and units are counted
        panel.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def against(panels: dict[str, tuple[Tensor, Tensor]], xlabel: str, ylabel: str) -> Figure:
    """Draw one scatter per panel, (x, y) of shape (points,) each, with the line on which both are equal."""
    figure, axes = _axes(3.1, len(panels), squeeze=False)
    for panel, (title, (x, y)) in zip(axes[0], panels.items(), strict=True):
        panel.scatter(x.tolist(), y.tolist(), s=9, color=PLUS, alpha=0.6, lw=0)
        ends = [min(x.min(), y.min()).item(), max(x.max(), y.max()).item()]
        panel.plot(ends, ends, color=INK, lw=0.8)
        panel.set(title=title, xlabel=xlabel)
        panel.tick_params(axis="x", labelsize=8)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def convergence(
    factors: Sequence[float], panels: dict[str, dict[str, Tensor]], xlabel: str = "factor s on the activation"
) -> Figure:
    """Draw one line per name against what grows on a logarithmic axis, one panel per quantity.

    Args:
        factors: (s,) values of the x axis, above 0; each gets a tick.
        panels: for each quantity (the y axis), for each name, such as a unit's, (s,) values.
        xlabel: what grows.
    """
    figure, axes = _axes(3.4, len(panels), squeeze=False)
    for panel, (ylabel, lines) in zip(axes[0], panels.items(), strict=True):
        for (name, values), mark in zip(lines.items(), "osv^D", strict=False):
            panel.plot(factors, values.tolist(), marker=mark, ms=4, label=name)
        panel.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        panel.set_xticks(list(factors), [f"{factor:,g}" for factor in factors])
        panel.minorticks_off()
    axes[0, 0].legend(fontsize=8)
    return figure


def heat_map(panels: dict[str, Tensor], label: str, limit: float) -> Figure:
    """Draw (layers, width) effects as one panel each, layer by unit, units sorted by effect inside each layer.

    Args:
        panels: for each title, (layers, width) values.
        label: what the colours are, with their unit.
        limit: values beyond +-limit get the colour of the limit.
    """
    figure, axes = _axes(3.8, len(panels), squeeze=False, sharey=True)
    for panel, (title, values) in zip(axes[0], panels.items(), strict=True):
        ordered = values.sort(dim=1).values.numpy()
        colours = panel.imshow(
            ordered, aspect="auto", origin="lower", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        panel.set(title=title, xlabel="unit, sorted inside its layer")
    axes[0, 0].set_ylabel("layer (0-based)")
    figure.colorbar(colours, ax=axes[0].tolist(), label=label, extend="both")
    return figure


def forest(names: Sequence[str], chosen: Tensor | None, mean: Tensor, low: Tensor, high: Tensor, xlabel: str) -> Figure:
    """Draw one row per unit or method: its mean with an interval, and, hollow, its mean on the data that chose it.

    Args:
        names: the rows, from top to bottom.
        chosen: (rows,) means on the data that chose the units; None if nothing was chosen.
        mean, low, high: (rows,) means and interval, on other data.
        xlabel: what is shown, with its unit.
    """
    figure, axes = _axes(0.22 * len(names) + 1.0)
    places = list(range(len(names)))[::-1]
    errors = torch.stack([mean - low, high - mean]).tolist()
    axes.errorbar(mean.tolist(), places, xerr=errors, fmt="o", ms=4, lw=1.2, color=PLUS, label="on other topics")
    if chosen is not None:
        axes.plot(chosen.tolist(), places, "o", ms=5, mfc="none", color=MINUS, label="where it was chosen")
        axes.legend(fontsize=8)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel(xlabel)
    return figure
