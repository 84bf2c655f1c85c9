r"""The Gram form of `tensor_memory`: all updates of a segment from the inner products of its keys.

With the rows of a segment stacked (token-major, M rows a token), :math:`P, Q` its write and erase keys,
:math:`w_{ts}` the decay from token s to token t and L the part of :math:`B (w \odot Q P^\top)` whose columns are
earlier tokens,

.. math:: (I + L) U = B (V - g \odot Q^\top S_0), \qquad S_t = g_t S_0 + \sum_{s \le t} w_{ts} P_s^\top U_s

and :math:`Q P^\top` of tensor-product keys is the product of two small Gram matrices. The clamp makes L depend on one
number per token, the norm, which obeys a scalar recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from algornn.triton_kernels.chunks import decay_weights, not_before
from algornn.triton_kernels.dispatch import Tensors, differentiable, under_transform
from algornn.triton_kernels.tensor_memory_clamp import clamped_scan, scan, scan_composite
from algornn.triton_kernels.tensor_memory_state import build_state, read_state

Pair = tuple[Tensor, Tensor]
ROWS_PER_BLOCK = 48  # rows that one triangular solve takes: solves are slow on more, products on fewer
ROWS_PER_SEGMENT = 512  # rows at least until the state is built and carried: what keeps cost and memory linear in T


class Inputs(NamedTuple):
    """The arguments of `tensor_memory`: accumulation dtype, masked tokens neutral, `erase` None for no erase-read."""

    write: Pair
    values: Tensor
    erase: Pair | None
    beta: Tensor | None
    decay: Tensor | None
    clamp: bool
    initial_state: Tensor | None
    mask: Tensor | None

    def tokens(self, span: slice, state: Tensor | None) -> Inputs:
        """Return the arguments of a span of tokens that starts from `state`."""
        write = (self.write[0][:, span], self.write[1][:, span])
        erase: Pair | None = None
        if self.erase is not None:  # a shared tensor stays shared
            entity, role = (
                new if q is p else q[:, span] for q, p, new in zip(self.erase, self.write, write, strict=True)
            )
            erase = (entity, role)
        beta, decay, mask = (None if y is None else y[:, span] for y in (self.beta, self.decay, self.mask))
        return Inputs(write, self.values[:, span], erase, beta, decay, self.clamp, state, mask)

    def own_keys(self) -> bool:
        """Whether the writes erase with their own keys."""
        return self.erase is not None and all(q is p for q, p in zip(self.erase, self.write, strict=True))

    def fast_weight_memory(self) -> bool:
        """Whether the clamp is that of the Fast Weight Memory: one write that erases with its own key, no decay."""
        return self.values.shape[2] == 1 and self.own_keys() and self.decay is None


class Segment(NamedTuple):
    """What some tokens left in the memory.

    Attributes:
        entity: write entities ``[B, T, M, E]``, zero at masked tokens.
        role: write roles ``[B, T, M, R]``.
        update: what each write added, u ``[B, T, M, V]``.
        weight: w ``[B, T, T]`` and g ``[B, T]``; None: all 1.
        first_state: the state before ``[B, E, R, V]``; None: zeros.
        read_writes: how reads of the writes are computed.
    """

    entity: Tensor
    role: Tensor
    update: Tensor
    weight: Pair | None
    first_state: Tensor | None
    read_writes: Callable[..., tuple[Tensor, ...]]

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return entities, roles and updates with a row per write, ``[B, TM, ...]``."""
        return self.entity.flatten(1, 2), self.role.flatten(1, 2), self.update.flatten(1, 2)

    def row_weights(self) -> Tensor:
        """The weights of the written rows in the last state, ``[B, TM, 1]``."""
        return self.weight[0][:, -1].repeat_interleave(self.entity.shape[2], dim=1)[..., None]  # type: ignore[index]

    def read(self, e: Tensor, r: Tensor, causal: bool) -> Tensor:
        """Read the last state, or with `causal` that after each token, with keys e ``[B, N, E]``, r ``[B, N, R]``."""
        entity, role, update = self.rows()
        w = self.weight[0] if self.weight is not None and causal else None
        if self.weight is not None and not causal:
            update = update * self.row_weights()
        read = read_composite if under_transform() or not (e.numel() and update.numel()) else self.read_writes
        out = read(e, r, entity, role, update, w, self.entity.shape[2], int(causal))[0]
        if self.first_state is None:
            return out
        first = read_state(self.first_state, e, r)
        if self.weight is not None:
            first = first * (self.weight[1] if causal else self.weight[1][:, -1:])[..., None]
        return out + first

    def state(self) -> Tensor:
        """The state after the last token, ``[B, E, R, V]``."""
        entity, role, update = self.rows()
        if self.weight is not None:
            entity = entity * self.row_weights()
        state = build_state(entity, role, update)
        if self.first_state is None:
            return state
        if self.weight is None:
            return state + self.first_state
        return state.addcmul(self.first_state, self.weight[1][:, -1, None, None, None])


