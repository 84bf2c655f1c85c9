"""Sequential ListOps: values, exact depth, and the same distribution as drawing until a list has the depth."""

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from algornn.datamodules import SequentialListOps
from algornn.datamodules.sequential_listops import Lists
from algornn.datamodules.split_datamodule import generator
from algornn.datamodules.story_world import Dice
from algornn.datamodules.tokens import NO_TARGET

RULES = {"[MIN": min, "[MAX": max, "[FIRST": lambda values: values[0]}
WORDS = SequentialListOps.vocabulary


def reduce(words):
    """Value and depth of a list, and all its numbers of arguments."""
    stack, counts = [], []
    for word in words:
        if word == "]":
            (operator, *arguments) = stack.pop()
            assert stack or word is words[-1]
            counts.append(len(arguments))
            value = RULES[operator]([value for value, _ in arguments]), 1 + max(depth for _, depth in arguments)
            if not stack:
                return *value, counts
            stack[-1].append(value)
        elif word in RULES:
            stack.append([word])
        else:
            stack[-1].append((int(word), 0))
    raise AssertionError("not closed")


def until(depth, draw):
    """A list of this depth by drawing until one has it, as the released code does."""

    def grow(level):
        words = [("[MIN", "[MAX", "[FIRST")[draw.integers(3)]]
        for _ in range(draw.integers(2, 6)):
            words += grow(level + 1) if level < depth + 1 and draw.random() < 0.25 else [str(draw.integers(10))]
        return [*words, "]"]

    while True:
        words = grow(1)
        if reduce(words)[1] == depth:
            return words


@pytest.mark.parametrize(("split", "depth", "length"), [("depth-10", 10, 98), ("depth-15", 15, 182)])
def test_values_depths_and_statistics(split, depth, length):
    data = SequentialListOps(split, train_size=1500, test_size=200)
    examples = data.examples("train")
    counts = Counter()
    for example in examples:
        value, deep, numbers = reduce(example.source)
        assert (str(value),) == example.target
        assert deep == depth
        assert example.source[0] == f"[{example.group}"
        counts.update(numbers)
    assert set(counts) == {2, 3, 4, 5}
    lengths = np.array([len(example.source) for example in examples])
    assert abs(lengths.mean() - length) < 0.06 * length
    assert 0.15 < max(Counter(example.target for example in examples).values()) / 1500 < 0.25
    assert all(0.3 < number / 1500 < 0.37 for number in Counter(example.group for example in examples).values())


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_direct_draws_are_distributed_as_those_of_the_release(depth):
    lists, draw = Lists(depth, Dice(generator("direct", depth))), generator("until", depth)
    ours = [[WORDS[i] for i in lists.draw(depth)[0]] for _ in range(3000)]
    theirs = [until(depth, draw) for _ in range(3000)]
    assert all(reduce(words)[1] == depth for words in ours)
    for measure in (
        len,
        lambda w: w.count("]"),
        lambda w: reduce(w)[2][-1],
        lambda w: w[1] in RULES,
        lambda w: w[-2] == "]",
    ):
        a, b = (np.array([float(measure(words)) for words in many]) for many in (ours, theirs))
        error = np.sqrt((a.var() + b.var()) / 3000)
        assert abs(a.mean() - b.mean()) <= 4 * error
        assert abs(a.std() - b.std()) <= 0.1 * b.std() + 1e-9


def test_sizes_stages_and_batches():
    data = SequentialListOps(train_size=300, test_size=100, batch_size=10)
    assert (data.vocab_size, data.output_size, data.ood) == (15, 10, ())
    assert [len(data.examples(stage)) for stage in data.stages] == [300, 100, 100]
    assert len({example.source for stage in data.stages for example in data.examples(stage)}) == 500
    assert SequentialListOps().train_size == 10_000
    batch = next(iter(data.train_dataloader()))
    last = batch.mask.sum(dim=1) - 1
    assert batch.target.gather(1, last[:, None]).ge(0).all()
    assert batch.target.ne(NO_TARGET).sum().item() == 10
    assert all(data.vocabulary[row[i]] == "]" for row, i in zip(batch.tokens.tolist(), last.tolist(), strict=True))


def test_lists_depend_on_the_seed_only_and_processes_share_batches():
    def batches(rank=0, world=1, **options):
        data = SequentialListOps(train_size=100, test_size=20, **options)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return list(islice(data.train_dataloader(), 3))

    one = batches(batch_size=10)
    assert [batch.tokens.tolist() for batch in one] == [batch.tokens.tolist() for batch in batches(batch_size=10)]
    assert one[0].tokens.tolist() != batches(batch_size=10, seed=1)[0].tokens.tolist()
    first, second = batches(0, 2, batch_size=5), batches(1, 2, batch_size=5)
    ids = [
        [i for pair in zip(a.id.tolist(), b.id.tolist(), strict=True) for i in pair]
        for a, b in zip(first, second, strict=True)
    ]
    assert ids == [batch.id.tolist() for batch in one]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "depth-11"}, ValueError, "did you mean 'depth-1"),
        ({"train_size": 0}, ValueError, "train_size must be at least 1, not 0"),
        ({"test_size": "many"}, TypeError, "test_size must be a whole number, not 'many'"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        SequentialListOps(**wrong)
