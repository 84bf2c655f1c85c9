"""Token sequences with one label each: what the classification benchmarks have in common."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import Example, GroupedDataset, VocabularyDataModule


class LabelledBatch(NamedTuple):
    """A batch of B sequences, padded to the longest of the batch (T tokens).

    Attributes:
        tokens: [B, T] int64, word ids; 0 is padding.
        label: [B] int64, the class of the sequence.
        mask: [B, T] bool, True at real tokens.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    tokens: torch.Tensor
    label: torch.Tensor
    mask: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class LabelledItem(NamedTuple):
    """One sequence: `tokens` [T] ids, its label, the group's index, its own index."""

    tokens: NDArray[Any]
    label: int
    group: int
    id: int


def collate_labelled(items: Sequence[LabelledItem]) -> LabelledBatch:
    """Pad sequences to the longest one."""
    lengths = np.array([len(item.tokens) for item in items])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, dtype=np.int64)
    tokens[mask] = np.concatenate([item.tokens for item in items])
    return LabelledBatch(
        tokens=torch.from_numpy(tokens),
        label=torch.tensor([item.label for item in items]),
        mask=torch.from_numpy(mask),
        group=torch.tensor([item.group for item in items]),
        id=torch.tensor([item.id for item in items]),
    )


class LabelledDataset(GroupedDataset):
    """Labelled sequences of any lengths, one after the other in one array.

    Args:
        vocabulary: The word of every token id; word 0 is padding.
        outputs: The word of every class.
        groups: Names of the groups.
        tokens: [m] ids of all sequences.
        lengths: [n] length of every sequence; their sum is m.
        label: [n] class of every sequence.
        group: [n] index into `groups`.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        outputs: tuple[str, ...],
        groups: tuple[str, ...],
        tokens: NDArray[Any],
        lengths: NDArray[Any],
        label: NDArray[Any],
        group: NDArray[Any],
    ) -> None:
        self.vocabulary, self.outputs, self.groups = vocabulary, outputs, groups
        self._tokens, self._label, self._group = tokens, label, group
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._label)

    def __getitem__(self, index: int) -> LabelledItem:
        """Sequence `index`."""
        index = range(len(self))[index]
        tokens = self._tokens[self._starts[index] : self._starts[index + 1]]
        return LabelledItem(tokens, int(self._label[index]), int(self._group[index]), index)

    def example(self, index: int) -> Example:
        """Sequence `index` in words, and the word of its class."""
        item = self[index]
        source = tuple(self.vocabulary[i] for i in item.tokens.tolist())
        return Example(source, (self.outputs[item.label],), self.groups[item.group])


class LabelledSequenceDataModule(VocabularyDataModule):
    """A benchmark of token sequences with one class each; batches are `LabelledBatch`.

    Attributes:
        vocabulary: The word of every token id; word 0 is padding.
        outputs: The word of every class.
    """

    def dataset_of(self, stage: str) -> LabelledDataset:
        """Read or generate the sequences of a stage."""
        raise NotImplementedError

    @staticmethod
    def collate(items: list[LabelledItem]) -> LabelledBatch:
        """Pad sequences to the longest one."""
        return collate_labelled(items)
