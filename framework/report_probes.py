"""Probes in a report: their last scalars as tables, with intervals, and pictures of them over training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from algornn.report_figures import PANELS, Band, Picture, picture, run_colours, small_multiples
from algornn.report_tables import Table, number
from algornn.run_results import Curve, RunResults, natural

_END = re.compile("(.+?)_(low|high)(/.*)?")  # of the interval of a scalar, whose part may stand behind it


def probe_scalars(runs: Sequence[RunResults], limit: int | None = None) -> Table:
    """Return the probes' last scalars without the parts ``a/b``: a row each, a column per run.

    With a limit, the first of every probe that are no controls.
    """
    latest = [run.last_scalars() for run in runs]
    rows = []
    for probe in dict.fromkeys(name for scalars in latest for name in scalars):
        known = [scalars.get(probe, {}) for scalars in latest]
        names = dict.fromkeys(name for scalars in known for name in without_ends(scalars) if "/" not in name)
        shown = [name for name in names if limit is None or "control" not in name][:limit]
        told = [_told(scalars) for scalars in known]
        rows += [[f"{probe}: {name}", *(by_name.get(name, "-") for by_name in told)] for name in shown]
    return Table(["probe", *(run.label for run in runs)], rows)


def probe_parts(runs: Sequence[RunResults]) -> Table:
    """Return the parts ``a/b`` of the probes' scalars at the last step: a row per part b, a column per scalar."""
    cells: dict[str, dict[str, str]] = {}
    for run in runs:
        for probe, scalars in run.last_scalars().items():
            for name, value in _told(scalars).items():
                scalar, slash, part = name.partition("/")
                column = f"{probe}: {scalar}" + (f" ({run.label})" if len(runs) > 1 else "")
                if slash:
                    cells.setdefault(column, {})[part] = value
    parts = sorted({part for column in cells.values() for part in column}, key=natural)
    return Table(["part", *cells], [[part, *(column.get(part, "-") for column in cells.values())] for part in parts])


def ends(scalars: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return, for every scalar with an interval, the names of its ends: ``a_low`` and ``a_high``, or ``a_low/b``."""
    found: dict[str, dict[str, str]] = {}
    for name in scalars:
        if (end := _END.fullmatch(name)) and (value := end[1] + (end[3] or "")) in scalars:
            found.setdefault(value, {})[end[2]] = name
    return {value: (both["low"], both["high"]) for value, both in found.items() if len(both) == 2}


def without_ends(scalars: Mapping[str, object]) -> list[str]:
    """Return the names of scalars but for the ends of intervals."""
    left_out = {name for both in ends(scalars).values() for name in both}
    return [name for name in scalars if name not in left_out]


def _told(scalars: Mapping[str, float]) -> dict[str, str]:
    """Return every scalar as text, with its interval where it has one."""
    told = {name: number(scalars[name]) for name in without_ends(scalars)}
    for name, (low, high) in ends(scalars).items():
        told[name] += f" ({number(scalars[low])} to {number(scalars[high])})"
    return told


def probe_pictures(runs: Sequence[RunResults]) -> Iterator[Picture]:
    """Yield, for every probe, its scalars over training and the figures of its last measurement in every run."""
    for probe in dict.fromkeys(name for run in runs for name in run.probes):
        panels, bands = scalar_panels(runs, probe)
        names = list(panels)
        for first in range(0, len(names), PANELS):
            part = {name: panels[name] for name in names[first : first + PANELS]}
            more = f" ({first // PANELS + 1} of {-(-len(names) // PANELS)})" if len(names) > PANELS else ""
            caption = f"{probe} over training{more}."
            caption += " Pale: the parts, bold: their mean." if any("/" in name for name in part) else ""
            caption += " Shaded: intervals." if any(name in bands for name in part) else ""
            yield picture(f"{probe} scalars{more}", caption, small_multiples, part, run_colours(runs), bands)
        for run in runs:
            yield from last_figures(run, probe, len(runs) > 1)


def scalar_panels(
    runs: Sequence[RunResults], probe: str
) -> tuple[dict[str, dict[str, list[Curve]]], dict[str, dict[str, Band]]]:
    """Return panel to run to curves, and to the intervals of those that have one.

    The parts ``a/x``, ``a/y``, ... of one scalar share the panel ``a/...``, without their intervals. A scalar that was
    measured once in every run makes no curve: it stands in the table.
    """
    panels: dict[str, dict[str, list[Curve]]] = {}
    bands: dict[str, dict[str, Band]] = {}
    for run in runs:
        curves: dict[str, Curve] = {}
        for step, scalars in run.scalars_over_steps(probe):
            for name, value in scalars.items():
                curves.setdefault(name, []).append((step, value))
        for name in without_ends(curves):
            panel = f"{name.split('/')[0]}/..." if "/" in name else name
            panels.setdefault(panel, {}).setdefault(run.label, []).append(curves[name])
        for name, both in ends(curves).items():
            low, high = (dict(curves[end]) for end in both)
            steps = sorted(low.keys() & high.keys())
            if "/" not in name and len(steps) > 1:
                bands.setdefault(name, {})[run.label] = [(step, low[step], high[step]) for step in steps]
    lengths = {name: max(len(c) for curves in by_run.values() for c in curves) for name, by_run in panels.items()}
    return {name: by_run for name, by_run in panels.items() if lengths[name] > 1}, bands


def last_figures(run: RunResults, probe: str, name_run: bool) -> Iterator[Picture]:
    """Yield the figures that a probe stored at the last step of a run; one that cannot be drawn becomes a note."""
    from algornn.probes.plots import draw

    if probe not in run.probes:
        return
    step = max(run.probes[probe])
    artefact = run.probes[probe][step]
    specs, about = artefact.get("figures"), str(artefact.get("about") or "")
    for name, spec in (specs if isinstance(specs, dict) else {}).items():
        title = str((spec.get("title") if isinstance(spec, dict) else "") or name)
        caption = f"{title} ({probe}, {f'{run.label}, ' if name_run else ''}step {step:,}). {about}".strip()
        try:
            # The probes' figures bring their own style.
            yield picture(f"{probe} {name} {run.label if name_run else ''}", caption, draw, spec, style={})
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            run.notes.append(f"{probe}, step {step:,}: the figure {name!r} cannot be drawn ({error}).")
