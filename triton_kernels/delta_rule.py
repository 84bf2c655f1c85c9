r"""The delta rule with vector keys, one write per token: DeltaNet, its gated form, the sum rule of linear attention.

The torch form below computes a block of tokens at once. Within a block, the updates :math:`u` solve a
unit-lower-triangular system whose right-hand side needs only the state before the block, so that everything but the
passing of the state from block to block is done for all blocks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.chunks import check_chunk, decay_weights
from algornn.triton_kernels.dispatch import Tensors, choose_backend, differentiable

Pair = tuple[Tensor, Tensor]
CHUNK = 32  # tokens per block of the torch form


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    erase: Tensor | bool | None = None,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> Pair:
    r"""Run the (gated) delta rule over a sequence and read the state after every token.

    .. math::
        S'_t &= \gamma_t S_{t-1} \\
        u_t &= \beta_t (v_t - S_t'^\top e_t) \\
        S_t &= S'_t + k_t u_t^\top, \qquad o_t = S_t^\top q_t

    Neither are reads scaled nor keys normalised: where :math:`\beta \, k \cdot e > 2` the rule expands.

    Args:
        q: queries ``[B, T, H, K]``.
        k: write keys ``[B, T, H, K]``.
        v: values ``[B, T, H, V]``.
        beta: write strength ``[B, T, H]``; None: 1. Any real value is allowed.
        decay: :math:`\gamma`, multiplicative (not its logarithm), ``[B, T, H]``; None: 1. Any real value is allowed.
        erase: erase keys e ``[B, T, H, K]``; None: the write keys; False: no erase-read (the sum rule).
        initial_state: ``[B, H, K, V]``; None: zeros. For half-precision inputs it, beta and decay may be float32.
        mask: ``[B, T]`` bool; False leaves the state bit-identical and makes the output 0.
        chunk: tokens per block, at most, of the torch form; None: chosen. The kernels choose their own.
        backend: ``"auto"``, ``"triton"`` (kernels), ``"torch"`` (by blocks) or ``"reference"`` (the literal loop).

    Returns:
        The outputs ``[B, T, H, V]`` in the dtype of `v`, and the final state ``[B, H, K, V]``, float32 for
        half-precision inputs. float16 inputs bound what the kernels can hold: they multiply in float16 and add in
        float32.

    Raises:
        ValueError: a wrong shape or device, a chunk below 1, an unknown backend, or kernels that do not apply.
        TypeError: a wrong dtype.

    Source: Schlag, Irie and Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers"; Yang et al.
    (2024), "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", for the form by blocks; Yang,
    Kautz and Hatamizadeh (2024), "Gated Delta Networks", for the decay.
    """
    check_chunk(chunk)
    x = _Inputs(q, k, v, beta, decay, _erase_keys(k, erase), initial_state)
    _check(x, mask)
    backend = choose_backend("delta_rule", backend, v, lambda: _kernels().refusal(q.shape[1], q.shape[-1]))
    with torch.autocast(v.device.type, enabled=False):
        x = _neutral_where_masked(x, mask)
        if backend == "triton" and v.numel():
            out, state = _run(*_for_kernels(x))[:2]
            return out, state
        x = _accumulating(x)
        out, state = _loop(x, mask) if backend == "reference" else _by_blocks(x, chunk)
        return out.to(v.dtype), state


def _erase_keys(k: Tensor, erase: Tensor | bool | None) -> Tensor | None:
    if erase is None:
        return k
    return None if isinstance(erase, bool) and not erase else erase  # type: ignore[return-value]  # True: refused later


class _Inputs(NamedTuple):
    """The arguments of `delta_rule`, with `erase` None for the sum rule."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    decay: Tensor | None
    erase: Tensor | None
    initial_state: Tensor | None


def _check(x: _Inputs, mask: Tensor | None) -> None:
    sizes: dict[str, int] = {}
    check_tensor("q", x.q, "B T H K", sizes)
    check_tensor("k", x.k, "B T H K", sizes, like=x.q)
    check_tensor("v", x.v, "B T H V", sizes, like=x.q)
    # When the inputs are half precision a carried state is float32, and scalars, which it multiplies, may be.
    wide = (accumulation_dtype(x.v),)
    for name, tensor in (("beta", x.beta), ("decay", x.decay)):
        if tensor is not None:
            check_tensor(name, tensor, "B T H", sizes, x.v, wide)
    if x.erase is not None:
        check_tensor("erase", x.erase, "B T H K", sizes, like=x.v)
    if x.initial_state is not None:
        check_tensor("initial_state", x.initial_state, "B H K V", sizes, x.v, wide)
    check_mask(mask, sizes, like=x.v)


def _neutral_where_masked(x: _Inputs, mask: Tensor | None) -> _Inputs:
    """Make masked tokens write nothing, read nothing and leave the state as it is."""
    if mask is None:
        return x
    beta = None if x.beta is None else keep_valid(x.beta, mask)
    decay = None if x.decay is None else keep_valid(x.decay, mask, fill=1.0)
    q, k, v = (keep_valid(y, mask) for y in (x.q, x.k, x.v))
    erase = k if x.erase is x.k else None if x.erase is None else keep_valid(x.erase, mask)
    return _Inputs(q, k, v, beta, decay, erase, x.initial_state)


def _accumulating(x: _Inputs) -> _Inputs:
    """Bring everything to the dtype in which sums are accumulated."""
    to = accumulation_dtype(x.v)
    k = x.k.to(to)
    erase = k if x.erase is x.k else x.erase
    beta, decay, erase, state = (None if y is None else y.to(to) for y in (x.beta, x.decay, erase, x.initial_state))
    return _Inputs(x.q.to(to), k, x.v.to(to), beta, decay, erase, state)


def _first_state(x: _Inputs) -> Tensor:
    if x.initial_state is not None:
        return x.initial_state.clone()  # never the caller's own tensor, not even after no token at all
    B, _, H, V = x.v.shape
    return x.v.new_zeros(B, H, x.k.shape[-1], V)


def _loop(x: _Inputs, mask: Tensor | None) -> Pair:
    """The equations, token by token: the oracle of every other form."""
    state, outs = _first_state(x), []
    for t in range(x.v.shape[1]):
        new = state if x.decay is None else state * x.decay[:, t, :, None, None]
        u = x.v[:, t] if x.erase is None else x.v[:, t] - _read(new, x.erase[:, t])
        u = u if x.beta is None else u * x.beta[:, t, :, None]
        new = new + x.k[:, t, :, :, None] * u[:, :, None]
        state = new if mask is None else torch.where(mask[:, t, None, None, None], new, state)
        outs.append(_read(state, x.q[:, t]))
    return torch.stack(outs, 1) if outs else x.v.clone(), state


def _read(state: Tensor, key: Tensor) -> Tensor:
    r"""Read :math:`S^\top k` of a state ``[B, H, K, V]`` for k ``[B, H, K]``."""
    return (key[..., None, :] @ state)[..., 0, :]


def _by_blocks(x: _Inputs, chunk: int | None = None) -> Pair:
    """The form by blocks: one triangular system per block, the state carried from block to block."""
    B, T, H, _ = x.v.shape
    if T == 0:
        return x.v.clone(), _first_state(x)
    count = -(-T // min(chunk or CHUNK, T))
    size = -(-T // count)  # blocks of equal size, so that little is padded
    q, k, v = (_blocks(y, count, size) for y in x[:3])
    beta, erase = (None if y is None else _blocks(y, count, size) for y in (x.beta, x.erase))
    seen, written, read = (q @ k.mT).tril(), k, q  # what token t reads of the update of token s, and of the state
    weight = first = None
    if x.decay is not None:
        weight, first = decay_weights(_blocks(x.decay, count, size, fill=1.0))
        seen, written, read = seen * weight, k * weight[..., -1, :, None], q * first[..., None]
    u, from_state = _solve(k, v, beta, erase, weight, first)
    carried = None if first is None else first[..., -1, None, None].unbind()
    state = _first_state(x).flatten(0, 1)
    outs = []
    rows = zip(seen.unbind(), written.mT.unbind(), read.unbind(), u.unbind(), strict=True)
    for n, (seen_n, written_n, read_n, u_n) in enumerate(rows):
        if from_state is not None:
            u_n = torch.baddbmm(u_n, from_state[n], state, alpha=-1)
        outs.append(torch.baddbmm(seen_n @ u_n, read_n, state))
        state = torch.baddbmm(state if carried is None else state * carried[n], written_n, u_n)
    out = torch.stack(outs, 1).unflatten(0, (B, H)).flatten(2, 3)[:, :, :T].transpose(1, 2)
    return out.contiguous(), state.unflatten(0, (B, H))


def _blocks(x: Tensor, count: int, size: int, fill: float = 0.0) -> Tensor:
    """Cut ``[B, T, H, ...]`` into ``[count, B * H, size, ...]``, with tokens that change nothing at the end."""
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, count * size - x.shape[1]), value=fill)
    x = x.unflatten(1, (count, size)).movedim(1, 0).transpose(2, 3)
    return x.flatten(1, 2).contiguous()


def _solve(
    k: Tensor, v: Tensor, beta: Tensor | None, erase: Tensor | None, weight: Tensor | None, first: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    r"""Solve :math:`(I + A) U = B (V - g E S)`, A = B (E K^T) w below the diagonal, for all blocks and any state S.

    Returns:
        The solution for S = 0, and per block the matrix that gives, times S, what is to be subtracted from it.
    """
    if erase is None:
        return v if beta is None else v * beta[..., None], None
    system = erase @ k.mT
    system = system if weight is None else system * weight
    system = system if beta is None else system * beta[..., None]
    one = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device).expand_as(system)
    # Few columns for the slow solve, and products for the rest. It reads only what is below the diagonal.
    inverse = torch.linalg.solve_triangular(system, one, upper=False, unitriangular=True)
    inverse = inverse if beta is None else inverse * beta[..., None, :]
    return inverse @ v, (inverse @ (erase if first is None else erase * first[..., None])).unbind()


# The kernels, as one differentiable function --------------------------------------------------------------------------


def _kernels() -> ModuleType:
    from algornn.triton_kernels import delta_rule_triton

    return delta_rule_triton


def _for_kernels(x: _Inputs) -> list[Tensor | None]:
    """What the kernels take: keys in the dtype of the values, float32 scalars and states, all contiguous."""
    dtype = x.v.dtype
    beta = x.v.new_ones(x.v.shape[:3], dtype=torch.float32) if x.beta is None else x.beta.float()
    decay, state = (None if y is None else y.float() for y in (x.decay, x.initial_state))
    erase = None if x.erase is None else x.erase.to(dtype)
    inputs = (x.q.to(dtype), x.k.to(dtype), x.v, beta, decay, erase, state)
    return [None if y is None else y.contiguous() for y in inputs]


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None,
    erase: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = _fake(q, k, v, beta, decay, erase, initial_state)
    _kernels().forward(_Inputs(q, k, v, beta, decay, erase, initial_state), kept)
    return kept


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None,
    erase: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs and final state; then per block: inverse, seen, weights of the first and last state; u, states."""
    B, T, H, V = v.shape
    K = k.shape[-1]
    C = _kernels().chunk(K, v.dtype)
    N = -(-T // C)
    new = torch.empty_like(v, memory_format=torch.contiguous_format)
    state = v.new_empty(B, H, K, V, dtype=torch.float32)
    square, vector = (B * H, N, C, C), (B * H, N, C)
    return (
        new,
        state,
        v.new_empty(square),
        v.new_empty(square),
        v.new_empty(vector, dtype=torch.float32),
        v.new_empty(vector, dtype=torch.float32),
        torch.empty_like(new),
        v.new_empty(B * H, N, K, V),
    )


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    return _kernels().backward(gradients, _Inputs(*inputs), outputs)


def _composite(*arguments: Any) -> Pair:
    x = _Inputs(*arguments)
    with torch.autocast(x.v.device.type, enabled=False):
        out, state = _by_blocks(_accumulating(x))
        return out.to(x.v.dtype), state


_run = differentiable("delta_rule", _forward, _backward, _fake, _composite)
