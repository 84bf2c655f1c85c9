"""Sums and products of two-digit numbers in one-hot digits: the tasks on which weight masks were first measured."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import (
    Example,
    GroupedDataset,
    SplitDataModule,
    check_positive,
    check_whole,
    generator,
)
from algornn.datamodules.tokens import NO_TARGET

_PUBLISHED_SEEDS = {"train": 0x12345678, "test": 0x12345679, "val": 0x1234567A}
_OPERATORS = ("add", "mul")
_PAIRS = np.stack(np.divmod(np.arange(10_000), 100), axis=1)  # all pairs of numbers
_STEPS = 3  # of a recurrent network for every pair
_AT_ONCE = ("feedforward", "apart")  # splits of `DoubleAddition` without steps


class DigitBatch(NamedTuple):
    """A batch of B problems.

    Attributes:
        x: [B, D] float32, one-hot digits, the least significant of a number first; [B, T, D] for recurrent networks.
        target: [B, digits] int64, the digits of the results, least significant first; -100 where a result is not asked.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    x: torch.Tensor
    target: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class DigitItem(NamedTuple):
    """One problem: x [D] or [T, D], target [digits], the group's index, its own index."""

    x: NDArray[np.float32]
    target: NDArray[np.int64]
    group: int
    id: int


class Layout(NamedTuple):
    """Where digits are shown in x.

    Attributes:
        shape: The shape of x for one problem.
        digit: [k], which digit of the problem is shown.
        place: [k], index into the flattened x of the unit that stands for 0 of that digit.
    """

    shape: tuple[int, ...]
    digit: NDArray[np.int64]
    place: NDArray[np.int64]


