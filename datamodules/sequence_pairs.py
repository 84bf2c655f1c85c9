"""Pairs of token sequences, source and target: what the sequence-to-sequence benchmarks have in common."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import Example, GroupedDataset, VocabularyDataModule
from algornn.datamodules.story import PAD

EOS = "<eos>"
SPECIAL = (PAD, EOS)  # ids 0 and 1 of every vocabulary of sources and of targets


class PairBatch(NamedTuple):
    """A batch of B pairs; sources are padded to the longest of the batch (S tokens), targets likewise (T tokens).

    Attributes:
        source: [B, S] int64, word ids that end with the id 1 of "<eos>"; 0 is padding.
        target: [B, T] int64, likewise, with ids of the target's own vocabulary.
        source_mask: [B, S] bool, True at real tokens, "<eos>" included.
        target_mask: [B, T] bool, likewise.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    source: torch.Tensor
    target: torch.Tensor
    source_mask: torch.Tensor
    target_mask: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class PairItem(NamedTuple):
    """One pair: `source` [S] and `target` [T] ids, both with "<eos>", the group's index, its own index."""

    source: NDArray[Any]
    target: NDArray[Any]
    group: int
    id: int


def collate_pairs(items: Sequence[PairItem]) -> PairBatch:
    """Pad sources and targets to the longest one."""
    source, source_mask = _padded([item.source for item in items])
    target, target_mask = _padded([item.target for item in items])
    group, index = torch.tensor([item.group for item in items]), torch.tensor([item.id for item in items])
    return PairBatch(source, target, source_mask, target_mask, group, index)


