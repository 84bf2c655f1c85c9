"""Batches computed in parts of similar length: the same gradient in less time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch

Trims = Mapping[str, tuple[str, ...]]


def check_length_groups(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Return the shares of a batch; raise a TypeError or ValueError unless they are positive and sum to 1."""
    if not isinstance(shares, Sequence) or not all(isinstance(share, Real) for share in shares):
        raise TypeError(f"`length_groups` must be a tuple of shares that sum to 1, such as (1.0,), got {shares!r}.")
    if not (abs(sum(shares) - 1) <= 1e-6 and min(shares) > 0):
        raise ValueError(f"`length_groups` must be positive shares that sum to 1, got {shares}.")
    return tuple(shares)


def by_length(batch: Any, shares: tuple[float, ...], trims: Trims) -> list[Any]:
    """Split a batch into parts of similar length, each trimmed to its own longest.

    Args:
        batch: a named tuple of tensors ``[B, ...]``.
        shares: sizes of the parts, from the shortest sequences to the longest, as shares of the batch.
        trims: the fields ``[B, T, ...]`` that a mask field ``[B, T]`` governs. The first mask orders the batch.

    Returns:
        Named tuples like `batch`; padding must come after real tokens.
    """
    if len(shares) == 1:
        return [batch]
    order = getattr(batch, next(iter(trims))).sum(1).argsort(stable=True)
    cuts = torch.tensor(shares[:-1]).cumsum(0).mul(len(order)).round().long()
    parts = []
    for rows in order.tensor_split(cuts):
        if len(rows):
            part = type(batch)(*(field[rows] for field in batch))
            parts.append(part._replace(**_trimmed(part, trims)))
    return parts


def _trimmed(part: Any, trims: Trims) -> dict[str, Any]:
    trimmed: dict[str, Any] = {}
    for mask, fields in trims.items():
        longest = int(getattr(part, mask).sum(1).max())
        trimmed |= {name: getattr(part, name)[:, :longest] for name in (mask, *fields)}
    return trimmed
