"""Retrieval as regression: the vector that a memory gives for a key, against the one-hot vector of its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from algornn.learners.learner import Learner, Scored


class KeyValueRetrieval(Learner):
    r"""Train a memory by :math:`\tfrac12 \|\hat y - o\|^2` of what it reads, averaged over queries.

    An answer of zeros has the loss 0.5. A query is right where the largest entry is that of its value. `model` is
    ``forward(keys, values, query) -> vectors``, such as `KeyValueRetriever`; batches are
    `algornn.datamodules.KeyValueBatch` or any named tuple with the same fields.
    """

    reads = ("keys", "values", "query", "target")

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Half the mean squared distance over queries."""
        return _half_squared_distance(call(batch.keys, batch.values, batch.query), batch.target).mean()

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch."""
        y = self(batch.keys, batch.values, batch.query)
        right = (y.argmax(-1) == batch.target).sum(1)
        asked = (batch.target >= 0).sum(1)
        yield batch.id, right, asked, _half_squared_distance(y, batch.target).mean(1), batch.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the value of every query ``[B, Q]``."""
        return self(batch.keys, batch.values, batch.query).argmax(-1)


def _half_squared_distance(y: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (y - F.one_hot(target, y.shape[-1]).to(y.dtype)).square().sum(-1)
