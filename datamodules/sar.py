"""Systematic associative recall: pairs of words are told, then each first word asks for its second one."""

import os

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import ItemGenerators, check_positive, generator
from algornn.datamodules.story import PAD
from algornn.datamodules.tokens import NO_TARGET, TokenDataModule, TokenDataset, TokenItem

_SIZE = 250  # of each of X1, X2, Y1, Y2
_INPUT, _OUTPUT = 1, 2  # ids of the flags
_X1 = 3  # id of the first word; those of the four sets follow each other
_X2, _Y1, _Y2 = _X1 + _SIZE, _X1 + 2 * _SIZE, _X1 + 3 * _SIZE
_SETS = ("x1", "x2", "y1", "y2")
_VOCABULARY = (PAD, "<input>", "<output>", *(f"{name}_{i}" for name in _SETS for i in range(_SIZE)))
_GROUPS = ("seen", "unseen")


def episode(x: NDArray[np.int64], y: NDArray[np.int64], asked: NDArray[np.int64], group: int, index: int) -> TokenItem:
    """An episode of n pairs, 2n + 2 steps.

    Args:
        x: [n] first words.
        y: [n] second words.
        asked: [n] order in which the pairs are asked for.
        group: Index of the group.
        index: Index of the episode.
    """
    n = len(x)
    tokens = np.zeros((2 * n + 2, 3), dtype=np.int64)
    target = np.full(2 * n + 2, NO_TARGET, dtype=np.int64)
    tokens[0, 0], tokens[n + 1, 0] = _INPUT, _OUTPUT
    tokens[1 : n + 1, 1], tokens[1 : n + 1, 2] = x, y
    tokens[n + 2 :, 1], target[n + 2 :] = x[asked], y[asked]
    return TokenItem(tokens, target, group, index)


class SeenPairs(TokenDataset):
    """Episodes of training pairs, drawn by index; nothing is kept.

    Args:
        draws: The generator of every episode.
        number: Number of episodes.
        pairs: n, pairs in an episode.
        both: How many words of X1 are paired with Y1 too.
    """

    def __init__(self, draws: ItemGenerators, number: int, pairs: int, both: int) -> None:
        super().__init__(_VOCABULARY, _VOCABULARY, _GROUPS)
        self.draws, self.number, self.pairs = draws, number, pairs
        # For every x, in the order of its id: the id of the first y that it may have, and how many follow.
        rest = _SIZE - both
        self._first = np.repeat([_Y1, _Y2, _Y1], [both, rest, _SIZE])
        self._many = np.repeat([2 * _SIZE, _SIZE, _SIZE], [both, rest, _SIZE])

    def __len__(self) -> int:
        """Number of episodes."""
        return self.number

    def __getitem__(self, index: int) -> TokenItem:
        """Episode `index`: different x, for each one of its y, asked for in random order."""
        index = range(len(self))[index]
        draw = self.draws(index)
        x = draw.permutation(2 * _SIZE)[: self.pairs]
        y = self._first[x] + (draw.random(self.pairs) * self._many[x]).astype(np.int64)
        return episode(_X1 + x, y, draw.permutation(self.pairs), 0, index)


class UnseenPairs(TokenDataset):
    """All of X2 with all of Y2 in 250 rounds: round b gives each x the b-th word of its own order of Y2.

    Args:
        draw: Draws the orders.
        pairs: Pairs of an episode; a round takes as many episodes as it needs, of which the last may be shorter.
    """

    def __init__(self, draw: np.random.Generator, pairs: int) -> None:
        super().__init__(_VOCABULARY, _VOCABULARY, _GROUPS)
        self._order = draw.permuted(np.tile(np.arange(_Y2, _Y2 + _SIZE), (_SIZE, 1)), axis=1)
        self._x = [np.arange(_SIZE)[start : start + pairs] for start in range(0, _SIZE, pairs)]

    def __len__(self) -> int:
        """Number of episodes."""
        return _SIZE * len(self._x)

    def __getitem__(self, index: int) -> TokenItem:
        """Episode `index`."""
        index = range(len(self))[index]
        b, part = divmod(index, len(self._x))
        x = self._x[part]
        return episode(_X2 + x, self._order[x, b], np.arange(len(x)), 1, index)


