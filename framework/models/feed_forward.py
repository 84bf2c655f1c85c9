"""A feed-forward network that gives several classes at once, such as the digits of a number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class FeedForward(nn.Module):
    """Linear layers with ReLU between them, and one softmax per digit of the result.

    Args:
        input_size: length D of an input.
        output_size: number of classes C of every digit.
        digits: number of digits.
        hidden_sizes: units of the hidden layers.

    Source: the add/mul network of Csordas, van Steenkiste and Schmidhuber (2021), ICLR, section 3.1,
    https://arxiv.org/abs/2010.02066. Deviation: torch's initialisation.
    """

    def __init__(
        self, input_size: int, output_size: int, digits: int = 1, hidden_sizes: Sequence[int] = (400, 400, 200)
    ) -> None:
        super().__init__()
        sizes = (input_size, *hidden_sizes, digits * output_size)
        for size in sizes:
            if size < 1:
                raise ValueError(f"Every layer of a FeedForward needs at least one unit, got sizes {sizes}.")
        self.digits, self.output_size = digits, output_size
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*[part for layer in linear[:-1] for part in (layer, nn.ReLU())], linear[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Inputs ``[B, D]`` to logits ``[B, digits, C]``."""
        return self.layers(x).unflatten(-1, (self.digits, self.output_size))
