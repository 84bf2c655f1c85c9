"""Key-value capacity: how many pairs a fast-weight memory holds, and whether it can replace one."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import (
    Example,
    GroupedDataset,
    ItemGenerators,
    SplitDataModule,
    check_positive,
)

_MOST_QUERIES = 200  # of one evaluation sequence


class KeyValueBatch(NamedTuple):
    """A batch of B sequences of L pairs, each with Q queries.

    Attributes:
        keys: [B, L] int64.
        values: [B, L] int64, the value that follows each key.
        query: [B, Q] int64, keys of the sequence.
        target: [B, Q] int64, the value that followed the queried key last.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    query: torch.Tensor
    target: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class KeyValueItem(NamedTuple):
    """One sequence: keys and values [L], query and target [Q], the group's index, its own index."""

    keys: NDArray[np.int64]
    values: NDArray[np.int64]
    query: NDArray[np.int64]
    target: NDArray[np.int64]
    group: int
    id: int


def last_values(keys: NDArray[np.int64], values: NDArray[np.int64], query: NDArray[np.int64]) -> NDArray[np.int64]:
    """The value at the last occurrence of every queried key; keys [L], values [L], query [Q] -> [Q]."""
    backward = keys[::-1] == query[:, None]
    return values[len(keys) - 1 - backward.argmax(axis=1)]


class KeyValueDataset(GroupedDataset):
    """Sequences of pairs drawn by index; nothing is kept.

    Args:
        group: Name of the only group.
        draws: The generator of every sequence.
        size: S, the number of keys and of values.
        length: L, pairs in a sequence.
        number: Number of sequences.
        repeated: Whether keys and values are drawn with replacement (otherwise L = S, and both are permutations).
    """

    def __init__(self, group: str, draws: ItemGenerators, size: int, length: int, number: int, repeated: bool) -> None:
        self.groups = (group,)
        self.draws, self.size, self.length, self.number, self.repeated = draws, size, length, number, repeated

    def __len__(self) -> int:
        """Number of items."""
        return self.number

    def sequence(self, index: int) -> tuple[np.random.Generator, NDArray[np.int64], NDArray[np.int64]]:
        """Keys and values of sequence `index`, and its generator after they were drawn."""
        draw = self.draws(index)
        if self.repeated:
            keys, values = draw.integers(self.size, size=(2, self.length))
        else:
            keys, values = draw.permutation(self.size), draw.permutation(self.size)
        return draw, keys, values

    def __getitem__(self, index: int) -> KeyValueItem:
        """Sequence `index` with one query, the key of a uniformly drawn pair."""
        index = range(len(self))[index]
        draw, keys, values = self.sequence(index)
        query = keys[draw.integers(self.length, size=1)]
        return KeyValueItem(keys, values, query, last_values(keys, values, query), 0, index)

    def example(self, index: int) -> Example:
        """Item `index` in words: keys k0, k1, ... and values v0, v1, ..., then the queries after a question mark."""
        item = self[index]
        pairs = zip(item.keys.tolist(), item.values.tolist(), strict=True)
        source = [word for key, value in pairs for word in (f"k{key}", f"v{value}")]
        source += ["?", *(f"k{key}" for key in item.query.tolist())]
        return Example(tuple(source), tuple(f"v{value}" for value in item.target.tolist()), self.groups[item.group])


class KeyValueQueries(KeyValueDataset):
    """The same sequences with all their keys as queries, at most 200 of each, in ascending order.

    Where keys do not repeat, all sequences have the same keys, and an item is a sequence with Q queries. Where they
    repeat, sequences differ in the number of their keys, and an item is a sequence with one query: nothing is padded.
    """

    def __init__(self, group: str, draws: ItemGenerators, size: int, length: int, number: int, repeated: bool) -> None:
        super().__init__(group, draws, size, length, number, repeated)
        asked = [np.unique(self.sequence(i)[1])[:_MOST_QUERIES] for i in range(number)]
        self._asked = [(i, query) for i, keys in enumerate(asked) for query in (keys[:, None] if repeated else [keys])]

    def __len__(self) -> int:
        """Number of items."""
        return len(self._asked)

    def __getitem__(self, index: int) -> KeyValueItem:
        """Item `index`."""
        index = range(len(self))[index]
        sequence, query = self._asked[index]
        _, keys, values = self.sequence(sequence)
        return KeyValueItem(keys, values, query, last_values(keys, values, query), 0, index)


class KeyValueCapacity(SplitDataModule):
    """Pairs of a key and a value, then a key: which value followed it last (Schlag, Irie & Schmidhuber 2021, 6.1).

    There are S keys and S values. A sequence of the split

    - "setting1" has L = S pairs: keys and values are both permutations of S, so that a memory must hold S pairs;
    - "setting2" has L = 2S pairs drawn with replacement: a memory must replace the old value of a key by the new one.

    Training asks one query per sequence, the key of a uniformly drawn pair; its target is the value at the last
    occurrence of that key. `val` and `test` are 20 sequences each (arXiv:2102.11174, released code: 20 fresh ones in
    every evaluation), with all their keys as queries, at most 200. As in the released code these sequences have S
    pairs in "setting2" too, not 2S. There an item has one query (sequences differ in the number of their keys, about
    0.63 S); in "setting1" an item has all of them.

    Training sequences are drawn by index, never stored: with the default `train_examples` 100,000 steps of 32 are ten
    epochs, which repeat the same sequences in other orders. Sequences of different stages are independent draws; that
    one occurs twice is excluded for practical sizes only by their number.

    Examples: `source` is k3 v7 k1 v2 ... ? k1, `target` is v2.

    Args:
        split: "setting1" or "setting2".
        data_dir: Not used; there are no files.
        batch_size: Sequences per batch and process.
        seed: Seed of the sequences and of the order of training.
        size: S, the number of keys and of values.
        train_examples: Training sequences per epoch.
        test_sequences: Sequences of `val` and of `test`.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a number below 1.

    Attributes:
        num_keys: S.
        num_values: S.
        groups: The split's name.
    """

    benchmark = "key_value"
    splits = ("setting1", "setting2")

    def __init__(
        self,
        split: str = "setting1",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        size: int = 40,
        train_examples: int = 320_000,
        test_sequences: int = 20,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(size=size, train_examples=train_examples, test_sequences=test_sequences)
        self.num_keys = self.num_values = size
        self.train_examples, self.test_sequences = train_examples, test_sequences
        self.groups = (split,)

    def dataset_of(self, stage: str) -> KeyValueDataset:
        """The sequences of a stage."""
        size, repeated = self.num_keys, self.split == "setting2"
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, size)
        if stage == "train":
            return KeyValueDataset(self.split, draws, size, size * (1 + repeated), self.train_examples, repeated)
        return KeyValueQueries(self.split, draws, size, size, self.test_sequences, repeated)

    @staticmethod
    def collate(items: Sequence[KeyValueItem]) -> KeyValueBatch:
        """Stack sequences of one length."""
        *arrays, group, index = zip(*items, strict=True)
        keys, values, query, target = (torch.from_numpy(np.stack(array)) for array in arrays)
        return KeyValueBatch(keys, values, query, target, torch.tensor(group), torch.tensor(index))
