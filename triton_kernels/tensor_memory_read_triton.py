r"""What the kernels of `tensor_memory` share, tables of inner products that are never stored, and its reads.

The rows on the left of a table are queries or writes, those on the right too, each with keys e (x) r. Of the blocks
i on the left and j on the right

    S_ij = w (E_i E_j^T) (R_i R_j^T) where the token on the right counts for the token on the left, elsewhere 0

and with Y on the right, X on the left, an adjoint of S that is the table X Y^T:

    contract           X_i = sum over j of S_ij Y_j: reads, and transposed the gradient of what was written
    key_gradients      dE_i = sum over j of (w (X Y^T) (R_i R_j^T)) E_j, and dR_i with the roles swapped
    weight_gradient    dw_ts = sum over the rows of token t and those of token s of (X Y^T) (E E^T) (R R^T)

Transposed tables are tables of their own, with the sides swapped: a transposed result in a product is miscompiled by
some versions of Triton on Hopper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors, differentiable
from algornn.triton_kernels.sequential_triton import where_it_is
from algornn.triton_kernels.tensor_memory_gram import read_composite

C = 16  # rows per block: with it and the options below nothing spills (see the test that compiles)
SLICE = 16  # columns that are loaded at once where all are summed over


@triton.jit
def load(X, row, n, col, WIDTH: tl.constexpr):
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    return tl.load(X + row[:, None].to(tl.int64) * WIDTH + col[None, :], mask=inside, other=0.0)


@triton.jit
def store(X, tile, row, n, col, WIDTH: tl.constexpr):
    inside = (row[:, None] < n) & (col[None, :] < WIDTH)
    tl.store(X + row[:, None].to(tl.int64) * WIDTH + col[None, :], tile, mask=inside)


@triton.jit
def product(X, Y, row, other, n, m, WIDTH: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr):
    """Inner products of the n rows of X with the m rows of Y, in slices of columns that leave registers free."""
    tile = tl.zeros([C, C], tl.float32)
    # A number of slices that the compiler cannot see: it would unroll the loop and load all of them first.
    for start in range(0, tl.where(m > 0, WIDTH, 0), SLICE):
        col = start + tl.arange(0, SLICE)
        right = tl.trans(load(Y, other, m, col, WIDTH))
        tile = tl.dot(load(X, row, n, col, WIDTH), right, tile, input_precision="ieee")
    return tile


@triton.jit
def weigh(tile, W, left, right, T, ORDER: tl.constexpr):
    """Times w where the token on the right counts for the one on the left, which it does `ORDER` it; elsewhere 0."""
    left, right = left[:, None], right[None, :]
    if W is not None:
        inside = (left < T) & (right < T)
        if ORDER == "after" or ORDER == "from":
            tile *= tl.load(W + right.to(tl.int64) * T + left, mask=inside, other=0.0)
        else:
            tile *= tl.load(W + left.to(tl.int64) * T + right, mask=inside, other=0.0)
    if ORDER == "before":
        return tl.where(right < left, tile, 0.0)
    if ORDER == "upto":
        return tl.where(right <= left, tile, 0.0)
    if ORDER == "after":
        return tl.where(right > left, tile, 0.0)
    if ORDER == "from":
        return tl.where(right >= left, tile, 0.0)
    return tile


@triton.jit
def _first(block, ML: tl.constexpr, MR: tl.constexpr, C: tl.constexpr, ORDER: tl.constexpr):
    """The first block on the right with a row that counts for a block on the left."""
    token = block * C // ML
    if ORDER == "after":
        return (token + 1) * MR // C
    if ORDER == "from":
        return token * MR // C
    return 0


@triton.jit
def _stop(block, m, ML: tl.constexpr, MR: tl.constexpr, C: tl.constexpr, ORDER: tl.constexpr):
    """One more than the last such block."""
    token = (block * C + C - 1) // ML
    if ORDER == "before":
        return tl.cdiv(tl.minimum(token * MR, m), C)
    if ORDER == "upto":
        return tl.cdiv(tl.minimum((token + 1) * MR, m), C)
    return tl.cdiv(m, C)


@triton.jit(do_not_specialize=["n", "m"])
def contract_kernel(LeftE, LeftR, RightE, RightR, W, Y, X, n, m, ML: tl.constexpr, MR: tl.constexpr, E: tl.constexpr,
                    R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr, BV: tl.constexpr,
                    ORDER: tl.constexpr):  # fmt: skip
    """BV columns of one block of X."""
    blocks, T = tl.cdiv(n, C), n // ML
    place, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    at, by = place * n, place * m
    row, col = block * C + tl.arange(0, C), tl.program_id(1) * BV + tl.arange(0, BV)
    if W is not None:
        W += place * T * T
    x = tl.zeros([C, BV], tl.float32)
    for k in range(_first(block, ML, MR, C, ORDER), _stop(block, m, ML, MR, C, ORDER)):
        other = k * C + tl.arange(0, C)
        tile = product(LeftE + at * E, RightE + by * E, row, other, n, m, E, C, SLICE)
        tile *= product(LeftR + at * R, RightR + by * R, row, other, n, m, R, C, SLICE)
        tile = weigh(tile, W, row // ML, other // MR, T, ORDER)
        x = tl.dot(tile, load(Y + by * V, other, m, col, V), x, input_precision="ieee")
    store(X + at * V, x, row, n, col, V)


@triton.jit(do_not_specialize=["n", "m"])
def key_gradients_kernel(LeftE, LeftR, RightE, RightR, W, X, Y, DE, DR, n, m, ML: tl.constexpr, MR: tl.constexpr,
                         E: tl.constexpr, R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr,
                         BE: tl.constexpr, BR: tl.constexpr, SIGN: tl.constexpr, ORDER: tl.constexpr):  # fmt: skip
    """The gradients of the keys of one block on the left.

    BE entity columns per program, because more would not fit into the registers; the first also has the roles.
    """
    blocks, T = tl.cdiv(n, C), n // ML
    place, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    at, by = place * n, place * m
    row, entity, role = block * C + tl.arange(0, C), tl.program_id(1) * BE + tl.arange(0, BE), tl.arange(0, BR)
    if W is not None:
        W += place * T * T
    de, dr = tl.zeros([C, BE], tl.float32), tl.zeros([C, BR], tl.float32)
    for k in range(_first(block, ML, MR, C, ORDER), _stop(block, m, ML, MR, C, ORDER)):
        other = k * C + tl.arange(0, C)
        d = SIGN * product(X + at * V, Y + by * V, row, other, n, m, V, C, SLICE)
        d = weigh(d, W, row // ML, other // MR, T, ORDER)
        by_role = d * product(LeftR + at * R, RightR + by * R, row, other, n, m, R, C, SLICE)
        de = tl.dot(by_role, load(RightE + by * E, other, m, entity, E), de, input_precision="ieee")
        if tl.program_id(1) == 0:
            by_entity = d * product(LeftE + at * E, RightE + by * E, row, other, n, m, E, C, SLICE)
            dr = tl.dot(by_entity, load(RightR + by * R, other, m, role, R), dr, input_precision="ieee")
    store(DE + at * E, de, row, n, entity, E)
    if tl.program_id(1) == 0:
        store(DR + at * R, dr, row, n, role, R)


@triton.jit(do_not_specialize=["n", "m"])
def weight_gradient_kernel(LeftE, LeftR, RightE, RightR, X, Y, DW, n, m, ML: tl.constexpr, MR: tl.constexpr,
                           E: tl.constexpr, R: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr,
                           SIGN: tl.constexpr, ORDER: tl.constexpr):  # fmt: skip
    """The gradient of a block of weights, token by token."""
    T = n // ML
    blocks = tl.cdiv(T, C)
    place, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    at, by = place * n, place * m
    t, s = block * C + tl.arange(0, C), tl.program_id(1) * C + tl.arange(0, C)
    dw = tl.zeros([C, C], tl.float32)
    if tl.program_id(1) <= block:
        for pair in range(ML * MR):
            row, other = t * ML + pair // MR, s * MR + pair % MR
            d = product(X + at * V, Y + by * V, row, other, n, m, V, C, SLICE)
            d *= product(LeftE + at * E, RightE + by * E, row, other, n, m, E, C, SLICE)
            dw += d * product(LeftR + at * R, RightR + by * R, row, other, n, m, R, C, SLICE)
    dw = weigh(SIGN * dw, None, t, s, T, ORDER)
    inside = (t[:, None] < T) & (s[None, :] < T)
    tl.store(DW + (place * T + t[:, None]) * T + s[None, :], dw, mask=inside)


# --- how they are launched -------------------------------------------------------------------------------------------


def width(size: int) -> int:
    """The power of two that a dimension is padded to, the 16 of the smallest product at least."""
    return max(16, triton.next_power_of_2(size))


def options(num_warps: int = 4) -> dict:
    """How a kernel is compiled: NVIDIA's compiler would spill some registers so that more programs run at once."""
    return {"num_warps": num_warps, "num_stages": 1} | ({} if torch.version.hip else {"maxnreg": 255})


