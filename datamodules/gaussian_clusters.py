"""Gaussian clusters: streams of labelled points around centres that are new in every stream."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.in_context_digits import InContextDigits, TaskBatch, TaskStreams
from algornn.datamodules.split_datamodule import (
    ItemGenerators,
    SplitDataModule,
    check_positive,
)


class ClusterTasks(TaskStreams):
    """Streams of clusters.

    Args:
        draws: The generator of every stream.
        number: Number of streams.
        shape: (T, C, D), examples, classes, numbers of an input.
        spread: s, standard deviation of the centres.
        group: Name of the one group.
    """

    def __init__(
        self, draws: ItemGenerators, number: int, shape: tuple[int, int, int], spread: float, group: str
    ) -> None:
        super().__init__(draws, number, group)
        self.shape, self.spread = shape, spread

    def stream(self, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Points and their classes."""
        T, C, D = self.shape
        centres = self.spread * draw.standard_normal((C, D), dtype=np.float32)
        y = draw.integers(C, size=T)
        return centres[y] + draw.standard_normal((T, D), dtype=np.float32), y


class GaussianClusters(SplitDataModule):
    r"""Streams of points x = c_y + n with classes y, around centres c that are new in every stream.

    Centres are :math:`c \sim N(0, s^2 I)`, noise is :math:`n \sim N(0, I)`, classes are uniform. It is the few-shot
    task whose best solution is known: `algornn.models.GaussianPosterior` gives the accuracy that no learner can
    surpass. The stage `closer` (out of distribution) has centres of half the spread.

    Args:
        split: "clusters", the only one.
        data_dir: Not used; there are no files.
        batch_size: Streams per batch and process.
        seed: Seed of the streams and of the order of training.
        length: T, examples of a stream.
        classes: C.
        size: D, numbers of an input.
        spread: s.
        train_examples: Streams of an epoch.
        test_examples: Streams of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, or a spread that is not above 0.

    Attributes:
        groups: "clusters".
        input_size: D.
        output_size: C.
    """

    benchmark = "gaussian_clusters"
    splits = ("clusters",)
    groups = ("clusters",)
    further = ("closer",)
    ood = ("closer",)

    def __init__(
        self,
        split: str = "clusters",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        length: int = 50,
        classes: int = 5,
        size: int = 8,
        spread: float = 1.0,
        train_examples: int = 1_000_000,
        test_examples: int = 2000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(
            length=length, classes=classes, size=size, train_examples=train_examples, test_examples=test_examples
        )
        if not spread > 0:
            raise ValueError(f"spread is a standard deviation, expected above 0, not {spread}.")
        self.shape, self.spread = (length, classes, size), spread
        self.train_examples, self.test_examples = train_examples, test_examples
        self.input_size, self.output_size = size, classes

    def dataset_of(self, stage: str) -> ClusterTasks:
        """The streams of a stage."""
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, *self.shape)
        number = self.train_examples if stage == "train" else self.test_examples
        spread = self.spread / 2 if stage == "closer" else self.spread
        return ClusterTasks(draws, number, self.shape, spread, self.groups[0])

    @staticmethod
    def collate(items: list[Any]) -> TaskBatch:
        """A batch of streams."""
        return InContextDigits.collate(items)
