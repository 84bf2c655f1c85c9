r"""The Recurrent Delta Network's memory: queries, keys, values and learning rates see the previous output.

The keys depend on the memory, so tokens come one by one. The torch form is a forward and a backward pass written by
hand: they keep a few vectors per token instead of all states, and the backward pass undoes the writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.dispatch import Tensors, choose_backend, differentiable, under_transform
from algornn.triton_kernels.sequential import (
    batch_first,
    before,
    check_state,
    first_state,
    heads_first,
    outer,
    read,
    softmax_gradient,
    tokens_first,
)


def recurrent_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    R_q: Tensor,
    R_k: Tensor,
    R_v: Tensor,
    r_beta: Tensor,
    initial_state: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""Run the memory of the Recurrent Delta Network over a sequence, separately for every head.

    .. math::
        s_t &= \tanh(y_{t-1}) \\
        q'_t &= \mathrm{softmax}(q_t + R_q s_t), \quad k'_t = \mathrm{softmax}(k_t + R_k s_t) \\
        v'_t &= v_t + R_v s_t, \quad \beta'_t = \sigma(\beta_t + r_\beta \cdot s_t) \\
        W_t &= W_{t-1} + \beta'_t k'_t (v'_t - W_{t-1}^\top k'_t)^\top \\
        y_t &= W_t^\top q'_t

    Args:
        q: what the query is before the recurrent term and the softmax, ``[B, T, H, D]``.
        k: the same of the key, ``[B, T, H, D]``.
        v: the value before the recurrent term, ``[B, T, H, D]``.
        beta: the learning rate before the recurrent term and the sigmoid, ``[B, T, H]``.
        R_q: recurrent weights of the query, ``[H, D, D]``; (R s)_i is the sum over j of R_ij s_j.
        R_k: those of the key, ``[H, D, D]``.
        R_v: those of the value, ``[H, D, D]``.
        r_beta: those of the learning rate, ``[H, D]``.
        initial_state: the pair (W, y) that an earlier call returned; None: zeros.
        mask: ``[B, T]`` bool; False leaves W and y bit-identical, and the output there is 0.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"`` (the literal loop over tokens).

    Returns:
        The outputs y ``[B, T, H, D]`` in the dtype of the inputs, and the final state, the pair of W ``[B, H, D, D]``
        and y ``[B, H, D]`` (float32 for half-precision inputs).

    Raises:
        ValueError: a wrong shape or device, or a backend that is unknown or cannot run.
        TypeError: a wrong dtype, or a state that is no pair.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going beyond linear transformers with recurrent fast weight
    programmers", the Recurrent Delta Network, with the tanh of the authors' code.
    """
    tokens, weights = {"q": q, "k": k, "v": v, "beta": beta}, {"R_q": R_q, "R_k": R_k, "R_v": R_v, "r_beta": r_beta}
    _check(tokens, weights, initial_state, mask)
    backend = choose_backend("recurrent_delta", backend, q, lambda: _kernels().refusal(q.shape[-1]))
    with torch.autocast(q.device.type, enabled=False):
        to = accumulation_dtype(q)
        x = torch.cat([keep_valid(y.to(to), mask) for y in (q, k, v, beta[..., None])], -1)
        R = torch.cat([y.to(to) for y in (R_q, R_k, R_v, r_beta[:, None])], 1)
        W, y = first_state(initial_state, q)
        form = _kernels().run if backend == "triton" else _run
        form = loop if backend == "reference" or under_transform() else form
        ys, W = form(x, R, W, y, mask)[:2]
        return keep_valid(ys, mask).to(q.dtype), (W, torch.cat([y[:, None], ys], 1)[:, -1])


def _kernels() -> ModuleType:
    from algornn.triton_kernels import recurrent_delta_triton

    return recurrent_delta_triton


