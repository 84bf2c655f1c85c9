"""Figures are drawn from plain data."""

import io
import json
import math

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
