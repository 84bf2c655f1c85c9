"""The progress bar counts the steps of a run that ends by steps, and epochs of any other."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from tiny_runs import TINY

from algornn import cli
from algornn.progress import StepProgressBar


class Watched(StepProgressBar):
    """It notes what it shows after every batch."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def on_train_epoch_start(self, *args):
        super().on_train_epoch_start(*args)
        self.first = getattr(self, "first", int(self.train_progress_bar.completed))

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        task = self.train_progress_bar
        self.shown.append((task.description.rpartition("]")[2].strip(), int(task.completed), task.total))


def shown(folder, steps, epochs=-1, resumed=None):
    bar, settings = Watched(), {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=steps, max_epochs=epochs, limit_train_batches=3, limit_val_batches=1,
        accelerator="cpu", callbacks=[bar], **settings,
    )  # fmt: skip
    trainer.fit(BoringModel(), ckpt_path=resumed)
    trainer.save_checkpoint(folder / "last.ckpt")
    return bar


def test_steps_go_on_through_epochs_and_after_a_resume(tmp_path):
    assert shown(tmp_path, 6).shown == [("Training", done, 6) for done in (1, 2, 3, 4, 5, 6)]
    bar = shown(tmp_path, 8, resumed=tmp_path / "last.ckpt")
    assert bar.first == 6
    assert bar.shown == [("Training", done, 8) for done in (7, 8)]


@pytest.mark.parametrize("steps", [-1, 100])
def test_epochs_are_lightnings_own(tmp_path, steps):
    assert shown(tmp_path, steps, epochs=2).shown == [(f"Epoch {e}/1", done, 3) for e in (0, 1) for done in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("enable_progress_bar=true", StepProgressBar),
        ("enable_progress_bar=false", type(None)),
        ("callbacks=[{class_path: TQDMProgressBar}]", TQDMProgressBar),
    ],
)
def test_the_command_line_has_this_bar_unless_told_otherwise(tmp_path, monkeypatch, options, kind):
    made = []
    monkeypatch.setattr(cli.AlgornnCLI, "_run_subcommand", lambda self, _: made.append(self.trainer))
    (tmp_path / "tiny.yaml").write_text(TINY.replace("enable_progress_bar: false", "enable_progress_bar: true"))
    config, run = str(tmp_path / "tiny.yaml"), str(tmp_path / "run")
    told = ["fit", "--config", config, "--run_dir", run, "--test_after_fit=false", f"--trainer.{options}"]
    assert cli.main(told) == 0
    assert type(made[0].progress_bar_callback) is kind


class Long(BoringModel):
    """Its batches take steps of their own, the first of which were done before."""

    def test_step(self, batch, batch_idx):
        bar = self.trainer.progress_bar_callback
        self.seen = []
        for step in bar.follow(range(2, 5), "Life", 5):
            task = bar.progress.tasks[-1]
            self.seen.append((step, task.description.rpartition("]")[2], int(task.completed), task.total, task.visible))
        self.hidden = not task.visible and not bar.progress.tasks[-1].visible
        return super().test_step(batch, batch_idx)


@pytest.mark.parametrize("shown_at_all", [True, False])
def test_what_is_long_within_a_batch_has_a_bar_of_its_own(tmp_path, shown_at_all):
    bar, model = StepProgressBar(), Long()
    if not shown_at_all:
        model.test_step = lambda batch, batch_idx: model.seen.extend(bar.follow(range(3), "Life", 3))
        model.seen = []
        bar.disable()
    trainer = L.Trainer(default_root_dir=tmp_path, limit_test_batches=1, callbacks=[bar], logger=False)
    trainer.test(model, verbose=False)
    if shown_at_all:
        assert [step for step, *_ in model.seen] == [2, 3, 4]
        assert [done for _, _, done, *_ in model.seen] == [2, 3, 4]
        assert {(what, total, visible) for _, what, _, total, visible in model.seen} == {("Life", 5, True)}
        assert model.hidden
    else:
        assert model.seen == [0, 1, 2]
