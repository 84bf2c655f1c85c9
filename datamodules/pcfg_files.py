"""The published files of PCFG SET: their names, checksums and lines."""

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from algornn.datamodules.files import check_sha256, find, obtain, read_text, search_dirs
from algornn.datamodules.pcfg_language import Line, Words, interpret

URL = (
    "https://raw.githubusercontent.com/i-machine-think/am-i-compositional/4f75bdd78889150dd78e90bbb7ddec840204c159/"
    "data/pcfgset/"
)
SHA256 = {  # of the .src and the .tgt file, or of the .tsv file
    "localism/unrolled_test": ("8327c896920472a2a03d5d82b9a6f918d37badb18e79c973b5de04a1e24a0c3f",),
    "localism/increasing_string_length/increasing_length": (
        "ec342fbc5841aa1770eeba4db97820cc70dcdc6c1a727d411adf411174d321c7",
        "68a8663013caa3032cf9bcbfb260d1289ce7c386c5e7c48d4d2217bb9647b243",
    ),
    "overgeneralisation/test_pcfg_ratio=0.0001_exception": (
        "30ec0fb2b6a353db6c4eb9afcf2cd13fa356d92e360fd9bc334c02783086bd39",
        "bf2466a1ebd2966d5409ba8bf57fa5ff13d9594f342f596478f2b1369759cac4",
    ),
    "overgeneralisation/test_pcfg_ratio=0.0001_original": (
        "30ec0fb2b6a353db6c4eb9afcf2cd13fa356d92e360fd9bc334c02783086bd39",
        "04745bd663c4746cfb06d9df4d92916fea8b8d4639ee6b8ffc7cd4ee1e1dd340",
    ),
    "overgeneralisation/test_pcfg_ratio=0.0005_exception": (
        "f8af90fd9540c4ea238d5a85ec36ead1c83a51bdf92cb75e6b20f012aee76f9e",
        "2443a3538aebeebc6f778463feb055b9eb5abe7259ad2c77013641dbdea6b101",
    ),
    "overgeneralisation/test_pcfg_ratio=0.0005_original": (
        "f8af90fd9540c4ea238d5a85ec36ead1c83a51bdf92cb75e6b20f012aee76f9e",
        "633055f94c6b7fa83224a1f8833a514e685b1cd92a743f4656751591a03e7a28",
    ),
    "overgeneralisation/test_pcfg_ratio=0.001_exception": (
        "ec5f4bdf1fb4e76b24004c1e27fdc453fdd2576f1fcaab28c28dc17bb40bfc07",
        "4b2dbe250003d0133c86209319b9a22c978a8b94cba59feda3d7e5ebb8822cd4",
    ),
    "overgeneralisation/test_pcfg_ratio=0.001_original": (
        "ec5f4bdf1fb4e76b24004c1e27fdc453fdd2576f1fcaab28c28dc17bb40bfc07",
        "75536c3940f51457068c0ccbf66ab8e38b1f39325fff07aec3e963d4f6056c49",
    ),
    "overgeneralisation/test_pcfg_ratio=0.005_exception": (
        "8d6587cb649ee4e48a3ecce4530fd6f17c4d6dc9d7d5a03788e08cf504ae4ed4",
        "ca565b2b477c6c2c7adb0274aeefaeff9bd685e8fbfccc833053d8d904d874e9",
    ),
    "overgeneralisation/test_pcfg_ratio=0.005_original": (
        "8d6587cb649ee4e48a3ecce4530fd6f17c4d6dc9d7d5a03788e08cf504ae4ed4",
        "9ca7900be9df35f6aa4c4fc1284c7cd492cbd5f5011ff9ee7966426f9c51a303",
    ),
    "pcfgset/dev": (
        "67bd466f77b7acb9863ddbbbacb4784848bdfb9094c40e2f94955aff7cb75d0a",
        "95648e697cb86a8724d71d6e841f37eea27d15951091b134538906bfbf0d14d1",
    ),
    "pcfgset/test": (
        "65af9357dc169a22629456be7cf43e97e275e076db10d72202d5389be7d8c0b2",
        "7d23524995eb28a4726b3f1ffc11daec8f13692f7f804f4be20ca1a25c941517",
    ),
    "productivity/test": (
        "ba03bc5c468e955d537c06ca02c900c431a16f37b8b3f02e5eaa8a93434a3f73",
        "55704b1e887ffeffb104fc1ba4bc44dd6b0e95e34a355bd07d86881fd226a254",
    ),
    "substitutivity/equally_distributed/test": (
        "21a135fb2e7c828bc264d467fd2353a51a411bffa20416c381290bce500e7899",
        "71c5545a9fed0792389b18d470d78c310d578cdf4fa09913f481983f5dbdd29d",
    ),
    "substitutivity/equally_distributed/test_twin": (
        "b6111cb54df3f9c44bca73ee97a89006e8dc1fae91803017203ce5623ffe1e40",
        "71c5545a9fed0792389b18d470d78c310d578cdf4fa09913f481983f5dbdd29d",
    ),
    "substitutivity/primitive/test": (
        "21a135fb2e7c828bc264d467fd2353a51a411bffa20416c381290bce500e7899",
        "71c5545a9fed0792389b18d470d78c310d578cdf4fa09913f481983f5dbdd29d",
    ),
    "substitutivity/primitive/test_twin": (
        "b6111cb54df3f9c44bca73ee97a89006e8dc1fae91803017203ce5623ffe1e40",
        "71c5545a9fed0792389b18d470d78c310d578cdf4fa09913f481983f5dbdd29d",
    ),
    "systematicity/test": (
        "9c47ccf869899e65c2c2cf530403c8fefdcb5de57787c9ff029dc7d9b8018941",
        "2896474cdeb151929bd85ed10aeeca37866e11dafa00f62e1660804f0dfc5a8a",
    ),
}
DEV, UNROLLED = "pcfgset/dev", "localism/unrolled_test"


