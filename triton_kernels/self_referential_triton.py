"""The kernels of `self_referential`: one program per batch element and head, W in registers, from token to token.

W is held as four blocks of columns: for y, q and k [D, D] each, and for the learning rates [D, 4]. The forward pass
keeps q, k, the learning rates and the change (q - k) W_{t-1} of every token; the backward pass starts at the final W
and undoes the writes.
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
from algornn.triton_kernels.self_referential import RATES, loop
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

LIMIT = 64
WARPS = {2: 1, 4: 1, 8: 1, 16: 1, 32: 4, 64: 8}  # by padded width: nothing spills


def refusal(width: int) -> str | None:
    """Say why the kernels do not take heads of this width, or None."""
    return sequential_triton.refusal(width, LIMIT)


@triton.jit
def _load_state(W, D: tl.constexpr, P: tl.constexpr):
    """The four blocks of columns of this program's matrix."""
    M: tl.constexpr = 3 * D + 4
    W += tl.program_id(0).to(tl.int64) * D * M
    d, g = tl.arange(0, P), tl.arange(0, 4)
    W_b = tl.load(W + d[:, None] * M + 3 * D + g[None, :], mask=(d < D)[:, None] & (g < 4)[None, :], other=0.0)
    return load_matrix(W, M, D, P), load_matrix(W + D, M, D, P), load_matrix(W + 2 * D, M, D, P), W_b.to(tl.float32)


@triton.jit
def _store_state(W, W_y, W_q, W_k, W_b, D: tl.constexpr, P: tl.constexpr):
    M: tl.constexpr = 3 * D + 4
    W += tl.program_id(0).to(tl.int64) * D * M
    d, g = tl.arange(0, P), tl.arange(0, 4)
    store_matrix(W, W_y, M, D, P)
    store_matrix(W + D, W_q, M, D, P)
    store_matrix(W + 2 * D, W_k, M, D, P)
    tl.store(W + d[:, None] * M + 3 * D + g[None, :], W_b, mask=(d < D)[:, None] & (g < 4)[None, :])


@triton.jit
def _one(x, g: tl.constexpr):
    """Number g of the four."""
    return tl.sum(tl.where(tl.arange(0, 4) == g, x, 0.0), axis=0)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(X, Initial, Y, Final, Kept, T, H, D: tl.constexpr, P: tl.constexpr):
    """Y, the final W and what is kept, per token [q|k|eta|change] of 5 D + 8 numbers."""
    g = tl.arange(0, 4)
    W_y, W_q, W_k, W_b = _load_state(Initial, D, P)
    for t in range(T):
        row = row_of(t, T, H)
        x = load(X + row * D, D, P)
        store(Y + row * D, from_left(x, W_y), D, P)
        q, k = softmax(from_left(x, W_q), D, P), softmax(from_left(x, W_k), D, P)
        eta = tl.sigmoid(from_left(x, W_b))
        c_y, c_q, c_k, c_b = from_left(q - k, W_y), from_left(q - k, W_q), from_left(q - k, W_k), from_left(q - k, W_b)
        W_y += outer(k, _one(eta, 0) * c_y)
        W_q += outer(k, _one(eta, 1) * c_q)
        W_k += outer(k, _one(eta, 2) * c_k)
        W_b += outer(k, _one(eta, 3) * c_b)
        kept = Kept + row * (5 * D + 8)
        store(kept, q, D, P)
        store(kept + D, k, D, P)
        tl.store(kept + 2 * D + g, eta)
        store(kept + 2 * D + 4, c_y, D, P)
        store(kept + 3 * D + 4, c_q, D, P)
        store(kept + 4 * D + 4, c_k, D, P)
        tl.store(kept + 5 * D + 4 + g, c_b)
    _store_state(Final, W_y, W_q, W_k, W_b, D, P)


@triton.jit
def _undo(W, G, k, eta, change):
    """Take a write out of one block; return it, what flows to the change and the rate, and its share of that to k."""
    u = eta * change
    du = from_left(k, G)
    return W - outer(k, u), eta * du, tl.sum(du * change, axis=0), from_right(G, u)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(X, Final, Kept, DY, DFinal, DX, DInitial, T, H, D: tl.constexpr, P: tl.constexpr):
    """The gradients of X and of the initial W."""
    g = tl.arange(0, 4)
    W_y, W_q, W_k, W_b = _load_state(Final, D, P)
    G_y, G_q, G_k, G_b = _load_state(DFinal, D, P)
    for j in range(T):
        row = row_of(T - 1 - j, T, H)
        kept = Kept + row * (5 * D + 8)
        x, q, k = load(X + row * D, D, P), load(kept, D, P), load(kept + D, D, P)
        eta = tl.load(kept + 2 * D + g)
        W_y, c_y, r_y, k_y = _undo(W_y, G_y, k, _one(eta, 0), load(kept + 2 * D + 4, D, P))
        W_q, c_q, r_q, k_q = _undo(W_q, G_q, k, _one(eta, 1), load(kept + 3 * D + 4, D, P))
        W_k, c_k, r_k, k_k = _undo(W_k, G_k, k, _one(eta, 2), load(kept + 4 * D + 4, D, P))
        W_b, c_b, r_b, k_b = _undo(W_b, G_b, k, _one(eta, 3), tl.load(kept + 5 * D + 4 + g))
        # From here on c is the gradient of the change, r of the rates; W is the matrix that the token found.
        step = from_right(W_y, c_y) + from_right(W_q, c_q) + from_right(W_k, c_k) + from_right(W_b, c_b)
        dy = load(DY + row * D, D, P)
        dq = softmax_gradient(q, step)
        dk = softmax_gradient(k, k_y + k_q + k_k + k_b - step)
        deta = tl.where(g == 0, r_y, tl.where(g == 1, r_q, tl.where(g == 2, r_k, r_b))) * eta * (1.0 - eta)
        dx = from_right(W_y, dy) + from_right(W_q, dq) + from_right(W_k, dk) + from_right(W_b, deta)
        store(DX + row * D, dx, D, P)
        G_y += outer(q - k, c_y) + outer(x, dy)
        G_q += outer(q - k, c_q) + outer(x, dq)
        G_k += outer(q - k, c_k) + outer(x, dk)
        G_b += outer(q - k, c_b) + outer(x, deta)
    _store_state(DInitial, G_y, G_q, G_k, G_b, D, P)


def _forward(x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = x.shape
    P = padded(D)
    y, final, kept = x.new_empty(x.shape), W.new_empty(W.shape), x.new_empty(B, T, H, 5 * D + 2 * RATES)
    if B * H:
        with where_it_is(x):
            forward_kernel[(B * H,)](
                x.contiguous(), W.contiguous(), y, final, kept, T, H, D=D, P=P, num_warps=WARPS[P]
            )  # fmt: skip
    return y, final, kept


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    x, W = inputs
    y, final, kept = outputs
    B, T, H, D = x.shape
    P = padded(D)
    dy, dfinal = (torch.zeros_like(z) if g is None else g for g, z in zip(gradients, (y, final), strict=False))
    dx, dW = x.new_empty(x.shape), W.new_empty(W.shape)
    if B * H:
        with where_it_is(x):
            backward_kernel[(B * H,)](
                x.contiguous(), final, kept, dy, dfinal, dx, dW, T, H, D=D, P=P, num_warps=WARPS[P]
            )  # fmt: skip
    return [dx, dW]


def _fake(x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = x.shape
    return x.new_empty(x.shape), W.new_empty(W.shape), x.new_empty(B, T, H, 5 * D + 2 * RATES)


run = differentiable("self_referential_triton", _forward, _backward, _fake, composite=loop)
