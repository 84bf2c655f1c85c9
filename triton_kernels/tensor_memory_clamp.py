r"""The clamp of `tensor_memory`, exactly and without the state: its norm obeys a scalar recursion.

With :math:`S' = \gamma_t S_{t-1}`, the Gram matrices of the keys and :math:`c_t = 1 / \max(1, \|S_t\|)` of the
unclamped state,

.. math:: \|S' + \sum_m p_m u_m^\top\|^2 = \|S'\|^2 + 2 \sum_m u_m \cdot S'^\top p_m
    + \sum_{mn} (p_m \cdot p_n)(u_m \cdot u_n)

so a token costs as much as it has predecessors, whatever the size of the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors, differentiable

Pair = tuple[Tensor, Tensor]


def clamped_scan(
    write: Pair,
    erase: Pair | None,
    v: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    mask: Tensor | None,
    first: Pair | None,
    squared: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r"""Return the updates u ``[B, T, M, V]`` and the factors c ``[B, T]``, by operations that can be differentiated.

    Args:
        write: write keys ``[B, T, M, E]``, ``[B, T, M, R]``.
        erase: erase keys; None: no erase-read.
        v: values ``[B, T, M, V]``.
        beta: ``[B, T, M]``.
        decay: ``[B, T]``.
        mask: ``[B, T]``; a masked token is not clamped.
        first: reads of the initial state with the write keys and with the erase keys, ``[B, T, M, V]`` each.
        squared: the initial state's squared norm ``[B]``.
    """
    B, T, M, V = v.shape
    erase_keys = write if erase is None else erase
    same_keys = erase_keys[0] is write[0] and erase_keys[1] is write[1]
    to_write = _gram(write, write)
    to_erase = to_write if same_keys else _gram(erase_keys, write)
    squared = v.new_zeros(B) if squared is None else squared
    past, g = v.new_zeros(B, 0, V), v.new_ones(B)  # updates as the clamps and decays since have left them
    updates, factors = [], []
    for t in range(T):
        if decay is not None:
            past, g, squared = past * decay[:, t, None, None], g * decay[:, t], squared * decay[:, t] ** 2
        at_p = to_write[:, t, :, : t * M] @ past
        at_q = at_p if same_keys else to_erase[:, t, :, : t * M] @ past
        if first is not None:
            at_p, at_q = (a + g[:, None, None] * f[:, t] for a, f in zip((at_p, at_q), first, strict=True))
        u = v[:, t] if erase is None else v[:, t] - at_q
        u = u if beta is None else u * beta[:, t, :, None]
        own = to_write[:, t, :, t * M : (t + 1) * M]
        total = squared + 2 * (u * at_p).sum((1, 2)) + (own * (u @ u.mT)).sum((1, 2))
        # max(1, norm) through the clamped square: the gradient stays finite at norm 0.
        c = total.clamp(min=1).rsqrt()
        c = c if mask is None else c.masked_fill(~mask[:, t], 1.0)
        past, g, squared = torch.cat([past, u], 1) * c[:, None, None], g * c, total * c**2
        updates.append(u)
        factors.append(c)
    return torch.stack(updates, 1), torch.stack(factors, 1)


def _gram(left: Pair, right: Pair) -> Tensor:
    """All inner products of the keys `left` with the keys `right`, ``[B, T, M, TM]``."""
    e, r = (a.flatten(1, 2) @ b.flatten(1, 2).mT for a, b in zip(left, right, strict=True))
    return (e * r).unflatten(1, left[0].shape[1:3])


# The Fast Weight Memory's case, one write per token that erases with its own key and no decay, backward by hand.


def _composite(
    e: Tensor, r: Tensor, v: Tensor, beta: Tensor | None, first: Tensor | None, squared: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    write, firsts = (e[:, :, None], r[:, :, None]), None if first is None else (first[:, :, None],) * 2
    beta = None if beta is None else beta[..., None]
    u, c = clamped_scan(write, write, v[:, :, None], beta, None, mask, firsts, squared)
    return u[:, :, 0], c


def _forward(
    e: Tensor, r: Tensor, v: Tensor, beta: Tensor | None, first: Tensor | None, squared: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return u ``[B, T, V]``, c ``[B, T]`` and, for the backward pass, the old values a and the squared norms N.

    e ``[B, T, E]``, r ``[B, T, R]``, v and first ``[B, T, V]``, beta and mask ``[B, T]``, squared ``[B]``.
    """
    B, T, _ = v.shape
    gram = (e @ e.mT) * (r @ r.mT)
    own = gram.diagonal(dim1=1, dim2=2)
    past, u, a = torch.zeros_like(v), torch.empty_like(v), torch.empty_like(v)
    c, norm = v.new_empty(B, T), v.new_empty(B, T)
    m, g = v.new_zeros(B) if squared is None else squared, v.new_ones(B, 1)
    for t in range(T):
        old = torch.bmm(gram[:, t, None, :t], past[:, :t])[:, 0] if t else torch.zeros_like(v[:, 0])
        old = old if first is None else torch.addcmul(old, g, first[:, t])
        new = v[:, t] - old if beta is None else (v[:, t] - old) * beta[:, t, None]
        total = m + (new * torch.addcmul(2 * old, own[:, t, None], new)).sum(1)
        factor = total.clamp(min=1).rsqrt()
        if mask is not None:
            factor = factor.masked_fill(~mask[:, t], 1.0)
        past[:, t] = new
        past[:, : t + 1] *= factor[:, None, None]
        m, g = total * factor * factor, g * factor[:, None]
        u[:, t], a[:, t], c[:, t], norm[:, t] = new, old, factor, total
    return u, c, a, norm