class Published(NamedTuple):
    """What a split has of the published files.

    Attributes:
        train: The training lines, a path without `.src` and `.tgt`.
        size: Number of training lines.
        tests: The lines of every test stage, likewise.
    """

    train: str
    size: int
    tests: dict[str, str]


def _synonymous(condition: str, size: int) -> Published:
    folder = f"substitutivity/{condition}"
    return Published(f"{folder}/train", size, {"test": f"{folder}/test", "twin": f"{folder}/test_twin"})


def _exceptional(ratio: str, size: int) -> Published:
    folder, name = "overgeneralisation", f"pcfg_ratio={ratio}"
    tests = {"test": f"{folder}/test_{name}_original", "exception": f"{folder}/test_{name}_exception"}
    return Published(f"{folder}/train_{name}", size, tests)


SPLITS = {
    "pcfgset": Published("pcfgset/train", 82_622, {"test": "pcfgset/test"}),
    "systematicity": Published("systematicity/train", 82_168, {"test": "systematicity/test"}),
    "productivity": Published("productivity/train", 81_010, {"test": "productivity/test"}),
    "substitutivity_equally_distributed": _synonymous("equally_distributed", 82_621),
    "substitutivity_primitive": _synonymous("primitive", 82_953),
    "localism": Published(
        "pcfgset/train",
        82_622,
        {"test": UNROLLED, "increasing_length": "localism/increasing_string_length/increasing_length"},
    ),
    "overgeneralisation_0.0001": _exceptional("0.0001", 82_287),
    "overgeneralisation_0.0005": _exceptional("0.0005", 82_337),
    "overgeneralisation_0.001": _exceptional("0.001", 82_403),
    "overgeneralisation_0.005": _exceptional("0.005", 82_832),
}


class Step(NamedTuple):
    """A step of an unrolled computation.

    Attributes:
        source: Words; "*3" stands for what the step with that name gave.
        name: "*1", "*2", ..., or "" at the last step.
    """

    source: tuple[str, ...]
    name: str


