"""The base class: schedule, budget, data, logging, artefacts, checkpoints, copies."""

import csv
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny_learner import Learner, MeanLoss, Memory, collate, loader, train
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from algornn.probes import (
    ConsistencyProbe,
    DisentanglementProbe,
    FastWeightProbe,
    LinearDecodingProbe,
    Probe,
    ProbeResult,
    RepresentationSimilarityProbe,
    ReuseProbe,
    WeightMaskProbe,
)
from algornn.probes.batches import Batches
from algornn.probes.model_copy import copy_of

CPU = torch.device("cpu")


def steps_of(root, name="mean_loss"):
    return sorted(int(path.stem.removeprefix("step=")) for path in (root / "probes" / name).glob("step=*.json"))


# 67 examples in batches of 8 are 9 batches per epoch: 18 steps in two epochs, or 2 * 5 with two batches per step.
@pytest.mark.parametrize(
    ("schedule", "settings", "steps"),
    [
        ({}, {}, [9, 18]),
        ({"every_n_epochs": 2}, {"max_epochs": 3}, [18, 27]),
        ({"every_n_steps": 7}, {}, [7, 14, 18]),
        ({"every_n_steps": 9}, {}, [9, 18]),
        ({"every_n_steps": 2}, {"accumulate_grad_batches": 2}, [2, 4, 6, 8, 10]),
        ({"every_n_epochs": None}, {}, [18]),
        ({}, {"max_steps": 4}, [4]),
        ({}, {"fast_dev_run": True}, []),
    ],
)
def test_schedule(schedule, settings, steps, tmp_path):
    probe = MeanLoss(**schedule)
    train([probe], tmp_path, **settings)
    assert steps_of(tmp_path) == steps
    assert probe.state_dict()["runs"] == len(steps)


def test_a_schedule_below_one_is_refused():
    with pytest.raises(ValueError, match="every_n_steps must be a positive whole number or None, got 0"):
        MeanLoss(every_n_steps=0)


def test_budgets_skip_and_say_so(tmp_path):
    probe = MeanLoss(every_n_steps=2, max_seconds=1e-9)
    with pytest.warns(UserWarning, match="'mean_loss' skipped step 4: its budget is spent"):
        train([probe], tmp_path)
    state = probe.state_dict()
    assert (state["runs"], state["skipped"], state["step"]) == (1, 8, 2)
    rows = list(csv.DictReader((tmp_path / "logs" / "version_0" / "metrics.csv").open()))
    assert [row["probe/mean_loss/skipped"] for row in rows if row["probe/mean_loss/skipped"]] == [*map(str, range(9))]


def test_the_share_of_time_is_kept(tmp_path, monkeypatch):
    """A batch takes 5.25 s, a measurement 1 s: after r of them, the next waits for r + 1 <= 0.1 (5.25 step + r)."""
    now = [0.0]

    class Batch(L.Callback):
        def on_train_batch_start(self, *_):
            now[0] += 5.25

    class OneSecond(MeanLoss):
        def measure(self, subject):
            now[0] += 1
            return super().measure(subject)

    monkeypatch.setattr("algornn.probes.probe.time.monotonic", lambda: now[0])
    probe = OneSecond(every_n_steps=1, max_fraction=0.1)
    with pytest.warns(UserWarning, match="its budget is spent"):
        train([probe], tmp_path, callbacks=[Batch()])
    assert steps_of(tmp_path, "one_second") == [1, 4, 6, 8, 9, 11, 13, 14, 16, 18]
    state = probe.state_dict()
    assert (state["runs"], state["skipped"], state["cost"], state["spent"]) == (10, 8, 1.0, 10.0)


def test_artefact_log_and_result_agree(tmp_path):
    probe = MeanLoss(name="mine")
    train([probe], tmp_path, max_epochs=1)
    saved = json.loads((tmp_path / "probes" / "mine" / "step=9.json").read_text())
    assert (saved["name"], saved["step"]) == ("mine", 9)
    assert saved["scalars"] == probe.result.scalars == probe.state_dict()["scalars"]
    assert saved["tables"] == probe.result.tables
    rows = list(csv.DictReader((tmp_path / "logs" / "version_0" / "metrics.csv").open()))
    (row,) = [row for row in rows if row.get("probe/mine/loss")]
    assert float(row["probe/mine/loss"]) == saved["scalars"]["loss"]
    assert float(row["probe/mine/seconds"]) == saved["seconds"] > 0
    assert row["step"] == "9"


