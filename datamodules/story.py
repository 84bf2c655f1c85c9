"""Stories with questions as numbers: what BAbI and StoryWorld have in common.

A story is a list of sentences, a question is about all sentences before it. Every distinct sentence is kept once, as a
row of W word ids; a story is a run of row numbers, and all questions of one story share that run. 180,000 questions
take a few megabytes, and a batch is a table look-up.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import Example, GroupedDataset, SplitDataModule

PAD = "<pad>"


class StoryBatch(NamedTuple):
    """A batch of B questions, stories padded to the longest of the batch (T sentences of W words).

    Attributes:
        story: [B, T, W] int64, word ids; 0 is padding.
        query: [B, W] int64, the question.
        mask: [B, T] bool, True at real sentences.
        answer: [B] int64, id of the one-word answer.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    story: torch.Tensor
    query: torch.Tensor
    mask: torch.Tensor
    answer: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class StoryItem(NamedTuple):
    """One question: `story` [T, W] and `query` [W] word ids, the answer's id, the group's index, its own index."""

    story: NDArray[np.int64]
    query: NDArray[np.int64]
    answer: int
    group: int
    id: int


def collate_stories(items: Sequence[StoryItem]) -> StoryBatch:
    """Pad stories to the longest one."""
    lengths = np.array([len(item.story) for item in items])
    story = np.zeros((len(items), lengths.max(), len(items[0].query)), dtype=np.int64)
    for row, item in zip(story, items, strict=True):
        row[: len(item.story)] = item.story
    return StoryBatch(
        story=torch.from_numpy(story),
        query=torch.from_numpy(np.stack([item.query for item in items])),
        mask=torch.from_numpy(np.arange(story.shape[1]) < lengths[:, None]),
        answer=torch.tensor([item.answer for item in items]),
        group=torch.tensor([item.group for item in items]),
        id=torch.tensor([item.id for item in items]),
    )


class StoryDataset(GroupedDataset):
    """Questions about stories. Filled sentence by sentence (`begin`, `tell`, `ask`), then read by index.

    Args:
        vocabulary: All words; word 0 is padding.
        groups: Names of the groups.
        sentence_length: W, words in the longest sentence, final punctuation included.
        max_sentences: A question sees only the last so many sentences; None: all.

    Raises:
        ValueError: By `tell` and `ask`, for a word outside the vocabulary, a sentence of more than W words, or a
            question about an empty story.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        groups: tuple[str, ...],
        sentence_length: int,
        max_sentences: int | None = None,
    ) -> None:
        self.vocabulary, self.groups, self.sentence_length = vocabulary, groups, sentence_length
        self.max_sentences = max_sentences
        self._word_ids = {word: i for i, word in enumerate(vocabulary)}
        self._sentence_ids: dict[tuple[str, ...], int] = {}
        self._rows: list[list[int]] = []  # distinct sentences
        self._told: list[int] = []  # sentences of all stories, one after the other
        self._begin = 0  # where the current story begins in `_told`
        self._questions: list[tuple[int, int, int, int, int]] = []  # start and stop in `_told`, query, answer, group
        self._arrays: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The word of every answer's id."""
        return self.vocabulary

    def begin(self) -> None:
        """Begin a new story."""
        self._begin = len(self._told)

    def tell(self, words: tuple[str, ...]) -> None:
        """Add a sentence to the current story."""
        self._told.append(self._sentence(words))

    def ask(self, words: tuple[str, ...], answer: str, group: int) -> None:
        """Add a question about the current story so far."""
        start, stop = self._begin, len(self._told)
        if start == stop:
            raise ValueError(f"the question {' '.join(words)!r} has no sentence of its story before it")
        if self.max_sentences is not None:
            start = max(start, stop - self.max_sentences)
        self._questions.append((start, stop, self._sentence(words), self._word(answer), group))
        self._arrays = None

    def _word(self, word: str) -> int:
        try:
            return self._word_ids[word]
        except KeyError:
            raise ValueError(f"the word {word!r} is not in the vocabulary of {len(self.vocabulary)} words") from None

    def _sentence(self, words: tuple[str, ...]) -> int:
        known = self._sentence_ids.get(words)
        if known is not None:
            return known
        padding = self.sentence_length - len(words)
        if padding < 0:
            raise ValueError(f"a sentence has {len(words)} words, expected at most {self.sentence_length}")
        self._rows.append([*map(self._word, words), *[0] * padding])
        return self._sentence_ids.setdefault(words, len(self._rows) - 1)

    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct sentences [n, W] and the sentences of all stories [m]."""
        if self._arrays is None:
            self._arrays = np.array(self._rows, dtype=np.int64), np.array(self._told, dtype=np.int64)
        return self._arrays

    def __len__(self) -> int:
        """Number of questions."""
        return len(self._questions)

    def __getitem__(self, index: int) -> StoryItem:
        """Question `index`."""
        index = range(len(self))[index]
        start, stop, query, answer, group = self._questions[index]
        rows, told = self._tables()
        return StoryItem(rows[told[start:stop]], rows[query], answer, group, index)

    def example(self, index: int) -> Example:
        """Question `index` in words: the sentences of its story, then the question, as one sequence of tokens."""
        item = self[index]
        ids = (*item.story.reshape(-1).tolist(), *item.query.tolist())
        source = tuple(self.vocabulary[i] for i in ids if i)
        return Example(source, (self.vocabulary[item.answer],), self.groups[item.group])


class StoryDataModule(SplitDataModule):
    """A benchmark of questions about stories with one-word answers; batches are `StoryBatch`.

    Attributes:
        vocabulary: All words of the benchmark; word 0 is padding.
        sentence_length: W, words in the longest sentence, final punctuation included.
    """

    vocabulary: tuple[str, ...]
    sentence_length: int

    def __init__(
        self, split: str, data_dir: str | os.PathLike[str] | None = None, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)

    @property
    def vocab_size(self) -> int:
        """Number of words, padding included."""
        return len(self.vocabulary)

    def dataset_of(self, stage: str) -> StoryDataset:
        """Read or generate the stories of a stage."""
        raise NotImplementedError

    @staticmethod
    def collate(items: list[StoryItem]) -> StoryBatch:
        """Pad stories to the longest one."""
        return collate_stories(items)
