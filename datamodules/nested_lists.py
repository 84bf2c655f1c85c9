"""Lists of digits under MIN, MAX, MED and SM: how they are drawn by the thousand, and what they come to."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.expression_trees import Trees, TreeSampler, join, nest
from algornn.datamodules.story import PAD

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
DIGITS = tuple(map(str, range(10)))
VOCABULARY = (PAD, "]", *OPERATORS, *DIGITS)
_MIN, _MAX, _SUM = 0, 1, 3  # places in OPERATORS
_END, _FIRST_OPERATOR, _FIRST_DIGIT = 1, 2, 6  # ids
_MOST = 5  # arguments


class Reduced(NamedTuple):
    """What lists come to.

    Attributes:
        value: [n], 0 to 9.
        needed: [n] dependency depth: the levels that the value depends on, 1 for a digit.
        bad: [n] bool, True where the tokens are not one list (or one digit); value and needed mean nothing there.
    """

    value: NDArray[np.int64]
    needed: NDArray[np.int64]
    bad: NDArray[np.bool_]


def reduce_arguments(
    operator: NDArray[np.int64], value: NDArray[np.int64], needed: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Apply n operators to their arguments.

    MIN, MAX; MED, the median, and the mean rounded down of the two middle values of an even number of arguments; SM,
    the sum modulo 10. A minimum or maximum depends on the first argument that has it, a median on the one or two
    middle arguments (of equal values the first counts as the smaller), a sum on all.

    Args:
        operator: [n], places in `OPERATORS`.
        value: [n, A] values of the arguments.
        needed: [n, A] their dependency depths.
        counts: [n] how many of the A there are.

    Returns:
        The values [n] and the dependency depths [n] of the arguments that they depend on.
    """
    row, real = np.arange(len(counts)), np.arange(value.shape[1]) < counts[:, None]
    order = np.argsort(np.where(real, value, 10), axis=1, kind="stable")
    first, last = order[row, (counts - 1) // 2], order[row, counts // 2]
    extreme = np.where(operator == _MIN, order[:, 0], np.argmax(np.where(real, value, -1), axis=1))
    single = (operator == _MIN) | (operator == _MAX)
    first, last = np.where(single, extreme, first), np.where(single, extreme, last)
    total, deepest = np.where(real, value, 0).sum(axis=1), np.where(real, needed, 0).max(axis=1)
    return (
        np.where(operator == _SUM, total % 10, (value[row, first] + value[row, last]) // 2),
        np.where(operator == _SUM, deepest, np.maximum(needed[row, first], needed[row, last])),
    )


def _table(field: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Arguments of n operators one after the other as a table [n, A], zeros behind them."""
    table = np.zeros((len(counts), counts.max()), dtype=np.int64)
    table[np.arange(counts.max()) < counts[:, None]] = field
    return table


def evaluate(tokens: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Reduced:
    """Reduce lists, given as ids of `VOCABULARY` one list after the other, level by level from the deepest.

    Args:
        tokens: [m] ids of all lists.
        lengths: [n] number of tokens of every list, 1 at least.
    """
    starts = np.cumsum(lengths) - lengths
    opens, ends = (tokens >= _FIRST_OPERATOR) & (tokens < _FIRST_DIGIT), tokens == _END
    level = np.cumsum(opens.astype(np.int64) - ends)
    level -= np.repeat((level - opens + ends)[starts], lengths)  # brackets open behind the token
    inside = level - opens  # brackets open around it
    bad = (level[starts + lengths - 1] != 0) | (np.add.reduceat((inside == 0) & ~ends, starts) != 1)
    bad |= (np.minimum.reduceat(level, starts) < 0) | np.logical_or.reduceat(ends & np.roll(opens, 1), starts)
    good = np.repeat(~bad, lengths)
    value, needed = np.maximum(tokens.astype(np.int64) - _FIRST_DIGIT, 0), np.ones(len(tokens), dtype=np.int64)
    for depth in range(inside[good].max(initial=0), 0, -1):
        parent = np.flatnonzero(good & opens & (inside == depth - 1))
        child = np.flatnonzero(good & ~ends & (inside == depth))
        counts = np.bincount(np.searchsorted(parent, child) - 1, minlength=len(parent))
        arguments = _table(value[child], counts), _table(needed[child], counts)
        value[parent], deep = reduce_arguments(tokens[parent].astype(np.int64) - _FIRST_OPERATOR, *arguments, counts)
        needed[parent] = deep + 1
    return Reduced(value[starts], needed[starts], bad)


class ListSampler(TreeSampler):
    """Draws lists of two to five arguments.

    Args:
        operator: The chance that an argument is a list.
        draw: Where the draws come from.
    """

    def __init__(self, operator: float, draw: np.random.Generator) -> None:
        super().__init__(operator, _FIRST_DIGIT, draw)

    def counts(self, number: int) -> NDArray[np.int64]:
        """Two to five."""
        return self.draw.integers(2, _MOST + 1, size=number)

    def wrap(self, trees: Trees, most: int, room: NDArray[np.int64]) -> Trees:
        """Two to four fresh arguments, and the tree before one of them: it is never the last."""
        fresh = self.draw.integers(2, _MOST, size=len(trees.value))
        room -= 3 + fresh
        arguments = self.subtrees(np.repeat(np.arange(len(fresh)), fresh), most - 1, room)
        before = np.cumsum(fresh) - fresh + self.draw.integers(fresh)
        order = np.insert(np.arange(fresh.sum()), before, fresh.sum() + np.arange(len(fresh)))
        return self.apply(join([arguments, trees], order), fresh + 1)

    def apply(self, children: Trees, counts: NDArray[np.int64]) -> Trees:
        """Random operators over their arguments."""
        operator = self.draw.integers(len(OPERATORS), size=len(counts))
        tokens, starts, lengths = nest(children, counts, between=0)
        tokens[starts], tokens[starts + lengths - 1] = _FIRST_OPERATOR + operator, _END
        value, depth, needed = (_table(field, counts) for field in children[2:])
        value, deep = reduce_arguments(operator, value, needed, counts)
        return Trees(tokens, lengths, value, depth.max(axis=1) + 1, deep + 1)
