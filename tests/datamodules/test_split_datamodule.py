"""The base of all benchmarks: order, resuming, several processes, names."""

from itertools import chain
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from algornn.checkpoints import LastCheckpoint
from algornn.datamodules import CFQ, SCAN, CatBAbI, CodeExecution, CTLPlusPlus
from algornn.datamodules.split_datamodule import (
    EpochOrder,
    Example,
    GroupedDataset,
    SplitDataModule,
    check_name,
    generator,
)


class NumbersDataset(GroupedDataset):
    groups = ("even", "odd")

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


class Numbers(SplitDataModule):
    """The numbers 0, 1, ... as a benchmark."""

    benchmark = "numbers"
    splits = ("small", "large")
    further = ("far",)
    ood = ("far",)
    groups = ("even", "odd")
    sizes: ClassVar = {"train": 50, "val": 7, "test": 11, "far": 3}

    def examples(self, stage):
        return [Example((str(i),), (str(i % 2),), self.groups[i % 2]) for i in range(self.sizes[stage])]

    def dataset_of(self, stage):
        return NumbersDataset(self.sizes[stage])

    @staticmethod
    def collate(items):
        return torch.tensor(items)


def on_process(data, rank, world):
    """The data module as process `rank` of `world` sees it."""
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def epoch(loader):
    return [batch.tolist() for batch in loader]


def flat(lists):
    return list(chain.from_iterable(lists))


def test_an_epoch_shuffles_everything_once_and_drops_the_incomplete_batch():
    batches = epoch(Numbers("small", batch_size=8).train_dataloader())
    assert [len(batch) for batch in batches] == [8] * 6
    seen = flat(batches)
    assert len(set(seen)) == 48
    assert seen != sorted(seen)


def test_order_depends_on_seed_and_epoch_only():
    loader = Numbers("small", batch_size=8, seed=3).train_dataloader()
    first, second = epoch(loader), epoch(loader)
    assert first != second
    again = Numbers("small", batch_size=8, seed=3).train_dataloader()
    torch.manual_seed(99)
    again.batch_sampler.set_epoch(1)
    assert epoch(again) == second
    assert epoch(Numbers("small", batch_size=8, seed=4).train_dataloader()) != first


def test_order_is_the_same_on_every_machine():
    assert generator("numbers", "small", "order", 0, 0).permutation(10).tolist() == [5, 3, 7, 6, 4, 1, 0, 8, 2, 9]


@pytest.mark.parametrize("given", range(7))
def test_loader_resumes_in_the_middle_of_an_epoch(given):
    whole = Numbers("small", batch_size=8).train_dataloader()
    expected = [epoch(whole), epoch(whole), epoch(whole)]

    loader = Numbers("small", batch_size=8).train_dataloader()
    epoch(loader)
    batches = iter(loader)
    for _ in range(given):
        next(batches)
    state = loader.state_dict()
    resumed = Numbers("small", batch_size=8).train_dataloader()
    resumed.load_state_dict(state if given else {"epoch": 1, "batch": 0})
    passes = [rest for rest in (expected[1][given:], expected[2]) if rest]  # no pass is empty
    assert [epoch(resumed) for _ in passes] == passes


def test_an_epoch_that_the_trainer_cuts_short_is_given_to_its_end(tmp_path):
    whole = fit(tmp_path / "whole", max_steps=9, max_epochs=-1).seen
    keep = LastCheckpoint(tmp_path / "last.ckpt", every_n_steps=100)  # written at the end of training
    first = fit(tmp_path / "first", callbacks=[keep], max_steps=4, max_epochs=-1).seen
    second = fit(tmp_path / "second", tmp_path / "last.ckpt", max_steps=9, max_epochs=-1).seen
    assert first | second == whole


def test_batches_draw_nothing_from_the_global_generator():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    epoch(Numbers("small", batch_size=8).train_dataloader())
    assert torch.equal(torch.rand(1), wanted)


def test_a_pass_given_up_in_the_middle_starts_again_from_the_first_batch():
    loader = Numbers("small", batch_size=8).train_dataloader()
    first = next(iter(loader)).tolist()
    assert next(iter(loader)).tolist() == first


def test_processes_share_the_batches_of_one_process():
    for start in range(2):
        one = Numbers("small", batch_size=12).train_dataloader()
        one.batch_sampler.set_epoch(start)
        three = [on_process(Numbers("small", batch_size=4), rank, 3).train_dataloader() for rank in range(3)]
        for loader in three:
            loader.batch_sampler.set_epoch(start)
        together = [torch.stack(parts, dim=1).reshape(-1).tolist() for parts in zip(*three, strict=True)]
        assert together == epoch(one)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_covers_everything_with_equally_many_batches(world):
    for stage, size in Numbers.sizes.items():
        if stage == "train":
            continue
        shares = []
        for rank in range(world):
            data = on_process(Numbers("small", batch_size=2), rank, world)
            shares.append(epoch(data.val_dataloader() if stage == "val" else data.test_dataloader()[stage]))
        assert len({len(share) for share in shares}) == 1
        seen = [flat(share) for share in shares]
        assert set(flat(seen)) == set(range(size))
        assert all(
            share[: len(range(rank, size, world))] == list(range(rank, size, world)) for rank, share in enumerate(seen)
        )


