"""Sequences of token ids with a target at some or all steps: what the benchmarks on tokens have in common."""

import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import Example, GroupedDataset, VocabularyDataModule

NO_TARGET = -100  # torch's ignore_index
_MOST_REPEATS = 10_000  # sequences drawn in vain, one after the other


class TokenBatch(NamedTuple):
    """A batch of B sequences, padded to the longest of the batch (T steps).

    Attributes:
        tokens: [B, T] int64, or [B, T, F] where a step has several ids; 0 is padding.
        target: [B, T] int64, the class that is asked for at a step; NO_TARGET where none is.
        mask: [B, T] bool, True at real steps.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    tokens: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class TokenItem(NamedTuple):
    """One sequence: `tokens` [T] or [T, F], `target` [T], the group's index, its own index."""

    tokens: NDArray[Any]
    target: NDArray[Any]
    group: int
    id: int


def collate_tokens(items: Sequence[TokenItem]) -> TokenBatch:
    """Pad sequences to the longest one."""
    lengths = np.array([len(item.tokens) for item in items])
    longest = int(lengths.max())
    tokens = np.zeros((len(items), longest, *items[0].tokens.shape[1:]), dtype=np.int64)
    target = np.full((len(items), longest), NO_TARGET, dtype=np.int64)
    for row, item in enumerate(items):
        tokens[row, : len(item.tokens)] = item.tokens
        target[row, : len(item.target)] = item.target
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        target=torch.from_numpy(target),
        mask=torch.from_numpy(np.arange(longest) < lengths[:, None]),
        group=torch.tensor([item.group for item in items]),
        id=torch.tensor([item.id for item in items]),
    )


class TokenDataset(GroupedDataset):
    """Sequences of tokens by index. A subclass defines `__len__` and `__getitem__`; `PackedTokens` keeps them all.

    Args:
        vocabulary: The word of every token id; word 0 is padding.
        outputs: The word of every class of the target.
        groups: Names of the groups.
    """

    def __init__(self, vocabulary: tuple[str, ...], outputs: tuple[str, ...], groups: tuple[str, ...]) -> None:
        self.vocabulary, self.outputs, self.groups = vocabulary, outputs, groups

    def __getitem__(self, index: int) -> TokenItem:
        """Sequence `index`."""
        raise NotImplementedError

    def example(self, index: int) -> Example:
        """Sequence `index` in words (without padding), and the words of all its targets in order."""
        item = self[index]
        source = tuple(self.vocabulary[i] for i in item.tokens.reshape(-1).tolist() if i)
        target = tuple(self.outputs[i] for i in item.target.tolist() if i != NO_TARGET)
        return Example(source, target, self.groups[item.group])


class PackedTokens(TokenDataset):
    """Sequences of any lengths, one after the other in two arrays.

    Args:
        vocabulary: The word of every token id; word 0 is padding.
        outputs: The word of every class of the target.
        groups: Names of the groups.
        tokens: [m] ids of all sequences.
        target: [m] classes, NO_TARGET where none is asked for.
        lengths: [n] length of every sequence; their sum is m.
        group: [n] index into `groups`.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        outputs: tuple[str, ...],
        groups: tuple[str, ...],
        tokens: NDArray[Any],
        target: NDArray[Any],
        lengths: NDArray[Any],
        group: NDArray[Any],
    ) -> None:
        super().__init__(vocabulary, outputs, groups)
        self._tokens, self._target = tokens, target
        self._group = group.tolist()
        self._starts = [0, *np.cumsum(lengths).tolist()]

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._group)

    def __getitem__(self, index: int) -> TokenItem:
        """Sequence `index`."""
        index = range(len(self))[index]
        run = slice(self._starts[index], self._starts[index + 1])
        return TokenItem(self._tokens[run], self._target[run], self._group[index], index)


class TokenDataModule(VocabularyDataModule):
    """A benchmark of token sequences with targets at some or all steps; batches are `TokenBatch`.

    Attributes:
        vocabulary: The word of every token id; word 0 is padding.
        outputs: The word of every class of the target.
        ids_per_token: F where a step has several ids, otherwise 1.
    """

    ids_per_token = 1

    def __init__(
        self, split: str, data_dir: str | os.PathLike[str] | None = None, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)

    def dataset_of(self, stage: str) -> TokenDataset:
        """Read or generate the sequences of a stage."""
        raise NotImplementedError

    def _different(self, stage: str, size: int, draw: Callable[[], tuple[list[int], list[int], int]]) -> PackedTokens:
        """`size` different sequences; train leaves out those of val and test, val those of test.

        `draw` gives the tokens (ids below 256), the target and the group of one sequence.
        """
        others = {"train": ("val", "test"), "val": ("test",)}.get(stage, ())
        known = [self.dataset(other) for other in others]
        taken = {bytes(dataset[i].tokens) for dataset in known for i in range(len(dataset))}
        tokens, target, lengths, groups = array("B"), array("h"), array("q"), array("q")
        repeated = 0
        while len(lengths) < size:
            sequence, wanted, group = draw()
            if (key := bytes(sequence)) in taken:
                repeated += 1
                if repeated == _MOST_REPEATS:
                    raise ValueError(f"There are not {size} different sequences for {stage}; choose smaller sizes.")
                continue
            taken.add(key)
            tokens.extend(sequence)
            target.extend(wanted)
            lengths.append(len(sequence))
            groups.append(group)
            repeated = 0
        packed = np.frombuffer(tokens, dtype=np.uint8), np.frombuffer(target, dtype=np.int16)
        return PackedTokens(self.vocabulary, self.outputs, self.groups, *packed, np.array(lengths), np.array(groups))

    @staticmethod
    def collate(items: list[TokenItem]) -> TokenBatch:
        """Pad sequences to the longest one."""
        return collate_tokens(items)
