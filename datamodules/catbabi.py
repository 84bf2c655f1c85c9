"""catbAbI: the stories of bAbI with their questions and answers in place, one after the other as an endless stream."""

import os
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from algornn.datamodules.babi import VOCABULARY, BAbI, parse
from algornn.datamodules.files import read_text
from algornn.datamodules.split_datamodule import check_flags, check_name, generator
from algornn.datamodules.story import PAD
from algornn.datamodules.stream import Documents, StreamDataModule
from algornn.datamodules.tokens import NO_TARGET

EOS = "<eos>"
_WORDS = (PAD, EOS, *VOCABULARY[1:])
_TASK_IDS = tuple(str(task) for task in range(1, 21))
_IDS = {word: i for i, word in enumerate(_WORDS)}
_ASK = _IDS["?"]


class CatBAbI(StreamDataModule):
    """Concatenated bAbI: the answer after every "?" of an endless stream (Schlag, Munkhdalai & Schmidhuber 2021).

    A story is a document: its statements, questions and answers in place, `<eos>` first; words in lower case, "." and
    "?" are words, an answer is one word ("milk,football" too). The stories of all tasks are mixed; no state is reset
    between them. `asked` is True where the input is "?": the published accuracy is over these positions. `group` is the
    task of every position. In mode "qm" the loss counts there too, in mode "lm" at every position.

    Two traits of the released code (arXiv:2011.07831, section 4.1) are kept, since the published numbers rest on them:
    the last story of every file is lost (`drop_last_story`), and the task numbers 1 to 20 are in the vocabulary but
    never occur (`task_ids_in_vocabulary`: 200 ids instead of 180; FWM then has 693,985 parameters).

    Deviations: stories go to the rows of a batch in turn, not to the row that has run out; streams go on over the
    epochs and do not end raggedly; the evaluation stories are in an order of our own, the same for all seeds.

    Files: those of `BAbI`. Where only a part of task 3's training file is at hand, it is used with one warning, and
    `incomplete` is ("qa3",).

    Args:
        split: "en-valid-10k" (9,000 training questions per task) or "en-valid" (900).
        data_dir: The folder that holds `en-valid-10k/` and `en-valid/` (or a folder `babi/` that does).
            None: `$ALGORNN_DATA/babi`, then the user cache, then a download (15.7 MB) to it.
        batch_size: Streams per process in training.
        seed: Seed of the order of training.
        tasks: A task or list of tasks, 1 to 20; None: all jointly.
        mode: "qm" (question mode) or "lm" (language-modelling mode).
        segment_length: Tokens per batch and stream.
        evaluation_rows: Streams into which an evaluation stage is cut; 1 is the published protocol.
        task_ids_in_vocabulary: Whether the vocabulary has 20 ids that never occur.
        drop_last_story: Whether the last story of every file is left out.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, task or mode, or a number below 1.

    Attributes:
        tasks: The chosen tasks.
        groups: "qa1" ... "qa20", those of the chosen tasks.
    """

    benchmark = "catbabi"
    splits = BAbI.splits

    def __init__(
        self,
        split: str = "en-valid-10k",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        tasks: int | Sequence[int] | None = None,
        mode: str = "qm",
        segment_length: int = 200,
        evaluation_rows: int = 1,
        task_ids_in_vocabulary: bool = True,
        drop_last_story: bool = True,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed, segment_length, evaluation_rows)
        check_flags(task_ids_in_vocabulary=task_ids_in_vocabulary, drop_last_story=drop_last_story)
        self._babi = BAbI(split, data_dir, tasks=tasks)
        self.tasks, self.groups = self._babi.tasks, self._babi.groups
        self.mode = check_name("mode", mode, ("qm", "lm"))
        self.drop_last_story = drop_last_story
        self.vocabulary = _WORDS + (_TASK_IDS if task_ids_in_vocabulary else ())

    @property
    def incomplete(self) -> tuple[str, ...]:
        """("qa3",) where only a part of task 3's training file is at hand."""
        return self._babi.incomplete

    def prepare_data(self) -> None:
        """Download the archive to the user cache if a file is at hand nowhere."""
        self._babi.prepare_data()

    def dataset_of(self, stage: str) -> Documents:
        """Read the files of a stage; evaluation stories are mixed once."""
        stories, group = [], []
        for index, task in enumerate(self.tasks):
            of_task = list(self._stories(task, stage))
            of_task = of_task[:-1] if self.drop_last_story else of_task
            stories += of_task
            group += [index] * len(of_task)
        order = generator(self.benchmark, self.split, stage, "mix", *self.tasks).permutation(len(stories))
        tokens = np.concatenate([stories[i] for i in order]) if stories else np.empty(0, dtype=np.uint8)
        # A story begins with <eos>, so the word after the last one of a story is that of any other.
        following = np.append(tokens[1:], _IDS[EOS]).astype(np.int16)
        asked = tokens == _ASK
        target = np.where(asked, following, NO_TARGET).astype(np.int16) if self.mode == "qm" else following
        lengths = np.array([len(stories[i]) for i in order], dtype=np.int64)
        return Documents(self.vocabulary, self.groups, tokens, target, asked, lengths, np.array(group)[order])

    def _stories(self, task: int, stage: str) -> Iterator["np.ndarray[tuple[int], np.dtype[np.uint8]]"]:
        """The ids of every story of a file."""
        path = self._babi.file(task, stage)
        story = array("B")
        for row, (begins, words, answer) in enumerate(parse(read_text(path), path), start=1):
            if begins and story:
                yield np.array(story, dtype=np.uint8)
            if begins:
                story = array("B", [_IDS[EOS]])
            try:
                story.extend([_IDS[word] for word in words])
                if answer is not None:
                    story.append(_IDS[answer])
            except KeyError as error:
                raise ValueError(
                    f"{path}, line {row}: the word {error} is not in the vocabulary of {len(_WORDS)} words; "
                    "this is not a file of bAbI QA v1.2 (English)."
                ) from None
        yield np.array(story, dtype=np.uint8)
