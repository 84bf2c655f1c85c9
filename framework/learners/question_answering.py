"""Question answering: one answer to a question about a story."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.learners.learner import Learner, Scored
from algornn.learners.length_groups import by_length, check_length_groups
from algornn.learners.nadam import TFNadam

_TRIMS = {"mask": ("story",)}


class QuestionAnswering(Learner):
    """Train a story reader by cross-entropy of its answer; score exact matches by group, in and out of distribution.

    Args:
        model: the reader, ``forward(story, query, mask) -> logits [B, V]``, such as `TPRRNN`.
        optimizer: called with the parameters that are trained; None: TFNadam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.
        length_groups: parts of a batch, from its shortest stories to its longest, that are computed apart, each
            padded to its own longest and cut where the least padding is left: the same gradient in less time.
        reconstruction: weight of the model's ``reconstruction_loss(story, query)``, which `TPRRNN` has with AID.

    Batches are `algornn.datamodules.StoryBatch` or any named tuple with the same fields.
    """

    reads = ("story", "query", "mask", "answer")

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
        cooldown: float = 0.0,
        length_groups: int = 1,
        reconstruction: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer or TFNadam, warmup_steps, warmup_factor, cooldown)
        self.length_groups, self.reconstruction = check_length_groups(length_groups), reconstruction
        if reconstruction and not hasattr(model, "reconstruction_loss"):
            raise ValueError(
                f"`reconstruction` needs a model with reconstruction_loss, {type(model).__name__} has none."
            )

    def loss(self, call: Callable[..., Tensor], batch: Any) -> Tensor:
        """Mean cross-entropy of the answers that `call`, standing for the model's forward, gives to the batch."""
        return F.cross_entropy(call(batch.story, batch.query, batch.mask), batch.answer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, computed by groups of similar story length."""
        parts = list(by_length(batch, self.length_groups, _TRIMS))
        losses = [self.loss(self.model, part) * len(part.answer) for part in parts]
        loss = torch.stack(losses).sum() / len(batch.answer)
        if self.reconstruction:
            model: Any = self.model
            loss = loss + self.reconstruction * model.reconstruction_loss(batch.story, batch.query)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch by groups of similar story length."""
        for part in by_length(batch, self.length_groups, _TRIMS):
            logits = self(part.story, part.query, part.mask)
            loss = F.cross_entropy(logits, part.answer, reduction="none")
            yield part.id, logits.argmax(1) == part.answer, torch.ones_like(part.id), loss, part.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the answers' ids ``[B]``."""
        return self(batch.story, batch.query, batch.mask).argmax(1)
