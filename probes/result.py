"""What a probe returns: numbers, tables and plain-data figures."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class ProbeResult:
    """The outcome of one measurement.

    Args:
        scalars: name to number; these are logged as `probe/<probe name>/<scalar>`.
        tables: name to table, a dictionary of columns or a list of rows.
        figures: name to figure, drawn by `algornn.probes.plots.draw`. A figure is a dictionary with the keys `kind`
            ("line", "bar" or "heatmap"), `title`, `xlabel`, `ylabel`, `x`, and either `series` (name to list of
            numbers as long as `x`) or, for a heatmap, `y` and `values` (rows `y`, columns `x`). Lines and bars may have
            `ylim`, the least and the largest possible number, such as [0, 1] for an accuracy; lines `xscale`: "log";
            bars `intervals` (name of a series to its lower and its upper ends) and `levels` (name to numbers as long
            as `x`, drawn as lines across the bars, such as what guessing gives).
        failures: one sentence per control that failed: what it shows, and what the reader must not conclude. A result
            with failures is logged with `failed_controls` above 0, and the report prints them beside its numbers.
    """

    scalars: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def to_json(self, **extra: Any) -> str:
        """The result as JSON text, with `extra` entries before it; not-a-number and infinity become null."""
        parts = {"scalars": self.scalars, "failures": self.failures, "tables": self.tables, "figures": self.figures}
        document = {**extra, **parts}
        return json.dumps(_plain(document), indent=1, allow_nan=False) + "\n"

    def save(self, path: Path, **extra: Any) -> None:
        """Write `to_json` to `path`; a reader sees the old file or the new one, never half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(self.to_json(**extra), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Turn tensors, tuples and non-finite numbers into what JSON knows."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