class Keys(NamedTuple):
    """One side of a table: entities ``[B, n, E]``, roles ``[B, n, R]``, and how many of the n rows a token has."""

    e: Tensor
    r: Tensor
    M: int

    def dense(self) -> Keys:
        """The same, contiguous."""
        return Keys(self.e.contiguous(), self.r.contiguous(), self.M)


def _sizes(left: Keys, right: Keys, order: str) -> dict:
    (_, n, E), m, R = left.e.shape, right.e.shape[1], left.r.shape[-1]
    return {"n": n, "m": m, "ML": left.M, "MR": right.M, "E": E, "R": R, "C": C, "SLICE": SLICE, "ORDER": order}


def contract(left: Keys, right: Keys, w: Tensor | None, y: Tensor, order: str) -> Tensor:
    """X ``[B, n, V]`` of Y ``[B, m, V]``; w ``[B, T, T]``, of the writes in their order, is transposed where needed."""
    (B, n, _), V = left.e.shape, y.shape[-1]
    x = y.new_empty(B, n, V)
    BV = min(32, width(V))
    with where_it_is(y):
        contract_kernel[(B * triton.cdiv(n, C), triton.cdiv(V, BV))](
            *left[:2], *right[:2], w, y, x, V=V, BV=BV, **_sizes(left, right, order), **options()
        )
    return x


