"""What a probe reads of every example, from all batches and processes: activations, messages and labels as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from algornn.probes.batches import field_of, size_of
from algornn.probes.subject import Subject

Field = int | Callable[[Any], Any] | str

FILL = torch.iinfo(torch.int64).min  # behind the end of integer rows that are shorter than the longest


def gathered(subject: Subject, read: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Read every batch, shared out over the processes, and join the rows in the order of the batches.

    Args:
        subject: what is measured.
        read: a batch to named tensors ``[B, ...]`` or lists of B entries.

    Returns:
        The same names, with the rows of all batches. Integer rows of different widths are filled up with `FILL`.

    Raises:
        ValueError: activations whose shape differs between batches.
    """
    parts = subject.map(lambda index, generator: read(subject.loader[index]), range(len(subject.loader)))
    return {name: joined(name, [part[name] for part in parts]) for name in parts[0]}


def joined(name: str, parts: list[Any]) -> Any:
    """One list or tensor of all rows; see `gathered`."""
    if isinstance(parts[0], list):
        return [entry for part in parts for entry in part]
    widths = sorted({tuple(part.shape[1:]) for part in parts})
    if len(widths) == 1:
        return torch.cat(parts)
    if parts[0].is_floating_point():
        raise ValueError(
            f"The {name} of an example has another shape in another batch: {list(map(list, widths))}. Name a site of "
            "one size, such as the last state of a recurrent layer instead of its outputs."
        )
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=FILL) for part in parts])


def labels_of(batch: Any, field: Field, name: str) -> Tensor:
    """A field of a batch as integer rows ``[B, A]``; a field ``[B]`` is one column.

    Raises:
        TypeError: the field is no tensor of whole numbers; the message calls it `name`.
        ValueError: it has no or more than two dimensions.
    """
    values = field_of(batch, field, name)
    if not isinstance(values, Tensor) or (values.is_floating_point() and not bool((values == values.round()).all())):
        kind = f"tensor of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor of whole numbers [B] or [B, A], got a {kind}.")
    if values.ndim not in (1, 2):
        raise ValueError(f"{name} must be a tensor of whole numbers [B] or [B, A], got shape {list(values.shape)}.")
    return values.long().reshape(len(values), -1)


def activation_of(subject: Subject, at: str, batch: Any, model: torch.nn.Module | None = None) -> Tensor:
    """The activation ``[B, ...]`` at a site, for one batch.

    Raises:
        ValueError: its first dimension is not the batch.
    """
    activation = subject.activations([at], batch, model)[at]
    if not activation.ndim or len(activation) != size_of(batch):
        raise ValueError(
            f"Expected an activation [{size_of(batch)}, ...] at the site {at!r}, got {list(activation.shape)}: the "
            "first dimension must be the batch."
        )
    return activation


def vectors_of(subject: Subject, at: str, batch: Any, model: torch.nn.Module | None = None) -> Tensor:
    """The activation at a site as float64 vectors ``[B, d]``, all its other dimensions in one; see `flat`."""
    return flat(activation_of(subject, at, batch, model)).double()


def flat(activation: Tensor, dimensions: int = 1) -> Tensor:
    """All but the first dimensions in one: ``[B, ...]`` to ``[B, d]``, with d = 1 for ``[B]``.

    Of complex numbers the real and the imaginary parts are numbers of their own.
    """
    if activation.is_complex():
        activation = torch.view_as_real(activation.resolve_conj())
    return torch.atleast_1d(activation).unsqueeze(-1).flatten(dimensions)


def messages_of(subject: Subject, at: str, batch: Any, model: torch.nn.Module | None = None) -> Tensor:
    """The activation at a site as messages ``[B, L]``: the largest of the last dimension, or the integers as they are.

    Raises:
        ValueError: it is neither ``[B, L, V]`` (or ``[B, V]``, messages of one symbol) nor integers ``[B, L]``.
    """
    activation = activation_of(subject, at, batch, model)
    if activation.is_complex() or (activation.is_floating_point() and activation.ndim == 1):
        raise ValueError(
            f"The largest of a last dimension is a symbol, but the site {at!r} has {activation.dtype} "
            f"{list(activation.shape)}: choose a site of scores [B, L, V]."
        )
    symbols = activation.argmax(-1) if activation.is_floating_point() else activation.long()
    symbols = symbols[:, None] if symbols.ndim == 1 else symbols
    if symbols.ndim != 2:
        raise ValueError(
            f"Messages are read from an activation [B, L, V], the site {at!r} has {list(activation.shape)}."
        )
    return symbols


def finite_rows(vectors: Tensor) -> Tensor:
    """The indices of the rows without infinity or not-a-number."""
    return vectors.isfinite().all(1).nonzero().flatten()
