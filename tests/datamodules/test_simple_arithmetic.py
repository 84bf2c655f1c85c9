"""Simple arithmetic: values by hand, legal expressions, equal depths up to what is possible, a literal sampler."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from algornn.datamodules import SimpleArithmetic
from algornn.datamodules.simple_arithmetic import ExpressionSampler, possible
from algornn.datamodules.split_datamodule import generator

SMALL = {"train_size": 4000, "test_size": 200}
STAGES = {"train": range(2, 7), "val": range(3, 7), "val_ood": [7], "test": range(3, 7), "longer": [8, 9]}


@pytest.fixture(scope="module")
def small():
    return SimpleArithmetic(**SMALL)


@pytest.fixture(scope="module")
def texts(small):
    return {stage: ["".join(example.source) for example in small.examples(stage)] for stage in small.stages}


def levels(text):
    """Depth of an expression, which is checked to be one: innermost brackets are taken away until a digit is left."""
    marked = re.sub(r"\d", "1", text)  # a character is the depth of a subexpression
    while len(marked) > 1:
        marked, changed = re.subn(r"\((\d)[+*](\d)\)", lambda found: str(1 + max(int(found[1]), int(found[2]))), marked)
        assert changed
    return int(marked)


def drawn_literally(draw, chance, least, most):
    """An expression as the release draws it."""

    def node(level):
        if level >= most or draw.random() > chance:
            return str(draw.integers(10)), 1
        return over(node(level + 1), node(level + 1))

    def over(left, right):
        return f"({left[0]}{'+*'[draw.integers(2)]}{right[0]})", 1 + max(left[1], right[1])

    text, depth = node(1)
    while depth < least:
        text, depth = over(node(2), (text, depth))
    return text, depth


def test_values_groups_and_depths(small, texts):
    assert (small.vocab_size, small.output_size) == (15, 10)
    assert (small.val_stages, small.test_stages) == (("val", "val_ood"), ("test", "longer"))
    assert small.ood == ("val_ood", "longer")
    for stage, depths in STAGES.items():
        for text, example in zip(texts[stage], small.examples(stage), strict=True):
            assert example.target == (str(eval(text) % 10),)
            assert example.group == f"depth{levels(text)}"
            assert len(text) <= 50
        counts = Counter(example.group for example in small.examples(stage))
        even = {f"depth{d}": SMALL["train_size" if stage == "train" else "test_size"] // len(depths) for d in depths}
        assert counts == (even if stage != "train" else {"depth2": 200, **{f"depth{d}": 1000 for d in range(3, 7)}})


def test_all_expressions_of_depth_2_are_in_training(texts):
    every = {f"({a}{operator}{b})" for a, operator, b in product(range(10), "+*", range(10))}
    assert {text for text in texts["train"] if len(text) == 5} == every
    assert [possible(depth) for depth in (1, 2, 3)] == [10, 200, 88_000]


@pytest.mark.slow
def test_a_depth_gives_at_most_three_quarters_of_what_is_possible():
    data = SimpleArithmetic(train_size=400_000, test_size=100)
    group = np.array([data.dataset("train")[i].group for i in range(400_200)])
    assert np.bincount(group).tolist() == [200, 66_000, 111_334, 111_333, 111_333]


def test_default_sizes_are_the_published_ones():
    assert (SimpleArithmetic().train_size, SimpleArithmetic().test_size) == (1_000_000, 1_000)


@pytest.mark.parametrize(("least", "most", "chance"), [(3, 6, 0.2), (7, 7, 0.3), (8, 9, 0.3)])
def test_draws_are_distributed_as_those_of_the_release(least, most, chance):
    trees = ExpressionSampler(chance, generator("vectors", least)).trees(20_000, least, most, largest=50)
    draw = generator("literal", least)
    theirs = [tree for tree in (drawn_literally(draw, chance, least, most) for _ in range(4000)) if len(tree[0]) <= 50]
    assert abs(len(trees.value) / 20_000 - len(theirs) / 4000) < 4 * 0.5 / 4000**0.5
    rows = np.split(trees.tokens, np.cumsum(trees.lengths)[:4000])[:4000]
    ours = [("".join(SimpleArithmetic.vocabulary[i] for i in row), None) for row in rows]
    measures = [
        lambda text: len(text),
        lambda text: levels(text),
        lambda text: eval(text) % 10,
        lambda text: text.count("*"),
        lambda text: text.endswith("))"),
        lambda text: text.startswith("(("),
    ]
    for measure in measures:
        a, b = (np.array([float(measure(text)) for text, _ in many]) for many in (ours, theirs))
        assert abs(a.mean() - b.mean()) <= 4 * np.sqrt(a.var() / len(a) + b.var() / len(b)) + 1e-9


def test_no_expression_occurs_twice_and_they_depend_on_the_seed_only(texts):
    everything = [text for many in texts.values() for text in many]
    assert len(set(everything)) == len(everything) == 5000

    def again(**options):
        return ["".join(example.source) for example in SimpleArithmetic(**SMALL, **options).examples("val")]

    assert again() == texts["val"]
    assert again(seed=1) != texts["val"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"split": "balance"}, ValueError, "did you mean 'balanced'"),
        ({"test_size": 0}, ValueError, "test_size must be at least 1"),
        ({"train_size": "all"}, TypeError, "train_size must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        SimpleArithmetic(**wrong)
