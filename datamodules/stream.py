"""Endless streams of tokens: documents one after the other without a reset, cut into segments of equal length.

A recurrent model reads such a stream with truncated back-propagation: batch row r continues where row r of the previous
batch ended, so that its state can be carried on. Training streams have no end: row r of R rows is, for epochs p = 0, 1,
..., the documents permutation_p[r::R] one after the other, and segment k of it is tokens [k * L, (k + 1) * L).
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from algornn.datamodules.split_datamodule import (
    EpochOrder,
    Example,
    GroupedDataset,
    ResumableLoader,
    SplitDataModule,
    check_positive,
    generator,
)
from algornn.datamodules.tokens import NO_TARGET


class StreamBatch(NamedTuple):
    """A segment of L tokens of each of B streams.

    Attributes:
        tokens: [B, L] int64; 0 is padding.
        target: [B, L] int64, the next token; NO_TARGET where it does not count for the loss.
        mask: [B, L] bool, False at the padding after the end of an evaluation stream.
        asked: [B, L] bool, True where the target counts for the accuracy.
        group: [B, L] int64, index of the position's group in the data module's `groups`.
    """

    tokens: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    asked: torch.Tensor
    group: torch.Tensor


class StreamItem(NamedTuple):
    """A segment of one stream: the fields of a `StreamBatch`, each [L]."""

    tokens: NDArray[np.int64]
    target: NDArray[np.int64]
    mask: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    group: NDArray[np.int64]


class Documents(GroupedDataset):
    """Documents of tokens, one after the other.

    Args:
        vocabulary: The word of every token id; word 0 is padding.
        groups: Names of the groups.
        tokens: [m] ids of all documents.
        target: [m] next tokens, NO_TARGET where they do not count. The last one of a document is the first token of
            any other, so that it is right in every order.
        asked: [m] bool, where the target counts for the accuracy.
        lengths: [n] tokens of every document; their sum is m.
        group: [n] index into `groups`.

    Raises:
        ValueError: There is no token.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        groups: tuple[str, ...],
        tokens: NDArray[Any],
        target: NDArray[Any],
        asked: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        group: NDArray[np.int64],
    ) -> None:
        if len(tokens) == 0:
            raise ValueError("Expected at least one document, found none; the files hold too little.")
        self.vocabulary, self.groups = vocabulary, groups
        self.tokens, self.target, self.asked = tokens, target, asked
        self.lengths, self.group = lengths, group
        self.starts = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    def example(self, index: int) -> Example:
        """Document `index` in words, and all its targets that count for the loss."""
        run = slice(self.starts[index], self.starts[index] + self.lengths[index])
        target = tuple(self.vocabulary[i] for i in self.target[run].tolist() if i != NO_TARGET)
        source = tuple(self.vocabulary[i] for i in self.tokens[run].tolist())
        return Example(source, target, self.groups[self.group[index]])

    def segment(self, documents: NDArray[np.int64], start: int, length: int) -> StreamItem:
        """Tokens [start, start + length) of `documents` one after the other, padded at their end."""
        lengths = self.lengths[documents]
        ends = np.cumsum(lengths)
        few = slice(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, start + length) + 1)
        documents, lengths, begins = documents[few], lengths[few], (ends - lengths)[few]
        first = int(begins[0]) if len(begins) else start
        wanted = slice(start - first, start - first + length)
        # Where each token of these few documents lies in `tokens`.
        place = (np.arange(lengths.sum()) + np.repeat(self.starts[documents] - (begins - first), lengths))[wanted]
        item = StreamItem(
            tokens=np.zeros(length, dtype=np.int64),
            target=np.full(length, NO_TARGET, dtype=np.int64),
            mask=np.arange(length) < len(place),
            asked=np.zeros(length, dtype=np.bool_),
            group=np.zeros(length, dtype=np.int64),
        )
        item.tokens[: len(place)] = self.tokens[place]
        item.target[: len(place)] = self.target[place]
        item.asked[: len(place)] = self.asked[place]
        item.group[: len(place)] = np.repeat(self.group[documents], lengths)[wanted]
        return item


class TrainingStreams(GroupedDataset):
    """Segments of endless streams: item k * rows + r is segment k of row r.

    Args:
        documents: What the streams are made of.
        name: What the permutations depend on besides the epoch.
        rows: Number of streams.
        length: L, tokens in a segment.

    Raises:
        ValueError: There are fewer documents than rows.
    """

    def __init__(self, documents: Documents, name: tuple[object, ...], rows: int, length: int) -> None:
        if len(documents) < rows:
            raise ValueError(
                f"Expected at least one document for each of {rows} streams, found {len(documents)}; "
                "choose a smaller batch_size."
            )
        self.documents, self.name, self.rows, self.length = documents, name, rows, length
        self.groups = documents.groups
        self._permutations: dict[int, NDArray[np.int64]] = {}  # of a few epochs
        self._ends = [np.zeros(rows, dtype=np.int64)]  # [rows], tokens of every row before epoch 0, 1, ...

    def __len__(self) -> int:
        """Segments of one epoch; items beyond it belong to the next ones."""
        return len(self.documents.tokens) // self.length

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            self._permutations = dict(list(self._permutations.items())[-3:])
            self._permutations[epoch] = generator(*self.name, epoch).permutation(len(self.documents))
        return self._permutations[epoch]

    def _end(self, epoch: int) -> NDArray[np.int64]:
        """Tokens of every row up to the end of an epoch, [rows]."""
        while len(self._ends) < epoch + 2:
            lengths = self.documents.lengths[self._permutation(len(self._ends) - 1)]
            of_rows = np.bincount(np.arange(len(lengths)) % self.rows, weights=lengths, minlength=self.rows)
            self._ends.append(self._ends[-1] + of_rows.astype(np.int64))
        return self._ends[epoch + 1]

    def __getitem__(self, index: int) -> StreamItem:
        """Segment `index // rows` of row `index % rows`."""
        segment, row = divmod(index, self.rows)
        start = segment * self.length
        while self._ends[-1][row] <= start:
            self._end(len(self._ends) - 1)
        first = last = bisect_right(self._ends, start, key=lambda ends: ends[row]) - 1
        while self._end(last)[row] < start + self.length:
            last += 1
        chosen = [self._permutation(epoch)[row :: self.rows] for epoch in range(first, last + 1)]
        return self.documents.segment(np.concatenate(chosen), start - int(self._ends[first][row]), self.length)


