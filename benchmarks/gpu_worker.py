"""Do the units of work of `gpu.py`, from a given one on, and print a line of JSON for whatever is found.

    python benchmarks/gpu_worker.py [--rehearse] [--first 0] [--only timing graph]

A line "PLAN [...]" says which units there are, "BEGIN number" which has begun, "ROW {...}" what it found. Only these
lines count, so that a unit that takes the process down loses nothing but itself.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import triton
from gpu_cases import Case, Inputs, Side, cases, rehearsal
from torch import Tensor

from algornn.run import provenance
from algornn.triton_kernels import delta_rnn_triton

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TESTS = Path(__file__).parent.parent / "tests/triton_kernels"


def say(part: str, **found: object) -> None:
    print("ROW", json.dumps({"part": part} | found), flush=True)


# --- time ------------------------------------------------------------------------------------------------------------


def milliseconds(call: Callable[[], object]) -> float:
    """The time of one call: on a GPU that of the device, between events."""
    if not CUDA:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def timed(calls: list[Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median, least and greatest milliseconds of the calls in turn, which have run before, for about `seconds`."""
    found: list[float] = []
    start = time.perf_counter()
    for call in itertools.cycle(calls):
        found.append(milliseconds(call))
        if len(found) >= 300 or (len(found) >= 3 and time.perf_counter() - start > seconds):
            break
    return {"ms": statistics.median(found), "ms_min": min(found), "ms_max": max(found), "calls": len(found)}


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The kernels of one call as a graph, which runs without the gaps of launching them from Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# --- environment -----------------------------------------------------------------------------------------------------


def environment(rehearse: bool) -> None:
    """What was measured on, and its ceilings: how fast it copies, how fast it multiplies."""
    n, size = (64, 2**16) if rehearse else (8192, 2**30)
    source = torch.empty(size, dtype=torch.int8, device=DEVICE)
    target = torch.empty_like(source)
    rates = {"copy_bytes": 2 * size / timed([partial(target.copy_, source)] * 4, 0.2)["ms"] * 1000}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b)
        product()
        rates[f"{name}_flops"] = 2 * n**3 / timed([product], 0.2)["ms"] * 1000
    found = provenance()
    found["commit"] = found["commit"] or os.environ.get("COMMIT")  # a copy of the tree without its history
    found["versions"] |= {"triton": triton.__version__, "fla": _version("fla-core")}
    say("environment", rehearsal=rehearse, **found, per_second=rates)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- numerics of small sizes: the tests of the kernels ---------------------------------------------------------------


def kernel_tests(rehearse: bool) -> None:
    """Run the kernels' tests on the GPU; all their processors compile."""
    which = ["-k", "what_the_kernels_do_not_take"] if rehearse else []
    which += ["-n", "8"] if importlib.util.find_spec("xdist") and not rehearse else []
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file.name}", *which]
        files = sorted(TESTS.glob("test_*_kernels.py"))
        files = [f for f in files if "compiled" not in f.name]
        done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=TESTS, check=False)
        try:
            suite = ET.parse(file.name).getroot()
        except ET.ParseError:  # it did not come to a test
            return say("kernel tests", failed=(done.stdout + done.stderr)[-1000:])
    failed = {
        f"{test.get('classname')}::{test.get('name')}": (bad.get("message") or "")[:300]
        for test in suite.iter("testcase")
        for bad in (*test.findall("failure"), *test.findall("error"))
    }
    return say(
        "kernel tests", tests=len(list(suite.iter("testcase"))), failed=failed, last_line=done.stdout.strip()[-200:]
    )


# --- what flash-linear-attention compiles ----------------------------------------------------------------------------

SHARES = 4  # processes per case that compile fla's configurations before anything of it is timed


def warm_fla(rehearse: bool) -> None:
    """Compile, many processes at once, what fla tries when it tunes itself: one after the other would take minutes."""
    names = [case.name for case in (rehearsal() if rehearse else cases()) if "fla" in case.sides]
    if importlib.util.find_spec("fla") is None:
        return
    command = [sys.executable, __file__, *(["--rehearse"] if rehearse else []), "--fla"]
    shares = [[*command, name, "--share", str(share)] for name in names for share in range(1 if rehearse else SHARES)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(share, **quiet) for share in shares]
    say("warm up", ended_with=[process.wait() for process in running])


