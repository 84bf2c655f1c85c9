"""Draws the plain-data figures of a `ProbeResult`; the only file of the probes that needs matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # Okabe and Ito: colour-blind safe
_STYLES = ("--", ":", "-.")  # of the second series on, another one each time that the colours have run out
_INSIDE = 4  # series of a line figure up to which the legend finds room among the lines
_TALL = 20  # entries in a column of the legend beside the lines
_NUMBERED = 16  # bars up to which each has its number on top
_SLANTED = 40  # names up to which they are slanted; more stand upright


def draw(spec: dict[str, Any]) -> Figure:
    """Draw one figure.

    Args:
        spec: as `ProbeResult` describes: `kind` "line", "bar" or "heatmap", `title`, `xlabel`, `ylabel`, `x`, and
            `series` or (heatmap) `y` and `values`; maybe `ylim`, of lines `xscale`, of bars `intervals` and `levels`.
            None stands for a missing number.

    Returns:
        A matplotlib figure that is not registered with pyplot, so nothing has to be closed.

    Raises:
        ValueError: an unknown kind.
    """
    from matplotlib.figure import Figure

    painters = {"line": _line, "bar": _bar, "heatmap": _heatmap}
    if spec.get("kind") not in painters:
        raise ValueError(f"A figure's kind must be one of {sorted(painters)}, got {spec.get('kind')!r}.")
    wide = max(6.4, 1.5 + 0.45 * len(spec["x"])) if spec["kind"] != "line" else 6.4
    if spec["kind"] == "bar" and _has_legend(spec):  # room for every bar's number, and for the legend
        bars = len(spec["x"]) * len(spec["series"])
        wide = max(wide + 1.6, 3.0 + 0.48 * bars if bars <= _NUMBERED else 3.0 + 0.18 * bars)
    tall = max(4.0, 1.8 + 0.35 * len(spec.get("y", ()))) if spec["kind"] == "heatmap" else 4.0
    if spec["kind"] == "bar":  # room for names that do not stand side by side
        tall += 0.05 * max((len(str(name)) for name in spec["x"]), default=0) if _crowded(spec["x"]) else 0
    elif spec["kind"] == "line" and len(spec["series"]) > _INSIDE:
        wide += 2.0 * math.ceil(len(spec["series"]) / _TALL)
    figure = Figure(figsize=(min(wide, 16.0), min(tall, 14.0)), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    painters[spec["kind"]](axes, spec)
    if low_high := spec.get("ylim"):
        _whole_axis(axes, *low_high)
    axes.set(title=spec.get("title", ""), xlabel=spec.get("xlabel", ""), ylabel=spec.get("ylabel", ""))
    return figure


def _numbers(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _whole_axis(axes: Axes, low: float, high: float) -> None:
    """All that can be reached, so that small numbers look small; a little more, so that no line hides in the frame."""
    room = 0.03 * (high - low)
    axes.set_ylim(low if axes.patches else low - room, high + (2.5 if axes.texts else 1) * room)  # a bar's number, too


def _plain_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _line(axes: Axes, spec: dict[str, Any]) -> None:
    """Lines; a marker on each point while there are few of them. A second series on is dashed, more are dotted."""
    marker = "o" if len(spec["x"]) <= 40 else None
    for index, (name, values) in enumerate(spec["series"].items()):
        turn, place = divmod(index, len(_COLORS))
        color, style = _COLORS[place], "-" if index == 0 else _STYLES[turn % len(_STYLES)]
        axes.plot(spec["x"], _numbers(values), color=color, linestyle=style, marker=marker, markersize=3, label=name)
    if spec.get("xscale") == "log":
        _log_axis(axes, spec["x"])
    elif all(isinstance(x, int) for x in spec["x"]):
        axes.locator_params(axis="x", integer=True)
    _plain_frame(axes)
    if len(spec["series"]) <= _INSIDE:
        axes.legend(frameon=False)
    else:
        columns = math.ceil(len(spec["series"]) / _TALL)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, ncols=columns)


def _log_axis(axes: Axes, x: list[float]) -> None:
    """A logarithmic x axis; one that begins at 0 is linear up to the next number, so that 0 stays in the picture."""
    above = [value for value in x if value > 0]
    if len(above) < len(x):
        axes.set_xscale("symlog", linthresh=min(above, default=1.0))
        axes.set_xlim(left=0)
    else:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _bar(axes: Axes, spec: dict[str, Any]) -> None:
    """Groups of bars, one group per entry of x, each bar with its number on top while there is room."""
    count, n = len(spec["series"]), len(spec["x"])
    width, told = 0.8 / count, _decimals([value for values in spec["series"].values() for value in values])
    style: dict[str, Any] = {"ecolor": "0.25", "capsize": min(4.0, 40 / (n * count)), "error_kw": {"lw": 1}}
    for index, (name, series) in enumerate(spec["series"].items()):
        values, color = _numbers(series), _COLORS[index % len(_COLORS)]
        places = [i + (index - (count - 1) / 2) * width for i in range(n)]
        bars = axes.bar(places, values, width, yerr=_reach(values, spec, name), label=name, color=color, **style)
        if n * count <= _NUMBERED:
            text = ["" if math.isnan(value) else f"{round(value, told) + 0.0:.{told}f}" for value in values]
            behind = {"facecolor": "w", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}  # lines do not cross it out
            axes.bar_label(bars, text, fontsize=8, padding=2, bbox=behind, zorder=4)
    for index, (name, series) in enumerate(spec.get("levels", {}).items()):  # one line, or steps from group to group
        places, color = [i - 0.5 for i in range(n)], _COLORS[-1 - index % len(_COLORS)]
        axes.hlines(
            _numbers(series), places, [x + 1 for x in places], colors=color, linestyles="--", lw=1.2, label=name
        )
    _label(axes, "x", spec["x"])
    _plain_frame(axes)
    if _has_legend(spec):
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, never over them


def _has_legend(spec: dict[str, Any]) -> bool:
    """Whether bars have to be told from other bars, or from lines across them."""
    return len(spec["series"]) > 1 or bool(spec.get("levels"))


def _decimals(values: list[float | None]) -> int:
    """Decimals that give the largest of some numbers three digits, and three decimals from 1 on; 12.34 gets two."""
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    power = math.floor(math.log10(largest)) if largest else 0
    return min(max(3 - power if power > 0 else 3 if power == 0 else 2 - power, 0), 6)


def _reach(values: list[float], spec: dict[str, Any], name: str) -> list[list[float]] | None:
    """How far the interval of each bar reaches below and above it; None for a series without intervals."""
    if name not in spec.get("intervals", {}):
        return None
    lows, highs = map(_numbers, spec["intervals"][name])
    return [
        [max(value - low, 0.0) for value, low in zip(values, lows, strict=True)],
        [max(high - value, 0.0) for value, high in zip(values, highs, strict=True)],
    ]


def _heatmap(axes: Axes, spec: dict[str, Any]) -> None:
    """A matrix with its numbers in the cells while they fit; values within 0 to 1 get that whole range of colours."""
    values = [_numbers(row) for row in spec["values"]]
    known = [value for row in values for value in row if not math.isnan(value)]
    unit = bool(known) and min(known) >= 0 and max(known) <= 1
    image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=0 if unit else None, vmax=1 if unit else None)
    low, high = image.get_clim()
    if len(spec["x"]) <= 24:
        for row, entries in enumerate(values):
            for column, value in enumerate(entries):
                dark = (value - low) < 0.5 * (high - low)  # a cell that is not a number is white
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    _label(axes, "x", spec["x"])
    _label(axes, "y", spec["y"])
    axes.figure.colorbar(image, ax=axes)


def _label(axes: Axes, side: str, names: list[Any]) -> None:
    """Name every tick, slanted where the names are too long to stand side by side, upright where they are many."""
    text = [str(name) for name in names]
    if side == "y":
        axes.set_yticks(range(len(text)), text, fontsize=8)
    elif len(text) > _SLANTED:
        axes.set_xticks(range(len(text)), text, fontsize=6, rotation=90)
    elif _crowded(names):
        axes.set_xticks(range(len(text)), text, fontsize=8, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(text)), text, fontsize=8)


def _crowded(names: list[Any]) -> bool:
    """Whether names are too long to stand side by side."""
    return sum(len(str(name)) for name in names) > 60