class SAR(TokenDataModule):
    """Systematic associative recall (Park et al., AID, ICLR 2024; D3, NeurIPS 2024).

    A thousand words are four sets of 250: X1, X2, Y1, Y2. Training pairs words of X1 with Y2, a part p of X1 with Y1
    too, and X2 with Y1 alone. The test pairs X2 with Y2: words that have all been seen, in pairs that have not. A model
    solves it if it keeps what a word is apart from which set its partner was from.

    An episode has 2n + 2 steps of three ids (flag, x, y), 0 for nothing: the input flag; n pairs (0, x, y); the output
    flag; the same n words (0, x, 0) in random order, whose y is the target. Flags, words and targets have ids in one
    vocabulary of 1,003 (`output_size` is the same).

    Training and `val` (unseen episodes, in distribution): n different words of X1 and X2 together, and for each a word
    drawn from those that it may be paired with. Episodes are drawn by index, never stored: the default `train_examples`
    is that of the release's 30,000 steps of 64. `test` is out of distribution and as released: 250 episodes of 250
    pairs, episode b gives each word of X2 the b-th of its own random order of Y2; X2 is told in a fixed order and asked
    for in the same. So it also asks for more pairs at a time than training has; `test_pairs` cuts the episodes, with
    all pairs kept, to ask for unseen pairs alone.

    The release uses English words with an embedding that is learnt; ids take their place. Its n is 100, the text of the
    paper says 30. Splits p=0, p=0.5 and p=1 are those of AID, p=0.1 and p=0.3 further ones of D3.

    Examples: `source` is all ids but 0 in words ("<input>", "x1_7", "y2_0", ...), `target` is the asked-for words.

    Args:
        split: "p=0", "p=0.1", "p=0.3", "p=0.5" or "p=1".
        data_dir: Not used; there are no files.
        batch_size: Episodes per batch and process.
        seed: Seed of the episodes and of the order of training.
        pairs: n, at most 500.
        train_examples: Training episodes per epoch.
        val_examples: Episodes of `val`.
        test_pairs: Pairs in an episode of `test`, at most 250.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, more than 500 pairs, or more than 250 in an episode of `test`.

    Attributes:
        groups: "seen" (pairs of training) and "unseen".
    """

    benchmark = "sar"
    ids_per_token = 3  # flag, x, y
    splits = ("p=0", "p=0.1", "p=0.3", "p=0.5", "p=1")
    ood = ("test",)
    groups = _GROUPS
    vocabulary = outputs = _VOCABULARY

    def __init__(
        self,
        split: str = "p=0",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        pairs: int = 100,
        train_examples: int = 1_920_000,
        val_examples: int = 250,
        test_pairs: int = _SIZE,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(pairs=pairs, train_examples=train_examples, val_examples=val_examples, test_pairs=test_pairs)
        if pairs > 2 * _SIZE:
            raise ValueError(f"pairs is the number of different words of X1 and X2, expected at most 500, not {pairs}.")
        if test_pairs > _SIZE:
            raise ValueError(
                f"test_pairs is the number of different words of X2, expected at most 250, not {test_pairs}."
            )
        self.pairs, self.train_examples, self.val_examples = pairs, train_examples, val_examples
        self.test_pairs = test_pairs
        self.both = round(float(split.removeprefix("p=")) * _SIZE)

    @property
    def note(self) -> str:
        """Whether the test's episodes are shorter than those of the release."""
        return "" if self.test_pairs == _SIZE else f"{self.test_pairs} pairs in an episode of the test"

    def dataset_of(self, stage: str) -> TokenDataset:
        """The episodes of a stage."""
        if stage == "test":
            return UnseenPairs(generator(self.benchmark, stage, self.seed), self.test_pairs)
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, self.pairs)
        number = self.train_examples if stage == "train" else self.val_examples
        return SeenPairs(draws, number, self.pairs, self.both)
