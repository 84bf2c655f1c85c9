"""What is measured on a GPU: operators at the sizes of the claims, their sides, and the least that must be moved.

A side is one way to do a forward and a backward pass: "literal" is the eager loop over tokens, "torch" the torch form,
"triton" the kernels, "fla" flash-linear-attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import delta_rule as delta_benchmark
import fwm_memory
import sequential
import torch
import tpr_memory
from torch import Tensor

from algornn.triton_kernels import delta_rule

Inputs = dict[str, Tensor]
Side = Callable[[Inputs], list[Tensor]]
FORMS = ("torch", "triton")


class Case(NamedTuple):
    """One operator at one size.

    Attributes:
        name: what the table says.
        inputs: makes the inputs in float64, on the CPU.
        sides: name to one step that returns outputs and gradients; "torch" in float64 is the truth.
        dtype: what is computed with.
        bytes: inputs, outputs and their gradients, each moved once per pass.
        flops: of the cheapest known form, both passes.
        tune: whether its launches are timed with other options.
    """

    name: str
    inputs: Callable[[], Inputs]
    sides: dict[str, Side]
    dtype: torch.dtype
    bytes: float
    flops: float
    tune: bool = True


def tpr(B: int, T: int) -> Case:
    """Gram matrices and their system, forward; both again and the gradients of keys, backward; half of n^2 pairs."""
    E, R, n = tpr_memory.E, tpr_memory.R, 3 * T
    flops = B * n * n * (4 * (E + R) + 3 * E)
    numbers = B * T * (2 * E + 3 * R + 3 * E)
    sides = {name: partial(tpr_memory.step, name) for name in ("literal", "tuned", *FORMS)}
    inputs = partial(tpr_memory.inputs, B, T, torch.float64)
    return Case(f"tpr B={B} T={T}", inputs, sides, torch.float32, 3 * 4 * numbers, flops)


def fwm(B: int, T: int, size: int) -> Case:
    """Gram matrices, the scan and three reads, half of T^2 pairs; backward twice that again."""
    flops = 3 * B * T * T * (3 * size + 3 * 3 * size)
    numbers = B * T * (9 * size + 1)
    sides = {name: partial(fwm_memory.step, name) for name in ("literal", *FORMS)}
    inputs = partial(fwm_memory.inputs, B, T, size, False, torch.float64)
    return Case(f"fwm B={B} T={T} size={size}", inputs, sides, torch.float32, 3 * 4 * numbers, flops)


def token_by_token(name: str, B: int, T: int, H: int, D: int) -> Case:
    """Read, write and read again a D x D matrix, or D x (3D+4), per token; backward twice that."""
    columns = {"self_referential": 3 * D + 4, "recurrent_delta": 2 * D, "delta_rnn": D}[name]
    sides: dict[str, Side] = {form: partial(sequential.step, name, form) for form in FORMS}
    sides = {"literal": partial(sequential.step, name, "reference")} | sides
    inputs = partial(sequential.inputs, name, (B, T, H, D), torch.float64)
    numbers = B * T * H * 5 * D
    return Case(
        f"{name} B={B} T={T} H={H} D={D}", inputs, sides, torch.float32, 3 * 4 * numbers, 18.0 * B * T * H * D * columns
    )


# --- the delta rule --------------------------------------------------------------------------------------------------


def delta(B: int, T: int, H: int, K: int, gated: bool, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Bytes: queries, keys, values, outputs and the gradient of each; flops: the recurrence itself."""
    sides: dict[str, Side] = {form: partial(_delta_step, partial(_ours, form)) for form in FORMS}
    # fla refuses the gated backward pass with the Triton that miscompiles it on Hopper: then forward alone, of both.
    sides |= {"triton forward": partial(_forward, partial(_ours, "triton"))}
    sides |= {"fla": partial(_delta_step, _fla), "fla forward": partial(_forward, _fla)}
    numbers, size = B * T * H * 11 * K, torch.finfo(dtype).bits // 8
    name = f"delta_rule{' gated' if gated else ''} B={B} T={T} H={H} K={K}"
    return Case(name, partial(_delta_inputs, B, T, H, K, gated), sides, dtype, size * numbers, 18 * B * T * H * K * K)


def _delta_inputs(B: int, T: int, H: int, K: int, gated: bool) -> Inputs:
    x = dict(zip(("q", "k", "v", "beta"), delta_benchmark.inputs(B, T, H, K, torch.float64), strict=True))
    g = torch.Generator().manual_seed(1)
    x["dout"] = torch.randn(B, T, H, K, generator=g, dtype=torch.float64)
    if gated:
        x["decay"] = (torch.randn(B, T, H, generator=g, dtype=torch.float64) + 4).sigmoid().requires_grad_()
    return x


def _ours(backend: str, x: Inputs) -> Tensor:
    return delta_rule(x["q"], x["k"], x["v"], x["beta"], decay=x.get("decay"), backend=backend)[0]


def _fla(x: Inputs) -> Tensor:
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v, beta = (x[name] for name in ("q", "k", "v", "beta"))
    if "decay" not in x:
        return chunk_delta_rule(q, k, v, beta, scale=1.0)[0]
    return chunk_gated_delta_rule(q, k, v, x["decay"].float().log(), beta, scale=1.0)[0]


def _delta_step(function: Callable[[Inputs], Tensor], x: Inputs) -> list[Tensor]:
    leaves = [value for value in x.values() if value.requires_grad]
    out = function(x)
    return [out.detach(), *torch.autograd.grad(out, leaves, x["dout"])]


def _forward(function: Callable[[Inputs], Tensor], x: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return [function(x)]


# --- the sizes -------------------------------------------------------------------------------------------------------


def cases() -> list[Case]:
    """The sizes of the claims, the most wanted first."""
    return [
        tpr(128, 20)._replace(tune=False),
        tpr(128, 130),
        fwm(64, 200, 32),
        delta(8, 2048, 16, 64, gated=False),
        delta(4, 4096, 16, 128, gated=False),
        delta(2, 512, 4, 64, gated=False)._replace(tune=False),
        delta(8, 2048, 16, 64, gated=True),
        delta(4, 4096, 16, 128, gated=True),
        delta(2, 512, 4, 64, gated=True)._replace(tune=False),
        *(token_by_token(name, 16, 128, 16, 16) for name in sequential.OPERATORS),
        *(token_by_token(name, 8, 100, 8, 32) for name in sequential.OPERATORS),
    ]


def rehearsal() -> list[Case]:
    """The same at sizes that Triton's interpreter takes; its bfloat16 is wrong."""
    return [tpr(1, 2), fwm(1, 2, 3), delta(1, 3, 1, 4, True, torch.float32), token_by_token("delta_rnn", 1, 2, 1, 2)]
