"""Bandits: episodes with a few arms to train with, and with fewer or more of them to test with."""

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules.split_datamodule import (
    Example,
    GroupedDataset,
    ItemGenerators,
    SplitDataModule,
    check_positive,
)


class BanditBatch(NamedTuple):
    """A batch of B episodes.

    Attributes:
        probability: [B, A] float32, with which every arm pays; -1 at places without an arm.
        seed: [B] int64, of everything random in an episode.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    probability: torch.Tensor
    seed: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class BanditItem(NamedTuple):
    """One episode: probabilities [A], its seed, the group's index, its own index."""

    probability: NDArray[np.float32]
    seed: int
    group: int
    id: int


class BanditEpisodes(GroupedDataset):
    """Episodes with given numbers of arms, in turn, drawn by index; nothing is kept.

    Args:
        draws: The generator of every episode.
        number: Number of episodes.
        arms: Numbers of arms.
        places: A.
        counts: All numbers of arms of the benchmark, which name the groups.
    """

    def __init__(
        self, draws: ItemGenerators, number: int, arms: tuple[int, ...], places: int, counts: tuple[int, ...]
    ) -> None:
        self.draws, self.number, self.arms, self.places, self.counts = draws, number, arms, places, counts
        self.groups = tuple(f"arms_{count}" for count in counts)

    def __len__(self) -> int:
        """Number of episodes."""
        return self.number

    def __getitem__(self, index: int) -> BanditItem:
        """Episode `index`."""
        index = range(len(self))[index]
        draw, arms = self.draws(index), self.arms[index % len(self.arms)]
        probability = np.full(self.places, -1, dtype=np.float32)
        probability[draw.permutation(self.places)[:arms]] = draw.random(arms)
        return BanditItem(probability, int(draw.integers(2**62)), self.counts.index(arms), index)

    def example(self, index: int) -> Example:
        """The probabilities of episode `index`, such as "3:0.72" for the arm at place 3."""
        item = self[index]
        words = tuple(f"{place}:{p:.2f}" for place, p in enumerate(item.probability) if p >= 0)
        return Example(words, (), self.groups[item.group])


class Bandits(SplitDataModule):
    """Bernoulli bandits whose arms pay with probabilities that are uniform in [0, 1], new ones in every episode.

    The arms of an episode stand at random among A places. Training, `val` and `seen` have `arms` of them; `test` has
    other numbers, in turn: the claim of Kirsch et al. (2022), "Introducing Symmetries to Black Box Meta Reinforcement
    Learning", section 4.1, is that a rule that is the same for all arms goes on where a recurrent network does not
    (their numbers of arms and probabilities are others). What happens is `algornn.meta.BanditWorld`.

    Args:
        split: "uniform", the only one.
        data_dir: Not used; there are no files.
        batch_size: Episodes per batch and process.
        seed: Seed of the bandits and of the order of training.
        arms: Number of arms in training.
        test_arms: Numbers of arms in the test.
        places: A.
        train_examples: Episodes of an epoch.
        test_examples: Episodes of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, more arms than places, or test_arms that have `arms` among them.

    Attributes:
        groups: "arms_2" and so on.
        input_size: Numbers that an observation consists of, 2 A + 1.
        output_size: A.
    """

    benchmark = "bandits"
    splits = ("uniform",)
    further = ("seen",)
    ood = ("test",)

    def __init__(
        self,
        split: str = "uniform",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        arms: int = 5,
        test_arms: tuple[int, ...] = (2, 10, 20),
        places: int = 20,
        train_examples: int = 1_000_000,
        test_examples: int = 3000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(arms=arms, places=places, train_examples=train_examples, test_examples=test_examples)
        if not isinstance(test_arms, (tuple, list)) or not test_arms:
            raise ValueError(f"test_arms are numbers of arms, expected at least one in a list, not {test_arms!r}.")
        check_positive(**{f"test_arms[{k}]": count for k, count in enumerate(test_arms)})
        if max(arms, *test_arms) > places:
            raise ValueError(f"There are {places} places, too few for {max(arms, *test_arms)} arms; give more places.")
        if arms in test_arms:
            raise ValueError(f"test_arms are numbers of arms that training never has, expected them without {arms}.")
        if test_examples < len(test_arms):
            raise ValueError(
                f"test_examples are dealt to {len(test_arms)} numbers of arms, expected as many at least, "
                f"not {test_examples}."
            )
        self.arms, self.test_arms, self.places = arms, tuple(test_arms), places
        self.train_examples, self.test_examples = train_examples, test_examples
        self.counts = tuple(sorted({arms, *test_arms}))
        self.groups = tuple(f"arms_{count}" for count in self.counts)
        self.input_size, self.output_size = 2 * places + 1, places

    def dataset_of(self, stage: str) -> BanditEpisodes:
        """The episodes of a stage."""
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed)
        number = self.train_examples if stage == "train" else self.test_examples
        arms = self.test_arms if stage == "test" else (self.arms,)
        return BanditEpisodes(draws, number, arms, self.places, self.counts)

    @staticmethod
    def collate(items: list[Any]) -> BanditBatch:
        """A batch of episodes."""
        probability = torch.from_numpy(np.stack([item.probability for item in items]))
        numbers = torch.tensor([[item.seed, item.group, item.id] for item in items])
        return BanditBatch(probability, *numbers.unbind(1))
