"""Compositional table lookup: functions given by tables, composed more deeply than in training."""

import os
import string
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.function_tables import write
from algornn.datamodules.labelled_sequences import LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.sequence_sampling import Sequences, draw_different, join, take
from algornn.datamodules.split_datamodule import generator
from algornn.datamodules.story import PAD

_SYMBOLS = tuple(f"{symbol:03b}" for symbol in range(8))
_NAMES = tuple(string.ascii_lowercase[:11])
_ORDINARY = 9  # tables that are composed in training; the other two are the new primitives
_J, _K = 9, 10
_TYPES = ("basic", "iid", "new_primitive_1", "new_primitive_2", "deeper", "deeper_val", "new_composition")
_DEEPEST = 5  # in training
_TRAIN = 8 * (9**2 + 9**3 + 9**4 + 9**5) // 10  # a tenth of all sequences of the ordinary tables
_IID = 4_000  # sequences of val, and of test
_NEW = 1_000  # sequences of each of the other types
_REPEATS = 30  # of the lookups of j and k in training
_RESERVED = tuple(-(-min(800, 9**depth) // 4) for depth in range(_DEEPEST + 1))  # a quarter, at most 200


def tables() -> NDArray[np.int64]:
    """The published tables [11, 8]: table f takes symbol s to `tables()[f, s]`."""
    draw = np.random.RandomState(0x12345678)
    return np.stack([draw.permutation(8) for _ in _NAMES]).astype(np.int64)


class Compositions:
    """Draws the sequences of every type, in one of the two presentations.

    Args:
        backward: See `write`.
        seed: Seed of everything but the tables.
    """

    def __init__(self, backward: bool, seed: int) -> None:
        self.tables, self.backward, self.seed = tables(), backward, seed
        draw = self._generator("reserved")
        self.reserved = [draw.choice(9**depth, count, replace=False) for depth, count in enumerate(_RESERVED)]

    def lookups(self, first: int = 0) -> Sequences:
        """Every table from `first` on, applied to every symbol once."""
        functions, symbol = np.divmod(np.arange(8 * first, self.tables.size), 8)
        return self._write(functions[:, None], np.ones_like(symbol), symbol)

    def iid(self) -> Sequences:
        """Different sequences of depth 2 to 5 for train, val and test together, none with a reserved composition."""
        draw = self._generator("iid")

        def block(size: int) -> Sequences:
            functions = draw.integers(_ORDINARY, size=(size, _DEEPEST))
            depth, symbol = draw.integers(2, _DEEPEST + 1, size=size), draw.integers(8, size=size)
            code = np.where(np.arange(_DEEPEST) < depth[:, None], functions, 0) @ 9 ** np.arange(_DEEPEST)
            free = np.ones(size, dtype=bool)
            for d in range(2, _DEEPEST + 1):
                free[depth == d] = ~np.isin(code[depth == d], self.reserved[d])
            return self._write(functions[free], depth[free], symbol[free])

        pool = self._different(block, _TRAIN + 2 * _IID)
        return take(pool, draw.permutation(len(pool.label)))  # shallow ones come early and soon run out

    def new_primitive(self, table: int) -> Sequences:
        """Sequences of depth 2 to 5 of the ordinary tables and `table`, which takes a random place at least."""
        draw = self._generator("new_primitive", table)

        def block(size: int) -> Sequences:
            functions = draw.integers(_ORDINARY + 1, size=(size, _DEEPEST))
            functions[functions == _ORDINARY] = table
            depth = draw.integers(2, _DEEPEST + 1, size=size)
            functions[np.arange(size), draw.integers(depth)] = table
            return self._write(functions, depth, draw.integers(8, size=size))

        return self._different(block, _NEW)

    def deeper(self, least: int, most: int) -> Sequences:
        """Sequences of the ordinary tables of depth `least` to `most`."""
        draw = self._generator("deeper", least, most)

        def block(size: int) -> Sequences:
            functions = draw.integers(_ORDINARY, size=(size, most))
            return self._write(functions, draw.integers(least, most + 1, size=size), draw.integers(8, size=size))

        return self._different(block, _NEW)

    def new_compositions(self) -> Sequences:
        """Every reserved composition, applied to a random symbol."""
        draw = self._generator("new_composition")
        code = np.concatenate(self.reserved)
        depth = np.repeat(np.arange(_DEEPEST + 1), _RESERVED)
        functions = code[:, None] // 9 ** np.arange(_DEEPEST) % 9
        return self._write(functions, depth, draw.integers(8, size=len(code)))

    def _generator(self, *name: object) -> np.random.Generator:
        return generator("compositional_table_lookup", *name, self.seed)

    def _write(self, functions: NDArray[np.int64], depth: NDArray[np.int64], symbol: NDArray[np.int64]) -> Sequences:
        return write(self.tables, functions, depth, symbol, self.backward)

    @staticmethod
    def _different(block: Callable[[int], Sequences], size: int) -> Sequences:
        def one_kind(size: int) -> Sequences:
            drawn = block(size)
            return drawn._replace(kind=np.zeros_like(drawn.kind))

        return draw_different(one_kind, {0: size})


class CompositionalTableLookup(LabelledSequenceDataModule):
    """Compositional table lookup (CTL): apply tables over eight symbols to a symbol, e.g. "101 d a b" for b(a(d(101))).

    Liska et al. 2018, as in Csordás, Irie and Schmidhuber, "The Neural Data Router" (arXiv:2110.07732). Tables a to k
    are the published permutations of the eight symbols; the class is the final value. Train has all 88 single lookups,
    53,136 sequences of depth 2 to 5 over tables a to i, and the 16 lookups of j and k 30 times more (53,704).

    | stage | type | sequences | published column |
    |---|---|---|---|
    | `val` | iid | 4,000 | |
    | `val_ood` | deeper_val: depth 6 to 8 | 1,000 | chooses the checkpoint |
    | `test` | iid | 4,000 | IID |
    | `longer` | deeper: depth 9 and 10 | 1,000 | Longer |
    | `new_primitive_1` | table j, only looked up in training, in compositions | 1,000 | |
    | `new_primitive_2` | the same with table k | 1,000 | |
    | `new_composition` | a composition held out for every symbol | 608 | |
    | `basic` | single lookups, all of them in train | 88 | |

    No sequence of another stage is in train, with the exceptions of the release: `basic`, and the three reserved
    compositions of depth 1, which are single lookups. (The reserved composition of depth 0 is the symbol alone.)
    Both splits show the same compositions. The release draws from a global generator without a seed which sequences
    are test; here everything but the tables comes from `seed`. Its 2,000 unused sequences with table k are left out.

    Args:
        split: "forward" (the symbol, then the tables in the order of application) or "backward" (the other way round).
        data_dir: Not used; there are no files.
        batch_size: Sequences per batch and process.
        seed: Seed of the sequences and of the order of training; the tables are always the published ones.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a batch size below 1.

    Attributes:
        groups: The published names of the types.
    """

    benchmark = "compositional_table_lookup"
    splits = ("forward", "backward")
    further = ("longer", "new_primitive_1", "new_primitive_2", "new_composition", "basic")
    further_val = ("val_ood",)
    ood = ("val_ood", "longer", "new_primitive_1", "new_primitive_2", "new_composition")
    groups = _TYPES
    vocabulary = (PAD, *_SYMBOLS, *_NAMES)
    outputs = _SYMBOLS

    def __init__(
        self,
        split: str = "forward",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        self._pool: Sequences | None = None

    def dataset_of(self, stage: str) -> LabelledDataset:
        """Draw the sequences of a stage."""
        compositions = Compositions(self.split == "backward", self.seed)
        parts = {
            "train": lambda: self._train(compositions),
            "val": lambda: [("iid", self._iid(compositions, slice(_IID, 2 * _IID)))],
            "val_ood": lambda: [("deeper_val", compositions.deeper(_DEEPEST + 1, _DEEPEST + 3))],
            "test": lambda: [("iid", self._iid(compositions, slice(_IID)))],
            "longer": lambda: [("deeper", compositions.deeper(_DEEPEST + 4, _DEEPEST + 5))],
            "new_primitive_1": lambda: [("new_primitive_1", compositions.new_primitive(_J))],
            "new_primitive_2": lambda: [("new_primitive_2", compositions.new_primitive(_K))],
            "new_composition": lambda: [("new_composition", compositions.new_compositions())],
            "basic": lambda: [("basic", compositions.lookups())],
        }[stage]()
        group = np.repeat([_TYPES.index(name) for name, _ in parts], [len(part.label) for _, part in parts])
        tokens, lengths, label, _ = join([part for _, part in parts])
        return LabelledDataset(self.vocabulary, self.outputs, self.groups, tokens, lengths, label, group)

    def _train(self, compositions: Compositions) -> list[tuple[str, Sequences]]:
        repeated = join([compositions.lookups(_ORDINARY)] * _REPEATS)
        iid = self._iid(compositions, slice(2 * _IID, None))
        return [("basic", compositions.lookups()), ("iid", iid), ("basic", repeated)]

    def _iid(self, compositions: Compositions, part: slice) -> Sequences:
        """A part of the sequences in distribution, which are drawn once."""
        if self._pool is None:
            self._pool = compositions.iid()
        return take(self._pool, np.arange(len(self._pool.label))[part])
