"""Compositional table lookup: published tables, counts and types, values by hand, and what training leaves out."""

import string
from collections import Counter

import numpy as np
import pytest
import torch

from algornn.datamodules import CompositionalTableLookup
from algornn.datamodules.compositional_table_lookup import tables

TYPES = {"val": "iid", "val_ood": "deeper_val", "test": "iid", "longer": "deeper"}
SIZES = {
    "train": 53_704,
    "val": 4_000,
    "val_ood": 1_000,
    "test": 4_000,
    "longer": 1_000,
    "new_primitive_1": 1_000,
    "new_primitive_2": 1_000,
    "new_composition": 608,
    "basic": 88,
}


@pytest.fixture(scope="module")
def forward():
    return CompositionalTableLookup("forward")


@pytest.fixture(scope="module")
def sources(forward):
    return {stage: [example.source for example in forward.examples(stage)] for stage in forward.stages}


def published():
    """Words of every symbol and table: a letter is a dictionary from symbol to symbol."""
    draw = np.random.RandomState(0x12345678)
    words = [format(symbol, "03b") for symbol in range(8)]
    return {name: dict(zip(words, (words[i] for i in draw.permutation(8)), strict=True)) for name in "abcdefghijk"}


def test_tables_are_the_published_permutations():
    assert tables().shape == (11, 8)
    assert tables()[:2].tolist() == [[6, 1, 5, 7, 0, 4, 2, 3], [6, 5, 7, 3, 2, 0, 4, 1]]
    assert all(sorted(row) == list(range(8)) for row in tables().tolist())
    assert published()["b"]["000"] == "110"


def test_published_counts_and_types(forward):
    assert {stage: len(forward.examples(stage)) for stage in forward.stages} == SIZES
    assert sum(size for stage, size in SIZES.items() if stage.startswith("val")) == 5_000
    assert sum(SIZES[stage] for stage in forward.test_stages) == 7_696
    for stage in forward.stages[1:]:
        assert {example.group for example in forward.examples(stage)} == {TYPES.get(stage, stage)}
    assert Counter(example.group for example in forward.examples("train")) == {"basic": 568, "iid": 53_136}
    assert (forward.vocab_size, forward.output_size) == (20, 8)
    assert forward.val_stages == ("val", "val_ood")
    assert set(forward.ood) == set(forward.stages) - {"train", "val", "test", "basic"}


@pytest.mark.parametrize("split", CompositionalTableLookup.splits)
def test_values_by_hand_and_the_same_data_in_both_directions(forward, split):
    function, data = published(), CompositionalTableLookup(split)
    for stage in data.stages:
        for i in range(0, SIZES[stage], 7):
            example = data.examples(stage)[i]
            order = example.source if split == "forward" else example.source[::-1]
            value, *names = order
            for name in names:
                value = function[name][value]
            assert example.target == (value,)
            assert order == forward.examples(stage)[i].source


def test_depths_and_tables_of_every_type(sources):
    depths = {stage: {len(source) - 1 for source in many} for stage, many in sources.items()}
    assert depths["train"] == {1, 2, 3, 4, 5}
    assert depths["val"] == depths["test"] == {2, 3, 4, 5}
    assert (depths["val_ood"], depths["longer"]) == ({6, 7, 8}, {9, 10})
    used = {stage: [set(source[1:]) for source in many] for stage, many in sources.items()}
    ordinary = set(string.ascii_lowercase[:9])
    for stage in ("val", "val_ood", "test", "longer", "new_composition"):
        assert set.union(*used[stage]) == ordinary
    assert all("j" in names and "k" not in names for names in used["new_primitive_1"])
    assert all("k" in names and "j" not in names for names in used["new_primitive_2"])
    composed = [source for source in sources["train"] if len(source) > 2]
    assert len(set(composed)) == len(composed) == 53_136
    assert {name for source in composed for name in source[1:]} == ordinary
    lookups = Counter(source[1] for source in sources["train"] if len(source) == 2)
    assert lookups == dict.fromkeys(ordinary, 8) | {"j": 8 * 31, "k": 8 * 31}
    assert Counter(len(source) - 1 for source in sources["new_composition"]) == {
        0: 1,
        1: 3,
        2: 21,
        3: 183,
        4: 200,
        5: 200,
    }


def test_pool_by_depth_saturates_as_published(sources):
    pool = Counter(
        len(source) - 1 for stage in ("train", "val", "test") for source in sources[stage] if len(source) > 2
    )
    assert pool[2] == 480  # all that there are: 8 * (81 - 21)
    assert abs(pool[3] - 4_350) < 30
    assert abs(pool[4] - 24_010) < 300


def test_training_leaves_out_evaluation(sources):
    train = set(sources["train"])
    for stage in set(sources) - {"train", "basic", "new_composition"}:
        assert not train & set(sources[stage])
        assert len(set(sources[stage])) == SIZES[stage]
    reserved = {source[1:] for source in sources["new_composition"] if len(source) > 2}
    for stage in ("train", "val", "test"):
        assert not reserved & {source[1:] for source in sources[stage]}
    assert not set(sources["val"]) & set(sources["test"])
    assert set(sources["basic"]) <= train


def test_data_depend_on_the_seed_only(sources):
    again, other = CompositionalTableLookup(), CompositionalTableLookup(seed=1)
    for stage in ("longer", "test", "new_composition"):
        assert [example.source for example in again.examples(stage)] == sources[stage]
        assert [example.source for example in other.examples(stage)] != sources[stage]
    batch = next(iter(again.train_dataloader()))
    assert batch.tokens.shape == (512, 6)
    assert {field.dtype for field in batch} == {torch.int64, torch.bool}
    assert sorted(again.val_dataloader()) == ["val", "val_ood"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "foward"}, ValueError, "did you mean 'forward'"),
        ({"batch_size": 0}, ValueError, "batch_size is the number of examples per batch"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        CompositionalTableLookup(**wrong)
