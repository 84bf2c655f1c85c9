"""bAbI QA v1.2: twenty question-answering tasks over short stories, with a systematic test set of swapped names."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from algornn.datamodules.files import cache_dir, download, find, read_text, search_dirs, unpack
from algornn.datamodules.split_datamodule import check_whole
from algornn.datamodules.story import PAD, StoryDataModule, StoryDataset

URLS = ("http://www.thespermwhale.com/jaseweston/babi/tasks_1-20_v1-2.tar.gz",)
SHA256 = "0364ebde659f14d11bc21744516c5ec49d3d06cb692733f66680771244998898"
ARCHIVE_FOLDER = "tasks_1-20_v1-2"

# Every word and answer of the twenty tasks, both variants. Lists of objects and paths are single answers.
_ALL_WORDS = """
. ? a above afraid after afternoon afterwards and antoine apple apple,football apple,football,milk apple,milk
apple,milk,football are back bathroom bedroom before below bernhard bigger bill blue bored box brian carrying cat cats
chest chocolate chocolates cinema color container daniel did discarded do does down dropped e,e e,n e,s east either
emily evening fit fits following football football,apple football,apple,milk football,milk football,milk,apple fred
frog from garden gave gertrude get give go got grabbed gray green greg hallway handed he how hungry in inside is jason
jeff jessica john journeyed julie julius kitchen left lily lion longer many mary maybe mice milk milk,apple
milk,apple,football milk,football milk,football,apple morning mouse moved n,e n,n n,w no none north not nothing objects
of office one or pajamas park passed picked pink put received rectangle red rhino right s,e s,s s,w sandra school she
sheep south sphere square suitcase sumit swan than that the then there they thirsty this three tired to took travelled
triangle two up w,n w,s w,w was went west what where white who why will winona wolf wolves yann yellow yes yesterday you
"""
VOCABULARY = (PAD, *_ALL_WORDS.split())

# sys-bAbI: names that a task never uses take the place of those that it uses.
_FORWARD = {"daniel": "bill", "john": "fred", "sandra": "julie"}
_BACKWARD = {new: old for old, new in _FORWARD.items()}
SWAPPED_NAMES = {
    **dict.fromkeys((1, 2, 3, 6, 7, 8, 9, 11, 12, 13), _FORWARD),
    **dict.fromkeys((5, 10, 14), _BACKWARD),
}

_WORDS = r"[A-Za-z]+(?: [A-Za-z]+)*"
_STATEMENT = re.compile(rf"({_WORDS})\.")
_QUESTION = re.compile(rf"({_WORDS})\? ?\t([A-Za-z]+(?:,[A-Za-z]+)*)\t[0-9]+(?: [0-9]+)*")
_FILE_NAMES = {"train": "train", "val": "valid", "test": "test", "sys": "test"}


class Line(NamedTuple):
    """A line of a bAbI file, in lower case. A question has an answer; `begins` at the first line of a story."""

    begins: bool
    words: tuple[str, ...]
    answer: str | None


def parse(text: str, path: Path) -> Iterator[Line]:
    r"""The lines of a bAbI file.

    A line is `<id> <statement>.` or `<id> <question>?\t<answer>\t<ids of supporting lines>`; ids count from 1 in every
    story.

    Raises:
        ValueError: A line does not fit; the message has the file and the line's number.
    """
    known: dict[str, tuple[tuple[str, ...], str | None]] = {}
    previous = 0
    for row, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        number, _, rest = line.partition(" ")
        if rest not in known:
            if not (match := _STATEMENT.fullmatch(rest) or _QUESTION.fullmatch(rest)):
                raise _bad_line(path, row, line, "'<id> <statement>.' or '<id> <question>?<TAB><answer><TAB><ids>'")
            mark = "." if match.re is _STATEMENT else "?"
            answer = match[2].lower() if mark == "?" else None
            known[rest] = (*match[1].lower().split(), mark), answer
        if number not in ("1", str(previous + 1)):
            raise _bad_line(path, row, line, f"line id {previous + 1}" + (" or 1" if previous else ""))
        previous = int(number)
        yield Line(number == "1", *known[rest])
    if not text.endswith("\n"):
        raise _bad_line(path, row, line, "a line feed at the end of the last line")


def _bad_line(path: Path, row: int, line: str, expected: str) -> ValueError:
    return ValueError(
        f"{path}, line {row}: expected {expected}, found {line[:80]!r}; "
        "the file is damaged, delete it and fetch it again."
    )


class BAbI(StoryDataModule):
    """bAbI QA v1.2 (Weston et al. 2015, arXiv:1502.05698), prepared as for TPR-RNN (Schlag & Schmidhuber 2018).

    Every question is one example: its story is all statements before it, without the earlier questions. Words are in
    lower case, `.` and `?` are words, the answer is one class over the vocabulary (lists such as "milk,football" too).
    The last 70 sentences of a story are kept, 130 when task 3 is the only task. Supporting facts are not used.

    The vocabulary of 178 words (and padding) and W = 12 are always those of the twenty tasks together, also when only
    some of them are chosen, so that every task and split fits every model.

    Stages: train, val, test and `sys`, the systematic test set of Park et al. (AID, ICLR 2024): the test set with the
    names daniel, john, sandra replaced by bill, fred, julie in tasks 1, 2, 3, 6, 7, 8, 9, 11, 12 and 13, and the other
    way round in tasks 5, 10 and 14; tasks 4 and 15 to 20 are as in test.

    Files (CC BY 3.0, Facebook): `<folder>/<split>/qa<task>_{train,valid,test}.txt`, plain or `.gz`. Where
    `en-valid-10k/qa3_train.txt` is not at hand but `qa3_train.first185stories.txt` is, that part is used with one
    warning, and `incomplete` is ("qa3",).

    Args:
        split: "en-valid-10k" (9,000 training questions per task) or "en-valid" (900).
        data_dir: The folder that holds `en-valid-10k/` and `en-valid/` (or a folder `babi/` that does).
            None: `$ALGORNN_DATA/babi`, then the user cache, then a download (15.7 MB) to it.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training.
        tasks: A task or list of tasks, 1 to 20; None: all jointly.
        max_sentences: Sentences kept at the end of a story; None: 70, or 130 if task 3 is the only one.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split or task, or `max_sentences` below 1.

    Attributes:
        tasks: The chosen tasks.
        groups: "qa1" ... "qa20", those of the chosen tasks.
    """

    benchmark = "babi"
    mean_over = "groups"
    splits = ("en-valid", "en-valid-10k")
    further = ("sys",)
    ood = ("sys",)
    vocabulary = VOCABULARY
    sentence_length = 12

    def __init__(
        self,
        split: str = "en-valid-10k",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        tasks: int | Sequence[int] | None = None,
        max_sentences: int | None = None,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        chosen = range(1, 21) if tasks is None else tasks if isinstance(tasks, Sequence) else [tasks]
        if not chosen or not all(isinstance(task, Integral) and 1 <= task <= 20 for task in chosen):
            raise ValueError(f"tasks are numbers from 1 to 20, one or a list or none for all, not {tasks!r}.")
        self.tasks = tuple(sorted({int(task) for task in chosen}))
        check_whole(max_sentences=max_sentences or 0)
        if max_sentences is not None and max_sentences < 1:
            raise ValueError(
                f"max_sentences must be at least 1 (or none for the published limit), not {max_sentences}."
            )
        self.groups = tuple(f"qa{task}" for task in self.tasks)
        self.max_sentences = max_sentences or (130 if self.tasks == (3,) else 70)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """("qa3",) where only a part of task 3's training file is at hand."""
        partial = 3 in self.tasks and self._find(3, "train") is None and self._find(3, "train.first185stories")
        return ("qa3",) if partial else ()

    def prepare_data(self) -> None:
        """Download the archive to the user cache if a file is at hand nowhere."""
        for task in self.tasks:
            for part in ("train", "valid", "test"):
                self._path(task, part)

    def dataset_of(self, stage: str) -> StoryDataset:
        """Read the files of a stage."""
        dataset = StoryDataset(self.vocabulary, self.groups, self.sentence_length, self.max_sentences)
        for group, task in enumerate(self.tasks):
            swapped = SWAPPED_NAMES.get(task, {}) if stage == "sys" else {}
            self._read(self.file(task, stage), dataset, group, swapped)
        return dataset

    def file(self, task: int, stage: str) -> Path:
        """The file of a task and stage, downloaded if need be; warns where only a part of it is at hand."""
        path = self._path(task, _FILE_NAMES[stage])
        if "first185" in path.name:
            warnings.warn(f"Training on the first 185 of task 3's 1,800 stories: only {path} is at hand.", stacklevel=3)
        return path

    @staticmethod
    def _read(path: Path, dataset: StoryDataset, group: int, swapped: dict[str, str]) -> None:
        for row, (begins, words, answer) in enumerate(parse(read_text(path), path), start=1):
            if begins:
                dataset.begin()
            if swapped:
                words = tuple(swapped.get(word, word) for word in words)
            try:
                if answer is None:
                    dataset.tell(words)
                else:
                    dataset.ask(words, swapped.get(answer, answer), group)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {row}: {error}; this is not a file of bAbI QA v1.2 (English)."
                ) from error

    def _find(self, task: int, part: str) -> Path | None:
        return find(search_dirs(self.benchmark, self.data_dir), f"{self.split}/qa{task}_{part}.txt")

    def _path(self, task: int, part: str) -> Path:
        """The file of a task, downloaded if need be."""
        at_hand = self._find(task, part) or (
            self._find(3, "train.first185stories") if (task, part) == (3, "train") else None
        )
        if at_hand is None:
            self._download(f"{self.split}/qa{task}_{part}.txt")
            at_hand = self._find(task, part)
        if at_hand is None:
            raise FileNotFoundError(
                f"qa{task}_{part}.txt is not in the downloaded archive; fetch it by hand into data_dir."
            )
        return at_hand

    def _download(self, missing: str) -> None:
        folder = cache_dir(self.benchmark)
        archive = folder / f"{ARCHIVE_FOLDER}.tar.gz"
        try:
            download(URLS, SHA256, archive)
        except (FileNotFoundError, ValueError) as error:
            looked = ", ".join(str(path) for path in search_dirs(self.benchmark, self.data_dir))
            raise type(error)(
                f"{missing} (or {missing}.gz) is in none of {looked}, and {error} "
                f"Put it into one of these folders or set data_dir to the folder that holds {self.split}/."
            ) from error
        unpack(archive, ARCHIVE_FOLDER, folder)
        archive.unlink()
