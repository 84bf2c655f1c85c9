"""Blocks of tokens, for every operator that computes several tokens at once: their size, order and decay."""

from __future__ import annotations

import torch
from torch import Tensor


def check_chunk(chunk: int | None) -> None:
    """Raise unless `chunk` is None or a whole number of tokens, 1 at least."""
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool)):
        raise TypeError(f"`chunk` must be a whole number of tokens, got {chunk!r}. Leave it out to have it chosen.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"`chunk` must be at least 1 token, got {chunk}. Leave it out to have it chosen.")


def not_before(tokens: int, device: torch.device, rows: int = 1) -> Tensor:
    """[n, n] bool for n = tokens * rows: True unless the column's token is before the row's.

    The rows of one token, its simultaneous writes, do not see each other.
    """
    token = torch.arange(tokens, device=device).repeat_interleave(rows)
    return token[:, None] <= token


def decay_weights(decay: Tensor) -> tuple[Tensor, Tensor]:
    """Products of decays ``[..., T]`` over (s, t], ``[..., T, T]`` (0 above the diagonal), and over [1, t].

    Running products, not quotients of them, so that a decay of 0 is exact.
    """
    T = decay.shape[-1]
    after = torch.ones(T, T, dtype=torch.bool, device=decay.device).tril(-1)
    factor = torch.where(after, decay[..., :, None], 1.0)
    return factor.cumprod(-2).tril(), decay.cumprod(-1)
