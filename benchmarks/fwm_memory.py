"""Time and peak memory of the Fast Weight Memory, forward and backward, against the literal cell over tokens.

    python benchmarks/fwm_memory.py [--tokens 100] [--batch 32] [--size 32] [--out benchmarks/results/fwm_memory.json]

Both sides compute the same function on one thread: a delta write per token, the norm clamp, three chained normalised
reads of the state after it, then gradients of every input. `measure` says what the columns are.
"""

from __future__ import annotations

import argparse
import itertools
import json

import torch
import torch.nn.functional as F
from measure import in_a_process, measure, results_file, write_results
from torch import Tensor

from algornn.triton_kernels import tensor_memory

HOPS = 3


def literal(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The cell, one token after the other, with the products in the order of the released code."""
    B, T, size = x["s"].shape
    state, reads = x["state"] if "state" in x else x["s"].new_zeros(B, size, size, size), []
    for t in range(T):
        key = torch.einsum("bs,br->bsr", x["s"][:, t], x["r"][:, t])
        old = torch.einsum("bsr,bsrv->bv", key, state)
        state = state + torch.einsum("bsr,bv->bsrv", key, x["beta"][:, t, None] * (x["v"][:, t] - old))
        norm = torch.relu(state.flatten(1).norm(dim=1) - 1) + 1
        state = state / norm[:, None, None, None]
        q = x["n"][:, t]
        for hop in range(HOPS):
            q = F.layer_norm(torch.einsum("bsrv,bs,br->bv", state, q, x["roles"][:, t, hop]), (size,))
        reads.append(q)
    return torch.stack(reads, 1), state.detach()


def ours(x: dict[str, Tensor], backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The same with `tensor_memory`: all tokens write, then all tokens read."""
    memory = tensor_memory(
        write=(x["s"][:, :, None], x["r"][:, :, None]),
        values=x["v"][:, :, None],
        beta=x["beta"][:, :, None],
        clamp=True,
        initial_state=x.get("state"),
        backend=backend,
    )
    q = x["n"]
    for hop in range(HOPS):
        q = F.layer_norm(memory.read(q, x["roles"][:, :, hop], causal=True), q.shape[-1:])
    with torch.no_grad():
        return q, memory.state


SIDES = {"literal": literal, "ours": ours}


def step(side: str, x: dict[str, Tensor]) -> list[Tensor]:
    """One forward and backward pass; returns the outputs and all gradients. A side may be a backend, too.

    The final state is made, and carried without its graph, as truncated backpropagation does.
    """
    out, state = SIDES[side](x) if side in SIDES else ours(x, backend=side)
    wanted = [value for value in x.values() if value.requires_grad]
    return [out.detach(), state, *torch.autograd.grad(out.square().sum(), wanted)]


def inputs(batch: int, tokens: int, size: int, carried: bool, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keys, values and gates as a controller gives them (catbAbI: tanh and sigmoid of unit normals, beta / size).

    A carried state is that of an earlier segment: detached, as in truncated backpropagation.
    """
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x = {name: normal(batch, tokens, size).tanh() for name in ("s", "r", "v")}
    x |= {"beta": (normal(batch, tokens) + 1).sigmoid() / size, "n": normal(batch, tokens, size)}
    x |= {"roles": normal(batch, tokens, HOPS, size).tanh()}
    x = {name: value.to(dtype).requires_grad_() for name, value in x.items()}
    return x | ({"state": (normal(batch, size, size, size) / size**1.5).to(dtype)} if carried else {})


def agreement(tokens: int, size: int, carried: bool) -> float:
    """Largest relative difference of outputs and gradients between the two sides in float64."""
    x = inputs(2, tokens, size, carried, torch.float64)
    pairs = zip(step("literal", x), step("ours", x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[100])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--carried", type=int, nargs="+", default=[0, 1], help="0: fresh memory, 1: a carried state")
    parser.add_argument("--out", type=results_file)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (tokens,), (carried,) = args.tokens, args.carried
        x, small = (inputs(*sizes, args.size, bool(carried)) for sizes in ((args.batch, tokens), (2, 2)))
        repeats = 2 if args.side == "literal" else 9
        print(json.dumps(measure(lambda: step(args.side, x), repeats, lambda: step(args.side, small))))
        return
    rows = []
    print("| T | carried | literal s | ours s | ratio | literal MB | ours MB | ratio | agreement |\n|" + "---|" * 9)
    for tokens, carried in itertools.product(args.tokens, args.carried):
        how = ("--batch", args.batch, "--size", args.size, "--tokens", tokens, "--carried", carried, "--side")
        mine, theirs = (in_a_process(__file__, *how, side) for side in ("ours", "literal"))
        row = {"tokens": tokens, "batch": args.batch, "size": args.size, "carried": bool(carried)}
        row |= {"literal": theirs, "ours": mine, "agreement": agreement(tokens, args.size, bool(carried))}
        row |= {"time_ratio": theirs["seconds"] / mine["seconds"], "memory_ratio": theirs["peak_mb"] / mine["peak_mb"]}
        rows.append(row)
        print(
            f"| {tokens} | {carried} | {theirs['seconds']:.3f} | {mine['seconds']:.4f} | {row['time_ratio']:.0f} "
            f"| {theirs['peak_mb']:.0f} | {mine['peak_mb']:.0f} | {row['memory_ratio']:.0f} | {row['agreement']:.0e} |",
            flush=True,
        )
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