def _backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    r"""Run the adjoint recursion from the last token to the first, then all keys at once.

    With :math:`\bar a_t` the adjoint of the old value and :math:`W_{ts} = \prod_{s \le j < t} c_j`, the Gram matrix has
    the adjoint :math:`W_{ts} \bar a_t \cdot u_s` below the diagonal and :math:`\bar N_t \|u_t\|^2` on it.
    """
    e, r, _, beta, _, _, mask = inputs
    u, c, a, norm = outputs
    grams = e @ e.mT, r @ r.mT
    adjoints = _adjoints(gradients, u, c, a, norm, beta, mask, grams[0] * grams[1])
    return input_gradients(adjoints, grams, inputs, outputs)


def input_gradients(
    adjoints: Sequence[Tensor], grams: Pair, inputs: Sequence[Any], outputs: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the arguments, from what `_adjoints` returns; the two Gram matrices are overwritten."""
    e, r, v, beta, first, squared, _ = inputs
    u, c, a, _ = outputs
    du, da, dnorm, dsquared = adjoints
    by_entity, by_role = grams
    weight = _products(c)
    d = (da @ u.mT).mul_(torch.nn.functional.pad(weight[:, :-1], (0, 0, 1, 0)))
    d.diagonal(dim1=1, dim2=2).copy_(dnorm * u.square().sum(2))
    by_role *= d
    by_entity *= d
    found = [(by_role + by_role.mT) @ e, (by_entity + by_entity.mT) @ r, du if beta is None else du * beta[..., None]]
    if beta is not None:
        found.append((du * (v - a)).sum(2))
    if first is not None:
        found.append(da * torch.nn.functional.pad(c.cumprod(1)[:, :-1], (1, 0), value=1.0)[..., None])
    return found if squared is None else [*found, dsquared]


def _adjoints(
    gradients: Tensors, u: Tensor, c: Tensor, a: Tensor, norm: Tensor, beta: Tensor | None, mask: Tensor | None,
    gram: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The adjoints of updates, old values, squared norms and the initial squared norm."""
    du = torch.zeros_like(u) if gradients[0] is None else gradients[0].clone()
    outer = torch.zeros_like(c) if gradients[1] is None else gradients[1] * c
    da, dnorm, later = torch.empty_like(a), torch.empty_like(norm), torch.zeros_like(a)
    own = gram.diagonal(dim1=1, dim2=2)
    clamped = norm >= 1 if mask is None else (norm >= 1) & mask
    through, half = (~clamped).to(c.dtype), torch.where(clamped, 0.5 / norm, 0.0)
    dm, dlog = c.new_zeros(len(c)), c.new_zeros(len(c))  # of the carried squared norm, of the later tokens' -log c
    for t in reversed(range(u.shape[1])):
        later[:, t + 1 :] *= c[:, t, None, None]
        ahead = torch.bmm(gram[:, t, None, t + 1 :], later[:, t + 1 :])[:, 0]
        dn = torch.addcmul(dm * through[:, t], dlog - outer[:, t], half[:, t])
        old, new = a[:, t], u[:, t]
        dnew = du[:, t] + ahead + 2 * dn[:, None] * torch.addcmul(old, own[:, t, None], new)
        dold = 2 * dn[:, None] * new - (dnew if beta is None else dnew * beta[:, t, None])
        dlog = dlog + (new * ahead - old * dold).sum(1)
        du[:, t], da[:, t], dnorm[:, t], later[:, t], dm = dnew, dold, dn, dold, dn
    return du, da, dnorm, dm


def _products(c: Tensor) -> Tensor:
    """The weights of the tokens s in the state of t: products of c over [s, t], ``[B, T, T]``, 0 for s > t."""
    T = c.shape[1]
    later = torch.ones(T, T, dtype=torch.bool, device=c.device).tril()
    return torch.where(later, c[:, :, None], 1.0).cumprod(1).tril()


def _fake(e: Tensor, r: Tensor, v: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(v[..., 0]), torch.empty_like(v), torch.empty_like(v[..., 0])


scan = differentiable("tensor_memory_scan", _forward, _backward, _fake, _composite)
scan_composite = _composite
