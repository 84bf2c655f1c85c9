"""Sequence to sequence: a target token by token from a source, scored as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.learners.checks import check_shares, check_whole
from algornn.learners.learner import Learner, Scored
from algornn.learners.length_groups import by_length, check_length_groups
from algornn.learners.target_shift import check_shift
from algornn.models.seq2seq import EOS_ID, greedy

_TRIMS = {"target_mask": ("target",), "source_mask": ("source",)}


class SequenceToSequence(Learner):
    """Train by cross-entropy of every target token; score greedy decoding by exact match, in all and by group.

    The loss is the mean over all target tokens of a batch, "<eos>" included. A target counts as right where all its
    tokens and its end are; ``token_accuracy`` compares the decoded tokens with the target's place by place.

    Args:
        model: the network, ``forward(source, target, source_mask) -> logits [B, T, V]`` with ``start`` and ``step``
            for decoding, such as `Seq2Seq` or `TransformerSeq2Seq`. The target comes as it is: the decoder must see
            it one step later, id 0 first, which is checked when training starts.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.
        teacher_forcing: share of the training batches whose decoder reads the target; in the others it reads its own
            most probable tokens (chosen in a pass of their own, under other dropout masks than those of the gradient).
        length_groups: parts of a batch, from its shortest targets to its longest, that are computed apart, each
            padded to its own longest and cut where the least padding is left: the same gradient in less time.
        eos_oracle: whether scoring ends every target where it ends, and nowhere else: what is left are the errors of
            content (Newman et al. 2020).
        max_length: tokens after which `predict` gives up waiting for "<eos>".

    Batches are `algornn.datamodules.PairBatch` or any named tuple with the same fields.
    """

    reads = ("source", "target", "source_mask", "target_mask")
    _begins = False  # whether the next training step is the first of a fit

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
        cooldown: float = 0.0,
        teacher_forcing: float = 1.0,
        length_groups: int = 1,
        eos_oracle: bool = False,
        max_length: int = 512,
    ) -> None:
        super().__init__(model, optimizer, warmup_steps, warmup_factor, cooldown)
        check_shares(teacher_forcing=teacher_forcing)
        check_whole(1, max_length=max_length)
        if not isinstance(eos_oracle, bool):
            raise TypeError(f"`eos_oracle` must be True or False, got {eos_oracle!r}.")
        if missing := [name for name in ("start", "step") if not hasattr(model, name)]:
            raise TypeError(f"`model` must have start and step to decode, {type(model).__name__} lacks {missing[0]}.")
        self.teacher_forcing, self.length_groups = teacher_forcing, check_length_groups(length_groups)
        self.eos_oracle, self.max_length = eos_oracle, max_length

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy of the target's tokens that `call`, standing for the model's forward, gives."""
        asked = batch.target_mask.sum()
        if not asked:
            raise ValueError("Every batch must have a target token that counts, in this one `target_mask` is False.")
        parts = by_length(batch, self.length_groups, _TRIMS)
        losses = [_losses(call(part.source, part.target, part.source_mask), part).sum() for part in parts]
        return torch.stack(losses).sum() / asked

    def terms(self, batch: Any) -> Tensor:
        """The number of target tokens."""
        return batch.target_mask.sum()

    def on_train_start(self) -> None:
        """Look at the first batch more closely."""
        self._begins = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, whose decoder reads the target or what it writes itself.

        Raises:
            ValueError: at the start of a fit, where the network sees the token that it has to name.
        """
        if self._begins:
            self._begins = False
            check_shift(self.model, batch.source, batch.target, batch.source_mask, batch.target_mask)
        forced = self.teacher_forcing == 1 or bool(torch.rand(()) < self.teacher_forcing)
        loss = self.shared_out(self.loss(self.model if forced else self._reading_its_own, batch), batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def _reading_its_own(self, source: Tensor, target: Tensor, source_mask: Tensor | None) -> Tensor:
        """Write first, then read what was written in one parallel pass: no gradient flows through a chosen token."""
        with torch.no_grad():
            written = greedy(self.model, source, source_mask, target.shape[1]).argmax(-1)
        return self.model(source, written, source_mask)

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of a batch by groups of similar length."""
        for part in by_length(batch, self.length_groups, _TRIMS):
            asked = part.target_mask.sum(1)
            loss = _losses(self(part.source, part.target, part.source_mask), part).sum(1) / asked
            ends = asked if self.eos_oracle else None
            written = greedy(self.model, part.source, part.source_mask, part.target.shape[1], ends).argmax(-1)
            right = ((written == part.target) & part.target_mask).sum(1)
            yield part.id, right, asked, loss, part.group

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return what is written for every source ``[B, max_length]``, 0 after "<eos>"."""
        written = greedy(self.model, batch.source, batch.source_mask, self.max_length).argmax(-1)
        ended = (written == EOS_ID).cumsum(1) - (written == EOS_ID).long() > 0
        return written.masked_fill(ended, 0)


def _losses(logits: Tensor, batch: Any) -> Tensor:
    """Cross-entropy of every target token ``[B, T]``, 0 at padding."""
    return F.cross_entropy(logits.mT, batch.target, reduction="none") * batch.target_mask
