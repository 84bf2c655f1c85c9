"""What a run of one process keeps when it is told to end."""

import os
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

from algornn.checkpoints import LastCheckpoint


class ToldToEnd(L.Callback):
    """Send SIGTERM to this process while it is in a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(path, *callbacks, **settings):
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=True, callbacks=[LastCheckpoint(path, every_n_steps=1000), *callbacks],
        limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(BoringModel())


def saved(path):
    return torch.load(path, weights_only=True)


def test_it_keeps_the_step_that_it_was_in(tmp_path):
    told, whole = tmp_path / "told.ckpt", tmp_path / "whole.ckpt"
    with pytest.raises(SIGTERMException):
        fit(told, ToldToEnd(6), limit_train_batches=60)
    fit(whole, limit_train_batches=7)
    assert saved(told)["global_step"] == saved(whole)["global_step"] == 7
    for a, b in zip(saved(told)["state_dict"].values(), saved(whole)["state_dict"].values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("batch", "kept"), [(6, 0), (7, 4)])
def test_it_keeps_no_half_of_an_accumulated_step(tmp_path, batch, kept):
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "told.ckpt", ToldToEnd(batch), limit_train_batches=60, accumulate_grad_batches=2)
    assert saved(tmp_path / "told.ckpt")["global_step"] == kept
