"""Code execution: an interpreter of its own agrees with every target; the statistics of the released generator."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algornn.datamodules import CodeExecution
from algornn.datamodules.code_execution import Program
from algornn.datamodules.split_datamodule import generator
from algornn.datamodules.story_world import Dice

SMALL = {"train_size": 200, "test_size": 100}


def execute(tokens, ignore=True):
    """The target of every token of a program, and the counts of its kinds of statement."""
    values, out, kinds, i = {}, [], Counter(), 0
    while i < len(tokens):
        run, conditional = True, tokens[i] == "if"
        if conditional:
            _, variable, sign, number, colon = tokens[i : i + 5]
            assert colon == ":"
            run = values[variable] > int(number) if sign == ">" else values[variable] < int(number)
            out += ["_"] * 5
            kinds["if"] += 1
            i += 5
        if tokens[i] == "print":
            assert tokens[i + 2] == ";"
            out += ["_", "_", str(values[tokens[i + 1]]) if run else "_"]
            kind, i = "print", i + 3
        elif tokens[i + 1] == "=":
            variable, _, number, end = tokens[i : i + 4]
            assert end == ";"
            if run and not (ignore and conditional and variable in values):
                values[variable] = int(number)
            out += ["_"] * 4
            kind, i = "assign", i + 4
        else:
            variable, sign, end = tokens[i : i + 3]
            assert end == ";"
            if run:
                values[variable] += {"++": 1, "--": -1}[sign]
                assert -8 <= values[variable] <= 16
            out += ["_"] * 3
            kind, i = "step", i + 3
        kinds[kind, conditional] += 1
    return out, kinds


def agrees(example, ignore):
    try:
        return list(example.target) == execute(example.source, ignore)[0]
    except KeyError:  # a variable that has no value under this rule
        return False


@pytest.mark.parametrize("split", CodeExecution.splits)
@pytest.mark.parametrize("ignore", [True, False])
def test_targets_are_what_the_program_prints(split, ignore):
    data = CodeExecution(split, **SMALL, ignore_conditional_reassignment=ignore)
    for example in data.examples("train"):
        target, kinds = execute(example.source, ignore)
        assert example.target == tuple(target)
        assert sum(number for kind, number in kinds.items() if kind != "if") == 100
        assert example.source[1] == "="
        assert example.source[-3] == "print"
    assert not all(agrees(example, not ignore) for example in data.examples("val"))


def test_statistics_of_the_released_generator():
    data = CodeExecution(train_size=1, test_size=1000)
    examples = data.examples("test")
    lengths = np.array([len(example.source) for example in examples])
    prints = np.array([sum(word == "print" for word in example.source) for example in examples])
    assert abs(lengths.mean() - 456) < 3
    assert 350 < lengths.min() < 410
    assert 500 < lengths.max() < 560
    # 98 statements: a quarter prints, a quarter conditions of which a third print; and the last one
    assert abs(prints.mean() - (1 + 98 * (1 / 4 + 1 / 12))) < 0.6
    printed = np.array([sum(word != "_" for word in example.target) for example in examples])
    assert 28 < printed.mean() < 31
    kinds = sum((execute(example.source)[1] for example in examples[:200]), Counter())
    free = {kind: kinds[kind, False] / 200 for kind in ("assign", "step", "print")}
    assert all(abs(number - 24.5 - (kind != "step")) < 1 for kind, number in free.items())
    assert abs(kinds["if"] / 200 - 24.5) < 1
    values = Counter(word for example in examples for word in example.target)
    assert {"_", *map(str, range(-3, 13))} <= set(values) <= set(data.outputs)


def test_values_turn_back_at_their_limits():
    data = CodeExecution()
    ids = {word: i for i, word in enumerate(data.vocabulary)}
    program = Program(ids, ("x",), True, Dice(generator("limits")))
    program.assign()
    seen = set()
    for _ in range(2000):
        program.step()
        seen.add(program.values["x"])
    assert seen == set(range(-8, 17))
    words = [data.vocabulary[i] for i in program.tokens]
    assert execute(words)[0] == ["_"] * len(words)


def test_sizes_and_vocabulary():
    assert [CodeExecution(split).vocab_size for split in CodeExecution.splits] == [23, 25]  # with padding
    data = CodeExecution(statements=10, train_size=300, test_size=100)
    assert (data.output_size, data.outputs[:2], data.outputs[-1]) == (26, ("_", "-8"), "16")
    assert [len(data.examples(stage)) for stage in data.stages] == [300, 100, 100]
    assert len({example.source for stage in data.stages for example in data.examples(stage)}) == 500


def test_batches():
    data = CodeExecution(**SMALL, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert batch.tokens.shape == batch.target.shape
    assert torch.equal(batch.target != -100, batch.mask)
    assert batch.tokens[~batch.mask].eq(0).all()
    assert not batch.tokens[batch.mask].eq(0).any()


def test_programs_depend_on_the_seed_only_and_processes_share_batches():
    def batches(rank=0, world=1, **options):
        data = CodeExecution(**SMALL, **options)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return list(data.train_dataloader())

    one, again = batches(batch_size=10), batches(batch_size=10)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, again, strict=True))
    assert not all(a.tokens.equal(b.tokens) for a, b in zip(one, batches(batch_size=10, seed=1), strict=True))
    halves = [batches(rank, 2, batch_size=5) for rank in range(2)]
    ids = [torch.stack([a.id, b.id], dim=1).flatten().tolist() for a, b in zip(*halves, strict=True)]
    assert ids == [batch.id.tolist() for batch in one]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "4-variables"}, ValueError, "split '4-variables' is unknown"),
        ({"statements": 9}, ValueError, "statements must be at least 10, not 9"),
        ({"train_size": 0}, ValueError, "train_size must be at least 1, not 0"),
        ({"test_size": 1.5}, TypeError, "test_size must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        CodeExecution(**wrong)
