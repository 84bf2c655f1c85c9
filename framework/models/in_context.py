"""Networks that learn a task from the examples that they read."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.models.token_networks import check_factory, output_width


class InContextNetwork(nn.Module):
    """A sequence layer that reads every input with the class of the one before, and names the class of each.

    Args:
        input_size: numbers of an input D.
        output_size: number of classes C.
        layer: called with `embedding_size`; makes the sequence layer, ``forward(x, state, mask) -> (y, state)``: any
            memory of `algornn`, `FastWeightBlocks`, `LSTM`, `Transformer` or your own.
        embedding_size: width of the linear layer that joins an input and a class.

    Source: Hochreiter, Younger and Conwell (2001), "Learning to Learn Using Gradient Descent".
    """

    def __init__(
        self, input_size: int, output_size: int, layer: Callable[[int], nn.Module], embedding_size: int = 256
    ) -> None:
        super().__init__()
        check_factory("layer", layer)
        self.embedding = nn.Linear(input_size + output_size, embedding_size)
        self.layer = layer(embedding_size)
        self.output = nn.Linear(output_width(self.layer, embedding_size), output_size)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Name classes.

        Args:
            x: inputs ``[B, T, D]``.
            y: their classes ``[B, T]``; the last one is not looked at.

        Returns:
            Logits ``[B, T, C]``, those of example t from inputs 1 to t and classes 1 to t - 1.
        """
        told = F.one_hot(y, self.output.out_features).to(x.dtype)
        told = F.pad(told[:, :-1], (0, 0, 1, 0))
        return self.output(self.layer(self.embedding(torch.cat([x, told], -1)))[0])
