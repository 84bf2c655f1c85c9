"""What `algornn predict` writes: one line per example, in the words of the data where they have some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from torch import Tensor

from algornn.models.seq2seq import EOS_ID


class PredictionWriter(L.Callback):
    """Write ``predictions/<set>.jsonl`` in the run folder: ``{"id": ..., "prediction": ...}``, in the order of the ids.

    A prediction is what the learner's `predict_step` gives for an example: a word where the data have names for the
    classes, the words up to "<eos>" where it is a sequence of them, else the numbers. Every example stands there once,
    whatever the number of processes.

    Args:
        apart: write to this folder in ``predictions``, since other options than the run's are given.
    """

    def __init__(self, apart: str = "") -> None:
        self.apart = apart
        self._found: dict[str, dict[int, Any]] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was predicted before."""
        self._found = {}

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions of a batch."""
        loaders: Any = trainer.predict_dataloaders
        named = loaders if isinstance(loaders, dict) else {"predict": loaders}
        name, loader = list(named.items())[dataloader_idx]
        if not isinstance(outputs, Tensor) or not hasattr(batch, "id"):
            return  # a learner of the user's own, whose predictions are the user's to write
        words = getattr(getattr(loader, "dataset", None), "outputs", None)
        found = self._found.setdefault(name, {})
        for index, row in zip(batch.id.tolist(), outputs.tolist(), strict=True):
            found[index] = in_words(row, words)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Join the processes' predictions and write them, on the first process only."""
        parts = [self._found]
        if trainer.world_size > 1:
            parts = [{} for _ in range(trainer.world_size)]
            dist.all_gather_object(parts, self._found)
        for name in dict.fromkeys(name for part in parts for name in part) if trainer.is_global_zero else ():
            joined = {index: row for part in parts for index, row in part.get(name, {}).items()}
            file = Path(trainer.default_root_dir, "predictions", self.apart, f"{name}.jsonl")
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.part")
            lines = [json.dumps({"id": index, "prediction": joined[index]}) for index in sorted(joined)]
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            partial.replace(file)
            print(f"{len(joined)} predictions: {file}", flush=True)


def in_words(row: Any, words: Any) -> Any:
    """A prediction, a number or a list of numbers, in words where there are some."""
    if not words:
        return row
    if not isinstance(row, list):
        return words[row]
    end = row.index(EOS_ID) if EOS_ID in row else len(row)
    return [words[token] for token in row[:end]]
