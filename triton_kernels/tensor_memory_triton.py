r"""The kernels of `tensor_memory`: the triangular system of a segment, its inner products made tile by tile.

With rows in blocks of C and L_ij = (Q_e P_e^T) (Q_r P_r^T) for blocks i, j, 0 where the column's token is not before:

    prepare      inverse_i = (I + L_ii)^-1
    substitute   U_i = inverse_i (Y_i - sum over j < i of L_ij U_j)
    back         Z_i = inverse_i^T (dU_i - sum over j > i of L_ji^T Z_j)
    gradients    dQ_e = -((Z U^T) (Q_r P_r^T)) P_e up to each token, and so on; of P the same with all roles swapped

No tile is ever stored but the inverses of the diagonal, so that memory is linear in the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors, differentiable
from algornn.triton_kernels.tensor_memory_gram import Inputs, solve_composite

C = 16  # rows per block: with it and the numbers of warps below nothing spills (see the test that compiles)


@triton.jit
def _load(X, row, n, col, WIDTH: tl.constexpr):
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    return tl.load(X + row[:, None].to(tl.int64) * WIDTH + col[None, :], mask=inside, other=0.0)


@triton.jit
def _store(X, tile, row, n, col, WIDTH: tl.constexpr):
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    tl.store(X + row[:, None].to(tl.int64) * WIDTH + col[None, :], tile, mask=inside)


@triton.jit
def _product(X, Y, row, other, n, WIDTH: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr):
    """Inner products of the rows of X with other rows of Y, in slices of their columns that leave registers free."""
    tile = tl.zeros([C, C], tl.float32)
    for start in range(0, WIDTH, SLICE):
        col = start + tl.arange(0, SLICE)
        right = tl.trans(_load(Y, other, n, col, WIDTH))
        tile = tl.dot(_load(X, row, n, col, WIDTH), right, tile, input_precision="ieee")
    return tile


@triton.jit
def _before(row, other, M: tl.constexpr, LATER: tl.constexpr):
    """Whether the token of the other row is before that of the row; with LATER, after it."""
    if LATER:
        return (other[None, :] // M) > (row[:, None] // M)
    return (other[None, :] // M) < (row[:, None] // M)


@triton.jit(do_not_specialize=["n"])
def prepare(PE, PR, QE, QR, Inverse, n, M: tl.constexpr, E: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
            SLICE: tl.constexpr):  # fmt: skip
    """The inverses of the diagonal blocks, by forward substitution: accurate for keys of any size."""
    place, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, C)
    row = block * C + i
    at = place * n
    L = _product(QE + at * E, PE + at * E, row, row, n, E, C, SLICE)
    L *= _product(QR + at * R, PR + at * R, row, row, n, R, C, SLICE)
    L = tl.where(_before(row, row, M, False), L, 0.0)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for j in range(C - 1):
        column = tl.sum(tl.where(i[None, :] == j, L, 0.0), axis=1)
        line = tl.sum(tl.where(i[:, None] == j, inverse, 0.0), axis=0)
        inverse -= column[:, None] * line[None, :]
    _store(Inverse + (place * tl.num_programs(1) + block) * C * C, inverse, i, C, i, C)


@triton.jit(do_not_specialize=["n", "blocks"])
def substitute(LeftE, LeftR, RightE, RightR, Inverse, Y, X, n, blocks, M: tl.constexpr, E: tl.constexpr,
               R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr, BV: tl.constexpr,
               BACK: tl.constexpr):  # fmt: skip
    """Solve for BV columns, block after block; with BACK the transposed system, from the last block to the first.

    The transposed tiles are products of their own: a transposed result in a product is miscompiled by some Triton.
    """
    place, col, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    at = place * n
    for m in range(blocks):
        block = blocks - 1 - m if BACK else m
        row = block * C + i
        rhs = _load(Y + at * V, row, n, col, V)
        for k in range(m):
            other = (blocks - 1 - k if BACK else k) * C + i
            tile = _product(LeftE + at * E, RightE + at * E, row, other, n, E, C, SLICE)
            tile *= _product(LeftR + at * R, RightR + at * R, row, other, n, R, C, SLICE)
            tile = tl.where(_before(row, other, M, BACK), tile, 0.0)
            rhs -= tl.dot(tile, _load(X + at * V, other, n, col, V), input_precision="ieee")
        inverse = _load(Inverse + (place * blocks + block) * C * C, i, C, i, C)
        if BACK:
            inverse = tl.trans(inverse)
        _store(X + at * V, tl.dot(inverse, rhs, input_precision="ieee"), row, n, col, V)
        tl.debug_barrier()  # the next blocks read what other threads have just written


@triton.jit(do_not_specialize=["n", "blocks"])
def gradients(LeftE, LeftR, RightE, RightR, Left, Right, DE, DR, n, blocks, M: tl.constexpr, E: tl.constexpr,
              R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr, BE: tl.constexpr,
              BR: tl.constexpr, LATER: tl.constexpr):  # fmt: skip
    """The gradients of the left keys of one block from all tokens before it; with LATER, after it.

    BE entity columns per program, because more would not fit into the registers; the first also has the roles.
    """
    place, block, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, C)
    entity, role = tl.program_id(2) * BE + tl.arange(0, BE), tl.arange(0, BR)
    at, row = place * n, block * C + i
    de, dr = tl.zeros([C, BE], tl.float32), tl.zeros([C, BR], tl.float32)
    first, last = (block, blocks) if LATER else (0, block + 1)
    for k in range(first, last):
        other = k * C + i
        d = _product(Left + at * V, Right + at * V, row, other, n, V, C, SLICE)
        d = tl.where(_before(row, other, M, LATER), -d, 0.0)
        by_role = d * _product(LeftR + at * R, RightR + at * R, row, other, n, R, C, SLICE)
        de = tl.dot(by_role, _load(RightE + at * E, other, n, entity, E), de, input_precision="ieee")
        if tl.program_id(2) == 0:
            by_entity = d * _product(LeftE + at * E, RightE + at * E, row, other, n, E, C, SLICE)
            dr = tl.dot(by_entity, _load(RightR + at * R, other, n, role, R), dr, input_precision="ieee")
    _store(DE + at * E, de, row, n, entity, E)
    if tl.program_id(2) == 0:
        _store(DR + at * R, dr, row, n, role, R)


# --- how they are launched -------------------------------------------------------------------------------------------


def refusal(x: Inputs) -> str | None:
    """Why the kernels do not take these arguments, or None."""
    if x.clamp or x.decay is not None:
        return f"there are no kernels for {'the clamp' if x.clamp else 'decay'}"
    E, R = x.write[0].shape[-1], x.write[1].shape[-1]
    if E > 128 or R > 64:
        return f"the kernels hold entities of at most 128 and roles of at most 64 numbers, got {E} and {R}"
    return None


def _width(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _forward(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return U and the inverses of the diagonal blocks, ``[B, blocks, C, C]``."""
    u, inverse = _fake(pe, pr, qe, qr, y, w, M, block)
    _launch(pe, pr, qe, qr, inverse, y, u, M, back=False)
    return u, inverse


