"""The objective of MetaGenRL: a loss for policies that is itself a network, and the gradient that improves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

Weights = dict[str, Tensor]
_BOUND = 1e-3  # k of the soft clip tanh(k y) / k
_EPSILON = 1e-8  # added to variances


class Segments(NamedTuple):
    """B segments of T steps from a replay buffer.

    Attributes:
        observation: ``[B, T + 1, O]``, the one after the last step included.
        action: ``[B, T, D]``, the actions that were taken.
        reward: ``[B, T]``.
        terminal: ``[B, T]``, 1.0 where the episode ended.
        mask: ``[B, T]``, 1.0 at real steps, 0.0 at those that only pad a short episode.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminal: Tensor
    mask: Tensor


class LearnedObjective(nn.Module):
    r"""A loss of every step of a segment, given what was done, what the policy would do, and what came of it.

    It never sees observations, so one objective serves agents of any observation and action size. With the action
    :math:`b_t` that was taken, the policy's :math:`p_t = \mu_w(s_t)`, values :math:`V_t = Q(s_t, p_t)` without a
    gradient, and z, which standardises over the batch and its time,

    .. math::
        a_t &= \tfrac{1}{D} \textstyle\sum_j \mathrm{MLP}_a([b_{tj}, p_{tj}]), \qquad
        c_t = \mathrm{MLP}_c([z(r)_t, t / T, z(V)_{t+1} (1 - d_t), z(V)_t]) \\
        h_t &= \mathrm{LSTM}(h_{t+1}; [a_t, c_t]), \qquad y_t = \mathrm{MLP}_h(h_t), \qquad
        \ell_t = \tanh(k y_t) / k, \; k = 10^{-3}

    The LSTM runs backwards, so that step t has seen the consequences of :math:`b_t`. Units of the MLPs are half ReLU,
    half square; those of the actions and of the head are followed by LayerNorm. Since everything else is data,
    the policy's gradient flows through :math:`p_t` alone. The last layer has no bias: it would change no gradient.

    Args:
        units: of every layer and of the LSTM.
        features: of the second branch.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), "Improving Generalization in Meta Reinforcement Learning
    using Learned Objectives", https://arxiv.org/abs/1910.04098, section 3, and the released code.
    """

    def __init__(self, units: int = 32, features: int = 8) -> None:
        super().__init__()
        if units < 2 or units % 2:
            raise ValueError(f"`units` must be even, for half of them are ReLU and half square, got {units}.")
        self.actions = nn.Sequential(*_layer(2, units), *_layer(units, units), *_layer(units, units))
        self.context = nn.Sequential(*_layer(4, units, False), *_layer(units, units, False), nn.Linear(units, features))
        self.gates = nn.Linear(units + features, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        self.head = nn.Sequential(*_layer(units, units), *_layer(units, units), nn.Linear(units, 1, bias=False))

    def forward(self, p: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """Give the loss of every step.

        Args:
            p: the policy's actions ``[B, T, D]``.
            value: the critic's values V ``[B, T + 1]`` of the policy's actions; no gradient is taken through them.
            segments: what was done.

        Returns:
            Losses ``[B, T]``, 0 where the mask is.
        """
        b, r, mask = segments.action, segments.reward, segments.mask
        T = b.shape[1]
        acted = self.actions(torch.stack([b, p], -1)).mean(-2)
        z = _standardised(value.detach())
        time = torch.arange(T, device=r.device).to(r) / T
        known = torch.stack([_standardised(r), time.expand_as(r), z[:, 1:] * (1 - segments.terminal), z[:, :-1]], -1)
        inputs = self.gates(torch.cat([acted, self.context(known)], -1))
        h = c = inputs.new_zeros(len(b), self.recurrent.in_features)
        states = []
        # A cell of our own: PyTorch's has no rule for vmap, and on a GPU no second derivative.
        for x in reversed(inputs.unbind(1)):
            i, f, g, o = (x + self.recurrent(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        y = self.head(torch.stack(states[::-1], 1))[..., 0]
        return (_BOUND * y).tanh() / _BOUND * mask


class HalfSquare(nn.Module):
    """ReLU of the first half of the units, the square of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        first, second = x.chunk(2, -1)
        return torch.cat([F.relu(first), second.square()], -1)


def _layer(inputs: int, units: int, norm: bool = True) -> list[nn.Module]:
    return [nn.Linear(inputs, units), HalfSquare(), *([nn.LayerNorm(units)] if norm else [])]


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + _EPSILON).sqrt()


class Agent(NamedTuple):
    """An agent's networks and the functions that apply them.

    Attributes:
        policy: ``policy(w, observation [..., O]) -> action [..., D]``.
        critic: ``critic(u, observation [..., O], action [..., D]) -> value [...]``.
        w: the policy's weights.
        u: the critic's weights.
    """

    policy: Callable[[Weights, Tensor], Tensor]
    critic: Callable[[Weights, Tensor, Tensor], Tensor]
    w: Weights
    u: Weights


def policy_loss(objective: nn.Module, a: Weights, agent: Agent, w: Weights, segments: Segments) -> Tensor:
    """The learned losses ``[B, T]`` of a policy w on segments, under the objective's weights a."""
    s = segments.observation
    p = agent.policy(w, s)
    value = agent.critic(agent.u, s, p)
    return functional_call(objective, a, (p[:, :-1], value, segments))


def meta_gradient(
    objective: nn.Module, a: Weights, agent: Agent, batches: tuple[Segments, ...], rate: float = 1e-3
) -> tuple[Weights, Tensor]:
    r"""The gradient of the critic's opinion of the policy after steps with the learned objective.

    .. math::
        w_{k+1} = w_k - h \nabla_w \textstyle\sum_{B_k} \ell(a, w_k), \qquad
        J(a) = \mathrm{mean}_{B_1 \cup \ldots \cup B_K}\, Q(s, \mu_{w_{K - 1}}(s))

    with one step per batch but the last, on which J is measured too. One function of tensors, so that it can be mapped
    over agents by `torch.func.vmap`.

    Args:
        objective: the learned objective.
        a: its weights.
        agent: the agent; its own weights are not changed.
        batches: K sets of segments, K of at least 2.
        rate: h.

    Returns:
        :math:`-\partial J / \partial a`, and J.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), eq. 4 to 6, and the released code, which sums the losses.
    """
    if len(batches) < 2:
        raise ValueError(f"`batches` needs one for every step and one more, expected at least 2, got {len(batches)}.")

    def total(w: Weights, a: Weights, segments: Segments) -> Tensor:
        return policy_loss(objective, a, agent, w, segments).sum()

    def opinion(a: Weights) -> tuple[Tensor, Tensor]:
        w = agent.w
        for segments in batches[:-1]:
            slope = grad(total)(w, a, segments)
            w = {name: value - rate * slope[name] for name, value in w.items()}
        s = torch.cat([segments.observation[:, :-1] for segments in batches])
        mask = torch.cat([segments.mask for segments in batches])
        J = (agent.critic(agent.u, s, agent.policy(w, s)) * mask).mean()
        return -J, J

    slope, J = grad(opinion, has_aux=True)(a)
    return slope, J
