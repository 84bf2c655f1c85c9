"""The picture of returns in a report: every rule and run beside the others, in each world by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from algornn.report_figures import WIDTH, Picture, picture, run_colours
from algornn.run_results import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def return_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the mean returns of the groups of all test sets, where runs have them."""
    if returned := [run for run in runs if any(run.groups(stage, "return") for stage in run.stages)]:
        caption = "Mean return in every world or group, by test set, with its standard error; each has its own scale."
        yield picture("returns", caption, returns_by_group, returned, run_colours(runs))


def returns_by_group(runs: Sequence[RunResults], colours: dict[str, str]) -> Figure:
    """Draw mean returns with their standard errors: a panel per group, a row per test set, the runs side by side."""
    from matplotlib.figure import Figure

    sets: dict[str, list[str]] = {}
    for run in runs:
        for stage in run.stages:
            for group in run.groups(stage, "return"):
                rows = sets.setdefault(group, [])
                rows += [stage] if stage not in rows else []
    heights = [0.35 + max(0.2, 0.12 * len(runs)) * len(rows) for rows in sets.values()]
    figure = Figure(figsize=(WIDTH, 0.5 + 0.2 * len(runs) + sum(heights)), layout="constrained")
    panels = figure.subplots(len(sets), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (group, rows) in zip(panels, sets.items(), strict=True):
        for i, run in enumerate(runs):
            there = [stage for stage in rows if group in run.groups(stage, "return")]
            places = [rows.index(stage) + 0.6 * ((i + 0.5) / len(runs) - 0.5) for stage in there]
            errors = [run.return_error(stage, group) or 0.0 for stage in there]
            means = [run.groups(stage, "return")[group] for stage in there]
            style: dict[str, Any] = {"fmt": "o", "markersize": 4, "color": colours[run.label], "label": run.label}
            axes.errorbar(means, places, xerr=errors, **style)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.5, -0.5), title=group)
    panels[-1].set_xlabel("mean return")
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center")
    return figure
