"""Simple arithmetic: sums and products of digits in brackets, modulo 10, nested more deeply than in training."""

import os

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.expression_trees import Trees, TreeSampler, join, nest
from algornn.datamodules.labelled_sequences import LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.sequence_sampling import DrawnStages, Sequences, draw_different, shares
from algornn.datamodules.sequence_sampling import join as join_sequences
from algornn.datamodules.split_datamodule import check_positive, generator
from algornn.datamodules.story import PAD

_DIGITS = tuple(map(str, range(10)))
_OPEN, _CLOSE, _PLUS, _FIRST_DIGIT = 1, 2, 3, 5  # ids; times is 4
_LARGEST = 50  # tokens
_DEEPEST = 9
# Least and greatest depth of a stage, and the chance that an operand is an expression.
_STAGES = {
    "train": (3, 6, 0.2),
    "val": (3, 6, 0.2),
    "val_ood": (7, 7, 0.3),
    "test": (3, 6, 0.2),
    "longer": (8, 9, 0.3),
}


def possible(depth: int) -> int:
    """How many expressions of exactly this depth there are; the 10 digits have depth 1."""
    below = [0]  # of depth 0 at most, 1 at most, ...
    while len(below) <= depth:
        below.append(10 + 2 * below[-1] ** 2)
    return below[depth] - below[depth - 1]


class ExpressionSampler(TreeSampler):
    """Draws sums and products of two operands in brackets.

    Args:
        operator: The chance that an operand is an expression.
        draw: Where the draws come from.
    """

    def __init__(self, operator: float, draw: np.random.Generator) -> None:
        super().__init__(operator, _FIRST_DIGIT, draw)

    def counts(self, number: int) -> NDArray[np.int64]:
        """Two."""
        return np.full(number, 2)

    def wrap(self, trees: Trees, most: int, room: NDArray[np.int64]) -> Trees:
        """A fresh left operand; the tree becomes the right one."""
        number = len(trees.value)
        room -= 4
        left = self.subtrees(np.arange(number), most - 1, room)
        return self.apply(
            join([left, trees], np.arange(2 * number).reshape(2, number).T.reshape(-1)), self.counts(number)
        )

    def apply(self, children: Trees, counts: NDArray[np.int64]) -> Trees:
        """Random operators between their operands."""
        operator = self.draw.integers(2, size=len(counts))
        tokens, starts, lengths = nest(children, counts, between=1)
        tokens[starts], tokens[starts + lengths - 1] = _OPEN, _CLOSE
        tokens[starts + 1 + children.lengths[::2]] = _PLUS + operator
        left, right = children.value[::2], children.value[1::2]
        value = np.where(operator == 0, left + right, left * right) % 10
        depth = np.maximum(children.depth[::2], children.depth[1::2]) + 1
        return Trees(tokens, lengths, value, depth, depth)


def pairs() -> Sequences:
    """The 200 expressions of depth 2: both operators, all pairs of digits."""
    operator, left, right = np.indices((2, 10, 10)).reshape(3, -1)
    tokens = np.zeros((200, 5), dtype=np.uint8)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = _OPEN, _FIRST_DIGIT + left, _PLUS + operator
    tokens[:, 3], tokens[:, 4] = _FIRST_DIGIT + right, _CLOSE
    value = np.where(operator == 0, left + right, left * right) % 10
    return Sequences(tokens.reshape(-1), np.full(200, 5), value, np.full(200, 2))


class SimpleArithmetic(LabelledSequenceDataModule):
    """Expressions such as ((4*7)+2) and their value modulo 10, a character at a time.

    Csordás, Irie and Schmidhuber, "The Neural Data Router" (arXiv:2110.07732): digits, + and *, every operation in
    brackets, at most 50 characters. An operand is an expression with chance 0.2 (0.3 in the deeper stages); an
    expression that is too shallow becomes the right operand of another one, so deep ones are mostly chains to the
    right. There are as many of every depth (a digit has depth 1), but of a depth at most three quarters of what is
    possible, or of twice the size of the stage.

    | stage | depth | expressions | published name |
    |---|---|---|---|
    | `train` | 2, all 200 of them; 3 to 6 | 200 + 1,000,000 (the sweeps: 200 + 100,000) | train |
    | `val` | 3 to 6 | 1,000 | |
    | `val_ood` | 7 | 1,000 | valid |
    | `test` | 3 to 6 | 1,000 | iid |
    | `longer` | 8 and 9 | 1,000 | deeper ("test" in the paper) |

    Differs: no expression occurs twice in all stages together (in the release train and iid overlap, and iid has the
    200 expressions of depth 2 as well).

    Args:
        split: "balanced", the only one.
        data_dir: Not used; there are no files.
        batch_size: Expressions per batch and process.
        seed: Seed of the expressions and of the order of training.
        train_size: Number of training expressions besides those of depth 2.
        test_size: Number of expressions of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a size below 1.

    Attributes:
        groups: The depth, "depth2" to "depth9".
    """

    benchmark = "simple_arithmetic"
    splits = ("balanced",)
    further = ("longer",)
    further_val = ("val_ood",)
    ood = ("val_ood", "longer")
    groups = tuple(f"depth{depth}" for depth in range(2, _DEEPEST + 1))
    vocabulary = (PAD, "(", ")", "+", "*", *_DIGITS)
    outputs = _DIGITS

    def __init__(
        self,
        split: str = "balanced",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 512,
        seed: int = 0,
        train_size: int = 1_000_000,
        test_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(train_size=train_size, test_size=test_size)
        self.train_size, self.test_size = train_size, test_size
        self._drawn = DrawnStages(self._draw)

    def dataset_of(self, stage: str) -> LabelledDataset:
        """Draw the expressions of a stage."""
        drawn = self._drawn(stage)
        tokens, lengths, label, depth = join_sequences([pairs(), drawn]) if stage == "train" else drawn
        return LabelledDataset(self.vocabulary, self.outputs, self.groups, tokens, lengths, label, depth - 2)

    def _draw(self, stage: str, taken: NDArray[np.uint64]) -> Sequences:
        size = self.train_size if stage == "train" else self.test_size
        least, most, chance = _STAGES[stage]
        draw = generator(self.benchmark, self.split, stage, self.seed, size, self.test_size)
        sampler = ExpressionSampler(chance, draw)

        def block(number: int) -> Sequences:
            trees = sampler.trees(number, least, most, _LARGEST)
            return Sequences(trees.tokens, trees.lengths, trees.value, trees.depth)

        limits = {depth: min(possible(depth), 2 * size) * 3 // 4 for depth in range(least, most + 1)}
        return draw_different(block, shares(size, limits), taken)