def compile_share(case: Case, share: int) -> None:
    """Run fla's side of a case with every SHARES-th configuration of its kernels."""
    from triton.runtime.autotuner import Autotuner

    create = Autotuner.__init__

    def create_less(self: Autotuner, *args: object, **how: object) -> None:
        create(self, *args, **how)
        self.configs = self.configs[share::SHARES] or self.configs[:1]

    Autotuner.__init__ = create_less
    x = placed(case.inputs(), case.dtype)
    case.sides["fla forward"](x)
    case.sides["fla"](x)


# --- numerics and time of the sizes of the claims --------------------------------------------------------------------


def placed(x: Inputs, dtype: torch.dtype) -> Inputs:
    return {key: value.detach().to(DEVICE, dtype).requires_grad_(value.requires_grad) for key, value in x.items()}


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of every output and gradient, the norm of the difference relative to the norm; NaN never passes for 0."""
    pairs = zip(found, exact, strict=False)
    return [float((a.double() - b).norm() / b.norm().clamp(min=1e-300)) for a, b in pairs]


def sets(x: Inputs) -> list[Inputs]:
    """As many copies of the inputs as keep a small case out of the cache."""
    size = sum(value.numel() * value.element_size() for value in x.values())
    count = max(1, min(16, math.ceil(2**27 / max(size, 1)))) if CUDA else 1
    return [x, *(placed(x, next(iter(x.values())).dtype) for _ in range(count - 1))]


def compare(case: Case, rehearse: bool) -> None:
    """Every side's error against float64, whether it repeats to the bit, its time and its memory."""
    x = placed(case.inputs(), case.dtype)
    exact = case.sides["torch"](placed(x, torch.float64))
    xs = sets(x)
    about = {"case": case.name, "bytes": case.bytes, "flops": case.flops, "dtype": str(case.dtype).split(".")[1]}
    for side, step in case.sides.items():
        try:
            say("timing", side=side, **about, **side_figures(step, xs, exact, 0.0 if rehearse else 0.5))
        except Exception as error:  # one side that cannot run must not hide the others
            say("timing", side=side, **about, failed=f"{type(error).__name__}: {error}"[:300])
        if CUDA:
            torch.cuda.empty_cache()


def side_figures(step: Side, xs: list[Inputs], exact: list[Tensor], seconds: float) -> dict[str, object]:
    first = [y.clone() for y in step(xs[0])]
    error = errors(first, exact)
    again = all(torch.equal(a, b) for a, b in zip(first, step(xs[0]), strict=True))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if CUDA else 0
    found = timed([partial(step, x) for x in xs], seconds)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if CUDA else None
    return {"error": max(error), "errors": error, "repeats_to_the_bit": again, "peak_mb": peak, **found}


def graphs(case: Case, rehearse: bool) -> None:
    """The time of the kernels alone: what is left when nothing waits for Python."""
    x = placed(case.inputs(), case.dtype)
    for side, step in case.sides.items():
        if side in ("literal", "tuned"):
            continue
        try:
            replay = captured(partial(step, x)) if CUDA else partial(step, x)
            say("graph", side=side, case=case.name, **timed([replay], 0.0 if rehearse else 0.3))
        except Exception as error:  # what cannot be captured has no such time
            say("graph", side=side, case=case.name, failed=f"{type(error).__name__}: {error}"[:300])


# --- tuning ----------------------------------------------------------------------------------------------------------


def launches(step: Callable[[], object]) -> list[tuple]:
    """The kernels that a step launches: kernel, grid, arguments, options."""
    found, kind = [], type(delta_rnn_triton.forward_kernel)
    run = kind.run

    def record(kernel: object, *args: object, grid: object, **how: object) -> object:
        found.append((kernel, grid, args, how))
        return run(kernel, *args, grid=grid, **how)

    kind.run = record
    try:
        step()
    finally:
        kind.run = run
    return found


