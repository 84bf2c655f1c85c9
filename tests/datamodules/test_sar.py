"""Systematic associative recall: which pairs occur where, the layout of an episode, determinism."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algornn.datamodules import SAR
from algornn.datamodules.tokens import NO_TARGET


def read(tokens, target, words):
    """The pairs of an episode in order, and those that are asked for; checks its layout."""
    flags, xs, ys = ([words[i] if i else None for i in column] for column in zip(*tokens, strict=True))
    n = (len(xs) - 2) // 2
    assert flags == ["<input>", *[None] * n, "<output>", *[None] * n]
    assert xs[0] is xs[n + 1] is None
    assert ys[0] is None
    assert set(ys[n + 1 :]) == {None}
    assert target[: n + 2] == [NO_TARGET] * (n + 2)
    told = list(zip(xs[1 : n + 1], ys[1 : n + 1], strict=True))
    asked = list(zip(xs[n + 2 :], [words[i] for i in target[n + 2 :]], strict=True))
    assert sorted(told) == sorted(asked)
    return told, asked


def episodes(data, loader, number):
    batches = islice(loader, number)
    return [
        read(tokens, target, data.vocabulary)
        for batch in batches
        for tokens, target in zip(batch.tokens.tolist(), batch.target.tolist(), strict=True)
    ]


def kinds(pairs):
    return Counter((x.split("_")[0], y.split("_")[0]) for x, y in pairs)


@pytest.mark.parametrize(("split", "p"), [("p=0", 0), ("p=0.1", 0.1), ("p=0.3", 0.3), ("p=0.5", 0.5), ("p=1", 1)])
def test_pairs_of_training_and_validation(split, p):
    data = SAR(split)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        told = [pair for pairs, _ in episodes(data, loader, 3) for pair in pairs]
        share = {kind: number / len(told) for kind, number in kinds(told).items()}
        expected = {("x1", "y2"): 0.5 - p / 4, ("x2", "y1"): 0.5, ("x1", "y1"): p / 4}
        assert share == pytest.approx({kind: part for kind, part in expected.items() if part}, abs=0.012)
        with_y1 = {int(x.split("_")[1]) for x, y in told if (x[:2], y[:2]) == ("x1", "y1")}
        assert with_y1 <= set(range(int(250 * p)))
    words = Counter(x for x, _ in told)
    assert len(words) == 500
    assert len({y for _, y in told}) == 500


def test_an_episode_has_different_words_asked_in_another_order():
    data = SAR(pairs=30, batch_size=8)
    seen = episodes(data, data.train_dataloader(), 4)
    for told, _ in seen:
        assert len({x for x, _ in told}) == len(told) == 30
    assert sum(told == asked for told, asked in seen) == 0
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens.shape == (8, 62, 3)
    assert batch.mask.all()
    assert batch.group.eq(0).all()


def test_the_test_pairs_every_word_of_x2_with_every_word_of_y2_once():
    data = SAR("p=0.5", pairs=30)
    loader = data.test_dataloader()["test"]
    seen = Counter()
    for told, asked in episodes(data, loader, 99):
        assert told == asked  # as released
        assert [x for x, _ in told] == [f"x2_{i}" for i in range(250)]
        seen.update(told)
    assert len(seen) == 250 * 250
    assert kinds(seen) == {("x2", "y2"): 250 * 250}
    assert next(iter(loader)).group.eq(1).all()
    assert data.ood == ("test",)
    first = [y for _, y in episodes(data, loader, 1)[0][0]]
    assert len(set(first)) < 200  # each word has an order of its own


@pytest.mark.parametrize(("pairs", "episodes_per_round"), [(10, 25), (100, 3), (250, 1)])
def test_shorter_episodes_of_the_test_have_the_same_pairs(pairs, episodes_per_round):
    whole, cut = SAR().dataset("test"), SAR(test_pairs=pairs).dataset("test")
    assert len(cut) == 250 * episodes_per_round
    assert SAR(test_pairs=pairs).note == ("" if pairs == 250 else f"{pairs} pairs in an episode of the test")
    for b in (0, 7, 249):
        parts = [cut[b * episodes_per_round + i].tokens for i in range(episodes_per_round)]
        assert max(len(part) for part in parts) == 2 * pairs + 2
        told = np.concatenate([part[1 : len(part) // 2, 1:] for part in parts])
        assert told.tolist() == whole[b].tokens[1:251, 1:].tolist()


def test_sizes_and_examples():
    data = SAR(pairs=2)
    assert (data.vocab_size, data.output_size) == (1003, 1003)
    assert [len(data.examples(stage)) for stage in data.stages] == [1_920_000, 250, 250]
    example = data.examples("train")[5]
    assert [word for word in example.source if word.startswith("<")] == ["<input>", "<output>"]
    assert len(example.source) == 8
    assert set(example.target) == {example.source[2], example.source[4]}
    assert example.group == "seen"


def test_episodes_depend_on_seed_and_stage_only_and_processes_share_batches():
    def batches(rank=0, world=1, **options):
        data = SAR(pairs=20, **options)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return list(islice(data.train_dataloader(), 4))

    one = batches(batch_size=6)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, batches(batch_size=6), strict=True))
    assert not torch.equal(one[0].tokens, batches(batch_size=6, seed=1)[0].tokens)
    thirds = [batches(rank, 3, batch_size=2) for rank in range(3)]
    for whole, *parts in zip(one, *thirds, strict=True):
        for field, *shares in zip(whole, *parts, strict=True):
            assert torch.equal(field, torch.stack(shares, dim=1).flatten(0, 1))
    data = SAR(pairs=20, batch_size=6)
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 0, "batch": 2})
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(islice(loader, 2), one[2:], strict=True))
    assert data.dataset("val")[0].tokens.tolist() != data.dataset("train")[0].tokens.tolist()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "p=0.2"}, ValueError, "split 'p=0.2' is unknown"),
        ({"pairs": 501}, ValueError, "at most 500, not 501"),
        ({"test_pairs": 251}, ValueError, "at most 250, not 251"),
        ({"pairs": 0}, ValueError, "pairs must be at least 1, not 0"),
        ({"train_examples": 1.5}, TypeError, "train_examples must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        SAR(**wrong)
