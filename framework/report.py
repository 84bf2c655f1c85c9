"""`algornn report RUN [RUN ...]`: run folders -> one HTML page with its pictures, a Markdown table and a CSV file."""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from algornn.report_probes import probe_parts, probe_scalars
from algornn.report_returns import STANDARD_ERROR, mean_returns, returns
from algornn.report_sweeps import sweep_curves, sweep_rows
from algornn.report_tables import (
    Table,
    duration,
    fraction,
    in_set,
    number,
    percent,
    set_name,
    test_sets,
    with_error,
)
from algornn.run_results import OTHER_MEASURES, RunResults, natural, read_runs

# A table for the terminal shows this many numbers per probe; the page shows all.
KEY_SCALARS = 10


def result_table(runs: list[Path]) -> str:
    """Return the Markdown table of some runs for the terminal: results by test set and, below, the probes' key scalars.

    Raises:
        FileNotFoundError: a folder is no run folder.
    """
    return _terminal(read_runs([Path(run) for run in runs]))


def _terminal(runs: Sequence[RunResults]) -> str:
    """Return what fits a terminal: no errors (100 less the accuracy), no sources, the first scalars of every probe."""
    published = published_against_measured(runs)
    narrow = Table(published.header[:-1], [row[:-1] for row in published.rows])
    by_world = [returns(runs, single=True), mean_returns(runs)]
    tables = [results(runs, errors=False), *by_world, narrow, sweeps(runs), probe_scalars(runs, KEY_SCALARS)]
    return _text(runs, tables)


def _text(runs: Sequence[RunResults], tables: Sequence[Table]) -> str:
    notes = [f"Note: {note}" for run in runs for note in run.notes]
    return "\n\n".join([table.markdown() for table in tables if table.rows] + notes)


def results(runs: Sequence[RunResults], errors: bool = True) -> Table:
    """Return the result table: a row per run, accuracy (and error) by test set in percent, incomplete groups apart.

    Returns that are known by group, whose scales differ, stand in a table of their own: `returns`.
    """
    sets, apart = test_sets(runs), sorted({name for run in runs for name in run.incomplete}, key=natural)
    columns: dict[str, list[str]] = {
        "run": [run.label for run in runs],
        "model": [run.model for run in runs],
        "parameters": [number(run.metrics.get("parameters")) for run in runs],
        "steps": [number(run.steps) for run in runs],
    }
    if any(run.budget is not None for run in runs):
        columns["of published steps"] = [fraction(run.budget) for run in runs]
    for stage, ood in sets:
        found = [run.accuracy(stage) if in_set(run, stage, ood) else None for run in runs]
        others = [run.measure(stage, m) is not None or run.groups(stage, m) for run, m in product(runs, OTHER_MEASURES)]
        if all(a is None for a in found) and any(others):
            continue
        told = [f" ({percent(1 - a)})" if errors and a is not None else "" for a in found]
        columns[f"{set_name(stage, ood)} %{' (error)' if errors else ''}"] = [
            percent(a) + error for a, error in zip(found, told, strict=True)
        ]
    for measure, (stage, ood) in product(OTHER_MEASURES, sets):
        pooled = [in_set(run, stage, ood) and not run.groups(stage, measure) for run in runs]
        measured = [run.measure(stage, measure) if p else None for run, p in zip(runs, pooled, strict=True)]
        if any(found is not None for found in measured):
            spreads = [run.return_error(stage) if measure == "return" else None for run in runs]
            columns[f"{set_name(stage, ood)} {measure}"] = list(map(with_error, measured, spreads))
    for group in apart:
        for stage, ood in sets:
            parts = [run.groups(stage).get(group) if group in run.incomplete else None for run in runs]
            if any(a is not None for a in parts):
                columns[f"{group} {set_name(stage, ood)} %"] = [percent(a) for a in parts]
    return Table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)], how_measured(runs))


def how_measured(runs: Sequence[RunResults]) -> str:
    """Say over what the accuracies are means, and what was left out of them."""
    grouped = [run for run in runs if any(len(run.groups(stage)) > 1 for stage in run.stages)]
    meant = sorted({run.over for run in grouped}, reverse=True)
    sentences = [f"Accuracy is the mean over {' or '.join(meant)}."] if meant else []
    pooled = [(run, stage) for run in runs for stage in run.stages if not run.groups(stage, "return")]
    if any(run.return_error(stage) is not None for run, stage in pooled):
        sentences.append(STANDARD_ERROR)
    for run in runs:
        if run.incomplete:
            names = ", ".join(run.incomplete)
            sentence = f"{names}: trained on a part of its data only, so left out of the means and given apart."
            sentences += [sentence] if sentence not in sentences else []
    return " ".join(sentences)


