"""The data of a probe: a fixed list of batches that every process can index."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, IterableDataset

_HALF = (torch.float16, torch.bfloat16)


class Batches(Sequence[Any]):
    """Batches in a fixed order, fetched on demand and moved to `device`.

    Nothing is shuffled, sharded or prefetched, and no worker process or global random state is used, so batch `i` is
    the same on every process and in every measurement. Half-precision tensors arrive as float32.

    Args:
        keys: one key per batch.
        fetch: turns a key into a batch.
        device: where batches go.
        names: the names of the groups that a batch's `group` field counts.
    """

    def __init__(
        self, keys: Sequence[Any], fetch: Callable[[Any], Any], device: torch.device, names: Sequence[str] = ()
    ) -> None:
        self.keys = keys
        self.fetch = fetch
        self.device = device
        self.names = tuple(names)

    @classmethod
    def of(cls, loader: Iterable[Any], max_batches: int | None, seed: int, device: torch.device) -> Batches:
        """Take at most `max_batches` batches of a loader.

        From a loader over a map-style dataset: a sample without replacement that depends on `seed` and the size of the
        dataset alone, so a dataset sorted by task is sampled evenly; the loader's `collate_fn` builds the batches and
        its sampler is not used. From any other iterable of batches: its first batches, as they come.

        Raises:
            TypeError: the loader gives no batches.
            ValueError: it is empty.
        """
        if isinstance(loader, (str, Mapping)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
            raise TypeError(f"A probe's data are batches, in a list or a DataLoader, got a {type(loader).__name__}.")
        if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
            raise TypeError(
                f"A probe's data are batches, got the {type(loader).__name__} of single examples: pass it in a "
                "DataLoader, with batch_size=None if its items are batches."
            )
        dataset = getattr(loader, "dataset", None)
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and hasattr(loader, "collate_fn"):
            batches = cls._of_dataset(loader, max_batches, seed, device)
        else:
            names = getattr(dataset, "groups", getattr(loader, "groups", ()))
            batches = cls(list(islice(loader, max_batches)), lambda batch: batch, device, names)
        if not batches:
            used = "used up, or " if isinstance(loader, Iterator) else ""
            raise ValueError(f"A probe needs at least one batch, but its loader is {used}empty: pass one with data.")
        return batches

    @classmethod
    def _of_dataset(cls, loader: Any, max_batches: int | None, seed: int, device: torch.device) -> Batches:
        dataset, collate = loader.dataset, loader.collate_fn
        names = getattr(dataset, "groups", ())
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
        if loader.batch_sampler is None:  # the dataset's items are whole batches
            return cls(order[:max_batches], lambda row: collate(dataset[row]), device, names)
        size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 32
        return cls(
            [order[start : start + size] for start in range(0, len(order), size)][:max_batches],
            lambda rows: collate([dataset[row] for row in rows]),
            device,
            names,
        )

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        """Batch `index` on the device; a slice gives `Batches`."""
        if isinstance(index, slice):
            return Batches(self.keys[index], self.fetch, self.device, self.names)
        batch = move_data_to_device(self.fetch(self.keys[index]), self.device)
        return apply_to_collection(batch, Tensor, lambda t: t.float() if t.dtype in _HALF else t)

    def by_group(self) -> dict[str, Batches]:
        """Split into one `Batches` per group that occurs, by the batches' `group` field, in the order of the names.

        Batches of a dataset are collated anew from the rows of each group; ready-made batches are cut.

        Raises:
            ValueError: the batches have no `group` field, or not one number per example.
        """
        members: dict[int, list[Any]] = {}
        for key in self.keys:
            batch = self.fetch(key)
            group, size = group_of(batch), len(key) if _is_rows(key) else size_of(batch)
            if len(group) != size:
                raise ValueError(f"The field 'group' has {len(group)} numbers for {size} examples: give each one.")
            for value in group.unique().tolist():
                rows = (group == value).nonzero().flatten()
                members.setdefault(value, []).append([key[row] for row in rows] if _is_rows(key) else take(batch, rows))
        return {group_name(value, self.names): self._regroup(members[value]) for value in sorted(members)}

    def _regroup(self, parts: list[Any]) -> Batches:
        if not _is_rows(self.keys[0]):
            return Batches(parts, lambda batch: batch, self.device)
        rows, size = [row for part in parts for row in part], len(self.keys[0])
        return Batches([rows[start : start + size] for start in range(0, len(rows), size)], self.fetch, self.device)


def _is_rows(key: Any) -> bool:
    return isinstance(key, list) and all(isinstance(row, int) for row in key)


def group_of(batch: Any) -> Tensor:
    """The `group` field of a batch, `[B]` integers.

    Raises:
        ValueError: there is none.
    """
    group = batch.get("group") if isinstance(batch, Mapping) else getattr(batch, "group", None)
    if not isinstance(group, Tensor) or group.ndim != 1 or group.is_floating_point():
        none = f"a {type(batch).__name__} without it"
        found = f"{group.dtype} {list(group.shape)}" if isinstance(group, Tensor) else none
        raise ValueError(
            f"Expected batches with a tensor field 'group' [B] of whole numbers to split into sub-tasks, got {found}. "
            "Add it to the batches of your loader; only WeightMaskProbe does without, with tasks={name: loader, ...}."
        )
    return group.cpu()


def group_name(value: int, names: Sequence[str]) -> str:
    """The name of a group that is given by its number, of the names of the first groups."""
    return names[value] if 0 <= value < len(names) else f"group {value}"


def field_of(batch: Any, field: int | Callable[[Any], Any] | str, option: str = "") -> Any:
    """A field of a batch: by its name or key, by its place in a tuple, or by a function of the batch.

    The fields of a pair without names are called x and y.
    In annotations the text comes last: a command line takes the first kind that fits, and everything is a text.

    Args:
        batch: any batch.
        field: which.
        option: the probe's argument that names the field, for the message.

    Raises:
        ValueError: the batch has no such field; the message lists those that it has.
    """
    if callable(field):
        return field(batch)
    field = _place(batch, field)
    try:
        return getattr(batch, field) if isinstance(field, str) and not isinstance(batch, Mapping) else batch[field]
    except (AttributeError, KeyError, IndexError, TypeError):
        names = list(batch) if isinstance(batch, Mapping) else getattr(batch, "_fields", None)
        offers = names or (f"0 to {len(batch) - 1}" if isinstance(batch, (tuple, list)) else list(vars(batch)))
        mend = f" Name one of them by {option}=... (--probe.{option} for `algornn probe`)." if option else ""
        raise ValueError(
            f"A {type(batch).__name__} has no field {field!r}; it has {offers}.{mend} A function of the batch will do, "
            "too."
        ) from None


def _place(batch: Any, field: int | str) -> int | str:
    """The place of x or y in a pair without names; any other field as it is."""
    pair = isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields") and len(batch) == 2
    return {"x": 0, "y": 1}.get(str(field), field) if pair else field


def with_field(batch: Any, field: str | int, value: Any) -> Any:
    """The batch with another value in one of its fields, named as for `field_of`; the batch itself stays as it is."""
    field_of(batch, field)
    field = _place(batch, field)
    if isinstance(batch, tuple):
        names: tuple[str, ...] = getattr(batch, "_fields", ())
        place = names.index(field) if isinstance(field, str) else field % len(batch)
        parts = [*batch[:place], value, *batch[place + 1 :]]
        return type(batch)(*parts) if names else tuple(parts)
    if is_dataclass(batch) and not isinstance(batch, type) and isinstance(field, str):
        return replace(batch, **{field: value})
    other = copy.copy(batch)
    if isinstance(field, str) and not isinstance(batch, Mapping):
        setattr(other, field, value)
    else:
        other[field] = value
    return other


def size_of(batch: Any) -> int:
    """The number of examples of a batch: the leading dimension of its first tensor that has one.

    Raises:
        ValueError: the batch holds no such tensor.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError(f"Expected a batch that holds tensors [B, ...], got {type(batch).__name__} without any.")


def take(batch: Any, rows: Tensor | slice) -> Any:
    """The given rows of a batch; whatever is not a tensor `[B, ...]` is kept whole."""
    size = size_of(batch)

    def pick(value: Tensor) -> Tensor:
        if not value.ndim or len(value) != size:
            return value
        return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]

    return apply_to_collection(batch, Tensor, pick)
