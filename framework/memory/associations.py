"""What all memories share: the trace that probes read, masked tokens, sizes, and heads."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import check_mask, keep_valid


class Associations(NamedTuple):
    """The associations that a memory was asked to store, and the state that holds them.

    Attributes:
        keys: ``[B, N, K]``, zero where a token is masked.
        values: ``[B, N, V]``.
        beta: write strengths ``[B, N]``.
        state: fast weights ``[B, K, V]``; a read is ``state.mT @ key``.
    """

    keys: Tensor
    values: Tensor
    beta: Tensor
    state: Tensor

    @classmethod
    def of_heads(cls, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, mask: Tensor | None) -> Associations:
        """Every head as an example of its own: k, v ``[B, T, H, K|V]``, beta ``[B, T, H]``, state ``[B, H, K, V]``."""
        k, v, beta = (keep_valid(x, mask).transpose(1, 2).flatten(0, 1) for x in (k, v, beta))
        return cls(k, v, beta, state.flatten(0, 1))


def clear_masked(x: Tensor, mask: Tensor | None, size: int | None = None) -> Tensor:
    """Zero the masked tokens of x ``[B, T, D]`` before anything is computed from them.

    NaN in them would otherwise reach the gradients of the layers that make keys and values.

    Raises:
        TypeError: x is no tensor of floating-point numbers.
        ValueError: x has another shape than ``[B, T, size]``; None: any.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        came = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"`x` must be a tensor of floating-point numbers, got {came}; ids need an embedding first.")
    if size is not None and (x.dim() != 3 or x.shape[2] != size):
        raise ValueError(f"`x` must have the shape [B, T, D={size}], got {list(x.shape)}.")
    check_mask(mask, {"B": x.shape[0], "T": x.shape[1]}, like=x)
    return keep_valid(x, mask)


def state_parts(state: Any, like: Tensor, **shapes: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    """Return the parts of a carried state, all None where there is none.

    Args:
        state: what an earlier call returned, or None.
        like: the layer's input ``[B, ...]``.
        shapes: the parts' names and their shapes without the batch.

    Raises:
        ValueError: it is no tuple of such tensors, but another layer's state or that of another batch.
    """
    if state is None:
        return (None,) * len(shapes)
    wanted = [(len(like), *shape) for shape in shapes.values()]
    found = [tuple(x.shape) if isinstance(x, Tensor) else None for x in state] if isinstance(state, tuple) else None
    if found != wanted:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in zip(shapes, wanted, strict=True))
        came = f"shapes {[list(shape) if shape else None for shape in found]}" if found else type(state).__name__
        raise ValueError(f"`state` must be the tuple ({told}) that this layer returned for the same batch, got {came}.")
    return state


def state_or_zeros(state: Any, like: Tensor, dtype: torch.dtype, **shapes: tuple[int, ...]) -> list[Tensor]:
    """Return the parts of a carried state as `state_parts` does, zeros where there is none."""
    parts = state_parts(state, like, **shapes)
    return [
        like.new_zeros(len(like), *shape, dtype=dtype) if part is None else part
        for part, shape in zip(parts, shapes.values(), strict=True)
    ]


def check_sizes(**sizes: object) -> None:
    """Raise a TypeError unless all sizes are whole numbers, and a ValueError unless they are at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"`{name}` must be a whole number, got {size!r}.")
        if int(size) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")


def merge_heads(y: Tensor) -> Tensor:
    """Put the heads of y ``[B, T, H, D]`` after one another, ``[B, T, HD]``."""
    return y.flatten(-2)
