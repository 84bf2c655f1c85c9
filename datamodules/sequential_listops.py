"""Sequential ListOps: nested lists of digits under MIN, MAX and FIRST, to be reduced to one digit."""

import os
from operator import itemgetter

from algornn.datamodules.split_datamodule import check_positive, generator
from algornn.datamodules.story import PAD
from algornn.datamodules.story_world import Dice
from algornn.datamodules.tokens import NO_TARGET, PackedTokens, TokenDataModule

_ROOTS = ("MIN", "MAX", "FIRST")
_OPERATORS = tuple(f"[{root}" for root in _ROOTS)
_DIGITS = tuple(map(str, range(10)))
_FIRST_OPERATOR, _END, _FIRST_DIGIT = 1, 4, 5  # ids
_NUMBERS = (2, 3, 4, 5)  # of arguments
_OPERATOR = 0.25  # chance that an argument is a list


class Lists:
    """Draws lists of exactly a given depth, as if lists of any depth were drawn until one has it.

    A list has 2 to 5 arguments, each of which is a list with chance 1/4 and a digit otherwise. An argument has a depth
    of at most k (a digit has depth 0) with chance c_k = 3/4 + 1/4 mean_n c_{k-1}^n, c_0 = 3/4, c_{-1} = 0. So a list
    of depth h has n arguments with a chance in proportion to c_{h-1}^n - c_{h-2}^n; and of m arguments of which the
    deepest has depth h - 1, the first is that deep with chance (c_{h-1} - c_{h-2}) c_{h-1}^(m-1) divided by
    c_{h-1}^m - c_{h-2}^m.

    Args:
        depth: The greatest depth that is asked for.
        dice: Where the draws come from.
    """

    def __init__(self, depth: int, dice: Dice) -> None:
        self.dice = dice
        self._below = [0.0, 1 - _OPERATOR]  # c_{-1}, c_0, c_1, ...
        while len(self._below) < depth + 2:
            mean = sum(self._below[-1] ** n for n in _NUMBERS) / len(_NUMBERS)
            self._below.append(1 - _OPERATOR + _OPERATOR * mean)
        self.tokens: list[int] = []

    def draw(self, depth: int) -> tuple[list[int], int, int]:
        """A list of exactly this depth: its tokens, its value, and the number of its operator."""
        self.tokens = []
        value = self._list(depth, exact=True)
        return self.tokens, value, self.tokens[0] - _FIRST_OPERATOR

    def _chance(self, depth: int) -> float:
        return self._below[depth + 1]

    def _list(self, depth: int, exact: bool) -> int:
        """Write a list of exactly or at most this depth; return its value."""
        most, less = self._chance(depth - 1), self._chance(depth - 2) if exact else 0.0
        number = self._weighted([most**n - less**n for n in _NUMBERS])
        operator = self.dice.integer(0, len(_OPERATORS) - 1)
        self.tokens.append(_FIRST_OPERATOR + operator)
        values = []
        for rest in range(number - 1, -1, -1):
            if not exact:
                values.append(self._argument(depth - 1))
            elif self.dice.chance((most - less) * most**rest / (most ** (rest + 1) - less ** (rest + 1))):
                values.append(self._list(depth - 1, exact=True) if depth > 1 else self._digit())
                exact = False
            else:
                values.append(self._argument(depth - 2))
        self.tokens.append(_END)
        return (min, max, itemgetter(0))[operator](values)

    def _argument(self, depth: int) -> int:
        """Write a digit or a list of at most this depth; return its value."""
        if depth < 1 or self.dice.chance((1 - _OPERATOR) / self._chance(depth)):
            return self._digit()
        return self._list(depth, exact=False)

    def _digit(self) -> int:
        digit = self.dice.integer(0, 9)
        self.tokens.append(_FIRST_DIGIT + digit)
        return digit

    def _weighted(self, weights: list[float]) -> int:
        """A number of arguments, with chances in proportion to the weights."""
        rest = sum(weights)
        for number, weight in zip(_NUMBERS[:-1], weights, strict=False):
            if self.dice.chance(weight / rest):
                return number
            rest -= weight
        return _NUMBERS[-1]


class SequentialListOps(TokenDataModule):
    """Lists such as [MIN 4 [FIRST 7 2 ] 8 ] read token by token; their value is asked for at the last token.

    Nangia & Bowman 2018, as in Irie et al. 2021 (arXiv:2106.06295, 4.2): operators MIN, MAX and FIRST, each with 2 to 5
    arguments; an argument is a digit with chance 3/4 and a list otherwise; only lists of exactly the split's depth,
    which is the number of nested operators ("depth-10" is `only_depth` 11 of the released code, which counts the digits
    too). Lists of a depth are drawn directly (see `Lists`), with the same chances as by drawing until one fits.
    No list occurs twice in train, val and test together (in the release it may).

    14 tokens and padding; the target is one class of ten at the closing bracket of the whole list. Lists have about 98
    (depth 10) and 182 (depth 15) tokens; the most frequent value has about a fifth of them.

    Args:
        split: "depth-10" or "depth-15".
        data_dir: Not used; there are no files.
        batch_size: Lists per batch and process.
        seed: Seed of the lists and of the order of training.
        train_size: Number of training lists.
        test_size: Number of lists of val and of test.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a size below 1.

    Attributes:
        groups: The outermost operator: "MIN", "MAX" or "FIRST".
    """

    benchmark = "sequential_listops"
    splits = ("depth-10", "depth-15")
    groups = _ROOTS
    vocabulary = (PAD, *_OPERATORS, "]", *_DIGITS)
    outputs = _DIGITS

    def __init__(
        self,
        split: str = "depth-10",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        train_size: int = 10_000,
        test_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(train_size=train_size, test_size=test_size)
        self.train_size, self.test_size = train_size, test_size
        self.depth = int(split.removeprefix("depth-"))

    def dataset_of(self, stage: str) -> PackedTokens:
        """Draw the lists of a stage; train leaves out those of val and test, val those of test."""
        lists = Lists(self.depth, Dice(generator(self.benchmark, self.split, stage, self.seed)))

        def draw() -> tuple[list[int], list[int], int]:
            tokens, value, root = lists.draw(self.depth)
            return tokens, [NO_TARGET] * (len(tokens) - 1) + [value], root

        return self._different(stage, self.train_size if stage == "train" else self.test_size, draw)
