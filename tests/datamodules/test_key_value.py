"""Key-value capacity: the two settings, their queries, determinism and speed."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from algornn.datamodules import KeyValueCapacity
from algornn.datamodules.split_datamodule import ItemGenerators


def last(keys, values, query):
    """The value that followed a key last, by reading on."""
    memory = {}
    for key, value in zip(keys, values, strict=True):
        memory[key] = value
    return memory[query]


def first_batches(data, number):
    return list(islice(data.train_dataloader(), number))


def assert_answers(batch):
    for keys, values, query, target in zip(*(field.tolist() for field in batch[:4]), strict=True):
        assert target == [last(keys, values, key) for key in query]


@pytest.mark.parametrize("size", [5, 40])
def test_setting1_holds_every_key_and_value_once(size):
    (batch,) = first_batches(KeyValueCapacity("setting1", size=size), 1)
    everything = torch.arange(size).expand(32, size)
    assert torch.equal(batch.keys.sort(dim=1).values, everything)
    assert torch.equal(batch.values.sort(dim=1).values, everything)
    assert not torch.equal(batch.keys, batch.values)
    assert batch.query.shape == batch.target.shape == (32, 1)
    assert {field.dtype for field in batch} == {torch.int64}
    assert_answers(batch)


def test_setting2_draws_with_replacement_and_wants_the_last_value():
    (batch,) = first_batches(KeyValueCapacity("setting2", size=10, batch_size=64), 1)
    assert batch.keys.shape == (64, 20)
    assert_answers(batch)
    assert (batch.keys.max(), batch.values.max()) == (9, 9)
    replaced = [(keys == query).sum() > 1 for keys, query in zip(batch.keys, batch.query, strict=True)]
    assert sum(map(bool, replaced)) > 20


@pytest.mark.parametrize("split", KeyValueCapacity.splits)
def test_queries_are_uniform_over_the_pairs(split):
    data = KeyValueCapacity(split, size=4, batch_size=4000)
    (batch,) = first_batches(data, 1)
    # Uniform over pairs: a key that occurs twice is asked twice as often (released code).
    share = (batch.keys == batch.query).float().mean(dim=1).mean()
    expected = 0.25 if split == "setting1" else (1 + 7 / 4) / 8
    assert abs(share - expected) < 0.01
    assert abs((batch.query == 0).float().mean() - 0.25) < 0.03


def test_evaluation_asks_for_every_key_of_twenty_sequences_of_length_s():
    data = KeyValueCapacity("setting1", size=40)
    (batch,) = data.val_dataloader()
    assert batch.keys.shape == batch.query.shape == (20, 40)
    assert torch.equal(batch.query, torch.arange(40).expand(20, 40))
    assert_answers(batch)
    assert KeyValueCapacity("setting1", size=300).dataset("test")[0].query.shape == (200,)

    data = KeyValueCapacity("setting2", size=40)
    asked = {}
    for batch in data.test_dataloader()["test"]:
        assert batch.keys.shape[1] == 40
        assert_answers(batch)
        for keys, query in zip(batch.keys.tolist(), batch.query[:, 0].tolist(), strict=True):
            asked.setdefault(tuple(keys), []).append(query)
    assert len(asked) == 20
    assert all(sorted(set(keys)) == queries for keys, queries in asked.items())
    assert abs(sum(map(len, asked.values())) / 800 - 0.635) < 0.05


def test_stages_splits_sizes_and_seeds_differ():
    def keys(stage="val", split="setting1", **options):
        return tuple(KeyValueCapacity(split, **options).dataset(stage)[0].keys.tolist())

    ways = [keys(), keys("test"), keys("train"), keys(split="setting2"), keys(seed=1)]
    assert len(set(ways)) == len(ways)
    assert keys() == keys()


def test_an_item_depends_on_its_index_alone():
    draws, again = ItemGenerators("x", 0), ItemGenerators("x", 0)
    forward = [draws(i).permutation(20).tolist() for i in range(5)]
    assert [again(i).permutation(20).tolist() for i in reversed(range(5))] == forward[::-1]
    half = draws(3)
    half.integers(7, size=3, dtype="int32")
    assert draws(3).permutation(20).tolist() == forward[3]
    assert ItemGenerators("numbers", 0)(7).permutation(8).tolist() == [7, 0, 4, 1, 3, 5, 2, 6]


def test_two_processes_see_together_what_one_sees_and_resume_in_the_middle():
    one = first_batches(KeyValueCapacity("setting2", batch_size=8), 6)
    parts = []
    for rank in range(2):
        data = KeyValueCapacity("setting2", batch_size=4)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        parts.append(first_batches(data, 6))
    for whole, first, second in zip(one, *parts, strict=True):
        for field, a, b in zip(whole, first, second, strict=True):
            assert torch.equal(field, torch.stack([a, b], dim=1).flatten(0, 1))

    loader = KeyValueCapacity("setting2", batch_size=8).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batch": 4})
    resumed = list(islice(loader, 2))
    assert all(torch.equal(a, b) for x, y in zip(resumed, one[4:], strict=True) for a, b in zip(x, y, strict=True))


def test_sizes_are_known_and_examples_are_in_words():
    data = KeyValueCapacity("setting2", size=3)
    assert (data.num_keys, data.num_values, len(data.examples("train"))) == (3, 3, 320_000)
    assert data.ood == ()
    example, item = data.examples("train")[-1], data.dataset("train")[-1]
    assert item.id == 319_999
    assert (example.source[:2], example.source[-2]) == ((f"k{item.keys[0]}", f"v{item.values[0]}"), "?")
    assert (len(example.source), example.target, example.group) == (14, (f"v{item.target[0]}",), "setting2")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "setting3"}, ValueError, "split 'setting3' is unknown"),
        ({"size": 0}, ValueError, "size must be at least 1, not 0"),
        ({"size": 2.5}, TypeError, "size must be a whole number, not 2.5"),
        ({"train_examples": 0}, ValueError, "train_examples must be at least 1"),
        ({"test_sequences": -1}, ValueError, "test_sequences must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        KeyValueCapacity(**wrong)
