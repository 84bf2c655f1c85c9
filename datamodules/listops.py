"""ListOps: nested lists of digits under MIN, MAX, MED and SM, generated with as many of every depth, or official."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.files import cache_dir, check_sha256, download, find, read_text, search_dirs
from algornn.datamodules.labelled_sequences import LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.nested_lists import DIGITS, VOCABULARY, ListSampler, evaluate
from algornn.datamodules.sequence_sampling import DrawnStages, Sequences, draw_different, shares, take
from algornn.datamodules.split_datamodule import check_positive, generator

_FOLDER = "https://raw.githubusercontent.com/nyu-mll/spinn/{}/python/spinn/data/listops/{}"
URLS = tuple(
    _FOLDER.format(branch, "test_d20s.tsv")
    for branch in ("listops-release", "0e24a35c7be00e9f67814b0c846c3095cfe7632b")
)
SHA256 = "71335416e6896e8dd8dc69281c8ed9b37316382d05d3705d660461564e843840"
TRAIN_SIZE = 90_000  # lists of train_d20s.tsv
_OPERATOR = 0.3  # chance that an argument is a list
_LARGEST = 50  # size of a list
_DEPTHS = {"train": (2, 6), "val": (2, 6), "val_ood": (7, 7), "test": (2, 6), "longer": (8, 9)}
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_DEEPEST = 50  # dependency depth that a group is named for


def parse(lines: Iterable[str], path: Path) -> Sequences:
    """The lists of an official file: a digit, a tab, and a list with round brackets, which are left out.

    Args:
        lines: Lines of the file.
        path: Its name, for messages.

    Returns:
        The lists; the kind is the dependency depth.

    Raises:
        ValueError: A line is of another form, or its digit is not what the list comes to.
    """
    ids, lengths, label = bytearray(), [], []
    for row, line in enumerate(lines, start=1):
        wanted, _, words = line.partition("\t")
        try:
            fresh = bytes(_IDS[word] for word in words.translate({40: None, 41: None}).split())
            label.append(DIGITS.index(wanted))
        except (KeyError, ValueError):
            fresh = b""
        if not fresh:
            raise ValueError(
                f"{path}, line {row}: expected a digit, a tab and a list such as ( ( ( [MIN 6 ) 3 ) ] ), "
                f"got {line[:60]!r}; this is not a file of ListOps."
            )
        ids += fresh
        lengths.append(len(fresh))
    lists = Sequences(np.frombuffer(bytes(ids), np.uint8), np.array(lengths), np.array(label), np.array(label))
    return _checked(lists, path) if lengths else lists


def _checked(lists: Sequences, path: Path) -> Sequences:
    value, needed, bad = evaluate(lists.tokens, lists.lengths)
    if bad.any():
        raise ValueError(
            f"{path}, line {bad.argmax() + 1}: expected one list with a bracket ] for every operator and an argument "
            "at least; the file is damaged, fetch it again."
        )
    if (wrong := value != lists.label).any():
        row = wrong.argmax()
        raise ValueError(
            f"{path}, line {row + 1}: the list comes to {value[row]}, but its label is {lists.label[row]}; "
            "the file is damaged, fetch it again."
        )
    return lists._replace(kind=needed)


class ListOps(LabelledSequenceDataModule):
    """ListOps (Nangia and Bowman 2018): lists such as [MAX 2 9 [MIN 4 7 ] 0 ], each of which comes to a digit.

    Split "balanced" is that of Csordás, Irie and Schmidhuber, "The Neural Data Router" (arXiv:2110.07732): lists of at
    most 50 in size (1 for a digit, 3 for an operator), as many of every dependency depth, which is the number of levels
    that the value depends on (1 for a digit, so depth 6 is 5 nested operators). An argument is a list with chance 0.3;
    a list that is too shallow becomes an argument of another one.

    | stage | dependency depth | lists | published name |
    |---|---|---|---|
    | `train` | 2 to 6 | 1,000,000 | train |
    | `val` | 2 to 6 | 1,000 | |
    | `val_ood` | 7 | 1,000 | valid |
    | `test` | 2 to 6 | 1,000 | iid |
    | `longer` | 8 and 9 | 1,000 | depth ("test" in the paper) |

    No list occurs twice in all stages together; in the release test sets are not kept out of training. It sorts for
    the median in an order that depends on the version of NumPy where values are equal; here it is stable.

    Split "official" reads the files of Nangia and Bowman, of any length: `test` (10,000 lists) is downloaded where it
    is not at hand; `train` is the file train_d20s.tsv (90,000 lists), which has to be fetched by hand, less `val`,
    `test_size` lists of it. Every label is checked against the list, then the sha256 of `test` and the number of lists.

    Args:
        split: "balanced" or "official".
        data_dir: The folder of the official files; None: `$ALGORNN_DATA/listops`, the user cache, then a download.
        batch_size: Lists per batch and process.
        seed: Seed of the lists and of the order of training.
        train_size: Number of training lists ("balanced").
        test_size: Number of lists of every other stage ("official": of val).

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a size below 1.

    Attributes:
        groups: The dependency depth, "depth1", "depth2", ...
    """

    benchmark = "listops"
    splits = ("balanced", "official")
    vocabulary = VOCABULARY
    outputs = DIGITS

    def __init__(
        self,
        split: str = "balanced",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 512,
        seed: int = 0,
        train_size: int = 1_000_000,
        test_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(train_size=train_size, test_size=test_size)
        self.train_size, self.test_size = train_size, test_size
        generated = split == "balanced"
        self.further, self.further_val = (("longer",), ("val_ood",)) if generated else ((), ())
        self.ood = ("val_ood", "longer") if generated else ()
        self.groups = tuple(f"depth{depth}" for depth in range(1, (9 if generated else _DEEPEST) + 1))
        self._drawn = DrawnStages(self._draw)

    def dataset_of(self, stage: str) -> LabelledDataset:
        """Draw or read the lists of a stage."""
        tokens, lengths, label, needed = self._drawn(stage) if self.split == "balanced" else self._read(stage)
        group = np.minimum(needed, len(self.groups)) - 1
        return LabelledDataset(self.vocabulary, self.outputs, self.groups, tokens, lengths, label, group)

    def _draw(self, stage: str, taken: NDArray[np.uint64]) -> Sequences:
        size = self.train_size if stage == "train" else self.test_size
        least, most = _DEPTHS[stage]
        lists = ListSampler(_OPERATOR, generator(self.benchmark, self.split, stage, self.seed, size, self.test_size))

        def block(number: int) -> Sequences:
            trees = lists.trees(number, least, most, _LARGEST)
            return Sequences(trees.tokens, trees.lengths, trees.value, trees.needed)

        return draw_different(block, shares(size, dict.fromkeys(range(least, most + 1), size)), taken)

    def _read(self, stage: str) -> Sequences:
        """Read a file; val is a part of the training file, drawn by `seed`."""
        path = self._test_path() if stage == "test" else self._train_path()
        text = read_text(path)
        if not text.strip():
            raise ValueError(f"{path} is empty, expected the lists of ListOps; delete it and fetch it again.")
        lists = parse(text.splitlines(), path)
        if stage == "test":
            check_sha256(path, text, SHA256)
            return lists
        if len(lists.label) != TRAIN_SIZE:
            raise ValueError(
                f"{path} has {len(lists.label)} lists, expected the {TRAIN_SIZE} of the published training file; "
                "delete it and fetch it again."
            )
        order = generator(self.benchmark, self.split, "val", self.seed).permutation(len(lists.label))
        if self.test_size >= len(order):
            raise ValueError(
                f"test_size is the number of lists of val, which are taken from the {len(order)} of {path}, "
                f"expected fewer than that, not {self.test_size}."
            )
        return take(lists, np.sort(order[: self.test_size] if stage == "val" else order[self.test_size :]))

    def _test_path(self) -> Path:
        folders = search_dirs(self.benchmark, self.data_dir)
        if path := find(folders, "test_d20s.tsv"):
            return path
        try:
            return download(URLS, SHA256, cache_dir(self.benchmark) / "test_d20s.tsv")
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"test_d20s.tsv (or test_d20s.tsv.gz) is in none of {', '.join(map(str, folders))}, and {error} "
                "Put it into one of these folders or set data_dir to its folder."
            ) from error

    def _train_path(self) -> Path:
        folders = search_dirs(self.benchmark, self.data_dir)
        if path := find(folders, "train_d20s.tsv"):
            return path
        raise FileNotFoundError(
            f"train_d20s.tsv (or train_d20s.tsv.gz) is in none of {', '.join(map(str, folders))}; fetch it by hand "
            f"from {_FOLDER.format('listops-release', 'train_d20s.tsv')} (its checksum is not known, so it is not "
            "downloaded), or take split 'balanced', which needs no file."
        )