def key_gradients(
    left: Keys, right: Keys, w: Tensor | None, x: Tensor, y: Tensor, order: str, sign: float = 1.0
) -> list[Tensor]:
    """The gradients of the keys on the left for the adjoint `sign` X Y^T of the table; w as in `contract`."""
    found = [torch.empty_like(left.e), torch.empty_like(left.r)]
    (B, n, E), R = left.e.shape, left.r.shape[-1]
    sizes = _sizes(left, right, order) | {"V": x.shape[-1], "BE": 32, "BR": width(R), "SIGN": sign}
    with where_it_is(x):
        key_gradients_kernel[(B * triton.cdiv(n, C), triton.cdiv(E, 32))](
            *left[:2], *right[:2], w, x, y, *found, **sizes, **options()
        )
    return found


def weight_gradient(left: Keys, right: Keys, x: Tensor, y: Tensor, order: str, sign: float = 1.0) -> Tensor:
    """The gradient of w ``[B, T, T]`` for the adjoint `sign` X Y^T of the table; the sides have the same tokens."""
    B, n, _ = left.e.shape
    T = n // left.M
    dw, blocks = x.new_empty(B, T, T), triton.cdiv(T, C)
    sizes = _sizes(left, right, order) | {"V": x.shape[-1], "SIGN": sign}
    with where_it_is(x):
        weight_gradient_kernel[(B * blocks, blocks)](*left[:2], *right[:2], x, y, dw, **sizes, **options())
    return dw


# --- reads -----------------------------------------------------------------------------------------------------------


def _read(
    e: Tensor, r: Tensor, entity: Tensor, role: Tensor, update: Tensor, w: Tensor | None, M: int, causal: int
) -> tuple[Tensor]:
    queries, writes = Keys(e, r, 1).dense(), Keys(entity, role, M).dense()
    w = None if w is None else w.contiguous()
    return (contract(queries, writes, w, update.contiguous(), "upto" if causal else "all"),)


def _fake(
    e: Tensor, r: Tensor, entity: Tensor, role: Tensor, update: Tensor, w: Tensor | None, M: int, causal: int
) -> tuple[Tensor]:
    return (update.new_empty(*e.shape[:2], update.shape[-1]),)


def _read_backward(
    grads: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    (e, r, entity, role, update, w), (M, causal) = inputs, numbers
    queries, writes = Keys(e, r, 1).dense(), Keys(entity, role, M).dense()
    order, swapped = ("upto", "from") if causal else ("all", "all")
    dout = torch.zeros_like(outputs[0]) if grads[0] is None else grads[0]
    update, w = update.contiguous(), None if w is None else w.contiguous()
    found = key_gradients(queries, writes, w, dout, update, order)
    found += key_gradients(writes, queries, w, update, dout, swapped)
    found.append(contract(writes, queries, w, dout, swapped))
    return found if w is None else [*found, weight_gradient(queries, writes, dout, update, order)]


read = differentiable("tensor_memory_read_triton", _read, _read_backward, _fake, read_composite)