def test_json_has_no_number_that_json_does_not_know():
    result = ProbeResult({"a": float("nan")}, {"t": torch.tensor([1.0, float("inf")])}, {"f": {"x": (1, 2)}})
    assert json.loads(result.to_json(step=3)) == {
        "step": 3, "scalars": {"a": None}, "failures": [], "tables": {"t": [1.0, None]},
        "figures": {"f": {"x": [1, 2]}},
    }  # fmt: skip


def test_checkpoints_and_early_stopping_can_watch_a_probe(tmp_path):
    best = ModelCheckpoint(tmp_path / "ckpt", "best", monitor="probe/mean_loss/loss", mode="min")
    stop = EarlyStopping("probe/mean_loss/loss", mode="min", stopping_threshold=1e9)
    probe = MeanLoss()
    _, trainer = train([probe], tmp_path, callbacks=[best, stop], enable_checkpointing=True, max_epochs=3)
    assert trainer.global_step == 9  # any value is below the threshold
    assert float(best.best_model_score) == pytest.approx(probe.result.scalars["loss"])


def test_two_probes_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Two probes are named 'mean_loss'"):
        train([MeanLoss(), MeanLoss(seed=1)], tmp_path)
    with pytest.raises(ValueError, match="Two probes are named 'linear_decoding': give each its own name=, as in"):
        train([LinearDecodingProbe(["memory"]), LinearDecodingProbe(("head",))], tmp_path)
    train([MeanLoss(), MeanLoss(seed=1, name="second")], tmp_path, max_steps=1)
    assert steps_of(tmp_path) == steps_of(tmp_path, "second") == [1]


def test_what_happens_after_the_last_step_is_told(tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    train([MeanLoss(every_n_steps=2)], tmp_path, max_steps=2)
    assert "measures the trained model" not in caplog.text  # it was measured at the last step
    train([MeanLoss(every_n_steps=2)], tmp_path / "odd", max_steps=3)
    assert "Probe 'mean_loss' measures the trained model." in caplog.text


def test_a_probe_measures_one_training_after_another(tmp_path):
    probe = MeanLoss(max_seconds=1000)
    twins = ConsistencyProbe(exceptions=loader(8), rule="group")
    for folder in (tmp_path / "first", tmp_path / "second"):
        train([probe, twins], folder, max_epochs=1)
        assert steps_of(folder) == steps_of(folder, "consistency") == [9]
        assert probe.state_dict()["runs"] == len(twins.state_dict()["overgeneralisation"]) == 1


def test_results_of_another_training_are_not_lost_in_silence(tmp_path, recwarn):
    train([MeanLoss()], tmp_path, max_steps=1)
    assert not [w for w in recwarn if "results of another training" in str(w.message)]
    with pytest.warns(UserWarning, match=r"mean_loss holds results of another training.*another default_root_dir"):
        train([MeanLoss(seed=1)], tmp_path, max_steps=1)


def test_a_loader_for_one_reading_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="more than once, but its loader is a generator"):
        train([MeanLoss(loader=(batch for batch in loader(8)))], tmp_path)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (lambda: RepresentationSimilarityProbe(["memory", "memory.nowhere"]), "no module .memory.nowhere."),
        (lambda: DisentanglementProbe(meaning="x", site="nowhere"), "has no module 'nowhere' for the site"),
        (lambda: FastWeightProbe(at="nowhere"), "has no module 'nowhere'"),
        (lambda: FastWeightProbe(), r"Expected fast_weights\(\*forward_args\) in any module of Bare"),
        (lambda: RepresentationSimilarityProbe(["memory", "head[0]@3"]), "asks for a call that did not happen"),
        (lambda: DisentanglementProbe(meaning="z", site="memory"), "has no field 'z'.*by meaning="),
        (lambda: LinearDecodingProbe(["memory"], types="z"), "has no field 'z'.*by types="),
        (lambda: LinearDecodingProbe(["memory:input"], label=lambda batch: batch.x.T), r"Labels \[5, 8\] need"),
        (lambda: ReuseProbe(loader=[(torch.ones(8, 5), torch.ones(8))]), "a tuple without it"),
        (lambda: WeightMaskProbe(loss=lambda call, batch: batch.y.sum()), "never calls the model"),
        (lambda: WeightMaskProbe(masked=["tail.*"]), "No parameter to mask"),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"fast_dev_run": True}], ids=["whole", "fast_dev_run"])
