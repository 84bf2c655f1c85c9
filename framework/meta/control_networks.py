"""The networks of agents that act by numbers: policies and twin critics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from algornn.learners.checks import check_whole

Weights = dict[str, Tensor]
_TINY = 1e-12


class Policy(nn.Sequential):
    r"""A deterministic policy :math:`\mu_w(s)` in [-1, 1]: hidden layers of ReLU and LayerNorm, then tanh.

    Args:
        observation_size: O.
        action_size: D.
        hidden_sizes: units of the hidden layers.
        predictions: m; it also gives as many logits of a prediction, behind the action.
    """

    def __init__(
        self, observation_size: int, action_size: int, hidden_sizes: Sequence[int], predictions: int = 0
    ) -> None:
        if not hidden_sizes:
            raise ValueError("`hidden_sizes` needs a hidden layer, such as [64, 64], got none.")
        for size in hidden_sizes:
            check_whole(1, hidden_sizes=size)
        last = nn.Linear(hidden_sizes[-1], action_size + predictions)
        super().__init__(*_layers(observation_size, *hidden_sizes), last)
        self.action_size = action_size

    def forward(self, s: Tensor) -> Tensor:
        """``[..., O]`` to ``[..., D + m]``."""
        x = super().forward(s)
        D = self.action_size
        return torch.cat([x[..., :D].tanh(), x[..., D:]], -1) if x.shape[-1] > D else x.tanh()


class TwinCritics(nn.Module):
    """Two critics of what an action is worth, ``(s [..., O], b [..., D]) -> [..., 2]``.

    Args:
        observation_size: O.
        action_size: D.
        hidden_sizes: units of the hidden layers.
    """

    def __init__(self, observation_size: int, action_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = (observation_size + action_size, *hidden_sizes)
        self.first, self.second = (nn.Sequential(*_layers(*sizes), nn.Linear(sizes[-1], 1)) for _ in range(2))

    def forward(self, s: Tensor, b: Tensor) -> Tensor:
        """Both opinions."""
        x = torch.cat([s, b], -1)
        return torch.cat([self.first(x), self.second(x)], -1)


def fresh_weights(net: nn.Module, seed: Tensor) -> Weights:
    """New weights ``[N, ...]`` of a network from the seeds ``[N]`` of agents, torch's initialisation."""
    born = []
    with torch.random.fork_rng(devices=[]):
        for own in seed.tolist():
            torch.manual_seed(own)
            for part in net.modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
            born.append({name: p.detach().clone() for name, p in net.named_parameters()})
    return {name: torch.stack([one[name] for one in born]).to(seed.device) for name in born[0]}


def unit(slope: Weights, shortest: float = 0.0) -> Weights:
    """Bring the gradients of every agent to length 1, but for those that are shorter than `shortest`."""
    length = torch.stack([g.square().flatten(1).sum(1) for g in slope.values()]).sum(0).sqrt() + _TINY
    return {name: g / over(length.clamp(min=shortest), g) for name, g in slope.items()}


def leaves(weights: Weights) -> Weights:
    """The same weights, to take gradients in."""
    return {name: x.detach().requires_grad_() for name, x in weights.items()}


def over(number: Tensor, x: Tensor) -> Tensor:
    """A number of every agent ``[N]``, or one for all, in a form that goes with its weights ``[N, ...]``."""
    return number.view(-1, *[1] * (x.dim() - 1))


def _layers(*sizes: int) -> list[nn.Module]:
    return [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU(), nn.LayerNorm(b))]
