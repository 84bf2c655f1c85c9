"""Every kernel compiles for GPUs that are not there, keeps what it computes with in registers, and fits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes that one program may have
SETS = sorted(file.stem for file in HERE.glob("*_launches.py"))


@pytest.mark.parametrize("launches", SETS)
def test_kernels_compile_without_spilling(launches):
    command = [sys.executable, HERE / "compile_kernels.py", launches]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["target"] for row in rows} == SHARED.keys()
    assert [row for row in rows if row["shared"] > SHARED[row["target"]]] == []
    assert [row for row in rows if row.get("stack", row.get("spills"))] == []
