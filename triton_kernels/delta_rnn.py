r"""The Delta RNN's recurrent memory: a fast weight matrix, written from the inputs, reads its own last output.

The writes do not depend on what is read, so the torch form computes those of a block of tokens at once (the WY form,
one triangular system), and only the reads come one by one. The matrix itself exists at the start of a block alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.chunks import not_before
from algornn.triton_kernels.dispatch import choose_backend
from algornn.triton_kernels.sequential import check_state, first_state, outer, read

CHUNK = 16


def delta_rnn(
    z: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    initial_state: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""Run the recurrent memory of the Delta RNN over a sequence, separately for every head.

    .. math::
        R_t &= R_{t-1} + \beta_t k_t (v_t - R_{t-1}^\top k_t)^\top \\
        y_t &= z_t + R_t^\top \mathrm{softmax}(y_{t-1})

    The keys are used as given; the published model makes them positive and of sum 1 by a softmax. Where
    :math:`\beta \|k\|^2 > 2` the rule expands.

    Args:
        z: what is added to the recurrent read, the read of the feed-forward memory, ``[B, T, H, D]``.
        k: write keys ``[B, T, H, D]``.
        v: values ``[B, T, H, D]``; as wide as the keys, for softmax(y) is the query.
        beta: write strength ``[B, T, H]``. Any real value is allowed.
        initial_state: the pair (R, y) that an earlier call returned; None: zeros.
        mask: ``[B, T]`` bool; False leaves R and y bit-identical, and the output there is 0.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` (blocks of tokens) or ``"reference"`` (the literal loop).

    Returns:
        The outputs y ``[B, T, H, D]`` in the dtype of the inputs, and the final state, the pair of R ``[B, H, D, D]``
        and y ``[B, H, D]`` (float32 for half-precision inputs).

    Raises:
        ValueError: a wrong shape or device, or a backend that is unknown or cannot run.
        TypeError: a wrong dtype, or a state that is no pair.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going beyond linear transformers with recurrent fast weight
    programmers", the Delta RNN; as in version 2 of the authors' code the state is y, before the softmax.
    """
    sizes: dict[str, int] = {}
    for name, tensor in {"z": z, "k": k, "v": v, "beta": beta}.items():
        check_tensor(name, tensor, "B T H" if name == "beta" else "B T H D", sizes, None if name == "z" else z)
    check_state(initial_state, "R", sizes, z)
    check_mask(mask, sizes, z)
    backend = choose_backend("delta_rnn", backend, z, lambda: _kernels().refusal(z.shape[-1]))
    with torch.autocast(z.device.type, enabled=False):
        to = accumulation_dtype(z)
        x = [keep_valid(tensor.to(to), mask) for tensor in (z, k, v, beta)]
        R, y = first_state(initial_state, z)
        form: Callable[..., Sequence[Tensor]] = chunked if backend == "torch" else _loop
        form = _kernels().run if backend == "triton" else form
        ys, R = form(*x, R, y, mask)[:2]
        return keep_valid(ys, mask).to(z.dtype), (R, torch.cat([y[:, None], ys], 1)[:, -1])


def _kernels() -> ModuleType:
    from algornn.triton_kernels import delta_rnn_triton

    return delta_rnn_triton


# The forms below take inputs that are 0 at masked tokens, and return y of every token (at a masked one the y before
# it) and the final R.


def _loop(
    z: Tensor, k: Tensor, v: Tensor, beta: Tensor, R: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The equations, token by token: the oracle of every other form."""
    ys = []
    for t in range(z.shape[1]):
        R_t = R + outer(k[:, t], beta[:, t, :, None] * (v[:, t] - read(R, k[:, t])))
        y_t = z[:, t] + read(R_t, y.softmax(-1))
        if mask is not None:
            counts = mask[:, t, None, None]
            R_t, y_t = torch.where(counts[..., None], R_t, R), torch.where(counts, y_t, y)
        R, y = R_t, y_t
        ys.append(y)
    return torch.stack(ys, 1) if ys else z, R


def chunked(
    z: Tensor, k: Tensor, v: Tensor, beta: Tensor, R: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The writes of a block of tokens from one system, then its reads one by one; the state is carried on."""
    # [B, H, T, D], split into blocks.
    blocks = zip(*(x.transpose(1, 2).split(CHUNK, 2) for x in (z, k, v, beta[..., None])), strict=True)
    seen = torch.ones(CHUNK, CHUNK, dtype=z.dtype, device=z.device).tril()
    counts = None if mask is None else mask[:, None, :, None, None].unbind(2)
    y = y[..., None, :]
    ys: list[Tensor] = []
    for z_block, k_block, v_block, beta_block in blocks:
        U = _writes(k_block, v_block, beta_block, R)
        both = torch.cat([R, k_block.mT], -1)  # read at once
        for t, z_t in enumerate(z_block.unbind(2)):
            first, scores = (y.softmax(-1) @ both).tensor_split([z.shape[-1]], -1)
            y_t = z_t[..., None, :] + first + (scores * seen[t, : scores.shape[-1]]) @ U
            y = y_t if counts is None else torch.where(counts[len(ys)], y_t, y)
            ys.append(y)
        R = R + k_block.mT @ U
    return (torch.cat(ys, 2) if ys else z.transpose(1, 2)).transpose(1, 2).contiguous(), R


def _writes(k: Tensor, v: Tensor, beta: Tensor, R: Tensor) -> Tensor:
    """Solve (I + L) U = B (V - K R), L = B K K^T strictly below the diagonal: what each token of a block adds."""
    system = (beta * (k @ k.mT)).masked_fill(not_before(k.shape[-2], k.device), 0)
    return torch.linalg.solve_triangular(system, beta * (v - k @ R), upper=False, unitriangular=True)
