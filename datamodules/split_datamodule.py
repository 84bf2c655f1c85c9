"""The base of every benchmark: named splits, stages in and out of distribution, groups, and loaders that can resume.

Subclasses say what their data are (`dataset_of`, `collate`); everything that all benchmarks share is here.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Example(NamedTuple):
    """One example of a benchmark, as its authors would show it.

    Attributes:
        source: The input; for text benchmarks its tokens.
        target: The expected output; for text benchmarks its tokens.
        group: The sub-task or generalization category.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    group: str


class GroupedDataset(Dataset[Any]):
    """A map-style dataset whose items know their group: `groups[dataset[i].group]`; the id of item i is i."""

    groups: tuple[str, ...]

    def __len__(self) -> int:
        """Number of items."""
        raise NotImplementedError

    def example(self, index: int) -> Example:
        """Item `index` as its authors would show it."""
        raise NotImplementedError


class Examples(Sequence[Example]):
    """The examples of a dataset, made when they are looked at."""

    def __init__(self, dataset: GroupedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        """Example `index`, or a list of examples."""
        if isinstance(index, slice):
            return [self.dataset.example(i) for i in range(len(self))[index]]
        return self.dataset.example(range(len(self))[index])


def generator(*name: object) -> np.random.Generator:
    """A random generator that depends on `name` alone: the same on every machine, process and Python version.

    `generator("story_world", "pairs", "train", 0)` and the like; Python's own `hash` is salted and will not do.
    """
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class ItemGenerators:
    """A random generator for every item, from (name, index) alone: item 7 is made without items 0 to 6.

    Philox counts: the index is the highest word of its counter, so no two items share a number. Moving one generator
    takes 2 microseconds, making a new one by `generator` takes 20. What a call returns is good until the next call.
    """

    def __init__(self, *name: object) -> None:
        self._key = np.frombuffer(hashlib.sha256("/".join(map(str, name)).encode()).digest()[:16], dtype="<u8")
        self._generator = np.random.Generator(np.random.Philox(key=self._key))

    def __call__(self, index: int) -> np.random.Generator:
        """The generator of item `index`, at its start."""
        state = {"counter": np.array([0, 0, 0, index], dtype=np.uint64), "key": self._key}
        rest = {"buffer": np.zeros(4, dtype=np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
        self._generator.bit_generator.state = {"bit_generator": "Philox", "state": state, **rest}
        return self._generator


def check_name(kind: str, name: str, names: Sequence[str]) -> str:
    """Return `name` if it is one of `names`; otherwise raise a ValueError that shows the closest valid one."""
    if name in names:
        return name
    closest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean {closest[0]!r}? Expected" if closest else ", expected"
    raise ValueError(f"{kind} {name!r} is unknown{hint} one of {', '.join(map(repr, names))}.")


def check_whole(**numbers: object) -> None:
    """Raise a TypeError unless all `numbers` are whole: a size of 330.5 would never be reached."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"{name} must be a whole number, not {number!r}.")


def check_positive(**numbers: int) -> None:
    """Raise a TypeError unless all `numbers` are whole, and a ValueError unless they are at least 1."""
    check_whole(**numbers)
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}.")


def check_flags(**flags: object) -> None:
    """Raise a TypeError unless all `flags` are True or False: "no" would count as True."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, not {flag!r}.")


class EpochOrder:
    """The batches of one process in one epoch: lists of indices, from one permutation per (name, epoch).

    With W processes, global batch b is rows `b*W*batch_size` to `(b+1)*W*batch_size` of the permutation, and process r
    takes every W-th of them from the r-th on. So two processes with batch size 16 see together, batch by batch, what
    one process with batch size 32 sees. The incomplete last batch is dropped.

    Args:
        name: What the permutation depends on besides the epoch (benchmark, split, seed, ...).
        size: Number of items.
        batch_size: Items per batch and process.
        rank: This process, 0 <= rank < world.
        world: Number of processes.

    Attributes:
        epoch: The epoch that is given next.
        batch: The batch of that epoch that is given next.

    Raises:
        ValueError: There is not even one full global batch.
    """

    def __init__(self, name: tuple[object, ...], size: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if size < batch_size * world:
            raise ValueError(
                f"Expected at least one batch of {world} x {batch_size} training examples, found {size} in all; "
                "choose a smaller batch_size."
            )
        self.name, self.size, self.batch_size, self.rank, self.world = name, size, batch_size, rank, world
        self.epoch = 0
        self.batch = 0
        self.placed = False  # whether the epoch is its own count, of batches given or of a state that was loaded

    @property
    def sampler(self) -> "EpochOrder":
        """Itself: Lightning calls `loader.batch_sampler.sampler.set_epoch` at the start of every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, unless the order has a place already: from there it counts by itself.

        Lightning's count is another one: it takes an epoch that `max_steps` cut short for a whole one.
        """
        if not self.placed:
            self.epoch, self.batch = epoch, 0

    def __len__(self) -> int:
        """Batches per epoch (of the whole epoch, wherever it is resumed)."""
        return self.size // (self.batch_size * self.world)

    def order(self) -> NDArray[np.int64]:
        """The items in the order of this epoch."""
        return generator(*self.name, self.epoch).permutation(self.size)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `batch` to the end of the epoch."""
        order, step = self.order(), self.batch_size * self.world
        for b in range(self.batch, len(self)):
            yield order[b * step + self.rank : (b + 1) * step : self.world].tolist()


class ResumableLoader:
    """A training loader that continues in the middle of an epoch: the state is (epoch, batches already given).

    Lightning stores `state_dict()` in every checkpoint and calls `load_state_dict()` on resume. It is not a
    `DataLoader`, so that Lightning never swaps its sampler for another one.

    Args:
        dataset: Map-style dataset.
        order: The indices of every batch.
        collate_fn: Makes a batch from a list of items.
    """

    def __init__(self, dataset: GroupedDataset, order: EpochOrder, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.batch_sampler, self.collate_fn = dataset, order, collate_fn
        self.batch_size = order.batch_size
        self._resumed = False

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """One pass: a whole epoch, or the rest of it right after `load_state_dict`."""
        # A generator: nothing is settled before the first batch is asked for, since Lightning makes the iterator
        # before it sets the epoch.
        order = self.batch_sampler
        if order.batch >= len(order):  # the last pass was given to its end
            order.epoch, order.batch = order.epoch + 1, 0
        elif not self._resumed:
            order.batch = 0
        self._resumed = False
        order.placed = True
        # A generator of its own, or the loader would draw from the global one, which a resumed run has put back.
        own = torch.Generator()
        for batch in DataLoader(self.dataset, batch_sampler=order, collate_fn=self.collate_fn, generator=own):
            order.batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: `epoch` and the number of its batches given so far."""
        return {"epoch": self.batch_sampler.epoch, "batch": self.batch_sampler.batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a `state_dict()`."""
        order = self.batch_sampler
        order.epoch, order.batch, order.placed = state_dict["epoch"], state_dict["batch"], True
        self._resumed = True


class SplitDataModule(LightningDataModule):
    """A benchmark with named splits and, in each, named stages in and out of distribution.

    A subclass sets `benchmark`, `splits` and, where it has them, `further`, `further_val` and `ood`, and defines
    `groups`, `dataset_of` and `collate`. Sizes that a model needs are known after the constructor, without reading a
    file.

    `further_val` names validation sets besides "val", such as "val_ood" of a depth between those of train and test:
    a recipe may choose its checkpoint by ``val_ood/sequence_accuracy`` and so never looks at the test set.

    Batches carry `id`, the index into `examples(stage)`: with several processes the evaluation loaders repeat a few
    examples so that all processes have equally many, and a learner drops these repeats by their ids.

    Args:
        split: One of `splits`.
        data_dir: The benchmark's folder; None: `$ALGORNN_DATA/<benchmark>`, then the user cache, then a download.
        batch_size: Examples per batch and process; in evaluation at least `evaluation_batch`.
        seed: Seed of the order of training (and of the data, where they are generated).

    Raises:
        TypeError: A batch size or seed that is not a whole number.
        ValueError: Unknown split, batch size below 1 or negative seed.
    """

    benchmark: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    mean_over: ClassVar[str] = "examples"  # what the benchmark's publications average: "examples" or "groups"
    further: tuple[str, ...] = ()
    further_val: tuple[str, ...] = ()
    ood: tuple[str, ...] = ()
    evaluation_batch: ClassVar[int] = 1  # examples of an evaluation batch at least, where those of training are fewer
    groups: tuple[str, ...]

    def __init__(
        self, split: str, data_dir: str | os.PathLike[str] | None = None, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        self.split = check_name("split", split, self.splits)
        check_whole(batch_size=batch_size, seed=seed)
        if batch_size < 1:
            raise ValueError(f"batch_size is the number of examples per batch, expected at least 1, not {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}.")
        self.data_dir, self.batch_size, self.seed = data_dir, batch_size, seed
        self._datasets: dict[str, GroupedDataset] = {}

    def __str__(self) -> str:
        """Its name, split and note; Lightning's own would open every loader."""
        return f"{type(self).__name__}({self.split})" + (f" ({self.note})" if self.note else "")

    @property
    def note(self) -> str:
        """Why results are not comparable with published ones, such as a generated training set; "" where they are.

        It stands beside the data's name in the record of a run, and a note gives no verdict.
        """
        return ""

    def examples(self, stage: str) -> Sequence[Example]:
        """All examples of a stage, in their own order, made when they are looked at."""
        return Examples(self.dataset(stage))

    def dataset_of(self, stage: str) -> GroupedDataset:
        """Read or generate the examples of a stage as numbers; called once per stage."""
        raise NotImplementedError

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """A batch from items of the dataset."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of all stages: train, the validation sets and the test sets."""
        return ("train", *self.val_stages, *self.test_stages)

    @property
    def val_stages(self) -> tuple[str, ...]:
        """Names of the stages in the order of `val_dataloader()`: `dataloader_idx` is an index into them."""
        return ("val", *self.further_val)

    @property
    def test_stages(self) -> tuple[str, ...]:
        """Names of the stages in the order of `test_dataloader()`: `dataloader_idx` is an index into them."""
        return ("test", *self.further)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Groups of which only a part of the training data is at hand."""
        return ()

    def dataset(self, stage: str) -> GroupedDataset:
        """The examples of a stage as numbers (read once, then kept)."""
        if check_name("stage", stage, self.stages) not in self._datasets:
            self._datasets[stage] = self.dataset_of(stage)
        return self._datasets[stage]

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; the order depends on the seed and the epoch only, whatever the number of processes."""
        dataset = self.dataset("train")
        name = (self.benchmark, self.split, "order", self.seed)
        return ResumableLoader(dataset, EpochOrder(name, len(dataset), self.batch_size, *self._place()), self.collate)

    def val_dataloader(self) -> DataLoader[Any] | dict[str, DataLoader[Any]]:
        """The validation set, in distribution; a benchmark with further validation sets gives them all by name."""
        loaders = {stage: self._evaluation_loader(stage) for stage in self.val_stages}
        return loaders if self.further_val else loaders["val"]

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The test set and every further test set by name."""
        return {stage: self._evaluation_loader(stage) for stage in self.test_stages}

    def predict_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The same as `test_dataloader`."""
        return self.test_dataloader()

    def _evaluation_loader(self, stage: str) -> DataLoader[Any]:
        dataset = self.dataset(stage)
        rank, world = self._place()
        # Process r takes items r, r + W, ..., repeating the first ones at the end where W does not divide the size.
        # Lightning leaves a DistributedSampler alone.
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=world, rank=rank, shuffle=False)
        size = max(self.batch_size, self.evaluation_batch)
        return DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=self.collate)

    def _place(self) -> tuple[int, int]:
        """This process and the number of processes; (0, 1) without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class VocabularyDataModule(SplitDataModule):
    """A benchmark whose inputs and outputs are words.

    Attributes:
        vocabulary: The word of every id of an input; word 0 is padding.
        outputs: The word of every id or class of an output.
    """

    vocabulary: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """Number of ids of an input, padding and other special ones included."""
        return len(self.vocabulary)

    @property
    def output_size(self) -> int:
        """Number of ids or classes of an output."""
        return len(self.outputs)
