"""The pictures of a report, as PNG: learning curves, groups, in against out of distribution, scalars over steps."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from algornn.run_results import Curve, RunResults, natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers, and in print by its lightness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Five inches wide: on a telephone a point of the picture is about a pixel of the screen, so its letters stay readable.
WIDTH, DPI = 5.0, 180
PANELS = 6
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")  # of the test sets, where the colours are the runs'
SHARES = re.compile("accuracy|match|chance|iia")  # scalars of probes that get an axis from 0 to 1
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}

_REACH = 40  # points of a curve for every neighbour on each side that its running mean takes in
Band = list[tuple[int, float, float]]  # the ends of an interval over steps


@dataclass
class Picture:
    """A PNG picture with its file name (without ``.png``) and what it shows."""

    name: str
    caption: str
    png: bytes


def run_colours(runs: Sequence[RunResults]) -> dict[str, str]:
    """Return every run's colour, the same one in all pictures of a report that show runs."""
    return dict(zip((run.label for run in runs), cycle(COLOURS), strict=False))


def result_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the runs side by side, accuracy in against out of distribution, and the groups of every run."""
    colours = run_colours(runs)
    tested = [run for run in runs if run.finished and any(run.accuracy(stage) is not None for stage in run.stages)]
    if len(tested) > 1:
        yield picture("sets", "Mean accuracy on every test set.", set_bars, tested, colours)
    if scattered := [run for run in tested if _in_and_out(run)]:
        caption = "Accuracy in and out of distribution: a pale point per group, a large one for their mean. "
        caption += "On the line nothing is lost."
        yield picture("iid_ood", caption, iid_against_ood, scattered, colours)
    for measure, name, what in (
        ("accuracy", "examples_read", "Accuracy"),
        ("squared_error", "squared_error", "Squared error"),
    ):
        after = {(run.label, stage): run.after(stage, measure) for run in runs for stage in run.stages}
        if after := {both: curve for both, curve in after.items() if curve}:
            caption = f"{what} by the number of examples read before."
            yield picture(name, caption, by_examples_read, after, measure, colours)
    for run in tested:
        if any(len(run.groups(stage)) > 1 for stage in run.stages):
            apart = f" Hatched: incomplete training data ({', '.join(run.incomplete)})." if run.incomplete else ""
            caption = f"{run.label}: accuracy by group.{apart}"
            yield picture(f"groups {run.label}", caption, group_bars, run, colours[run.label])


def curve_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the learning curves: training loss, validation accuracy or return; a run without validation gets a note."""
    for run in runs:
        unseen = run.curves and not any(key.startswith("val") for key in run.curves)
        if unseen and (len(runs) > 1 or run.why_not_validated):
            run.notes.append(f"{run.label} has no validation curve{run.why_not_validated}.")
    for key, name, caption in (
        ("train/loss", "train_loss", "Training loss."),
        ("train/cloning", "cloning", "Deviation from what is cloned."),
        ("train/agreement", "agreement", "Agreement of the learned objective with the critics."),
        (
            "train/action_agreement",
            "action_agreement",
            "Agreement of the learned objective with the critics, of actions.",
        ),
        ("train/improvement", "improvement", "What the critics think after a learned step."),
        ("val/sequence_accuracy", "val_accuracy", "Validation accuracy, in distribution."),
        ("val/return", "val_return", "Mean return of the validation episodes, in distribution."),
        ("val_unseen/return", "val_unseen_return", "Mean return of the validation episodes in unseen worlds."),
    ):
        if curves := {run.label: run.curves[key] for run in runs if run.curves.get(key)}:
            if key.startswith("train/") and _smoothed(curves.values()):
                caption += " Pale: as logged, bold: mean of neighbouring points."
            yield picture(name, caption, learning_curve, curves, key, run_colours(runs))
    living: dict[str, dict[str, list[Curve]]] = {}
    for run in runs:
        for key, curve in run.curves.items():
            if key.startswith("train/return/"):
                steps, values = zip(*curve, strict=True)
                smooth = list(zip(steps, running_mean(values), strict=True))
                living.setdefault(key.rpartition("/")[2], {})[run.label] = [smooth]
    if living:
        caption = "Mean return of the agents that live in every world, of all ages."
        smoothed = _smoothed(curve for by_run in living.values() for curves in by_run.values() for curve in curves)
        caption += " Mean of neighbouring points." if smoothed else ""
        yield picture("train_returns", caption, small_multiples, living, run_colours(runs))


def set_bars(runs: Sequence[RunResults], colours: dict[str, str]) -> Figure:
    """Draw the mean accuracy of every test set as horizontal bars, the runs side by side."""
    rows = {run.label: {stage: f"{stage}\n({_role(run, stage)})" for stage in run.stages} for run in runs}
    names = dict.fromkeys(name for by_stage in rows.values() for name in by_stage.values())
    series = {
        run.label: {rows[run.label][s]: a for s in run.stages if (a := run.accuracy(s)) is not None} for run in runs
    }
    return _bars(sorted(names, key=lambda name: "(OOD)" in name), series, [colours[label] for label in series])