def _padded(rows: list[NDArray[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask)


class PairDataset(GroupedDataset):
    """Pairs of any lengths, kept as the ids of all sources and of all targets, one after the other.

    Args:
        vocabulary: The word of every id of a source; the first two are `SPECIAL`.
        outputs: The word of every id of a target; the first two are `SPECIAL`.
        groups: Names of the groups.
        pairs: The words of source and target, without "<eos>", and the group's index.

    Raises:
        ValueError: A word is in no vocabulary; the message names the word and the pair's number.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        outputs: Sequence[str],
        groups: tuple[str, ...],
        pairs: Iterable[tuple[Sequence[str], Sequence[str], int]],
    ) -> None:
        self.vocabulary, self.outputs, self.groups = tuple(vocabulary), tuple(outputs), groups
        self._source, self._target = _Rows(self.vocabulary), _Rows(self.outputs)
        self._group = array("h")
        for number, (source, target, group) in enumerate(pairs, 1):
            try:
                self._source.append(source)
                self._target.append(target)
            except KeyError as error:
                raise ValueError(f"pair {number} has the word {error}, which is not in the vocabulary.") from None
            self._group.append(group)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._group)

    def __getitem__(self, index: int) -> PairItem:
        """Pair `index`."""
        index = range(len(self))[index]
        return PairItem(self._source[index], self._target[index], self._group[index], index)

    def example(self, index: int) -> Example:
        """Pair `index` in words, without "<eos>"."""
        item = self[index]
        source = tuple(self.vocabulary[i] for i in item.source[:-1].tolist())
        target = tuple(self.outputs[i] for i in item.target[:-1].tolist())
        return Example(source, target, self.groups[item.group])


class _Rows:
    """Rows of ids of any lengths in one array; every row ends with "<eos>"."""

    def __init__(self, vocabulary: tuple[str, ...]) -> None:
        self._ids = {word: i for i, word in enumerate(vocabulary)}
        self._tokens, self._starts = array("h"), array("q", [0])

    def append(self, words: Sequence[str]) -> None:
        self._tokens.extend([self._ids[word] for word in words])
        self._tokens.append(SPECIAL.index(EOS))
        self._starts.append(len(self._tokens))

    def __getitem__(self, index: int) -> NDArray[Any]:
        return np.array(self._tokens[self._starts[index] : self._starts[index + 1]], dtype=np.int64)


class SequencePairDataModule(VocabularyDataModule):
    """A benchmark that maps token sequences to token sequences; batches are `PairBatch`.

    Attributes:
        vocabulary: The word of every id of a source; ids 0 and 1 are "<pad>" and "<eos>".
        outputs: The word of every id of a target; ids 0 and 1 are "<pad>" and "<eos>".
    """

    evaluation_batch = 64  # decoding pair by pair would take longer than training

    def dataset_of(self, stage: str) -> PairDataset:
        """Read or generate the pairs of a stage."""
        raise NotImplementedError

    def encode(self, *sources: str) -> PairBatch:
        """Turn sources of your own, words with spaces between them, into a batch whose targets are not known.

        Raises:
            ValueError: A word is not in the vocabulary.
        """
        ids = {word: i for i, word in enumerate(self.vocabulary)}
        unknown = sorted({word for source in sources for word in source.split() if word not in ids})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not in the vocabulary of {type(self).__name__}.")
        end = np.array([SPECIAL.index(EOS)])
        rows = [np.array([*(ids[word] for word in source.split()), *end]) for source in sources]
        return collate_pairs([PairItem(row, end, 0, number) for number, row in enumerate(rows)])

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Turn the ids of a target [T] into words, up to "<eos>"."""
        words = [self.outputs[i] for i in ids.tolist()]
        return words[: words.index(EOS)] if EOS in words else words

    @staticmethod
    def collate(items: list[PairItem]) -> PairBatch:
        """Pad sources and targets to the longest one."""
        return collate_pairs(items)


class WordsOfFiles(NamedTuple):
    """The words of all files of a benchmark, each once and in alphabetical order, after `SPECIAL`."""

    vocabulary: tuple[str, ...]
    outputs: tuple[str, ...]


class FilePairDataModule(SequencePairDataModule):
    """A benchmark whose words are those of its files, all stages together: no word of a test set is unknown.

    A subclass gives the sizes, which are so known without a file, and `pairs_of`. The words are collected when they
    are first needed and must then be as many; with `spare`, ids may be left over, whose words are "<spare 1>", ...

    Attributes:
        vocabulary: The word of every id of a source; reads the files.
        outputs: The word of every id of a target; reads the files.
        sizes: Number of source words and of target words in the files.
        spare: Whether `sizes` are upper bounds, because the exact numbers are not known without the files.
    """

    sizes: tuple[int, int]
    spare: bool = False
    _words: WordsOfFiles | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids of a source, "<pad>" and "<eos>" included."""
        return len(SPECIAL) + self.sizes[0]

    @property
    def output_size(self) -> int:
        """Number of ids of a target, "<pad>" and "<eos>" included."""
        return len(SPECIAL) + self.sizes[1]

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        """The word of every id of a source."""
        return self.words().vocabulary

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The word of every id of a target."""
        return self.words().outputs

    def pairs_of(self, stage: str) -> Iterable[tuple[Sequence[str], Sequence[str], int]]:
        """Read the words of source and target and the group's index of all pairs of a stage."""
        raise NotImplementedError

    def words(self) -> WordsOfFiles:
        """Collect the words of all stages.

        Raises:
            ValueError: There are not as many as the published files have.
        """
        if self._words is None:
            sources: set[str] = set()
            targets: set[str] = set()
            for stage in self.stages:
                for source, target, _ in self.pairs_of(stage):
                    sources.update(source)
                    targets.update(target)
            self._words = WordsOfFiles(self._filled(sources, self.sizes[0]), self._filled(targets, self.sizes[1]))
        return self._words

    def _filled(self, words: set[str], size: int) -> tuple[str, ...]:
        left = size - len(words)
        if left < 0 or (left and not self.spare):
            raise ValueError(
                f"The files of {self} have {len(words)} words where {'at most ' if self.spare else ''}{size} are "
                "expected; they are not the published ones, fetch them again."
            )
        return (*SPECIAL, *sorted(words), *(f"<spare {number}>" for number in range(1, left + 1)))

    def dataset_of(self, stage: str) -> PairDataset:
        """Read the pairs of a stage."""
        words = self.words()
        return PairDataset(words.vocabulary, words.outputs, self.groups, self.pairs_of(stage))
