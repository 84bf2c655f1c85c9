"""A metric that keeps one score per example, so that repeated examples count once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class ExampleScores(Metric):
    """Exact match, token accuracy and mean loss over a fixed set of examples, in all and by group.

    Distributed samplers repeat examples to fill the last batch. Scores are stored by example id, and ranks are merged
    by maximum, so that a repeat changes nothing and any number of processes gives the value of one.

    Args:
        size: number of examples of the set.
        groups: group names, in the order of the group indices that `update` gets.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor
    loss: Tensor
    group: Tensor

    def __init__(self, size: int, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups)
        for name in ("right", "asked", "group"):
            self.add_state(name, torch.full((size,), -1), dist_reduce_fx="max")
        self.add_state("loss", torch.full((size,), -torch.inf), dist_reduce_fx="max")

    def update(self, ids: Tensor, right: Tensor, asked: Tensor, loss: Tensor, group: Tensor | None = None) -> None:
        """Store the scores of some examples, all ``[B]``.

        Args:
            ids: their ids.
            right: how many of an example's answers were right.
            asked: how many answers an example asks for.
            loss: the example's loss.
            group: index of its group.
        """
        self.right[ids] = right.to(self.right.dtype)
        self.asked[ids] = asked.to(self.asked.dtype)
        self.loss[ids] = loss.detach().to(self.loss.dtype)
        if group is not None:
            self.group[ids] = group

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss``, ``sequence_accuracy``, ``examples``, the last two also as ``<group>/...``.

        Where examples ask for several answers, ``token_accuracy`` (the share of right answers) stands beside
        ``sequence_accuracy`` (the share of examples with all answers right).
        """
        seen = self.right >= 0
        several = bool((self.asked > 1).any())
        scores = {"loss": self.loss[seen].mean()} | self._accuracy(seen, several)
        for index, name in enumerate(self.groups):
            rows = seen & (self.group == index)
            if rows.any():
                scores |= {f"{name}/{key}": value for key, value in self._accuracy(rows, several).items()}
        return scores

    def _accuracy(self, rows: Tensor, several: bool) -> dict[str, Tensor]:
        rows = rows & (self.asked > 0)  # an example that asks for nothing is neither right nor wrong
        right, asked = self.right[rows], self.asked[rows]
        scores = {"sequence_accuracy": (right == asked).float().mean(), "examples": rows.sum()}
        return scores | ({"token_accuracy": right.sum() / asked.sum()} if several else {})
