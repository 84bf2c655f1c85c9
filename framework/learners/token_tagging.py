"""Token tagging: a class for every token that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from algornn.learners.learner import Learner, Scored

NO_TARGET = -100  # a token that asks for nothing; PyTorch's own convention


class TokenTagging(Learner):
    """Train a token network by cross-entropy at the tokens that ask for an answer; score whole sequences and tokens.

    The loss is the mean over all tokens of a batch that ask. `model` is ``forward(tokens, state, mask) -> (logits,
    state)``, such as `TokenNetwork`; every sequence starts from its first state. Batches are
    `algornn.datamodules.TokenBatch` or any named tuple with the same fields.
    """

    reads = ("tokens", "target", "mask")

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy of the tokens that ask for an answer."""
        logits, _ = call(batch.tokens, None, batch.mask)
        return F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=NO_TARGET)

    def terms(self, batch: Any) -> Tensor:
        """The number of answers that are asked for."""
        return (batch.target != NO_TARGET).sum()

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch."""
        logits, _ = self(batch.tokens, None, batch.mask)
        asks = batch.target != NO_TARGET
        asked = asks.sum(1)
        losses = F.cross_entropy(logits.mT, batch.target, ignore_index=NO_TARGET, reduction="none").sum(1)
        right = ((logits.argmax(-1) == batch.target) & asks).sum(1)
        yield batch.id, right, asked, losses / asked.clamp(min=1), batch.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the class of every token ``[B, T]``."""
        return self(batch.tokens, None, batch.mask)[0].argmax(-1)
