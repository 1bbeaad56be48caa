"""Figures say what is on their axes, stand on an opaque ground, and show text as text."""

import torch
from matplotlib.figure import Figure

from austeer import ContrastivePair, plots
from austeer.models import ModelInfo
from austeer.momentum import ActivationMomentum


def momentum() -> ActivationMomentum:
    generator = torch.Generator().manual_seed(0)
    higher = torch.randint(0, 9, (6, 3, 50), generator=generator, dtype=torch.int32)
    zeros = torch.zeros(6, 3, 50, dtype=torch.float64)
    info = ModelInfo("tiny", "0" * 16, (3, 50), False)
    return ActivationMomentum("attention", higher, 8 - higher, zeros, zeros, torch.full((6,), 8), info)


def every_figure() -> list[Figure]:
    found = momentum()
    curve = ([1, 2], torch.tensor([0.1, 0.2]), torch.tensor([-0.1, -0.2]))
    return [
        plots.beta_against_chance(found, [found.null(0), found.null(1)]),
        plots.units_by_layer(found.top(20), layers=3),
        plots.stability([8, 16], {5: torch.rand(2, 4)}, total=150),
        plots.dose({"directional, 5 units": curve, "multiplicative, 5 units": curve}, unsteered=0.0),
        plots.effect_against_price({"20 units": ([0, 1], [1, 2]), "random 0": ([0, 0.1], [1, 2])}, price=1.5),
        plots.share_positive(torch.rand(5), torch.rand(3, 50)),
        plots.bars({"blocks, layer": torch.randn(5), "heads, head": torch.randn(9)}, "contribution"),
        plots.against({"a": (torch.rand(5), torch.rand(5)), "b": (torch.rand(5), torch.rand(5))}, "sum", "whole"),
        plots.convergence([1, 10], {"KL": {"unit 3": torch.rand(2)}, "KL, too": {"unit 3": torch.rand(2)}}),
        plots.heat_map({"attention": torch.randn(3, 8), "ffn": torch.randn(3, 8)}, "help", limit=1.0),
        plots.forest(["a", "b"], torch.ones(2), torch.zeros(2), -torch.ones(2), torch.ones(2), "help"),
        plots.forest(["a", "b"], None, torch.zeros(2), -torch.ones(2), torch.ones(2), "swing"),
        plots.effect_by_units(
            {"momentum": ([1, 20], torch.tensor([[0.5, 0.2, 0.9]] * 2)), "random units": ([1, 1], torch.rand(2, 3))},
            {"best block": torch.tensor([0.5, 0.4, 0.6])},
            "swing",
        ),
    ]


def test_every_axis_is_labelled_and_every_ground_is_opaque() -> None:
    for figure in every_figure():
        assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
        first, *others = figure.axes
        assert first.get_ylabel() or first.get_yticklabels()
        assert all(axes.get_xlabel() or axes.get_label() == "<colorbar>" for axes in [first, *others])


def test_units_by_layer_counts_up_and_down() -> None:
    found = momentum()
    units = found.top(20)
    bars = [bar.get_height() for bar in plots.units_by_layer(units, layers=3).axes[0].patches]
    assert sum(height for height in bars if height > 0) == (units.beta > 0).sum()
    assert -sum(height for height in bars if height < 0) == (units.beta < 0).sum()


def test_a_table_of_texts_escapes_markup() -> None:
    pair = ContrastivePair("<i>opening", " <script>alert(1)</script>", " b")
    table = plots.side_by_side([pair.prompt], {"plus": [pair.positive]}).data
    assert "<script>" not in table
    assert "&lt;i&gt;opening" in table


def test_the_heat_map_sorts_the_units_of_each_layer_and_names_its_colours() -> None:
    effects = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]])
    figure = plots.heat_map({"attention": effects}, "help (logits)", limit=2.0)
    image = figure.axes[0].images[0]
    assert image.get_array().tolist() == [[1, 2, 3], [-1, 0, 5]]
    assert image.get_clim() == (-2.0, 2.0)
    assert figure.axes[-1].get_ylabel() == "help (logits)"


def test_the_forest_has_its_first_row_on_top_and_its_intervals_where_they_belong() -> None:
    mean, low, high = torch.tensor([1.0, -1.0]), torch.tensor([0.5, -3.0]), torch.tensor([2.0, 0.0])
    axes = plots.forest(["first", "second"], mean * 2, mean, low, high, "help").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_yticks()[0] > axes.get_yticks()[1]
    bars = axes.collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in bars] == [[0.5, 2.0], [-3.0, 0.0]]


def test_strength_0_has_no_place_on_a_logarithmic_axis_of_prices() -> None:
    curves = {"20 units": ([0.0, 0.5, 1.0], [0.0, 0.1, 1.0])}
    for scale, first in (("linear", 0.0), ("log", 0.1)):
        axes = plots.effect_against_price(curves, price=0.1, prices=(0.01, 1.0), scale=scale).axes[0]
        assert axes.lines[0].get_xdata()[0] == first


def test_intervals_reach_from_low_to_high() -> None:
    curves = {"momentum": ([1, 20], torch.tensor([[0.5, 0.2, 0.9], [0.6, 0.5, 0.8]]))}
    figure = plots.effect_by_units(curves, {}, "swing")
    segments = figure.axes[0].collections[0].get_segments()
    assert [[round(float(y), 3) for y in segment[:, 1]] for segment in segments] == [[0.2, 0.9], [0.5, 0.8]]