def _fake(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    blocks = -(-y.shape[1] // C)
    return torch.empty_like(y, memory_format=torch.contiguous_format), y.new_empty(len(y), blocks, C, C)


def _keys(pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """The write and the erase keys, contiguous."""
    p = [pe.contiguous(), pr.contiguous()]
    return p, [own if other is None else other.contiguous() for own, other in zip(p, (qe, qr), strict=True)]


def _launch(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, inverse: Tensor, y: Tensor, x: Tensor, M: int,
    back: bool,
) -> None:  # fmt: skip
    B, n, V = y.shape
    p, q = _keys(pe, pr, qe, qr)
    sizes = {"n": n, "M": M, "E": pe.shape[-1], "R": pr.shape[-1], "C": C, "SLICE": 16, "num_warps": 4, "num_stages": 1}
    BV, blocks = min(32, _width(V)), inverse.shape[1]
    with torch.cuda.device(y.device) if y.is_cuda else contextlib.nullcontext():
        if not back:
            prepare[(B, blocks)](*p, *q, inverse, **sizes)
        left, right = (p, q) if back else (q, p)
        substitute[(B, triton.cdiv(V, BV))](
            *left, *right, inverse, y.contiguous(), x, blocks=blocks, V=V, BV=BV, BACK=back, **sizes
        )


def _backward(grads: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    (pe, pr, qe, qr, _, _), (u, inverse), (M, _) = inputs, outputs, numbers
    z, du = torch.empty_like(u), torch.zeros_like(u) if grads[0] is None else grads[0]
    _launch(pe, pr, qe, qr, inverse, du, z, M, back=True)
    p, q = _keys(pe, pr, qe, qr)
    E, R, V = pe.shape[-1], pr.shape[-1], u.shape[-1]
    found = [torch.empty_like(k) for k in (*q, *p)]
    sizes = {"n": u.shape[1], "blocks": inverse.shape[1], "M": M, "E": E, "R": R, "V": V, "C": C, "SLICE": 16}
    sizes |= {"BE": 32, "BR": _width(R), "num_warps": 2, "num_stages": 1}
    grid = (*inverse.shape[:2], triton.cdiv(E, 32))
    with torch.cuda.device(u.device) if u.is_cuda else contextlib.nullcontext():
        gradients[grid](*q, *p, z, u, *found[:2], LATER=False, **sizes)
        gradients[grid](*p, *q, u, z, *found[2:], LATER=True, **sizes)
    dqe, dqr, dpe, dpr = found
    dpe, dpr = dpe + dqe if qe is None else dpe, dpr + dqr if qr is None else dpr
    return [dpe, dpr, *([] if qe is None else [dqe]), *([] if qr is None else [dqr]), z]


solve = differentiable("tensor_memory_solve_triton", _forward, _backward, _fake, solve_composite)
