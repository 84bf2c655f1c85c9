"""The networks of agents that act by numbers: policies and twin critics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from algornn.learners.checks import check_whole

Weights = dict[str, Tensor]
Places = dict[str, tuple[int, list[int]]]  # of a weight: a dimension, and where along it
_TINY = 1e-12
_BETAS, _ADAM_EPSILON = (0.9, 0.999), 1e-8


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
        self.action_size, self.hidden_sizes, self.predictions = action_size, tuple(hidden_sizes), predictions

    def narrow(self, observation_size: int, action_size: int) -> tuple[Policy, Places]:
        """A new policy for fewer observations and actions, and where in this one's weights its weights belong."""
        told = [*range(action_size), *range(self.action_size, self.action_size + self.predictions)]
        last = f"{len(self) - 1}."
        places = {"0.weight": (1, [*range(observation_size)]), f"{last}weight": (0, told), f"{last}bias": (0, told)}
        return Policy(observation_size, action_size, self.hidden_sizes, self.predictions), places

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
        self.observation_size, self.hidden_sizes = observation_size, tuple(hidden_sizes)
        sizes = (observation_size + action_size, *hidden_sizes)
        self.first, self.second = (nn.Sequential(*_layers(*sizes), nn.Linear(sizes[-1], 1)) for _ in range(2))

    def forward(self, s: Tensor, b: Tensor) -> Tensor:
        """Both opinions."""
        x = torch.cat([s, b], -1)
        return torch.cat([self.first(x), self.second(x)], -1)

    def narrow(self, observation_size: int, action_size: int) -> tuple[TwinCritics, Places]:
        """New critics for fewer observations and actions, and where in these ones' weights their weights belong."""
        seen = (1, [*range(observation_size), *range(self.observation_size, self.observation_size + action_size)])
        places = {"first.0.weight": seen, "second.0.weight": seen}
        return TwinCritics(observation_size, action_size, self.hidden_sizes), places


def fresh_weights(net: Policy | TwinCritics, seed: Tensor, sizes: Sequence[tuple[int, int]]) -> Weights:
    """New weights ``[N, ...]`` of a network, torch's initialisation of one of every agent's own sizes, padded with 0.

    Args:
        net: of the largest sizes.
        seed: ``[N]`` int64.
        sizes: (O, D) of the N agents; what they are born with does not depend on how far it is padded.
    """
    born = []
    with torch.random.fork_rng(devices=[]):
        for own_seed, size in zip(seed.tolist(), sizes, strict=True):
            torch.default_generator.manual_seed(own_seed)  # torch.manual_seed would seed all devices
            own, places = net.narrow(*size)
            weights = {name: p.detach() for name, p in own.named_parameters()}
            for name, (dim, index) in places.items():
                wide = torch.zeros_like(net.get_parameter(name))
                weights[name] = wide.index_copy(dim, torch.tensor(index), weights[name])
            born.append(weights)
    return {name: torch.stack([one[name] for one in born]).to(seed.device) for name in born[0]}


def of_each(network: nn.Module, N: int) -> tuple[Callable[..., Any], list[Tensor]]:
    """A network with weights of its own for each of N agents, all of them the network's, and these weights.

    With them one backward pass gives the gradients of all agents apart; with weights that they share it would take N.
    The network is called under `torch.func.vmap`: no branch may depend on its data, no buffer be changed in place.

    Returns:
        What to call with tensors, or tuples of them, that have N in front, or with None, and which raises a ValueError
        where vmap does not know the network's ways; and the weights ``[N, ...]`` of its parameters that are trained.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    weights = {name: p.detach().expand(N, *p.shape).requires_grad_() for name, p in trained.items()}

    def call(*inputs: Any) -> Any:
        dims = tuple(None if x is None else 0 for x in inputs)
        one = lambda own, *given: functional_call(network, own, given)  # noqa: E731
        try:
            return vmap(one, (0, *dims), randomness="different")(weights, *inputs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                f"{type(network).__name__} is called for every agent apart, under vmap: {error}"
            ) from error

    return call, list(weights.values())


def unit(slope: Weights, shortest: float = 0.0) -> Weights:
    """Bring the gradients of every agent to length 1, but for those that are shorter than `shortest`."""
    squared = torch.stack([g.square().flatten(1).sum(1) for g in slope.values()]).sum(0)
    length = (squared + _TINY**2).sqrt()  # with a derivative where a policy has come to rest
    return {name: g / over(length.clamp(min=shortest), g) for name, g in slope.items()}


def adam_step(weights: Weights, slope: Weights, first: Weights, second: Weights, rate: float, count: Tensor) -> Weights:
    """The weights of every agent after one step of Adam (Kingma and Ba 2015), with betas of 0.9 and 0.999.

    Args:
        weights: ``[N, ...]``.
        slope: their gradients.
        first: the moments, which are moved on in place.
        second: as `first`.
        rate: the learning rate.
        count: ``[N]``, which step it is of every agent, from 1 on.
    """
    moved = {}
    for name, g in slope.items():
        m, v = first[name].lerp_(g, 1 - _BETAS[0]), second[name].lerp_(g.square(), 1 - _BETAS[1])
        mean, square = (x / over(1 - b**count, x) for x, b in zip((m, v), _BETAS, strict=True))
        moved[name] = weights[name] - rate * mean / (square.sqrt() + _ADAM_EPSILON)
    return moved


def leaves(weights: Weights) -> Weights:
    """The same weights, to take gradients in."""
    return {name: x.detach().requires_grad_() for name, x in weights.items()}


def over(number: Tensor, x: Tensor) -> Tensor:
    """A number of every agent ``[N]``, or one for all, in a form that goes with its weights ``[N, ...]``."""
    return number.view(-1, *[1] * (x.dim() - 1))


def _layers(*sizes: int) -> list[nn.Module]:
    return [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU(), nn.LayerNorm(b))]
