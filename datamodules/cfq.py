"""CFQ: questions about films to SPARQL queries, with splits of maximum compound divergence."""

import gzip
import io
import json
import os
import string
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TextIO

from algornn.datamodules.files import DAMAGE, cache_dir, damaged, download, find, read_text, search_dirs
from algornn.datamodules.sequence_pairs import FilePairDataModule
from algornn.datamodules.split_datamodule import check_flags, check_positive, generator

URLS = ("https://storage.googleapis.com/cfq_dataset/cfq.tar.gz",)
SHA256 = "979d719271eae12611643b89151f639d94092800e7e71f2d23a754c43f3eb1ba"
SIZES = {  # published train, dev and test
    "random_split": (95_744, 11_967, 11_967),
    "mcd1": (95_743, 11_968, 11_968),
    "mcd2": (95_743, 11_968, 11_968),
    "mcd3": (95_743, 11_968, 11_968),
    "query_complexity_split": (100_654, 9_512, 9_512),
    "query_pattern_split": (94_600, 12_489, 12_589),
    "question_complexity_split": (98_999, 10_339, 10_340),
    "question_pattern_split": (95_654, 12_115, 11_909),
}
_QUESTION, _QUERY = "questionPatternModEntities", "sparqlPatternModEntities"
_PARTS = ("train", "dev", "test")
_BLOCK = 1 << 20
_MOST_PENDING = 64 * _BLOCK  # characters of one record; the published ones have some ten thousand


def question_words(question: str) -> list[str]:
    """The words of a question; every punctuation character is a word."""
    return "".join(f" {c} " if c in string.punctuation else c for c in question).split()


def query_words(query: str) -> list[str]:
    """The words of a SPARQL query: without the prefix "ns:", "m." written "m_", and the brackets of count(*) apart."""
    words = [word.removeprefix("ns:") for word in query.replace("count(*)", "count ( * )").split()]
    return [f"m_{word[2:]}" if word.startswith("m.") else word for word in words]


def records(stream: TextIO, path: Path) -> Iterator[tuple[str, str]]:
    """The question and the query of every object in a JSON list, one object in memory at a time.

    Raises:
        ValueError: The text is not such a list; the message has the file and the object's number.
    """
    decoder, pending, number, start = json.JSONDecoder(), "", 0, 0
    while block := stream.read(_BLOCK):
        pending, start = pending[start:] + block, 0
        while True:
            while start < len(pending) and pending[start] in " \r\n\t,[":
                start += 1
            if start == len(pending) or pending[start] == "]":
                break
            try:
                record, start = decoder.raw_decode(pending, start)
            except json.JSONDecodeError as error:
                if len(pending) - start > _MOST_PENDING or pending[start] != "{":
                    raise _bad_record(path, number + 1, str(error)) from None
                break  # the object goes on in the next block
            number += 1
            yield _pair(record, path, number)
    if pending[start:].strip() != "]":
        raise _bad_record(
            path, number + 1, "the file ends inside it" if pending[start:].strip() else "the file ends before"
        )


