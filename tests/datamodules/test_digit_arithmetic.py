"""Digit arithmetic: the first problems of the release, what x shows when, results by hand, and pairs held out."""

from itertools import islice

import numpy as np
import pytest
import torch

from algornn.datamodules import AddMul, DoubleAddition

SMALL = {"train_size": 4000, "test_size": 500}
OPERATORS = {"+": lambda a, b: (a + b) % 100, "*": lambda a, b: (a * b) % 100}


def numbers(example):
    """(a, b) of every pair, the sign, and the results by hand."""
    source = example.source
    pairs = [(int(source[i]), int(source[i + 2])) for i in range(0, len(source), 3)]
    return pairs, source[1], [OPERATORS[source[1]](a, b) for a, b in pairs]


def shown(x):
    """The numbers of one-hot digits [20 k]; None where no unit is on."""
    digits = [row.nonzero().flatten().tolist() for row in x.reshape(-1, 10)]
    return [ones[0] + 10 * tens[0] if ones else None for ones, tens in zip(digits[::2], digits[1::2], strict=True)]


def read(target):
    return [ones + 10 * tens if ones >= 0 else None for ones, tens in target.reshape(-1, 2).tolist()]


def test_the_first_problems_are_those_of_the_release():
    train = AddMul().examples("train")
    assert len(train) == 1_000_000
    assert [(x.source, x.target, x.group) for x in train[:3]] == [
        (("67", "*", "36"), ("12",), "mul"),
        (("0", "*", "59"), ("0",), "mul"),
        (("91", "*", "25"), ("75",), "mul"),
    ]
    double = DoubleAddition().examples("train")
    assert len(double) == 1_000_000
    assert [(x.source[0], x.source[2]) for x in double[:3]] == [("67", "36"), ("0", "59"), ("91", "25")]


@pytest.mark.parametrize(("stage", "offset"), [("train", 0), ("test", 1), ("val", 2)])
def test_every_stage_is_drawn_as_in_the_release(stage, offset):
    size = 4000 if stage == "train" else 500
    draw = np.random.RandomState(0x12345678 + offset)
    first, operator = draw.randint(0, 100, (size, 2)), draw.randint(0, 2, (size,))
    problems = AddMul(**SMALL).examples(stage)
    assert [numbers(x)[0][0] for x in problems] == [tuple(row) for row in first.tolist()]
    assert [x.group for x in problems] == [("add", "mul")[i] for i in operator]
    draw = np.random.RandomState(0x12345678 + offset)
    both = np.concatenate([draw.randint(0, 100, (size, 1, 2)) for _ in range(2)], axis=1)
    assert [np.ravel(numbers(x)[0]).tolist() for x in DoubleAddition(**SMALL).examples(stage)] == [
        row.ravel().tolist() for row in both
    ]


@pytest.mark.parametrize("split", AddMul.splits)
def test_add_and_mul_in_one_hot_digits(split):
    data = AddMul(split, **SMALL)
    assert (data.input_size, data.output_size, data.digits, data.ood) == (42, 10, 2, ())
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.target.shape) == ((128, 42), (128, 2))
    assert [field.dtype for field in batch] == [torch.float32, torch.int64, torch.int64, torch.int64]
    assert (batch.x.sum(dim=1) == 5).all()
    for x, target, group, i in zip(*batch, strict=True):
        example = data.examples("train")[int(i)]
        (pair,), sign, (result,) = numbers(example)
        assert shown(x[:40]) == list(pair)
        assert x[40:].tolist() == ([1, 0] if sign == "+" else [0, 1])
        assert read(target) == [result] == [int(example.target[0])]
        assert data.groups[int(group)] == example.group == {"+": "add", "*": "mul"}[sign]
        assert split in ("add_mul", example.group)


def test_splits_of_one_sign_are_parts_of_both():
    whole = list(AddMul(**SMALL).examples("val"))
    parts = {sign: list(AddMul(sign, **SMALL).examples("val")) for sign in ("add", "mul")}
    for sign, part in parts.items():
        assert part == [x for x in whole if x.group == sign]


def test_all_of_val_is_in_train_unless_pairs_are_held_out():
    assert {x.source for x in AddMul().examples("val")} <= set(
        {x.source for x in islice(AddMul().examples("train"), 300_000)}
    )
    data = AddMul(held_out=0.1, **SMALL)
    sources = {stage: [numbers(x) for x in data.examples(stage)] for stage in data.stages}
    held = {frozenset(pair) for (pair,), _, _ in sources["held_out"]}
    assert data.test_stages == ("test", "held_out")
    assert len(held) == 505
    for stage in ("train", "val", "test"):
        pairs = [frozenset(pair) for (pair,), _, _ in sources[stage]]
        assert not held & set(pairs)
        assert 0.85 < len(pairs) / (4000 if stage == "train" else 500) < 0.95
    ordered = {(pair, sign) for (pair,), sign, _ in sources["held_out"]}
    assert len(ordered) == len(sources["held_out"]) == 2 * sum(len(pair) for pair in held)
    assert [numbers(x) for x in AddMul(held_out=0.1, seed=1).examples("held_out")] != sources["held_out"]


