"""What every operator does with its arguments, once: shapes, dtypes, masks, half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(
    name: str,
    tensor: Tensor,
    dims: str,
    sizes: dict[str, int],
    like: Tensor | None = None,
    dtypes: tuple[torch.dtype, ...] = (),
) -> None:
    """Raise unless `tensor` has the named `dims`; a dimension seen for the first time is added to `sizes`.

    Args:
        name: the argument's name, for the message.
        tensor: the value that came.
        dims: space separated dimension names, such as ``"B T M V"``.
        sizes: the sizes known so far; updated in place.
        like: a tensor that `tensor` must agree with in device and dtype; under autocast, which leaves some results in
            half precision and others not, in the device alone.
        dtypes: dtypes that are right besides that of `like`.

    Raises:
        TypeError: `tensor` is no floating-point tensor, or its dtype is a wrong one.
        ValueError: a wrong shape or device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a tensor [{dims.replace(' ', ', ')}], got {type(tensor).__name__}.")
    names = dims.split()
    wanted = ", ".join(f"{d}={sizes[d]}" if d in sizes else d for d in names)
    if tensor.dim() != len(names) or any(sizes.get(d, n) != n for d, n in zip(names, tensor.shape, strict=True)):
        raise ValueError(f"`{name}` must have the shape [{wanted}], got {list(tensor.shape)}.")
    sizes.update(zip(names, tensor.shape, strict=True))
    if not tensor.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor, got {tensor.dtype}. Convert it with .float().")
    if like is None:
        return
    if tensor.device != like.device:
        raise ValueError(f"`{name}` must be on {like.device} like the other arguments, got {tensor.device}.")
    right = tuple(dict.fromkeys((like.dtype, *dtypes)))
    if tensor.dtype not in right and not torch.is_autocast_enabled(like.device.type):
        wanted = " or ".join(map(str, right))
        raise TypeError(f"`{name}` must have the dtype {wanted} like the other arguments, got {tensor.dtype}.")


def check_mask(mask: Tensor | None, sizes: dict[str, int], like: Tensor) -> None:
    """Raise unless `mask` is None or a boolean tensor ``[B, T]`` on the device of `like`."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"`mask` must be a boolean tensor [B, T] (True: the token counts), got {came}.")
    if list(mask.shape) != [sizes["B"], sizes["T"]]:
        raise ValueError(f"`mask` must have the shape [B={sizes['B']}, T={sizes['T']}], got {list(mask.shape)}.")
    if mask.device != like.device:
        raise ValueError(f"`mask` must be on {like.device} like the other arguments, got {mask.device}.")


def keep_valid(tensor: Tensor, mask: Tensor | None, fill: float = 0.0) -> Tensor:
    """Replace the entries of masked tokens by `fill`; NaN in them does not leak, as it would through a product.

    Args:
        tensor: ``[B, T, ...]``.
        mask: ``[B, T]`` bool, or None to keep everything.
        fill: the value that masked tokens get.
    """
    if mask is None:
        return tensor
    return tensor.masked_fill(~mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2)), fill)


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of states and sums: float32 for half-precision inputs, otherwise the input's own."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