def neighbours(how: dict) -> list[dict[str, int]]:
    """The options as they are, then those with one of them changed."""
    warps = how.get("num_warps", 4)
    if "num_stages" not in how:  # no product to feed: warps alone
        return [{}, *({"num_warps": w} for w in (1, 2, 4, 8, 16) if w != warps and warps <= 4 * w <= 16 * warps)]
    others = [{"num_warps": w} for w in (warps // 2, warps * 2) if w]
    return [{}, *others, *({"num_stages": s} for s in (1, 2, 3) if s != how["num_stages"])]


def tune(case: Case, rehearse: bool) -> None:
    """Time every kernel of a step alone, as it is launched and with neighbouring options."""
    x = placed(case.inputs(), case.dtype)
    step = partial(case.sides["triton"], x)
    step()
    for kernel, grid, args, how in launches(step):
        present = {key: how[key] for key in ("num_warps", "num_stages") if key in how}
        found = {}
        for change in neighbours(how)[: 2 if rehearse else None]:
            call = partial(kernel.run, *args, grid=grid, **how | change)
            try:
                call()
                found[json.dumps(change)] = timed([call], 0.0 if rehearse else 0.05)["ms"]
            except Exception as error:  # more shared memory than there is
                found[json.dumps(change)] = f"{type(error).__name__}: {error}"[:100]
        times = {change: ms for change, ms in found.items() if isinstance(ms, float)}
        best = min(times, key=times.__getitem__, default=None)
        sizes = {key: value for key, value in how.items() if isinstance(value, int) and key not in (*present, "warmup")}
        say("tuning", case=case.name, kernel=kernel.__name__, now=present, sizes=sizes, best=best, ms=found)


# Where the tokens of a block are a constant of a kernel's module: module, name, and what it may be.
BLOCKS = {"tpr": ("tensor_memory_triton", "C", (16, 32)), "delta_rule": ("delta_rule_triton", "chunk", (16, 32, 64))}


def blocks(case: Case, rehearse: bool) -> None:
    """Time a whole step with every size of block."""
    x = placed(case.inputs(), case.dtype)
    exact = case.sides["torch"](placed(x, torch.float64))
    step = partial(case.sides["triton"], x)
    name, constant, sizes = BLOCKS[case.name.split()[0]]
    module = importlib.import_module(f"algornn.triton_kernels.{name}")
    present = getattr(module, constant)
    for size in sizes:
        setattr(module, constant, size if isinstance(present, int) else lambda *_, size=size: size)
        try:
            error = max(errors(step(), exact))
            say("blocks", case=case.name, size=size, error=error, **timed([step], 0.0 if rehearse else 0.2))
        except Exception as error:
            say("blocks", case=case.name, size=size, failed=f"{type(error).__name__}: {error}"[:300])
    setattr(module, constant, present)


# --- the units -------------------------------------------------------------------------------------------------------


def units(rehearse: bool) -> list[tuple[str, Callable[[bool], None], int]]:
    """Name, work and seconds at most of every unit, the most wanted first."""
    chosen = rehearsal() if rehearse else cases()
    compared = [(f"timing {case.name}", partial(compare, case), 90) for case in chosen]
    return [
        ("environment", environment, 60),
        *compared[:3],
        ("kernel tests", kernel_tests, 120),
        ("warm up of fla", warm_fla, 150),
        *compared[3:],
        *((f"graph {case.name}", partial(graphs, case), 30) for case in chosen),
        *((f"tuning {case.name}", partial(tune, case), 45) for case in chosen if case.tune),
        *((f"blocks {case.name}", partial(blocks, case), 30) for case in chosen if case.name.split()[0] in BLOCKS),
    ]


def work(plan: list[tuple[str, Callable[[bool], None], int]], first: int, rehearse: bool) -> None:
    print("PLAN", json.dumps([(name, seconds) for name, _, seconds in plan]), flush=True)
    for number, (name, unit, _) in enumerate(plan[first:], first):
        print("BEGIN", number, flush=True)
        try:
            unit(rehearse)
        except Exception as error:
            say("failed", unit=name, failed=f"{type(error).__name__}: {error}"[:1000])
        if CUDA:
            torch.cuda.synchronize()  # after an illegal access this raises, and a new process must go on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="units whose names begin so")
    parser.add_argument("--fla", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.rehearse or CUDA):
        raise SystemExit("There is no GPU that torch can see. `--rehearse` tries the code without one.")
    if args.fla:
        (case,) = (case for case in (rehearsal() if args.rehearse else cases()) if case.name == args.fla)
        compile_share(case, args.share)
    else:
        plan = [unit for unit in units(args.rehearse) if unit[0].startswith(tuple(args.only))]
        work(plan, args.first, args.rehearse)


if __name__ == "__main__":
    main()
