"""What the operators share whose memory feeds its own queries, keys or values, so that tokens come one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from algornn.triton_kernels.arguments import accumulation_dtype, check_tensor


def check_state(state: tuple[Tensor, Tensor] | None, name: str, sizes: dict[str, int], like: Tensor) -> None:
    """Raise unless `state` is None or a pair of a matrix ``[B, H, D, D]``, called `name`, and y ``[B, H, D]``."""
    if state is None:
        return
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"`initial_state` must be a pair ({name}, y) of tensors, got {type(state).__name__}.")
    # A carried state is float32 when the inputs are half precision.
    wide = (accumulation_dtype(like),)
    check_tensor("initial_state[0]", state[0], "B H D D", sizes, like, wide)
    check_tensor("initial_state[1]", state[1], "B H D", sizes, like, wide)


def first_state(state: tuple[Tensor, Tensor] | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state before the first token: the one given, or zeros, for tokens `like` ``[B, T, H, D]``."""
    B, _, H, D = like.shape
    to = accumulation_dtype(like)
    if state is None:
        return like.new_zeros(B, H, D, D, dtype=to), like.new_zeros(B, H, D, dtype=to)
    return state[0].to(to), state[1].to(to)


def before(y: Tensor, ys: Tensor) -> Tensor:
    """Return what each token of ``[B, T, H, D]`` finds, ``[y, y_1, ..., y_{T-1}]``."""
    return torch.cat([y[:, None], ys], 1)[:, :-1].contiguous()


def read(S: Tensor, q: Tensor) -> Tensor:
    """Read :math:`S^T q` for S ``[..., K, V]`` and q ``[..., K]``."""
    return (q[..., None, :] @ S)[..., 0, :]


def outer(k: Tensor, u: Tensor) -> Tensor:
    """Return :math:`k u^T`, ``[..., K, V]``."""
    return k[..., :, None] * u[..., None, :]


def softmax_gradient(p: Tensor, dp: Tensor) -> Tensor:
    """Return the gradient of a where p = softmax(a)."""
    return p * (dp - (p * dp).sum(-1, keepdim=True))


def tokens_first(x: Tensor) -> Tensor:
    """Turn ``[B, T, H, ...]`` into contiguous ``[T, H, B, ...]``: a step reads one block, and heads are matrices."""
    return x.permute(1, 2, 0, *range(3, x.dim())).contiguous()


def batch_first(x: Tensor) -> Tensor:
    """Undo `tokens_first`."""
    return x.permute(2, 0, 1, *range(3, x.dim())).contiguous()


def heads_first(x: Tensor) -> Tensor:
    """Swap batch and heads, into a copy that may be overwritten; its own inverse."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format)
