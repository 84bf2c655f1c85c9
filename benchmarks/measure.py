"""Time and memory of two ways to compute the same thing, each in a process of its own, on one thread.

A benchmark is a script with one function per way; `measure` runs in the process of one way, `in_a_process` starts it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from algornn.run import provenance


def measure(call: Callable[[], object], repeats: int, warm_up: Callable[[], object]) -> dict[str, float]:
    """Seconds of processor time per call (median) and growth of the peak resident set in MB, in this process.

    Args:
        call: what is measured; the first call is not timed.
        repeats: calls that are timed.
        warm_up: the same on small inputs, so that what libraries allocate once is not counted.
    """
    torch.set_num_threads(1)
    warm_up()
    ctypes.CDLL(None).malloc_trim(0)  # give free pages back, or they would hide what the calls take
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before, seconds = _resident("VmRSS"), []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": _resident("VmHWM") - before}


def _resident(field: str) -> float:
    """Resident memory of this process in MB: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def in_a_process(script: str, *arguments: object) -> dict[str, float]:
    """Run a benchmark's script in a process of its own and return the JSON that it prints last."""
    printed = subprocess.check_output([sys.executable, script, *map(str, arguments)], text=True)
    return json.loads(printed.splitlines()[-1])


def results_file(text: str) -> Path:
    """The type of --out: a file that can be written, so that nothing is measured for nothing."""
    path = Path(text).absolute()
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(
                f"{text} is a folder. Name a file in it, such as {Path(text) / 'rows.json'}."
            )
        nearest = next(place for place in (path, *path.parents) if place.exists())
        fit = nearest == path or nearest.is_dir()
    except PermissionError as error:
        nearest, fit = Path(error.filename), False
    if not (fit and os.access(nearest, os.W_OK)):
        raise argparse.ArgumentTypeError(f"{text} cannot be written, because of {nearest}. Name another file.")
    return path


def write_results(path: Path | None, rows: list[dict]) -> None:
    """Write the rows with the commit, versions and hardware beside them; nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        path.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")
