"""Returns in a report, in each world by itself: over the runs of a recipe, and as a picture of every rule and run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from algornn.report_figures import WIDTH, Picture, picture, run_colours
from algornn.run_results import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def seeds_of_a_recipe(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    """Return the runs of every recipe of which several, trained with the same options, have returns by world."""
    together: dict[tuple[str, tuple[str, ...]], list[RunResults]] = {}
    for run in runs:
        if any(run.groups(stage, "return") for stage in run.stages):
            together.setdefault((run.recipe, tuple(run.changed)), []).append(run)
    return [runs for runs in together.values() if len(runs) > 1]


def returns_over_seeds(runs: Sequence[RunResults]) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """Yield what the returns of some runs are on average, set by set, and what those of a set less a rival's are.

    The returns of the rivals of ``test`` stand in sets such as ``test_ppo``. Differences are taken run by run.

    Yields:
        The set, or two, and world to (mean over runs, half of its 95 % interval by Student's t).
    """
    shared = {stage: _shared([run.groups(stage, "return") for run in runs]) for stage in runs[0].stages}
    found = {stage: by_world for stage, by_world in shared.items() if by_world}
    for stage, by_world in found.items():
        yield stage, {world: mean_interval(values) for world, values in by_world.items()}
    first = [stage for stage in found if not any(stage.startswith(f"{other}_") for other in found)]
    for stage, rival in product(first, found):
        if rival.startswith(f"{stage}_"):
            theirs = found[rival]
            both = {
                world: zip(ours, theirs[world], strict=True) for world, ours in found[stage].items() if world in theirs
            }
            less = {world: mean_interval([a - b for a, b in pairs]) for world, pairs in both.items()}
            yield f"{stage} less {rival}", less


def _shared(each: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Return the returns of all runs in the worlds that they all have."""
    return {world: [by_world[world] for by_world in each] for world in each[0] if all(world in e for e in each)}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two numbers and half of its 95 % interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


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
