r"""The kernels of `delta_rule`: most of them parallel over blocks of tokens, two that carry a state.

In a block of C tokens, with w_ts the product of the decays over (s, t], g_t the one over [1, t], and S, D the state
before the block and the gradient of the state after it:

    prepare            inverse = (I + A)^-1, A = beta (E K^T) w below the diagonal; seen = (Q K^T) w up to it
    scan               U = inverse beta (V - g E S),  O = seen U + g Q S,  S <- g_C S + K^T (w_C U)
    scan_back          Z = inverse^T (seen^T dO + w_C K D),  D <- g_C D + (g Q)^T dO - (g beta E)^T Z
    gradients          of a block's inputs from S, D, U and Z; decay_gradient: of its decays

Products of decays are running products, so that a decay of 0 is exact. The scan has no decays in it but g and w_C.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors

DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _tokens(n, T, H, C: tl.constexpr):
    """The rows of the tokens of block n in [B, T, H, ...], and which of them exist. Axis 0 of the grid is B * H."""
    place = tl.program_id(0).to(tl.int64)
    t = n * C + tl.arange(0, C)
    return (place // H * T + t) * H + place % H, t < T


@triton.jit
def _load(X, row, valid, col, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of rows of X, in the dtype to compute with from the start: the interpreter's bfloat16 is wrong."""
    inside = valid[:, None] & (col[None, :] < WIDTH)
    return tl.load(X + row[:, None] * WIDTH + col[None, :], mask=inside, other=0.0).to(DTYPE)


@triton.jit
def _store(X, tile, row, valid, col, WIDTH: tl.constexpr):
    inside = valid[:, None] & (col[None, :] < WIDTH)
    tl.store(X + row[:, None] * WIDTH + col[None, :], tile.to(X.dtype.element_ty), mask=inside)


@triton.jit
def _scalars(X, row, valid, other: tl.constexpr):
    return tl.load(X + row, mask=valid, other=other)


@triton.jit
def _weights(d, C: tl.constexpr):
    """Products w [t, s] of decays [C]: running products, 0 above the diagonal."""
    i = tl.arange(0, C)
    factor = tl.where(i[:, None] > i[None, :], d[:, None], 1.0)
    return tl.where(i[:, None] >= i[None, :], tl.cumprod(factor, axis=0), 0.0)


@triton.jit
def _weights_transposed(d, C: tl.constexpr):
    """The same as [s, t]: computed, because a transposed tile in a product is miscompiled by some Triton on Hopper."""
    i = tl.arange(0, C)
    factor = tl.where(i[:, None] < i[None, :], d[None, :], 1.0)
    return tl.where(i[:, None] <= i[None, :], tl.cumprod(factor, axis=1), 0.0)


@triton.jit
def _inverse(A, C: tl.constexpr):
    """(I + A)^-1 for A below the diagonal, by forward substitution: accurate for keys of any size."""
    i = tl.arange(0, C)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for j in range(C - 1):
        column = tl.sum(tl.where(i[None, :] == j, A, 0.0), axis=1)
        line = tl.sum(tl.where(i[:, None] == j, inverse, 0.0), axis=0)
        inverse -= column[:, None] * line[None, :]
    return inverse