def group_bars(run: RunResults, colour: str) -> Figure:
    """Draw the accuracy of every group as horizontal bars, the test sets side by side in tints of the run's colour."""
    from matplotlib.colors import to_hex, to_rgb

    series = {f"{stage} ({_role(run, stage)})": run.groups(stage) for stage in run.stages}
    names = sorted({name for groups in series.values() for name in groups}, key=natural)
    (r, g, b), shares = to_rgb(colour), [1 - i / len(series) for i in range(len(series))]
    tints = [to_hex((1 - share * (1 - r), 1 - share * (1 - g), 1 - share * (1 - b))) for share in shares]
    return _bars(names, series, tints, hatched=run.incomplete)


def _bars(
    names: Sequence[str], series: dict[str, dict[str, float]], colours: Sequence[str], hatched: Sequence[str] = ()
) -> Figure:
    """Draw accuracies (0 to 1) as horizontal bars with their numbers: a row per name, the series side by side."""
    thickness = 0.8 / len(series)
    across = max(1, min(3, 54 // (max(map(len, series)) + 8)))  # labels side by side in the legend
    figure, axes = empty_figure(0.7 + 0.2 * -(-len(series) // across) + len(names) * (0.12 + 0.18 * len(series)))
    for i, ((label, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
        axes.barh(0, 0, color=colour, label=label)
        for row, name in enumerate(names):
            y, value = row + (i - (len(series) - 1) / 2) * thickness, 100 * values.get(name, 0.0)
            told = f"{value:.1f}" if name in values else "none"  # no examples are another thing than none right
            hatch: dict[str, Any] = {"hatch": "/////", "edgecolor": "white", "linewidth": 0} if name in hatched else {}
            axes.barh(y, value, thickness * 0.92, color=colour, **hatch)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
            axes.text(value + 1, y, told, va="center", fontsize=7.5, color="#333333", bbox=behind)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 110), xticks=range(0, 101, 20), xlabel="accuracy (%)")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=across)
    return figure


def _role(run: RunResults, stage: str) -> str:
    return "OOD" if run.stages[stage].get("ood") else "IID"


def _in_and_out(run: RunResults) -> list[tuple[str, str]]:
    """Return the pairs of an in-distribution set and an out-of-distribution set to set against each other."""
    inside = next((stage for stage, result in run.stages.items() if not result.get("ood")), None)
    return [(inside, stage) for stage, result in run.stages.items() if inside and result.get("ood")]


def by_examples_read(curves: dict[tuple[str, str], Curve], measure: str, colours: dict[str, str]) -> Figure:
    """Draw accuracy or squared error after n examples of a stream, a curve per (run, test set)."""
    figure, axes = empty_figure(2.8 + 0.2 * len(curves))
    dashes = dict(zip(dict.fromkeys(stage for _, stage in curves), cycle(DASHES), strict=False))
    for (run, stage), curve in curves.items():
        scale = 100 if measure == "accuracy" else 1
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": dashes[stage], "color": colours[run]}
        axes.plot([n for n, _ in curve], [scale * a for _, a in curve], **style, label=f"{run}, {stage}")
    axes.set_xscale("symlog", linthresh=1)
    ticks = sorted({n for curve in curves.values() for n, _ in curve})
    # Streams of other lengths end at other numbers: of two whose labels would lie on each other, the last is shown.
    ticks = [n for n, after in zip(ticks, [*ticks[1:], math.inf], strict=True) if n <= 2 or after > 1.3 * n]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlabel("examples read before")
    if measure == "accuracy":
        axes.set(ylabel="accuracy (%)", ylim=(-2, 102))
    else:
        axes.set(ylabel="mean squared error", yscale="log")
    axes.xaxis.minorticks_off()
    figure.legend(loc="outside upper center")
    return figure


def iid_against_ood(runs: Sequence[RunResults], colours: dict[str, str]) -> Figure:
    """Draw the accuracy out of distribution over that in distribution: a pale point per group, a large one per mean.

    The colour is the run's, the marker the test set's.
    """
    figure, axes = empty_figure(WIDTH * 0.92)
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, zorder=1)
    series = [(run, inside, outside) for run in runs for inside, outside in _in_and_out(run)]
    markers = dict(zip(dict.fromkeys(outside for *_, outside in series), cycle(MARKERS), strict=False))
    for run, inside, outside in series:
        x, y = run.groups(inside), run.groups(outside)
        shared = [name for name in x if name in y]
        style: dict[str, Any] = {"marker": markers[outside], "color": colours[run.label]}
        axes.scatter([100 * x[n] for n in shared], [100 * y[n] for n in shared], s=18, alpha=0.4, linewidths=0, **style)
        mean = (100 * (run.accuracy(inside) or 0.0), 100 * (run.accuracy(outside) or 0.0))
        label = f"{outside}, mean {mean[1]:.1f} (IID {mean[0]:.1f})"
        label = f"{run.label}: {label}" if len(runs) > 1 else label
        axes.scatter(*mean, s=80, edgecolors="white", linewidths=0.7, label=label, zorder=3, **style)
        # Only the groups that lose most are named, and only among few points, so that names do not lie on each other.
        for name in sorted(shared, key=lambda n: y[n] - x[n])[: 3 if len(series) < 3 else 0]:
            if x[name] - y[name] > 0.05:
                axes.annotate(
                    name, (100 * x[name], 100 * y[name]), (-4, -3), textcoords="offset points", ha="right", fontsize=8
                )
    axes.set(
        xlim=(0, 102), ylim=(0, 102), xlabel="accuracy in distribution (%)", ylabel="accuracy out of distribution (%)"
    )
    axes.set_aspect("equal")
    figure.legend(loc="outside upper center")
    return figure


def learning_curve(curves: dict[str, Curve], key: str, colours: dict[str, str]) -> Figure:
    """Draw one logged value over the steps, a line per run; those of training with their running mean.

    Where the report has several runs, a legend names even the only one that has such a curve.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = empty_figure(3.0)
    loss, accuracy = key.endswith(("loss", "cloning")), key.endswith("accuracy")
    for label, points in curves.items():
        colour = colours[label]
        steps = [step for step, _ in points]
        values = [100 * value if accuracy else value for _, value in points]
        training = key.startswith("train/")
        bold = running_mean(values) if training else values
        axes.plot(steps, bold, color=colour, label=label, marker="o" if len(points) < 30 else "", markersize=3)
        if training:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    if loss and all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    kinds = {"train/loss": "training loss (nats)", "train/cloning": "mean square of the deviation"}
    kind = "validation accuracy (%)" if accuracy else kinds.get(key, key.rpartition("/")[2])
    axes.set(xlabel="step", ylabel=kind)
    if accuracy:
        axes.set_ylim(-2, 102)
    _count_steps(axes)
    if len(colours) > 1:
        figure.legend(loc="outside upper center")
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean of every value and its neighbours, of 40 values one on each side."""
    reach = len(values) // _REACH
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _smoothed(curves: Iterable[Curve]) -> bool:
    """Whether `running_mean` changes some of the curves."""
    return any(len(curve) >= _REACH for curve in curves)


def small_multiples(
    panels: dict[str, dict[str, list[Curve]]],
    colours: dict[str, str],
    bands: dict[str, dict[str, Band]] | None = None,
) -> Figure:
    """Draw scalars over steps, a panel per scalar and a line per run; parts are pale, their mean bold.

    Args:
        panels: scalar to run to its parts.
        colours: of the runs.
        bands: scalar to run to its intervals.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, by_run) in zip(grid.flat, panels.items(), strict=False):
        for label, curves in by_run.items():
            colour = colours[label]
            for curve in curves if "/" in name else []:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.2, linewidth=0.8)
            mean = mean_curve(curves)
            style: dict[str, Any] = {"marker": "o" if len(mean) < 30 else "", "markersize": 2.5}
            axes.plot(*zip(*mean, strict=True), color=colour, label=label, **style)
        for label, band in (bands or {}).get(name, {}).items():
            axes.fill_between(*zip(*band, strict=True), color=colours[label], alpha=0.15, linewidth=0)
        values = [value for curves in by_run.values() for curve in curves for _, value in curve]
        values += [end for band in (bands or {}).get(name, {}).values() for _, *both in band for end in both]
        if SHARES.search(name) and min(values) >= 0 and max(values) <= 1:
            axes.set_ylim(-0.04, 1.04)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7.5)
        _count_steps(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    if len(colours) > 1:
        figure.legend(list(lines.values()), list(map(str, lines)), loc="outside upper center")
    figure.supxlabel("step", fontsize=8)
    return figure


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at every step at which some of them have a value."""
    values: dict[int, list[float]] = {}
    for step, value in (point for curve in curves for point in curve):
        values.setdefault(step, []).append(value)
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())]


def _count_steps(axes: Axes) -> None:
    """Mark whole steps, 20k for 20,000."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}")


def empty_figure(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of the report's width and its axes. A bare Figure needs no display: it draws with Agg."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def picture(
    name: str, caption: str, draw: Callable[..., Figure], *data: Any, style: dict[str, Any] | None = None
) -> Picture:
    """Return ``draw(*data)`` as a PNG whose bytes depend on nothing but `data`: not on the user's own style."""
    from matplotlib.style import context

    image = io.BytesIO()
    with context(["default", STYLE if style is None else style]):
        draw(*data).savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(file_stem(name), caption, image.getvalue())


def file_stem(name: str) -> str:
    """Return the name of a picture's file, which needs no quotes in a shell: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
