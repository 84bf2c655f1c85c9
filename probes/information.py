r"""Mutual information between the columns of two tables of categories, in bits.

.. math::
    I(a; c) = H(a) + H(c) - H(a, c), \quad H = -\sum_v p_v \log_2 p_v

from counts. With Miller and Madow's correction each entropy of m seen values has (m - 1) / (2 n ln 2) added.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Indicators(NamedTuple):
    """Columns of categories, one indicator per column and value.

    Args:
        matrix: ``[n, M]``, 1 where the example has that value in that column.
        column: ``[M]``, which column an indicator belongs to.
        value: ``[M]``, the value that it stands for.
    """

    matrix: Tensor
    column: Tensor
    value: Tensor

    def take(self, rows: Tensor) -> Indicators:
        """The given examples."""
        return self._replace(matrix=self.matrix[rows])


def indicators(columns: Tensor) -> Indicators:
    """The indicators of whole numbers ``[n, C]``; float32, in which counts up to 2^24 are exact."""
    matrices, owners, values = [], [], []
    for index, column in enumerate(columns.unbind(1)):
        seen, inverse = column.unique(return_inverse=True)
        matrices.append(torch.nn.functional.one_hot(inverse, max(len(seen), 1)).float())
        owners.append(torch.full((matrices[-1].shape[1],), index))
        values.append(seen)
    return Indicators(torch.cat(matrices, 1), torch.cat(owners), torch.cat(values))


def information(a: Indicators, c: Indicators, corrected: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """I(a_i; c_j) of all columns ``[A, C]``, and the entropies H(a_i) ``[A]`` and H(c_j) ``[C]``, in bits.

    Args:
        a: the indicators of n examples.
        c: others of the same examples.
        corrected: whether entropies have Miller and Madow's correction. I may then be negative.
    """
    n = len(a.matrix)
    joint = (a.matrix.T @ c.matrix).double()
    A, C = int(a.column.max()) + 1, int(c.column.max()) + 1
    both = torch.zeros(A, joint.shape[1], dtype=torch.float64).index_add(0, a.column, _terms(joint, n, corrected))
    both = torch.zeros(A, C, dtype=torch.float64).index_add(1, c.column, both)
    H_a, H_c = (
        torch.zeros(size, dtype=torch.float64).index_add(0, x.column, _terms(x.matrix.sum(0).double(), n, corrected))
        for x, size in ((a, A), (c, C))
    )
    missing = 1 / (2 * n * math.log(2)) if corrected else 0.0  # the "- 1" of m - 1, once per entropy
    information = H_a[:, None] + H_c[None] - both - missing
    return information.where(information.abs() > 1e-12, 0), H_a - missing, H_c - missing


def binned(vectors: Tensor, bins: int) -> Tensor:
    """Every coordinate of finite vectors ``[n, d]`` in `bins` bins of equally many examples; equal values share one."""
    n = len(vectors)
    edges = vectors.sort(0).values[[n * k // bins for k in range(1, bins)]]  # [bins - 1, d]
    counted = torch.zeros(vectors.shape, dtype=torch.long)
    for edge in edges:
        counted += vectors >= edge
    return counted


def _terms(counts: Tensor, n: int, corrected: bool) -> Tensor:
    """What each cell adds to the entropy."""
    terms = torch.special.entr(counts / n) / math.log(2)
    return terms + counts.gt(0) / (2 * n * math.log(2)) if corrected else terms
