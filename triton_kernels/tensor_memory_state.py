r"""From writes to a state and from a state to reads, for tensor-product keys: two products, each other's adjoint.

.. math:: S = \sum_i e_i \otimes r_i \otimes u_i, \qquad o_i = S^\top (e_i \otimes r_i)

Either makes a number for every row, role and value on its way, :math:`n R V` of them: more than the state where a row
is a token of a long sequence. Both run over slices of rows, forward and backward, and keep none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algornn.triton_kernels.dispatch import Tensors, differentiable, under_transform

ROWS_PER_SLICE = 64


def build_state(e: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """Sum the outer products of rows e ``[B, n, E]``, r ``[B, n, R]``, u ``[B, n, V]`` to a state ``[B, E, R, V]``."""
    small = u.shape[1] <= ROWS_PER_SLICE or not u.shape[0]
    return (_build_composite if small or under_transform() else _build)(e, r, u)[0]


def read_state(state: Tensor, e: Tensor, r: Tensor) -> Tensor:
    r"""Read :math:`S^\top (e \otimes r)` of a state ``[B, E, R, V]`` for e ``[B, ..., E]``, r ``[B, ..., R]``."""
    lead = e.shape[1:-1]
    e, r = e.flatten(1, -2), r.flatten(1, -2)
    small = e.shape[1] <= ROWS_PER_SLICE or not e.shape[0]
    return (_read_composite if small or under_transform() else _read)(state, e, r)[0].unflatten(1, lead)


def _slices(*rows: Tensor) -> Sequence[tuple[Tensor, ...]]:
    return list(zip(*(x.split(ROWS_PER_SLICE, 1) for x in rows), strict=True))


def _bound(r: Tensor, u: Tensor) -> Tensor:
    """The products of roles and values, ``[B, n, RV]``."""
    return (r[..., None] * u[:, :, None]).flatten(2)


def _build_composite(e: Tensor, r: Tensor, u: Tensor) -> tuple[Tensor]:
    return ((e.mT @ _bound(r, u)).unflatten(2, (r.shape[-1], u.shape[-1])),)


def _build_forward(e: Tensor, r: Tensor, u: Tensor) -> tuple[Tensor]:
    state = u.new_zeros(len(u), e.shape[-1], r.shape[-1] * u.shape[-1])
    for e_part, r_part, u_part in _slices(e, r, u):
        state.baddbmm_(e_part.mT, _bound(r_part, u_part))
    return (state.unflatten(2, (r.shape[-1], u.shape[-1])),)


def _build_backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    e, r, u = inputs
    d = torch.zeros_like(outputs[0]) if gradients[0] is None else gradients[0]
    flat, parts = d.flatten(2), []
    for e_part, r_part, u_part in _slices(e, r, u):
        by_entity = (e_part @ flat).unflatten(2, d.shape[2:])
        dr, du = (by_entity * u_part[:, :, None]).sum(3), (by_entity * r_part[..., None]).sum(2)
        parts.append((_bound(r_part, u_part) @ flat.mT, dr, du))
    return [torch.cat(rows, 1) for rows in zip(*parts, strict=True)]


def _read_composite(state: Tensor, e: Tensor, r: Tensor) -> tuple[Tensor]:
    by_entity = (e @ state.flatten(2)).unflatten(2, state.shape[2:])
    return ((by_entity * r[..., None]).sum(2),)


def _read_forward(state: Tensor, e: Tensor, r: Tensor) -> tuple[Tensor]:
    return (torch.cat([_read_composite(state, *part)[0] for part in _slices(e, r)], 1),)


def _read_backward(
    gradients: Tensors, inputs: Sequence[Any], outputs: Sequence[Tensor], numbers: Sequence[int]
) -> list[Tensor]:
    state, e, r = inputs
    d = torch.zeros_like(outputs[0]) if gradients[0] is None else gradients[0]
    flat, parts = state.flatten(2), []
    dstate = torch.zeros_like(flat)
    for e_part, r_part, d_part in _slices(e, r, d):
        by_entity, bound = (e_part @ flat).unflatten(2, state.shape[2:]), _bound(r_part, d_part)
        dstate.baddbmm_(e_part.mT, bound)
        parts.append((bound @ flat.mT, (by_entity * d_part[:, :, None]).sum(3)))
    return [dstate.view_as(state), *(torch.cat(rows, 1) for rows in zip(*parts, strict=True))]


_build = differentiable(
    "tensor_memory_build_state",
    _build_forward,
    _build_backward,
    lambda e, r, u: (u.new_empty(len(u), e.shape[-1], r.shape[-1], u.shape[-1]),),
    _build_composite,
)
_read = differentiable(
    "tensor_memory_read_state",
    _read_forward,
    _read_backward,
    lambda state, e, r: (e.new_empty(*e.shape[:2], state.shape[-1]),),
    _read_composite,
)
