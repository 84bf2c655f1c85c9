"""Time and peak memory of the TPR memory, forward and backward, against the literal loop over sentences.

    python benchmarks/tpr_memory.py [--tokens 8 20 64 130] [--batch 32] [--out benchmarks/results/tpr_memory.json]

Both sides compute the same function in the same run on one thread: three simultaneous writes per sentence, then the
three chained normalised reads, then gradients of every input. Time is processor time of the process (the median over
repeats); memory is the growth of the process's peak resident set, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import in_a_process, measure, write_results
from torch import Tensor

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
        x, small = inputs(args.batch, args.tokens[0]), inputs(2, 2)
        repeats = 2 if args.side == "literal" else 15
        print(json.dumps(measure(lambda: step(args.side, x), repeats, lambda: step(args.side, small))))
        return
    rows = []
    print("| T | literal s | ours s | ratio | literal MB | ours MB | ratio | agreement |\n|" + "---|" * 8)
    for tokens in args.tokens:
        how = ("--batch", args.batch, "--tokens", tokens, "--side")
        ours, theirs = (in_a_process(__file__, *how, side) for side in ("gram", "literal"))
        row = {"tokens": tokens, "batch": args.batch, "literal": theirs, "gram": ours, "agreement": agreement(tokens)}
        row["time_ratio"] = theirs["seconds"] / ours["seconds"]
        row["memory_ratio"] = theirs["peak_mb"] / ours["peak_mb"]
        rows.append(row)
        print(
            f"| {tokens} | {theirs['seconds']:.3f} | {ours['seconds']:.4f} | {row['time_ratio']:.0f} "
            f"| {theirs['peak_mb']:.0f} | {ours['peak_mb']:.0f} | {row['memory_ratio']:.0f} | {row['agreement']:.0e} |",
            flush=True,
        )
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
