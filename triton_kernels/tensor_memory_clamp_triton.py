r"""The kernels of the Fast Weight Memory's clamp: one program per sequence, in blocks of C tokens.

G is the Gram matrix of the keys ``[B, T, T]``, c the factors that the clamps leave. What an update u_s is worth in the
state of token t is the product of c over [s, t), so of the blocks i, j and with f_j the product of the factors of j

    scan         old_i = sum over j < i of (product of f between j and i) G_ij past_j, then token by token inside i
    scan_back    the adjoints of tensor_memory_clamp the same way from the last block to the first

where past_j are the updates of j as they are worth at its end. The sum over j is Horner's scheme: multiply by f_j, add
the product with the next block. Inside the block past is a tile in registers, so that a token costs as much as a block.
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
from algornn.triton_kernels.tensor_memory_clamp import input_gradients, scan_composite
from algornn.triton_kernels.tensor_memory_read_triton import C, load, options, store, width


@triton.jit
def _gram(G, row, other, T):
    inside = (row[:, None] < T) & (other[None, :] < T)
    return tl.load(G + row[:, None].to(tl.int64) * T + other[None, :], mask=inside, other=0.0)


@triton.jit
def _horner(x, G, X, Factor, row, k, T, v, V: tl.constexpr, C: tl.constexpr):
    """Multiply by the factor of block k, add what its rows of X are worth to the rows of a block."""
    other = k * C + tl.arange(0, C)
    right = load(X, other, T, v, V)
    return tl.dot(_gram(G, row, other, T), right, x * tl.load(Factor + k), input_precision="ieee")


@triton.jit(do_not_specialize=["T"])
def scan_kernel(G, V_, Beta, First, Squared, Mask, U, C_, Old, Norm, Past, Factor, T, V: tl.constexpr, C: tl.constexpr,
                BV: tl.constexpr):  # fmt: skip
    """The updates u, the factors c and, for the way back, the old values and the squared norms before the clamp."""
    place, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(T, C)
    at, i, v = place * T, tl.arange(0, C), tl.arange(0, BV)
    G += at * T
    Factor += place * blocks
    m = 0.0  # the squared norm of the state
    if Squared is not None:
        m += tl.load(Squared + place)
    for n in range(blocks):
        row = n * C + i
        before = tl.zeros([C, BV], tl.float32)
        if First is not None:
            before += load(First + at * V, row, T, v, V)
        for k in range(n):
            before = _horner(before, G, Past + at * V, Factor, row, k, T, v, V, C)
        past, f = tl.zeros([C, BV], tl.float32), 1.0
        for j in range(tl.minimum(C, T - n * C)):
            t = n * C + j
            g = tl.load(G + t.to(tl.int64) * T + row, mask=row < T, other=0.0)
            old = tl.sum(g[:, None] * past + tl.where(i[:, None] == j, f * before, 0.0), axis=0)
            u = tl.load(V_ + (at + t) * V + v, mask=v < V, other=0.0) - old
            if Beta is not None:
                u *= tl.load(Beta + at + t)
            own = tl.load(G + t.to(tl.int64) * T + t)
            total = m + tl.sum(u * (2.0 * old + own * u), axis=0)
            c = tl.rsqrt(tl.maximum(total, 1.0))
            if Mask is not None:
                c = tl.where(tl.load(Mask + at + t) != 0, c, 1.0)
            past = tl.where(i[:, None] == j, u[None, :], past) * c
            f *= c
            m = total * c * c
            tl.store(U + (at + t) * V + v, u, mask=v < V)
            tl.store(Old + (at + t) * V + v, old, mask=v < V)
            tl.store(C_ + at + t, c)
            tl.store(Norm + at + t, total)
        store(Past + at * V, past, row, T, v, V)
        tl.store(Factor + n, f)
        tl.debug_barrier()  # the next blocks read what other threads have just written


@triton.jit(do_not_specialize=["T"])
def scan_back_kernel(G, U, C_, Old, Norm, Beta, Mask, DU, DC, DNew, DOld, DNorm, DSquared, Later, Factor, T,
                     V: tl.constexpr, C: tl.constexpr, BV: tl.constexpr):  # fmt: skip
    """The adjoints of updates, old values, squared norms and the first squared norm; `_adjoints` says how."""
    place, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(T, C)
    at, i, v = place * T, tl.arange(0, C), tl.arange(0, BV)
    G += at * T
    Factor += place * blocks
    dm, dlog = 0.0, 0.0  # of the carried squared norm, of the later tokens' -log c
    for b in range(blocks):
        n = blocks - 1 - b
        row = n * C + i
        after = tl.zeros([C, BV], tl.float32)
        for k in range(b):
            after = _horner(after, G, Later + at * V, Factor, row, blocks - 1 - k, T, v, V, C)
        later, f = tl.zeros([C, BV], tl.float32), 1.0
        count = tl.minimum(C, T - n * C)
        for k in range(count):
            j = count - 1 - k
            t = n * C + j
            c, norm = tl.load(C_ + at + t), tl.load(Norm + at + t)
            u = tl.load(U + (at + t) * V + v, mask=v < V, other=0.0)
            old = tl.load(Old + (at + t) * V + v, mask=v < V, other=0.0)
            g = tl.load(G + t.to(tl.int64) * T + row, mask=row < T, other=0.0)
            own = tl.load(G + t.to(tl.int64) * T + t)
            clamped = norm >= 1.0
            if Mask is not None:
                clamped = clamped & (tl.load(Mask + at + t) != 0)
            later *= c
            f *= c
            ahead = tl.sum(g[:, None] * later + tl.where(i[:, None] == j, f * after, 0.0), axis=0)
            outer = dlog
            if DC is not None:
                outer -= tl.load(DC + at + t) * c
            dm = tl.where(clamped, outer * 0.5 / norm, dm)
            dnew = ahead + 2.0 * dm * (old + own * u)
            if DU is not None:
                dnew += tl.load(DU + (at + t) * V + v, mask=v < V, other=0.0)
            beta = 1.0
            if Beta is not None:
                beta = tl.load(Beta + at + t)
            dold = 2.0 * dm * u - beta * dnew
            dlog += tl.sum(u * ahead - old * dold, axis=0)
            later = tl.where(i[:, None] == j, dold[None, :], later)
            tl.store(DNew + (at + t) * V + v, dnew, mask=v < V)
            tl.store(DOld + (at + t) * V + v, dold, mask=v < V)
            tl.store(DNorm + at + t, dm)
        store(Later + at * V, later, row, T, v, V)
        tl.store(Factor + n, f)
        tl.debug_barrier()  # the blocks before read what other threads have just written
    tl.store(DSquared + place, dm)


# --- how they are launched -------------------------------------------------------------------------------------------


def _launch(kernel: Any, G: Tensor, arguments: Sequence[Tensor | None], v: Tensor) -> None:
    """One program per sequence; few warps, because a token is a chain of short sums."""
    (B, T, V), BV = v.shape, width(v.shape[-1])
    past, factor = torch.empty_like(v), v.new_empty(B, triton.cdiv(T, C))
    arguments = [None if x is None else x.contiguous() for x in arguments]
    with where_it_is(v):
        kernel[(B,)](G, *arguments, past, factor, T, V=V, C=C, BV=BV, **options(max(1, BV // 32)))


def _forward(
    e: Tensor, r: Tensor, v: Tensor, beta: Tensor | None, first: Tensor | None, squared: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = _fake(e, r, v)
    u, c, old, norm = found
    arguments = (v, beta, first, squared, None if mask is None else mask.int(), u, c, old, norm)
    _launch(scan_kernel, (e @ e.mT) * (r @ r.mT), arguments, v)
    return found


def _fake(e: Tensor, r: Tensor, v: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, V = v.shape
    return v.new_empty(B, T, V), v.new_empty(B, T), v.new_empty(B, T, V), v.new_empty(B, T)


def _backward(grads: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
    e, r, _, beta, _, _, mask = inputs
    u, c, old, norm = outputs
    adjoints = (torch.empty_like(u), torch.empty_like(u), torch.empty_like(c), c.new_empty(len(c)))
    grams = e @ e.mT, r @ r.mT
    arguments = (u, c, old, norm, beta, None if mask is None else mask.int(), *grads[:2], *adjoints)
    _launch(scan_back_kernel, grams[0] * grams[1], arguments, u)
    return input_gradients(adjoints, grams, inputs, outputs)


scan = differentiable("tensor_memory_scan_triton", _forward, _backward, _fake, scan_composite)
