"""The pictures of a report, as PNG: learning curves, groups, in against out of distribution, probes over training."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from algornn.run_results import RunResults, natural

# Okabe and Ito's palette: told apart by colour-blind readers, and in print by its lightness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Five inches wide: on a telephone a point of the picture is about a pixel of the screen, so its letters stay readable.
WIDTH, DPI = 5.0, 180
PANELS = 12
STYLE: Any = {
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


@dataclass
class Picture:
    """A PNG picture with its file name (without ``.png``) and what it shows."""

    name: str
    caption: str
    png: bytes


def result_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the bars of every run's groups and the accuracy in against out of distribution."""
    for run in runs:
        if any(run.groups(stage) for stage in run.stages):
            sets = " and ".join(run.stages)
            apart = f" Pale: incomplete training data ({', '.join(run.incomplete)})." if run.incomplete else ""
            yield picture(f"groups {run.label}", f"{run.label}: accuracy by group on {sets}.{apart}", group_bars(run))
    scattered = [run for run in runs if len(run.stages) > 1 and _in_and_out(run)]
    if scattered:
        caption = "Accuracy in and out of distribution: one point per group, a star for the mean. On the line nothing is lost."
        yield picture("iid_ood", caption, iid_against_ood(scattered))


def curve_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield the learning curves, and the validation accuracy of every group where there are groups."""
    for key, name, caption in (
        (
            "train/loss",
            "train_loss",
            "Training loss (logarithmic); pale: as logged, bold: mean of neighbouring points.",
        ),
        ("val/sequence_accuracy", "val_accuracy", "Validation accuracy, in distribution."),
    ):
        curves = {run.label: run.curves[key] for run in runs if run.curves.get(key)}
        if curves:
            yield picture(name, caption, learning_curve(curves, key))


def probe_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield, for every probe, its scalars over training and the figures of its last measurement in every run."""
    for probe in dict.fromkeys(name for run in runs for name in run.probes):
        curves = {
            name: {run.label: points for run in runs if (points := scalar_curve(run, probe, name))}
            for name in dict.fromkeys(
                n for run in runs for a in run.probes.get(probe, {}).values() for n in a.get("scalars") or {}
            )
        }
        names = [name for name, by_run in curves.items() if by_run]
        for first in range(0, len(names), PANELS):
            part = {name: curves[name] for name in names[first : first + PANELS]}
            more = f" ({first // PANELS + 1} of {-(-len(names) // PANELS)})" if len(names) > PANELS else ""
            yield picture(f"{probe} scalars{more}", f"{probe} over training{more}.", small_multiples(part))
        for run in runs:
            yield from last_figures(run, probe, len(runs) > 1)


def last_figures(run: RunResults, probe: str, name_run: bool) -> Iterator[Picture]:
    """Yield the figures that a probe stored at the last step of a run; one that cannot be drawn becomes a note."""
    from algornn.probes.plots import draw

    if probe not in run.probes:
        return
    step = max(run.probes[probe])
    specs = run.probes[probe][step].get("figures")
    for name, spec in (specs if isinstance(specs, dict) else {}).items():
        of_run = f"{run.label}, " if name_run else ""
        try:
            with _style():
                figure = draw(spec)
        except (ValueError, TypeError, KeyError) as error:
            run.notes.append(f"{probe}, step {step}: the figure {name!r} cannot be drawn ({error}).")
            continue
        yield picture(
            f"{probe} {name} {run.label if name_run else ''}", f"{probe}: {name} ({of_run}step {step:,}).", figure
        )


def scalar_curve(run: RunResults, probe: str, name: str) -> list[tuple[int, float]]:
    """Return a probe's scalar over the steps at which it was measured and finite."""
    measured = ((step, artefact.get("scalars")) for step, artefact in sorted(run.probes.get(probe, {}).items()))
    return [(step, s[name]) for step, s in measured if isinstance(s, dict) and isinstance(s.get(name), (int, float))]


def group_bars(run: RunResults) -> Any:
    """Draw the accuracy of every group as horizontal bars, the test sets side by side."""
    accuracies = {stage: run.groups(stage) for stage in run.stages}
    names = sorted({name for groups in accuracies.values() for name in groups}, key=natural)
    thickness = 0.8 / len(accuracies)
    figure, axes = _figure(0.9 + len(names) * (0.12 + 0.17 * len(accuracies)))
    for i, ((stage, groups), colour) in enumerate(zip(accuracies.items(), cycle(COLOURS), strict=False)):
        for row, name in enumerate(names):
            if name in groups:
                y, value = row + (i - (len(accuracies) - 1) / 2) * thickness, 100 * groups[name]
                pale = 0.35 if name in run.incomplete else 1.0
                axes.barh(y, value, thickness * 0.92, color=colour, alpha=pale)
                axes.text(value + 1, y, f"{value:.1f}", va="center", fontsize=7.5, color="#333333")
        axes.barh(0, 0, color=colour, label=f"{stage} ({'OOD' if run.stages[stage].get('ood') else 'IID'})")
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 110), xticks=range(0, 101, 20), xlabel="accuracy (%)")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def _in_and_out(run: RunResults) -> list[tuple[str, str]]:
    """Return the pairs of an in-distribution set and an out-of-distribution set to set against each other."""
    inside = next((stage for stage, result in run.stages.items() if not result.get("ood")), None)
    return [(inside, stage) for stage, result in run.stages.items() if inside and result.get("ood")]