class PCFGFiles:
    """Reads published files; every target must be what the interpreter gives for its source.

    Args:
        data_dir: The folder that holds `pcfgset/`, `systematicity/`, ..., or None (see `algornn.datamodules.files`).
    """

    benchmark = "pcfgset"

    def __init__(self, data_dir: str | os.PathLike[str] | None) -> None:
        self.data_dir = data_dir

    def obtain(self, path: str) -> list[Path]:
        """The files of some published lines, found or downloaded."""
        named = zip(_names(path), SHA256[path], strict=True)
        return [obtain(self.benchmark, name, URL + name, sha256, self.data_dir) for name, sha256 in named]

    def train(self, split: str) -> tuple[Path, Path] | None:
        """The two training files of a split, if both are in a folder; they are never downloaded."""
        folders = search_dirs(self.benchmark, self.data_dir)
        source, target = (find(folders, name) for name in _names(SPLITS[split].train))
        return (source, target) if source and target else None

    def train_lines(self, split: str) -> list[Line]:
        """The published training lines of a split.

        Raises:
            FileNotFoundError: They are not in a folder.
            ValueError: A target is wrong, or there are not as many lines as published.
        """
        files = self.train(split)
        if files is None:
            raise FileNotFoundError(
                f"{SPLITS[split].train}.src and .tgt are in none of the folders; fetch them by hand."
            )
        lines = _paired(*files, read_text(files[0]), read_text(files[1]), split.startswith("overgeneralisation"))
        if len(lines) != SPLITS[split].size:
            raise ValueError(
                f"{files[0]} has {len(lines)} lines, expected the {SPLITS[split].size} of the published training set; "
                "fetch it again, or take it away to train on generated lines."
            )
        return lines

    def lines(self, path: str) -> list[Line]:
        """The lines of a published development or test set.

        Raises:
            FileNotFoundError: A file is nowhere.
            ValueError: A line does not fit, or the files are not the published ones.
        """
        if path == UNROLLED:
            return [(source, target) for label, source, target in self.rows() if label == "original"]
        files = self.obtain(path)
        texts = [read_text(file) for file in files]
        lines = _paired(files[0], files[1], texts[0], texts[1], path.endswith("exception"))
        for file, text, sha256 in zip(files, texts, SHA256[path], strict=True):
            check_sha256(file, text, sha256)
        return lines

    def rows(self) -> Iterator[tuple[str, Words, Words]]:
        """The rows of the unrolled test of localism: "unrolled" or "original", source, target."""
        (file,) = self.obtain(UNROLLED)
        text = read_text(file)
        for row, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            columns = line.split("\t")
            if len(columns) != 3 or columns[0] not in ("unrolled", "original") or not all(map(str.strip, columns)):
                raise _bad_line(
                    file, row, "expected 'unrolled' or 'original', a tab, a source, a tab and a target", line
                )
            source, target = columns[1].split(), columns[2].split()
            if columns[0] == "original":
                _check(file, row, source, target, exceptions=False)
            yield columns[0], source, target
        check_sha256(file, text, *SHA256[UNROLLED])

    def unrolled(self) -> list[tuple[Step, ...]]:
        """For every line of the test of localism, its computation function by function."""
        lines: list[tuple[Step, ...]] = []
        steps: list[Step] = []
        for label, source, target in self.rows():
            if label == "original":
                lines.append(tuple(steps))
                steps = []
            else:
                steps.append(Step(tuple(source), target[0] if target[0].startswith("*") else ""))
        return lines


def _names(path: str) -> tuple[str, ...]:
    return (f"{path}.tsv",) if path == UNROLLED else (f"{path}.src", f"{path}.tgt")


def _paired(source: Path, target: Path, sources: str, targets: str, exceptions: bool) -> list[Line]:
    """The lines of a source and a target file."""
    rows = (text.removesuffix("\n").split("\n") for text in (sources, targets))
    lines: list[Line] = []
    for row, (left, right) in enumerate(zip_longest(*rows), start=1):
        if left is None or right is None:
            longer, shorter = (source, target) if right is None else (target, source)
            raise ValueError(
                f"{longer}, line {row}: expected a line for it in {shorter}, which ends before; fetch both again."
            )
        line = left.split(), right.split()
        _check(source, row, *line, exceptions)
        lines.append(line)
    return lines


def _check(path: Path, row: int, source: Words, target: Words, exceptions: bool) -> None:
    try:
        meaning = interpret(source, exceptions)
    except ValueError as error:
        raise _bad_line(path, row, str(error), " ".join(source)) from None
    except RecursionError:
        raise _bad_line(path, row, "expected fewer functions inside each other", " ".join(source)) from None
    if meaning != target:
        raise _bad_line(path, row, f"expected the target {' '.join(target)[:80]!r}, its meaning", " ".join(source))


def _bad_line(path: Path, row: int, problem: str, line: str) -> ValueError:
    return ValueError(
        f"{path}, line {row}: {problem}, in {line[:80]!r}; the file is damaged, delete it and fetch it again."
    )
