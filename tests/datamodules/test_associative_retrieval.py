"""Associative retrieval: the rule, the sizes of the paper, disjoint stages; and batches of tokens in general."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algornn.datamodules import AssociativeRetrieval
from algornn.datamodules.tokens import NO_TARGET, PackedTokens, TokenItem, collate_tokens

SMALL = {"train_size": 3000, "val_size": 300, "test_size": 500}


@pytest.fixture(scope="module")
def published():
    return AssociativeRetrieval()


def sequences(data, stage):
    return ["".join(example.source) for example in data.examples(stage)]


def test_sizes_and_symbols_of_the_paper(published):
    assert [len(published.examples(stage)) for stage in published.stages] == [100_000, 10_000, 20_000]
    assert (published.vocab_size, published.output_size, published.ood) == (38, 10, ())
    assert "".join(published.vocabulary[1:]) == "abcdefghijklmnopqrstuvwxyz0123456789?"


@pytest.mark.parametrize("pairs", [2, 4, 26])
def test_the_digit_after_the_letter_is_asked_for_at_the_last_step(pairs):
    data = AssociativeRetrieval(pairs=pairs, **SMALL)
    for example in data.examples("test"):
        told, asked = "".join(example.source).split("??")
        letters, digits = told[::2], told[1::2]
        assert len(letters) == len(set(letters)) == pairs
        assert letters.isalpha()
        assert digits.isdigit()
        assert example.target == (digits[letters.index(asked)],)
        assert example.group == f"pair{letters.index(asked) + 1}"
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens.shape == (128, 2 * pairs + 3)
    assert batch.mask.all()
    assert (batch.target[:, :-1] == NO_TARGET).all()
    assert {field.dtype for field in batch} == {torch.int64, torch.bool}


def test_letters_digits_and_places_are_uniform(published):
    data = published.dataset("train")
    tokens = np.stack([data[i].tokens for i in range(20_000)])
    for column in range(0, 8, 2):
        assert abs(np.bincount(tokens[:, column], minlength=38)[1:27] / 20_000 - 1 / 26).max() < 0.006
        assert abs(np.bincount(tokens[:, column + 1], minlength=38)[27:37] / 20_000 - 0.1).max() < 0.01
    places = np.bincount([data[i].group for i in range(20_000)])
    assert abs(places / 20_000 - 0.25).max() < 0.015


def test_no_sequence_occurs_twice(published):
    everything = [published._sequences(stage) for stage in published.stages]
    assert len(np.unique(np.concatenate(everything))) == 130_000
    crowded = AssociativeRetrieval(pairs=1, train_size=100, val_size=10, test_size=20)
    assert len({text for stage in crowded.stages for text in sequences(crowded, stage)}) == 130


def test_data_depend_on_the_seed_only():
    def text(**options):
        return sequences(AssociativeRetrieval(**SMALL, **options), "val")

    assert text() == text()
    assert not set(text()) & set(text(seed=1))
    data = AssociativeRetrieval(**SMALL)
    data.dataset("train")
    assert sequences(data, "val") == text()


def test_two_processes_see_together_what_one_sees_and_resume_in_the_middle():
    one = list(islice(AssociativeRetrieval(**SMALL, batch_size=8).train_dataloader(), 6))
    parts = []
    for rank in range(2):
        data = AssociativeRetrieval(**SMALL, batch_size=4)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        parts.append(islice(data.train_dataloader(), 6))
    for whole, first, second in zip(one, *parts, strict=True):
        for field, a, b in zip(whole, first, second, strict=True):
            assert torch.equal(field, torch.stack([a, b], dim=1).flatten(0, 1))
    loader = AssociativeRetrieval(**SMALL, batch_size=8).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batch": 4})
    assert [batch.id.tolist() for batch in islice(loader, 2)] == [batch.id.tolist() for batch in one[4:]]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "retrival"}, ValueError, "did you mean 'retrieval'"),
        ({"pairs": 27}, ValueError, "expected at most 26, not 27"),
        ({"pairs": 0}, ValueError, "pairs must be at least 1, not 0"),
        ({"pairs": 1}, ValueError, "There are 260 sequences of 1 pairs.* choose more pairs or smaller sizes"),
        ({"test_size": 0.5}, TypeError, "test_size must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        AssociativeRetrieval(**wrong)


def test_batches_are_padded_to_their_longest_sequence():
    items = [
        TokenItem(np.array([3, 1, 2]), np.array([-100, 0, 1]), 1, 5),
        TokenItem(np.array([2]), np.array([0]), 0, 7),
    ]
    batch = collate_tokens(items)
    assert batch.tokens.tolist() == [[3, 1, 2], [2, 0, 0]]
    assert batch.target.tolist() == [[-100, 0, 1], [0, -100, -100]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert (batch.group.tolist(), batch.id.tolist()) == ([1, 0], [5, 7])
    several = collate_tokens([item._replace(tokens=np.stack([item.tokens, item.tokens + 1], axis=1)) for item in items])
    assert several.tokens.tolist() == [[[3, 4], [1, 2], [2, 3]], [[2, 3], [0, 0], [0, 0]]]
    assert torch.equal(several.mask, batch.mask)


def test_packed_sequences_keep_their_lengths():
    ids = np.arange(1, 7)
    words = ("<pad>", *"abcdef")
    data = PackedTokens(words, ("no", "yes"), ("x", "y"), ids, ids % 2, np.array([1, 3, 2]), np.array([0, 1, 0]))
    assert [data[i].tokens.tolist() for i in (0, 1, -1)] == [[1], [2, 3, 4], [5, 6]]
    assert data.example(1) == (("b", "c", "d"), ("no", "yes", "no"), "y")
