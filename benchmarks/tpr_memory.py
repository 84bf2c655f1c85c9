"""Time and peak memory of the TPR memory, forward and backward, against the literal loop over sentences.

    python benchmarks/tpr_memory.py [--tokens 8 20 64 130] [--batch 32] [--out benchmarks/results/tpr_memory.json]

Both sides compute the same function in the same run on one thread: three simultaneous writes per sentence, then the
three chained normalised reads, then gradients of every input. Time is processor time of the process (the median over
repeats); memory is the growth of the process's peak resident set, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.run import provenance
from algornn.triton_kernels import tensor_memory

E, R = 90, 20


def literal(e1: Tensor, e2: Tensor, r1: Tensor, r2: Tensor, r3: Tensor) -> Tensor:
    """The equations of the paper as einsums, one sentence after the other; returns the final state."""
    state = e1.new_zeros(len(e1), E, R, E)
    for t in range(e1.shape[1]):
        a, b, x, y, z = e1[:, t], e2[:, t], r1[:, t], r2[:, t], r3[:, t]
        write = torch.einsum("be,br,berf->bf", a, x, state)
        move = torch.einsum("be,br,berf->bf", a, y, state)
        back = torch.einsum("be,br,berf->bf", b, z, state)
        state = (
            state
            + torch.einsum("be,br,bf->berf", a, x, b - write)
            + torch.einsum("be,br,bf->berf", a, y, write - move)
            + torch.einsum("be,br,bf->berf", b, z, a - back)
        )
    return state


def answer(read, n: Tensor, roles: list[Tensor]) -> Tensor:  # noqa: ANN001
    """Three chained reads, normalised, summed."""
    total = torch.zeros_like(n)
    for role in roles:
        n = F.layer_norm(read(n, role), (E,), eps=1e-7)
        total = total + n
    return total


def step(side: str, x: dict[str, Tensor]) -> list[Tensor]:
    """One forward and backward pass; returns the output and all gradients."""
    for tensor in x.values():
        tensor.grad = None
    e1, e2, r1, r2, r3 = (x[k] for k in ("e1", "e2", "r1", "r2", "r3"))
    roles = [x["l1"], x["l2"], x["l3"]]
    if side == "literal":
        state = literal(e1, e2, r1, r2, r3)
        out = answer(lambda n, role: torch.einsum("be,br,berf->bf", n, role, state), x["n"], roles)
    else:
        entities = torch.stack([e1, e1, e2], 2)
        memory = tensor_memory(
            write=(entities, torch.stack([r1, r2, r3], 2)),
            values=torch.stack([e2, torch.zeros_like(e2), e1], 2),
            erase=(entities, torch.stack([r1, r2 - r1, r3], 2)),
        )
        out = answer(memory.read, x["n"], roles)
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in x.values())]


def inputs(batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keys of a size at which the model is stable (|k| about 0.5), the same on both sides."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: (0.11 * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()  # noqa: E731
    x = {k: draw(batch, tokens, E) for k in ("e1", "e2")} | {k: draw(batch, tokens, R) for k in ("r1", "r2", "r3")}
    return x | {"n": draw(batch, E)} | {k: draw(batch, R) for k in ("l1", "l2", "l3")}


def measure(side: str, batch: int, tokens: int, repeats: int) -> dict[str, float]:
    """Seconds of processor time per pass and growth of the peak resident set in MB, in this process."""
    torch.set_num_threads(1)
    step("gram", inputs(2, 2)), step("literal", inputs(2, 2))
    ctypes.CDLL(None).malloc_trim(0)  # give free pages back, or they would hide what the passes take
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before, x, seconds = resident("VmRSS"), inputs(batch, tokens), []
    for _ in range(repeats + 1):
        start = time.process_time()
        step(side, x)
        seconds.append(time.process_time() - start)
    return {"seconds": statistics.median(seconds[1:]), "peak_mb": resident("VmHWM") - before}


def resident(field: str) -> float:
    """Resident memory of this process in MB: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def agreement(tokens: int) -> float:
    """Largest relative difference of output and gradients between the two sides in float64."""
    x = inputs(2, tokens, torch.float64)
    pairs = zip(step("literal", x), step("gram", x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 20, 64, 130])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=("literal", "gram"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.batch, args.tokens[0], 2 if args.side == "literal" else 15)))
        return
    rows = []
    print("| T | literal s | ours s | ratio | literal MB | ours MB | ratio | agreement |\n|" + "---|" * 8)
    for tokens in args.tokens:
        command = [sys.executable, __file__, "--batch", str(args.batch), "--tokens", str(tokens), "--side"]
        ours, theirs = (json.loads(subprocess.check_output([*command, side])) for side in ("gram", "literal"))
        row = {"tokens": tokens, "batch": args.batch, "literal": theirs, "gram": ours, "agreement": agreement(tokens)}
        row["time_ratio"] = theirs["seconds"] / ours["seconds"]
        row["memory_ratio"] = theirs["peak_mb"] / ours["peak_mb"]
        rows.append(row)
        print(
            f"| {tokens} | {theirs['seconds']:.3f} | {ours['seconds']:.4f} | {row['time_ratio']:.0f} "
            f"| {theirs['peak_mb']:.0f} | {ours['peak_mb']:.0f} | {row['memory_ratio']:.0f} | {row['agreement']:.0e} |",
            flush=True,
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        args.out.write_text(json.dumps({"rows": rows} | provenance(), indent=1) + "\n")


if __name__ == "__main__":
    main()
