"""In-context digits: streams of labelled images, each of a task that has to be learnt while the stream is read."""

import functools
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
    generator,
)

_PIXELS = 64
_TEST_SHARE = 0.25  # of the images of every digit


class TaskBatch(NamedTuple):
    """A batch of B streams of T examples, each stream of a task of its own.

    Attributes:
        x: [B, T, D] float32, inputs.
        y: [B, T] int64, classes; or float32, numbers that are to be foretold.
        group: [B] int64, index into the data module's `groups`.
        id: [B] int64, index into `examples(stage)`.
    """

    x: torch.Tensor
    y: torch.Tensor
    group: torch.Tensor
    id: torch.Tensor


class TaskItem(NamedTuple):
    """One stream: x [T, D], y [T], the group's index, its own index."""

    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float32]
    group: int
    id: int


@functools.cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 1,797 images of scikit-learn, [n, 64] with values from 0 to 16, and their digits [n]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data.astype(np.float32), found.target.astype(np.int64)


class TaskStreams(GroupedDataset):
    """Streams of tasks, drawn by index; nothing is kept. A subclass defines `stream`.

    Args:
        draws: The generator of every stream.
        number: Number of streams.
        group: Name of the one group.
    """

    def __init__(self, draws: ItemGenerators, number: int, group: str) -> None:
        self.draws, self.number, self.groups = draws, number, (group,)

    def stream(self, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs [T, D] and classes or numbers [T] of a new stream."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of streams."""
        return self.number

    def __getitem__(self, index: int) -> TaskItem:
        """Stream `index`."""
        index = range(len(self))[index]
        return TaskItem(*self.stream(self.draws(index)), 0, index)

    def example(self, index: int) -> Example:
        """The classes or numbers of stream `index`; its inputs are numbers without a text."""
        return Example((), tuple(f"{y:.4g}" for y in self[index].y.tolist()), self.groups[0])


class DigitTasks(TaskStreams):
    """Streams of images under a projection and names of their own.

    Args:
        draws: The generator of every stream.
        number: Number of streams.
        images: [n, D], what the streams draw from.
        classes: [n], from 0 on.
        length: T.
        projected: Whether every stream has a projection and an order of the classes of its own.
        group: Name of the one group.
    """

    def __init__(
        self,
        draws: ItemGenerators,
        number: int,
        images: NDArray[np.float32],
        classes: NDArray[np.int64],
        length: int,
        projected: bool,
        group: str,
    ) -> None:
        super().__init__(draws, number, group)
        self.images, self.classes, self.length, self.projected = images, classes, length, projected

    def stream(self, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Images and their names."""
        rows = draw.permutation(len(self.images))[: self.length]
        x, y = self.images[rows], self.classes[rows]
        if self.projected:
            D = x.shape[1]
            x = x @ (draw.standard_normal((D, D), dtype=np.float32) / np.float32(D**0.5))
            y = draw.permutation(int(self.classes.max()) + 1)[y]
        return x, y


class InContextDigits(SplitDataModule):
    r"""Streams of small images under random projections and random names of the classes (Kirsch et al. 2022).

    A task is a matrix W with entries from :math:`N(0, 1/64)` and a permutation of the classes; its examples are (W x,
    class of x) for images x of handwritten digits, 8 x 8 pixels, less the mean image of training and over one standard
    deviation for all pixels: what all images share would be most of what a memory compares. A stream has T different
    images of one task. Who reads it has to find out the task: nothing but the stream says what belongs to what.

    | split | train and val | test (out of distribution) | unprojected (out of distribution) |
    |---|---|---|---|
    | "digits" | three quarters of the images | the other images | those, as they are |
    | "unseen_digits" | digits 0 to 4 | digits 5 to 9 | those, as they are |

    Tasks differ in every stage; only "unprojected" has but one.

    Source: Kirsch, Harrison, Sohl-Dickstein and Metz (2022), "General-Purpose In-Context Learning by Meta-Learning
    Transformers", https://arxiv.org/abs/2212.04458, section 3, on MNIST. Deviation: scikit-learn's images, which need
    no file.

    Args:
        split: One of the table.
        data_dir: Not used; there are no files.
        batch_size: Streams per batch and process.
        seed: Seed of the tasks, of what is held out and of the order of training.
        length: T, at most 400.
        train_examples: Streams of an epoch.
        test_examples: Streams of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, or more than 400 examples in a stream.

    Attributes:
        groups: "digits".
        input_size: 64.
        output_size: Number of classes: 10, or 5 of "unseen_digits".
    """

    benchmark = "in_context_digits"
    splits = ("digits", "unseen_digits")
    groups = ("digits",)
    further = ("unprojected",)
    ood = ("test", "unprojected")
    input_size = _PIXELS

    def __init__(
        self,
        split: str = "digits",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        length: int = 100,
        train_examples: int = 1_000_000,
        test_examples: int = 2000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        check_positive(length=length, train_examples=train_examples, test_examples=test_examples)
        if length > 400:
            raise ValueError(
                f"length is the number of different images of a stream, expected at most 400, not {length}."
            )
        self.length, self.train_examples, self.test_examples = length, train_examples, test_examples
        self.output_size = 10 if split == "digits" else 5

    def dataset_of(self, stage: str) -> DigitTasks:
        """The streams of a stage."""
        images, classes = digits()
        held_out = self._held_out(classes)
        known = images[~held_out]
        images = (images - known.mean(0)) / (known - known.mean(0)).std()
        chosen = held_out if stage in self.ood else ~held_out
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, self.length)
        number = self.train_examples if stage == "train" else self.test_examples
        classes = classes[chosen] % self.output_size
        return DigitTasks(draws, number, images[chosen], classes, self.length, stage != "unprojected", self.groups[0])

    def _held_out(self, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which images are those of the test."""
        if self.split == "unseen_digits":
            return classes >= self.output_size
        order = generator(self.benchmark, "held_out", self.seed).permutation(len(classes))
        held_out = np.zeros(len(classes), dtype=bool)
        for digit in range(10):
            rows = order[classes[order] == digit]
            held_out[rows[: round(_TEST_SHARE * len(rows))]] = True
        return held_out

    @staticmethod
    def collate(items: list[Any]) -> TaskBatch:
        """A batch of streams."""
        x, y = (torch.from_numpy(np.stack([getattr(item, field) for item in items])) for field in ("x", "y"))
        group, ids = torch.tensor([[item.group, item.id] for item in items]).unbind(1)
        return TaskBatch(x, y, group, ids)
