"""An objective for policies that teaches them what to predict, in the place of a critic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algornn.learners.checks import check_whole
from algornn.meta.learned_objective import backwards, layer, standardised
from algornn.meta.replay import Segments

_EPSILON = 1e-8  # added to probabilities


class PredictingObjective(nn.Module):
    r"""A loss for policies that say :math:`q_w(s)`, a distribution over m classes without a given meaning.

    No critic is asked. With the actions :math:`b_t` that were taken, the policy's :math:`p_t = \mu_w(s_t)`, the
    predictions :math:`q_t = q_w(s_t)`, and z, which standardises over the batch and its time,

    .. math::
        c_t &= \mathrm{MLP}_c([z(r)_t, t / T, (1 - d_t)\, q_{t+1}, q_t]), \qquad
        h_t = \mathrm{LSTM}(h_{t+1}; c_t), \qquad y = z(\mathrm{MLP}_h(h)) \\
        \ell_t &= y_t \, |b_t - p_t|^2 + \mathrm{KL}(q_w(s_t) \,\|\, \mathrm{softmax}(W h_t + b))

    How far to follow or to avoid an action is learned, and so is what should have been predicted. To the policy,
    everything but :math:`p_t` and the first argument of the divergence is data. Units of the MLPs are half ReLU, half
    square, but for the last ones of the head, which are linear and followed by LayerNorm. Only a score after several
    steps, `algornn.meta.improvement`, tells what a prediction is good for.

    Args:
        predictions: m, that of the `PredictingAgents`.
        units: of every layer and of the LSTM.
        features: numbers that the LSTM reads.

    Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms", https://arxiv.org/abs/2007.08794, eq. 2
    and 3. Deviations: the squared distance from a deterministic policy stands in the place of the logarithmic
    probability under a categorical one; rewards and y are standardised; the LSTM reads the time in the segment, but
    neither the discount nor how likely the action was.
    """

    def __init__(self, predictions: int = 8, units: int = 32, features: int = 8) -> None:
        super().__init__()
        check_whole(1, units=units, features=features)
        check_whole(2, predictions=predictions)
        self.predictions = predictions
        self.context = nn.Sequential(
            *layer(2 + 2 * predictions, units, False), *layer(units, units, False), nn.Linear(units, features)
        )
        self.gates = nn.Linear(features, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units, bias=False)
        # What is standardised afterwards has no use for a constant, and so none for a bias.
        last = [nn.Linear(units, units), nn.LayerNorm(units, bias=False), nn.Linear(units, 1, bias=False)]
        self.head = nn.Sequential(*layer(units, units), *last)
        self.predicting = nn.Linear(units, predictions)

    def forward(
        self, p: Tensor, value: Tensor, worth: Tensor, segments: Segments, told: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Give the loss of every step.

        Args:
            p: the policy's actions ``[..., B, T, D]``.
            value: not looked at.
            worth: not looked at.
            segments: what was done.
            told: the agents' predictions ``[..., B, T + 1, m]``, and the same as data.

        Returns:
            Losses ``[..., B, T]``, 0 where the mask is.

        Raises:
            ValueError: the agents predict nothing, or another number of classes.
        """
        made = 0 if told is None else told[0].shape[-1]
        if told is None or made != self.predictions:
            raise ValueError(
                f"The objective teaches agents to predict {self.predictions} classes, these predict {made}: "
                "give it `PredictingAgents` with as many `predictions`."
            )
        r, (predicted, q) = segments.reward, told
        T = r.shape[-1]
        time = (torch.arange(T, device=r.device).to(r) / T).expand_as(r)
        after = q[..., 1:, :] * (1 - segments.terminal)[..., None]
        known = torch.cat([standardised(r)[..., None], time[..., None], after, q[..., :-1, :]], -1)
        hidden = backwards(self.gates(self.context(known)), self.recurrent)
        y = standardised(self.head(hidden)[..., 0])
        far = (segments.action - p).square().sum(-1)
        log_q = (predicted[..., :-1, :] + _EPSILON).log()
        divergence = (log_q.exp() * (log_q - self.predicting(hidden).log_softmax(-1))).sum(-1)
        return (y * far + divergence) * segments.mask