def windows(split, both):
    """What six steps show: the numbers of both pairs, None where nothing is shown."""
    first, second, nothing = list(both[0]), list(both[1]), [None, None]
    alternate = {
        "only_one": (first + nothing, nothing + second),
        "same_io": (first, second),
    }
    alternate |= {"only_one_io": alternate["only_one"], "same_input": alternate["same_io"]}
    early, late = alternate.get(split, (first + second, first + second))
    return [early] * 3 + [late] * 3


@pytest.mark.parametrize("split", [split for split in DoubleAddition.splits if split != "apart"])
@pytest.mark.parametrize("only", [None, 0, 1])
def test_double_addition_shows_pairs_in_their_windows(split, only):
    data = DoubleAddition(split, only=only, **SMALL)
    assert data.digits == 4
    batch = next(iter(data.train_dataloader()))
    for x, target, i in zip(batch.x[:20], batch.target, batch.id, strict=False):
        pairs, _, results = numbers(data.examples("train")[int(i)])
        visible = [pair if only in (None, p) else (None, None) for p, pair in enumerate(pairs)]
        expected = windows(split, visible)
        assert read(target) == [result if only in (None, p) else None for p, result in enumerate(results)]
        if split == "feedforward":
            assert shown(x) == expected[0]
        else:
            assert x.shape == (6, data.input_size)
            assert [shown(step) for step in x] == expected
    assert data.input_size == (40 if split in ("same_input", "same_io") else 80)
    own = split in ("only_one_io", "same_output", "same_io")
    assert data.read_at == ((0, 0) if split == "feedforward" else (2, 5) if own else (5, 5))


def test_pairs_apart_are_two_examples_of_every_problem_that_show_one_pair_each():
    data, whole = DoubleAddition("apart", **SMALL), DoubleAddition(**SMALL)
    assert (data.input_size, data.read_at, data.groups) == (80, (0, 0), ("first", "second"))
    dataset, problems = data.dataset("val"), list(whole.examples("val"))
    assert len(dataset) == 2 * len(problems) == 1000
    for i in range(40):
        pairs, _, results = numbers(problems[i // 2])
        p, item = i % 2, dataset[i]
        assert (item.id, item.group, data.examples("val")[i].group) == (i, p, data.groups[p])
        assert shown(torch.from_numpy(item.x)) == [*pairs[0], None, None] if p == 0 else [None, None, *pairs[1]]
        assert read(torch.from_numpy(item.target)) == [result if q == p else None for q, result in enumerate(results)]


def test_double_addition_can_hold_pairs_out():
    data = DoubleAddition(held_out=0.3, **SMALL)
    held = {frozenset(pair) for x in data.examples("held_out") for pair in numbers(x)[0]}
    assert len(data.examples("held_out")) == 500
    for stage in ("train", "val", "test"):
        assert not held & {frozenset(pair) for x in data.examples(stage) for pair in numbers(x)[0]}
    assert abs(len(data.examples("train")) / 4000 - 0.49) < 0.03
    assert all(x.target == tuple(map(str, numbers(x)[2])) for x in data.examples("held_out"))


@pytest.mark.parametrize(
    ("make", "wrong", "error", "message"),
    [
        (AddMul, {"split": "addmul"}, ValueError, "did you mean 'add_mul'"),
        (
            AddMul,
            {"held_out": 1},
            ValueError,
            "held_out is a share of all pairs, .* at least 0 and below 1, not 1",
        ),
        (AddMul, {"held_out": "some"}, TypeError, "held_out must be a number, not 'some'"),
        (AddMul, {"train_size": 0}, ValueError, "train_size must be at least 1"),
        (AddMul, {"batch_size": True}, TypeError, "batch_size must be a whole number, not True"),
        (DoubleAddition, {"split": "same_out"}, ValueError, "did you mean 'same_output'"),
        (DoubleAddition, {"only": 2}, ValueError, "only is the pair that is shown, expected None, 0 or 1, not 2"),
        (DoubleAddition, {"split": "apart", "only": 0}, ValueError, "choose one by its group, without `only`"),
        (DoubleAddition, {"only": True}, TypeError, "only must be a whole number, not True"),
    ],
)
def test_bad_arguments_are_refused(make, wrong, error, message):
    with pytest.raises(error, match=message):
        make(**wrong)


@pytest.mark.parametrize("make", [AddMul, DoubleAddition])
def test_a_stage_without_a_problem_is_named(make):
    data = make(held_out=0.999, train_size=100, test_size=10)
    with pytest.raises(ValueError, match=r"Stage 'val' of .* of 10 drawn none is left; .* or a smaller held_out"):
        data.dataset("val")