def _check(tokens: dict, weights: dict, initial_state: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> None:
    sizes: dict[str, int] = {}
    q = tokens["q"]
    for name, tensor in tokens.items():
        check_tensor(name, tensor, "B T H" if name == "beta" else "B T H D", sizes, None if name == "q" else q)
    for name, tensor in weights.items():
        check_tensor(name, tensor, "H D" if name == "r_beta" else "H D D", sizes, q)
    check_state(initial_state, "W", sizes, q)
    check_mask(mask, sizes, q)


# The forms below take x [B, T, H, 3D+1] = [q|k|v|beta], R [H, 3D+1, D] = [R_q; R_k; R_v; r_beta], W [B, H, D, D],
# y [B, H, D] and the mask, and return y of every token (at a masked one the y before it), the final W, and then what
# their backward pass needs.


def loop(x: Tensor, R: Tensor, W: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The equations, token by token: the oracle of every other form."""
    D = W.shape[-1]
    q, k, v, beta = x.split([D, D, D, 1], -1)
    R_q, R_k, R_v, r_beta = R.split([D, D, D, 1], 1)
    ys = []
    for t in range(x.shape[1]):
        s = y.tanh()[..., None]
        q_t = (q[:, t] + (R_q @ s)[..., 0]).softmax(-1)
        k_t = (k[:, t] + (R_k @ s)[..., 0]).softmax(-1)
        v_t = v[:, t] + (R_v @ s)[..., 0]
        beta_t = (beta[:, t] + (r_beta @ s)[..., 0]).sigmoid()
        W_t = W + outer(k_t, beta_t * (v_t - read(W, k_t)))
        y_t = read(W_t, q_t)
        if mask is not None:
            counts = mask[:, t, None, None]
            W_t, y_t = torch.where(counts[..., None], W_t, W), torch.where(counts, y_t, y)
        W, y = W_t, y_t
        ys.append(y)
    return torch.stack(ys, 1) if ys else x[..., :D], W


def _forward(
    x: Tensor, R: Tensor, W: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keep, per token: q' and k' [T, HB, 2, D], the error v' - W^T k' [T, HB, 1, D], beta' [T, HB, 1, 1]."""
    B, T, H, _ = x.shape
    D, N = W.shape[-1], H * B
    x, counts = tokens_first(x), None if mask is None else mask.T[:, None, :, None].contiguous()
    W, y = heads_first(W).view(N, D, D), heads_first(y)
    ys, keys, error, beta = (x.new_empty(T, *shape) for shape in ((H, B, D), (N, 2, D), (N, 1, D), (N, 1, 1)))
    for t in range(T):
        a = torch.baddbmm(x[t], y.tanh(), R.mT)
        torch.softmax(a[..., : 2 * D].reshape(N, 2, D), -1, out=keys[t])
        rate = a[..., 3 * D :].sigmoid()
        # At a masked token nothing is written.
        beta[t] = (rate if counts is None else rate * counts[t]).view(N, 1, 1)
        q, k = keys[t, :, :1], keys[t, :, 1:]
        reads = keys[t] @ W
        torch.sub(a[..., 2 * D : 3 * D].reshape(N, 1, D), reads[:, 1:], out=error[t])
        u = beta[t] * error[t]
        W.addcmul_(k.mT, u)
        new = torch.addcmul(reads[:, :1], (q * k).sum(-1, keepdim=True), u).view(H, B, D)
        y = new if counts is None else torch.where(counts[t], new, y)
        ys[t] = y
    return batch_first(ys), heads_first(W.view(H, B, D, D)), keys, error, beta


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    x, R, _, y, mask = inputs
    ys, W, keys, error, beta = outputs
    B, T, H, D = ys.shape
    s, counts = tokens_first(before(y, ys)).tanh_(), None if mask is None else mask.T[:, None, :, None].contiguous()
    dys, G = (torch.zeros_like(z) if g is None else g for g, z in zip(gradients, (ys, W), strict=False))
    dys, W, G = tokens_first(dys), heads_first(W).flatten(0, 1), heads_first(G).flatten(0, 1)
    dx, dy = x.new_empty(T, H, B, 3 * D + 1), torch.zeros_like(heads_first(y))
    for t in reversed(range(T)):
        dy = dy + dys[t]
        past = None if counts is None else dy.masked_fill(counts[t], 0)  # of a masked token, the y before it
        here = dy if past is None else dy - past
        dx[t] = _undo(here.view(H * B, 1, D), W, G, keys[t], error[t], beta[t]).view(H, B, 3 * D + 1)
        ds = dx[t] @ R
        dy = torch.addcmul(ds, ds, s[t].square(), value=-1)
        dy = dy if past is None else dy + past
    # What R gave to all tokens, in one product per head.
    dR = dx.permute(1, 3, 0, 2).flatten(2) @ s.permute(1, 0, 2, 3).flatten(1, 2)
    return [batch_first(dx), dR.contiguous(), heads_first(G.view(H, B, D, D)), heads_first(dy)]


def _undo(dy: Tensor, W: Tensor, G: Tensor, keys: Tensor, error: Tensor, beta: Tensor) -> Tensor:
    """Bring W and its gradient G back, in place, to before a token; return what flows to its x, [HB, 1, 3D+1]."""
    q, k, u = keys[:, :1], keys[:, 1:], beta * error
    du = torch.addcmul(k @ G, (q * k).sum(-1, keepdim=True), dy)  # G still lacks q dy^T of the read after the write
    by_write = u @ G.mT
    W.addcmul_(k.mT, u, value=-1)
    dv = beta * du
    rows = torch.cat([dy, -dv], 1)
    dkeys = torch.addcmul(rows @ W.mT, (u * dy).sum(-1, keepdim=True), keys.flip(1))
    dkeys[:, 1:] += by_write
    G.baddbmm_(keys.mT, rows)
    dbeta = (du * error).sum(-1, keepdim=True) * beta * (1 - beta)
    return torch.cat([softmax_gradient(keys, dkeys).flatten(1)[:, None], dv, dbeta], -1)


def _fake(
    x: Tensor, R: Tensor, W: Tensor, y: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, H, _ = x.shape
    D, N = W.shape[-1], H * B
    shapes = ((B, T, H, D), (B, H, D, D), (T, N, 2, D), (T, N, 1, D), (T, N, 1, 1))
    ys, new, keys, error, beta = (x.new_empty(shape) for shape in shapes)
    return ys, new, keys, error, beta


_run = differentiable("recurrent_delta", _forward, _backward, _fake, composite=loop)
