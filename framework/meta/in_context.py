"""In-context learning: a network is trained over many tasks to learn each from a stream of its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from algornn.learners.learner import Learner
from algornn.models.in_context import prediction_losses


class InContextLearner(Learner):
    r"""Train a network to learn: cross-entropy of every example's class, which is told only after it was predicted.

    Or, where the examples have numbers, the squared error of each.

    With streams :math:`(x_1, y_1), \ldots, (x_T, y_T)` of tasks drawn anew,

    .. math:: L = \frac{1}{T} \sum_t - \log p(y_t \mid x_1, y_1, \ldots, x_{t-1}, y_{t-1}, x_t)

    The weights hold the learning algorithm, the state what it has learnt. Scores: the accuracy on the last example of a
    stream (`sequence_accuracy`), over all examples (`mean_accuracy`), and after 1, 2, 5, 10, ... of them; of numbers
    likewise the squared error (`squared_error`, `mean_squared_error`).

    Args:
        model: the network, ``forward(x [B, T, D], y [B, T]) -> logits [B, T, C]`` that uses no class before it was
            predicted: `InContextNetwork`, `VSML`; for numbers y with one output, C = 1.
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
        """Mean cross-entropy or squared error over all examples of all streams."""
        return prediction_losses(call(batch.x, batch.y), batch.y).mean()

    def scored(self, batch: Any) -> Iterator[Any]:
        """Yield ids, right answers or squared errors ``[B, T]``, and losses ``[B]`` of a batch's streams."""
        predicted = self(batch.x, batch.y)
        losses = prediction_losses(predicted, batch.y)
        numbers = batch.y.is_floating_point()
        yield batch.id, losses if numbers else predicted.argmax(-1) == batch.y, losses.mean(1)

    def new_scores(self, dataset: Any) -> Metric:
        """Return the metric that scores the streams of a dataset."""
        y = torch.as_tensor(dataset[0].y)
        return InContextScores(len(dataset), len(y), "squared_error" if y.is_floating_point() else "accuracy")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predicted classes or numbers ``[B, T]``."""
        predicted = self(batch.x, batch.y)
        return predicted[..., 0] if batch.y.is_floating_point() else predicted.argmax(-1)


class InContextScores(Metric):
    """Accuracy or squared error by the number of examples that were read before; repeats of a stream count once.

    Args:
        size: number of streams.
        length: examples of a stream T.
        measure: "accuracy" or "squared_error".
    """

    full_state_update = False
    found: Tensor
    loss: Tensor

    def __init__(self, size: int, length: int, measure: str = "accuracy") -> None:
        super().__init__()
        self.measure = measure
        self.add_state("found", torch.full((size, length), -torch.inf), dist_reduce_fx="max")
        self.add_state("loss", torch.full((size,), -torch.inf), dist_reduce_fx="max")

    def update(self, ids: Tensor, found: Tensor, loss: Tensor) -> None:
        """Store the scores of some streams: ids ``[B]``, right answers or errors ``[B, T]``, losses ``[B]``."""
        self.found[ids], self.loss[ids] = found.detach().to(self.found), loss.detach().to(self.loss)

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss``, ``examples``, and the measure: of the last example, of all, and ``<measure>_after_<n>``."""
        seen = self.found[:, 0] != -torch.inf
        curve = self.found[seen].mean(0)
        last = len(curve) - 1
        after = [*(n for n in (0, 1, 2, 5, 10, 20, 50, 100, 200) if n < last), last]
        of_last = "sequence_accuracy" if self.measure == "accuracy" else self.measure
        scores = {"loss": self.loss[seen].mean(), of_last: curve[-1], f"mean_{self.measure}": curve.mean()}
        return scores | {"examples": seen.sum()} | {f"{self.measure}_after_{n}": curve[n] for n in after}
