"""Endless streams: rows that go on, epochs, processes, resuming, evaluation from start to end."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

from algornn.datamodules.split_datamodule import generator
from algornn.datamodules.stream import Documents, StreamDataModule
from algornn.datamodules.tokens import NO_TARGET

SIZES = {"train": 40, "val": 7, "test": 9, "far": 2}


def documents_of(stage):
    """Document i of a stage: 1 (begin), then up to six times the token i + 2."""
    lengths = generator("toy", stage).integers(1, 7, size=SIZES[stage]).tolist()
    return [[1] + [i + 2] * length for i, length in enumerate(lengths)]


class Toy(StreamDataModule):
    """Documents of repeated tokens."""

    benchmark = "toy"
    splits = ("small",)
    further = ("far",)
    groups = ("even", "odd")
    vocabulary = ("<pad>", "<begin>", *map(str, range(40)))

    def __init__(self, batch_size=4, seed=0, segment_length=5, evaluation_rows=1):
        super().__init__("small", None, batch_size, seed, segment_length, evaluation_rows)

    def dataset_of(self, stage):
        documents = documents_of(stage)
        tokens = np.concatenate([np.array(document, dtype=np.uint8) for document in documents])
        asked = np.append(tokens[1:], 1) == 1
        target = np.append(tokens[1:], 1).astype(np.int16)
        lengths = np.array([len(document) for document in documents])
        return Documents(self.vocabulary, self.groups, tokens, target, asked, lengths, np.arange(len(documents)) % 2)


def on_process(data, rank, world):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def fields(batches):
    return [[field.tolist() for field in batch] for batch in batches]


def row_of(row, rows, length, seed=0):
    """The first `length` tokens of a training stream, document by document."""
    stream, epoch = [], 0
    documents = documents_of("train")
    while len(stream) < length:
        for i in generator("toy", "small", "order", seed, epoch).permutation(40)[row::rows]:
            stream += documents[i]
        epoch += 1
    return stream[:length]


def test_a_row_goes_on_where_it_ended_over_batches_and_epochs():
    data = Toy()
    loader = data.train_dataloader()
    total = sum(map(len, documents_of("train")))
    assert len(loader) == total // (4 * 5)
    batches = [batch for _ in range(7) for batch in loader]
    assert len(batches) == 7 * len(loader)
    streams = torch.cat([batch.tokens for batch in batches], dim=1).tolist()
    assert streams == [row_of(row, 4, len(streams[0])) for row in range(4)]
    target = torch.cat([batch.target for batch in batches], dim=1)
    assert [row[1:] for row in streams] == target[:, :-1].tolist()
    assert torch.equal(torch.cat([batch.asked for batch in batches], dim=1), target == 1)
    assert all(batch.mask.all() and batch.tokens.shape == (4, 5) for batch in batches)
    inside = torch.tensor(streams) > 1
    assert torch.equal(torch.cat([batch.group for batch in batches], dim=1)[inside], torch.tensor(streams)[inside] % 2)
    assert [field.dtype for field in batches[0]] == [torch.int64] * 2 + [torch.bool] * 2 + [torch.int64]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows_of_one_process(world):
    one = [Toy(batch_size=2 * world).train_dataloader()] * 3
    shares = [[on_process(Toy(batch_size=2), rank, world).train_dataloader()] * 3 for rank in range(world)]
    whole = [batch for loader in one for batch in loader]
    parts = [[batch for loader in share for batch in loader] for share in shares]
    for batch, *rest in zip(whole, *parts, strict=True):
        for field, *others in zip(batch, *rest, strict=True):
            assert torch.equal(field, torch.stack(others, dim=1).flatten(0, 1))


@pytest.mark.parametrize(("epoch", "given"), [(0, 3), (2, 0), (2, 4), (60, 1)])
def test_loader_resumes_anywhere(epoch, given):
    whole = Toy().train_dataloader()
    batches = [batch for _ in range(epoch + 2) for batch in whole]
    resumed = Toy().train_dataloader()
    resumed.load_state_dict({"epoch": epoch, "batch": given})
    assert fields([*resumed, *resumed]) == fields(batches[epoch * len(whole) + given :])


def test_going_back_gives_the_same_batches_again():
    loader = Toy().train_dataloader()
    first = fields(loader)
    for _ in range(5):
        list(loader)
    loader.load_state_dict({"epoch": 0, "batch": 0})
    assert fields(loader) == first


def test_order_depends_on_the_seed_only():
    assert fields(Toy(seed=1).train_dataloader()) == fields(Toy(seed=1).train_dataloader())
    assert fields(Toy(seed=1).train_dataloader()) != fields(Toy(seed=2).train_dataloader())


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_evaluates_the_whole_stream_in_order(rank):
    data = on_process(Toy(), rank, 2)
    assert tuple(data.test_dataloader()) == ("test", "far")
    for stage, loader in {"val": data.val_dataloader(), **data.test_dataloader()}.items():
        assert isinstance(loader.sampler, DistributedSampler)  # or Lightning would put its own there
        expected = [token for document in documents_of(stage) for token in document]
        batches = list(loader)
        assert all(batch.tokens.shape == (1, 5) for batch in batches)
        assert len(batches) == -(-len(expected) // 5)
        tokens, target, mask, asked, group = (torch.cat(field, dim=1)[0] for field in zip(*batches, strict=True))
        real = len(expected)
        assert mask.tolist() == [True] * real + [False] * (len(tokens) - real)
        assert tokens.tolist() == expected + [0] * (len(tokens) - real)
        assert target.tolist() == [*expected[1:], 1] + [NO_TARGET] * (len(tokens) - real)
        assert not asked[real:].any()
        assert not group[real:].any()


@pytest.mark.parametrize("rows", [2, 3, 9, 12])
def test_evaluation_in_several_rows_has_the_same_documents(rows):
    (loader,) = islice(Toy(evaluation_rows=rows).test_dataloader().values(), 1)
    batches = list(loader)
    tokens, mask = (torch.cat(field, dim=1) for field in list(zip(*batches, strict=True))[::2][:2])
    expected = [token for document in documents_of("test") for token in document]
    assert tokens[mask].tolist() == expected
    assert all(not row or row[0] == 1 for row in (t[m].tolist() for t, m in zip(tokens, mask, strict=True)))
    if rows < 9:
        assert int(mask.sum(dim=1).max()) <= len(expected) / rows + 8


def test_examples_are_documents():
    examples = Toy().examples("train")
    assert len(examples) == 40
    document = documents_of("train")[3]
    words = tuple(Toy.vocabulary[token] for token in document)
    assert examples[3] == (words, (*words[1:], "<begin>"), "odd")


def test_too_many_rows_or_too_long_segments_are_refused():
    with pytest.raises(ValueError, match="at least one document for each of 41 streams, found 40; choose a smaller"):
        Toy(batch_size=41).train_dataloader()
    with pytest.raises(
        ValueError, match=r"one segment of 100 tokens for each of 4 streams.*batch_size or segment_length"
    ):
        Toy(segment_length=100).train_dataloader()
    for wrong in ({"segment_length": 0}, {"evaluation_rows": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1, not 0"):
            Toy(**wrong)
    with pytest.raises(ValueError, match="at least one document, found none"):
        Documents(("<pad>",), ("a",), *[np.empty(0, dtype=np.int64)] * 5)


class Recorder(LightningModule):
    """Keeps the batches that it was given, step by step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch, batch_idx):
        self.seen[self.global_step] = batch.tokens.tolist()
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(folder, checkpoint=None, callbacks=()):
    recorder = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=20,
        max_epochs=-1,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **quiet,
    )
    trainer.fit(recorder, datamodule=Toy(), ckpt_path=checkpoint)
    return recorder.seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_resumes_with_the_same_batches(tmp_path):
    keep_all = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, callbacks=[keep_all])
    assert len(whole) == 20
    for step in (1, 9, 10, 15):
        resumed = fit(tmp_path, checkpoint=tmp_path / f"step={step}.ckpt")
        assert resumed == {key: batch for key, batch in whole.items() if key >= step}
