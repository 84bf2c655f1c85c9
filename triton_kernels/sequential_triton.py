"""What the kernels share that keep a state in registers and take one token after the other.

One program per batch element and head. D-sized vectors and D x D matrices are padded to P, a power of two, with zeros.
A product with a matrix is a sum over one axis of it; the compiler moves a vector to the axis where it is needed.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


def refusal(width: int, limit: int) -> str | None:
    """Say why kernels with `limit` do not take heads of this width, or None: matrices must fit into the registers."""
    if 1 <= width <= limit:
        return None
    return f"its kernels keep the state in registers and take heads of width 1 to {limit}, not {width}"


def padded(width: int) -> int:
    """Return the power of two that vectors are padded to."""
    return max(triton.next_power_of_2(width), 2)


def where_it_is(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launch on the device of `tensor`, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
def row_of(t, T, H):
    """The row of token t of this program in ``[B, T, H, ...]``."""
    place = tl.program_id(0).to(tl.int64)
    return (place // H * T + t) * H + place % H


@triton.jit
def load(X, D: tl.constexpr, P: tl.constexpr):
    """A vector of D numbers."""
    d = tl.arange(0, P)
    return tl.load(X + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def store(X, x, D: tl.constexpr, P: tl.constexpr):
    d = tl.arange(0, P)
    tl.store(X + d, x, mask=d < D)


@triton.jit
def load_matrix(X, stride: tl.constexpr, D: tl.constexpr, P: tl.constexpr):
    """A D x D matrix whose rows are `stride` numbers apart."""
    d = tl.arange(0, P)
    inside = (d[:, None] < D) & (d[None, :] < D)
    return tl.load(X + d[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_matrix(X, x, stride: tl.constexpr, D: tl.constexpr, P: tl.constexpr):
    d = tl.arange(0, P)
    tl.store(X + d[:, None] * stride + d[None, :], x, mask=(d[:, None] < D) & (d[None, :] < D))


@triton.jit
def from_left(x, S):
    """S^T x."""
    return tl.sum(x[:, None] * S, axis=0)


@triton.jit
def from_right(S, x):
    """S x."""
    return tl.sum(S * x[None, :], axis=1)


@triton.jit
def outer(x, y):
    return x[:, None] * y[None, :]


@triton.jit
def softmax(x, D: tl.constexpr, P: tl.constexpr):
    """Softmax over the D numbers that count; the padding gets 0."""
    x = tl.where(tl.arange(0, P) < D, x, float("-inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    return e / tl.sum(e, axis=0)


@triton.jit
def softmax_gradient(p, dp):
    return p * (dp - tl.sum(p * dp, axis=0))


@triton.jit
def tanh(x):
    """Hyperbolic tangent; that of libdevice is not in the interpreter."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0
