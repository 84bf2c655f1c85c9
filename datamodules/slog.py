"""SLOG: COGS with relative clauses and questions, and 17 categories of structural generalization."""

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from algornn.datamodules.cogs import parse
from algornn.datamodules.files import find, read_text, search_dirs
from algornn.datamodules.sequence_pairs import FilePairDataModule

URL = "https://github.com/bingzhilee/SLOG/tree/main/data"
ARCHIVE = "generalization_sets.zip"
SIZES = {"train": 32_755, "dev": 4_046, "test": 4_046}
CATEGORIES = (  # 1,000 lines of gen each
    "PP_3",
    "PP_5-12",
    "CP_3",
    "CP_5-12",
    "center_embed_3",
    "center_embed_5-12",
    "PP_modif_subj",
    "PP_modif_iobj",
    "RC_modif_subj",
    "RC_modif_iobj",
    "RC_iobj_extracted",
    "Q_subj_active",
    "Q_subj_passive",
    "Q_dobj_ditransV",
    "Q_iobj_ditransV",
    "Q_modified_NPs",
    "Q_long_mv",
)
CATEGORY_SIZE = 1_000


class SLOG(FilePairDataModule):
    """SLOG: structural generalization in semantic parsing (Li, Donatelli, Koller, Linzen, Yao & Kim 2023).

    arXiv:2310.15040. Sentences in the manner of COGS, also with relative clauses and questions; a split is a form of
    the targets, each split at the spaces of the files:

    | split | "The cat walked ." |
    |---|---|
    | varfree_LF | walk ( agent = * cat ) |
    | cogs_LF | * cat ( x _ 1 ) ; walk . agent ( x _ 2 , x _ 1 ) |

    Stages: train (32,755), val (the published dev, 4,046), test (4,046), and `gen`, out of distribution: 17 categories
    of 1,000 (deeper or shallower nesting, modifiers in new places, new gaps).

    The authors keep the generalization sets in a closed archive, so that they do not end up in training corpora; its
    password is in the release's README. Give it as `password`, and the archive is read where it lies and nothing is
    unpacked; or put the unpacked file at `<split>/gen.tsv`. No checksums of the files are known to the authors of this
    module, so that they are not downloaded: the number of lines is checked.

    Words are those of the four files. Their numbers are not known without the files, so that `vocab_size` and
    `output_size` are upper bounds, 1,026 and 1,026: the ids left over are words that never occur.

    Files (MIT, bingzhilee/SLOG): `<split>/{train,dev,test}.tsv`, plain or `.gz`, and `generalization_sets.zip`.

    Args:
        split: "varfree_LF" or "cogs_LF".
        data_dir: The folder with the files, `data/` of the release. None: `$ALGORNN_DATA/slog`, then the user cache.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training.
        password: Opens the archive of the generalization sets.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split.

    Attributes:
        groups: "in_distribution" (all lines of train, val and test) and the 17 categories of gen.
    """

    benchmark = "slog"
    splits = ("varfree_LF", "cogs_LF")
    further = ("gen",)
    ood = ("gen",)
    groups = ("in_distribution", *CATEGORIES)
    sizes = (1_024, 1_024)
    spare = True

    def __init__(
        self,
        split: str = "varfree_LF",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        password: str | None = None,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        self.password = password

    def pairs_of(self, stage: str) -> Iterator[tuple[list[str], list[str], int]]:
        """Read the file of a stage.

        Raises:
            FileNotFoundError: The file is nowhere.
            ValueError: A line does not fit, there are not as many as published, or the archive does not open.
        """
        if stage == "gen":
            path, text = self._generalization_set()
            expected = dict.fromkeys(CATEGORIES, CATEGORY_SIZE)
        else:
            name = "dev" if stage == "val" else stage
            path = self._found(f"{self.split}/{name}.tsv")
            text, expected = read_text(path), {self.groups[0]: SIZES[name]}
        counts: Counter[str] = Counter()
        for source, target, kind in parse(text, path, CATEGORIES if stage == "gen" else None):
            group = kind if stage == "gen" else self.groups[0]
            counts[group] += 1
            yield source, target, self.groups.index(group)
        if counts != expected:
            raise ValueError(
                f"{path} has {dict(counts)} lines, expected {expected}; it is not the published file, fetch it again."
            )

    def _found(self, *names: str) -> Path:
        folders = search_dirs(self.benchmark, self.data_dir)
        if path := next((path for name in names if (path := find(folders, name))), None):
            return path
        raise FileNotFoundError(
            f"{' or '.join(names)} is in none of {', '.join(map(str, folders))}; fetch {URL} by hand "
            "and set data_dir to that folder."
        )

    def _generalization_set(self) -> tuple[Path, str]:
        path = self._found(f"{self.split}/gen.tsv", ARCHIVE)
        if path.name != ARCHIVE:
            return path, read_text(path)
        if self.password is None:
            raise ValueError(
                f"{path} is closed, expected a password to read it; set password to the one in the release's README."
            )
        try:
            with zipfile.ZipFile(path) as archive:
                return path, archive.read(self._member(archive, path), self.password.encode()).decode("utf-8")
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} does not open: expected a ZIP archive and its password ({error}); check the password, or "
                f"unpack the file of this split to {self.split}/gen.tsv."
            ) from error

    def _member(self, archive: zipfile.ZipFile, path: Path) -> str:
        """The file of this split in the archive: the one .tsv whose path has "varfree" or "cogs" in it."""
        form = self.split.removesuffix("_LF")
        names = [name for name in archive.namelist() if name.endswith(".tsv") and "__MACOSX" not in name]
        fitting = [name for name in names if form in name.lower()]
        if len(fitting) != 1:
            raise ValueError(
                f"{path}: expected one .tsv file with {form!r} in its path, found {fitting or names}; unpack "
                f"the file of this split to {self.split}/gen.tsv."
            )
        return fitting[0]
