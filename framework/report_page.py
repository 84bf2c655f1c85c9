"""The HTML page of a report: one file with its pictures inside, without scripts and without the network."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from algornn import report
from algornn.report_figures import COLOURS, Picture, curve_pictures, result_pictures
from algornn.report_probes import probe_parts, probe_pictures, probe_scalars
from algornn.report_returns import mean_returns, return_pictures, returns
from algornn.report_sweeps import sweep_pictures
from algornn.report_tables import Table, fraction, number
from algornn.run_results import RunResults

MARK = '<meta name="generator" content="algornn report">'
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: #fff; color: #1c1e21;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid #dfe3e8; }
p { margin: .5rem 0; max-width: 44rem; }
.lead { color: #5b6470; }
.note { background: #fff7e6; border-left: 4px solid #e69f00; padding: .5rem .8rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid #e8ebef; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff;
  min-width: 6rem; }
thead th { border-bottom: 2px solid #c5ccd4; vertical-align: bottom; }
tbody th { font-weight: 500; }
.facts td, .facts th { text-align: left; overflow-wrap: anywhere; min-width: 12rem; }
.facts th:first-child { position: static; min-width: 0; white-space: nowrap; color: #5b6470; font-weight: 400; }
@media (max-width: 40rem) {
  .stack thead { display: none; }
  .stack, .stack tbody, .stack tr, .stack th, .stack td { display: block; width: 100%; }
  .stack tr { margin-bottom: 1rem; }
  .stack tbody th { border-bottom: 2px solid #c5ccd4; font-weight: 600; }
  .stack td { display: flex; justify-content: space-between; gap: 1rem; padding: .3rem 0; }
  .stack td::before { content: attr(data-label); color: #5b6470; text-align: left; white-space: nowrap; }
}
.pictures { display: grid; gap: 1.2rem 2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #5b6470; }
""".strip()


def check_own_folder(out: Path) -> None:
    """Make sure that a report may be written into `out`: it is new, empty, or a report's already.

    Raises:
        FileExistsError: it holds something else.
    """
    html = out / "report.html"
    own = html.is_file() and MARK in html.read_text(encoding="utf-8", errors="replace")
    if out.exists() and not own and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} holds something else than a report, so nothing is written. Give a new folder by --out."
        )


def page(runs: Sequence[RunResults], out: Path) -> str:
    """Return the HTML page; every picture is also written as a PNG file into `out`."""
    by_group = [report.groups(runs), returns(runs), mean_returns(runs)]
    sections = [
        ("Groups", [*result_pictures(runs), *return_pictures(runs)], by_group),
        # More lines than colours tell nothing apart: the runs of a sweep have a curve of their own.
        ("Learning curves", curve_pictures(runs) if len(runs) <= len(COLOURS) else (), []),
        ("Probes", probe_pictures(runs), [probe_scalars(runs), probe_parts(runs)]),
    ]
    body = []
    for title, pictures, tables in sections:
        content = [figures(pictures, out), *(html_table(table) for table in tables if table.rows)]
        body += [f"<h2>{title}</h2>", *content] if any(content) else []
    return "\n".join([*head(runs), *top(runs, out), *body, "</body>", "</html>", ""])


def head(runs: Sequence[RunResults]) -> list[str]:
    """Return the head of the page."""
    title = escape(", ".join(run.label for run in runs))
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = ["<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', view, MARK]
    return [*lines, f"<title>{title}</title>", f"<style>\n{STYLE}\n</style>", "</head>", "<body>"]


def top(runs: Sequence[RunResults], out: Path) -> list[str]:
    """Return heading, notes, results, published against measured, and the runs' facts."""
    first = runs[0]
    title = first.label if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"<h1>{escape(title)}</h1>"]
    for run in runs:
        budget = f" ({fraction(run.budget)} of the published)" if run.budget is not None else ""
        name = f"{run.label}: " if len(runs) > 1 else ""
        summary = f"{name}{run.model} on {run.data}, seed {run.seed}, {number(run.steps)} steps{budget}"
        lines.append(f'<p class="lead">{escape(summary)}</p>')
    abouts = dict.fromkeys(str(about) for run in runs if (about := run.about))
    lines += [f'<p class="lead">{escape(about)}</p>' for about in abouts]
    lines += [f'<p class="note">{escape(note)}</p>' for run in runs for note in run.notes]
    lines += ["<h2>Result</h2>", html_table(report.results(runs), "stack")]
    published = report.published_against_measured(runs)
    if published.rows:
        lines += ["<h2>Published against measured</h2>", html_table(published, "stack")]
    swept = report.sweeps(runs)
    if swept.rows:
        lines += ["<h2>Over the values of an option</h2>", figures(sweep_pictures(runs), out), html_table(swept)]
    return [*lines, "<h2>How it was run</h2>", html_table(report.facts(runs), "facts")]


def figures(pictures: Iterable[Picture], out: Path) -> str:
    """Write the pictures as files and return them as HTML with their bytes inside."""
    lines = []
    for picture in pictures:
        (out / f"{picture.name}.png").write_bytes(picture.png)
        data, caption = base64.b64encode(picture.png).decode(), escape(picture.caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        lines.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return '<div class="pictures">\n' + "\n".join(lines) + "\n</div>" if lines else ""


def html_table(table: Table, kind: str = "") -> str:
    """Return a table as HTML; a wide one scrolls sideways, one of the kind ``stack`` is stacked on a telephone."""
    header = "".join(f"<th>{_cell(name)}</th>" for name in table.header)
    rows = []
    for first, *rest in table.rows:
        named = zip(table.header[1:], rest, strict=True)
        cells = (f'<td data-label="{escape(name)}"><span>{_cell(cell)}</span></td>' for name, cell in named)
        rows.append(f"<tr><th>{_cell(first)}</th>{''.join(cells)}</tr>")
    note = f'<p class="lead">{escape(table.note)}</p>' if table.note else ""
    lines = [f'<div class="table"><table class="{kind}">', f"<thead><tr>{header}</tr></thead>", "<tbody>", *rows]
    return "\n".join([*lines, "</tbody></table></div>", note])


def _cell(text: str) -> str:
    """Escape a cell; a number keeps its unit, count or spread on its line, a long name may be broken."""
    kept = re.sub(r" [=±%] ?", lambda m: m[0].replace(" ", "&nbsp;"), escape(text))
    return kept.replace("_", "_<wbr>")
