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

    Two forms that are not published:

    - `advantages`: it sees :math:`A_t = Q(s_t, b_t) - V_t`, the critic's advantage of what was done, in units of its
      root mean square, and :math:`A_t \, v^\top a_t` joins :math:`y_t`: how far to follow or to avoid an action, which
      depends on where the policy is, is learned directly.
    - `predictions`: for agents that say :math:`q_w(s)`, a distribution over m classes without a given meaning. It takes
      the place of V among the inputs, and from :math:`h_t`, now of :math:`c_t` alone, comes what it should have been,
      and :math:`y'`, the head's outputs in units of their root mean square, says how far to follow or avoid an action:

      .. math::
          y_t = y'_t \, v^\top a_t, \qquad
          \ell_t = \tanh(k y_t) / k + \mathrm{KL}(q_w(s_t) \,\|\, \mathrm{softmax}(W h_t))

      so that what takes the critic's place in a fresh agent is learned, too. The policy's gradient flows through
      :math:`a_t` and the first argument of the divergence; in :math:`c_t` the predictions are data. Only a score after
      several steps, `algornn.meta.improvement`, tells what a prediction is good for.

    Args:
        units: of every layer and of the LSTM.
        features: of the second branch.
        advantages: the first form.
        predictions: m of the second form; 0: without.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), "Improving Generalization in Meta Reinforcement Learning
    using Learned Objectives", https://arxiv.org/abs/1910.04098, section 3, and the released code; Oh et al. (2020),
    "Discovering Reinforcement Learning Algorithms", https://arxiv.org/abs/2007.08794, for predictions.
    """

    def __init__(self, units: int = 32, features: int = 8, advantages: bool = False, predictions: int = 0) -> None:
        super().__init__()
        check_whole(1, units=units, features=features)
        check_whole(0, predictions=predictions)
        if predictions == 1:
            raise ValueError("`predictions` is a number of classes, expected at least 2, or 0 for none, got 1.")
        if units % 2:
            raise ValueError(f"`units` must be even, for half of them are ReLU and half square, got {units}.")
        if predictions and advantages:
            raise ValueError(
                "`predictions` take the place of the critic, and `advantages` need it: choose one of them."
            )
        self.actions = nn.Sequential(*_layer(2, units), *_layer(units, units), *_layer(units, units))
        self.advantages, self.predictions = advantages, predictions
        known = 2 + 2 * predictions if predictions else 4 + advantages
        self.context = nn.Sequential(
            *_layer(known, units, False), *_layer(units, units, False), nn.Linear(units, features)
        )
        self.gates = nn.Linear(features if predictions else units + features, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        self.head = nn.Sequential(*_layer(units, units), *_layer(units, units), nn.Linear(units, 1, bias=False))
        if advantages or predictions:
            self.distance = nn.Linear(units, 1, bias=False)
        if predictions:
            self.predicting = nn.Linear(units, predictions)

    def forward(
        self,
        p: Tensor,
        value: Tensor,
        worth: Tensor,
        segments: Segments,
        told: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Give the loss of every step.

        Args:
            p: the policy's actions ``[..., B, T, D]``.
            value: the critic's values V ``[..., B, T + 1]`` of the policy's actions; no gradient is taken through them.
            worth: its values Q ``[..., B, T]`` of the actions that were taken.
            segments: what was done.
            told: the agents' predictions ``[..., B, T + 1, m]``, and the same as data, where the objective has them.

        Returns:
            Losses ``[..., B, T]``, 0 where the mask is.
        """
        b, r, mask = segments.action, segments.reward, segments.mask
        T = b.shape[-2]
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
        if self.predictions:
            if told is None or told[0].shape[-1] != self.predictions:
                made = 0 if told is None else told[0].shape[-1]
                raise ValueError(
                    f"The objective teaches agents to predict {self.predictions} classes, these predict {made}: "
                    f"give it `PredictingAgents` with predictions={self.predictions}."
                )
            log_q, q = (told[0][..., :-1, :] + _EPSILON).log(), told[1]
            known += [q[..., 1:, :] * going[..., None], q[..., :-1, :]]
        else:
            z = standardised(value)
            known += [(z[..., 1:] * going)[..., None], z[..., :-1, None]]
        if self.advantages:
            advantage = _in_own_units(worth.detach() - value[..., :-1])
            known.append(advantage[..., None])
        context = self.context(torch.cat(known, -1))
        inputs = self.gates(context if self.predictions else torch.cat([acted, context], -1))
        h = c = inputs.new_zeros(*b.shape[:-2], self.recurrent.in_features)
        states = []
        # A cell of our own: PyTorch's has no rule for vmap, and on a GPU no second derivative.
        for x in reversed(inputs.unbind(-2)):
            i, f, g, o = (x + self.recurrent(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        hidden = torch.stack(states[::-1], -2)
        y = self.head(hidden)[..., 0]
        if self.advantages:
            y = y + advantage * self.distance(acted)[..., 0]
        if self.predictions:
            y = _in_own_units(y) * self.distance(acted)[..., 0]
        y = (_BOUND * y).tanh() / _BOUND
        if self.predictions:
            y = y + (log_q.exp() * (log_q - self.predicting(hidden).log_softmax(-1))).sum(-1)
        return y * mask


class HalfSquare(nn.Module):
    """ReLU of the first half of the units, the square of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        first, second = x.chunk(2, -1)
        return torch.cat([F.relu(first), second.square()], -1)


def _layer(inputs: int, units: int, norm: bool = True) -> list[nn.Module]:
    return [nn.Linear(inputs, units), HalfSquare(), *([nn.LayerNorm(units)] if norm else [])]


def _in_own_units(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last two dimensions."""
    return x / (x.square().mean((-2, -1), keepdim=True) + _EPSILON).sqrt()


def standardised(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the last two dimensions."""
    variance, mean = torch.var_mean(x, (-2, -1), correction=0, keepdim=True)
    return (x - mean) / (variance + _EPSILON).sqrt()
