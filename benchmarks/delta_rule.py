"""Time of the delta rule's torch form, forward and backward, against flash-linear-attention's in plain torch.

    python benchmarks/delta_rule.py [--repeats 9] [--out benchmarks/results/delta_rule.json]

Both sides compute the same function on one thread in one process, in turns; time is processor time (the median over
repeats). Where `fla` (fla-core and einops) cannot be imported, the other side is the literal loop, and the table says
so. The two sides are first compared in float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import results_file, write_results
from torch import Tensor

from algornn.triton_kernels.delta_rule import delta_rule

SIZES = ((2, 512, 8, 64), (4, 256, 4, 32))
Side = Callable[..., tuple[Tensor, Tensor]]


def other_side() -> tuple[str, Side]:
    """What is compared with, by name: a function of q, k, v [B, T, H, K] and beta [B, T, H]."""
    try:
        from fla.ops.delta_rule.naive import delta_rule_chunkwise
    except ImportError:
        return "reference loop", lambda q, k, v, beta: delta_rule(q, k, v, beta, backend="reference")

    def chunkwise(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        # It wants heads first, and scales the queries.
        q, k, v, beta = (x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v, beta))
        out, state = delta_rule_chunkwise(q, k, v, beta)
        return out.transpose(1, 2), state

    return "fla delta_rule_chunkwise", chunkwise


def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return delta_rule(q, k, v, beta, backend="torch")


def inputs(B: int, T: int, H: int, K: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys of length 1, values, and write strengths between 0 and 1."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, T, H, K, generator=g, dtype=torch.float64) for _ in range(3))
    beta = torch.rand(B, T, H, generator=g, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, F.normalize(k, dim=-1), v, beta)]


def step(side: Side, x: list[Tensor]) -> list[Tensor]:
    """One forward and backward pass; returns outputs and gradients."""
    out, state = side(*x)
    return [out.detach(), state.detach(), *torch.autograd.grad(out.square().sum() + state.square().sum(), x)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=results_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, theirs = other_side()
    rows = []
    print(f"| B, T, H, K = V | {name} ms | ours ms | ratio | agreement |\n|" + "---|" * 5)
    for sizes in SIZES:
        x = inputs(*sizes, torch.float64)
        pairs = zip(step(ours, x), step(theirs, x), strict=True)
        agreement = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        if agreement > 1e-10:
            raise SystemExit(f"The two sides differ by {agreement:.0e} at {sizes}: there is nothing to compare.")
        x, seconds = inputs(*sizes, torch.float32), {ours: [], theirs: []}
        for _ in range(args.repeats + 1):
            for side, times in seconds.items():
                start = time.process_time()
                step(side, x)
                times.append(time.process_time() - start)
        ms = [1000 * statistics.median(seconds[side][1:]) for side in (theirs, ours)]
        rows.append({"sizes": sizes, "other": name, "other_ms": ms[0], "ours_ms": ms[1], "ratio": ms[0] / ms[1]})
        rows[-1]["agreement"] = agreement
        print(f"| {', '.join(map(str, sizes))} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[0] / ms[1]:.2f} | {agreement:.0e} |")
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
