"""Sequence classification: one class for a whole sequence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.learners.learner import Learner, Scored
from algornn.learners.length_groups import by_length, check_length_groups

_TRIMS = {"mask": ("tokens",)}


class SequenceClassification(Learner):
    """Train a classifier of sequences by cross-entropy; score exact matches by group.

    Args:
        model: the network, ``forward(tokens, mask) -> logits [B, C]``, such as `SequenceClassifier`.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.
        length_groups: parts of a batch, from its shortest sequences to its longest, that are computed apart, each
            padded to its own longest and cut where the least padding is left: the same gradient in less time.

    Batches are `algornn.datamodules.LabelledBatch` or any named tuple with the same fields.
    """

    reads = ("tokens", "label", "mask")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
        cooldown: float = 0.0,
        length_groups: int = 1,
    ) -> None:
        super().__init__(model, optimizer, warmup_steps, warmup_factor, cooldown)
        second = [*inspect.signature(model.forward).parameters][1:2]
        if second in (["state"], ["target"]):
            raise TypeError(
                f"`model` must be forward(tokens, mask) -> logits [B, C], {type(model).__name__} takes {second[0]!r} "
                "second: take SequenceClassifier, which puts any sequence layer into a classifier."
            )
        self.length_groups = check_length_groups(length_groups)

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy of the classes that `call`, standing for the model's forward, gives to the batch."""
        parts = by_length(batch, self.length_groups, _TRIMS)
        losses = [F.cross_entropy(call(part.tokens, part.mask), part.label, reduction="sum") for part in parts]
        return torch.stack(losses).sum() / len(batch.label)

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch by groups of similar length."""
        for part in by_length(batch, self.length_groups, _TRIMS):
            logits = self(part.tokens, part.mask)
            loss = F.cross_entropy(logits, part.label, reduction="none")
            yield part.id, logits.argmax(1) == part.label, torch.ones_like(part.id), loss, part.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the class of every sequence ``[B]``."""
        return self(batch.tokens, batch.mask).argmax(1)