def test_stages_and_test_stages():
    data = Numbers("small")
    assert data.stages == ("train", "val", "test", "far")
    assert data.test_stages == tuple(data.test_dataloader()) == ("test", "far")
    assert set(data.ood) <= set(data.stages)


def test_unknown_names_show_the_closest_valid_one():
    with pytest.raises(
        ValueError, match=r"split 'smal' is unknown; did you mean 'small'\? Expected one of 'small', 'large'\."
    ):
        Numbers("smal")
    with pytest.raises(ValueError, match=r"stage 'tests' is unknown.*did you mean 'test'\?"):
        Numbers("small").dataset("tests")
    with pytest.raises(ValueError, match="expected one of 'a'"):
        check_name("split", "zzz", ("a",))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"batch_size .* at least 1, not 0"):
        Numbers("small", batch_size=0)
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        Numbers("small", seed=-1)
    with pytest.raises(ValueError, match="found 50 in all; choose a smaller batch_size"):
        Numbers("small", batch_size=51).train_dataloader()
    with pytest.raises(ValueError, match="at least one batch of 2 x 26"):
        EpochOrder(("x",), 50, 26, 0, 2)
    for wrong in ({"batch_size": 2.5}, {"batch_size": "8"}, {"seed": 1.5}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be a whole number, not"):
            Numbers("small", **wrong)


class Recorder(LightningModule):
    """Keeps the batches that it was given, step by step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.evaluated = {}, {}

    def training_step(self, batch, batch_idx):
        self.seen[self.global_step] = batch.tolist()
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        stage = self.trainer.datamodule.test_stages[dataloader_idx]
        self.evaluated.setdefault(stage, []).extend(batch.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(folder, checkpoint=None, callbacks=(), **options):
    recorder = Recorder()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(recorder, datamodule=Numbers("small", batch_size=8), ckpt_path=checkpoint)
    return recorder


@pytest.mark.parametrize(
    "options", [{"max_epochs": 3}, {"max_steps": 17, "max_epochs": -1}, {"max_epochs": 3, "val_check_interval": 2}]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_resumes_with_the_same_batches_from_every_step(tmp_path, options):
    keep_all = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, callbacks=[keep_all], **options).seen
    assert len({tuple(batch) for batch in whole.values()}) == len(whole) == options.get("max_steps", 18)
    for step in range(1, len(whole)):
        resumed = fit(tmp_path, checkpoint=tmp_path / f"step={step}.ckpt", **options).seen
        assert resumed == {key: batch for key, batch in whole.items() if key >= step}, f"resumed after step {step}"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_tests_every_stage_by_name(tmp_path):
    recorder = Recorder()
    Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False).test(
        recorder, datamodule=Numbers("small", batch_size=2), verbose=False
    )
    assert recorder.evaluated == {"test": list(range(11)), "far": list(range(3))}


class SavingRecorder(Recorder):
    """Writes what each process saw to a file of its own."""

    def on_fit_end(self):
        torch.save(self.seen, f"{self.trainer.default_root_dir}/fit{self.global_rank}.pt")

    def on_test_end(self):
        torch.save(self.evaluated, f"{self.trainer.default_root_dir}/test{self.global_rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_gloo_processes_see_the_batches_of_one(tmp_path):
    expected = fit(tmp_path, max_epochs=2).seen
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=True,  # Lightning's default must not swap the samplers either
    )
    recorder, data = SavingRecorder(), Numbers("small", batch_size=4)
    trainer.fit(recorder, datamodule=data)
    trainer.test(recorder, datamodule=data, verbose=False)
    seen = [torch.load(tmp_path / f"fit{rank}.pt") for rank in range(2)]
    assert {step: flat(zip(seen[0][step], seen[1][step], strict=True)) for step in seen[0]} == expected
    assert torch.load(tmp_path / "test0.pt") == {"test": [0, 2, 4, 6, 8, 10], "far": [0, 2]}
    assert torch.load(tmp_path / "test1.pt") == {"test": [1, 3, 5, 7, 9, 0], "far": [1, 0]}


@pytest.mark.parametrize(
    ("made", "flag"),
    [
        (SCAN, "held_out"),
        (CFQ, "held_out"),
        (CTLPlusPlus, "pairs"),
        (CTLPlusPlus, "backward"),
        (CatBAbI, "drop_last_story"),
        (CodeExecution, "ignore_conditional_reassignment"),
    ],
)
def test_what_is_neither_true_nor_false_is_refused(made, flag):
    with pytest.raises(TypeError, match=f"{flag} must be True or False, not 'no'"):
        made(**{flag: "no"})
