"""Figures are drawn from plain data."""

import io
import json
import math
from itertools import pairwise

import pytest
from tiny_learner import Learner, loader

from algornn.probes import FastWeightProbe, WeightMaskProbe
from algornn.probes.plots import draw


@pytest.mark.parametrize("probe", [FastWeightProbe(), WeightMaskProbe(steps=2)], ids=lambda probe: probe.name)
def test_every_figure_of_a_probe_is_drawn_and_labelled(probe):
    saved = json.loads(probe.run(Learner(), loader(31)).to_json())
    assert saved["figures"]
    for spec in saved["figures"].values():
        figure, png = draw(spec), io.BytesIO()
        axes = figure.axes[0]
        assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
            spec["title"],
            spec["xlabel"],
            spec["ylabel"],
        )
        figure.savefig(png, format="png")
        assert png.getvalue().startswith(b"\x89PNG")


def test_lines_show_their_numbers_and_gaps():
    figure = draw({"kind": "line", "x": [0, 1, 2], "series": {"a": [1.0, None, 3.0], "b": [1, 2, 3]}})
    first, second = figure.axes[0].get_lines()
    assert first.get_ydata().tolist() == pytest.approx([1.0, math.nan, 3.0], nan_ok=True)
    assert list(second.get_ydata()) == [1, 2, 3]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("kind", ["line", "bar"])
def test_an_accuracy_of_nothing_looks_small(kind):
    spec = {"kind": kind, "x": [1, 2], "series": {"a": [0.0, 0.0]}}
    low, high = draw({**spec, "ylim": [0, 1]}).axes[0].get_ylim()
    assert low <= 0 < 1 <= high < 1.1
    assert draw(spec).axes[0].get_ylim()[1] < 0.5


def test_heatmaps_show_rows_by_columns():
    figure = draw({"kind": "heatmap", "x": ["p", "q"], "y": ["r"], "values": [[0.25, None]]})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.25", "nan"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["p", "q"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["r"]
    assert axes.images[0].get_clim() == (0, 1)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"one of \['bar', 'heatmap', 'line'\], got 'pie'"):
        draw({"kind": "pie", "x": []})


def test_many_lines_differ_and_their_legend_stands_beside_them():
    figure = draw({"kind": "line", "x": [0, 1], "series": {f"site {i}": [i, 0] for i in range(16)}})
    axes = figure.axes[0]
    figure.canvas.draw()
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 16
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    assert figure.bbox.x1 >= axes.get_legend().get_window_extent().x1


def test_many_bars_have_names_that_do_not_overlap_and_no_numbers():
    names = [f"a pair of sites of number {i}" for i in range(60)]
    figure = draw({"kind": "bar", "x": names, "series": {"a": [1.0] * 60, "b": [2.0] * 60}})
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    assert not axes.texts
    assert axes.get_window_extent().height > 0.3 * figure.bbox.height


def test_bars_have_three_digits_their_intervals_and_lines_across_them():
    spec = {
        "kind": "bar",
        "x": ["p", "q"],
        "series": {"a": [11.04, 10.95], "b": [0.25, None]},
        "intervals": {"a": [[10.0, None], [12.0, None]]},
        "levels": {"guessing": [5.0, 6.0]},
    }
    axes = draw(spec).axes[0]
    assert [text.get_text() for text in axes.texts] == ["11.04", "10.95", "0.25", ""]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["guessing", "a", "b"]
    reach = [segment[:, 1].tolist() for part in axes.collections for segment in part.get_segments() if len(segment)]
    assert [10.0, 12.0] in reach
    assert [5.0, 5.0] in reach
    assert [6.0, 6.0] in reach


@pytest.mark.parametrize(("value", "text"), [(0.7, "0.700"), (0.0512, "0.0512"), (-0.0, "0.000"), (1234.0, "1234")])
def test_a_bars_number_has_three_digits(value, text):
    axes = draw({"kind": "bar", "x": ["p"], "series": {"a": [value]}}).axes[0]
    assert [label.get_text() for label in axes.texts] == [text]


@pytest.mark.parametrize(("x", "scale"), [([0.0, 0.001, 0.1], "symlog"), ([1, 10, 100], "log")])
def test_a_logarithmic_axis_keeps_zero(x, scale):
    axes = draw({"kind": "line", "x": x, "xscale": "log", "series": {"a": [1.0, 2.0, 3.0]}}).axes[0]
    assert axes.get_xscale() == scale
    assert axes.get_xlim()[0] <= x[0]


def test_what_is_no_number_can_be_read():
    figure = draw({"kind": "heatmap", "x": ["p", "q"], "y": ["r"], "values": [[None, 0.0]]})
    assert [text.get_color() for text in figure.axes[0].texts] == ["k", "w"]