def groups(runs: Sequence[RunResults]) -> Table:
    """Return the table of groups: accuracy in percent, a column for every run and test set that has them."""
    columns: list[tuple[RunResults, str, dict[str, str]]] = []
    for run in runs:
        for stage, ood in test_sets([run]):
            if shares := {name: percent(found) for name, found in run.groups(stage).items()}:
                columns.append((run, f"{set_name(stage, ood)} %", shares))
    names = sorted({name for *_, found in columns for name in found}, key=natural)
    prefix = {run.label: f"{run.label}: " if len(runs) > 1 else "" for run in runs}
    header = ["group", *(f"{prefix[run.label]}{name}" for run, name, _ in columns)]
    rows = [
        [f"{name} (incomplete)" if any(name in run.incomplete for run in runs) else name]
        + [found.get(name, "-") for *_, found in columns]
        for name in names
    ]
    return Table(header, rows)


def published_against_measured(runs: Sequence[RunResults]) -> Table:
    """Return published against measured numbers, a row per recipe and published number, seeds together."""
    rows = []
    alike = [(run.recipe, sorted(run.options.items())) for run in runs]
    for i, experiment in enumerate(alike):
        if experiment in alike[:i]:
            continue
        recipe = experiment[0]
        same = [run for run, other in zip(runs, alike, strict=True) if other == experiment and run.finished]
        for published in same[0].published if same else []:
            stage = str(published["stage"])
            over = str(published.get("over") or "groups")
            by_return = published["error"] is None
            if by_return:
                found = [r for run in same if (r := run.measure(stage, "return")) is not None]
            else:
                found = [100 * (1 - a) for run in same if (a := run.accuracy(stage, over)) is not None]
            if found:
                spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
                measured = f"{statistics.fmean(found):.2f}{spread} (n = {len(found)})"
                std, count = published.get("std"), published.get("runs")
                told = (
                    f"{published['mean_return' if by_return else 'error']}"
                    + (f" ± {std}" if std else "")
                    + (f" (n = {count})" if count else "")
                )
                kind = "verified" if published.get("verified") else "recalled, no pass mark"
                source = str(published.get("source") or "-")
                name = f"{recipe}: {stage}" + (", return" if by_return else ", over examples" * (over == "examples"))
                rows.append([name, told, measured, kind, verdict(published, found, same), source])
    kinds = " or ".join(dict.fromkeys("return" if row[0].endswith(", return") else "error %" for row in rows))
    return Table([kinds or "error %", "published", "measured", "published is", "verdict", "source"], rows)


def sweeps(runs: Sequence[RunResults]) -> Table:
    """Return published against measured numbers over the values of an option, for the recipes that sweep one."""
    curves = sweep_curves(runs)
    measures = " or ".join(dict.fromkeys(curve.measure for curve in curves)) or "loss"
    rows = [row for curve in curves for row in sweep_rows(curve)]
    sources = dict.fromkeys(f"{c.recipe}: {c.source}{'' if c.verified else ' (recalled)'}." for c in curves)
    return Table([measures, "published", "measured", "verdict"], rows, " ".join(sources))


def verdict(published: dict, found: Sequence[float], runs: Sequence[RunResults]) -> str:
    """Compare measured errors (percent) or returns with a published one, or say why they cannot be compared.

    The mark is the published mean and two published standard deviations for the worse. Fewer steps than published, a
    recalled number, groups left out, options changed by the command line or a note on the data give no verdict.
    """
    budgets = [run.budget for run in runs]
    smallest = min((budget for budget in budgets if budget is not None), default=None)
    left_out = sorted({name for run in runs for name in run.incomplete}, key=natural)
    against = ["published steps unknown"] if smallest is None else []
    against += [f"{fraction(smallest)} of the published steps"] if smallest is not None and smallest < 1 else []
    against += [f"without {', '.join(left_out)}"] if left_out else []
    against += sorted({run.note for run in runs if run.note})
    against += sorted({f"not as the recipe: {', '.join(run.options)}" for run in runs if run.options})
    against += [] if published.get("verified") else ["published number recalled"]
    if against:
        return f"none: {', '.join(against)}"
    slack = 2 * (published.get("std") or 0.0)
    if published["error"] is None:
        reached = statistics.fmean(found) >= published["mean_return"] - slack
    else:
        reached = statistics.fmean(found) <= published["error"] + slack
    return "reproduced" if reached else "not reproduced"


