"""What every probe keeps: the training that it watches stays bit-identical, and its numbers depend on nothing else."""

import pytest
import torch
from cases import CASES
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_learner import Learner, Recorder, loader, same, train
from torch.utils.data import DataLoader

import algornn.probes
from algornn.checkpoints import RandomState
from algornn.probes import Probe

each = pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)


def exported():
    things = (getattr(algornn.probes, name) for name in algornn.probes.__all__)
    return {thing for thing in things if isinstance(thing, type) and issubclass(thing, Probe) and thing is not Probe}


def test_every_probe_has_a_row():
    assert exported() <= set(CASES)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The run that nothing disturbs; gradients live between the micro-batches."""
    recorder = Recorder()
    train([], tmp_path_factory.mktemp("without"), recorder=recorder, accumulate_grad_batches=2)
    return recorder.snapshots


@each
def test_training_is_bit_identical(kind, without, tmp_path):
    recorder, probe = Recorder(), kind(every_n_steps=1, **CASES[kind])
    _, trainer = train([probe], tmp_path, recorder=recorder, accumulate_grad_batches=2)
    assert probe.state_dict()["runs"] == trainer.global_step == 10
    assert len(without) == len(recorder.snapshots) == 18
    assert [same(a, b) for a, b in zip(without, recorder.snapshots, strict=True)] == [True] * 18


def test_the_comparison_sees_a_careless_probe(without, tmp_path):
    class Careless(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):
            next(iter(trainer.val_dataloaders))  # draws a seed from the global generator

    recorder = Recorder()
    train([Careless()], tmp_path, recorder=recorder, accumulate_grad_batches=2)
    assert not same(without[-1][:10], recorder.snapshots[-1][:10])  # other weights


@each
def test_an_exception_leaves_everything_as_it_was(kind, without, tmp_path):
    class Failing(kind):
        def measure(self, subject):
            super().measure(subject)
            for parameter in subject.model.parameters():
                parameter.data.add_(1)
            subject.model.train()
            torch.set_grad_enabled(False)
            raise ArithmeticError("inside the probe")

    recorder = Recorder()
    with pytest.raises(ArithmeticError, match="inside the probe"):
        train([Failing(every_n_steps=3, **CASES[kind])], tmp_path, recorder=recorder, accumulate_grad_batches=2)
    assert len(recorder.snapshots) == 5  # the sixth batch ends the third step
    assert same(without[5], recorder.at_exception)


@each
def test_run_gives_the_trainers_numbers_whatever_the_random_state(kind, tmp_path):
    probe = kind(**CASES[kind])
    learner, _ = train([probe], tmp_path)
    logged = probe.result
    torch.manual_seed(99)
    learner.train()
    again = kind(**CASES[kind]).run(learner, loader(31, seed=1))
    assert again.to_json() == logged.to_json()
    assert learner.training
    assert all(p.requires_grad for p in learner.parameters())


@each
def test_a_training_that_was_killed_and_resumed_measures_the_same(kind, tmp_path):
    # All batches are alike: a loader without a state begins anew with its first.
    rows = DataLoader([next(iter(loader()))] * 9, batch_size=None, collate_fn=lambda batch: batch)

    def run(name, max_steps, **settings):
        probe = kind(every_n_steps=4, **CASES[kind])
        keep = ModelCheckpoint(tmp_path / name, "last", every_n_train_steps=5)
        settings |= {"callbacks": [RandomState(), keep], "enable_checkpointing": True, "max_steps": max_steps}
        train([probe], tmp_path / name, (rows, loader(31, seed=1)), **settings)
        return probe

    whole = run("whole", 8)
    run("killed", 5)
    resumed = run("resumed", 8, ckpt_path=tmp_path / "killed" / "last.ckpt")
    assert whole.state_dict()["runs"] == resumed.state_dict()["runs"] == 2
    assert resumed.result.to_json() == whole.result.to_json()


@each
def test_half_precision_and_inference_mode_are_no_obstacle(kind):
    model = Learner()
    expected = kind(**CASES[kind]).run(model, loader(31)).scalars
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = kind(**CASES[kind]).run(model, loader(31)).scalars
    assert found == expected
    kind(**CASES[kind]).run(Learner().bfloat16(), loader(31))
