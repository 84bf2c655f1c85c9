"""CTL++: compositions of functions whose groups meet in the test as they never met in training."""

import os
import string

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.function_tables import IN, OUT, FunctionLanguage, write
from algornn.datamodules.labelled_sequences import LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.sequence_sampling import Sequences, draw_different, join, keys, shares, take
from algornn.datamodules.split_datamodule import check_flags, check_positive, check_whole, generator
from algornn.datamodules.story import PAD

_SYMBOLS = tuple(string.digits[:8])
_NAMES = tuple(string.ascii_letters[:32])
_LEAST, _MOST = 2, 6  # functions of a sequence
_GROUPS = {
    "alternate": ("a", "b"),
    "parallel_branch": ("a", "b", "o"),
    "parallel_branch_2stage": ("a1", "a2", "b1", "b2", "o"),
}
_SOURCES = {"parallel_branch": ("a", "b"), "parallel_branch_2stage": ("a1", "b1")}  # groups that lead to o
_Edges = dict[str, tuple[str, ...]]


def _any(groups: tuple[str, ...]) -> _Edges:
    return {IN: groups} | dict.fromkeys(groups, (*groups, OUT))


def _loops(groups: tuple[str, ...]) -> _Edges:
    return {IN: groups} | {group: (group, OUT) for group in groups}


_SWAP: _Edges = {IN: ("a", "b"), "a": ("b", OUT), "b": ("a", OUT)}
_TWO_STAGES: _Edges = {IN: ("a1", "b1"), **dict.fromkeys(("a2", "b2", "o"), ("a1", "b1", OUT))}
_ENDS: _Edges = {IN: ("a1", "b1"), **dict.fromkeys(("a2", "b2", "o"), (OUT,))}
# The automata of training, of the test sets that are drawn, and of those that are all pairs of a language.
_TRAIN: dict[str, _Edges] = {
    "alternate": _SWAP,
    "parallel_branch": {
        IN: ("a", "b"),
        "a": ("a", "o.a", OUT),
        "b": ("b", "o.b", OUT),
        "o.a": ("a", OUT),
        "o.b": ("b", OUT),
    },
    "parallel_branch_2stage": _TWO_STAGES | {"a1": ("a2", "o"), "b1": ("b2", "o")},
}
_TESTS: dict[str, dict[str, _Edges]] = {
    "alternate": {"self_loop": _loops(("a", "b")), "all": _any(("a", "b"))},
    "parallel_branch": {
        "group_alternate": _SWAP,
        "self_loop": _loops(_GROUPS["parallel_branch"]),
        "all": _any(_GROUPS["parallel_branch"]),
        "all_overlap": {IN: ("a", "b"), "a": ("o",), "b": ("o",), "o": ("a", "b", OUT)},
    },
    "parallel_branch_2stage": {
        "group_alternate": _TWO_STAGES | {"a1": ("b2",), "b1": ("a2",)},
        "self_loop": _loops(_GROUPS["parallel_branch_2stage"]),
        "all": _any(_GROUPS["parallel_branch_2stage"]),
        "all_overlap": _TWO_STAGES | {"a1": ("o",), "b1": ("o",)},
    },
}
_PAIRS: dict[str, dict[str, _Edges]] = {
    "alternate": {"all_pairs": _any(("a", "b"))},
    "parallel_branch": {"all_pairs": _any(_GROUPS["parallel_branch"])},
    "parallel_branch_2stage": {
        "cross_unseen_symbols": _ENDS | {"a1": ("o",), "b1": ("o",)},
        "unseen_pairs": _ENDS | {"a1": ("b2", "o"), "b1": ("a2", "o")},
        "all_pairs": _ENDS | dict.fromkeys(("a1", "b1"), ("a2", "b2", "o")),
    },
}
_UNSEEN = ("cross_unseen_symbols", "unseen_pairs")