@triton.jit(do_not_specialize=["T"])
def prepare(Q, K_, E, Beta, Decay, Inverse, Seen, First, Last, T, N, H,
            K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """Per block: the inverse, `seen`, and the weights g and w_C, stored as [B * H, N, C, ...]."""
    n = tl.program_id(1)
    row, valid = _tokens(n, T, H, C)
    i = tl.arange(0, C)
    everywhere = i < C
    block = (tl.program_id(0).to(tl.int64) * N + n) * C + i
    seen = tl.zeros([C, C], tl.float32)
    A = tl.zeros([C, C], tl.float32)
    for start in range(0, K, BK):
        col = start + tl.arange(0, BK)
        k = tl.trans(_load(K_, row, valid, col, K, DOT))
        seen = tl.dot(_load(Q, row, valid, col, K, DOT), k, seen, input_precision=HOW)
        if E is not None:
            A = tl.dot(_load(E, row, valid, col, K, DOT), k, A, input_precision=HOW)
    if Decay is not None:
        d = _scalars(Decay, row, valid, 1.0)
        w = _weights(d, C)
        tl.store(First + block, tl.cumprod(d, axis=0))
        tl.store(Last + block, tl.sum(tl.where(i[:, None] == C - 1, w, 0.0), axis=0))
        seen, A = seen * w, A * w
    _store(Seen, tl.where(i[:, None] >= i[None, :], seen, 0.0), block, everywhere, i, C)
    if E is not None:
        A = tl.where(i[:, None] > i[None, :], A * _scalars(Beta, row, valid, 0.0)[:, None], 0.0)
        _store(Inverse, _inverse(A, C), block, everywhere, i, C)


@triton.jit(do_not_specialize=["T"])
def scan(Q, K_, V_, E, Beta, Initial, Inverse, Seen, First, Last, Out, Final, U, States, T, N, H,
         K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
         DECAY: tl.constexpr, DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """From block to block with all keys and BV values of the state; stores the state before each block, and U."""
    place = tl.program_id(0).to(tl.int64)
    key, col, i = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    everywhere = i < C
    state = tl.zeros([BK, BV], tl.float32)
    if Initial is not None:
        state += _load(Initial, place * K + key, key < K, col, V, tl.float32)
    for n in range(N):
        row, valid = _tokens(n, T, H, C)
        block = (place * N + n) * C + i
        _store(States, state, (place * N + n) * K + key, key < K, col, V)
        u = _load(V_, row, valid, col, V, DOT).to(tl.float32)
        held = state.to(DOT)
        out = tl.dot(_load(Q, row, valid, key, K, DOT), held, input_precision=HOW)
        if E is not None:
            erased = tl.dot(_load(E, row, valid, key, K, DOT), held, input_precision=HOW)
            u -= erased * tl.load(First + block)[:, None] if DECAY else erased
        u *= _scalars(Beta, row, valid, 0.0)[:, None]
        if E is not None:
            u = tl.dot(_load(Inverse, block, everywhere, i, C, DOT), u.to(DOT), input_precision=HOW)
        _store(U, u, row, valid, col, V)
        if DECAY:
            out *= tl.load(First + block)[:, None]
        out = tl.dot(_load(Seen, block, everywhere, i, C, DOT), u.to(DOT), out, input_precision=HOW)
        _store(Out, out, row, valid, col, V)
        if DECAY:
            state *= tl.load(First + (place * N + n) * C + C - 1)
            u *= tl.load(Last + block)[:, None]
        k = tl.trans(_load(K_, row, valid, key, K, DOT))
        state = tl.dot(k, u.to(DOT), state, input_precision=HOW)
    _store(Final, state, place * K + key, key < K, col, V)


@triton.jit(do_not_specialize=["T"])
def scan_back(Q, K_, E, Beta, Inverse, Seen, First, Last, DOut, DFinal, DInitial, Z, Adjoints, T, N, H,
              K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
              DECAY: tl.constexpr, DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """The scan in reverse, with D in the place of the state; stores D after each block, and Z."""
    place = tl.program_id(0).to(tl.int64)
    key, col, i = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV), tl.arange(0, C)
    everywhere = i < C
    D = tl.zeros([BK, BV], tl.float32)
    if DFinal is not None:
        D += _load(DFinal, place * K + key, key < K, col, V, tl.float32)
    for m in range(N):
        n = N - 1 - m
        row, valid = _tokens(n, T, H, C)
        block = (place * N + n) * C + i
        _store(Adjoints, D, (place * N + n) * K + key, key < K, col, V)
        z = tl.dot(_load(K_, row, valid, key, K, DOT), D.to(DOT), input_precision=HOW)
        dout = _load(DOut, row, valid, col, V, DOT)
        if DECAY:
            z *= tl.load(Last + block)[:, None]
            D *= tl.load(First + (place * N + n) * C + C - 1)
        z = tl.dot(tl.trans(_load(Seen, block, everywhere, i, C, DOT)), dout, z, input_precision=HOW)
        if E is not None:
            inverse = tl.trans(_load(Inverse, block, everywhere, i, C, DOT))
            z = tl.dot(inverse, z.to(DOT), input_precision=HOW)
        _store(Z, z, row, valid, col, V)
        if DECAY:
            first = tl.load(First + block)[:, None]
            dout = (dout.to(tl.float32) * first).to(DOT)
            z *= first
        D = tl.dot(tl.trans(_load(Q, row, valid, key, K, DOT)), dout, D, input_precision=HOW)
        if E is not None:
            z *= -_scalars(Beta, row, valid, 0.0)[:, None]
            D = tl.dot(tl.trans(_load(E, row, valid, key, K, DOT)), z.to(DOT), D, input_precision=HOW)
    if DInitial is not None:
        _store(DInitial, D, place * K + key, key < K, col, V)


@triton.jit
def _weight_gradient(Q, K_, E, U, Z, DOut, row, valid, row_s, valid_s, beta, K: tl.constexpr, V: tl.constexpr,
                     C: tl.constexpr, SLICE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
                     DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """The gradient of the weights w_ts inside the block for the tokens s of a slice, as if none were 0 by order."""
    seen, read = tl.zeros([C, SLICE], tl.float32), tl.zeros([C, SLICE], tl.float32)
    zu, erased = tl.zeros([C, SLICE], tl.float32), tl.zeros([C, SLICE], tl.float32)
    for start in range(0, V, BV):
        col = start + tl.arange(0, BV)
        u = tl.trans(_load(U, row_s, valid_s, col, V, DOT))
        seen = tl.dot(_load(DOut, row, valid, col, V, DOT), u, seen, input_precision=HOW)
        if E is not None:
            zu = tl.dot(_load(Z, row, valid, col, V, DOT), u, zu, input_precision=HOW)
    for start in range(0, K, BK):
        key = start + tl.arange(0, BK)
        k = tl.trans(_load(K_, row_s, valid_s, key, K, DOT))
        read = tl.dot(_load(Q, row, valid, key, K, DOT), k, read, input_precision=HOW)
        if E is not None:
            erased = tl.dot(_load(E, row, valid, key, K, DOT), k, erased, input_precision=HOW)
    return seen * read - zu * erased * beta[:, None]


@triton.jit(do_not_specialize=["T"])
def decay_gradient(Q, K_, E, Beta, Decay, U, Z, DOut, DFirst, DLast, DDecay, T, N, H,
                   K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SLICE: tl.constexpr, BK: tl.constexpr,
                   BV: tl.constexpr, DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """Sum over t >= j > s of dw_ts w_tj w_(j-1)s, and the same for g. No quotient is taken: exact at decay 0."""
    n, i = tl.program_id(1), tl.arange(0, C)
    row, valid = _tokens(n, T, H, C)
    block = (tl.program_id(0).to(tl.int64) * N + n) * C
    beta = _scalars(Beta, row, valid, 0.0)
    before = tl.load(Decay + row - H, mask=valid & (i > 0), other=1.0)
    inner = tl.load(DFirst + block + i)[:, None] * tl.cumprod(before, axis=0)[None, :]
    for start in range(0, C, SLICE):
        s = start + tl.arange(0, SLICE)
        row_s, valid_s = _tokens(n * (C // SLICE) + start // SLICE, T, H, SLICE)
        dw = _weight_gradient(Q, K_, E, U, Z, DOut, row, valid, row_s, valid_s, beta, K, V, C, SLICE, BK, BV, DOT, HOW)
        dw = tl.where(i[:, None] > s[None, :], dw, 0.0)
        dw += tl.where(i[:, None] == C - 1, tl.load(DLast + block + s)[None, :], 0.0)
        factor = tl.where(s[:, None] + 1 < i[None, :], before[None, :], 1.0)
        until = tl.where(s[:, None] < i[None, :], tl.cumprod(factor, axis=1), 0.0)  # w_(j-1)s, as [s, j]
        inner = tl.dot(dw, until, inner, input_precision=HOW)
    w = _weights(_scalars(Decay, row, valid, 1.0), C)
    tl.store(DDecay + row, tl.sum(w * inner, axis=0), mask=valid)


@triton.jit
def _products(U, Z, DOut, V_, DV, beta, row, valid, ERASE: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
              BV: tl.constexpr, DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """Compute dO U^T and Z U^T up to and below the diagonal, their transposes, and the sum of Z V; store dV."""
    i = tl.arange(0, C)
    seen, seen_t = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    zu, zu_t = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    zv = tl.zeros([C], tl.float32)
    for start in range(0, V, BV):
        col = start + tl.arange(0, BV)
        u, dout = _load(U, row, valid, col, V, DOT), _load(DOut, row, valid, col, V, DOT)
        z = _load(Z, row, valid, col, V, DOT)
        seen = tl.dot(dout, tl.trans(u), seen, input_precision=HOW)
        seen_t = tl.dot(u, tl.trans(dout), seen_t, input_precision=HOW)
        if ERASE:
            zu = tl.dot(z, tl.trans(u), zu, input_precision=HOW)
            zu_t = tl.dot(u, tl.trans(z), zu_t, input_precision=HOW)
        z = z.to(tl.float32)
        zv += tl.sum(z * _load(V_, row, valid, col, V, DOT).to(tl.float32), axis=1)
        _store(DV, z * beta[:, None], row, valid, col, V)
    seen, zu = tl.where(i[:, None] >= i[None, :], seen, 0.0), tl.where(i[:, None] > i[None, :], zu, 0.0)
    seen_t, zu_t = tl.where(i[:, None] <= i[None, :], seen_t, 0.0), tl.where(i[:, None] < i[None, :], zu_t, 0.0)
    return seen, seen_t, zu, zu_t, zv


@triton.jit
def _reads(U, Z, DOut, States, Adjoints, row, valid, at, key, ERASE: tl.constexpr, DECAY: tl.constexpr,
           K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
           DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """Compute dO S^T, Z S^T and U D^T for BK keys, and the sum of S D."""
    read, erased = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    written = tl.zeros([C, BK], tl.float32)
    through = 0.0
    for start in range(0, V, BV):
        col = start + tl.arange(0, BV)
        S = _load(States, at + key, key < K, col, V, DOT)
        D = _load(Adjoints, at + key, key < K, col, V, DOT)
        read = tl.dot(_load(DOut, row, valid, col, V, DOT), tl.trans(S), read, input_precision=HOW)
        written = tl.dot(_load(U, row, valid, col, V, DOT), tl.trans(D), written, input_precision=HOW)
        if ERASE:
            erased = tl.dot(_load(Z, row, valid, col, V, DOT), tl.trans(S), erased, input_precision=HOW)
        if DECAY:
            through += tl.sum(S.to(tl.float32) * D.to(tl.float32))
    return read, erased, written, through


@triton.jit(do_not_specialize=["T"])
def gradients(Q, K_, V_, E, Beta, Decay, First, Last, U, Z, States, Adjoints, DOut,
              DQ, DK, DV, DE, DBeta, DFirst, DLast, T, N, H,
              K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
              DOT: tl.constexpr, HOW: tl.constexpr):  # fmt: skip
    """The gradients of the inputs of one block."""
    n, i = tl.program_id(1), tl.arange(0, C)
    row, valid = _tokens(n, T, H, C)
    block = tl.program_id(0).to(tl.int64) * N + n
    beta = _scalars(Beta, row, valid, 0.0)
    dfirst, dlast = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    first, last = 1.0, 1.0
    seen, seen_t, zu, zu_t, dbeta = _products(
        U, Z, DOut, V_, DV, beta, row, valid, E is not None, V, C, BV, DOT, HOW)  # fmt: skip
    if Decay is not None:
        d = _scalars(Decay, row, valid, 1.0)
        w, w_t = _weights(d, C), _weights_transposed(d, C)
        seen, seen_t, zu, zu_t = seen * w, seen_t * w_t, zu * w, zu_t * w_t
        first, last = tl.load(First + block * C + i)[:, None], tl.load(Last + block * C + i)[:, None]
    for start in range(0, K, BK):
        key = start + tl.arange(0, BK)
        read, erased, written, through = _reads(
            U, Z, DOut, States, Adjoints, row, valid, block * K, key, E is not None, Decay is not None, K, V, C, BK, BV,
            DOT, HOW)  # fmt: skip
        q, k = _load(Q, row, valid, key, K, DOT), _load(K_, row, valid, key, K, DOT)
        dq = tl.dot(seen.to(DOT), k, read * first, input_precision=HOW)
        dk = tl.dot(seen_t.to(DOT), q, written * last, input_precision=HOW)
        _store(DQ, dq, row, valid, key, K)
        if Decay is not None:
            dfirst += tl.sum(q.to(tl.float32) * read, axis=1) + tl.where(i == C - 1, through, 0.0)
            dlast += tl.sum(k.to(tl.float32) * written, axis=1)
        if E is not None:
            e = _load(E, row, valid, key, K, DOT)
            wide = e.to(tl.float32) * beta[:, None]
            de = tl.dot((-zu).to(DOT), k, -erased * first, input_precision=HOW)
            dk = tl.dot((-zu_t).to(DOT), wide.to(DOT), dk, input_precision=HOW)
            _store(DE, de * beta[:, None], row, valid, key, K)
            dbeta += tl.sum(e.to(tl.float32) * de, axis=1)
            if Decay is not None:
                dfirst -= tl.sum(wide * erased, axis=1)
        _store(DK, dk, row, valid, key, K)
    tl.store(DBeta + row, dbeta, mask=valid)
    if Decay is not None:
        tl.store(DFirst + block * C + i, dfirst)
        tl.store(DLast + block * C + i, dlast)


# --- how they are launched -------------------------------------------------------------------------------------------


def refusal(T: int, K: int) -> str | None:
    """Why the kernels do not take these sizes, or None."""
    if K > 256:
        return f"the kernels hold at most 256 keys per head, got {K}"
    if T > 65535 * 32:
        return f"the kernels take at most {65535 * 32} tokens at once, got {T}"
    return None


def chunk(K: int, dtype: torch.dtype) -> int:
    """Tokens per block: as many as leave room in the registers."""
    return 64 if dtype != torch.float32 and K <= 128 else 32


class _Launch:
    """How the kernels are launched for some sizes: fixed, so that runs repeat to the bit, and nothing spills."""

    def __init__(self, k: Tensor, v: Tensor, states: Tensor, C: int) -> None:
        B, T, H, K = k.shape
        V, N = v.shape[-1], states.shape[1]
        half, amd = v.dtype != torch.float32, torch.version.hip is not None
        small = 32 if half else 16  # products in three TF32 ones take registers for as many copies of their operands
        BV = min(small, max(16, triton.next_power_of_2(V)))
        wide = max(16, triton.next_power_of_2(K))
        # The interpreter's bfloat16 is wrong; AMD has no products of three TF32 ones.
        dot = DTYPES[v.dtype] if half and os.environ.get("TRITON_INTERPRET") != "1" else tl.float32
        sizes = {"T": T, "N": N, "H": H, "K": K, "C": C, "DOT": dot, "HOW": "ieee" if amd else "tf32x3"}
        self.blocks, self.scans = (B * H, N), (B * H, triton.cdiv(V, BV))
        self.prepare = sizes | {"BK": min(2 * small, wide), "num_warps": 8}
        self.scan = sizes | {"V": V, "BK": wide, "BV": BV, "num_warps": 8, "num_stages": 1}
        plain = sizes | {"V": V, "BV": 16, "num_stages": 1, "HOW": "ieee"}
        many = not half and wide > 32  # float32 with many keys
        self.gradients = plain | {"BK": 32 if many and not amd else 16, "num_warps": 8 if half or many else 4}
        self.decay = plain | {"BK": 16, "SLICE": 16, "num_warps": 4 if many else 8}
        self.device = torch.cuda.device(v.device) if v.is_cuda else contextlib.nullcontext()


def forward(x: Sequence, kept: Sequence[Tensor]) -> None:
    """Fill what `delta_rule._fake` lays out from the arguments of the operator."""
    q, k, v, beta, decay, erase, initial_state = x
    out, final, inverse, seen, first, last, u, states = kept
    how = _Launch(k, v, states, seen.shape[-1])
    with how.device:
        prepare[how.blocks](q, k, erase, beta, decay, inverse, seen, first, last, **how.prepare)
        scan[how.scans](
            q, k, v, erase, beta, initial_state, inverse, seen, first, last, out, final, u, states,
            DECAY=decay is not None, **how.scan,
        )  # fmt: skip


def backward(grads: Tensors, x: Sequence, kept: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the arguments that were given."""
    q, k, v, beta, decay, erase, _ = x
    _, _, inverse, seen, first, last, u, states = kept
    how = _Launch(k, v, states, seen.shape[-1])
    dout = torch.zeros_like(v) if grads[0] is None else grads[0]
    found = [None if y is None else torch.empty_like(y) for y in x]
    dq, dk, dv, dbeta, ddecay, derase, dinitial = found
    z, adjoints, dfirst, dlast = (torch.empty_like(y) for y in (u, states, first, last))
    with how.device:
        scan_back[how.scans](
            q, k, erase, beta, inverse, seen, first, last, dout, grads[1], dinitial, z, adjoints,
            DECAY=decay is not None, **how.scan,
        )  # fmt: skip
        gradients[how.blocks](
            q, k, v, erase, beta, decay, first, last, u, z, states, adjoints, dout,
            dq, dk, dv, derase, dbeta, dfirst, dlast, **how.gradients,
        )  # fmt: skip
        if decay is not None:
            decay_gradient[how.blocks](q, k, erase, beta, decay, u, z, dout, dfirst, dlast, ddecay, **how.decay)
    return [y for y in found if y is not None]
