"""Digit classification: a result whose digits are classes, all of which have to be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from algornn.learners.learner import Learner, Scored
from algornn.learners.token_tagging import NO_TARGET


class DigitClassification(Learner):
    """Train a network by cross-entropy of every digit; an example is right when all its digits are.

    Args:
        model: the network, ``forward(x) -> logits [B, digits, C]``, such as `FeedForward`.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.

    Batches have the fields ``x`` and ``target`` ``[B, digits]``, -100 where no digit is asked for, such as
    `algornn.datamodules.digit_arithmetic.DigitBatch`.
    """

    reads = ("x", "target")

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy of the digits that are asked for."""
        return F.cross_entropy(self._logits(call, batch).flatten(0, 1), batch.target.flatten())

    def terms(self, batch: Any) -> Tensor:
        """The number of digits that are asked for."""
        return (batch.target != NO_TARGET).sum()

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch."""
        logits, asked = self._logits(self, batch), batch.target != NO_TARGET
        right = ((logits.argmax(-1) == batch.target) & asked).sum(1)
        loss = F.cross_entropy(logits.transpose(1, 2), batch.target, reduction="none").sum(1)
        yield batch.id, right, asked.sum(1), loss, batch.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the digits of every example ``[B, digits]``."""
        return self._logits(self, batch).argmax(-1)

    def _logits(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """The network's logits.

        Raises:
            ValueError: they do not fit the target; data for recurrent networks need a network that reads steps.
        """
        logits: Tensor = call(batch.x)
        if logits.shape[:-1] != batch.target.shape:
            raise ValueError(
                f"Expected logits [B, digits, C] for targets {list(batch.target.shape)}, got {list(logits.shape)}: "
                "choose a split with one input per example, such as DoubleAddition's feedforward, or another network."
            )
        return logits
