"""The kernels of `recurrent_delta`: one program per batch element and head, all matrices in registers.

The forward pass keeps q', k', the error v' - W_{t-1}^T k' and beta' of every token; the backward pass starts at the
final W and undoes the writes. What the recurrent weights get from all tokens is one product per head, in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels import sequential_triton
from algornn.triton_kernels.dispatch import Tensors, differentiable
from algornn.triton_kernels.recurrent_delta import loop
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
    tanh,
    where_it_is,
)

LIMIT = 64
WARPS = {2: 1, 4: 1, 8: 1, 16: 1, 32: 4, 64: 8}  # by padded width: nothing spills


def refusal(width: int) -> str | None:
    """Say why the kernels do not take heads of this width, or None."""
    return sequential_triton.refusal(width, LIMIT)


@triton.jit
def _weights(R, H, D: tl.constexpr, P: tl.constexpr):
    """R_q, R_k, R_v and r_beta of this program's head."""
    R += tl.program_id(0).to(tl.int64) % H * (3 * D + 1) * D
    R_q, R_k = load_matrix(R, D, D, P), load_matrix(R + D * D, D, D, P)
    return R_q, R_k, load_matrix(R + 2 * D * D, D, D, P), load(R + 3 * D * D, D, P)


@triton.jit
def _load_token(X, D: tl.constexpr, P: tl.constexpr):
    """The three vectors and the number of a row of 3 D + 1."""
    return load(X, D, P), load(X + D, D, P), load(X + 2 * D, D, P), tl.load(X + 3 * D).to(tl.float32)


@triton.jit
def _store_token(X, q, k, v, beta, D: tl.constexpr, P: tl.constexpr):
    store(X, q, D, P)
    store(X + D, k, D, P)
    store(X + 2 * D, v, D, P)
    tl.store(X + 3 * D, beta)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    X, Weights, Mask, Initial, First, Y, Final, Kept, T, H, D: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Y, the final W and what is kept; First is the y before the first token."""
    place = tl.program_id(0).to(tl.int64)
    R_q, R_k, R_v, r_beta = _weights(Weights, H, D, P)
    W = load_matrix(Initial + place * D * D, D, D, P)
    y = load(First + place * D, D, P)
    for t in range(T):
        row = row_of(t, T, H)
        q, k, v, beta = _load_token(X + row * (3 * D + 1), D, P)
        s = tanh(y)
        q = softmax(q + from_right(R_q, s), D, P)
        k = softmax(k + from_right(R_k, s), D, P)
        error = v + from_right(R_v, s) - from_left(k, W)
        beta = tl.sigmoid(beta + tl.sum(r_beta * s, axis=0))
        if Mask is not None:
            counts = tl.load(Mask + place // H * T + t) != 0
            beta = tl.where(counts, beta, 0.0)
            W += outer(k, beta * error)
            y = tl.where(counts, from_left(q, W), y)
        else:
            W += outer(k, beta * error)
            y = from_left(q, W)
        store(Y + row * D, y, D, P)
        _store_token(Kept + row * (3 * D + 1), q, k, error, beta, D, P)
    store_matrix(Final + place * D * D, W, D, D, P)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    Weights, Mask, Before, Final, Kept, DY, DFinal, DX, DInitial, DFirst, T, H, D: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """The gradients of X, the initial W and the first y; Before holds the y before each token."""
    place = tl.program_id(0).to(tl.int64)
    R_q, R_k, R_v, r_beta = _weights(Weights, H, D, P)
    W = load_matrix(Final + place * D * D, D, D, P)
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
        q, k, error, beta = _load_token(Kept + row * (3 * D + 1), D, P)
        dq = from_right(W, dy)
        G += outer(q, dy)
        u = beta * error
        du = from_left(k, G)
        dv = beta * du
        W -= outer(k, u)
        dk = from_right(G, u) - from_right(W, dv)
        G -= outer(k, dv)
        dbeta = tl.sum(du * error, axis=0) * beta * (1.0 - beta)
        dq, dk = softmax_gradient(q, dq), softmax_gradient(k, dk)
        _store_token(DX + row * (3 * D + 1), dq, dk, dv, dbeta, D, P)
        ds = from_left(dq, R_q) + from_left(dk, R_k) + from_left(dv, R_v) + dbeta * r_beta
        s = tanh(load(Before + row * D, D, P))
        dy = past + ds * (1.0 - s * s)
    store_matrix(DInitial + place * D * D, G, D, D, P)
    store(DFirst + place * D, dy, D, P)


def _forward(x: Tensor, R: Tensor, W: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, _ = x.shape
    D = W.shape[-1]
    P = padded(D)
    ys, final, kept = x.new_empty(B, T, H, D), W.new_empty(W.shape), x.new_empty(x.shape)
    x, R, W, y = (tensor.contiguous() for tensor in (x, R, W, y))
    counts = None if mask is None else mask.int().contiguous()
    if B * H:
        with where_it_is(x):
            forward_kernel[(B * H,)](x, R, counts, W, y, ys, final, kept, T, H, D=D, P=P, num_warps=WARPS[P])
    return ys, final, kept


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    x, R, W, y, mask = inputs
    ys, final, kept = outputs
    B, T, H, D = ys.shape
    P = padded(D)
    dys, dfinal = (torch.zeros_like(z) if g is None else g for g, z in zip(gradients, (ys, final), strict=False))
    dx, dW, dy = x.new_empty(x.shape), W.new_empty(W.shape), y.new_empty(y.shape)
    counts, past = None if mask is None else mask.int().contiguous(), before(y, ys)
    if B * H:
        with where_it_is(x):
            backward_kernel[(B * H,)](
                R.contiguous(), counts, past, final, kept, dys, dfinal, dx, dW, dy, T, H, D=D, P=P, num_warps=WARPS[P]
            )  # fmt: skip
    dR = dx.permute(2, 3, 0, 1).flatten(2) @ past.tanh_().permute(2, 0, 1, 3).flatten(1, 2)
    return [dx, dR.contiguous(), dW, dy]


def _fake(x: Tensor, R: Tensor, W: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(*x.shape[:3], W.shape[-1]), W.new_empty(W.shape), x.new_empty(x.shape)


run = differentiable("recurrent_delta_triton", _forward, _backward, _fake, composite=loop)
