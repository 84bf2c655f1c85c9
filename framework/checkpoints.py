"""What is kept to go on from: checkpoints written whole, the best and the last one, and the random state."""

from __future__ import annotations

import random
import signal
import sys
import threading
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that Lightning wrote, on the CPU.

    Raises:
        ValueError: the file is damaged or something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint at all. Use another, last or best.") from error
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "global_step", "pytorch-lightning_version"} <= checkpoint.keys()
    ):
        raise ValueError(f"{path} is not a checkpoint that Lightning wrote. Use one of a run's folder, last or best.")
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, then move it there: a killed run leaves the old one or the new one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`."""
        partial = f"{path}.part"
        super().save_checkpoint(checkpoint, partial, storage_options)
        Path(partial).replace(path)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose knowledge of the best checkpoint follows a run folder that was moved."""

    @property
    def state_key(self) -> str:
        """That of ModelCheckpoint, whose state it is."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, with its files in the folder of this run."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at the start, every few steps and after every validation: a killed run goes on from it.

    A run of one process that is told to end (SIGTERM, or Ctrl-C outside of a validation) writes it after the step that
    it is in; a second Ctrl-C ends it at once. Of several processes each may hear of it after another step, and a
    checkpoint is all processes' work.

    Being a `Checkpoint`, it is called after all other callbacks, so the file holds what they know by then; and a
    resumed run misses no validation, which one written before the validation of its step would.

    Args:
        path: the file.
        every_n_steps: optimizer steps between two writes.
    """

    def __init__(self, path: str | Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"`resume_every_n_steps` must be at least 1, got {every_n_steps}.")
        self.path, self.every_n_steps = path, every_n_steps
        self._step, self._interrupted, self._listens = 0, False, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the start of a run, so that whatever has started can go on."""
        self._step = trainer.global_step
        if trainer.global_step == 0:
            self._save(trainer)
        here = threading.current_thread() is threading.main_thread()
        if here and trainer.world_size == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._interrupted, self._listens = False, True
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        """Let the step come to its end at the first Ctrl-C, and nothing at the second."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print("\nalgornn: ends after this step; Ctrl-C again ends it at once.", file=sys.stderr, flush=True)

    def _end_if_interrupted(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let Ctrl-C end a validation at once: nothing is learned in it."""
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after every n-th optimizer step, or leave it to the validation that follows."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        told_to_end = self._interrupted or (trainer.received_sigterm and trainer.world_size == 1)
        due = told_to_end or trainer.global_step % self.every_n_steps == 0
        if stepped and due and not _validation_follows(trainer):
            self._save(trainer)
            self._end_if_interrupted()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)
            self._end_if_interrupted()
            if self._listens:
                signal.signal(signal.SIGINT, self._interrupt)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer)
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._end_if_interrupted()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave Ctrl-C as it was found, unless it ended the training: Lightning ignores it while it shuts down."""
        if self._listens and not isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)


def _validation_follows(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    done = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    return bool(trainer.enable_validation and trainer.val_check_batch and done % trainer.val_check_batch == 0)


class RandomState(L.Callback):
    """Keep the state of every global random number generator in the checkpoint."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states, as types that a weights-only load accepts."""
        # The global generators: users' code may draw from them, and does.
        kind, keys, *rest = cast(tuple, np.random.get_state())  # noqa: NPY002
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold the states until training starts: building loaders must not draw from them."""
        self._restored = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the saved states back."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        version_, internal, gauss = state["python"]
        random.setstate((version_, tuple(internal), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