class Functions:
    """The functions of a split: their tables, their groups, and on which symbols those of group o are met in training.

    Args:
        split: A split of `CTLPlusPlus`.
        overlap: The size of group o.
        symbol_overlap: On how many symbols both branches lead to a function of o.
        seed: Seed of the tables and of the symbols.
    """

    def __init__(self, split: str, overlap: int, symbol_overlap: int, seed: int) -> None:
        self.tables = self._tables(generator("ctl_plus_plus", "functions", seed))
        others = [group for group in _GROUPS[split] if group != "o"]
        parts = np.split(np.arange(overlap, len(_NAMES)), len(others))
        self.groups = {"o": np.arange(overlap)} | dict(zip(others, parts, strict=True))
        draw = generator("ctl_plus_plus", split, "symbols", overlap, symbol_overlap, seed)
        self.seen = self._restrict(_SOURCES[split], overlap, symbol_overlap, draw) if split in _SOURCES else {}

    def language(self, edges: _Edges, restriction: str = "") -> FunctionLanguage:
        """The language of an automaton, where steps to o are free, or "seen" or "unseen" in training."""
        turned = {step: allowed == (restriction == "seen") for step, allowed in self.seen.items()}
        return FunctionLanguage(self.tables, self.groups, edges, turned if restriction else None)

    @staticmethod
    def _tables(draw: np.random.Generator) -> NDArray[np.int64]:
        """Different random permutations of the symbols."""
        tables: dict[bytes, NDArray[np.int64]] = {}
        while len(tables) < len(_NAMES):
            table = draw.permutation(len(_SYMBOLS))
            tables.setdefault(table.tobytes(), table)
        return np.stack(list(tables.values()))

    @staticmethod
    def _restrict(
        sources: tuple[str, str], overlap: int, symbol_overlap: int, draw: np.random.Generator
    ) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """Share out the symbols of every function of o: a window for both sources, half of the others for each."""
        allowed = np.zeros((2, len(_NAMES), len(_SYMBOLS)), dtype=bool)
        order = np.arange(len(_SYMBOLS))
        for function in range(overlap):
            place = function * symbol_overlap + np.arange(symbol_overlap)
            shared = order[place % len(order)]
            rest = np.setdiff1d(order, shared)
            first = (len(rest) + 1) // 2 if len(rest) != 1 else draw.integers(2)
            for source, own in enumerate((rest[:first], rest[first:])):
                allowed[source, function, np.concatenate([shared, own])] = True
            if (function + 1) % -(-len(order) // symbol_overlap) == 0:  # every symbol was in a window
                order = draw.permutation(len(order))
        return {(source, "o"): allowed[i] for i, source in enumerate(sources)}


class CTLPlusPlus(LabelledSequenceDataModule):
    """CTL++ (Csordás, Irie and Schmidhuber 2022): 32 functions in groups, of which only some follow each other.

    Functions a to z and A to F are different permutations of eight symbols. A sequence is a symbol and 2 to 6
    functions, its class the last value. Training sequences are those of a regular language over groups; no test is
    longer, what is new in it is which groups follow each other.

    - "alternate": 16 functions a, 16 b; training goes a, b, a, ... or b, a, b, ...
    - "parallel_branch": a, b and `overlap` functions o; training stays in a or in b, and from o goes back to where it
      came from.
    - "parallel_branch_2stage": a1, a2, b1, b2 and o; training starts with a1 or b1; a1 is followed by a2 or o, b1 by b2
      or o; after a2, b2 and o come a1, b1 or the end.

    A step to o is "seen" in training on some symbols only: each function of o is met after both branches on
    `symbol_overlap` symbols, and on the others after one of the two.

    | stage | sequences | in splits |
    |---|---|---|
    | `val`, `test` | of the training language | all |
    | `group_alternate` | the branches crossed: a, b, a, ... or a1, b2, b1, a2, ... | parallel |
    | `self_loop` | one group only | all |
    | `all` | any functions | all |
    | `all_overlap` | every other function one of o, on any symbol | parallel, where `overlap` > 0 |
    | `cross_unseen_symbols` | all pairs that end in o and are not seen in training | 2stage, where there are any |
    | `unseen_pairs` | the same, and all of a1, b2 and b1, a2 | 2stage |
    | `all_pairs` | all pairs (2stage: of a first and a second stage) | all |
    | `pairs` | all pairs of the training language | all |

    `all_pairs` is one of the release's tests and counts as out of distribution, although a quarter to three quarters of
    its sequences, most of those of `pairs`, are in train (3,983 of 8,192 with split "alternate"; about half as many
    without the argument `pairs`). Train has none of the other sets that are out of distribution.

    The first six have `test_size` sequences, as many of every possible length. Train has none of their sequences
    (in the release it may), and of a length at most half of what is possible. With `pairs`, all pairs of the training
    language are added that are in no stage of these six and not in train yet (the release adds all once more).
    Sequences are drawn uniformly from the language; in the release a step is uniform, and what cannot end is drawn
    anew. The release has one iid set, here there are two.

    Args:
        split: "alternate", "parallel_branch" or "parallel_branch_2stage".
        data_dir: Not used; there are no files.
        batch_size: Sequences per batch and process.
        seed: Seed of the functions, the sequences and the order of training.
        overlap: Functions of group o; the others must divide equally among the other groups.
        symbol_overlap: Symbols, 1 to 8; published: 2 to 6, with an overlap of 4, 8, 12 and 16.
        pairs: Whether all pairs of the training language are added to train, as in the published runs.
        backward: Whether the last function comes first and the symbol last, as in the published runs.
        train_size: Number of training sequences besides the added pairs.
        test_size: Number of sequences of val, test and every test set that is not a set of all pairs.

    Raises:
        TypeError: A number that is not whole, or a flag that is neither True nor False.
        ValueError: Unknown split, a number that is out of range, or more sequences than there are.

    Attributes:
        groups: What a sequence was drawn for: "train", "iid", or the name of the test set.
    """

    benchmark = "ctl_plus_plus"
    splits = tuple(_GROUPS)
    vocabulary = (PAD, *_SYMBOLS, *_NAMES)
    outputs = _SYMBOLS

    def __init__(
        self,
        split: str = "parallel_branch",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        overlap: int = 0,
        symbol_overlap: int = 8,
        pairs: bool = True,
        backward: bool = True,
        train_size: int = 300_000,
        test_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        self._check(overlap, symbol_overlap)
        check_positive(train_size=train_size, test_size=test_size)
        check_flags(pairs=pairs, backward=backward)
        self.overlap, self.symbol_overlap, self.pairs, self.backward = overlap, symbol_overlap, pairs, backward
        self.train_size, self.test_size = train_size, test_size
        self._sampled = tuple(name for name in _TESTS[split] if overlap or name != "all_overlap")
        unseen = overlap and symbol_overlap < len(_SYMBOLS)
        all_pairs = (name for name in _PAIRS[split] if unseen or name != "cross_unseen_symbols")
        self.further = (*self._sampled, *all_pairs, "pairs")
        known = {"pairs", "self_loop"} if split == "parallel_branch" and not overlap else {"pairs"}
        self.ood = tuple(stage for stage in self.further if stage not in known)
        self.groups = ("train", "iid", *self.further)
        self.functions = Functions(split, overlap, symbol_overlap, seed)
        self._train = self.functions.language(_TRAIN[split], "seen")
        self._drawn: dict[str, Sequences] = {}

    def dataset_of(self, stage: str) -> LabelledDataset:
        """Draw the sequences of a stage."""
        tokens, lengths, label, _ = self._of(stage)
        group = np.full(len(label), self.groups.index("iid" if stage in ("val", "test") else stage))
        return LabelledDataset(self.vocabulary, self.outputs, self.groups, tokens, lengths, label, group)

    def _of(self, stage: str) -> Sequences:
        if stage not in self._drawn:
            if stage in ("train", "val", "test"):
                self._draw_pool()
            elif stage in self._sampled:
                language = self.functions.language(_TESTS[self.split][stage])
                self._drawn[stage] = self._draw(stage, language, self.test_size, 1, None)
            else:
                self._drawn[stage] = self._every(stage)
        return self._drawn[stage]

    def _draw_pool(self) -> None:
        """Draw train, val and test together, of which they are random parts."""
        taken = np.concatenate([keys(self._of(stage)) for stage in self._sampled])
        pool = self._draw("pool", self._train, self.train_size + 2 * self.test_size, 2, taken)
        order = generator(self.benchmark, self.split, "parts", self.seed).permutation(len(pool.label))
        ends = (self.test_size, 2 * self.test_size)
        self._drawn |= {
            stage: take(pool, part) for stage, part in zip(("test", "val", "train"), np.split(order, ends), strict=True)
        }
        if self.pairs:
            pairs = self._every("pairs")
            new = ~np.isin(keys(pairs), np.concatenate([keys(pool), taken]))
            self._drawn["train"] = join([self._drawn["train"], take(pairs, new)])

    def _draw(
        self, name: str, language: FunctionLanguage, size: int, parts: int, taken: NDArray[np.uint64] | None
    ) -> Sequences:
        """`size` different sequences, of every length as many, but one out of `parts` of what is possible at most."""
        draw = generator(self.benchmark, self.split, name, self.seed, self.overlap, self.symbol_overlap, size)
        limits = {depth: language.count(depth) // parts for depth in range(_LEAST, _MOST + 1) if language.count(depth)}
        drawn = []
        for length, quota in shares(size, limits).items():
            if not quota:
                continue

            def block(number: int, length: int = length) -> Sequences:
                return self._write(*language.draw(number, length, draw))

            drawn.append(draw_different(block, {length: quota}, taken))
        return join(drawn)

    def _every(self, stage: str) -> Sequences:
        """All pairs of a language."""
        edges = _PAIRS[self.split].get(stage, _TRAIN[self.split])
        restriction = "seen" if stage == "pairs" else "unseen" if stage in _UNSEEN else ""
        return self._write(*self.functions.language(edges, restriction).every(2))

    def _write(self, functions: NDArray[np.int64], symbol: NDArray[np.int64]) -> Sequences:
        depth = np.full(len(symbol), functions.shape[1])
        return write(self.functions.tables, functions, depth, symbol, self.backward)

    def _check(self, overlap: int, symbol_overlap: int) -> None:
        check_whole(overlap=overlap, symbol_overlap=symbol_overlap)
        parts = len(_GROUPS[self.split]) - ("o" in _GROUPS[self.split])
        if overlap and self.split == "alternate":
            raise ValueError(f"split 'alternate' has no group o, expected overlap=0, not {overlap}.")
        if not 0 <= overlap < len(_NAMES) or (len(_NAMES) - overlap) % parts:
            raise ValueError(
                f"overlap is the number of functions of group o, expected 0 to {len(_NAMES) - parts} in steps of "
                f"{parts}, so that the other groups are of one size, not {overlap}."
            )
        if not 1 <= symbol_overlap <= len(_SYMBOLS):
            raise ValueError(f"symbol_overlap is a number of symbols, expected 1 to 8, not {symbol_overlap}.")