def test_a_model_that_cannot_be_measured_is_refused_before_training(probe, message, settings, tmp_path):
    class Bare(Learner):
        def __init__(self):
            super().__init__()
            self.memory = nn.Sequential(nn.Embedding(12, 35), nn.Flatten(1), nn.Linear(175, 35))

        def training_step(self, batch, batch_idx):
            raise AssertionError("the training has begun")

    with pytest.raises(ValueError, match=message):
        train([probe()], tmp_path, learner=Bare(), **settings)


def test_a_trial_without_memory_ends_no_training(tmp_path):
    class Hungry(MeanLoss):
        def try_out(self, subject):
            assert len(subject.loader) == 1
            raise torch.OutOfMemoryError("the training fills the device")

    train([Hungry()], tmp_path, max_steps=1)
    assert steps_of(tmp_path, "hungry") == [1]


def test_a_result_that_cannot_be_written_does_not_end_the_training(tmp_path):
    (tmp_path / "probes").write_text("no folder")
    probe = MeanLoss()
    with pytest.warns(UserWarning, match="cannot write its result of step 9"):
        train([probe], tmp_path)
    assert probe.state_dict()["step"] == 18


def test_state_keys_tell_instances_apart():
    probes = [
        MeanLoss(),
        MeanLoss(seed=1),
        MeanLoss(name="b"),
        FastWeightProbe(),
        WeightMaskProbe(),
        WeightMaskProbe(lr=0.1),
    ]
    assert len({probe.state_key for probe in probes}) == 6
    assert WeightMaskProbe().state_key == WeightMaskProbe().state_key


def test_a_run_that_was_cut_short_goes_on_where_it_was(tmp_path):
    """Stop in the middle of an epoch, start anew from the checkpoint: same measurements as without the stop."""
    data = (loader(), loader(31, seed=1))  # unshuffled: the order of the data is not what is tested here
    whole = [MeanLoss(every_n_steps=4), FastWeightProbe()]
    train(whole, tmp_path / "whole", data)
    cut = [MeanLoss(every_n_steps=4), FastWeightProbe()]
    keep = ModelCheckpoint(tmp_path / "ckpt", "last", every_n_train_steps=6)
    train(cut, tmp_path / "cut", data, callbacks=[keep], enable_checkpointing=True, max_steps=6)
    saved = torch.load(tmp_path / "ckpt" / "last.ckpt", weights_only=False)["callbacks"][cut[0].state_key]
    assert (saved["step"], saved["runs"]) == (4, 1)

    fresh = [MeanLoss(every_n_steps=4), FastWeightProbe()]
    train(fresh, tmp_path / "fresh", data, ckpt_path=tmp_path / "ckpt" / "last.ckpt")
    assert steps_of(tmp_path / "fresh") == [8, 12, 16, 18]
    assert fresh[0].state_dict()["runs"] == whole[0].state_dict()["runs"] == 5
    assert fresh[0].state_dict()["spent"] > saved["spent"] > 0
    assert fresh[0].state_dict()["elapsed"] > saved["elapsed"] > 0
    assert steps_of(tmp_path / "fresh", "fast_weight") == [9, 18]


def test_a_restored_probe_knows_its_last_scalars():
    probe, restored = MeanLoss(), MeanLoss()
    probe._account(5, ProbeResult({"loss": 2.0}), 0.1)
    restored.load_state_dict(probe.state_dict())
    assert restored.result.scalars == {"loss": 2.0}
    assert restored.state_dict() == probe.state_dict()


def test_data_are_needed_before_training_starts(tmp_path):
    probe = MeanLoss()
    with pytest.raises(ValueError, match=r"'mean_loss' needs data: pass loader="):
        train([probe], tmp_path, (loader(),), max_epochs=1)
    with pytest.raises(ValueError, match=r"MeanLoss.run needs data"):
        probe.run(Learner())
    with pytest.raises(ValueError, match="its loader is empty"):
        probe.run(Learner(), [])


