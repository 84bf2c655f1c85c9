r"""Memory with tensor-product keys, several simultaneous writes per token.

A key is the outer product of an entity and a role vector, :math:`p = e \otimes r`, so every inner product of two keys
is a product of two small ones, :math:`p \cdot q = (e_p \cdot e_q)(r_p \cdot r_q)`. The Gram form
(`tensor_memory_gram`) uses only these products: neither the keys nor, within a segment of tokens, the state
:math:`S \in R^{E \times R \times V}` is ever built.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.chunks import check_chunk
from algornn.triton_kernels.dispatch import choose_backend
from algornn.triton_kernels.tensor_memory_gram import Inputs, Pair, Segment, gram_form, read_composite
from algornn.triton_kernels.tensor_memory_state import read_state


class TensorMemory:
    r"""What a sequence leaves in the memory: every write, from which any state can be read.

    :math:`S_t = g_t S_0 + \sum_{s \le t} w_{ts} \sum_m p_{sm} u_{sm}^\top`, with the weights :math:`w, g` that decay
    and clamp leave (all 1 without them).
    """

    def __init__(self, segments: Sequence[Segment], mask: Tensor | None, dtype: torch.dtype) -> None:
        self._segments, self._mask, self._dtype = segments, mask, dtype

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
        like = self._segments[0].entity
        T = sum(segment.entity.shape[1] for segment in self._segments)
        sizes = {"B": len(like), "E": like.shape[-1], "R": self._segments[0].role.shape[-1]}
        sizes |= {"T": T} if causal else {}
        lead = "B" if single else "B T" if causal else "B N"
        check_tensor("e", e, f"{lead} E", sizes, like=like, dtypes=(self._dtype,))
        check_tensor("r", r, f"{lead} R", sizes, like=like, dtypes=(self._dtype,))
        e, r = (x.to(like.dtype) for x in ((e[:, None], r[:, None]) if single else (e, r)))
        if causal:
            e, r = keep_valid(e, self._mask), keep_valid(r, self._mask)
        with torch.autocast(e.device.type, enabled=False):
            out = self._read_causal(e, r) if causal else self._segments[-1].read(e, r, causal=False)
        return (out[:, 0] if single else out).to(self._dtype)

    def _read_causal(self, e: Tensor, r: Tensor) -> Tensor:
        lengths = [segment.entity.shape[1] for segment in self._segments]
        parts = zip(self._segments, e.split(lengths, 1), r.split(lengths, 1), strict=True)
        reads = [segment.read(e, r, causal=True) for segment, e, r in parts]
        return reads[0] if len(reads) == 1 else torch.cat(reads, 1)

    @property
    def state(self) -> Tensor:
        """The final state ``[B, E, R, V]`` (float32 for half-precision inputs), built on demand."""
        with torch.autocast(self._segments[0].entity.device.type, enabled=False):
            return self._segments[-1].state()


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
        backend: ``"auto"``, ``"triton"`` (kernels; with `clamp` for one write per token that erases with its own key,
            without decay), ``"torch"`` (Gram form) or ``"reference"`` (the literal loop over tokens).

    Returns:
        The trace: `TensorMemory.read` and `TensorMemory.state`, differentiable in every input.

    Raises:
        ValueError: a wrong shape or device, an unknown backend, kernels that do not apply, or a chunk below 1.
        TypeError: a wrong dtype.

    Source: the block form of the TPR-RNN update (Schlag and Schmidhuber, 2018, eq. 4 to 12) and of the Fast Weight
    Memory (Schlag, Munkhdalai and Schmidhuber, 2021, eq. 5 to 8).
    """
    _check_keys(write, erase, chunk)
    x = Inputs(write, values, _erase_keys(write, erase), beta, decay, clamp, initial_state, mask)
    _check(x)
    backend = choose_backend("tensor_memory", backend, values, lambda: _kernels().refusal(x))
    with torch.autocast(values.device.type, enabled=False):
        x = _prepare(x)
        if backend == "reference":
            return _loop(x, values.dtype)
        form = _kernels().FORM if backend == "triton" else None
        return TensorMemory(gram_form(x, chunk, form), mask, values.dtype)


def _kernels() -> ModuleType:
    from algornn.triton_kernels import tensor_memory_triton

    return tensor_memory_triton


def _erase_keys(write: Pair, erase: Pair | bool | None) -> Pair | None:
    if isinstance(erase, (tuple, list)):
        return erase[0], erase[1]
    return write if erase is None else None


def _prepare(x: Inputs) -> Inputs:
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
    return Inputs((e, r), v, erase, beta, decay, x.clamp, initial_state, mask)


def _check_keys(write: Pair, erase: Pair | bool | None, chunk: int | None) -> None:
    for name, pair in (("write", write), ("erase", erase)):
        optional = name == "erase" and (pair is None or pair is False)
        if not optional and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"`{name}` must be a pair (entities, roles) of tensors, got {type(pair).__name__}.")
    check_chunk(chunk)


def _check(x: Inputs) -> None:
    sizes: dict[str, int] = {}
    check_tensor("write[0]", x.write[0], "B T M E", sizes)
    if not sizes["M"]:
        raise ValueError("`write[0]` must have at least one write per token, M >= 1, got M=0.")
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


def _loop(x: Inputs, dtype: torch.dtype) -> TensorMemory:
    """The equations, token by token: the oracle of every other form."""
    (e, r), v = x.write, x.values
    empty = v.new_zeros(len(v), e.shape[-1], r.shape[-1], v.shape[-1])
    state = empty if x.initial_state is None else x.initial_state
    states = [state]
    for t in range(v.shape[1]):
        state = state if x.decay is None else state * x.decay[:, t, None, None, None]
        u = v[:, t] if x.erase is None else v[:, t] - read_state(state, x.erase[0][:, t], x.erase[1][:, t])
        u = u if x.beta is None else u * x.beta[:, t, :, None]
        state = state + torch.einsum("bme,bmr,bmv->berv", e[:, t], r[:, t], u)
        if x.clamp:
            # max(1, norm) through the clamped square: the gradient stays finite at norm 0.
            state = state / state.square().sum((1, 2, 3), keepdim=True).clamp(min=1).sqrt()
        if x.mask is not None:
            state = torch.where(x.mask[:, t, None, None, None], state, states[-1])
        states.append(state)
    trace = _States(e, r, v, None, x.initial_state, read_composite)
    trace.states = torch.stack(states, 1)
    return TensorMemory([trace], x.mask, dtype)


class _States(Segment):
    """The trace of the reference loop, which reads the states themselves, ``[B, T + 1, E, R, V]``."""

    states: Tensor

    def read(self, e: Tensor, r: Tensor, causal: bool) -> Tensor:
        if causal:
            return torch.einsum("bterv,bte,btr->btv", self.states[:, 1:], e, r)
        return read_state(self.states[:, -1], e, r)

    def state(self) -> Tensor:
        return self.states[:, -1]
