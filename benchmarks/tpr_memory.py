"""Time and peak memory of the TPR memory, forward and backward, against two loops over sentences.

    python benchmarks/tpr_memory.py [--batch 32] [--out benchmarks/results/tpr_memory.json]
        [--literal 8 20 64 130] [--tuned 20] [--alone 256 512 1024]

`literal` is the loop of the paper's equations, `tuned` the same loop made as fast as plain operations go: all keys in
one product, per sentence one fused read of the three old values and one write. `alone` are lengths at which a loop
would need tens of gigabytes, so that only our side is run, to show how time and memory grow.

All sides compute the same function in the same run on one thread: three simultaneous writes per sentence, then the
three chained normalised reads, then gradients of every input. Time is processor time of the process (the median over
repeats); memory is the growth of the process's peak resident set, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from measure import in_a_process, measure, results_file, write_results
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


def tuned(e1: Tensor, e2: Tensor, r1: Tensor, r2: Tensor, r3: Tensor) -> Tensor:
    """The same with the three reads and the three writes of a sentence as one product each."""
    entities, roles = torch.stack([e1, e1, e2], 2)[..., None], torch.stack([r1, r2, r3], 2)[..., None, :]
    erased = torch.stack([r1, r2 - r1, r3], 2)[..., None, :]
    write, erase = ((entities * role).flatten(3).unbind(1) for role in (roles, erased))
    values = torch.stack([e2, torch.zeros_like(e2), e1], 2).unbind(1)
    state = e1.new_zeros(len(e1), E * R, E)
    for p, q, v in zip(write, erase, values, strict=True):
        state = torch.baddbmm(state, p.mT, torch.baddbmm(v, q, state, alpha=-1))
    return state.unflatten(1, (E, R))


LOOPS = {"literal": literal, "tuned": tuned}


def answer(read, n: Tensor, roles: list[Tensor]) -> Tensor:  # noqa: ANN001
    """Three chained reads, normalised, summed."""
    total = torch.zeros_like(n)
    for role in roles:
        n = F.layer_norm(read(n, role), (E,), eps=1e-7)
        total = total + n
    return total


def step(side: str, x: dict[str, Tensor]) -> list[Tensor]:
    """One forward and backward pass; returns the output and all gradients.

    A side is a loop, ``"ours"``, or a backend of `tensor_memory`.
    """
    for tensor in x.values():
        tensor.grad = None
    e1, e2, r1, r2, r3 = (x[k] for k in ("e1", "e2", "r1", "r2", "r3"))
    roles = [x["l1"], x["l2"], x["l3"]]
    if side in LOOPS:
        state = LOOPS[side](e1, e2, r1, r2, r3)
        out = answer(lambda n, role: torch.einsum("be,br,berf->bf", n, role, state), x["n"], roles)
    else:
        entities = torch.stack([e1, e1, e2], 2)
        memory = tensor_memory(
            write=(entities, torch.stack([r1, r2, r3], 2)),
            values=torch.stack([e2, torch.zeros_like(e2), e1], 2),
            erase=(entities, torch.stack([r1, r2 - r1, r3], 2)),
            backend="auto" if side == "ours" else side,
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


def agreement(tokens: int, loop: str) -> float:
    """Largest relative difference of output and gradients between a loop and our side in float64."""
    x = inputs(2, tokens, torch.float64)
    pairs = zip(step(loop, x), step("ours", x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def compare(tokens: int, batch: int, loop: str | None) -> dict:
    """The figures of our side and, unless it is alone, those of the loop."""
    error = agreement(tokens, loop or "tuned")
    if not error < 1e-10:
        raise SystemExit(f"The two sides differ by {error:.0e} at {tokens} sentences in float64.")
    how = ("--batch", batch, "--tokens", tokens, "--side")
    ours, theirs = (side and in_a_process(__file__, *how, side) for side in ("ours", loop))
    row = {"tokens": tokens, "batch": batch, "agreement": error, "loop": loop, "ours": ours, "theirs": theirs}
    if theirs:
        row["time_ratio"] = theirs["seconds"] / ours["seconds"]
        row["memory_ratio"] = theirs["peak_mb"] / ours["peak_mb"]
    return row


def line(row: dict) -> str:
    """A row of the printed table."""
    cells = ["not run", "", "not run", ""]
    if row["loop"]:
        figures = (row["theirs"]["seconds"], row["time_ratio"], row["theirs"]["peak_mb"], row["memory_ratio"])
        cells = [f"{figure:.{digits}f}" for figure, digits in zip(figures, (3, 0, 0, 0), strict=True)]
    ours = (f"{row['ours']['seconds']:.4f}", f"{row['ours']['peak_mb']:.0f}")
    cells = [cells[0], ours[0], cells[1], cells[2], ours[1], cells[3], f"{row['agreement']:.0e}"]
    return f"| {row['tokens']} | {row['loop'] or 'alone'} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--literal", type=int, nargs="*", default=[8, 20, 64, 130], help="sentences")
    parser.add_argument("--tuned", type=int, nargs="*", default=[20], help="sentences")
    parser.add_argument("--alone", type=int, nargs="*", default=[256, 512, 1024], help="sentences")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=results_file)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=(*LOOPS, "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        x, small = inputs(args.batch, args.tokens), inputs(2, 2)
        repeats = 2 if args.side == "literal" else 15
        print(json.dumps(measure(lambda: step(args.side, x), repeats, lambda: step(args.side, small))))
        return
    cases = [(tokens, loop) for loop in LOOPS for tokens in getattr(args, loop)] + [(T, None) for T in args.alone]
    rows = []
    print("| T | loop | loop s | ours s | ratio | loop MB | ours MB | ratio | agreement |\n|" + "---|" * 9)
    for tokens, loop in cases:
        rows.append(compare(tokens, args.batch, loop))
        print(line(rows[-1]), flush=True)
    print("Not run: the loops keep a state of 648 kB per sentence and example, more than 10 GB at T = 512, batch 32.")
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
