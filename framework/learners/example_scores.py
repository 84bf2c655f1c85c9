"""A metric that keeps one score per example, so that repeated examples count once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class ExampleScores(Metric):
    """Exact-match accuracy and mean loss over a fixed set of examples, in all and by group.

    Distributed samplers repeat examples to fill the last batch. Scores are stored by example id, and ranks are merged
    by maximum, so that a repeat changes nothing and any number of processes gives the value of one.

    Args:
        size: number of examples of the set.
        groups: group names, in the order of the group indices that `update` gets.
    """

    full_state_update = False
    correct: Tensor
    loss: Tensor
    group: Tensor

    def __init__(self, size: int, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.add_state("correct", torch.full((size,), -1), dist_reduce_fx="max")
        self.add_state("group", torch.full((size,), -1), dist_reduce_fx="max")
        self.add_state("loss", torch.full((size,), -torch.inf), dist_reduce_fx="max")

    def update(self, ids: Tensor, correct: Tensor, loss: Tensor, group: Tensor | None = None) -> None:
        """Store the scores of some examples: their ids, whether each was right, its loss, its group (all ``[B]``)."""
        self.correct[ids] = correct.to(self.correct.dtype)
        self.loss[ids] = loss.detach().to(self.loss.dtype)
        if group is not None:
            self.group[ids] = group

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss``, ``sequence_accuracy`` and ``examples``, the last two also as ``<group>/...``."""
        seen = self.correct >= 0
        scores = {"loss": self.loss[seen].mean()} | self._accuracy(seen)
        for index, name in enumerate(self.groups):
            rows = seen & (self.group == index)
            if rows.any():
                scores |= {f"{name}/{key}": value for key, value in self._accuracy(rows).items()}
        return scores

    def _accuracy(self, rows: Tensor) -> dict[str, Tensor]:
        return {"sequence_accuracy": self.correct[rows].float().mean(), "examples": rows.sum()}
