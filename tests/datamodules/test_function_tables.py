"""Languages of functions: counts, all compositions and uniform draws against brute force; tokens in both directions."""

from itertools import pairwise, product

import numpy as np
import pytest

from algornn.datamodules.function_tables import IN, OUT, FunctionLanguage, trace, write
from algornn.datamodules.split_datamodule import generator

TABLES = np.array([[1, 2, 0], [0, 2, 1], [2, 1, 0], [1, 0, 2]])
GROUPS = {"a": np.array([0, 1]), "b": np.array([2]), "o": np.array([3])}
EDGES = {IN: ("a", "b"), "a": ("b", "o.a"), "b": ("a", OUT), "o.a": ("a", OUT)}
SEEN = np.array([[False] * 3] * 3 + [[True, False, True]])


@pytest.fixture
def language():
    return FunctionLanguage(TABLES, GROUPS, EDGES, {("a", "o"): SEEN})


def brute_force(depth):
    """Compositions by trying all: an o comes after an a, on symbols 0 and 2, and before an a or the end."""
    found = []
    for symbol, *functions in product(range(3), *[range(4)] * depth):
        values = [symbol]
        for function in functions:
            values.append(int(TABLES[function][values[-1]]))
        groups = "".join("aabo"[function] for function in functions)
        steps = {"ab", "ba", "ao", "oa"}
        legal = groups[0] in "ab" and groups[-1] in "bo" and {a + b for a, b in pairwise(groups)} <= steps
        if legal and all(values[i] != 1 for i, group in enumerate(groups) if group == "o"):
            found.append((symbol, *functions))
    return found


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_counts_and_all_compositions_are_those_of_brute_force(language, depth):
    functions, symbol = language.every(depth)
    expected = brute_force(depth)
    assert language.count(depth) == len(expected)
    assert sorted((s, *row) for s, row in zip(symbol.tolist(), functions.tolist(), strict=True)) == sorted(expected)


def test_draws_are_uniform(language):
    expected = brute_force(4)
    functions, symbol = language.draw(200 * len(expected), 4, generator("uniform"))
    place = {row: i for i, row in enumerate(expected)}
    found = np.array([place[(s, *row)] for s, row in zip(symbol.tolist(), functions.tolist(), strict=True)])
    counts = np.bincount(found, minlength=len(expected))
    freedom = len(expected) - 1
    assert ((counts - 200) ** 2 / 200).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_compositions_are_written_in_both_directions():
    functions, depth, symbol = np.array([[0, 3], [2, 0], [1, 1]]), np.array([2, 1, 0]), np.array([2, 0, 1])
    assert trace(TABLES, functions, symbol).tolist() == [[2, 0, 1], [0, 2, 0], [1, 2, 1]]
    forward = write(TABLES, functions, depth, symbol, backward=False)
    backward = write(TABLES, functions, depth, symbol, backward=True)
    assert forward.tokens.tolist() == [3, 4, 7, 1, 6, 2]
    assert backward.tokens.tolist() == [7, 4, 3, 6, 1, 2]
    assert forward.lengths.tolist() == [3, 2, 1]
    assert forward.label.tolist() == backward.label.tolist() == [1, 2, 1]