@pytest.mark.parametrize("sanity", [0, 2])
def test_validation_data_are_found_in_hooks_and_lists(sanity, tmp_path):
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return [loader(31, seed=1), loader(5, seed=2)]

    class Two(Learner):
        def validation_step(self, batch, index, dataloader_idx=0):
            pass

    probe = MeanLoss(every_n_steps=1)
    trainer = L.Trainer(
        max_steps=1, callbacks=[probe], default_root_dir=tmp_path, logger=False, accelerator="cpu",
        num_sanity_val_steps=sanity, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    learner = Two()
    trainer.fit(learner, Data())
    assert probe.result.to_json() == MeanLoss().run(learner, loader(31, seed=1)).to_json()


def test_batches_are_a_fixed_even_sample():
    batches = Batches.of(loader(67), 3, seed=5, device=CPU)
    order = torch.randperm(67, generator=torch.Generator().manual_seed(5))[:24]
    assert torch.equal(torch.cat([batch.x for batch in batches]), loader(67).dataset.x[order])
    assert torch.equal(batches[1].x, batches[1].x)
    everything = Batches.of(loader(67, shuffle=True), None, seed=5, device=CPU)
    assert [len(batch.x) for batch in everything] == [8] * 8 + [3]
    parts = everything.by_group()
    assert {name: sum(len(batch.x) for batch in part) for name, part in parts.items()} == {
        "first": 23,
        "second": 22,
        "third": 22,
    }
    assert all((batch.group == k).all() for k, part in enumerate(parts.values()) for batch in part)


def test_batches_of_streams_lists_and_whole_batch_datasets():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(loader(9).dataset[i] for i in range(9))

    streamed = Batches.of(DataLoader(Stream(), 4, collate_fn=collate), None, 0, CPU)
    assert [len(batch.x) for batch in streamed] == [4, 4, 1]
    assert len(Batches.of([*loader(31)], 2, 0, CPU)) == 2
    ready = [torch.full((2,), float(i)) for i in range(5)]
    whole = Batches.of(DataLoader(ready, batch_size=None), None, 0, CPU)
    assert sorted(float(batch[0]) for batch in whole) == [0, 1, 2, 3, 4]


def test_copies_are_apart_and_complete():
    learner = Learner()
    learner.memory.kept = learner.memory.key.weight * 2  # a tensor with a graph cannot be deep-copied as it is
    learner.head2 = nn.Linear(35, 3)
    learner.head2.weight = learner.head.weight
    twin = copy_of(learner)
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())
    assert twin.head2.weight is twin.head.weight
    assert twin.memory.kept.grad_fn is None
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in learner.parameters())
    assert copy_of(Learner().half()).head.weight.dtype == torch.float32
    assert copy_of(Learner().double()).head.weight.dtype == torch.float64


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).flatten(1)


@pytest.mark.parametrize("compiled", ["whole", "inside", "in place"])
def test_compiled_models_give_the_eager_numbers(compiled):
    torch.manual_seed(0)
    model = Holder(Memory())
    data = [(batch.x, batch.y) for batch in loader(31)]
    expected = [probe.run(model, data).scalars for probe in (FastWeightProbe(), WeightMaskProbe({"a": data}, steps=2))]
    if compiled == "whole":
        model = torch.compile(model, backend="eager")
    elif compiled == "inside":
        model.inner = torch.compile(model.inner, backend="eager")
    else:
        model.compile(backend="eager")
    model(data[0][0])
    assert [
        probe.run(model, data).scalars for probe in (FastWeightProbe(), WeightMaskProbe({"a": data}, steps=2))
    ] == expected


def test_a_compiled_learner_is_probed_in_its_copy(tmp_path):
    probe = MeanLoss()
    _, trainer = train([probe], tmp_path, learner=torch.compile(Learner(), backend="eager"), max_steps=3)
    assert probe.result.to_json() == MeanLoss().run(trainer.lightning_module, loader(31, seed=1)).to_json()
    twin = copy_of(trainer.lightning_module)
    twin.head.bias.data += 1
    x = loader(31).dataset.x
    assert torch.allclose(twin(x), trainer.lightning_module.eval()(x) + 1, atol=1e-6)


def test_losses_are_found_in_order():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])

    class OtherLoss(L.LightningModule):
        """Has a method of the same name and another meaning."""

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x):
            return self.net(x)

        def loss(self, logits, y):
            raise AssertionError("not for probes")

    class Plain(Probe):
        def measure(self, subject):
            return ProbeResult({"loss": float(subject.loss(subject.model, subject.loader[0]))})

    model = OtherLoss()
    assert Plain().run(model, [(x, y)]).scalars["loss"] == float(nn.functional.cross_entropy(model(x), y))
    assert Plain(loss=lambda call, batch: call(batch[0]).sum()).run(model, [(x, y)]).scalars["loss"] == float(
        model(x).sum()
    )
    with pytest.raises(TypeError, match=r"Expected batches \(x, y\) for the default cross-entropy, got Tensor"):
        Plain().run(model, [x])
