"""A memory of key-value pairs that is asked for the value of a key: what a fast weight memory can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory import EluPlusOne
from algornn.memory.linear_transformer import sum_normalized

RULES = ("sum", "delta", "softmax")


class KeyValueRetriever(nn.Module):
    r"""Store pairs (key i, value j) in a memory, then read the value of a key as a vector.

    With trained key embeddings :math:`e_i \in R^{\lfloor 2.2 S \rfloor}`, fixed one-hot values :math:`o_j`, and
    :math:`k = \phi(W_k [o_j; e_i] + b_k)`, :math:`q = \phi(W_q e_i + b_q)`:

    .. math::
        \text{sum:} \quad & \hat y = \frac{\sum_t v_t (k_t \cdot q)}{\sum_t k_t \cdot q + 10^{-6}} \\
        \text{delta:} \quad & S_t = S_{t-1} + \beta_t \hat k_t (v_t - S_{t-1}^\top \hat k_t)^\top, \quad
        \hat y = S^\top \hat q \\
        \text{softmax:} \quad & \hat y = \sum_t v_t \, \mathrm{softmax}_t(k_t \cdot q / \sqrt{d}), \quad \phi(x) = x

    where :math:`\hat k = k / \sum_i k_i`, :math:`\hat q` alike, :math:`\beta = \sigma(w_\beta [o_j; e_i] + b_\beta)`.

    Args:
        num_keys: number of keys S.
        num_values: number of values, the width of the memory's values.
        rule: ``"sum"``, ``"delta"`` or ``"softmax"`` (ordinary attention, which keeps all pairs).
        feature_map: :math:`\phi`; None: elu + 1. Not used by softmax.
        key_size: d, width of keys and queries before :math:`\phi`.

    Raises:
        ValueError: an unknown rule.

    Source: Schlag, Irie and Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers", sec. 6.1,
    and the released code.
    """

    def __init__(
        self,
        num_keys: int,
        num_values: int,
        rule: str = "delta",
        feature_map: nn.Module | None = None,
        key_size: int = 64,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {', '.join(map(repr, RULES))}, got {rule!r}.")
        self.rule, self.num_values, self.key_size = rule, num_values, key_size
        self.feature_map = feature_map or EluPlusOne()
        width = int(1.1 * (num_keys + num_values))
        self.embedding = nn.Embedding(num_keys, width)
        self.key, self.query = nn.Linear(num_values + width, key_size), nn.Linear(width, key_size)
        for layer in (self.key, self.query):
            nn.init.uniform_(layer.weight, -(key_size**-0.5), key_size**-0.5)
        self.rate = nn.Linear(num_values + width, 1) if rule == "delta" else None

    def forward(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Read the values of some keys after all pairs are stored.

        Args:
            keys: ids ``[B, L]``.
            values: ids ``[B, L]``, that of the pair's value.
            query: ids of keys ``[B, Q]``.

        Returns:
            The vectors read, ``[B, Q, num_values]``; a perfect memory gives the one-hot vector of the value.
        """
        v = F.one_hot(values, self.num_values).to(self.embedding.weight.dtype)
        k = self._of_pairs(self.key, keys, values)
        q = F.embedding(query, self.query(self.embedding.weight))
        if self.rule == "softmax":
            return F.scaled_dot_product_attention(q, k, v)
        # In one call: a random map draws its rows once per call.
        k, q = self.feature_map(torch.cat([k, q], 1)).split([k.shape[1], q.shape[1]], 1)
        if self.rule == "sum":
            scores = q @ k.mT
            return scores @ v / (scores.sum(-1, keepdim=True) + 1e-6)
        beta = self._of_pairs(self.rate, keys, values).sigmoid()  # type: ignore[arg-type]  # this rule has one
        return _delta_read(sum_normalized(q), sum_normalized(k), v, beta)

    def _of_pairs(self, layer: nn.Linear, keys: Tensor, values: Tensor) -> Tensor:
        """Apply a layer to [one-hot value; key embedding], from tables over all values and all keys."""
        of_value, of_key = layer.weight.split([self.num_values, self.embedding.embedding_dim], 1)
        of_keys = F.linear(self.embedding.weight, of_key, layer.bias)
        return F.embedding(values, of_value.mT) + F.embedding(keys, of_keys)


def _delta_read(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    r"""Read ``[B, Q, V]`` after all pairs are written, without the state.

    .. math::
        \hat y = q K^\top A^{-1} \mathrm{diag}(\beta) V, \quad A = I + \mathrm{tril}(\mathrm{diag}(\beta) K K^\top, -1)

    with `beta` ``[B, L, 1]``. The system is solved for the queries, which are few, and not for the values.
    """
    gram = k @ (beta * k).mT  # its strict upper half is that of A's transpose; the solver looks at no more
    weights = torch.linalg.solve_triangular(gram, k @ q.mT, upper=True, unitriangular=True)
    return weights.mT @ (beta * v)
