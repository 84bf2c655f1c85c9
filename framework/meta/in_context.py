"""In-context learning: a network is trained over many tasks to learn each from a stream of its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from algornn.learners.learner import Learner


class InContextLearner(Learner):
    r"""Train a network to learn: cross-entropy of every example's class, which is told only after it was predicted.

    With streams :math:`(x_1, y_1), \ldots, (x_T, y_T)` of tasks drawn anew,

    .. math:: L = \frac{1}{T} \sum_t - \log p(y_t \mid x_1, y_1, \ldots, x_{t-1}, y_{t-1}, x_t)

    The weights hold the learning algorithm, the state what it has learnt. Scores: the accuracy on the last example of a
    stream (`sequence_accuracy`), over all examples (`mean_accuracy`), and after 1, 2, 5, 10, ... of them.

    Args:
        model: the network, ``forward(x [B, T, D], y [B, T]) -> logits [B, T, C]`` that uses no class before it was
            predicted: `InContextNetwork`, `VSML`.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.

    Batches are `algornn.datamodules.TaskBatch` or any named tuple with the same fields.

    Source: Hochreiter, Younger and Conwell (2001); Kirsch, Harrison, Sohl-Dickstein and Metz (2022), "General-Purpose
    In-Context Learning by Meta-Learning Transformers", section 3.
    """

    reads = ("x", "y")

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy over all examples of all streams."""
        return F.cross_entropy(call(batch.x, batch.y).flatten(0, 1), batch.y.flatten())

    def scored(self, batch: Any) -> Iterator[Any]:
        """Yield ids, right answers ``[B, T]`` and losses ``[B]`` of a batch's streams."""
        logits = self(batch.x, batch.y)
        loss = F.cross_entropy(logits.transpose(1, 2), batch.y, reduction="none").mean(1)
        yield batch.id, logits.argmax(-1) == batch.y, loss

    def new_scores(self, dataset: Any) -> Metric:
        """Return the metric that scores the streams of a dataset."""
        return InContextScores(len(dataset), len(dataset[0].y))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predicted classes ``[B, T]``."""
        return self(batch.x, batch.y).argmax(-1)


class InContextScores(Metric):
    """Accuracy by the number of examples that were read before, over a fixed set of streams; repeats count once.

    Args:
        size: number of streams.
        length: examples of a stream T.
    """

    full_state_update = False
    right: Tensor
    loss: Tensor

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.add_state("right", torch.full((size, length), -1, dtype=torch.int8), dist_reduce_fx="max")
        self.add_state("loss", torch.full((size,), -torch.inf), dist_reduce_fx="max")

    def update(self, ids: Tensor, right: Tensor, loss: Tensor) -> None:
        """Store the scores of some streams: ids ``[B]``, right answers ``[B, T]``, losses ``[B]``."""
        self.right[ids], self.loss[ids] = right.to(torch.int8), loss.detach().to(self.loss.dtype)

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss``, ``sequence_accuracy``, ``mean_accuracy``, ``examples``, and ``accuracy_after_<n>``."""
        seen = self.right[:, 0] >= 0
        curve = self.right[seen].float().mean(0)
        scores = {"loss": self.loss[seen].mean(), "sequence_accuracy": curve[-1], "mean_accuracy": curve.mean()}
        last = len(curve) - 1
        after = [*(n for n in (0, 1, 2, 5, 10, 20, 50, 100, 200) if n < last), last]
        return scores | {"examples": seen.sum()} | {f"accuracy_after_{n}": curve[n] for n in after}