class StreamOrder(EpochOrder):
    """The segments of one process: batch b of epoch p is segment p * len + b of rows rank, rank + world, ...

    Args:
        streams: The streams of all processes.
        batch_size: Rows per process.
        rank: This process.
        world: Number of processes.

    Raises:
        ValueError: There is not even one segment for every row.
    """

    def __init__(self, streams: TrainingStreams, batch_size: int, rank: int, world: int) -> None:
        if len(streams) < streams.rows:
            raise ValueError(
                f"Expected at least one segment of {streams.length} tokens for each of {streams.rows} streams, found "
                f"{len(streams.documents.tokens)} tokens in all; choose a smaller batch_size or segment_length."
            )
        super().__init__(streams.name, len(streams), batch_size, rank, world)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `batch` to the end of the epoch."""
        rows = self.batch_size * self.world
        for b in range(self.batch, len(self)):
            segment = self.epoch * len(self) + b
            yield [segment * rows + row for row in range(self.rank, rows, self.world)]


class EvaluationStreams(GroupedDataset):
    """All documents in their order as few streams that end: item k * rows + r is segment k of row r.

    The documents are cut between two of them, so that rows have about equally many tokens; short rows are padded.
    """

    def __init__(self, documents: Documents, rows: int, length: int) -> None:
        self.documents, self.rows, self.length = documents, rows, length
        self.groups = documents.groups
        ends = np.cumsum(documents.lengths)
        cuts = np.searchsorted(ends, np.arange(1, rows) * ends[-1] / rows)
        self._parts = np.split(np.arange(len(documents)), cuts)
        self._segments = max(-(-int(documents.lengths[part].sum()) // length) for part in self._parts)

    def __len__(self) -> int:
        """Number of segments of all rows."""
        return self._segments * self.rows

    def __getitem__(self, index: int) -> StreamItem:
        """Segment `index // rows` of row `index % rows`."""
        segment, row = divmod(index, self.rows)
        return self.documents.segment(self._parts[row], segment * self.length, self.length)


class StreamDataModule(SplitDataModule):
    """A benchmark on endless streams of tokens; batches are `StreamBatch`.

    Training: `batch_size` rows per process; row r of a batch continues where row r of the previous batch ended, also
    from one epoch to the next. W processes with batch size b see together what one process with batch size W * b sees.
    An epoch counts as many batches as there are full segments for all rows; rows reach the end of their documents at
    different times, and go on with those of the next permutation.

    Evaluation: all documents in their order as `evaluation_rows` streams, from the start, in segments; the last ones
    are padded. Every process evaluates all of it.

    Examples are documents: `source` is all tokens, `target` is those next tokens that count for the loss.

    Args:
        split: One of `splits`.
        data_dir: The benchmark's folder.
        batch_size: Streams per process in training.
        seed: Seed of the order of training.
        segment_length: L, tokens per batch and stream.
        evaluation_rows: Streams into which an evaluation stage is cut. The published protocols have 1.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a number below 1.

    Attributes:
        vocabulary: The word of every token id; word 0 is padding.
    """

    vocabulary: tuple[str, ...]
    ids_per_token = 1

    def __init__(
        self,
        split: str,
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        segment_length: int = 200,
        evaluation_rows: int = 1,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(segment_length=segment_length, evaluation_rows=evaluation_rows)
        self.segment_length, self.evaluation_rows = segment_length, evaluation_rows

    @property
    def vocab_size(self) -> int:
        """Number of token ids, padding included."""
        return len(self.vocabulary)

    @property
    def output_size(self) -> int:
        """Number of classes of the target: all token ids."""
        return self.vocab_size

    def dataset_of(self, stage: str) -> Documents:
        """Read or generate the documents of a stage."""
        raise NotImplementedError

    @staticmethod
    def collate(items: list[StreamItem]) -> StreamBatch:
        """Stack the rows."""
        return StreamBatch(*(torch.from_numpy(np.stack(rows)) for rows in zip(*items, strict=True)))

    def train_dataloader(self) -> ResumableLoader:
        """Segments of endless streams; they depend on the seed and the number of streams of all processes only."""
        documents: Any = self.dataset("train")
        rank, world = self._place()
        name = (self.benchmark, self.split, "order", self.seed)
        streams = TrainingStreams(documents, name, self.batch_size * world, self.segment_length)
        return ResumableLoader(streams, StreamOrder(streams, self.batch_size, rank, world), self.collate)

    def _evaluation_loader(self, stage: str) -> DataLoader[Any]:
        documents: Any = self.dataset(stage)
        streams = EvaluationStreams(documents, self.evaluation_rows, self.segment_length)
        # One replica, whatever the number of processes; Lightning leaves a DistributedSampler alone.
        everything: DistributedSampler[Any] = DistributedSampler(streams, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(streams, batch_size=self.evaluation_rows, sampler=everything, collate_fn=self.collate)
