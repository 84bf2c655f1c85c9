"""The progress bar of runs that are told in steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's bar, but for a run that ends by its steps alone: it shows how many of these are done."""

    def _steps(self) -> int | None:
        """The steps at which the run ends, unless epochs can end it, too."""
        trainer: Any = self.trainer
        return trainer.max_steps if trainer.max_epochs == -1 and trainer.max_steps > 0 else None

    @property
    def total_train_batches(self) -> int | float:
        """What the bar counts up to."""
        return self._steps() or super().total_train_batches

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a bar where there is none yet; that of steps goes on through all epochs."""
        if not self._steps():
            super().on_train_epoch_start(trainer, pl_module)
        elif self.is_enabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()
            self._update(self.train_progress_bar_id, trainer.global_step)  # where a resumed run stands

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, which Lightning sets to a number of batches."""
        done = trainer.global_step - 1 if self._steps() else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done)

    def follow(self, steps: Iterable[int], what: str, total: int) -> Iterator[int]:
        """Yield the steps of something long within a batch, and show meanwhile how many of all are done.

        Args:
            steps: their numbers, from 0 on or from a later one.
            what: what they are steps of.
            total: how many there are.
        """
        bar = self._add_task(total, what) if self.is_enabled and self.progress is not None else None
        for step in steps:
            self._update(bar, step)
            yield step
        self._update(bar, total, visible=False)

    def _get_train_description(self, current_epoch: int) -> str:
        """``Training`` beside ``Validation``, or Lightning's number of the epoch where epochs end the run."""
        wide = f"{'Training':{len(self.validation_description)}}"
        return wide if self.trainer.max_epochs == -1 else super()._get_train_description(current_epoch)
