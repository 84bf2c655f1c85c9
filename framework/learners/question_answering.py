"""Question answering: one answer to a question about a story."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from algornn.learners.example_scores import ExampleScores
from algornn.learners.nadam import TFNadam


class QuestionAnswering(L.LightningModule):
    """Train a story reader by cross-entropy of its answer; score exact matches by group, in and out of distribution.

    Args:
        model: the reader, ``forward(story, query, mask) -> logits [B, V]``, such as `TPRRNN`.
        optimizer: called with the parameters.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.
        length_groups: shares of a batch, from its shortest stories to its longest, that are computed apart, each
            padded to its own longest story: the gradient of the whole batch in less time. ``(0.75, 0.25)`` suits bAbI.

    Batches are `algornn.datamodules.StoryBatch` or any named tuple with the same fields.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = TFNadam,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
        cooldown: float = 0.0,
        length_groups: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        if abs(sum(length_groups) - 1) > 1e-6 or min(length_groups) <= 0:
            raise ValueError(f"`length_groups` must be positive shares that sum to 1, got {length_groups}.")
        self.model = model
        self.optimizer = optimizer
        if not 0 <= cooldown <= 1:
            raise ValueError(f"`cooldown` must be a share of the training between 0 and 1, got {cooldown}.")
        self.warmup_steps, self.warmup_factor, self.cooldown = warmup_steps, warmup_factor, cooldown
        self.length_groups = tuple(length_groups)
        self.scores: dict[str, ExampleScores] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def forward(self, *args: Tensor) -> Tensor:
        """Answer a batch of stories: the model's own forward."""
        return self.model(*args)

    def loss(self, call: Callable[..., Tensor], batch: Any) -> Tensor:
        """Mean cross-entropy of the answers that `call`, standing for the model's forward, gives to the batch."""
        return F.cross_entropy(call(batch.story, batch.query, batch.mask), batch.answer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, computed by groups of similar story length."""
        parts = list(_by_length(batch, self.length_groups))
        losses = [self.loss(self.model, part) * len(part.answer) for part in parts]
        loss = torch.stack(losses).sum() / len(batch.answer)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer with its warm-up and cool-down."""
        optimizer = self.optimizer(self.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_factor
        if not self.cooldown:
            return 1.0
        steps = self.trainer.estimated_stepping_batches
        return max(0.0, min(1.0, (steps - step) / (self.cooldown * steps)))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; where a gradient is not finite, drop all of them, so that the step is skipped.

        Unnormalised keys make the memory expand now and then (the released code restarts its training on NaN). Without
        gradients the optimizer leaves weights and moments alone; zeros would let its momentum go on.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients or torch.stack([g.isfinite().all() for g in gradients]).all():
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            optimizer.zero_grad(set_to_none=True)

    # Validation and test: one ExampleScores per loader.

    def on_validation_epoch_start(self) -> None:
        """Start the scores of the validation set."""
        self._start_scores(["val"], [self.trainer.val_dataloaders])

    def on_test_epoch_start(self) -> None:
        """Start the scores of the test set and of every out-of-distribution set."""
        loaders = self.trainer.test_dataloaders
        self.results = {}
        named = loaders if isinstance(loaders, dict) else {"test": loaders}
        self._start_scores(list(named), list(named.values()))

    def _start_scores(self, names: list[str], loaders: list[Any]) -> None:
        datasets = [loader.dataset for loader in loaders]
        scores = [ExampleScores(len(data), getattr(data, "groups", ())).to(self.device) for data in datasets]
        self.scores = dict(zip(names, scores, strict=True))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of the current loader."""
        scores = list(self.scores.values())[dataloader_idx]
        for part in _by_length(batch, self.length_groups):
            logits = self(part.story, part.query, part.mask)
            loss = F.cross_entropy(logits, part.answer, reduction="none")
            scores.update(part.id, logits.argmax(1) == part.answer, loss, part.group)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the answers' ids ``[B]``."""
        return self(batch.story, batch.query, batch.mask).argmax(1)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation set."""
        values = self.scores["val"].compute()
        for key, value in values.items():
            if not key.endswith("examples"):
                self.log(f"val/{key}", value, prog_bar=key == "sequence_accuracy")
        self.scores = {}

    def on_test_epoch_end(self) -> None:
        """Log the scores of every test set and keep them in `results`."""
        for name, metric in self.scores.items():
            values = {key: float(value) for key, value in metric.compute().items()}
            self.results[name] = _nested(values)
            self.log_dict({f"test/{name}/{key}": x for key, x in values.items() if not key.endswith("examples")})
        self.scores = {}


def _by_length(batch: Any, shares: tuple[float, ...]) -> list[Any]:
    """Split a batch into parts of similar story length, each trimmed to its longest story."""
    if len(shares) == 1:
        return [batch]
    length = batch.mask.sum(1)
    order = length.argsort(stable=True)
    cuts = torch.tensor(shares[:-1]).cumsum(0).mul(len(order)).round().long()
    parts = []
    for rows in order.tensor_split(cuts):
        if len(rows):
            part = type(batch)(*(field[rows] for field in batch))
            longest = int(length[rows].max())
            parts.append(part._replace(story=part.story[:, :longest], mask=part.mask[:, :longest]))
    return parts


def _nested(values: dict[str, float]) -> dict[str, Any]:
    """Turn ``{"loss": ..., "qa1/examples": ...}`` into ``{"loss": ..., "groups": {"qa1": {"examples": ...}}}``."""
    result: dict[str, Any] = {"groups": {}}
    for key, value in values.items():
        group, _, measure = key.rpartition("/")
        place = result["groups"].setdefault(group, {}) if group else result
        place[measure] = int(value) if measure == "examples" else value
    return result
