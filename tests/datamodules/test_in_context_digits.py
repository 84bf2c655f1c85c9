"""In-context digits: tasks of their own, images held out, the same streams everywhere."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from algornn.datamodules import InContextDigits
from algornn.datamodules.in_context_digits import digits


def test_images_are_split_by_digit_and_standardised():
    data = InContextDigits(length=10, test_examples=20)
    known, others = data.dataset("train"), data.dataset("test")
    assert len(known.images) + len(others.images) == 1797
    shares = np.bincount(others.classes) / np.bincount(digits()[1])
    assert abs(shares - 0.25).max() < 0.01
    assert abs(known.images.mean()) < 1e-5
    assert known.images.std() == pytest.approx(1, abs=1e-5)
    assert not {row.tobytes() for row in known.images} & {row.tobytes() for row in others.images}
    assert data.stages == ("train", "val", "test", "unprojected")
    assert data.ood == ("test", "unprojected")


def test_unseen_digits_are_those_of_no_training_stream():
    data = InContextDigits("unseen_digits", length=10)
    assert data.output_size == 5
    sets = {stage: {row.tobytes() for row in data.dataset(stage).images} for stage in data.stages}
    assert sets["train"] == sets["val"]
    assert sets["test"] == sets["unprojected"]
    assert not sets["train"] & sets["test"]
    assert set(data.dataset("test").classes.tolist()) == {0, 1, 2, 3, 4}


def test_a_stream_is_one_task():
    data = InContextDigits(length=200)
    for index in (0, 5):
        x, y = data.dataset("val")[index].x, data.dataset("val")[index].y
        images = data.dataset("val").images
        draw = data.dataset("val").draws(index)
        rows = draw.permutation(len(images))[:200]
        W = np.linalg.lstsq(images[rows], x, rcond=None)[0]  # the projection explains all inputs
        assert abs(images[rows] @ W - x).max() < 1e-3
        named = dict(zip(data.dataset("val").classes[rows].tolist(), y.tolist(), strict=True))
        assert len(named) == len(set(named.values())) == 10
        assert [named[c] for c in data.dataset("val").classes[rows].tolist()] == y.tolist()
    first, second = (data.dataset("val")[i].x.std(0) for i in (0, 1))
    assert not np.allclose(first, second)
    plain = data.dataset("unprojected")[3]
    assert {row.tobytes() for row in plain.x} <= {row.tobytes() for row in data.dataset("unprojected").images}


def test_batches_are_those_of_the_seed():
    batch, again, other = (
        next(iter(InContextDigits(batch_size=3, length=7, seed=seed).train_dataloader())) for seed in (0, 0, 1)
    )
    assert (batch.x.shape, batch.x.dtype, batch.y.shape, batch.y.dtype) == (
        (3, 7, 64), torch.float32, (3, 7), torch.int64,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.x, other.x)
    assert InContextDigits(length=3).examples("val")[0].target == tuple(
        map(str, InContextDigits(length=3).dataset("val")[0].y.tolist())
    )


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "digit"}, ValueError, "did you mean 'digits'"),
        ({"length": 401}, ValueError, "at most 400, not 401"),
        ({"split": "mnist", "length": 10_001}, ValueError, "at most 10000, not 10001"),
        ({"image_size": 3}, ValueError, "image_size has to divide 8"),
        ({"split": "mnist", "image_size": 8}, ValueError, "image_size has to divide 28"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1"),
        ({"test_examples": 0}, ValueError, "test_examples must be at least 1"),
        ({"train_examples": 1.5}, TypeError, "train_examples must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        InContextDigits(**wrong)


def test_smaller_images_are_means_of_squares():
    whole, half = (InContextDigits("unseen_digits", length=5, image_size=size) for size in (None, 4))
    (images, _), (reduced, _) = whole._images()[0], half._images()[0]
    assert (whole.input_size, half.input_size) == (64, 16)
    assert reduced[7].reshape(4, 4)[1, 3] == images[7].reshape(8, 8)[2:4, 6:8].mean()
    assert next(iter(half.test_dataloader()["test"])).x.shape == (64, 5, 16)


def test_tasks_of_the_documentation_are_streams_of_their_own(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    file = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Sides" in b)
    (tmp_path / "sides.py").write_text(file)
    monkeypatch.syspath_prepend(tmp_path)
    data = importlib.import_module("sides").Sides(split="planes", batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.y.shape) == ((4, 30, 8), (4, 30))
    assert not torch.equal(batch.x[0], batch.x[1])
    assert torch.equal(batch.x, next(iter(data.train_dataloader())).x)
    assert 0.2 < batch.y.float().mean() < 0.8
