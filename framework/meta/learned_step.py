"""An optimiser of policies that is itself a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.999)  # of Adam
_EPSILON = 1e-8
_STRETCH = math.log(4.0)  # how much longer or shorter than Adam's a step can be


class LearnedStep(nn.Module):
    r"""How every weight moves, given what Adam knows of it: Adam at first, and then what pays.

    With Adam's bias-corrected moments m and v of the gradient g of a weight, the step is

    .. math::
        a = \frac{m}{\sqrt{v + \epsilon^2}}, \quad b = \frac{g}{\sqrt{v + \epsilon^2}}, \quad
        (o_1, o_2) = W_2 \tanh(W_1 [a, b] + b_1) + b_2, \qquad
        \Delta = a \, 4^{\tanh o_1} + \tanh o_2

    and the weight moves by :math:`- \eta \Delta`. One small network serves all weights of all policies, whatever their
    sizes. :math:`W_2` and :math:`b_2` are 0 at first, which is Adam; :math:`\epsilon = 10^{-8}` stands inside the root,
    where its derivative is finite.

    Args:
        hidden_size: units of the hidden layer.

    Source: Andrychowicz et al. (2016), "Learning to learn by gradient descent by gradient descent", for one network
    applied coordinate by coordinate; Metz et al. (2020), "Tasks, stability, architecture, and compute", for the
    features. Assumed: the form above.
    """

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__()
        if not isinstance(hidden_size, int) or hidden_size < 1:
            raise ValueError(f"`hidden_size` must be a whole number of at least 1, got {hidden_size!r}.")
        last = nn.Linear(hidden_size, 2)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(2, hidden_size), nn.Tanh(), last)

    def forward(self, g: Tensor, first: Tensor, second: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Give the steps of weights, differentiable in their gradients.

        Args:
            g: gradients ``[N, ...]`` of the weights of N agents.
            first: Adam's first moments before, not bias-corrected.
            second: its second ones.
            count: ``[N]``, which step of every agent it is, from 1 on.

        Returns:
            :math:`\Delta` ``[N, ...]`` and the two moments after it.
        """
        first, second = (x.lerp(y, 1 - b) for x, y, b in zip((first, second), (g, g.square()), _BETAS, strict=True))
        count = count.view(-1, *[1] * (g.dim() - 1)).to(g.dtype)
        m, v = (x / (1 - b**count) for x, b in zip((first, second), _BETAS, strict=True))
        root = (v + _EPSILON**2).sqrt()
        a, b = m / root, g / root
        o = self.network(torch.stack([a, b], -1)).tanh()
        return a * (_STRETCH * o[..., 0]).exp() + o[..., 1], first, second
