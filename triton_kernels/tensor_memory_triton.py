r"""The kernels of `tensor_memory`: the triangular system of a segment, its inner products made tile by tile.

With rows in blocks of C and L_ij = w (Q_e P_e^T) (Q_r P_r^T) for blocks i, j, 0 where the column's token is not before:

    prepare      inverse_i = (I + L_ii)^-1
    substitute   U_i = inverse_i (Y_i - sum over j < i of L_ij U_j)
    back         Z_i = inverse_i^T (dU_i - sum over j > i of L_ji^T Z_j)

and L has the adjoint -Z U^T, from which `tensor_memory_read_triton` makes the gradients of keys and weights. No tile is
ever stored but the inverses of the diagonal, so that memory is linear in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors, differentiable
from algornn.triton_kernels.sequential_triton import where_it_is
from algornn.triton_kernels.tensor_memory_clamp_triton import scan
from algornn.triton_kernels.tensor_memory_gram import Form, Inputs, solve_composite
from algornn.triton_kernels.tensor_memory_read_triton import (
    SLICE,
    C,
    Keys,
    key_gradients,
    load,
    options,
    product,
    read,
    store,
    weigh,
    weight_gradient,
    width,
)


@triton.jit(do_not_specialize=["n"])
def prepare(PE, PR, QE, QR, W, Inverse, n, M: tl.constexpr, E: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
            SLICE: tl.constexpr):  # fmt: skip
    """The inverses of the diagonal blocks, by forward substitution: accurate for keys of any size."""
    place, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, C)
    row, T = block * C + i, n // M
    at = place * n
    if W is not None:
        W += place * T * T
    L = product(QE + at * E, PE + at * E, row, row, n, n, E, C, SLICE)
    L *= product(QR + at * R, PR + at * R, row, row, n, n, R, C, SLICE)
    L = weigh(L, W, row // M, row // M, T, "before")
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for j in range(C - 1):
        column = tl.sum(tl.where(i[None, :] == j, L, 0.0), axis=1)
        line = tl.sum(tl.where(i[:, None] == j, inverse, 0.0), axis=0)
        inverse -= column[:, None] * line[None, :]
    store(Inverse + (place * tl.num_programs(1) + block) * C * C, inverse, i, C, i, C)


@triton.jit(do_not_specialize=["n", "blocks"])
def substitute(LeftE, LeftR, RightE, RightR, W, Inverse, Y, X, n, blocks, M: tl.constexpr, E: tl.constexpr,
               R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr, BV: tl.constexpr,
               ORDER: tl.constexpr):  # fmt: skip
    """Solve for BV columns, block after block; "after": the transposed system, from the last block to the first."""
    place, col, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    at, T = place * n, n // M
    if W is not None:
        W += place * T * T
    for m in range(blocks):
        block = blocks - 1 - m if ORDER == "after" else m
        row = block * C + i
        rhs = load(Y + at * V, row, n, col, V)
        for k in range(m):
            other = (blocks - 1 - k if ORDER == "after" else k) * C + i
            tile = product(LeftE + at * E, RightE + at * E, row, other, n, n, E, C, SLICE)
            tile *= product(LeftR + at * R, RightR + at * R, row, other, n, n, R, C, SLICE)
            tile = weigh(tile, W, row // M, other // M, T, ORDER)
            rhs -= tl.dot(tile, load(X + at * V, other, n, col, V), input_precision="ieee")
        inverse = load(Inverse + (place * blocks + block) * C * C, i, C, i, C)
        if ORDER == "after":
            inverse = tl.trans(inverse)
        store(X + at * V, tl.dot(inverse, rhs, input_precision="ieee"), row, n, col, V)
        tl.debug_barrier()  # the next blocks read what other threads have just written


# --- how they are launched -------------------------------------------------------------------------------------------


def refusal(x: Inputs) -> str | None:
    """Why the kernels do not take these arguments, or None."""
    if x.clamp and not x.fast_weight_memory():
        return "the clamp has kernels for one write per token that erases with its own key, without decay"
    E, R, V = x.write[0].shape[-1], x.write[1].shape[-1], x.values.shape[-1]
    if x.clamp and V > 128:
        return f"the kernels of the clamp hold values of at most 128 numbers, got {V}"
    if E > 128 or R > 64:
        return f"the kernels hold entities of at most 128 and roles of at most 64 numbers, got {E} and {R}"
    return None


def _forward(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return U and the inverses of the diagonal blocks, ``[B, blocks, C, C]``."""
    u, inverse = _fake(pe, pr, qe, qr, y, w, M, block)
    p, q, w = _sides(pe, pr, qe, qr, w, M)
    B, blocks = inverse.shape[:2]
    sizes = {"n": y.shape[1], "M": M, "E": pe.shape[-1], "R": pr.shape[-1], "C": C, "SLICE": SLICE}
    with where_it_is(y):
        prepare[(B, blocks)](*p[:2], *q[:2], w, inverse, **sizes, **options())
    _substitute(q, p, w, inverse, y.contiguous(), u, "before")
    return u, inverse


def _fake(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    blocks = -(-y.shape[1] // C)
    return torch.empty_like(y, memory_format=torch.contiguous_format), y.new_empty(len(y), blocks, C, C)


def _sides(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, w: Tensor | None, M: int
) -> tuple[Keys, Keys, Tensor | None]:
    """The write keys, the erase keys and the weights, contiguous."""
    p, q = Keys(pe, pr, M), Keys(pe if qe is None else qe, pr if qr is None else qr, M)
    return p.dense(), q.dense(), None if w is None else w.contiguous()


def _substitute(left: Keys, right: Keys, w: Tensor | None, inverse: Tensor, y: Tensor, x: Tensor, order: str) -> None:
    B, n, V = y.shape
    BV = min(32, width(V))
    with where_it_is(y):
        substitute[(B, triton.cdiv(V, BV))](
            *left[:2], *right[:2], w, inverse, y, x, n=n, blocks=inverse.shape[1], M=left.M, E=left.e.shape[-1],
            R=left.r.shape[-1], V=V, C=C, SLICE=SLICE, BV=BV, ORDER=order, **options(),
        )  # fmt: skip


def _backward(grads: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    (pe, pr, qe, qr, _, w), (u, inverse), (M, _) = inputs, outputs, numbers
    z, du = torch.empty_like(u), torch.zeros_like(u) if grads[0] is None else grads[0]
    p, q, w = _sides(pe, pr, qe, qr, w, M)
    _substitute(p, q, w, inverse, du, z, "after")
    dqe, dqr = key_gradients(q, p, w, z, u, "before", sign=-1.0)
    dpe, dpr = key_gradients(p, q, w, u, z, "after", sign=-1.0)
    dpe, dpr = dpe + dqe if qe is None else dpe, dpr + dqr if qr is None else dpr
    dw = [] if w is None else [weight_gradient(q, p, z, u, "before", sign=-1.0)]
    return [dpe, dpr, *([] if qe is None else [dqe]), *([] if qr is None else [dqr]), z, *dw]


solve = differentiable("tensor_memory_solve_triton", _forward, _backward, _fake, solve_composite)
FORM = Form(solve, scan, read)
