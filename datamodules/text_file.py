"""The user's own text as an endless stream of words or bytes."""

import codecs
import os
from collections import Counter
from pathlib import Path

import numpy as np

from algornn.datamodules.split_datamodule import check_name, check_positive, check_whole
from algornn.datamodules.story import PAD
from algornn.datamodules.stream import Documents, StreamDataModule

UNK, EOS = "<unk>", "<eos>"
_SPECIAL = (PAD, UNK, EOS)
_BYTES = (PAD, *(chr(b) if 32 <= b < 127 else f"<0x{b:02x}>" for b in range(256)))
_STAGES = ("train", "val", "test")


def _words(lines: list[bytes], size: int | None) -> tuple[str, ...]:
    """The special words and those of the lines, the most frequent first."""
    counts = Counter(word for line in lines for word in line.decode().split())
    for special in _SPECIAL:
        del counts[special]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return (*_SPECIAL, *words)[:size]


class TextFile(StreamDataModule):
    r"""Language modelling on a text of your own: predict every next word or byte.

    A line is `<eos>` and its words (level "word": UTF-8, split at white space) or a line feed and its bytes (level
    "byte"). Every `document_lines` lines are a document: the training stream mixes documents and keeps the order inside
    them; evaluation reads all lines in their order. Every position is `asked`.

    Without `val_path` the last tenth of the lines of `path` is the validation text, without `test_path` the test text;
    without both they are the last two tenths, the test text last.

    The ids of level "word" are `<pad>`, `<unk>`, `<eos>` and the words of the training text alone, the most frequent
    first (the same number of times: in alphabetical order); every other word is `<unk>`. The constructor reads the
    training file to count them, so that `vocab_size` is known. Level "byte" has padding and 256 bytes, 257 ids.

    Args:
        path: The training text.
        split: "text", the only one.
        data_dir: The folder at which relative paths begin; None: the current one.
        batch_size: Streams per process in training.
        seed: Seed of the order of training.
        val_path: The validation text, if it is a file of its own.
        test_path: The test text, if it is a file of its own.
        level: "word" or "byte".
        max_vocabulary: At most so many ids at level "word", the three special ones included; None: all words.
        segment_length: Tokens per batch and stream.
        evaluation_rows: Streams into which an evaluation text is cut.
        document_lines: Lines that stay together in training.

    Raises:
        TypeError: A number that is not whole.
        FileNotFoundError: There is no such file.
        ValueError: An empty text, one that is not UTF-8 at level "word", or one with fewer than ten lines where a tenth
            of them is needed; unknown split or level; a number that is too small.
    """

    benchmark = "text_file"
    splits = ("text",)
    groups = ("text",)

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "text",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        val_path: str | os.PathLike[str] | None = None,
        test_path: str | os.PathLike[str] | None = None,
        level: str = "word",
        max_vocabulary: int | None = None,
        segment_length: int = 200,
        evaluation_rows: int = 1,
        document_lines: int = 1,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed, segment_length, evaluation_rows)
        check_positive(document_lines=document_lines)
        self.level, self.document_lines = check_name("level", level, ("word", "byte")), document_lines
        folder = Path(data_dir or ".").expanduser()
        given = zip(_STAGES, (path, val_path, test_path), strict=True)
        self._paths = {stage: folder / Path(file).expanduser() for stage, file in given if file is not None}
        self._check_vocabulary(max_vocabulary)
        for stage in self._paths:
            self._read(stage)
        train = self._lines("train")
        self.vocabulary = _BYTES if level == "byte" else _words(train, max_vocabulary)

    def _check_vocabulary(self, size: int | None) -> None:
        check_whole(max_vocabulary=size or 0)
        if size is not None and self.level == "byte":
            raise ValueError("max_vocabulary is for words; leave it out at level 'byte', which always has 257 ids.")
        if size is not None and size <= len(_SPECIAL):
            raise ValueError(f"max_vocabulary must be more than the {len(_SPECIAL)} special ids, not {size}.")

    def _read(self, stage: str) -> bytes:
        """The bytes of a file."""
        path = self._paths[stage]
        if not path.is_file():
            argument = "path" if stage == "train" else f"{stage}_path"
            raise FileNotFoundError(f"{argument}={str(path)!r} is not a file; give the name of a text file.")
        raw = path.read_bytes()
        if self.level == "word":
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw.strip():
            raise ValueError(f"{path} is empty; give a file with some text.")
        if self.level == "word":
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text (byte {error.start}: {raw[error.start]:#04x}); save it as UTF-8 or "
                    "choose level='byte'."
                ) from error
        return raw

    def _lines(self, stage: str) -> list[bytes]:
        """The lines of a stage: those of its own file, or its share of the training file."""
        lines = self._read(stage if stage in self._paths else "train").removesuffix(b"\n").split(b"\n")
        if stage in self._paths and stage != "train":
            return lines
        tenth, sharing = len(lines) // 10, [other for other in _STAGES[1:] if other not in self._paths]
        if sharing and tenth == 0:
            wanted = " and ".join(f"{other}_path" for other in sharing)
            raise ValueError(
                f"{self._paths['train']} has {len(lines)} lines, expected at least 10 to take a tenth of them for "
                f"{' and for '.join(sharing)}; break it into lines or give {wanted}."
            )
        rest = len(lines) - tenth * len(sharing)
        begin = 0 if stage == "train" else rest + tenth * sharing.index(stage)
        return lines[begin : rest if stage == "train" else begin + tenth]

    def dataset_of(self, stage: str) -> Documents:
        """Read the lines of a stage and cut them into documents."""
        lines = self._lines(stage)
        if self.level == "byte":
            tokens = np.frombuffer(b"\n" + b"\n".join(lines), dtype=np.uint8).astype(np.int16) + 1
            lengths = np.array([1 + len(line) for line in lines])
        else:
            ids = {word: i for i, word in enumerate(self.vocabulary)}
            unknown, end = ids[UNK], ids[EOS]
            coded = [[end, *(ids.get(word, unknown) for word in line.decode().split())] for line in lines]
            lengths = np.array([len(line) for line in coded])
            tokens = np.fromiter((i for line in coded for i in line), dtype=np.int32, count=int(lengths.sum()))
        lengths = np.add.reduceat(lengths, np.arange(0, len(lengths), self.document_lines))
        # Every line begins with the same token, so what follows a document does not depend on the next one.
        target = np.append(tokens[1:], tokens[:1])
        group = np.zeros(len(lengths), dtype=np.int64)
        return Documents(
            self.vocabulary, self.groups, tokens, target, np.ones(len(tokens), dtype=np.bool_), lengths, group
        )
