r"""The self-referential weight matrix: a matrix that makes the keys, queries and learning rates of its own updates.

Every step depends on the matrix that the step before it left, so tokens come one by one. The torch form is a forward
and a backward pass written by hand: they keep a few vectors per token instead of all matrices, and the backward pass
undoes the writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_mask, check_tensor, keep_valid
from algornn.triton_kernels.dispatch import Tensors, choose_backend, differentiable, under_transform
from algornn.triton_kernels.sequential import outer, read, softmax_gradient

RATES = 4  # learning rates: of the columns for y, q, k, and of their own


def self_referential(x: Tensor, W: Tensor, mask: Tensor | None = None, backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""Run a self-referential weight matrix over a sequence, separately for every head.

    .. math::
        [y_t, a^q_t, a^k_t, a^\beta_t] &= x_t W_{t-1} \\
        q_t = \mathrm{softmax}(a^q_t), \quad k_t &= \mathrm{softmax}(a^k_t), \quad \eta_t = \sigma(a^\beta_t) \\
        W_t &= W_{t-1} + k_t^\top [\eta_{t,g} (q_t W_{t-1} - k_t W_{t-1})_g]_g

    where g runs over the four groups of columns, :math:`W = [W^y | W^q | W^k | w^\beta]`, of D, D, D and 4 columns. The
    output is read before the update.

    Args:
        x: ``[B, T, H, D]``, used as it is: no softmax.
        W: the matrix before the first token, ``[B, H, D, 3D+4]``.
        mask: ``[B, T]`` bool; False leaves W bit-identical, and the output there is 0.
        backend: ``"auto"``, ``"triton"``, ``"torch"`` or ``"reference"`` (the literal loop over tokens).

    Returns:
        The outputs y ``[B, T, H, D]`` in the dtype of x, and the new W (float32 for half-precision inputs).

    Raises:
        ValueError: a wrong shape or device, or a backend that is unknown or cannot run.
        TypeError: a wrong dtype.

    Source: Irie, Schlag, Csordas and Schmidhuber (2022), "A modern self-referential weight matrix that learns to
    modify itself", eq. 5 to 8, in the row convention.
    """
    sizes: dict[str, int] = {}
    check_tensor("x", x, "B T H D", sizes)
    sizes["3D+4"] = 3 * sizes["D"] + RATES
    # A carried matrix is float32 when the inputs are half precision.
    check_tensor("W", W, "B H D 3D+4", sizes, x, (accumulation_dtype(x),))
    check_mask(mask, sizes, x)
    backend = choose_backend("self_referential", backend, x, lambda: _kernels().refusal(x.shape[-1]))
    with torch.autocast(x.device.type, enabled=False):
        to = accumulation_dtype(x)
        # A masked token is x = 0: then y = 0, and k = q is written nowhere.
        rows = keep_valid(x.to(to), mask)
        form = _kernels().run if backend == "triton" else _run
        if backend == "reference":
            y, new = loop(rows, W.to(to), mask)
        else:
            y, new = (loop if under_transform() else form)(rows, W.to(to))[:2]
        return y.to(x.dtype), new


def _kernels() -> ModuleType:
    from algornn.triton_kernels import self_referential_triton

    return self_referential_triton


def loop(x: Tensor, W: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The equations, token by token: the oracle of every other form."""
    D = x.shape[-1]
    ys = []
    for t in range(x.shape[1]):
        y, q, k, eta = read(W, x[:, t]).split([D, D, D, RATES], -1)
        q, k, eta = q.softmax(-1), k.softmax(-1), eta.sigmoid()
        rates = torch.cat([eta[..., :3].repeat_interleave(D, -1), eta[..., 3:].expand_as(eta)], -1)
        W_t = W + outer(k, rates * (read(W, q) - read(W, k)))
        W = W_t if mask is None else torch.where(mask[:, t, None, None, None], W_t, W)
        ys.append(y)
    return torch.stack(ys, 1) if ys else x, W


def _forward(x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keep, per token: q and k [T, BH, 2, D], eta [T, BH, 4], and the change (q - k) W without eta [T, BH, 3D+4]."""
    B, T, H, D = x.shape
    N, M, groups = B * H, W.shape[-1], _groups(W)
    x, W = x.transpose(0, 1).reshape(T, N, 1, D), W.reshape(N, D, M).clone()
    ys, keys, eta, change = (x.new_empty(T, N, *shape) for shape in ((D,), (2, D), (RATES,), (1, M)))
    for t in range(T):
        a = (x[t] @ W)[:, 0]
        ys[t] = a[:, :D]
        torch.softmax(a[:, D : 3 * D].unflatten(-1, (2, D)), -1, out=keys[t])
        torch.sigmoid(a[:, 3 * D :], out=eta[t])
        q, k = keys[t, :, :1], keys[t, :, 1:]
        torch.bmm(q - k, W, out=change[t])
        W.addcmul_(k.mT, eta[t].index_select(1, groups)[:, None] * change[t])
    ys = ys.view(T, B, H, D).transpose(0, 1).contiguous()
    return ys, W.view(B, H, D, M), keys, eta, change


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    x, W = inputs
    W, keys, eta, change = outputs[1:]
    B, T, H, D = x.shape
    N, M, groups = B * H, W.shape[-1], _groups(W)
    x, W = x.transpose(0, 1).reshape(T, N, 1, D), W.reshape(N, D, M).clone()
    dys = torch.zeros_like(outputs[0]) if gradients[0] is None else gradients[0]
    dys = dys.transpose(0, 1).reshape(T, N, 1, D)
    G = torch.zeros_like(W) if gradients[1] is None else gradients[1].reshape(N, D, M).clone()
    sums = torch.nn.functional.one_hot(groups, RATES).to(x.dtype)  # [3D+4, 4], sums the columns of a group
    dx = torch.empty_like(x)
    for t in reversed(range(T)):
        q, k, rates = keys[t, :, :1], keys[t, :, 1:], eta[t].index_select(1, groups)[:, None]
        u = rates * change[t]
        du, dk = k @ G, u @ G.mT
        W.addcmul_(k.mT, u, value=-1)
        dchange = rates * du
        step = dchange @ W.mT
        dkeys = softmax_gradient(keys[t], torch.cat([step, dk - step], 1)).view(N, 1, 2 * D)
        deta = (du * change[t]) @ sums * (eta[t] * (1 - eta[t]))[:, None]
        da = torch.cat([dys[t], dkeys, deta], -1)
        torch.bmm(da, W.mT, out=dx[t])
        G.baddbmm_(torch.cat([x[t], q - k], 1).mT, torch.cat([da, dchange], 1))
    return [dx.view(T, B, H, D).transpose(0, 1).contiguous(), G.view(B, H, D, M)]


def _groups(W: Tensor) -> Tensor:
    """Return the number of the learning rate of every column, ``[3D+4]``."""
    D = W.shape[-2]
    return torch.arange(RATES, device=W.device).repeat_interleave(torch.tensor([D, D, D, RATES], device=W.device))


def _fake(x: Tensor, W: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, H, D = x.shape
    N, M = B * H, W.shape[-1]
    shapes = ((B, T, H, D), (B, H, D, M), (T, N, 2, D), (T, N, RATES), (T, N, 1, M))
    ys, new, keys, eta, change = (x.new_empty(shape) for shape in shapes)
    return ys, new, keys, eta, change


_run = differentiable("self_referential", _forward, _backward, _fake, composite=loop)
