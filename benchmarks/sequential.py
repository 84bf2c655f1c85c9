"""Time and peak memory of the operators that run token by token, forward and backward, against their literal loops.

    python benchmarks/sequential.py [--only NAME ...] [--rounds 3] [--out benchmarks/results/sequential.json]

Both sides compute the same function on one thread: the literal loop over tokens, differentiated by autograd, and the
torch form. Time is processor time (the median over calls, then over processes, the two sides in turn); memory is the
growth of the process's peak resident set. Agreement in float64, of outputs and all gradients, is checked first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch
from measure import in_a_process, measure, results_file, write_results
from torch import Tensor

from algornn.triton_kernels.delta_rnn import delta_rnn
from algornn.triton_kernels.recurrent_delta import recurrent_delta
from algornn.triton_kernels.self_referential import self_referential

SIZES = {"16x128x16x16": (16, 128, 16, 16), "8x100x8x32": (8, 100, 8, 32)}  # batch, tokens, heads, width
Inputs = dict[str, Tensor]


def normal(dtype: torch.dtype) -> Callable[..., Tensor]:
    g = torch.Generator().manual_seed(0)
    return lambda *shape, std=1.0: torch.randn(*shape, generator=g, dtype=torch.float64).mul(std).to(dtype)


def tokens(B: int, T: int, H: int, D: int, dtype: torch.dtype, *names: str) -> Inputs:
    draw = normal(dtype)
    return {name: draw(B, T, H, D) for name in names} | {"beta": draw(B, T, H)}


def delta_rnn_inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Inputs:
    x = tokens(B, T, H, D, dtype, "z", "k", "v")
    return x | {"k": x["k"].softmax(-1), "beta": x["beta"].sigmoid()}


def recurrent_delta_inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Inputs:
    draw, std = normal(dtype), D**-0.5
    x = tokens(B, T, H, D, dtype, "q", "k", "v")
    return x | {name: draw(H, D, D, std=std) for name in ("R_q", "R_k", "R_v")} | {"r_beta": draw(H, D, std=std)}


def self_referential_inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> Inputs:
    draw = normal(dtype)
    return {"x": draw(B, T, H, D), "W": draw(B, H, D, 3 * D + 4, std=D**-0.5)}


OPERATORS = {
    "self_referential": (self_referential, self_referential_inputs),
    "recurrent_delta": (recurrent_delta, recurrent_delta_inputs),
    "delta_rnn": (delta_rnn, delta_rnn_inputs),
}


def inputs(name: str, size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    return {key: value.requires_grad_() for key, value in OPERATORS[name][1](*size, dtype=dtype).items()}


def step(name: str, backend: str, x: Inputs) -> list[Tensor]:
    """One forward and backward pass through outputs and final state; returns the output and all gradients."""
    for tensor in x.values():
        tensor.grad = None
    out, state = OPERATORS[name][0](**x, backend=backend)
    states = (state,) if isinstance(state, Tensor) else state
    sum(y.square().sum() for y in (out, *states)).backward()
    return [out.detach(), *(tensor.grad for tensor in x.values())]


def agreement(name: str, size: tuple[int, ...]) -> float:
    """Largest relative difference of output and gradients between the two sides in float64."""
    x = inputs(name, (2, *size[1:2], 2, size[3]), torch.float64)
    pairs = zip(step(name, "reference", x), step(name, "torch", x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def compare(name: str, size: str, rounds: int) -> dict:
    """The figures of both sides, each round two processes."""
    found: dict[str, list[dict[str, float]]] = {"reference": [], "torch": []}
    for _ in range(rounds):
        for side, rows in found.items():
            rows.append(in_a_process(__file__, "--only", name, "--size", size, "--side", side))
    row = {side: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for side, rows in found.items()}
    return {
        "operator": name,
        "size": size,
        **row,
        "time_ratio": row["reference"]["seconds"] / row["torch"]["seconds"],
        "memory_ratio": row["reference"]["peak_mb"] / row["torch"]["peak_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=results_file)
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("reference", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (name,) = args.only
        x, small = inputs(name, SIZES[args.size]), inputs(name, (2, 2, 2, 4))
        print(json.dumps(measure(lambda: step(name, args.side, x), 5, lambda: step(name, args.side, small))))
        return
    rows = []
    print("| operator | B, T, H, D | loop s | ours s | ratio | loop MB | ours MB | ratio | agreement |\n|" + "---|" * 9)
    for name in args.only:
        for size, numbers in SIZES.items():
            error = agreement(name, numbers)
            if not error < 1e-10:
                raise SystemExit(f"{name} at {size}: the two sides differ by {error:.0e} in float64.")
            row = compare(name, size, args.rounds) | {"agreement": error}
            rows.append(row)
            theirs, ours = row["reference"], row["torch"]
            print(
                f"| {name} | {size} | {theirs['seconds']:.3f} | {ours['seconds']:.3f} | {row['time_ratio']:.1f} "
                f"| {theirs['peak_mb']:.0f} | {ours['peak_mb']:.0f} | {row['memory_ratio']:.1f} | {error:.0e} |",
                flush=True,
            )
    write_results(args.out, rows)


if __name__ == "__main__":
    main()
