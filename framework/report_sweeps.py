"""Recipes over the values of one option: published curve against measured curve, and up to where it is solved."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from algornn.report_figures import COLOURS, Picture, empty_figure, picture
from algornn.run_results import RunResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SweepCurve(NamedTuple):
    """One recipe's measure over the values of its option.

    Attributes:
        recipe: the recipe's name.
        option: the option's last name, such as ``size``.
        measure: ``loss``, or ``error`` (1 less the accuracy).
        values: the values that were run, in the recipe's order.
        published: the published number at every value; None where there is none.
        measured: value to the numbers of its seeds.
        solved: a value counts as solved where the number is at most this; None: no such mark.
        verified: whether the published numbers were read in the source.
        source: where they stand.
        cut_short: whether a run was stopped by its number of steps, not by its own rule.
    """

    recipe: str
    option: str
    measure: str
    values: list[Any]
    published: list[float | None]
    measured: dict[Any, dict[str, float]]
    solved: float | None
    verified: bool
    source: str
    cut_short: bool

    def seeds(self) -> list[str]:
        """The seeds that were run."""
        return sorted({seed for numbers in self.measured.values() for seed in numbers})

    def knee(self, numbers: dict[Any, float | None]) -> Any:
        """The last value, from the first one on, up to which all are solved; None where the first is not."""
        last = None
        for value in self.values:
            number = numbers.get(value)
            if number is None or self.solved is None or number > self.solved:
                break
            last = value
        return last

    def knees(self) -> tuple[Any, dict[str, Any]]:
        """The published knee, and that of every seed."""
        published = self.knee(dict(zip(self.values, self.published, strict=True)))
        found = {s: self.knee({v: numbers.get(s) for v, numbers in self.measured.items()}) for s in self.seeds()}
        return published, found

    def knee_verdict(self) -> str:
        """Compare the knees: one step of the recipe's grid is what a curve of single runs can tell."""
        published, found = self.knees()
        complete = all(set(self.measured.get(value, {})) == set(self.seeds()) for value in self.values)
        against = ["values are missing"] if not complete or not found else []
        against += [] if self.verified else ["published curve recalled"]
        against += ["runs were stopped by max_steps"] if self.cut_short else []
        if against:
            return f"none: {', '.join(against)}"
        places = [-1 if knee is None else self.values.index(knee) for knee in (published, *found.values())]
        return "reproduced" if all(abs(p - places[0]) <= 1 for p in places[1:]) else "not reproduced"


def sweep_curves(runs: Sequence[RunResults]) -> list[SweepCurve]:
    """Return the curve of every recipe of the runs that sweeps an option."""
    curves = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        same = [run for run in runs if run.recipe == recipe and run.finished and run.sweep]
        if same:
            curves.append(_curve(recipe, same, same[0].sweep))
    return curves


def _curve(recipe: str, runs: Sequence[RunResults], sweep: dict[str, Any]) -> SweepCurve:
    option, values = str(sweep["option"]), list(sweep["values"])
    stage, measure = str(sweep.get("stage") or "test"), str(sweep.get("measure") or "loss")
    measured: dict[Any, dict[str, float]] = {}
    for run in runs:
        value, number = run.setting.get(option), run.measure(stage, measure)
        if value in values and number is not None:
            measured.setdefault(value, {})[run.seed] = number
    published = list(sweep.get("published") or [])
    published += [None] * (len(values) - len(published))
    source = str(sweep.get("source") or "-")
    tail = option.rpartition(".")[2]
    solved, verified = sweep.get("solved"), bool(sweep.get("verified"))
    cut_short = any(run.steps is not None and run.steps >= run.max_steps for run in runs)
    return SweepCurve(recipe, tail, measure, values, published, measured, solved, verified, source, cut_short)


def sweep_rows(curve: SweepCurve) -> list[list[str]]:
    """Return a row per value: published and measured number, each seed; and a last one of the knees."""
    rows = []
    for value, published in zip(curve.values, curve.published, strict=True):
        numbers = list(curve.measured.get(value, {}).values())
        if not numbers:
            continue
        spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
        told = f"{statistics.fmean(numbers):.3g}{spread} (n = {len(numbers)})"
        rows.append([f"{curve.recipe}: {curve.option} = {value}", _told(published), told, ""])
    if curve.solved is not None:
        published, found = curve.knees()
        each = ", ".join(str(knee or "none") for knee in found.values())
        name = f"{curve.recipe}: solved ({curve.measure} <= {curve.solved:g}) up to {curve.option}"
        rows.append([name, str(published or "none"), each, curve.knee_verdict()])
    return rows


def sweep_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield a picture per option: published (dashed) and measured curves, a point per seed."""
    curves = sweep_curves(runs)
    for kind in dict.fromkeys((curve.option, curve.measure) for curve in curves):
        drawn = [curve for curve in curves if (curve.option, curve.measure) == kind]
        caption = f"{kind[1].capitalize()} over {kind[0]}: measured (line: mean, points: seeds), published (dashed)."
        yield picture(f"sweep {kind[0]} {kind[1]}", caption, draw_sweeps, drawn)


def draw_sweeps(curves: Sequence[SweepCurve]) -> Figure:
    """Draw a measure over the values of an option, a colour per recipe, on a logarithmic axis."""
    figure, axes = empty_figure(3.4)
    for curve, colour in zip(curves, cycle(COLOURS), strict=False):
        means = [(v, statistics.fmean(numbers.values())) for v in curve.values if (numbers := curve.measured.get(v))]
        points = [(v, number) for v, numbers in curve.measured.items() for number in numbers.values()]
        published = [(v, p) for v, p in zip(curve.values, curve.published, strict=True) if p is not None]
        axes.plot(*zip(*means, strict=True), color=colour, label=curve.recipe)
        axes.plot(*zip(*points, strict=True), color=colour, linestyle="", marker="o", markersize=3)
        if published:
            axes.plot(*zip(*published, strict=True), color=colour, linestyle="--", linewidth=1, alpha=0.7)
    for number in dict.fromkeys(curve.solved for curve in curves if curve.solved is not None):
        axes.axhline(number, color="#999999", linewidth=0.8, label=f"solved: at most {number:g}")
    if any(p is not None for curve in curves for p in curve.published):
        axes.plot([], [], color="#666666", linestyle="--", linewidth=1, label="published")
    axes.set_yscale("log")
    axes.set(xlabel=curves[0].option, ylabel=curves[0].measure)
    figure.legend(loc="outside upper center", ncols=min(3, len(curves)))
    return figure


def _told(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"