def two_digits(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Digits of numbers below 100, least significant first: [..., k] becomes [..., 2 k]."""
    digits = np.stack([numbers % 10, numbers // 10], axis=-1).astype(np.uint8)
    return digits.reshape(*numbers.shape[:-1], 2 * numbers.shape[-1])


class DigitDataset(GroupedDataset):
    """Problems over pairs of two-digit numbers.

    Args:
        groups: Names of the groups.
        pairs: [n, P, 2], the numbers.
        operator: [n], 0 to add and 1 to multiply, all pairs of a problem alike.
        group: [n], index into `groups`.
        layouts: Where the digits of each group are shown; the last digit of a problem is its operator.
        asked: The pairs whose results are asked for, of each group.
    """

    def __init__(
        self,
        groups: tuple[str, ...],
        pairs: NDArray[np.int64],
        operator: NDArray[np.int64],
        group: NDArray[np.int64],
        layouts: Sequence[Layout],
        asked: Sequence[Sequence[int]],
    ) -> None:
        self.groups, self.group, self.layouts = groups, group, layouts
        self.pairs, self.operator = pairs, operator
        first, second = pairs[..., 0], pairs[..., 1]
        self.result = np.where(operator[:, None] == 0, first + second, first * second) % 100
        self._digits = np.concatenate(
            [two_digits(pairs.reshape(len(pairs), 2 * pairs.shape[1])), operator[:, None].astype(np.uint8)], axis=1
        )
        self._asked = np.repeat([[pair in some for pair in range(pairs.shape[1])] for some in asked], 2, axis=1)

    def __len__(self) -> int:
        """Number of problems."""
        return len(self.operator)

    def __getitem__(self, index: int) -> DigitItem:
        """Problem `index`."""
        index = range(len(self))[index]
        group = int(self.group[index])
        layout = self.layouts[group]
        x = np.zeros(layout.shape, dtype=np.float32)
        x.reshape(-1)[layout.place + self._digits[index, layout.digit]] = 1
        target = np.where(self._asked[group], two_digits(self.result[index]).astype(np.int64), NO_TARGET)
        return DigitItem(x, target, group, index)

    def example(self, index: int) -> Example:
        """Problem `index` as numbers and signs, and its results."""
        sign = "+*"[self.operator[index]]
        words = [word for a, b in self.pairs[index].tolist() for word in (str(a), sign, str(b))]
        return Example(tuple(words), tuple(map(str, self.result[index].tolist())), self.groups[self.group[index]])


class DigitDataModule(SplitDataModule):
    """A benchmark of arithmetic on one-hot digits; batches are `DigitBatch`.

    The problems are those of the release, which come from a fixed seed, unless `held_out` keeps some out of training.

    Args:
        split: One of `splits`.
        data_dir: Not used; there are no files.
        batch_size: Problems per batch and process.
        seed: Seed of the order of training, and of what is held out.
        held_out: Share of the pairs of numbers, in either order, that train, val and test leave out; they then have
            fewer problems than their sizes, and there is a stage `held_out`.
        train_size: Problems drawn for train.
        test_size: Problems drawn for val, and for test.

    Raises:
        TypeError: A size that is not whole, or a share that is no number.
        ValueError: Unknown split, a size below 1, or a share that is not at least 0 and below 1.

    Attributes:
        input_size: Length D of x.
        output_size: Number of classes of every digit, 10.
        digits: Number of digits of the target.
    """

    output_size = 10
    input_size: int
    digits: int

    def __init__(
        self,
        split: str,
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        held_out: float = 0.0,
        train_size: int = 1_000_000,
        test_size: int = 10_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(train_size=train_size, test_size=test_size)
        if not isinstance(held_out, int | float) or isinstance(held_out, bool):
            raise TypeError(f"held_out must be a number, not {held_out!r}.")
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out is a share of all pairs, expected at least 0 and below 1, not {held_out}.")
        self.held_out = float(held_out)
        self.train_size, self.test_size = train_size, test_size
        self.further = ("held_out",) if held_out else ()

    def dataset_of(self, stage: str) -> DigitDataset:
        """Draw the problems of a stage as the release does; those with pairs held out are a stage of their own.

        Raises:
            ValueError: No problem is left.
        """
        if stage == "held_out":
            return self._dataset(*self._held_out_problems())
        draw = np.random.RandomState(_PUBLISHED_SEEDS[stage])
        size = self.train_size if stage == "train" else self.test_size
        pairs, operator = self._published(draw, size)
        if self.held_out:
            known = ~self._is_held_out(pairs).any(axis=1)
            pairs, operator = pairs[known], operator[known]
        dataset = self._dataset(pairs, operator)
        if not len(dataset):
            raise ValueError(
                f"Stage {stage!r} of {self} has no problem: of {size} drawn none is left; choose a larger "
                f"{'train_size' if stage == 'train' else 'test_size'}{' or a smaller held_out' * (self.held_out > 0)}."
            )
        return dataset

    def _published(self, draw: np.random.RandomState, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers [size, P, 2] and operators [size], drawn in the order of the release."""
        raise NotImplementedError

    def _held_out_problems(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers and operators of the stage of what training leaves out."""
        raise NotImplementedError

    def _dataset(self, pairs: NDArray[np.int64], operator: NDArray[np.int64]) -> DigitDataset:
        raise NotImplementedError

    def _is_held_out(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a pair is held out, [..., 2] -> [...]; (a, b) is when (b, a) is."""
        unordered = np.flatnonzero(_PAIRS[:, 0] <= _PAIRS[:, 1])
        order = generator(self.benchmark, "held_out", self.seed).permutation(unordered)
        table = np.zeros((100, 100), dtype=bool)
        table.reshape(-1)[order[: max(1, round(self.held_out * len(order)))]] = True
        return (table | table.T)[pairs[..., 0], pairs[..., 1]]

    @staticmethod
    def collate(items: list[Any]) -> DigitBatch:
        """A batch of problems."""
        return DigitBatch(
            x=torch.from_numpy(np.stack([item.x for item in items])),
            target=torch.from_numpy(np.stack([item.target for item in items])),
            group=torch.tensor([item.group for item in items]),
            id=torch.tensor([item.id for item in items]),
        )


class AddMul(DigitDataModule):
    """Two numbers below 100 and a sign: their sum or their product modulo 100 (Csordás et al. 2021).

    "Are Neural Nets Modular? Inspecting Functional Modularity Through Differentiable Weight Masks" (arXiv:2010.02066).
    x has 42 units: two digits of the first number, two of the second, and the sign (add, mul). Train, val and test are
    the 1,000,000, 10,000 and 10,000 problems of the release. A recurrent network is shown x three times.

    There are only 20,000 different problems, all of them in train: without `held_out` nothing about generalization is
    measured. Sum and product agree in 0.4 percent of the pairs.

    Args:
        split: "add_mul", or one sign only: "add", "mul" (the problems of that sign; the tasks of the masks).
        data_dir: Not used; there are no files.
        batch_size: Problems per batch and process.
        seed: Seed of the order of training, and of what is held out.
        held_out: Share of the pairs of numbers, in either order, that are kept out of train, val and test, with both
            signs; stage `held_out` has all their problems.
        train_size: Problems drawn for train.
        test_size: Problems drawn for val, and for test.

    Raises:
        TypeError: A size that is not whole, or a share that is no number.
        ValueError: Unknown split, a size below 1, or a share that is not at least 0 and below 1.

    Attributes:
        groups: "add" and "mul".
        input_size: 42.
        output_size: Number of classes of every digit, 10.
        digits: 2.
    """

    benchmark = "add_mul"
    splits = ("add_mul", *_OPERATORS)
    groups = _OPERATORS
    input_size, digits = 42, 2

    def __init__(
        self,
        split: str = "add_mul",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        held_out: float = 0.0,
        train_size: int = 1_000_000,
        test_size: int = 10_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed, held_out, train_size, test_size)

    def _published(self, draw: np.random.RandomState, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = draw.randint(0, 100, (size, 1, 2), dtype=np.int64)
        return pairs, draw.randint(0, 2, size, dtype=np.int64)

    def _held_out_problems(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = _PAIRS[self._is_held_out(_PAIRS)][:, None]
        return np.concatenate([pairs, pairs]), np.repeat([0, 1], len(pairs))

    def _dataset(self, pairs: NDArray[np.int64], operator: NDArray[np.int64]) -> DigitDataset:
        if self.split != "add_mul":
            kept = operator == _OPERATORS.index(self.split)
            pairs, operator = pairs[kept], operator[kept]
        layout = Layout((42,), np.arange(5), 10 * np.arange(5))
        return DigitDataset(self.groups, pairs, operator, operator, (layout,) * 2, ((0,),) * 2)


class DoubleAddition(DigitDataModule):
    """Two pairs of numbers below 100: both sums modulo 100 (Csordás et al. 2021, arXiv:2010.02066).

    "feedforward" shows all eight digits at once, x [80]. "apart" shows one pair at a time on its own units of x [80],
    as the released feed-forward network is run: every problem is two examples, of the groups "first" and "second",
    and the sum of the other pair is not asked for. The other splits are for recurrent networks, x [6, D]: three steps
    for every pair.

    | split | x | the sums are read |
    |---|---|---|
    | "together" | both pairs all the time, D = 80 | after the last step |
    | "only_one" | each pair on its own units during its own three steps, D = 80 | after the last step |
    | "only_one_io" | the same | each after its own steps |
    | "same_input" | both pairs on the same units, one after the other, D = 40 | after the last step |
    | "same_output" | both pairs all the time, D = 80 | each after its own steps, from the same units |
    | "same_io" | both pairs on the same units, D = 40 | each after its own steps, from the same units |

    What is read where is up to the learner: `read_at`.

    Args:
        split: One of the table, or "feedforward" or "apart".
        data_dir: Not used; there are no files.
        batch_size: Problems per batch and process.
        seed: Seed of the order of training, and of what is held out.
        held_out: Share of the pairs of numbers, in either order, that are kept out of train, val and test; stage
            `held_out` has `test_size` problems made of such pairs alone.
        train_size: Problems drawn for train.
        test_size: Problems drawn for every other stage.
        only: 0 or 1: the other pair is not shown and its sum not asked for (target -100), as for the masks of one pair.

    Raises:
        TypeError: A size that is not whole, or a share that is no number.
        ValueError: Unknown split, a size below 1, a share that is not at least 0 and below 1, or `only` besides 0, 1 or
            with the split "apart".

    Attributes:
        groups: "add"; "first" and "second" for "apart".
        input_size: D.
        output_size: Number of classes of every digit, 10.
        digits: 4, two for every sum.
        read_at: The step after which the sum of each pair is read, (0, 0) for "feedforward" and "apart".
    """

    benchmark = "double_addition"
    splits = ("feedforward", "apart", "together", "only_one", "only_one_io", "same_input", "same_output", "same_io")
    groups: tuple[str, ...] = ("add",)
    digits = 4

    def __init__(
        self,
        split: str = "feedforward",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        held_out: float = 0.0,
        train_size: int = 1_000_000,
        test_size: int = 10_000,
        only: int | None = None,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed, held_out, train_size, test_size)
        if only is not None:
            check_whole(only=only)
        if only not in (None, 0, 1):
            raise ValueError(f"only is the pair that is shown, expected None, 0 or 1, not {only!r}.")
        if split == "apart":
            if only is not None:
                raise ValueError('The split "apart" shows each pair alone; choose one by its group, without `only`.')
            self.groups = ("first", "second")
        self.only = only
        self.input_size = 40 if split in ("same_input", "same_io") else 80
        last = 2 * _STEPS - 1
        self.read_at = (_STEPS - 1, last) if split in ("only_one_io", "same_output", "same_io") else (last, last)
        if split in _AT_ONCE:
            self.read_at = (0, 0)

    def _published(self, draw: np.random.RandomState, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = np.concatenate([draw.randint(0, 100, (size, 1, 2), dtype=np.int64) for _ in range(2)], axis=1)
        return pairs, np.zeros(size, dtype=np.int64)

    def _held_out_problems(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = _PAIRS[self._is_held_out(_PAIRS)]
        draw = generator(self.benchmark, "held_out", "problems", self.seed, self.test_size)
        return pairs[draw.integers(len(pairs), size=(self.test_size, 2))], np.zeros(self.test_size, dtype=np.int64)

    def _dataset(self, pairs: NDArray[np.int64], operator: NDArray[np.int64]) -> DigitDataset:
        asked = [(0, 1) if self.only is None else (self.only,)]
        if self.split == "apart":
            pairs, operator, asked = pairs.repeat(2, axis=0), operator.repeat(2), [(0,), (1,)]
        group = np.arange(len(pairs)) % len(asked)
        return DigitDataset(self.groups, pairs, operator, group, [self._layout(shown) for shown in asked], asked)

    def _layout(self, shown: Sequence[int]) -> Layout:
        steps = 1 if self.split in _AT_ONCE else 2 * _STEPS
        step, pair, digit = np.indices((steps, 2, 4)).reshape(3, -1)
        seen = np.isin(pair, shown)
        if self.split in ("only_one", "only_one_io", "same_input", "same_io"):
            seen &= pair == step // _STEPS
        unit = 10 * (digit if self.input_size == 40 else 4 * pair + digit)
        shape = (80,) if self.split in _AT_ONCE else (steps, self.input_size)
        return Layout(shape, (4 * pair + digit)[seen], (step * self.input_size + unit)[seen])
