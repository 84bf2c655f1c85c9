"""What is measured on a GPU is rehearsed without one, so that the one call that counts does not fail over a trifle."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash on the path")
def test_the_rehearsal_goes_through_every_part(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", BENCHMARKS / "gpu.sh", "--rehearse"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["finished"]
    rows = found["rows"]
    assert {row["part"] for row in rows} - {"failed", "warm up"} == {
        "environment", "timing", "kernel tests", "graph", "tuning", "blocks"
    }  # fmt: skip
    failures = [row["failed"] for row in rows if row.get("failed") and "fla" not in row.get("side", "")]  # wants a GPU
    assert [failure for failure in failures if "there are no kernels for the clamp" not in failure] == []
    measured = [row for row in rows if row["part"] == "timing" and "ms" in row]
    assert {row["side"] for row in measured} >= {"literal", "tuned", "torch", "triton", "triton forward"}
    assert all(row["error"] < 1e-3 and row["repeats_to_the_bit"] and math.isfinite(row["ms"]) for row in measured)
    assert done.stdout.count("\n| ") >= len(measured)
    (row,) = json.loads((tmp_path / "population_gpu.json").read_text())["rows"]
    assert (row["agents"], row["segments"]) == (2, [4, 2])
    assert row["difference"] < 1e-3  # stacked against one by one


WORKER = """
import json, os, sys, time
print("PLAN", json.dumps([("first", 9), ("dies", 9), ("hangs", 1), ("last", 9)]), flush=True)
for number in range(int(sys.argv[2]), 4):
    print("BEGIN", number, flush=True)
    if number == 1:
        os._exit(7)
    if number == 2:
        time.sleep(60)
    print('ROW {"part": "done", "unit": %d}' % number, flush=True)
"""


def test_a_unit_that_crashes_or_hangs_loses_only_itself(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(gpu, "WORKER", tmp_path / "worker.py")
    rows = list(gpu.work(rehearse=False, seconds=30, only=[""]))
    assert [row["unit"] for row in rows] == [0, "dies", "hangs", 3]
    assert [row.get("failed") for row in rows] == [None, "ended with 7", "took more than 1 s", None]


def test_when_the_time_is_over_what_was_not_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    (tmp_path / "worker.py").write_text(WORKER.replace("os._exit(7)", "time.sleep(60)"))
    monkeypatch.setattr(gpu, "WORKER", tmp_path / "worker.py")
    rows = list(gpu.work(rehearse=False, seconds=2, only=[""]))
    assert [row["unit"] for row in rows] == [0, "dies"]
    assert rows[-1]["not_reached"] == ["hangs", "last"]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from measure import results_file

    (tmp_path / "rows.json").touch()
    assert results_file(str(tmp_path / "new" / "rows.json")) == tmp_path / "new" / "rows.json"
    assert not (tmp_path / "new").exists()  # made when there is something to write
    assert results_file(str(tmp_path / "rows.json")) == tmp_path / "rows.json"
    with pytest.raises(argparse.ArgumentTypeError, match=r"is a folder\. Name a file in it"):
        results_file(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match=r"because of .*rows\.json\. Name another file"):
        results_file(str(tmp_path / "rows.json" / "below.json"))


def test_an_agent_that_stands_in_the_file_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rivals, asked = pytest.importorskip("library_rivals", exc_type=ImportError), []

    def lived(world, rule, seed, steps):
        asked.append((rule, seed, steps))
        return {"world": world, "rule": rule, "seed": seed, "asked": steps, "steps": steps, "return": float(seed)}

    monkeypatch.setattr(rivals, "lived", lived)
    for steps, agents in ((10, 2), (10, 3), (20, 1)):
        given = ["--rules", "ppo", "--agents", str(agents), "--steps", str(steps), "--out", str(tmp_path / "rows.json")]
        monkeypatch.setattr(sys, "argv", ["library_rivals.py", *given])
        rivals.main()
    assert asked == [("ppo", 0, 10), ("ppo", 1, 10), ("ppo", 2, 10), ("ppo", 0, 20)]
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert "| CartPoleSwingUp | ppo | 3 | 10 | 1.0 +- 0.6 |\n| CartPoleSwingUp | ppo | 1 | 20 | 0.0 |" in rivals.table(
        rows
    )


def test_populations_of_other_budgets_are_not_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    replay = pytest.importorskip("shared_replay", exc_type=ImportError)

    def row(arm, updates, failed):
        returns = [[1.0], [2.0], [3.0], [4.0]]
        kind = {"rule": "critic", "agents": 1, "updates": updates}
        return kind | {"arm": arm, "seed": 0, "failed": failed, "returns": returns}

    rows = [row("independent", 10, [1, 1, 1, 0]), row("shared", 10, [1, 0, 0, 0]), row("shared", 20, [0, 1, 1, 0])]
    assert replay.table(rows).splitlines()[2:] == [
        "| critic, 1, 10, independent | 3.0 | 0.0 | 1.0 | 2.0 | 3.0 | 4.0 |",
        "| critic, 1, 10, shared | 1.0 | -2.0 | 1.0 | 2.0 | 3.0 | 4.0 |",
        "| critic, 1, 20, shared | 2.0 | 0.0 | 1.0 | 2.0 | 3.0 | 4.0 |",
    ]
