"""Batches computed in parts of similar length: the same gradient in less time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.learners.checks import check_whole

Trims = Mapping[str, tuple[str, ...]]


def check_length_groups(groups: int) -> int:
    """Return the number of parts; raise a TypeError or ValueError unless it is whole and at least 1."""
    check_whole(1, length_groups=groups)
    return groups


def by_length(batch: Any, groups: int, trims: Trims) -> list[Any]:
    """Split a batch into parts of similar length, each trimmed to its own longest, so that little padding is left.

    Args:
        batch: a named tuple of tensors ``[B, ...]``.
        groups: the most parts, from the shortest sequences to the longest.
        trims: the fields ``[B, T, ...]`` that a mask field ``[B, T]`` governs. The first mask orders the batch.

    Returns:
        Named tuples like `batch`; padding must come after real tokens.
    """
    if groups == 1:
        return [batch]
    lengths = torch.stack([getattr(batch, mask).sum(1) for mask in trims], 1).cpu()
    order = lengths[:, 0].argsort(stable=True)
    parts = []
    for rows in order.split(least_padding(lengths[order], groups)):
        part = type(batch)(*(field[rows.to(field.device)] for field in batch))
        longest = dict(zip(trims, lengths[rows].amax(0).tolist(), strict=True))
        names = {name: mask for mask, fields in trims.items() for name in (mask, *fields)}
        parts.append(part._replace(**{name: getattr(part, name)[:, : longest[mask]] for name, mask in names.items()}))
    return parts


def least_padding(lengths: Tensor, groups: int) -> list[int]:
    """Cut a batch into parts in order, so that they have the fewest tokens when each is padded to its longest.

    By dynamic programming over the parts and their ends; examples whose first length is the same stay together.

    Args:
        lengths: the lengths of every example ``[B, k]``, on the CPU, ascending in the first.
        groups: the most parts.

    Returns:
        The sizes of the parts.
    """
    _, counts = lengths[:, 0].unique_consecutive(return_counts=True)
    ends, n = F.pad(counts.cumsum(0), (1, 0)), len(counts)  # where a part may begin or end, from 0 to B
    longest = torch.stack([same.amax(0) for same in lengths.split(counts.tolist())])
    tokens = torch.full((n, n + 1), torch.inf)  # of a part from one of the ends to another
    for start in range(n):
        widths = longest[start:].cummax(0).values.sum(1)
        tokens[start, start + 1 :] = widths * (ends[start + 1 :] - ends[start])
    best, starts = torch.where(torch.arange(n + 1) == 0, 0.0, torch.inf), []
    for _ in range(min(groups, n)):
        best, before = (best[:n, None] + tokens).min(0)
        starts.append(before.tolist())
    cuts = [n]
    for start in reversed(starts):
        cuts.append(start[cuts[-1]])
    sizes: list[int] = ends[cuts[::-1]].diff().tolist()
    return sizes