class Form(NamedTuple):
    """The parts of the Gram form that have kernels, and some of them a hand-written backward in torch."""

    solve: Callable[..., tuple[Tensor, ...]]
    scan: Callable[..., tuple[Tensor, ...]]
    read: Callable[..., tuple[Tensor, ...]]


def gram_form(x: Inputs, chunk: int | None, form: Form | None = None) -> list[Segment]:
    """Run the memory segment by segment; without a `form` in torch, which under a transform is plain operations."""
    T, M = x.values.shape[1:3]
    if form is None:
        composite = Form(solve_composite, scan_composite, read_composite)
        form = composite if under_transform() else Form(solve, scan, read_composite)
    block = chunk or max(1, ROWS_PER_BLOCK // M)
    # Below as many rows as the state has keys the Gram form is cheaper than the state; the clamp's weights are T x T.
    rows = ROWS_PER_SEGMENT if x.clamp else max(ROWS_PER_SEGMENT, x.write[0].shape[-1] * x.write[1].shape[-1])
    length = max(block, rows // M)
    segments: list[Segment] = []
    for start in range(0, max(T, 1), length):
        state = segments[-1].state() if segments else x.initial_state
        segments.append(_segment(x.tokens(slice(start, start + length), state), block, form))
    return segments


def _segment(x: Inputs, block: int, form: Form) -> Segment:
    v = x.values
    weight: Pair | None = None
    if not v.shape[1]:
        u = v
    elif x.clamp:
        u, weight = _clamped(x, form)
    else:
        weight = None if x.decay is None else decay_weights(x.decay)
        u = _solved(x, x.erase, weight, block, form) if x.erase else v if x.beta is None else v * x.beta[..., None]
    return Segment(*x.write, u, weight, x.initial_state, form.read)


def _solved(x: Inputs, erase: Pair, weight: Pair | None, block: int, form: Form) -> Tensor:
    """Return the updates of writes that first erase, without the clamp."""
    y, role = x.values, erase[1]
    if x.initial_state is not None:
        first = read_state(x.initial_state, *erase)
        y = y - (first if weight is None else first * weight[1][..., None, None])
    if x.beta is not None:  # L = B Q P^T: the strength of a write scales the role of its erase key
        y, role = y * x.beta[..., None], role * x.beta[..., None]
    pe, pr = (p.flatten(1, 2) for p in x.write)
    qe = None if erase[0] is x.write[0] else erase[0].flatten(1, 2)
    qr = None if role is x.write[1] else role.flatten(1, 2)
    solve = form.solve if y.numel() else solve_composite
    w, M = None if weight is None else weight[0], y.shape[2]
    return solve(pe, pr, qe, qr, y.flatten(1, 2), w, M, block)[0].view_as(y)


def _clamped(x: Inputs, form: Form) -> tuple[Tensor, Pair]:
    """Return the updates and the weights that clamps and decays leave."""
    state, write = x.initial_state, x.write
    first: Pair | None = None
    squared = None
    if state is not None:
        at_write = read_state(state, *write)
        first = (at_write, at_write if x.erase is None or x.own_keys() else read_state(state, *x.erase))
        squared = state.square().sum((1, 2, 3))
    if x.fast_weight_memory():
        e, r, v, beta = (None if y is None else y[:, :, 0] for y in (*write, x.values, x.beta))
        run: Callable[..., tuple[Tensor, ...]] = form.scan if x.values.numel() else scan_composite
        u, c = run(e, r, v, beta, None if first is None else first[0][:, :, 0], squared, x.mask)[:2]
        u = u[:, :, None]
    else:
        u, c = clamped_scan(write, x.erase, x.values, x.beta, x.decay, x.mask, first, squared)
    products, firsts = decay_weights(c if x.decay is None else c * x.decay)
    return u, (products * c[:, None], firsts)


def read_composite(
    e: Tensor, r: Tensor, entity: Tensor, role: Tensor, update: Tensor, w: Tensor | None, M: int, causal: int
) -> tuple[Tensor]:
    r"""Read what was written: :math:`\sum_{sm} w_{ts} (e_t \cdot e_{sm})(r_t \cdot r_{sm}) u_{sm}`, all s or s up to t.

    Args:
        e: entities of the queries ``[B, N, E]``.
        r: roles of the queries ``[B, N, R]``.
        entity: write entities ``[B, n, E]``, n = TM.
        role: write roles ``[B, n, R]``.
        update: what each write added ``[B, n, V]``.
        w: decay weights ``[B, T, T]``, for causal reads alone; None: 1.
        M: rows per token.
        causal: 1 where query t reads the state after token t, 0 where all read the last.
    """
    score = (e @ entity.mT) * (r @ role.mT)
    score = score if w is None else score * w.repeat_interleave(M, dim=2)
    if causal:
        token = torch.arange(e.shape[1], device=e.device)
        score = score.masked_fill(token[:, None] < token.repeat_interleave(M), 0)
    return (score @ update,)


# The triangular system (I + L) U = Y, L = w (Q_e P_e^T) (Q_r P_r^T) where the column's token is before the row's.


def _system(
    pe: Tensor, pr: Tensor, qe: Tensor, qr: Tensor, w: Tensor | None, M: int, start: int, stop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows start to stop of L, as if all columns up to stop were before them, and the two Gram matrices of both."""
    by_entity, by_role = qe[:, start:stop] @ pe[:, :stop].mT, qr[:, start:stop] @ pr[:, :stop].mT
    L = by_entity * by_role
    return L if w is None else L * _row_weights(w, M, start, stop), by_entity, by_role


def _square(L: Tensor, M: int, start: int) -> Tensor:
    """The columns of L from start on, 0 where the column's token is not before the row's."""
    return L[:, :, start:].masked_fill(not_before(L.shape[1] // M, L.device, rows=M), 0)


def _row_weights(w: Tensor, M: int, start: int, stop: int) -> Tensor:
    return w[:, start // M : stop // M, : stop // M].repeat_interleave(M, 1).repeat_interleave(M, 2)


def solve_composite(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor]:
    """Solve the system by block forward substitution, in operations that can be differentiated.

    Args:
        pe: write entities ``[B, n, E]``, n = TM.
        pr: write roles ``[B, n, R]``.
        qe: erase entities; None: the write entities.
        qr: erase roles times beta; None: the write roles.
        y: right-hand sides ``[B, n, V]``.
        w: decay weights ``[B, T, T]``; None: 1.
        M: rows per token.
        block: tokens per block.
    """
    qe, qr = pe if qe is None else qe, pr if qr is None else qr
    solved: list[Tensor] = []
    for start in range(0, y.shape[1], block * M):
        stop = min(start + block * M, y.shape[1])
        L, rhs = _system(pe, pr, qe, qr, w, M, start, stop)[0], y[:, start:stop]
        if solved:
            rhs = rhs - L[:, :, :start] @ torch.cat(solved, 1)
        solved.append(torch.linalg.solve_triangular(_square(L, M, start), rhs, upper=False, unitriangular=True))
    return (torch.cat(solved, 1),)


def _solve_forward(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    """The same in place; keeps the inverses of the diagonal blocks, ``[B, n, rows of a block]``, for the way back."""
    qe, qr = pe if qe is None else qe, pr if qr is None else qr
    u, inverse = _solve_fake(pe, pr, qe, qr, y, w, M, block)
    one = torch.eye(inverse.shape[2], dtype=y.dtype, device=y.device).expand(len(y), -1, -1)
    for start in range(0, y.shape[1], block * M):
        stop = min(start + block * M, y.shape[1])
        L, rhs, rows = _system(pe, pr, qe, qr, w, M, start, stop)[0], y[:, start:stop], stop - start
        if start:
            rhs = rhs - L[:, :, :start] @ u[:, :start]
        square = _square(L, M, start)
        found = torch.linalg.solve_triangular(square, one[:, :rows, :rows], upper=False, unitriangular=True)
        u[:, start:stop], inverse[:, start:stop, :rows] = found @ rhs, found
    return u, inverse


def _solve_fake(
    pe: Tensor, pr: Tensor, qe: Tensor | None, qr: Tensor | None, y: Tensor, w: Tensor | None, M: int, block: int
) -> tuple[Tensor, Tensor]:
    B, n, _ = y.shape
    return torch.empty_like(y, memory_format=torch.contiguous_format), y.new_empty(B, n, min(block * M, n))


def _solve_backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    r"""With :math:`Z = (I + L)^{-\top} dU`: :math:`dY = Z`, :math:`dL = -Z U^\top`; makes the Gram matrices again."""
    (pe, pr, own_qe, own_qr, _, w), (u, inverse), (M, block) = inputs, outputs, numbers
    qe, qr = pe if own_qe is None else own_qe, pr if own_qr is None else own_qr
    z = torch.zeros_like(u) if gradients[0] is None else gradients[0].clone()
    dpe, dpr = torch.zeros_like(pe), torch.zeros_like(pr)
    dqe = dpe if own_qe is None else torch.zeros_like(qe)
    dqr = dpr if own_qr is None else torch.zeros_like(qr)
    dw = None if w is None else torch.zeros_like(w)
    for start in reversed(range(0, u.shape[1], block * M)):
        stop = min(start + block * M, u.shape[1])
        now, upto = (slice(None), slice(start, stop)), (slice(None), slice(0, stop))
        L, by_entity, by_role = _system(pe, pr, qe, qr, w, M, start, stop)
        z[now] = z_now = inverse[:, start:stop, : stop - start].mT @ z[now]
        # Products into new tensors: into a part of a tensor they are made one example at a time.
        if start:
            z[:, :start] -= L[:, :, :start].mT @ z_now
        d = z_now @ u[upto].mT
        d[:, :, start:].masked_fill_(not_before((stop - start) // M, d.device, rows=M), 0)
        if dw is not None:
            tokens = (slice(None), slice(start // M, stop // M), slice(0, stop // M))
            dw[tokens] -= (d * by_entity * by_role).unflatten(2, (-1, M)).unflatten(1, (-1, M)).sum((2, 4))
            d *= _row_weights(w, M, start, stop)
        by_role *= d
        by_entity *= d
        dqe[now] -= by_role @ pe[upto]
        dpe[upto] -= by_role.mT @ qe[now]
        dqr[now] -= by_entity @ pr[upto]
        dpr[upto] -= by_entity.mT @ qr[now]
    found = (dpe, dpr, None if own_qe is None else dqe, None if own_qr is None else dqr, z, dw)
    return [x for x in found if x is not None]


solve = differentiable("tensor_memory_solve", _solve_forward, _solve_backward, _solve_fake, solve_composite)