def iid_against_ood(runs: Sequence[RunResults]) -> Any:
    """Draw the accuracy out of distribution over that in distribution: a point per group, a star per mean."""
    figure, axes = _figure(WIDTH * 0.92)
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, zorder=1)
    series = [(run, inside, outside) for run in runs for inside, outside in _in_and_out(run)]
    for (run, inside, outside), colour in zip(series, cycle(COLOURS), strict=False):
        x, y = run.groups(inside), run.groups(outside)
        shared = [name for name in x if name in y]
        axes.scatter(
            [100 * x[n] for n in shared], [100 * y[n] for n in shared], s=22, color=colour, alpha=0.6, linewidths=0
        )
        mean = (100 * (run.accuracy(inside) or 0.0), 100 * (run.accuracy(outside) or 0.0))
        label = f"{outside}, mean {mean[1]:.1f} (IID {mean[0]:.1f})"
        label = f"{run.label}: {label}" if len(runs) > 1 else label
        axes.scatter(*mean, s=130, marker="*", color=colour, edgecolors="white", linewidths=0.7, label=label, zorder=3)
        # Only the groups that lose most are named, so that names do not lie on each other.
        for name in sorted(shared, key=lambda n: y[n] - x[n])[:3]:
            if x[name] - y[name] > 0.05:
                axes.annotate(
                    name, (100 * x[name], 100 * y[name]), (-4, -3), textcoords="offset points", ha="right", fontsize=8
                )
    axes.set(
        xlim=(0, 102), ylim=(0, 102), xlabel="accuracy in distribution (%)", ylabel="accuracy out of distribution (%)"
    )
    axes.set_aspect("equal")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def learning_curve(curves: dict[str, list[tuple[int, float]]], key: str) -> Any:
    """Draw one logged value over the steps, a line per run; a loss on a logarithmic axis with its running mean."""
    figure, axes = _figure(3.0)
    loss = key.endswith("loss")
    for (label, points), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        steps, values = zip(*points, strict=True)
        scaled = values if loss else [100 * v for v in values]
        smooth = running_mean(scaled, max(1, len(scaled) // 40)) if loss else scaled
        axes.plot(steps, smooth, color=colour, label=label, marker="o" if len(points) < 30 else "", markersize=3)
        if loss:
            axes.plot(steps, scaled, color=colour, alpha=0.25, linewidth=0.8)
    if loss and all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="training loss (nats)" if loss else "validation accuracy (%)")
    _step_axis(axes)
    if len(curves) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of every value and up to `reach` neighbours on each side."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def small_multiples(curves: dict[str, dict[str, list[tuple[int, float]]]]) -> Any:
    """Draw scalars over steps, a panel per scalar and a line per run."""
    from matplotlib.figure import Figure

    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    with _style():
        figure = Figure(figsize=(WIDTH, 0.4 + 1.5 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
        for axes, (name, by_run) in zip(panels, curves.items(), strict=False):
            for (label, points), colour in zip(by_run.items(), cycle(COLOURS), strict=False):
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=2.5)
            axes.set_title(name, fontsize=8)
            axes.tick_params(labelsize=7.5)
            _step_axis(axes)
        for axes in list(panels):
            axes.set_axis_off()
        labels = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        if len(labels) > 1:
            figure.legend(labels.values(), labels.keys(), loc="outside upper center")
        figure.supxlabel("step", fontsize=8)
    return figure


def _step_axis(axes: Any) -> None:
    """Write 20k for 20,000."""
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if abs(step) >= 10_000 else f"{step:g}")


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(STYLE)


def _figure(height: float) -> tuple[Any, Any]:
    """Return an empty figure of the report's width and its axes. A bare Figure needs no display: it draws with Agg."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots()


def picture(name: str, caption: str, figure: Any) -> Picture:
    """Return a drawn figure as a PNG whose bytes depend on nothing but its content."""
    image = io.BytesIO()
    with _style():
        figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return Picture(re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower(), caption, image.getvalue())
