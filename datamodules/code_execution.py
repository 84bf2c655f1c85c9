"""Code execution: read a program of 100 statements token by token, and say what it prints."""

import os

from algornn.datamodules.split_datamodule import check_flags, check_positive, generator
from algornn.datamodules.story import PAD
from algornn.datamodules.story_world import Dice
from algornn.datamodules.tokens import PackedTokens, TokenDataModule

_VARIABLES = ("x", "y", "z", "a", "b")
_WORDS = (*map(str, range(10)), "=", ";", "++", "--", "print", "if", "<", ">", ":")
_LOW, _HIGH = -8, 16  # of a variable's value
_NOTHING = 0  # class of "_"
_LEAST_STATEMENTS = 10


class Program:
    """A program that is written and executed statement by statement.

    Args:
        ids: The id of every word.
        variables: Names of the variables.
        ignore: Whether a conditional assignment to an assigned variable is not executed.
        dice: Where the draws come from.

    Attributes:
        tokens: Ids of the program so far.
        target: Class of every token: 1 + printed value + 8, or 0 where nothing is printed.
    """

    def __init__(self, ids: dict[str, int], variables: tuple[str, ...], ignore: bool, dice: Dice) -> None:
        self.ids, self.variables, self.ignore, self.dice = ids, variables, ignore, dice
        self.values: dict[str, int] = {}
        self.tokens: list[int] = []
        self.target: list[int] = []

    def _write(self, *words: str, value: int | None = None) -> None:
        self.tokens.extend([self.ids[word] for word in words])
        self.target.extend([_NOTHING] * (len(words) - 1))
        self.target.append(_NOTHING if value is None else 1 + value - _LOW)

    def _assigned(self) -> str:
        return self.dice.choose(list(self.values))

    def assign(self, run: bool = True) -> None:
        """`v = n ;`, executed if `run`."""
        variable, number = self.dice.choose(self.variables), self.dice.integer(0, 9)
        if run:
            self.values[variable] = number
        self._write(variable, "=", str(number), ";")

    def step(self, run: bool = True) -> None:
        """`v ++ ;` or `v -- ;`, whichever keeps the value in its range, executed if `run`."""
        variable, by = self._assigned(), 1 if self.dice.chance(0.5) else -1
        if not _LOW <= self.values[variable] + by <= _HIGH:
            by = -by
        if run:
            self.values[variable] += by
        self._write(variable, "++" if by > 0 else "--", ";")

    def show(self, run: bool = True) -> None:
        """`print v ;`, executed if `run`: the value is the target at the semicolon."""
        variable = self._assigned()
        self._write("print", variable, ";", value=self.values[variable] if run else None)

    def condition(self) -> None:
        """`if v < n :` or `if v > n :` and one of the other statements."""
        variable, sign, number = self._assigned(), self.dice.choose("<>"), self.dice.integer(0, 9)
        run = self.values[variable] < number if sign == "<" else self.values[variable] > number
        self._write("if", variable, sign, str(number), ":")
        before = dict(self.values)
        self.dice.choose((self.assign, self.step, self.show))(run)
        reassigned = self.tokens[-3] == self.ids["="]
        if self.ignore and reassigned and len(self.values) == len(before):
            self.values = before

    def statement(self) -> None:
        """One of the four kinds."""
        self.dice.choose((self.assign, self.step, self.show, self.condition))()


class CodeExecution(TokenDataModule):
    """Programs over 3 or 5 variables, executed token by token (Fan et al. 2020, as in Irie et al. 2021, 4.1).

    A program has 100 statements, each drawn uniformly from `v = n ;`, `v ++ ;` or `v -- ;`, `print v ;` and
    `if v < n : ...` or `if v > n : ...` with one of the other kinds; n is 0 to 9. The first one assigns, the last one
    prints. Values stay in -8 to 16: a step out of this range goes the other way. The target at the semicolon of a print
    that is executed is the value, at every other token "_", a class of its own: the published metric is the exact match
    of all tokens of a program.

    As in the released code (arXiv:2106.06295) a conditional assignment to a variable that has a value is silently not
    executed, even where the condition holds (`ignore_conditional_reassignment`). Deviations: the released files lack
    their last program (9,999, 999 and 999 are left); no program occurs twice here.

    22 tokens (24 with five variables) and padding; 26 classes: "_" and the values -8 to 16. A program has about 456
    tokens and 34 prints, of which 29 are executed.

    Args:
        split: "3-variables" or "5-variables".
        data_dir: Not used; there are no files.
        batch_size: Programs per batch and process.
        seed: Seed of the programs and of the order of training.
        statements: Statements of a program.
        train_size: Number of training programs.
        test_size: Number of programs of val and of test.
        ignore_conditional_reassignment: Whether the released code's omission is kept.

    Raises:
        TypeError: A number that is not whole, or a flag that is neither True nor False.
        ValueError: Unknown split, a size below 1, or fewer than 10 statements.

    Attributes:
        groups: The split's name.
    """

    benchmark = "code_execution"
    splits = ("3-variables", "5-variables")
    outputs = ("_", *map(str, range(_LOW, _HIGH + 1)))

    def __init__(
        self,
        split: str = "3-variables",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        statements: int = 100,
        train_size: int = 10_000,
        test_size: int = 1_000,
        ignore_conditional_reassignment: bool = True,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(statements=statements, train_size=train_size, test_size=test_size)
        check_flags(ignore_conditional_reassignment=ignore_conditional_reassignment)
        if statements < _LEAST_STATEMENTS:
            raise ValueError(f"statements must be at least {_LEAST_STATEMENTS}, not {statements}.")
        self.statements, self.train_size, self.test_size = statements, train_size, test_size
        self.ignore = ignore_conditional_reassignment
        self.variables = _VARIABLES[: int(split[0])]
        self.vocabulary = (PAD, *self.variables, *_WORDS)
        self.groups = (split,)

    def dataset_of(self, stage: str) -> PackedTokens:
        """Write the programs of a stage; train leaves out those of val and test, val those of test."""
        dice = Dice(generator(self.benchmark, self.split, stage, self.seed, self.statements, self.ignore))
        ids = {word: i for i, word in enumerate(self.vocabulary)}

        def draw() -> tuple[list[int], list[int], int]:
            program = Program(ids, self.variables, self.ignore, dice)
            program.assign()
            for _ in range(self.statements - 2):
                program.statement()
            program.show()
            return program.tokens, program.target, 0

        return self._different(stage, self.train_size if stage == "train" else self.test_size, draw)