def _kept(stream: TextIO, path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `pairs.jsonl`, which a download wrote."""
    for row, line in enumerate(stream, start=1):
        try:
            pair = json.loads(line)
        except (ValueError, RecursionError):
            pair = None
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(
                f"{path}, line {row}: expected a list of a question and its query, two texts, found {line[:80]!r}; "
                "delete the file, it will be made again."
            )
        yield pair[0], pair[1]


def _pair(record: object, path: Path, number: int) -> tuple[str, str]:
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in (_QUESTION, _QUERY)):
        raise _bad_record(path, number, f"it has no texts {_QUESTION!r} and {_QUERY!r}")
    return record[_QUESTION], record[_QUERY]


def _index_lists(text: str, path: Path) -> dict[str, list[int]]:
    """The lists of indices in the text of a split file."""
    try:
        content = json.loads(text)
        return {part: [_index(i) for i in content[f"{part}Idxs"]] for part in _PARTS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected an object with lists of numbers trainIdxs, devIdxs and testIdxs ({error!r}); "
            "delete it and fetch it again."
        ) from None


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{repr(value)[:80]} is no whole number")
    return value


def _bad_record(path: Path, number: int, problem: str) -> ValueError:
    return ValueError(
        f"{path}, object {number}: expected a list of objects, each a question with its query, but {problem}; "
        "the file is damaged, delete it and fetch it again."
    )


class CFQ(FilePairDataModule):
    """CFQ: "Did M1 employ M0" to "SELECT count ( * ) WHERE { M1 ... M0 }" (Keysers et al. 2020, arXiv:1912.09713).

    Prepared as in the release: of the questions with placeholders for entities, every punctuation character is a word;
    of the queries, split at spaces, "ns:" is dropped, "m." becomes "m_", and "count(*)" four words.

    | split | out of distribution: |
    |---|---|
    | random_split | nothing (95,744 / 11,967 / 11,967) |
    | mcd1, mcd2, mcd3 | the compounds, with the same atoms (95,743 / 11,968 / 11,968) |
    | query_complexity_split | long queries, "output length" (100,654 / 9,512 / 9,512) |
    | question_complexity_split | long questions (98,999 / 10,339 / 10,340) |
    | query_pattern_split, question_pattern_split | patterns of queries and of questions |

    Stages: train, val, test. In random_split val is the published development set. The others' are distributed as
    their test sets: there val (and `iid`, a test set in distribution) are drawn from the published training examples
    with the seed, and the published development set is the further validation set `val_ood`. With `held_out=True`
    train leaves val and iid out; with `held_out=False` train has every published training example, as in the paper,
    and val and iid measure how well these are known.

    Words are those of the three parts of the split. Their numbers are not known without the files, so that
    `vocab_size` and `output_size` are upper bounds, 258 and 258: the ids left over are words that never occur.

    Files (CC BY 4.0, Google): `dataset.json` (several GB, read object by object) and `splits/<split>.json`. A download
    (268 MB) keeps only questions, queries and splits, in `pairs.jsonl` and `splits/` of the user cache (about 100 MB).

    Args:
        split: One of `splits`, the names of the release's files.
        data_dir: The folder with the unpacked files. None: `$ALGORNN_DATA/cfq`, then the user cache, then a download.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training and of the draw of val and iid.
        held_out: Whether train leaves out val and iid.
        val_size: Number of val examples (not of random_split).
        iid_size: Number of iid examples (not of random_split).

    Raises:
        TypeError: A number that is not whole, or a flag that is neither True nor False.
        ValueError: Unknown split, or a size below 1.

    Attributes:
        groups: "yes-no" (the query counts) or "wh" (it selects).
    """

    benchmark = "cfq"
    splits = tuple(SIZES)
    groups = ("yes-no", "wh")
    sizes = (256, 256)
    spare = True

    def __init__(
        self,
        split: str = "mcd1",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        held_out: bool = True,
        val_size: int = 1_000,
        iid_size: int = 1_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(val_size=val_size, iid_size=iid_size)
        check_flags(held_out=held_out)
        self.held_out, self.val_size, self.iid_size = held_out, val_size, iid_size
        if split != "random_split":
            self.further, self.further_val, self.ood = ("iid",), ("val_ood",), ("test", "val_ood")
        self._pairs: list[tuple[str, str]] = []
        self._indices: dict[str, list[int]] = {}

    def prepare_data(self) -> None:
        """Download the archive to the user cache if the files are at hand nowhere."""
        self._file("pairs.jsonl", "dataset.json")
        self._file(f"splits/{self.split}.json")

    def pairs_of(self, stage: str) -> Iterator[tuple[list[str], list[str], int]]:
        """Read the pairs of a stage.

        Raises:
            FileNotFoundError: A file is nowhere.
            ValueError: A file is damaged, or not of the published size.
        """
        if not self._indices:
            self._pairs = self._read_pairs()
            self._indices = self._divided(self._read_split())
        for i in self._indices[stage]:
            question, query = self._pairs[i]
            yield question_words(question), query_words(query), int(not query.startswith("SELECT count"))

    def _read_pairs(self) -> list[tuple[str, str]]:
        path = self._file("pairs.jsonl", "dataset.json")
        try:
            with _open(path) as stream:
                return list((_kept if "pairs.jsonl" in path.name else records)(stream, path))
        except DAMAGE as error:
            raise damaged(path, error) from error

    def _read_split(self) -> dict[str, list[int]]:
        """The published indices of train, dev and test."""
        path = self._file(f"splits/{self.split}.json")
        indices = _index_lists(read_text(path), path)
        found = tuple(map(len, indices.values()))
        every = [i for part in indices.values() for i in part]
        if len(set(every)) < len(every):
            twice = next(i for i, times in Counter(every).items() if times > 1)
            raise ValueError(
                f"{path}: expected indices that are all different, found {twice} more than once; "
                "delete it and fetch it again."
            )
        if found != SIZES[self.split] or min(every) < 0 or max(every) >= len(self._pairs):
            raise ValueError(
                f"{path}: expected {SIZES[self.split]} indices of train, dev and test, all of them below "
                f"{len(self._pairs)}, the number of examples at hand, found {found} and {max(every, default=None)}; "
                "fetch dataset.json and splits/ again."
            )
        return indices

    def _divided(self, parts: dict[str, list[int]]) -> dict[str, list[int]]:
        if self.split == "random_split":
            return {"train": parts["train"], "val": parts["dev"], "test": parts["test"]}
        train = parts["train"]
        if self.val_size + self.iid_size >= len(train):
            raise ValueError(
                f"val_size and iid_size are {self.val_size} and {self.iid_size}, expected fewer together than the "
                f"{len(train)} training examples; choose smaller ones."
            )
        order = generator(self.benchmark, self.split, "held out", self.seed).permutation(len(train)).tolist()
        drawn = {"val": order[: self.val_size], "iid": order[self.val_size : self.val_size + self.iid_size]}
        absent = {i for part in drawn.values() for i in part} if self.held_out else set()
        return {
            "train": [index for i, index in enumerate(train) if i not in absent],
            "val_ood": parts["dev"],
            "test": parts["test"],
            **{stage: [train[i] for i in sorted(part)] for stage, part in drawn.items()},
        }

    def _file(self, *names: str) -> Path:
        """The first of some files that is found, after a download if need be."""
        for attempt in range(2):
            folders = search_dirs(self.benchmark, self.data_dir)
            for folder in folders:
                for name in names:
                    if path := find([folder], name):
                        return path
            if not attempt:
                self._download(names, folders)
        raise FileNotFoundError(f"{names[-1]} is not in the downloaded archive; fetch it by hand into data_dir.")

    def _download(self, names: Sequence[str], folders: Sequence[Path]) -> None:
        archive = cache_dir(self.benchmark) / "cfq.tar.gz"
        try:
            download(URLS, SHA256, archive)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"{names[-1]} is in none of {', '.join(map(str, folders))}, and {error} "
                "Put the files of the archive into one of these folders or set data_dir to the folder that holds them."
            ) from error
        unpack_pairs(archive, cache_dir(self.benchmark))
        archive.unlink()


def unpack_pairs(archive: Path, folder: Path) -> None:
    """Write the questions and queries of `dataset.json` in a .tar.gz to `folder/pairs.jsonl`, and its split files."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path, content = PurePosixPath(member.name), tar.extractfile(member)
            if content is None:
                continue
            if path.name == "dataset.json":
                _write(folder / "pairs.jsonl", (json.dumps(pair) for pair in _records_of(content, archive)))
            elif path.parent.name == "splits" and path.stem in SIZES:
                _write(folder / "splits" / path.name, [content.read().decode("utf-8")])


def _records_of(content: IO[bytes], path: Path) -> Iterator[tuple[str, str]]:
    yield from records(io.TextIOWrapper(content, encoding="utf-8"), path)


def _write(target: Path, lines: Iterator[str] | list[str]) -> None:
    """Write the lines, complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    partial.replace(target)


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
