"""Expression trees drawn by the hundred thousand: their tokens, values and depths, as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Trees(NamedTuple):
    """n expression trees, their tokens one tree after the other.

    Attributes:
        tokens: [m] uint8 ids.
        lengths: [n] number of tokens of every tree; their sum is m.
        value: [n] what the tree comes to, 0 to 9.
        depth: [n] nested levels, 1 for a digit.
        needed: [n] nested levels that the value depends on (the "dependency depth"), 1 for a digit.
    """

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    value: NDArray[np.int64]
    depth: NDArray[np.int64]
    needed: NDArray[np.int64]


def take(trees: Trees, order: NDArray[np.int64]) -> Trees:
    """The trees at `order`, in that order."""
    lengths = trees.lengths[order]
    starts = _starts(trees.lengths)[order]
    places = np.arange(lengths.sum()) + np.repeat(starts - _starts(lengths), lengths)
    return Trees(trees.tokens[places], *(field[order] for field in trees[1:]))


def join(parts: Sequence[Trees], order: NDArray[np.int64]) -> Trees:
    """The trees of several parts at `order`, an index into all of them one part after the other."""
    return take(Trees(*(np.concatenate(field) for field in zip(*parts, strict=True))), order)


def nest(children: Trees, counts: NDArray[np.int64], between: int) -> tuple[NDArray[np.uint8], Any, Any]:
    """Room for the tokens of parents around those of their children: one before, one behind, some between two.

    Args:
        children: The children of all parents, in order.
        counts: [m] number of children of every parent.
        between: Tokens between two children of a parent.

    Returns:
        Tokens with those of the children in place, and the start and the length of every parent.
    """
    first = _starts(counts)
    lengths = np.add.reduceat(children.lengths, first) + 2 + between * (counts - 1)
    starts, old = _starts(lengths), _starts(children.lengths)
    parent = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(parent)) - first[parent]
    moved = starts[parent] + 1 + between * place - old[first[parent]]
    tokens = np.zeros(lengths.sum(), dtype=np.uint8)
    tokens[np.arange(len(children.tokens)) + np.repeat(moved, children.lengths)] = children.tokens
    return tokens, starts, lengths


class TreeSampler:
    """Draws trees: a node is an operator with chance p unless it is as deep as allowed, otherwise a digit.

    The size of a digit is 1, that of an operator 3 more than those of its arguments. A subclass says how many arguments
    an operator has and what it does to them (`counts`, `apply`), and how a tree that is too shallow becomes an argument
    of another operator (`wrap`).

    Args:
        operator: The chance p.
        first_digit: Id of the token 0; those of 1 to 9 follow.
        draw: Where the draws come from.
    """

    def __init__(self, operator: float, first_digit: int, draw: np.random.Generator) -> None:
        self.operator, self.first_digit, self.draw = operator, first_digit, draw

    def trees(self, number: int, least: int, most: int, largest: int) -> Trees:
        """Trees of depth `least` to `most` and of size `largest` at most: as many of `number` as are not larger.

        Shallower ones are wrapped until they are deep enough. What is too large already is not drawn to its end.
        """
        room = np.full(number, largest - 1)
        trees = self.subtrees(np.arange(number), most, room)
        while True:
            trees, room = take(trees, np.flatnonzero(room >= 0)), room[room >= 0]
            short = np.flatnonzero(trees.depth < least)
            if not len(short):
                return trees
            order, left = np.arange(len(room)), room[short]
            order[short] = len(room) + np.arange(len(short))
            trees = join([trees, self.wrap(take(trees, short), most, left)], order)
            room[short] = left

    def subtrees(self, owner: NDArray[np.int64], most: int, room: NDArray[np.int64]) -> Trees:
        """Trees of depth at most `most`; cut short and of no use where their owner's `room` falls below zero.

        Args:
            owner: [number of trees], index into `room`.
            most: Depth.
            room: By how much an owner may become larger than with a digit for each of its trees; brought up to date.
        """
        split = (self.draw.random(len(owner)) < (self.operator if most > 1 else 0)) & (room[owner] >= 0)
        digits = self._digits(len(owner) - int(split.sum()))
        if not split.any():
            return digits
        counts = self.counts(int(split.sum()))
        room -= np.bincount(owner[split], weights=2 + counts, minlength=len(room)).astype(np.int64)
        operators = self.apply(self.subtrees(np.repeat(owner[split], counts), most - 1, room), counts)
        order = np.empty(len(owner), dtype=np.int64)
        order[~split] = np.arange(len(digits.value))
        order[split] = len(digits.value) + np.arange(len(counts))
        return join([digits, operators], order)

    def counts(self, number: int) -> NDArray[np.int64]:
        """The numbers of children of `number` operators."""
        raise NotImplementedError

    def apply(self, children: Trees, counts: NDArray[np.int64]) -> Trees:
        """Random operators over their children."""
        raise NotImplementedError

    def wrap(self, trees: Trees, most: int, room: NDArray[np.int64]) -> Trees:
        """Every tree as an argument of a random operator; its other arguments have depth `most` - 1 at most.

        `room` is by how much every tree may become larger; brought up to date.
        """
        raise NotImplementedError

    def _digits(self, number: int) -> Trees:
        value = self.draw.integers(10, size=number)
        one = np.ones(number, dtype=np.int64)
        return Trees((self.first_digit + value).astype(np.uint8), one, value, one, one)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths
