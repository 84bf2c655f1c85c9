"""The objective of MetaGenRL: a loss for policies that is itself a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.learners.checks import check_whole
from algornn.meta.replay import Segments

_BOUND = 1e-3  # k of the soft clip tanh(k y) / k
_EPSILON = 1e-8  # added to variances


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

    With `advantages`, which is not published, it sees :math:`A_t = Q(s_t, b_t) - V_t`, the critic's advantage of what
    was done, in units of its root mean square, and :math:`A_t \, v^\top a_t` joins :math:`y_t`: how far to follow or to
    avoid an action, which depends on where the policy is, is learned directly.

    Args:
        units: of every layer and of the LSTM.
        features: of the second branch.
        advantages: whether it sees them.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), "Improving Generalization in Meta Reinforcement Learning
    using Learned Objectives", https://arxiv.org/abs/1910.04098, section 3, and the released code.
    """

    def __init__(self, units: int = 32, features: int = 8, advantages: bool = False) -> None:
        super().__init__()
        check_whole(1, units=units, features=features)
        self.actions = nn.Sequential(*layer(2, units), *layer(units, units), *layer(units, units))
        self.advantages = advantages
        self.context = nn.Sequential(
            *layer(4 + advantages, units, False), *layer(units, units, False), nn.Linear(units, features)
        )
        self.gates = nn.Linear(units + features, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        self.head = nn.Sequential(*layer(units, units), *layer(units, units), nn.Linear(units, 1, bias=False))
        if advantages:
            self.distance = nn.Linear(units, 1, bias=False)

    def forward(
        self, p: Tensor, value: Tensor, worth: Tensor, segments: Segments, told: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Give the loss of every step.

        Args:
            p: the policy's actions ``[..., B, T, D]``; not looked at where the mask is.
            value: the critic's values V ``[..., B, T + 1]`` of the policy's actions; no gradient is taken through them.
            worth: its values Q ``[..., B, T]`` of the actions that were taken.
            segments: what was done.
            told: predictions of agents that make them, which this objective does not look at.

        Returns:
            Losses ``[..., B, T]``, 0 where the mask is.
        """
        b, r, mask = segments.action, segments.reward, segments.mask
        T = b.shape[-2]
        p = p * mask[..., None]  # what a policy does in padding is no action
        acted = self.actions(torch.stack([b, p], -1))
        if segments.real is None:
            acted = acted.mean(-2)
        else:
            share = segments.real / segments.real.sum(-1, keepdim=True)
            acted = (acted * share[..., None]).sum(-2)
        time = torch.arange(T, device=r.device).to(r) / T
        going = 1 - segments.terminal
        known = [standardised(r)[..., None], time.expand_as(r)[..., None]]
        value = value.detach()
        z = standardised(value)
        known += [(z[..., 1:] * going)[..., None], z[..., :-1, None]]
        if self.advantages:
            advantage = worth.detach() - value[..., :-1]
            advantage = advantage / (advantage.square().mean((-2, -1), keepdim=True) + _EPSILON).sqrt()
            known.append(advantage[..., None])
        hidden = backwards(self.gates(torch.cat([acted, self.context(torch.cat(known, -1))], -1)), self.recurrent)
        y = self.head(hidden)[..., 0]
        if self.advantages:
            y = y + advantage * self.distance(acted)[..., 0]
        return (_BOUND * y).tanh() / _BOUND * mask


class HalfSquare(nn.Module):
    """ReLU of the first half of the units, the square of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        first, second = x.chunk(2, -1)
        return torch.cat([F.relu(first), second.square()], -1)


def layer(inputs: int, units: int, norm: bool = True) -> list[nn.Module]:
    """A linear layer, half ReLU and half square, and LayerNorm if `norm`."""
    if units % 2:
        raise ValueError(f"`units` must be even, for half of them are ReLU and half square, got {units}.")
    return [nn.Linear(inputs, units), HalfSquare(), *([nn.LayerNorm(units)] if norm else [])]


def backwards(inputs: Tensor, recurrent: nn.Linear) -> Tensor:
    """The states h ``[..., T, units]`` of an LSTM that runs from the last step to the first.

    A cell of our own: PyTorch's has no rule for vmap, and on a GPU no second derivative.

    Args:
        inputs: what the gates i, f, g, o get from outside, ``[..., T, 4 units]``.
        recurrent: what they get from the state.
    """
    h = c = inputs.new_zeros(*inputs.shape[:-2], recurrent.in_features)
    states = []
    for x in reversed(inputs.unbind(-2)):
        i, f, g, o = (x + recurrent(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states[::-1], -2)


def standardised(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the last two dimensions."""
    variance, mean = torch.var_mean(x, (-2, -1), correction=0, keepdim=True)
    return (x - mean) / (variance + _EPSILON).sqrt()
