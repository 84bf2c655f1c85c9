"""COGS: English sentences to logical forms, with 21 categories of compositional generalization."""

import os
from collections.abc import Container, Iterator
from pathlib import Path

from algornn.datamodules.files import check_sha256, obtain, read_text
from algornn.datamodules.sequence_pairs import FilePairDataModule

URL = "https://raw.githubusercontent.com/najoungkim/COGS/165a7b669eade971fa47bf568a2e51925360fed8/data/"
SHA256 = {  # of <stage>.tsv; gen.tsv since its correction of September 2022
    "train": "220b3804b562c0156ee986eff1bdd15c27e52142549362a64f57baf86e304c78",
    "dev": "ab66388a309c7ac1ad210c781a6a0ce12281a9ef24619a12422a752cef61bc21",
    "test": "68f8e51e9f6d9cd22d64efe68dd21d7ea5ba327e9a2359481030161aea757035",
    "gen": "d013d9eee0bafc153f8decc85f42814ac97260f84964d980e1e2b84577b82361",
}
# A known word in a new place or form: 18 categories of gen.
LEXICAL = (
    "subj_to_obj_common",
    "subj_to_obj_proper",
    "obj_to_subj_common",
    "obj_to_subj_proper",
    "prim_to_subj_common",
    "prim_to_subj_proper",
    "prim_to_obj_common",
    "prim_to_obj_proper",
    "prim_to_inf_arg",
    "active_to_passive",
    "passive_to_active",
    "obj_omitted_transitive_to_transitive",
    "unacc_to_transitive",
    "do_dative_to_pp_dative",
    "pp_dative_to_do_dative",
    "only_seen_as_transitive_subj_as_unacc_subj",
    "only_seen_as_unacc_subj_as_obj_omitted_transitive_subj",
    "only_seen_as_unacc_subj_as_unerg_subj",
)
# A new combination of known phrases, or deeper nesting: 3 categories of gen.
STRUCTURAL = ("obj_pp_to_subj_pp", "cp_recursion", "pp_recursion")
# The one sentence of train that shows a word of each of these categories.
EXPOSURE = tuple(
    f"exposure_example_{name}"
    for name in (
        "subj_common",
        "subj_proper",
        "obj_common",
        "obj_proper",
        "active",
        "passive",
        "unacc",
        "unacc_subj",
        "transitive_subj",
        "obj_omitted_transitive",
        "do_dative",
        "pp_dative",
    )
)


def parse(text: str, path: Path, types: Container[str] | None) -> Iterator[tuple[list[str], list[str], str]]:
    r"""The lines `<sentence>\t<logical form>\t<type>` of a file: words, words, and the type.

    Args:
        text: The content of the file.
        path: Its name, for messages.
        types: The types that there may be; None: any.

    Raises:
        ValueError: A line does not fit; the message has the file and the line's number.
    """
    for row, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        columns = line.split("\t")
        source, target = (column.split(" ") for column in (*columns, "", "")[:2])
        typed = len(columns) == 3 and (types is None or columns[2] in types)
        if invisible := next((mark for mark in ("\r", "\ufeff") if mark in line), None):
            raise ValueError(
                f"{path}, line {row}: expected no carriage return and no byte order mark, found {invisible!r} in "
                f"{line[-80:]!r}; the file was converted, delete it and fetch it again."
            )
        if not typed or not all(source) or not all(target):
            raise ValueError(
                f"{path}, line {row}: expected '<sentence><TAB><logical form><TAB><type>' with single spaces and a "
                f"known type, found {line[:80]!r}; the file is damaged, delete it and fetch it again."
            )
        yield source, target, columns[2]


class COGS(FilePairDataModule):
    """COGS: "A rose was helped ." to "rose ( x _ 1 ) AND help . theme ( x _ 3 , x _ 1 )" (Kim & Linzen 2020).

    arXiv:2010.05465. Source and target are split at the spaces of the files, case as it is. The vocabularies are those
    of the four files together (745 source words, 723 target words): two words of gen and its numerals above 19 are
    never trained on, and without them no model could write all targets.

    Stages: train (24,155), val (the published dev, 3,000), test (3,000), and `gen` (21,000), out of distribution: 21
    categories of 1,000. They are `LEXICAL` (18) and `STRUCTURAL` (3) of `algornn.datamodules.cogs`; report these apart.
    gen is the corrected one of September 2022 (50 targets of obj_pp_to_subj_pp); earlier papers have the old one. Only
    the training set with one exposure example is offered, not `train_100.tsv`.

    Files (MIT, najoungkim/COGS): `{train,dev,test,gen}.tsv`, plain or `.gz`; all four are read for their words.

    Args:
        split: "cogs", the only one.
        data_dir: The folder with the files. None: `$ALGORNN_DATA/cogs`, then the user cache, then a download (11 MB).
        batch_size: Examples per batch and process.
        seed: Seed of the order of training.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split.

    Attributes:
        groups: The type of every line: "in_distribution", "primitive" (a word by itself, 143 in train), the 12
            "exposure_example_..." of train, and the 21 categories of gen.
    """

    benchmark = "cogs"
    splits = ("cogs",)
    further = ("gen",)
    ood = ("gen",)
    groups = ("in_distribution", "primitive", *EXPOSURE, *LEXICAL, *STRUCTURAL)
    sizes = (745, 723)

    def __init__(
        self,
        split: str = "cogs",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)

    def prepare_data(self) -> None:
        """Download the files to the user cache if they are at hand nowhere."""
        for stage in self.stages:
            self._file(stage)

    def pairs_of(self, stage: str) -> Iterator[tuple[list[str], list[str], int]]:
        """Read the file of a stage.

        Raises:
            FileNotFoundError: The file is nowhere.
            ValueError: A line does not fit, or the file is not the published one.
        """
        path, sha256 = self._file(stage)
        text = read_text(path)
        for source, target, group in parse(text, path, self.groups):
            yield source, target, self.groups.index(group)
        check_sha256(path, text, sha256)

    def _file(self, stage: str) -> tuple[Path, str]:
        """The file of a stage and its sha256."""
        name = "dev" if stage == "val" else stage
        return obtain(self.benchmark, f"{name}.tsv", f"{URL}{name}.tsv", SHA256[name], self.data_dir), SHA256[name]
