"""ListOps: every official label, a literal evaluator and a literal sampler, equal depths, and damaged files."""

import gzip
from collections import Counter

import numpy as np
import pytest

from algornn.datamodules import ListOps
from algornn.datamodules.files import find, read_text
from algornn.datamodules.nested_lists import ListSampler, evaluate
from algornn.datamodules.split_datamodule import generator

SMALL = {"train_size": 2000, "test_size": 100}
WORDS = ListOps.vocabulary


def combine(operator, arguments):
    """Value and dependency depth of an operator over (value, depth) pairs, as its authors define them."""
    values = [value for value, _ in arguments]
    by_size = sorted(arguments, key=lambda argument: argument[0])
    middle = by_size[(len(values) - 1) // 2 : len(values) // 2 + 1]
    value, needed = {
        "[MIN": (min(values), arguments[values.index(min(values))][1]),
        "[MAX": (max(values), arguments[values.index(max(values))][1]),
        "[MED": (int(np.median(values)), max(depth for _, depth in middle)),
        "[SM": (sum(values) % 10, max(depth for _, depth in arguments)),
    }[operator]
    return value, needed + 1


def literal(words):
    """Value and dependency depth of a list by a stack; IndexError where it is not one."""
    stack = [[]]
    for word in words:
        if word == "]":
            operator, *arguments = stack.pop()
            stack[-1].append(combine(operator, arguments))
        elif word in WORDS[2:6]:
            stack.append([word])
        else:
            stack[-1].append((int(word), 1))
    ((result,),) = stack
    return result


def drawn_literally(draw, least, most):
    """A list as the release draws it: its words, depth, dependency depth and size."""

    def node(level):
        if level == 1 or draw.random() > 0.3:
            digit = int(draw.integers(10))
            return [str(digit)], 1, (digit, 1), 1
        return over([node(level - 1) for _ in range(draw.integers(2, 6))])

    def over(arguments):
        operator = WORDS[2 + draw.integers(4)]
        words = [operator, *(word for argument in arguments for word in argument[0]), "]"]
        result = combine(operator, [argument[2] for argument in arguments])
        return words, 1 + max(a[1] for a in arguments), result, 3 + sum(a[3] for a in arguments)

    tree = node(most)
    while tree[1] < least:
        arguments = [node(most - 1) for _ in range(draw.integers(2, 5))]
        arguments.insert(draw.integers(len(arguments)), tree)
        tree = over(arguments)
    return tree


@pytest.fixture(scope="module")
def small():
    return ListOps(**SMALL)


def test_all_official_labels_agree(listops_dir):
    data = ListOps("official", data_dir=listops_dir)
    examples = data.examples("test")
    assert len(examples) == 10_000
    assert examples[1] == (("[MIN", "6", "3", "5", "0", "]"), ("0",), "depth2")
    lengths = [len(example.source) for example in examples]
    assert (min(lengths), max(lengths)) == (1, 939)
    lines = read_text(find([listops_dir], "test_d20s.tsv")).splitlines()
    for line, example in zip(lines, examples, strict=True):
        value, needed = literal(example.source)
        assert (line[0],) == example.target == (str(value),)
        assert example.group == f"depth{needed}"


def test_labels_groups_and_sizes_by_hand(small):
    assert (small.vocab_size, small.output_size) == (16, 10)
    assert small.ood == ("val_ood", "longer")
    for stage, (least, most) in {"train": (2, 6), "val": (2, 6), "test": (2, 6), "val_ood": (7, 7)}.items():
        examples = small.examples(stage)
        assert len(examples) == (2000 if stage == "train" else 100)
        for example in examples:
            value, needed = literal(example.source)
            assert example.target == (str(value),)
            assert example.group == f"depth{needed}"
            assert len(example.source) + sum(word == "]" for word in example.source) <= 50
        counts = Counter(example.group for example in examples)
        assert counts == {f"depth{d}": len(examples) // (most - least + 1) for d in range(least, most + 1)}


def test_longer_lists_have_depth_8_and_9():
    longer = ListOps(train_size=10, test_size=3).examples("longer")
    assert Counter(literal(example.source)[1] for example in longer) == {8: 2, 9: 1}
    assert [example.target for example in longer] == [(str(literal(example.source)[0]),) for example in longer]


def test_default_sizes_are_the_published_ones():
    assert (ListOps().train_size, ListOps().test_size) == (1_000_000, 1_000)


@pytest.mark.parametrize(("least", "most"), [(2, 6), (7, 7)])
def test_draws_are_distributed_as_those_of_the_release(least, most):
    trees = ListSampler(0.3, generator("vectors", least)).trees(30_000, least, most, largest=50)
    draw, number = generator("literal", least), 4000
    theirs = [tree for tree in (drawn_literally(draw, least, most) for _ in range(number)) if tree[3] <= 50]
    assert abs(len(trees.value) / 30_000 - len(theirs) / number) < 4 * 0.5 / number**0.5
    measures = {
        "length": (trees.lengths, [len(tree[0]) for tree in theirs]),
        "value": (trees.value, [tree[2][0] for tree in theirs]),
        "depth": (trees.depth, [tree[1] for tree in theirs]),
        "needed": (trees.needed, [tree[2][1] for tree in theirs]),
        "needed deep": (trees.needed > 4, [tree[2][1] > 4 for tree in theirs]),
    }
    for name, (a, b) in measures.items():
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        assert abs(a.mean() - b.mean()) <= 4 * np.sqrt(a.var() / len(a) + b.var() / len(b)) + 1e-9, name
    starts = np.cumsum(trees.lengths) - trees.lengths
    words = [WORDS[i] for i in trees.tokens[starts[5] : starts[6]]]
    assert (trees.value[5], trees.needed[5]) == literal(words)


def test_no_list_occurs_twice_and_lists_depend_on_the_seed_only(small):
    stages = ("train", "val", "test", "val_ood")
    everything = [example.source for stage in stages for example in small.examples(stage)]
    assert len(set(everything)) == len(everything) == 2300
    assert [x.source for x in ListOps(**SMALL).examples("val")] == [x.source for x in small.examples("val")]
    assert [x.source for x in ListOps(seed=1, **SMALL).examples("val")] != [x.source for x in small.examples("val")]
    short = {example.source for example in ListOps(train_size=300, test_size=300).examples("test")}
    assert len(short) == 300


@pytest.mark.parametrize("words", ["[MIN 1 2", "1 2", "[SM ]", "] 1", "[MIN 1 ] ]", "[MED [SM 1 ] ] 3"])
def test_what_is_not_one_list_is_bad(words):
    rows = [["[MAX", "3", "[SM", "9", "4", "]", "]"], words.split(), ["7"]]
    tokens = np.array([WORDS.index(word) for row in rows for word in row], dtype=np.uint8)
    reduced = evaluate(tokens, np.array([len(row) for row in rows]))
    assert reduced.bad.tolist() == [False, True, False]
    assert reduced.value[[0, 2]].tolist() == [3, 7]
    assert reduced.needed[[0, 2]].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 ( [MIN 3 ) ]", "line 2: expected a digit, a tab and a list"),
        ("3\t( ( [MEAN 3 ) ] )", r"line 2: expected a digit, a tab and a list .*got '3\\t\( \( \[MEAN"),
        ("3\t( ( [MIN 3 ) ) )", "line 2: expected one list with a bracket ] for every operator"),
        (
            "4\t( ( ( [MIN 3 ) 9 ) ] )",
            "line 2: the list comes to 3, but its label is 4; the file is damaged, fetch it again",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, line, message):
    (tmp_path / "test_d20s.tsv").write_text(f"7\t7\n{line}\n")
    with pytest.raises(ValueError, match=f"test_d20s.tsv, {message}"):
        ListOps("official", data_dir=tmp_path).dataset("test")


@pytest.mark.parametrize("change", [lambda lines: lines[:50], lambda lines: [*lines, lines[-1]]])
def test_files_that_are_not_the_published_ones_are_refused(tmp_path, listops_dir, change):
    lines = read_text(find([listops_dir], "test_d20s.tsv")).splitlines(keepends=True)
    (tmp_path / "test_d20s.tsv").write_text("".join(change(lines)))
    with pytest.raises(ValueError, match=r"test_d20s\.tsv is not the published file: expected sha256 71335416"):
        ListOps("official", data_dir=tmp_path).dataset("test")


@pytest.mark.parametrize("stage", ["train", "test"])
def test_empty_files_are_called_empty(tmp_path, stage):
    (tmp_path / f"{stage}_d20s.tsv").write_text("")
    with pytest.raises(ValueError, match=rf"{stage}_d20s\.tsv is empty, expected the lists of ListOps"):
        ListOps("official", data_dir=tmp_path).dataset(stage)


def test_official_training_file_is_read_or_asked_for(nowhere, monkeypatch):
    data = ListOps("official", data_dir=nowhere, test_size=2, batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"train_d20s.tsv .* fetch it by hand from https.*split 'balanced'"):
        data.dataset("train")
    with pytest.raises(FileNotFoundError, match=r"test_d20s.tsv .* is in none of .* could not be reached"):
        data.dataset("test")
    lines = "".join(f"{i}\t( ( ( [MIN {i} ) 9 ) ] )\n" for i in range(8))
    (nowhere / "train_d20s.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    with pytest.raises(ValueError, match=r"train_d20s\.tsv\.gz has 8 lists, expected the 90000 of the published"):
        data.dataset("train")
    monkeypatch.setattr("algornn.datamodules.listops.TRAIN_SIZE", 8)
    train, val = ({x.target for x in data.examples(stage)} for stage in ("train", "val"))
    assert (len(train), len(val), len(train | val)) == (6, 2, 8)
    assert next(iter(data.train_dataloader())).tokens.shape == (4, 4)
    with pytest.raises(ValueError, match=r"test_size is the number of lists of val, .* fewer than that, not 8"):
        ListOps("official", data_dir=nowhere, test_size=8).dataset("val")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "balance"}, ValueError, "did you mean 'balanced'"),
        ({"train_size": 0}, ValueError, "train_size must be at least 1"),
        ({"test_size": 1.5}, TypeError, "test_size must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        ListOps(**wrong)
