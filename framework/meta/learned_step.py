"""An optimiser of policies that is itself a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.999)  # of Adam
_EPSILON = 1e-8
_STRETCH = math.log(4.0)  # how much more or less of Adam's step a weight can take


class LearnedStep(nn.Module):
    r"""Where every weight moves, given what Adam knows of it: with Adam at first, and then where it pays.

    With Adam's bias-corrected moments m and v of the gradient g of a weight, the step is

    .. math::
        a = \frac{m}{\sqrt{v + \epsilon^2}}, \quad b = \frac{g}{\sqrt{v + \epsilon^2}}, \quad
        (o_1, o_2) = W_2 \tanh(W_1 [a, b] + b_1), \\
        d = a \, 4^{\tanh o_1} + b \tanh o_2, \qquad \Delta = \frac{|a|}{|d|} d

    and the weight moves by :math:`- \eta \Delta`. The lengths are those over a whole matrix or bias: a step is as long
    as Adam's, for a score soon after it only ever asks for longer ones; and what has no gradient stays. One small
    network serves all weights of all policies, whatever their sizes. :math:`W_2` is 0 at first, which is Adam;
    :math:`\epsilon = 10^{-8}` stands inside the root, where its derivative is finite.

    Args:
        hidden_size: units of the hidden layer.

    Source: Andrychowicz et al. (2016), "Learning to learn by gradient descent by gradient descent", for one network
    applied coordinate by coordinate; Metz et al. (2020), "Tasks, stability, architecture, and compute", for the
    features; Agarwal et al. (2020), "Disentangling adaptive gradient methods from learning rates", for lengths that are
    another optimiser's. Assumed: the form above.
    """

    def __init__(self, hidden_size: int = 16) -> None:
        super().__init__()
        if not isinstance(hidden_size, int) or hidden_size < 1:
            raise ValueError(f"`hidden_size` must be a whole number of at least 1, got {hidden_size!r}.")
        last = nn.Linear(hidden_size, 2, bias=False)
        nn.init.zeros_(last.weight)
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
        own = tuple(range(count.dim(), g.dim()))  # under vmap no dimension is that of agents
        count = count.view(-1, *[1] * (g.dim() - 1)).to(g.dtype)
        m, v = (x / (1 - b**count) for x, b in zip((first, second), _BETAS, strict=True))
        root = (v + _EPSILON**2).sqrt()
        a, b = m / root, g / root
        o = self.network(torch.stack([a, b], -1)).tanh()
        d = a * (_STRETCH * o[..., 0]).exp() + b * o[..., 1]
        lengths = [(x.square().sum(own, keepdim=True) + _EPSILON**2).sqrt() for x in (a, d)]
        return d * lengths[0] / lengths[1], first, second
