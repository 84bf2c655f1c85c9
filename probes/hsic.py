r"""Centred kernel alignment of two sets of activations of the same inputs, without the bias of few examples.

For centred activations :math:`X \in R^{n \times p}, Y \in R^{n \times q}` with Gram matrices :math:`K = X X^T,
L = Y Y^T`, and their copies with zero diagonal :math:`\tilde K, \tilde L`:

.. math::
    HSIC_1(K, L) = \frac{1}{n (n - 3)} [ tr \tilde K \tilde L + \frac{(1^T \tilde K 1)(1^T \tilde L 1)}{(n-1)(n-2)}
    - \frac{2}{n-2} 1^T \tilde K \tilde L 1 ]

    CKA = HSIC_1(K, L) / \sqrt{HSIC_1(K, K) HSIC_1(L, L)}

The biased CKA has :math:`\|X^T Y\|_F^2` in the place of HSIC_1; for independent Gaussian activations with p = q it is
about p / (n + p), so that with few examples everything looks alike.

Source: Kornblith et al. (2019), ICML, https://arxiv.org/abs/1905.00414; HSIC_1: Song et al. (2012), JMLR 13, eq. 5;
batches: Nguyen, Raghu and Kornblith (2021), ICLR, https://arxiv.org/abs/2010.15327, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-12  # what is smaller than this part of the terms that it is the difference of counts as 0


def cka(X: Sequence[Tensor], Y: Sequence[Tensor], debiased: bool = True) -> float:
    """Linear CKA of activations given in batches; a single batch for all examples is the exact form.

    The three HSIC terms are averaged over the batches, weighted by their sizes, and divided once: a mean of each
    batch's CKA would not tend to the CKA of all.

    Args:
        X: activations ``[n_b, p_b]`` of batch b; their sizes p may differ from batch to batch.
        Y: activations ``[n_b, q_b]`` of the same examples.
        debiased: whether to use HSIC_1; batches of fewer than four examples, which it needs, are left out.

    Returns:
        1 for equal activations up to rotation, scale and shift; about 0, and so sometimes below, for independent ones;
        not-a-number where it is not defined: one side is constant, or all its examples are equally far apart.
    """
    least = 4 if debiased else 2
    total = [0.0, 0.0, 0.0]
    for x, y in zip(X, Y, strict=True):
        if len(x) >= least:
            x, y = centred(x), centred(y)
            terms = hsic(x, y, debiased), hsic(x, x, debiased), hsic(y, y, debiased)
            total = [so_far + len(x) * term for so_far, term in zip(total, terms, strict=True)]
    xy, xx, yy = total
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def hsic(X: Tensor, Y: Tensor, debiased: bool = True) -> float:
    r"""HSIC_1, or the biased HSIC, of centred activations ``[n, p]`` and ``[n, q]``; linear in each Gram matrix.

    With centred rows of squared norms a, b, the sums over the zero-diagonal matrices are
    :math:`tr \tilde K \tilde L = \|X^T Y\|_F^2 - a \cdot b`, :math:`\tilde K 1 = -a` and :math:`\tilde L 1 = -b`.
    """
    n = len(X)
    energy = _energy(X, Y)
    if not debiased:
        return energy / (n - 1) ** 2
    a, b = X.square().sum(1), Y.square().sum(1)
    ab = float(a @ b)
    total = energy - ab + float(a.sum() * b.sum()) / ((n - 1) * (n - 2)) - 2 * ab / (n - 2)
    return total / (n * (n - 3)) if abs(total) > ROUNDING * max(energy, ab) else 0.0


def _energy(X: Tensor, Y: Tensor) -> float:
    """The squared norm of X^T Y: from the features, or from the Gram matrices where these are smaller."""
    if max(X.shape[1], Y.shape[1]) < len(X):
        return float((X.T @ Y).square().sum())
    return float(((X @ X.T) * (Y @ Y.T)).sum())


def centred(X: Tensor) -> Tensor:
    """Activations less their mean, in float64; exactly 0 where they are constant up to rounding."""
    X = X.double()
    difference = X - X.mean(0)
    constant = difference.square().sum() <= ROUNDING**2 * X.square().sum()
    return torch.zeros_like(X) if constant else difference


def compact(X: Tensor) -> Tensor:
    """Activations ``[n, min(n, p)]`` with the same inner products, in float64: what CKA is made of, in less space."""
    X = X.double()
    return X if X.shape[1] <= len(X) else torch.linalg.qr(X.T, mode="r").R.T