def facts(runs: Sequence[RunResults]) -> Table:
    """Return what a measured number needs beside it: a row per fact, a column per run."""
    rows = [["recipe", *(run.recipe for run in runs)], ["model", *(run.model for run in runs)]]
    rows += [["data", *(run.data for run in runs)], ["seed", *(run.seed for run in runs)]]
    rows += [["steps", *(number(run.steps) for run in runs)]]
    rows += [["of published steps", *(fraction(run.budget) for run in runs)]]
    rows += [["training time", *(duration(run.metrics.get("wall_seconds")) for run in runs)]]
    for key in ("commit", "hardware", "command"):
        rows += [[key, *(str(run.metrics.get(key) or "-") for run in runs)]]
    versions = [run.metrics.get("versions") for run in runs]
    rows += [
        ["versions", *(", ".join(f"{k} {v}" for k, v in d.items()) if isinstance(d, dict) else "-" for d in versions)]
    ]
    return Table(["", *(run.label for run in runs)], rows)


def measurements(runs: Sequence[RunResults]) -> str:
    """Return every number as CSV, one per line: accuracies (0 to 1), counts and the probes' scalars."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["run", "model", "data", "seed", "parameters", "steps", "budget", "set", "ood", "group", "quantity", "value"]
    )
    for run in runs:
        head = [run.label, run.model, run.data, run.seed, run.metrics.get("parameters"), run.steps, run.budget]
        for stage, result in run.stages.items():
            ood = bool(result.get("ood"))
            told = {"mean accuracy over groups": run.accuracy(stage, "groups")}
            told |= {"accuracy over examples": run.accuracy(stage, "examples")}
            told |= {name.replace("_", " "): run.measure(stage, name) for name in OTHER_MEASURES}
            told |= {"standard error of the return": run.return_error(stage)}
            for what in ("accuracy", "squared_error"):
                told |= {f"{what} after {n} examples".replace("_", " "): a for n, a in run.after(stage, what)}
            writer.writerows([*head, stage, ood, "", key, value] for key, value in told.items() if value is not None)
            for quantity, measure in (("accuracy", "sequence_accuracy"), ("return", "return")):
                found = run.groups(stage, measure)
                writer.writerows([*head, stage, ood, name, quantity, value] for name, value in found.items())
        for probe, scalars in run.last_scalars().items():
            writer.writerows([*head, "", "", "", f"probe/{probe}/{name}", value] for name, value in scalars.items())
    return text.getvalue()


def main(args: list[str]) -> None:
    """Write the report of some runs and print its table and its place.

    Args:
        args: the command line's arguments, ``RUN [RUN ...] [--out FOLDER]``.

    Raises:
        FileNotFoundError: a folder is no run folder.
        FileExistsError: the folder to write to holds something else than a report.
    """
    parser = argparse.ArgumentParser(
        prog="algornn report", description="Write the report of one or several run folders."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write; default: RUN/report, in the first run"
    )
    asked = parser.parse_args(args)
    runs = read_runs(list(dict.fromkeys(asked.runs)))
    if any(run.setting for run in runs):  # a shell names the runs of a sweep in the order of the alphabet
        runs.sort(key=lambda run: natural(run.label))
    write(runs, asked.out or asked.runs[0] / "report")


def write(runs: Sequence[RunResults], out: Path) -> None:
    """Write report.html, its pictures, report.md and report.csv into `out`, and print the table and the place.

    Raises:
        FileExistsError: `out` holds something else than a report.
    """
    from algornn.report_page import check_own_folder, page

    check_own_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page(runs, out), encoding="utf-8")
    by_world = [returns(runs), mean_returns(runs)]
    tables = [results(runs), *by_world, published_against_measured(runs), sweeps(runs), groups(runs)]
    text = _text(runs, [*tables, probe_scalars(runs), probe_parts(runs), facts(runs)])
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    (out / "report.csv").write_text(measurements(runs), encoding="utf-8")
    print(f"{_terminal(runs)}\n\nreport of {len(runs)} run(s): {(out / 'report.html').resolve()}")
