"""Associative retrieval: pairs of a letter and a digit, then a letter: which digit belongs to it."""

import math
import os
import string

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import check_positive, generator
from algornn.datamodules.story import PAD
from algornn.datamodules.tokens import NO_TARGET, PackedTokens, TokenDataModule

_LETTERS, _DIGITS = tuple(string.ascii_lowercase), tuple(string.digits)
_FIRST_LETTER, _FIRST_DIGIT, _MARK = 1, 27, 37  # ids


def _draw(draw: np.random.Generator, number: int, pairs: int) -> NDArray[np.uint8]:
    """`number` sequences [number, 2 * pairs + 3] of ids."""
    letters = draw.permuted(np.tile(np.arange(26, dtype=np.uint8), (number, 1)), axis=1)[:, :pairs]
    asked = letters[np.arange(number), draw.integers(pairs, size=number)]
    tokens = np.full((number, 2 * pairs + 3), _MARK, dtype=np.uint8)
    tokens[:, 0 : 2 * pairs : 2] = _FIRST_LETTER + letters
    tokens[:, 1 : 2 * pairs : 2] = _FIRST_DIGIT + draw.integers(10, size=(number, pairs), dtype=np.uint8)
    tokens[:, -1] = _FIRST_LETTER + asked
    return tokens


class AssociativeRetrieval(TokenDataModule):
    """Pairs of a letter and a digit, two question marks and one of the letters: "c9k8j3f1??c" wants 9 (Ba et al. 2016).

    K different letters, each followed by a digit (digits may repeat), "??" and one of the letters: 2K + 3 symbols. The
    target is the digit of that letter, one class of ten, at the last step. 37 symbols (26 letters, 10 digits, the
    question mark) and padding make `vocab_size` 38.

    Sizes are those of Ba et al. (arXiv:1610.06258, section 4.1). They do not say whether test sequences may occur in
    training; here no sequence occurs twice in train, val and test together.

    Examples: `source` is ("c", "9", ..., "?", "?", "c"), `target` is ("9",). Groups: the place of the asked pair,
    "pair1" (the earliest) to "pairK".

    Args:
        split: "retrieval", the only one.
        data_dir: Not used; there are no files.
        batch_size: Examples per batch and process.
        seed: Seed of the sequences and of the order of training.
        pairs: K, 1 to 26.
        train_size: Number of training sequences.
        val_size: Number of validation sequences.
        test_size: Number of test sequences.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, more than 26 pairs, or more sequences than half of all that there
            are (26! / (26 - K)! * 10^K * K).

    Attributes:
        groups: "pair1" ... "pairK".
    """

    benchmark = "associative_retrieval"
    splits = ("retrieval",)
    vocabulary = (PAD, *_LETTERS, *_DIGITS, "?")
    outputs = _DIGITS

    def __init__(
        self,
        split: str = "retrieval",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        pairs: int = 4,
        train_size: int = 100_000,
        val_size: int = 10_000,
        test_size: int = 20_000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(pairs=pairs, train_size=train_size, val_size=val_size, test_size=test_size)
        if pairs > 26:
            raise ValueError(f"pairs is the number of different letters, expected at most 26, not {pairs}.")
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        possible = math.perm(26, pairs) * 10**pairs * pairs
        if 2 * sum(self.sizes.values()) > possible:
            raise ValueError(
                f"There are {possible} sequences of {pairs} pairs, expected at most half of them in train, val and "
                f"test together, not {sum(self.sizes.values())}; choose more pairs or smaller sizes."
            )
        self.pairs = pairs
        self.groups = tuple(f"pair{i}" for i in range(1, pairs + 1))
        self._drawn: dict[str, NDArray[np.bytes_]] = {}

    def dataset_of(self, stage: str) -> PackedTokens:
        """Draw the sequences of a stage; train leaves out those of val and test, val those of test."""
        tokens = self._sequences(stage).view(np.uint8).reshape(self.sizes[stage], -1)
        place = np.argmax(tokens[:, 0 : 2 * self.pairs : 2] == tokens[:, -1:], axis=1)
        target = np.full(tokens.shape, NO_TARGET, dtype=np.int16)
        target[:, -1] = tokens[np.arange(len(tokens)), 2 * place + 1].astype(np.int16) - _FIRST_DIGIT
        lengths = np.full(len(tokens), tokens.shape[1])
        return PackedTokens(
            self.vocabulary, self.outputs, self.groups, tokens.reshape(-1), target.reshape(-1), lengths, place
        )

    def _sequences(self, stage: str) -> NDArray[np.bytes_]:
        """The sequences of a stage, each as one string of bytes (no id in it is 0)."""
        if stage not in self._drawn:
            others = {"train": ("val", "test"), "val": ("test",), "test": ()}[stage]
            taken = [self._sequences(other) for other in others]
            draw = generator(self.benchmark, self.split, stage, self.seed, self.pairs, *self.sizes.values())
            chosen = np.empty(0, dtype=f"S{2 * self.pairs + 3}")
            while len(chosen) < self.sizes[stage]:
                fresh = _draw(draw, self.sizes[stage], self.pairs).view(chosen.dtype).reshape(-1)
                fresh = np.concatenate([chosen, fresh[~np.isin(fresh, np.concatenate([chosen[:0], *taken]))]])
                _, first = np.unique(fresh, return_index=True)
                chosen = fresh[np.sort(first)][: self.sizes[stage]]
            self._drawn[stage] = chosen
        return self._drawn[stage]
