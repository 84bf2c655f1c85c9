"""The HTML page of a report: one file with its pictures inside, without scripts and without the network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from algornn import report
from algornn.report_figures import Picture, curve_pictures, probe_pictures, result_pictures
from algornn.run_results import RunResults

MARK = '<meta name="generator" content="algornn report">'
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: #fff; color: #1c1e21;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid #dfe3e8; }
p { margin: .5rem 0; max-width: 44rem; }
.lead { color: #5b6470; }
.note { background: #fff7e6; border-left: 4px solid #e69f00; padding: .5rem .8rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid #e8ebef; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #c5ccd4; vertical-align: bottom; }
tbody th { font-weight: 500; }
.facts td { text-align: left; overflow-wrap: anywhere; min-width: 12rem; }
.facts th:first-child { position: static; white-space: nowrap; color: #5b6470; font-weight: 400; }
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
    sections = [
        ("Groups", result_pictures(runs), report.groups(runs)),
        ("Learning curves", curve_pictures(runs), None),
        ("Probes", probe_pictures(runs), report.probe_scalars(runs)),
    ]
    body = []
    for title, pictures, table in sections:
        drawn = figures(pictures, out)
        if drawn or (table and table.rows):
            body += [f"<h2>{title}</h2>", drawn, html_table(table) if table else ""]
    return "\n".join([*head(runs), *top(runs), *body, "</body>", "</html>", ""])


def head(runs: Sequence[RunResults]) -> list[str]:
    """Return the head of the page."""
    title = escape(", ".join(run.label for run in runs))
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = ["<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', view, MARK]
    return [*lines, f"<title>{title}</title>", f"<style>\n{STYLE}\n</style>", "</head>", "<body>"]


def top(runs: Sequence[RunResults]) -> list[str]:
    """Return heading, notes, results, published against measured, and the runs' facts."""
    first = runs[0]
    title = first.label if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"<h1>{escape(title)}</h1>"]
    abouts = dict.fromkeys(str(about) for run in runs if (about := run.about))
    lines += [f'<p class="lead">{escape(about)}</p>' for about in abouts]
    lines += [f'<p class="note">{escape(note)}</p>' for run in runs for note in run.notes]
    lines += ["<h2>Result</h2>", html_table(report.results(runs))]
    published = report.published_against_measured(runs)
    if published.rows:
        lines += ["<h2>Published against measured</h2>", html_table(published)]
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


def html_table(table: report.Table, kind: str = "") -> str:
    """Return a table as HTML; a wide one scrolls sideways by itself."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = [
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in table.rows
    ]
    note = f'<p class="lead">{escape(table.note)}</p>' if table.note else ""
    lines = [
        f'<div class="table"><table class="{kind}">',
        f"<thead><tr>{header}</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody>",
    ]
    return "\n".join([*lines, "</table></div>", note])
