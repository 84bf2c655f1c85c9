"""The DeepMind Mathematics Dataset, character by character, one kind of question at a time."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from algornn.datamodules.files import find, read_text, search_dirs
from algornn.datamodules.sequence_pairs import SPECIAL, PairDataset, SequencePairDataModule
from algornn.datamodules.split_datamodule import check_name, check_positive, generator

URL = "https://console.cloud.google.com/storage/browser/mathematics-dataset"
CHARACTERS = tuple(map(chr, range(32, 127)))  # the 95 printable ones of ASCII
LEVELS = ("train-easy", "train-medium", "train-hard")

# Kinds of questions by topic; "+" after a name: there is also one that ends in "_composed".
_TOPICS = {
    "algebra": "linear_1d+ linear_2d+ polynomial_roots+ sequence_next_term sequence_nth_term",
    "arithmetic": "add_or_sub add_or_sub_in_base add_sub_multiple div mixed mul mul_div_multiple "
    "nearest_integer_root simplify_surd",
    "calculus": "differentiate+",
    "comparison": "closest+ kth_biggest+ pair+ sort+",
    "measurement": "conversion time",
    "numbers": "base_conversion div_remainder+ gcd+ is_factor+ is_prime+ lcm+ list_prime_factors+ place_value+ "
    "round_number+",
    "polynomials": "add coefficient_named collect compose evaluate+ expand simplify_power",
    "probability": "swr_p_level_set swr_p_sequence",
}


def _modules() -> Iterator[str]:
    for topic, names in _TOPICS.items():
        for name in names.split():
            yield f"{topic}__{name.removesuffix('+')}"
            if name.endswith("+"):
                yield f"{topic}__{name.removesuffix('+')}_composed"


MODULES = tuple(_modules())
EXTRAPOLATIONS = {  # kind of question: its file in extrapolate/, where it has one
    "algebra__polynomial_roots": "algebra__polynomial_roots_big",
    "arithmetic__add_or_sub": "arithmetic__add_or_sub_big",
    "arithmetic__add_sub_multiple": "arithmetic__add_sub_multiple_longer",
    "arithmetic__div": "arithmetic__div_big",
    "arithmetic__mixed": "arithmetic__mixed_longer",
    "arithmetic__mul": "arithmetic__mul_big",
    "arithmetic__mul_div_multiple": "arithmetic__mul_div_multiple_longer",
    "comparison__closest": "comparison__closest_more",
    "comparison__kth_biggest": "comparison__kth_biggest_more",
    "comparison__sort": "comparison__sort_more",
    "measurement__conversion": "measurement__conversion",
    "numbers__place_value": "numbers__place_value_big",
    "numbers__round_number": "numbers__round_number_big",
    "probability__swr_p_level_set": "probability__swr_p_level_set_more_samples",
    "probability__swr_p_sequence": "probability__swr_p_sequence_more_samples",
}


def parse(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """The questions and answers of a file, which stand in lines of their own, one after the other.

    Raises:
        ValueError: A line is empty or has another character than the printable ones of ASCII, or the last question has
            no answer; the message has the file and the line's number.
    """
    lines = text.removesuffix("\n").split("\n")
    known = set(CHARACTERS)
    for row, line in enumerate(lines, start=1):
        if not line or not known.issuperset(line):
            kind = "a question" if row % 2 else "an answer"
            raise ValueError(
                f"{path}, line {row}: expected {kind} in printable ASCII, found {line[:80]!r}; "
                "the file is damaged, delete it and fetch it again."
            )
    if len(lines) % 2:
        raise ValueError(
            f"{path}, line {len(lines) + 1}: expected the answer to the question before, found the end of the file; "
            "the file is damaged, delete it and fetch it again."
        )
    yield from zip(lines[::2], lines[1::2], strict=True)


class Mathematics(SequencePairDataModule):
    """School mathematics: "What is 3 + 4?" to "7", in characters (Saxton, Grefenstette, Hill & Kohli 2019).

    arXiv:1904.01557. A split is one of the 56 kinds of questions, by the name of its file ("arithmetic__add_or_sub").
    In version 1.0 each has 2 million training pairs, a third of them easy, medium and hard, and 10,000 pairs in
    `interpolate`; questions have at most 160 characters, answers at most 30.

    Stages: train (the chosen levels, one after the other), val (drawn from these with the seed; train leaves out its
    questions, however often they are asked), test (`interpolate`) and, where there is a file, `extrapolate`, out of
    distribution (15 kinds of questions). Whether a question of these two is also in train is not checked: they are used
    as they were published.

    Files (Apache 2.0, DeepMind): `<level>/<split>.txt` for the levels, `interpolate/<split>.txt`, `extrapolate/`; plain
    or `.gz`, as in the release of version 1.0 or as its generator writes them. They are not downloaded (2.3 GB for all
    kinds of questions together).

    Args:
        split: One of `splits`.
        data_dir: The folder that holds `train-easy/`, ... None: `$ALGORNN_DATA/mathematics`, then the user cache.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training and of the draw of val.
        levels: What to train on, of "train-easy", "train-medium" and "train-hard".
        val_size: Number of val pairs that are drawn; where their questions are repeated, all of these are in val.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split or level, no level or one twice, or `val_size` below 1.

    Attributes:
        groups: The file's folder: a level, "interpolate" or "extrapolate".
    """

    benchmark = "mathematics"
    splits = MODULES
    groups = (*LEVELS, "interpolate", "extrapolate")
    vocabulary = (*SPECIAL, *CHARACTERS)
    outputs = (*SPECIAL, *CHARACTERS)

    def __init__(
        self,
        split: str = "arithmetic__add_or_sub",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        levels: Sequence[str] = LEVELS,
        val_size: int = 10_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(val_size=val_size)
        if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
            raise ValueError(f"levels is a list of {', '.join(map(repr, LEVELS))}, at least one, not {levels!r}.")
        self.levels = tuple(check_name("level", level, LEVELS) for level in levels)
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels must be different ones, not {levels!r}; name each once.")
        self.val_size = val_size
        self.further = self.ood = ("extrapolate",) if split in EXTRAPOLATIONS else ()

    def dataset_of(self, stage: str) -> PairDataset:
        """Read the files of a stage.

        Raises:
            FileNotFoundError: A file is nowhere.
            ValueError: A line does not fit, or there are not enough questions to draw val from.
        """
        if stage in ("train", "val"):
            return PairDataset(self.vocabulary, self.outputs, self.groups, self._drawn(stage))
        folder = "interpolate" if stage == "test" else "extrapolate"
        return PairDataset(self.vocabulary, self.outputs, self.groups, self._read(folder))

    def _read(self, folder: str) -> Iterator[tuple[str, str, int]]:
        path = self._file(folder, EXTRAPOLATIONS[self.split] if folder == "extrapolate" else self.split)
        group = self.groups.index(folder)
        yield from ((question, answer, group) for question, answer in parse(read_text(path), path))

    def _drawn(self, stage: str) -> Iterator[tuple[str, str, int]]:
        """The training pairs without val, or val."""
        pairs = [pair for level in self.levels for pair in self._read(level)]
        different = len({question for question, _, _ in pairs})
        if different <= self.val_size:
            raise ValueError(
                f"val_size is {self.val_size}, expected fewer than the {different} different training questions at "
                "hand; choose a smaller one."
            )
        draw = generator(self.benchmark, self.split, *self.levels, "held out", self.seed)
        val = {pairs[i][0] for i in draw.permutation(len(pairs))[: self.val_size].tolist()}
        return (pair for pair in pairs if (pair[0] in val) == (stage == "val"))

    def _file(self, folder: str, name: str) -> Path:
        folders = search_dirs(self.benchmark, self.data_dir)
        if path := find(folders, f"{folder}/{name}.txt"):
            return path
        raise FileNotFoundError(
            f"{folder}/{name}.txt (or .txt.gz) is in none of {', '.join(map(str, folders))}; fetch version 1.0 from "
            f"{URL} by hand and set data_dir to the folder that holds train-easy/."
        )
