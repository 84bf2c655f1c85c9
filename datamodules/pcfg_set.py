"""PCFG SET: string manipulations in prefix notation, with the five tests of compositionality of Hupkes et al."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice

from algornn.datamodules.pcfg_files import DEV, SPLITS, PCFGFiles, Step
from algornn.datamodules.pcfg_language import (
    EXCEPTIONS,
    LETTERS,
    SYNONYMS,
    VOCABULARY,
    Corpus,
    Line,
    functions_in,
    has_pair,
    strings_in,
)
from algornn.datamodules.sequence_pairs import SPECIAL, PairDataset, SequencePairDataModule
from algornn.datamodules.split_datamodule import generator

UNSEEN = (  # functions in a row that no training line of systematicity has
    ("swap_first_last", "repeat"),
    ("append", "remove_second"),
    ("repeat", "remove_second"),
    ("append", "swap_first_last"),
)
_MOST_FUNCTIONS = 35  # of a published line
_SEEN_FUNCTIONS = 8  # the most of a training line of productivity
_IN_DISTRIBUTION = ("pcfgset", "substitutivity_equally_distributed")
_OOD = {"substitutivity_primitive": "twin", "localism": "increasing_length"}  # otherwise test


class PCFGSet(SequencePairDataModule):
    """PCFG SET: "append A1 B2 , reverse C3 D4" to "A1 B2 D4 C3" (Hupkes, Dankers, Mul & Bruni 2020, arXiv:1908.08351).

    Six unary functions (copy, reverse, shift, echo, swap_first_last, repeat) and four binary ones (append, prepend,
    remove_first, remove_second) on strings of 520 letters. A split is one of the tests, and has the name of its folder:

    | split | trained on | tested on |
    |---|---|---|
    | pcfgset | 85 % of the lines | test: others (9,721) |
    | systematicity | lines without four pairs of functions in a row (`UNSEEN`) | test: lines with one (10,175) |
    | productivity | at most 8 functions | test: 9 to 35 (11,333) |
    | substitutivity_equally_distributed | four functions have synonyms, as frequent as they | test, twin (10,000) |
    | substitutivity_primitive | the synonyms are in one-function lines only | test, twin (10,000) |
    | localism | as pcfgset | test (9,567) with `unrolled()`; increasing_length (10,070): 2 to 20 letters |
    | overgeneralisation_<ratio> | four pairs of functions only in a few lines, with another meaning | see below |

    Line i of `twin` is line i of `test` with one function replaced by its synonym: the published score is how often the
    two predictions are equal, right or not. The lines of overgeneralisation (9, 59, 125 or 554) are the exceptions that
    are trained on: `test` has the targets of the rule (accuracy is overgeneralisation), `exception` those of training.

    val is the published development set (which has no synonyms). In systematicity, productivity and overgeneralisation
    only its lines that are in the training distribution; in the first two every second of these is instead in `iid`, an
    in-distribution test set beside `test`.

    Test and development files are read (their sha256 checked), or downloaded. Of the published training lines no
    checksum is known to the authors of this module, so `<folder>/train.{src,tgt}` are never downloaded by themselves:
    where both are in one of the folders they are used (their number and their targets checked), otherwise as many lines
    are generated (see `Corpus`) and `generated_train` is True. Generated lines share no string of letters with an
    evaluation line, obey the condition of the split, and depend on split and seed alone. Half of the functions with a
    synonym are replaced in substitutivity_equally_distributed; 331 one-function lines of the synonyms are added in
    substitutivity_primitive; the published exceptions are added in overgeneralisation.

    Files (MIT, i-machine-think/am-i-compositional): `data/pcfgset/` of the release, plain or `.gz`.

    Args:
        split: One of `splits`.
        data_dir: The folder that holds `pcfgset/`, `systematicity/`, ... None: `$ALGORNN_DATA/pcfgset`, then the user
            cache, then a download of dev and test files (a few MB) to it.
        batch_size: Examples per batch and process.
        seed: Seed of the order of training and of generated lines.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split.

    Attributes:
        groups: The number of functions in the source, "functions1" ... "functions35".
    """

    benchmark = PCFGFiles.benchmark
    splits = tuple(SPLITS)
    groups = tuple(f"functions{number}" for number in range(1, _MOST_FUNCTIONS + 1))
    vocabulary = (*SPECIAL, *VOCABULARY)
    outputs = (*SPECIAL, *LETTERS)

    def __init__(
        self,
        split: str = "pcfgset",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        self.files, self.tests = PCFGFiles(data_dir), SPLITS[split].tests
        self._halved = split in ("systematicity", "productivity")  # the development set, into val and iid
        self.further = (*(stage for stage in self.tests if stage != "test"), *(("iid",) if self._halved else ()))
        self.ood = () if split in _IN_DISTRIBUTION else (_OOD.get(split, "test"),)

    @property
    def generated_train(self) -> bool:
        """Whether the published training lines are not at hand, so that others are generated."""
        return self.files.train(self.split) is None

    @property
    def note(self) -> str:
        """That the training set is generated, if it is."""
        return "generated training set" if self.generated_train else ""

    def prepare_data(self) -> None:
        """Download the development and test files to the user cache if they are at hand nowhere."""
        for path in (DEV, *self.tests.values()):
            self.files.obtain(path)

    def dataset_of(self, stage: str) -> PairDataset:
        """Read or generate the lines of a stage."""
        lines = self._train_lines() if stage == "train" else self._evaluation_lines(stage)
        rows = ((source, target, functions_in(source) - 1) for source, target in lines)
        return PairDataset(self.vocabulary, self.outputs, self.groups, rows)

    def unrolled(self) -> list[tuple[Step, ...]]:
        """For every line of the test of localism, its computation function by function.

        A model's answers are put in place of the names, and the answer to the last step compared with the answer to the
        whole line: the published score is how often they are equal.

        Raises:
            ValueError: Another split than localism.
        """
        if self.split != "localism":
            raise ValueError(f"Only the lines of the split 'localism' are unrolled, not those of {self.split!r}.")
        return self.files.unrolled()

    def _evaluation_lines(self, stage: str) -> list[Line]:
        if stage in self.tests:
            return self.files.lines(self.tests[stage])
        lines = [line for line in self.files.lines(DEV) if self._fits(line[0])]
        return lines[stage == "iid" :: 2] if self._halved else lines

    def _fits(self, source: Sequence[str]) -> bool:
        """Whether a source without synonyms may be a training line."""
        if self.split == "productivity":
            return functions_in(source) <= _SEEN_FUNCTIONS
        if self.split == "systematicity":
            return not has_pair(source, UNSEEN)
        return not ("exception" in self.tests and has_pair(source, tuple(EXCEPTIONS)))

    def _train_lines(self) -> Iterable[Line]:
        return self._generated_lines() if self.generated_train else self.files.train_lines(self.split)

    def _generated_lines(self) -> Iterator[Line]:
        """As many lines as the published training set has."""
        evaluation = [source for stage in self.stages[1:] for source, _ in self._evaluation_lines(stage)]
        draw = generator(self.benchmark, self.split, "train", self.seed)
        corpus = Corpus(draw, {string for source in evaluation for string in strings_in(source)})
        added = self._added_lines(corpus)
        for source, target in corpus.lines(SPLITS[self.split].size - len(added), self._fits):
            if self.split == "substitutivity_equally_distributed":
                source = [SYNONYMS[word] if word in SYNONYMS and draw.random() < 0.5 else word for word in source]
            yield source, target
        yield from added

    def _added_lines(self, corpus: Corpus) -> list[Line]:
        """The training lines that are not drawn as the others."""
        if self.split == "substitutivity_primitive":
            number = SPLITS[self.split].size - SPLITS["pcfgset"].size
            return [corpus.single(name) for name in islice(cycle(SYNONYMS.values()), number)]
        return self.files.lines(self.tests["exception"]) if "exception" in self.tests else []
