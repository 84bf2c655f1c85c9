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
    """Send a signal to this process while it is in a batch."""

    def __init__(self, batch: int, number: int = signal.SIGTERM, times: int = 1) -> None:
        self.batch, self.number, self.times = batch, number, times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def fit(path, *callbacks, **settings):
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=True, callbacks=[LastCheckpoint(path, every_n_steps=1000), *callbacks],
        num_sanity_val_steps=0, **{"limit_val_batches": 0} | settings,
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


@pytest.fixture
def keys():
    """Python's own way with Ctrl-C, which a shell may have it ignore, and Lightning does once it has seen it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("times", "kept"), [(1, 7), (2, 0)])
def test_ctrl_c_keeps_the_step_that_it_was_in_unless_it_comes_twice(tmp_path, keys, capsys, times, kept):
    with pytest.raises(SystemExit):
        fit(tmp_path / "told.ckpt", ToldToEnd(6, signal.SIGINT, times), limit_train_batches=60)
    assert saved(tmp_path / "told.ckpt")["global_step"] == kept
    assert "ends after this step; Ctrl-C again ends it at once" in capsys.readouterr().err


def test_ctrl_c_ends_a_validation_at_once_and_is_as_before_after_training(tmp_path, keys):
    class Validated(L.Callback):
        def on_validation_batch_start(self, *_):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tmp_path / "told.ckpt", Validated(), limit_train_batches=4, limit_val_batches=1)
    assert saved(tmp_path / "told.ckpt")["global_step"] == 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fit(tmp_path / "whole.ckpt", limit_train_batches=4)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "ended.ckpt", ToldToEnd(2), limit_train_batches=4)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
