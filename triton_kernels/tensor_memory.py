r"""Memory with tensor-product keys, several simultaneous writes per token.

A key is the outer product of an entity and a role vector, :math:`p = e \otimes r`, so every inner product of two keys
is a product of two small ones, :math:`p \cdot q = (e_p \cdot e_q)(r_p \cdot r_q)`. The torch form below uses only these
products (the Gram form): neither the keys nor the state :math:`S \in R^{E \times R \times V}` is ever built.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.chunks import check_chunk, decay_weights, not_before
from algornn.triton_kernels.dispatch import choose_backend

Pair = tuple[Tensor, Tensor]
ROWS_PER_SOLVE = 200  # above this many rows, blocks of CHUNK tokens are faster than one triangular solve
CHUNK = 32


class TensorMemory:
    r"""What a story leaves in the memory: every write, from which any state can be read.

    :math:`S_t = g_t S_0 + \sum_{s \le t} w_{ts} \sum_m p_{sm} u_{sm}^\top`, with the weights :math:`w, g` that decay
    and clamp leave (all 1 without them).

    Attributes:
        entity: write entities ``[B, T, M, E]``, zero at masked tokens.
        role: write roles ``[B, T, M, R]``.
        update: what each write added, :math:`u`, ``[B, T, M, V]``.
    """

    def __init__(
        self,
        entity: Tensor,
        role: Tensor,
        update: Tensor,
        weight: Pair | None,
        initial_state: Tensor | None,
        mask: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.entity, self.role, self.update = entity, role, update
        self._weight, self._initial_state, self._mask, self._dtype = weight, initial_state, mask, dtype

    def read(self, e: Tensor, r: Tensor, causal: bool = False) -> Tensor:
        r"""Read :math:`S^\top (e \otimes r)`.

        Args:
            e: entities ``[B, E]`` or ``[B, N, E]``; with `causal` ``[B, T, E]``.
            r: roles ``[B, R]`` or ``[B, N, R]``; with `causal` ``[B, T, R]``.
            causal: token t reads :math:`S_t` (after its own write); masked tokens read exactly 0. Otherwise all read
                the final state.

        Returns:
            ``[B, V]`` or ``[B, N, V]``, in the dtype of the operator's inputs.
        """
        single = isinstance(e, Tensor) and e.dim() == 2 and not causal
        B, T, _, E = self.entity.shape
        sizes = {"B": B, "E": E, "R": self.role.shape[-1]} | ({"T": T} if causal else {})
        lead = "B" if single else "B T" if causal else "B N"
        check_tensor("e", e, f"{lead} E", sizes, like=self.entity, dtypes=(self._dtype,))
        check_tensor("r", r, f"{lead} R", sizes, like=self.entity, dtypes=(self._dtype,))
        e, r = (x.to(self.entity.dtype) for x in ((e[:, None], r[:, None]) if single else (e, r)))
        if causal:
            e, r = keep_valid(e, self._mask), keep_valid(r, self._mask)
        with torch.autocast(e.device.type, enabled=False):
            out = self._read(e, r, causal)
        return (out[:, 0] if single else out).to(self._dtype)

    def _read(self, e: Tensor, r: Tensor, causal: bool) -> Tensor:
        entity, role, update = (x.flatten(1, 2) for x in (self.entity, self.role, self.update))
        T, M = self.entity.shape[1:3]
        score = (e @ entity.mT) * (r @ role.mT)
        score = score * self._rows(M, causal) if self._weight is not None else score
        if causal:
            token = torch.arange(T, device=e.device)
            score = score.masked_fill(token[:, None] < token.repeat_interleave(M), 0)
        out = score @ update
        if self._initial_state is not None:
            first = _read_state(self._initial_state, e, r)
            if self._weight is not None:
                first = first * (self._weight[1] if causal else self._weight[1][:, -1:])[..., None]
            out = out + first
        return out

    def _rows(self, M: int, causal: bool) -> Tensor:
        """The weights :math:`w_{ts}`, once per written row: of all tokens ``[B, T, TM]`` or the last ``[B, 1, TM]``."""
        weight = self._weight[0] if causal else self._weight[0][:, -1:]  # type: ignore[index]
        return weight.repeat_interleave(M, dim=-1)

    @property
    def state(self) -> Tensor:
        """The final state ``[B, E, R, V]`` (float32 for half-precision inputs), built on demand."""
        with torch.autocast(self.entity.device.type, enabled=False):
            return self._state()

    def _state(self) -> Tensor:
        entity, role, update = (x.flatten(1, 2) for x in (self.entity, self.role, self.update))
        if self._weight is not None:
            entity = entity * self._rows(self.entity.shape[2], causal=False).mT
        bound = (role[..., None] * update[:, :, None]).flatten(2)
        state = (entity.mT @ bound).unflatten(2, (role.shape[-1], update.shape[-1]))
        if self._initial_state is None:
            return state
        if self._weight is None:
            return state + self._initial_state
        return state + self._initial_state * self._weight[1][:, -1, None, None, None]


class _StateTrace(TensorMemory):
    """The trace of the reference loop: the states themselves, ``[B, T + 1, E, R, V]``."""

    states: Tensor

    def _read(self, e: Tensor, r: Tensor, causal: bool) -> Tensor:
        if causal:
            return torch.einsum("bterv,bte,btr->btv", self.states[:, 1:], e, r)
        return _read_state(self.states[:, -1], e, r)

    def _state(self) -> Tensor:
        return self.states[:, -1]


def tensor_memory(
    write: Pair,
    values: Tensor,
    erase: Pair | bool | None = None,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    clamp: bool = False,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> TensorMemory:
    r"""Run a block-linear memory with tensor-product keys over a sequence.

    .. math::
        S'_t &= \gamma_t S_{t-1} \\
        u_{tm} &= \beta_{tm} (v_{tm} - S_t'^\top q_{tm}) \quad\text{for all } m \text{ at once} \\
        S_t &= S'_t + \sum_m p_{tm} u_{tm}^\top, \qquad \text{if clamp: } S_t \leftarrow S_t / \max(1, \|S_t\|_F)

    with :math:`p = e \otimes r` and :math:`q = e' \otimes r'`. The keys are not normalised: where
    :math:`\beta \, p \cdot q > 2` the rule expands, as in the published models.

    Args:
        write: write keys, entities ``[B, T, M, E]`` and roles ``[B, T, M, R]``.
        values: ``[B, T, M, V]``.
        erase: erase keys in the same two shapes; None: the write keys; False: no erase-read (the additive rule).
        beta: write strength ``[B, T, M]``; None: 1. Any real value is allowed.
        decay: :math:`\gamma`, multiplicative (not its logarithm), ``[B, T]``; None: 1. Any real value is allowed.
        clamp: divide the state by its Frobenius norm (per example, over all of the state) where that exceeds 1.
        initial_state: ``[B, E, R, V]``; None: zeros.
        mask: ``[B, T]`` bool; False leaves the state bit-identical.
        chunk: tokens per block of the torch form; None: chosen by length.
        backend: ``"auto"``, ``"torch"`` (Gram form) or ``"reference"`` (the literal loop over tokens).

    Returns:
        The trace: `TensorMemory.read` and `TensorMemory.state`, differentiable in every input.

    Raises:
        ValueError: a wrong shape or device, an unknown backend or a chunk below 1.
        TypeError: a wrong dtype.

    Source: the block form of the TPR-RNN update (Schlag and Schmidhuber, 2018, eq. 4 to 12) and of the Fast Weight
    Memory (Schlag, Munkhdalai and Schmidhuber, 2021, eq. 5 to 8).
    """
    _check_keys(write, erase, chunk)
    x = _Inputs(write, values, _erase_keys(write, erase), beta, decay, clamp, initial_state, mask)
    _check(x)
    backend = choose_backend("tensor_memory", backend, values, lambda: "there are no kernels yet")
    with torch.autocast(values.device.type, enabled=False):
        x = _prepare(x)
        return _loop(x, values.dtype) if backend == "reference" else _gram(x, chunk, values.dtype)


class _Inputs(NamedTuple):
    """The arguments of `tensor_memory`, with `erase` None for the additive rule."""

    write: Pair
    values: Tensor
    erase: Pair | None
    beta: Tensor | None
    decay: Tensor | None
    clamp: bool
    initial_state: Tensor | None
    mask: Tensor | None


def _erase_keys(write: Pair, erase: Pair | bool | None) -> Pair | None:
    if isinstance(erase, (tuple, list)):
        return erase[0], erase[1]
    return write if erase is None else None


def _prepare(x: _Inputs) -> _Inputs:
    """Bring everything to the accumulation dtype and make masked tokens neutral."""
    to, mask = accumulation_dtype(x.values), x.mask
    e, r, v = (keep_valid(y.to(to), mask) for y in (*x.write, x.values))
    erase = x.erase
    if erase is not None:
        # A role that differs with the same entity (TPR-RNN) shares the masked entity, and so its Gram matrix.
        eq = e if erase[0] is x.write[0] else keep_valid(erase[0].to(to), mask)
        erase = (eq, r if erase[1] is x.write[1] else keep_valid(erase[1].to(to), mask))
    beta = None if x.beta is None else keep_valid(x.beta.to(to), mask)
    decay = None if x.decay is None else keep_valid(x.decay.to(to), mask, fill=1.0)
    initial_state = None if x.initial_state is None else x.initial_state.to(to)
    return _Inputs((e, r), v, erase, beta, decay, x.clamp, initial_state, mask)


def _check_keys(write: Pair, erase: Pair | bool | None, chunk: int | None) -> None:
    for name, pair in (("write", write), ("erase", erase)):
        optional = name == "erase" and (pair is None or pair is False)
        if not optional and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"`{name}` must be a pair (entities, roles) of tensors, got {type(pair).__name__}.")
    check_chunk(chunk)


def _check(x: _Inputs) -> None:
    sizes: dict[str, int] = {}
    check_tensor("write[0]", x.write[0], "B T M E", sizes)
    check_tensor("write[1]", x.write[1], "B T M R", sizes, like=x.write[0])
    check_tensor("values", x.values, "B T M V", sizes, like=x.write[0])
    if x.erase is not None:
        check_tensor("erase[0]", x.erase[0], "B T M E", sizes, like=x.values)
        check_tensor("erase[1]", x.erase[1], "B T M R", sizes, like=x.values)
    for name, tensor, dims in (("beta", x.beta, "B T M"), ("decay", x.decay, "B T")):
        if tensor is not None:
            check_tensor(name, tensor, dims, sizes, like=x.values)
    if x.initial_state is not None:
        # A carried state is float32 when the inputs are half precision.
        check_tensor("initial_state", x.initial_state, "B E R V", sizes, x.values, (accumulation_dtype(x.values),))
    check_mask(x.mask, sizes, like=x.values)


def _loop(x: _Inputs, dtype: torch.dtype) -> TensorMemory:
    """The equations, token by token: the oracle of every other form."""
    (e, r), v = x.write, x.values
    empty = v.new_zeros(len(v), e.shape[-1], r.shape[-1], v.shape[-1])
    state = empty if x.initial_state is None else x.initial_state
    states, updates = [state], []
    for t in range(v.shape[1]):
        state = state if x.decay is None else state * x.decay[:, t, None, None, None]
        u = v[:, t] if x.erase is None else v[:, t] - _read_state(state, x.erase[0][:, t], x.erase[1][:, t])
        u = u if x.beta is None else u * x.beta[:, t, :, None]
        state = state + torch.einsum("bme,bmr,bmv->berv", e[:, t], r[:, t], u)
        if x.clamp:
            # max(1, norm) through the clamped square: the gradient stays finite at norm 0.
            state = state / state.square().sum((1, 2, 3), keepdim=True).clamp(min=1).sqrt()
        if x.mask is not None:
            state = torch.where(x.mask[:, t, None, None, None], state, states[-1])
        states.append(state)
        updates.append(u)
    trace = _StateTrace(e, r, torch.stack(updates, 1) if updates else v, None, x.initial_state, x.mask, dtype)
    trace.states = torch.stack(states, 1)
    return trace


def _gram(x: _Inputs, chunk: int | None, dtype: torch.dtype) -> TensorMemory:
    """The Gram form: all updates from one unit-lower-triangular system (by blocks of tokens for long sequences)."""
    v, weight = x.values, None
    T, M = v.shape[1:3]
    if T and x.clamp:
        u, weight = _clamped_scan(x)
    else:
        weight = None if x.decay is None or not T else decay_weights(x.decay)
        u = v if x.beta is None else v * x.beta[..., None]
        if x.erase is not None and T:
            u = _solve(x, x.erase, weight, chunk or (T if T * M <= ROWS_PER_SOLVE else CHUNK))
    return TensorMemory(*x.write, u, weight, x.initial_state, x.mask, dtype)


def _solve(x: _Inputs, erase: Pair, weight: Pair | None, chunk: int) -> Tensor:
    """Solve (I + L) U = B (V - Q^T S_0), L = B (Q^T P) strictly below the token diagonal, by forward substitution."""
    v = x.values
    T, M = v.shape[1:3]
    (pe, pr), (qe, qr) = ([y.flatten(1, 2) for y in pair] for pair in (x.write, erase))
    qe = pe if erase[0] is x.write[0] else qe
    solved: list[Tensor] = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        tokens, rows = slice(start, stop), slice(start * M, stop * M)
        gram = (qe[:, rows] @ pe[:, : stop * M].mT) * (qr[:, rows] @ pr[:, : stop * M].mT)
        if weight is not None:
            gram = gram * weight[0][:, tokens, :stop].repeat_interleave(M, 1).repeat_interleave(M, 2)
        rhs = v[:, tokens].flatten(1, 2)
        if x.initial_state is not None:
            first = _read_state(x.initial_state, qe[:, rows], qr[:, rows])
            rhs = rhs - (first if weight is None else first * weight[1][:, tokens, None].repeat_interleave(M, 1))
        if solved:
            rhs = rhs - gram[:, :, : start * M] @ torch.cat(solved, 1)
        system = gram[:, :, start * M :].masked_fill(not_before(stop - start, v.device, rows=M), 0)
        if x.beta is not None:
            strength = x.beta[:, tokens].flatten(1, 2)[..., None]
            system, rhs = strength * system, strength * rhs
        solved.append(torch.linalg.solve_triangular(system, rhs, upper=False, unitriangular=True))
    return torch.cat(solved, 1).unflatten(1, (T, M))


def _clamped_scan(x: _Inputs) -> tuple[Tensor, Pair]:
    r"""Run the clamp exactly without the state: :math:`\|S_t\|^2` obeys a scalar recursion.

    .. math:: \|S' + \sum_m p_m u_m^\top\|^2 = \|S'\|^2 + 2 \sum_m u_m \cdot S'^\top p_m
        + \sum_{mn} (p_m \cdot p_n)(u_m \cdot u_n)
    """
    v, write, erase, initial_state = x.values, x.write, x.erase or x.write, x.initial_state
    B, T, M, V = v.shape
    same_keys = erase[0] is write[0] and erase[1] is write[1]
    to_write = _gram_rows(write, write, T, M)
    to_erase = to_write if same_keys else _gram_rows(erase, write, T, M)
    zero = v.new_zeros(B, T, M, V)
    first_p = zero if initial_state is None else _read_state(initial_state, *write)
    first_q = first_p if same_keys or initial_state is None else _read_state(initial_state, *erase)
    squared = v.new_zeros(B) if initial_state is None else initial_state.square().sum((1, 2, 3))
    w, g = v.new_zeros(B, 0), v.new_ones(B)
    updates, weights, firsts = v.new_zeros(B, 0, V), [], []
    for t in range(T):
        gamma = v.new_ones(B) if x.decay is None else x.decay[:, t]
        w, g, squared = w * gamma[:, None], g * gamma, squared * gamma**2
        past = updates * w.repeat_interleave(M, 1)[..., None]
        at_q = to_erase[:, t, :, : t * M] @ past + g[:, None, None] * first_q[:, t]
        at_p = at_q if same_keys else to_write[:, t, :, : t * M] @ past + g[:, None, None] * first_p[:, t]
        u = v[:, t] if x.erase is None else v[:, t] - at_q
        u = u if x.beta is None else u * x.beta[:, t, :, None]
        own = to_write[:, t, :, t * M : (t + 1) * M]
        total = squared + 2 * (u * at_p).sum((1, 2)) + (own * (u @ u.mT)).sum((1, 2))
        squeeze = total.clamp(min=1).sqrt()
        if x.mask is not None:
            squeeze = squeeze.masked_fill(~x.mask[:, t], 1.0)
        w, g = torch.cat([w, torch.ones_like(g)[:, None]], 1) / squeeze[:, None], g / squeeze
        squared = total / squeeze**2
        updates = torch.cat([updates, u], 1)
        weights.append(torch.nn.functional.pad(w, (0, T - 1 - t)))
        firsts.append(g)
    return updates.unflatten(1, (T, M)), (torch.stack(weights, 1), torch.stack(firsts, 1))


def _gram_rows(left: Pair, right: Pair, T: int, M: int) -> Tensor:
    """All inner products of the keys `left` with the keys `right`, ``[B, T, M, TM]``."""
    e, r = (a.flatten(1, 2) @ b.flatten(1, 2).mT for a, b in zip(left, right, strict=True))
    return (e * r).unflatten(1, (T, M))


def _read_state(state: Tensor, e: Tensor, r: Tensor) -> Tensor:
    r"""Read :math:`S^\top (e \otimes r)` of a state ``[B, E, R, V]`` for e ``[B, ..., E]``, r ``[B, ..., R]``."""
    lead = e.shape[1:-1]
    e, r = e.flatten(1, -2), r.flatten(1, -2)
    by_entity = (e @ state.flatten(2)).unflatten(2, state.shape[2:])
    return torch.einsum("bnrv,bnr->bnv", by_entity, r).unflatten(1, lead)
