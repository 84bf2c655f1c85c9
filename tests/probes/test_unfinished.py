"""Mask learning that was interrupted: it goes on to the same masks, and only for the same measurement."""

import math
from dataclasses import dataclass
from functools import partialmethod
from typing import Any

import pytest
import torch
from blocks import M, block_tasks, linear, matrix, relative_error

from algornn.probes import WeightMaskProbe, unfinished
from algornn.probes.mask_learning import MaskLearning
from algornn.probes.unfinished import digest


@dataclass
class Pair:
    x: Any
    y: Any


def test_an_interrupted_measurement_goes_on_to_the_same_masks(tmp_path, monkeypatch):
    weight = matrix(2 * M, torch.Generator().manual_seed(0))
    probe = WeightMaskProbe(block_tasks(weight), relative_error, steps=300, beta=1e-3)
    whole = probe.run(linear(weight))
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    advance, steps = MaskLearning.advance, [0]

    def counted(self, batches, order, generator, last):
        steps[0] += len(order)
        if steps[0] > last:
            raise KeyboardInterrupt
        return advance(self, batches, order, generator)

    monkeypatch.setattr(MaskLearning, "advance", partialmethod(counted, last=450))  # in the middle of the second mask
    with pytest.raises(KeyboardInterrupt):
        probe.run(linear(weight), folder=tmp_path)
    assert len(list(tmp_path.glob("unfinished/mask-*.pt"))) == 2
    damaged = tmp_path / "unfinished" / "other.pt"
    damaged.write_bytes(b"")
    monkeypatch.setattr(MaskLearning, "advance", partialmethod(counted, last=math.inf))
    steps[0] = 0
    assert repr(probe.run(linear(weight), folder=tmp_path)) == repr(whole)
    assert steps[0] == 3 * 300 - 450
    assert not list(tmp_path.iterdir())


def test_short_masks_are_kept_as_well(tmp_path, monkeypatch):
    weight = matrix(2 * M, torch.Generator().manual_seed(0))
    monkeypatch.setattr(unfinished, "clear", lambda folder: None)
    WeightMaskProbe(block_tasks(weight), relative_error, steps=3).run(linear(weight), folder=tmp_path)
    assert len(list(tmp_path.glob("unfinished/mask-*.pt"))) == 3


def test_without_space_masks_are_learned_all_the_same(tmp_path):
    weight = matrix(2 * M, torch.Generator().manual_seed(0))
    probe = WeightMaskProbe(block_tasks(weight), relative_error, steps=3)
    (tmp_path / "unfinished").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert repr(probe.run(linear(weight), folder=tmp_path)) == repr(probe.run(linear(weight)))


@pytest.mark.parametrize("change", ["weights", "bias", "data", "settings", "damage"])
def test_masks_of_another_measurement_are_not_taken_up(change, tmp_path, monkeypatch):
    weight = matrix(2 * M, torch.Generator().manual_seed(0))
    monkeypatch.setattr(unfinished, "SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "clear", lambda folder: None)
    tasks, settings, bias = block_tasks(weight), {"steps": 100, "beta": 1e-3}, torch.zeros(2 * M)
    WeightMaskProbe(tasks, relative_error, **settings).run(linear(weight, bias), folder=tmp_path)
    if change == "weights":
        weight = weight + 1e-3
    elif change == "bias":  # which no mask covers
        bias = bias + 1
    elif change == "data":
        tasks["task 2"] = [(x + 1e-3, y) for x, y in tasks["task 2"]]
        tasks["task 1"] = [(x + 1e-3, y) for x, y in tasks["task 1"]]
    elif change == "settings":
        settings["beta"] = 2e-3
    else:
        for file in tmp_path.glob("unfinished/*.pt"):
            file.write_bytes(file.read_bytes()[:100])
    fresh = WeightMaskProbe(tasks, relative_error, **settings).run(linear(weight, bias))
    again = WeightMaskProbe(tasks, relative_error, **settings).run(linear(weight, bias), folder=tmp_path)
    assert repr(again) == repr(fresh)


@pytest.mark.parametrize(
    "kind", [lambda x: x, lambda x: x.numpy(), lambda x: Pair(x, 1), lambda x: [Pair(1, {"x": x})]]
)
def test_whatever_holds_the_data_every_number_counts(kind):
    x = torch.zeros(3000)
    other = x.clone()
    other[1500] = 1  # where a text would have an ellipsis
    assert digest(kind(x)) == digest(kind(x.clone()))
    assert digest(kind(x)) != digest(kind(other))
