"""The kernels of `delta_rnn`: one program per batch element and head, R in registers, from token to token.

The forward pass keeps the errors v_t - R_{t-1}^T k_t; the backward pass starts at the final R and undoes the writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels import sequential_triton
from algornn.triton_kernels.delta_rnn import chunked
from algornn.triton_kernels.dispatch import Tensors, differentiable
from algornn.triton_kernels.sequential import before
from algornn.triton_kernels.sequential_triton import (
    from_left,
    from_right,
    load,
    load_matrix,
    outer,
    padded,
    row_of,
    softmax,
    softmax_gradient,
    store,
    store_matrix,
    where_it_is,
)

LIMIT = 128
# By padded width. Nothing spills, but 32 bytes of the backward pass at 128.
WARPS = {2: 1, 4: 1, 8: 1, 16: 1, 32: 4, 64: 8, 128: 8}


def refusal(width: int) -> str | None:
    """Say why the kernels do not take heads of this width, or None."""
    return sequential_triton.refusal(width, LIMIT)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    Z, K, V, Beta, Mask, Initial, First, Y, Final, Error, T, H, D: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Y, the final R and the errors; First is the y before the first token."""
    place = tl.program_id(0).to(tl.int64)
    R = load_matrix(Initial + place * D * D, D, D, P)
    y = load(First + place * D, D, P)
    for t in range(T):
        row = row_of(t, T, H)
        k = load(K + row * D, D, P)
        error = load(V + row * D, D, P) - from_left(k, R)
        R += outer(k, tl.load(Beta + row) * error)
        new = load(Z + row * D, D, P) + from_left(softmax(y, D, P), R)
        if Mask is not None:
            new = tl.where(tl.load(Mask + place // H * T + t) != 0, new, y)
        y = new
        store(Y + row * D, y, D, P)
        store(Error + row * D, error, D, P)
    store_matrix(Final + place * D * D, R, D, D, P)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    K, Beta, Mask, Before, Final, Error, DY, DFinal, DZ, DK, DV, DBeta, DInitial, DFirst, T, H,
    D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The gradients of all inputs; Before holds the y before each token."""
    place = tl.program_id(0).to(tl.int64)
    R = load_matrix(Final + place * D * D, D, D, P)
    G = load_matrix(DFinal + place * D * D, D, D, P)
    dy = tl.zeros([P], tl.float32)
    for j in range(T):
        t = T - 1 - j
        row = row_of(t, T, H)
        dy += load(DY + row * D, D, P)
        past = tl.zeros_like(dy)
        if Mask is not None:  # the y of a masked token is the y before it
            counts = tl.load(Mask + place // H * T + t) != 0
            past, dy = tl.where(counts, 0.0, dy), tl.where(counts, dy, 0.0)
        store(DZ + row * D, dy, D, P)
        p = softmax(load(Before + row * D, D, P), D, P)
        past += softmax_gradient(p, from_right(R, dy))
        G += outer(p, dy)
        dy = past
        k, error, beta = load(K + row * D, D, P), load(Error + row * D, D, P), tl.load(Beta + row)
        du = from_left(k, G)
        tl.store(DBeta + row, tl.sum(du * error, axis=0))
        dk = from_right(G, beta * error)
        R -= outer(k, beta * error)
        dv = beta * du
        store(DV + row * D, dv, D, P)
        store(DK + row * D, dk - from_right(R, dv), D, P)
        G -= outer(k, dv)
    store_matrix(DInitial + place * D * D, G, D, D, P)
    store(DFirst + place * D, dy, D, P)


def _forward(
    z: Tensor, k: Tensor, v: Tensor, beta: Tensor, R: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = z.shape
    ys, final, error = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (z, R, v))
    z, k, v, beta, R, y = (x.contiguous() for x in (z, k, v, beta, R, y))
    counts = None if mask is None else mask.int().contiguous()
    P = padded(D)
    if B * H:
        with where_it_is(z):
            forward_kernel[(B * H,)](
                z, k, v, beta, counts, R, y, ys, final, error, T, H, D=D, P=P, num_warps=WARPS[P]
            )  # fmt: skip
    return ys, final, error


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    z, k, _, beta, _, y, mask = inputs
    ys, final, error = outputs
    B, T, H, D = z.shape
    dys, dfinal = (torch.zeros_like(x) if g is None else g for g, x in zip(gradients, (ys, final), strict=False))
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:6]]
    dz, dk, dv, dbeta, dR, dy = found
    counts = None if mask is None else mask.int().contiguous()
    P = padded(D)
    if B * H:
        with where_it_is(z):
            backward_kernel[(B * H,)](
                k.contiguous(), beta.contiguous(), counts, before(y, ys), final, error, dys, dfinal,
                dz, dk, dv, dbeta, dR, dy, T, H, D=D, P=P, num_warps=WARPS[P],
            )  # fmt: skip
    return found


def _fake(
    z: Tensor, k: Tensor, v: Tensor, beta: Tensor, R: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape), R.new_empty(R.shape), v.new_empty(v.shape)


run = differentiable("delta_rnn_triton", _forward, _backward, _fake, composite=chunked)
