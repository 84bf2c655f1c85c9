"""Agents: networks that see, act and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from algornn.memory.associations import clear_masked
from algornn.models.token_networks import check_factory, output_width


class RecurrentAgent(nn.Module):
    """A sequence layer over observations, with a policy and a value read off its output.

    Args:
        input_size: numbers of an observation D.
        output_size: number of actions A.
        layer: called with `input_size`; makes the sequence layer, ``forward(x, state, mask) -> (y, state)``: any memory
            of `algornn`, `LSTM`, `MemoryAugmentedLSTM` or your own.
    """

    def __init__(self, input_size: int, output_size: int, layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        check_factory("layer", layer)
        self.layer = layer(input_size)
        width = output_width(self.layer, input_size)
        self.policy, self.value = nn.Linear(width, output_size), nn.Linear(width, 1)

    def forward(self, x: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
        """Act on a sequence.

        Args:
            x: observations ``[B, T, D]``.
            state: the layer's state; None: its own first one.
            mask: ``[B, T]`` bool, False at steps that only pad the batch.

        Returns:
            Logits of the actions ``[B, T, A]``, values ``[B, T]`` and the layer's new state.
        """
        y, state = self.layer(clear_masked(x, mask), state, mask)
        return self.policy(y), self.value(y)[..., 0], state
