"""Tables of a report: their form, and how they write numbers and test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from algornn.run_results import RunResults


@dataclass
class Table:
    """A table of finished strings: a header, rows as long as it, and a sentence below."""

    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown, padded so that it is a table in a terminal as well."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.header))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        aligned = [
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in cells
        ]
        lines = [f"| {' | '.join(row)} |" for row in (aligned[0], rule, *aligned[1:])]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


def test_sets(runs: Sequence[RunResults]) -> list[tuple[str, bool]]:
    """Return every ``(stage, out of distribution)`` of the runs, the in-distribution ones first."""
    found = dict.fromkeys((stage, bool(run.stages[stage].get("ood"))) for run in runs for stage in run.stages)
    return sorted(found, key=lambda item: item[1])


def set_name(stage: str, ood: bool) -> str:
    """Return a column's name, such as ``sys (OOD)``."""
    return f"{stage} ({'OOD' if ood else 'IID'})"


def in_set(run: RunResults, stage: str, ood: bool) -> bool:
    """Tell whether a run has this test set in this role."""
    return stage in run.stages and bool(run.stages[stage].get("ood")) == ood


def percent(share: float | None) -> str:
    """Return a share as a percentage, an absent one as a dash."""
    return "-" if share is None else f"{100 * share:.2f}"


def fraction(budget: float | None) -> str:
    """Return the fraction of the published steps."""
    return "-" if budget is None else f"{100 * budget:.3g} %"


def number(value: float | None) -> str:
    """Return a count with separators or a number with four digits."""
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def with_error(value: float | None, error: float | None) -> str:
    """Return a number with its standard error, where it has one."""
    return number(value) + (f" ± {number(float(f'{error:.2g}'))}" if value is not None and error is not None else "")


def duration(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds."""
    if not isinstance(seconds, (int, float)):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
