"""Sinusoids: streams of points of a sine wave whose amplitude and phase are new in every stream."""

import math
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

_AMPLITUDES, _WIDTH = (0.1, 5.0), 5.0


class SinusoidTasks(TaskStreams):
    """Streams of points of sine waves.

    Args:
        draws: The generator of every stream.
        number: Number of streams.
        length: T.
        phases: Between which two phases the waves lie.
        group: Name of the one group.
    """

    def __init__(
        self, draws: ItemGenerators, number: int, length: int, phases: tuple[float, float], group: str
    ) -> None:
        super().__init__(draws, number, group)
        self.length, self.phases = length, phases

    def stream(self, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Points x and y."""
        amplitude, phase = draw.uniform(*_AMPLITUDES), draw.uniform(*self.phases)
        x = draw.uniform(-_WIDTH, _WIDTH, (self.length, 1))
        y = amplitude * np.sin(x[:, 0] - phase)
        return x.astype(np.float32), y.astype(np.float32)


class Sinusoids(SplitDataModule):
    r"""Streams of points (x, y), :math:`y = a \sin(x - \varphi)`, of waves that are new in every stream.

    Amplitudes a are uniform between 0.1 and 5, phases :math:`\varphi` between 0 and :math:`\pi`, x between -5 and 5.
    Who reads a stream foretells every y before it is told. Two points fix a wave: what a learner still misses
    after them it has not learnt to tell. The stage `unseen_phases` (out of distribution) has the waves with phases
    between :math:`\pi` and :math:`2 \pi`: the same ones upside down.

    Args:
        split: "waves", the only one.
        data_dir: Not used; there are no files.
        batch_size: Streams per batch and process.
        seed: Seed of the streams and of the order of training.
        length: T, points of a stream.
        train_examples: Streams of an epoch.
        test_examples: Streams of every other stage.

    Source: Finn, Abbeel and Levine (2017), "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    https://arxiv.org/abs/1703.03400, section 5.1. Deviation: points are told one by one, and each is asked for.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, or a number below 1.

    Attributes:
        groups: "waves".
        input_size: 1.
        output_size: 1.
    """

    benchmark = "sinusoids"
    splits = ("waves",)
    groups = ("waves",)
    further = ("unseen_phases",)
    ood = ("unseen_phases",)
    input_size = output_size = 1

    def __init__(
        self,
        split: str = "waves",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        length: int = 40,
        train_examples: int = 1_000_000,
        test_examples: int = 2000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(length=length, train_examples=train_examples, test_examples=test_examples)
        self.length, self.train_examples, self.test_examples = length, train_examples, test_examples

    def dataset_of(self, stage: str) -> SinusoidTasks:
        """The streams of a stage."""
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, self.length)
        number = self.train_examples if stage == "train" else self.test_examples
        phases = (math.pi, 2 * math.pi) if stage in self.ood else (0.0, math.pi)
        return SinusoidTasks(draws, number, self.length, phases, self.groups[0])

    @staticmethod
    def collate(items: list[Any]) -> TaskBatch:
        """A batch of streams."""
        return InContextDigits.collate(items)
