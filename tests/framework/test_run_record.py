"""The record of a run says what must stand beside its results."""

import json
from types import SimpleNamespace

import torch

from algornn.run import Recipe, RunRecord


class Data:
    split, ood, note = "pcfgset", (), ""


def record(folder, data):
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data, global_step=3, default_root_dir=folder)
    RunRecord(Recipe(), seed=0, command="").on_test_end(trainer, torch.nn.Linear(1, 1))
    return json.loads((folder / "metrics.json").read_text())


def test_the_note_of_the_data_stands_beside_their_name(tmp_path):
    data = Data()
    assert record(tmp_path, data)["data"] == "Data pcfgset"
    data.note = "generated training set"
    assert record(tmp_path, data)["data"] == "Data pcfgset (generated training set)"
    assert record(tmp_path, SimpleNamespace())["data"] == "SimpleNamespace"
