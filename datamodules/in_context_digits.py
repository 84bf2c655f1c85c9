"""In-context digits: streams of labelled images, each of a task that has to be learnt while the stream is read."""

import functools
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algornn.datamodules import mnist_files
from algornn.datamodules.split_datamodule import (
    Example,
    GroupedDataset,
    ItemGenerators,
    SplitDataModule,
    check_positive,
    generator,
)

_SIZE = 8  # width and height of scikit-learn's images
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

    A task is a matrix W with entries from :math:`N(0, 1/D)` and a permutation of the classes; its examples are (W x,
    class of x) for images x of D pixels, less the mean image of training and over one standard deviation for all
    pixels: what all images share would be most of what a memory compares. A stream has T different images of one task.
    Who reads it has to find out the task: nothing but the stream says what belongs to what.

    | split | train and val | test (out of distribution) | unprojected (out of distribution) |
    |---|---|---|---|
    | "digits" | three quarters of 1,797 handwritten digits, 8 x 8 pixels | the other images | those, as they are |
    | "unseen_digits" | digits 0 to 4 of them | digits 5 to 9 | those, as they are |
    | "mnist" | 60,000 handwritten digits, 28 x 28 pixels | the other 10,000 | those, as they are |
    | "fashion_mnist" | 60,000 pieces of clothing, 28 x 28 pixels | the other 10,000 | those, as they are |

    Tasks differ in every stage; only "unprojected" has but one. The digits of the first two come with scikit-learn, and
    are the same images: what was trained on "digits" has seen those of "unseen_digits". A rule that knows no sizes is
    tested on other images by another split: `algornn test --run_dir RUN --data.init_args.split fashion_mnist`.

    Files of the last two: `{train,t10k}-{images-idx3,labels-idx1}-ubyte` (LeCun, Cortes and Burges; Xiao, Rasul and
    Vollgraf 2017, MIT), plain or `.gz`.

    Source: Kirsch, Harrison, Sohl-Dickstein and Metz (2022), "General-Purpose In-Context Learning by Meta-Learning
    Transformers", https://arxiv.org/abs/2212.04458, section 3, on MNIST.

    Args:
        split: One of the table.
        data_dir: The folder with the files of MNIST or Fashion-MNIST. None: `$ALGORNN_DATA/<split>`, then the user
            cache, then a download (12 or 31 MB).
        batch_size: Streams per batch and process.
        seed: Seed of the tasks, of what is held out and of the order of training.
        length: T, at most 400, or 10,000 of the larger sets.
        train_examples: Streams of an epoch.
        test_examples: Streams of every other stage.
        image_size: Width and height in pixels, to which images are reduced by means of squares of pixels; None: as
            they are, 8 or 28, which it has to divide.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, too many examples in a stream, or a size that does not divide.

    Attributes:
        groups: "digits" or "clothes".
        input_size: D.
        output_size: Number of classes: 10, or 5 of "unseen_digits".
    """

    benchmark = "in_context_digits"
    splits = ("digits", "unseen_digits", *mnist_files.SOURCES)
    further = ("unprojected",)
    ood = ("test", "unprojected")

    def __init__(
        self,
        split: str = "digits",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        length: int = 100,
        train_examples: int = 1_000_000,
        test_examples: int = 2000,
        image_size: int | None = None,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        full, longest = (mnist_files.SIZE, 10_000) if split in mnist_files.SOURCES else (_SIZE, 400)
        size = full if image_size is None else image_size
        check_positive(length=length, train_examples=train_examples, test_examples=test_examples, image_size=size)
        if length > longest:
            raise ValueError(
                f"length is the number of different images of a stream, expected at most {longest}, not {length}."
            )
        if full % size:
            raise ValueError(f"image_size has to divide {full}, the size of the images of {split!r}, got {size}.")
        self.full_size, self.size = full, size
        self.length, self.train_examples, self.test_examples = length, train_examples, test_examples
        self.groups = ("clothes" if split == "fashion_mnist" else "digits",)
        self.input_size, self.output_size = size**2, 5 if split == "unseen_digits" else 10
        self._parts: dict[bool, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}

    def prepare_data(self) -> None:
        """Download the files to the user cache if they are at hand nowhere."""
        if self.split in mnist_files.SOURCES:
            mnist_files.files(self.split, self.data_dir)

    def dataset_of(self, stage: str) -> DigitTasks:
        """The streams of a stage.

        Raises:
            FileNotFoundError: A file is nowhere.
            ValueError: A file is damaged, or has too few images.
        """
        if not self._parts:
            (known, known_classes), (held_out, classes) = self._images()
            if (fewest := min(len(known), len(held_out))) < self.length:
                raise ValueError(f"{self.split} has a file of {fewest} images, too few for streams of {self.length}.")
            mean = known.mean(0)
            scale = (known - mean).std()
            self._parts = {
                False: ((known - mean) / scale, known_classes % self.output_size),
                True: ((held_out - mean) / scale, classes % self.output_size),
            }
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, self.length)
        number = self.train_examples if stage == "train" else self.test_examples
        return DigitTasks(
            draws, number, *self._parts[stage in self.ood], self.length, stage != "unprojected", self.groups[0]
        )

    def _images(self) -> tuple[tuple[NDArray[np.float32], NDArray[np.int64]], ...]:
        """Images [n, D] and classes [n] of train, and of the test."""
        if self.split in mnist_files.SOURCES:
            parts = [mnist_files.images(self.split, part, self.data_dir) for part in ("train", "t10k")]
            return tuple((self._reduced(images), classes) for images, classes in parts)
        images, classes = digits()
        images, held_out = self._reduced(images), self._held_out(classes)
        return (images[~held_out], classes[~held_out]), (images[held_out], classes[held_out])

    def _reduced(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Means of squares of pixels, [n, D]."""
        factor = self.full_size // self.size
        squares = images.reshape(len(images), self.size, factor, self.size, factor)
        return squares.mean((2, 4), dtype=np.float32).reshape(len(images), self.input_size)

    def _held_out(self, classes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of scikit-learn's images are those of the test."""
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
