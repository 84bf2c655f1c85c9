"""Language modelling over endless streams, by truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from algornn.learners.learner import Learner
from algornn.learners.token_tagging import NO_TARGET


class StreamScores(Metric):
    """Next-token loss and accuracy over streams, in all and by group.

    Every process reads the whole of an evaluation stream, so ranks are merged by maximum.

    Args:
        groups: group names, in the order of the group indices that `update` gets.
    """

    full_state_update = False
    right: Tensor
    asked: Tensor
    loss: Tensor
    counted: Tensor

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(groups)
        size = max(1, len(self.groups))
        for name in ("right", "asked", "counted"):
            self.add_state(name, torch.zeros(size, dtype=torch.long), dist_reduce_fx="max")
        self.add_state("loss", torch.zeros(size, dtype=torch.double), dist_reduce_fx="max")

    def update(self, logits: Tensor, batch: Any) -> None:
        """Add a segment: logits ``[B, T, V]`` and its `StreamBatch`."""
        group, counts, asked = batch.group.flatten(), (batch.target != NO_TARGET).flatten(), batch.asked.flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=NO_TARGET, reduction="none")
        right = (logits.argmax(-1) == batch.target).flatten() & asked
        for name, values in (("right", right), ("asked", asked), ("counted", counts), ("loss", losses)):
            total = getattr(self, name)
            total.index_add_(0, group, values.to(total.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Return ``loss`` and ``perplexity`` per counted token, and of what was asked for ``sequence_accuracy``.

        Every token that is asked for is an example of its own (``examples``), also by ``<group>/...``.
        """
        loss = (self.loss.sum() / self.counted.sum()).float()
        scores = {"loss": loss, "perplexity": loss.exp()} | self._accuracy(self.right.sum(), self.asked.sum())
        for index, name in enumerate(self.groups):
            if self.asked[index]:
                found = self._accuracy(self.right[index], self.asked[index])
                scores |= {f"{name}/{key}": value for key, value in found.items()}
        return scores

    @staticmethod
    def _accuracy(right: Tensor, asked: Tensor) -> dict[str, Tensor]:
        return {"sequence_accuracy": right / asked, "examples": asked}


class LanguageModeling(Learner):
    r"""Train a token network to predict the next token of endless streams, segment by segment.

    Each segment starts from the state that the one before it left, detached: backpropagation is truncated to a
    segment, the memory is not. The state of training is carried over documents and epochs and never reset; it lies in
    the checkpoint, so that a resumed run goes on as the uninterrupted one. Evaluation starts from the model's first
    state and carries its own.

    The loss is the mean over the segment's tokens that count (`StreamBatch.target`); accuracy is that of the tokens
    that are asked for (`StreamBatch.asked`), such as the answers of catbAbI.

    `model` is ``forward(tokens, state, mask) -> (logits, state)``, such as `TokenNetwork`; the arguments are those of
    every `Learner`. Batches are `algornn.datamodules.StreamBatch` or any named tuple with the same fields.
    """

    reads = ("tokens", "target", "asked", "mask")
    refuses = ("sees_both_sides",)

    state: Any = None  # of this process's training rows
    _restored: Any = None
    _evaluation: tuple[int, Any] = (0, None)  # the loader, and the state of its stream

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Mean cross-entropy of a segment from the model's first state."""
        return _cross_entropy(call(batch.tokens, None, batch.mask)[0], batch)

    def terms(self, batch: Any) -> Tensor:
        """The number of tokens that count."""
        return (batch.target != NO_TARGET).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of the next segment of every row.

        Raises:
            ValueError: the carried state is that of another batch size.
        """
        carried, rows = _first(self.state), len(batch.tokens)
        if carried is not None and len(carried) != rows:
            raise ValueError(f"The state is that of {len(carried)} streams, the batch has {rows}. Keep the batch size.")
        logits, state = self.model(batch.tokens, self.state, batch.mask)
        self.state = _finite(_mapped(Tensor.detach, state), self.state)
        loss = self.shared_out(_cross_entropy(logits, batch), batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def on_train_start(self) -> None:
        """Take up the state of the checkpoint that the run goes on from.

        Raises:
            ValueError: it holds the states of another number of processes, whose rows are other streams.
        """
        saved, self._restored = self._restored, None
        found, world = _first(saved), self.trainer.world_size
        if found is not None and len(found) != world:
            raise ValueError(
                f"The checkpoint carries the states of {len(found)} process(es), this run has {world}. "
                "Go on with as many as before, by --trainer.devices."
            )
        self.state = _mapped(lambda x: x[self.trainer.global_rank].to(self.device), saved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of all processes."""
        several = self.trainer.world_size > 1
        gathered = _mapped(lambda x: cast(Tensor, self.all_gather(x)) if several else x[None], self.state)
        checkpoint["carried_state"] = gathered

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the state until training starts."""
        self._restored = checkpoint.get("carried_state")

    # Validation and test: one StreamScores per loader.

    def new_scores(self, dataset: Any) -> StreamScores:
        """Return the metric that scores the tokens of a stream."""
        return StreamScores(getattr(dataset, "groups", ()))

    def _start_scores(self, loaders: Any, only: str) -> None:
        super()._start_scores(loaders, only)
        self._evaluation = (0, None)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the next segment of the current loader's stream."""
        loader, state = self._evaluation
        logits, state = self(batch.tokens, state if loader == dataloader_idx else None, batch.mask)
        self._evaluation = (dataloader_idx, state)
        list(self.scores.values())[dataloader_idx].update(logits, batch)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the most probable next token at every place ``[B, T]``."""
        loader, state = self._evaluation if batch_idx else (dataloader_idx, None)
        logits, state = self(batch.tokens, state if loader == dataloader_idx else None, batch.mask)
        self._evaluation = (dataloader_idx, state)
        return logits.argmax(-1)


def _cross_entropy(logits: Tensor, batch: Any) -> Tensor:
    """The mean over the tokens that count; 0, with a gradient of 0, where none does."""
    total = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), ignore_index=NO_TARGET, reduction="sum")
    return total / (batch.target != NO_TARGET).sum().clamp(min=1)


def _finite(new: Any, old: Any) -> Any:
    """The new state; a row that is not finite falls back to the old one, or it would spoil all later segments."""
    good = _all_finite(new)
    if good is None or bool(good.all()):
        return new
    return None if old is None else _rows(good, new, old)


def _all_finite(state: Any) -> Tensor | None:
    """Whether every row ``[B]`` of a state is finite."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.flatten(1).isfinite().all(1)
    found = [good for part in state if (good := _all_finite(part)) is not None]
    return torch.stack(found).all(0) if found else None


def _rows(good: Tensor, new: Any, old: Any) -> Any:
    if isinstance(new, Tensor):
        return torch.where(good.reshape(-1, *[1] * (new.dim() - 1)), new, old)
    return None if new is None else tuple(_rows(good, *parts) for parts in zip(new, old, strict=True))


def _first(state: Any) -> Tensor | None:
    """The first tensor of a state, None where there is none."""
    if state is None or isinstance(state, Tensor):
        return state
    return next((found for part in state if (found := _first(part)) is not None), None)


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Apply a function to every tensor of a state, a tensor or nested tuples of them."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    return tuple(_mapped(function, part) for part in state)
