"""Numerics, times and tuning of every operator on a GPU, into one file, in less than 10 minutes.

    bash benchmarks/gpu.sh [--rehearse] [--only environment timing]

The work is done unit by unit in a process of its own (`gpu_worker.py`); where a unit crashes or exceeds its time, that
is recorded, and a new process goes on after it. The file is written after every row. `--rehearse` runs the same code
with tiny sizes on the CPU, in Triton's interpreter; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

WORKER = Path(__file__).with_name("gpu_worker.py")
Row = dict


class Worker:
    """A process that does the units from `first` on, and what it prints, line by line."""

    def __init__(self, first: int, rehearse: bool, only: list[str]) -> None:
        how = [*(["--rehearse"] if rehearse else []), "--only", *only]
        hidden = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
        hidden["FLA_CACHE_RESULTS"] = "0"  # its kernels are tuned anew, on a GPU that does nothing else
        self.process = subprocess.Popen(
            [sys.executable, WORKER, "--first", str(first), *how], stdout=subprocess.PIPE, text=True,
            env=os.environ | hidden, start_new_session=True,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)
        self.lines.put(None)

    def line(self, until: float) -> str | None:
        """The next line; None at the end of the output. Raises TimeoutError after the time `until`."""
        try:
            return self.lines.get(timeout=max(0.01, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None

    def stop(self) -> None:
        """End it and what it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def work(rehearse: bool, seconds: float, only: list[str]) -> Iterator[Row]:
    """All rows of all units, as they come."""
    end, number = time.monotonic() + seconds, 0
    plan: list[tuple[str, int]] = []  # name and seconds at most, told by the first worker
    while not plan or number < len(plan):
        worker, until = Worker(number, rehearse, only), time.monotonic() + 120  # the imports
        try:
            while (line := worker.line(min(until, end))) is not None:
                kind, _, rest = line.partition(" ")
                if kind == "PLAN":
                    plan = json.loads(rest)
                elif kind == "BEGIN":
                    number = int(rest)
                    until = time.monotonic() + plan[number][1]
                elif kind == "ROW":
                    yield json.loads(rest)
            code = worker.process.wait()
            reason = f"ended with {code}" if code else None
        except TimeoutError:
            worker.stop()
            reason = f"took more than {plan[number][1]} s" if plan else "did not begin"
        if reason is None:
            return
        if not plan:
            raise SystemExit(f"The worker {reason}.")
        name, rest = plan[number][0], [name for name, _ in plan[number + 1 :]]
        if time.monotonic() >= end:
            yield {"part": "failed", "unit": name, "failed": f"{seconds:.0f} s are over", "not_reached": rest}
            return
        yield {"part": "failed", "unit": name, "failed": reason}
        number += 1


def floor(row: Row, per_second: Row) -> tuple[float, str]:
    """The least milliseconds that a case can take, and what bounds it."""
    times = {
        "bytes": row["bytes"] / per_second["copy_bytes"],
        "flops": row["flops"] / per_second[f"{row['dtype']}_flops"],
    }
    bound = max(times, key=times.__getitem__)
    return 1000 * times[bound], bound


def table(rows: list[Row]) -> Iterator[str]:
    """What was measured, as a table: per side its time, over ours, over the floor, and its error."""
    rates = next((row["per_second"] for row in rows if row["part"] == "environment"), None)
    alone = {(row["case"], row["side"]): row["ms"] for row in rows if row["part"] == "graph" and "ms" in row}
    timings = [row for row in rows if row["part"] == "timing" and "ms" in row]
    ours = {(row["case"], row["side"]): row["ms"] for row in timings}
    yield "| case | side | ms | ms as a graph | over triton | over the floor | error | same bits | MB |\n|" + "---|" * 9
    for row in timings:
        case, side = row["case"], row["side"]
        forward = side.endswith(" forward")
        base, graph = ours.get((case, "triton forward" if forward else "triton")), alone.get((case, side))
        least, bound = floor(row, rates) if rates and not forward else (None, "")  # the floor is that of both passes
        cells = (
            case, side, f"{row['ms']:.3f}", f"{graph:.3f}" if graph else "", f"{row['ms'] / base:.1f}" if base else "",
            f"{row['ms'] / least:.1f} ({bound})" if least else "", f"{row['error']:.0e}", row["repeats_to_the_bit"],
            f"{row['peak_mb']:.0f}" if row["peak_mb"] else "",
        )  # fmt: skip
        yield "| " + " | ".join(map(str, cells)) + " |"
    for row in rows:
        if row.get("failed"):
            yield f"{row['part']} {row.get('unit') or row.get('case', '')} {row.get('side', '')}: {row['failed']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="units whose names begin so, such as: environment timing"
    )
    parser.add_argument("--seconds", type=float, default=560, help="for everything")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    start = time.monotonic()
    for row in work(args.rehearse, args.seconds, args.only):
        rows.append(row | {"at_second": round(time.monotonic() - start, 1)})
        args.out.write_text(json.dumps({"finished": False, "rows": rows}, indent=1) + "\n")
    args.out.write_text(json.dumps({"finished": True, "rows": rows}, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
