"""What moves the policies of `Agents`: a learned objective, the critic, or REINFORCE; and how good a learned one is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algornn.meta.agents import Agents, Weights
from algornn.meta.learned_objective import standardised
from algornn.meta.replay import Segments

_LAMBDA = 0.95  # of generalized advantage estimation
_SPREAD = 0.1  # standard deviation of the policy that REINFORCE takes the actions to come from
_EPSILON = 1e-8


def learned(objective: nn.Module, agents: Agents, w: Weights, segments: Segments) -> Tensor:
    """The learned losses ``[N, B, T]`` of policies w."""
    s = segments.observation
    p = agents.policy(w, s)
    value, worth = agents.opinion(s, p.detach()), agents.opinion(s[..., :-1, :], segments.action)
    return objective(p[..., :-1, :], value, worth, segments)


def critics_own(agents: Agents, w: Weights, segments: Segments) -> Tensor:
    r"""The loss ``[N]`` of DDPG and TD3, minus the mean of :math:`Q(s_t, \mu_w(s_t))`."""
    s = segments.observation[..., :-1, :]
    return -_mean(agents.opinion(s, agents.policy(w, s)), segments)


def reinforce(agents: Agents, w: Weights, segments: Segments) -> Tensor:
    r"""The loss ``[N]`` of REINFORCE on replayed actions.

    The mean of :math:`-\log N(b_t; \mu_w(s_t), 0.1^2)\, \hat A_t`, where :math:`\hat A` is generalized advantage
    estimation (0.95) with the critic's values, standardised over the segments.

    Source: the off-policy baseline of Kirsch, van Steenkiste and Schmidhuber (2020), section 5; Schulman et al. (2016).
    """
    s = segments.observation
    p = agents.policy(w, s)
    A = standardised(advantages(agents.opinion(s, p.detach()).detach(), segments, agents.gamma))
    missed = (((segments.action - p[..., :-1, :]) / _SPREAD).square()).sum(-1) / 2
    return _mean(missed * A, segments)


def advantages(value: Tensor, segments: Segments, gamma: float) -> Tensor:
    """Generalized advantage estimation ``[..., T]`` from values ``[..., T + 1]``."""
    going = (1 - segments.terminal) * segments.mask
    missed = segments.reward + gamma * going * value[..., 1:] - value[..., :-1]
    total, found = torch.zeros_like(missed[..., 0]), []
    for now, goes in zip(reversed(missed.unbind(-1)), reversed(going.unbind(-1)), strict=True):
        total = now + gamma * _LAMBDA * goes * total
        found.append(total)
    return torch.stack(found[::-1], -1)


def improvement(objective: nn.Module, agents: Agents, batches: Sequence[Segments], rate: float = 1e-3) -> Tensor:
    r"""How the critics find the policies after steps with the learned objective, ``[N]``, as MetaGenRL was published.

    .. math::
        w_{k+1} = w_k - h \nabla_w \textstyle\sum_{B_k} \ell(a, w_k), \qquad
        J(a) = \mathrm{mean}_{B_1 \cup \ldots \cup B_K}\, Q(s, \mu_{w_{K - 1}}(s))

    with one step per batch but the last, on which J is measured too. Differentiable in the objective's weights a.

    Args:
        objective: the learned objective.
        agents: their own weights are not changed.
        batches: K sets of segments, K of at least 2.
        rate: h.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), eq. 4 to 6, and the released code, which sums the losses.
    """
    if len(batches) < 2:
        raise ValueError(f"`batches` needs one for every step and one more, expected at least 2, got {len(batches)}.")
    w = {name: x.detach().requires_grad_() for name, x in agents.w.items()}
    for segments in batches[:-1]:
        total = learned(objective, agents, w, segments).sum()
        slope = torch.autograd.grad(total, list(w.values()), create_graph=True)
        w = {name: x - rate * g for (name, x), g in zip(w.items(), slope, strict=True)}
    joined = batches[0]
    for segments in batches[1:]:
        joined = joined.join(segments)
    return -critics_own(agents, w, joined)


def agreement(objective: nn.Module, agents: Agents, segments: Segments, flip: Tensor | None = None) -> Tensor:
    r"""The cosine ``[N]`` between where the learned objective moves the actions and where the critics want them.

    .. math::
        \cos\left( \nabla_x \textstyle\sum_t \ell_t(a, \tanh x),\; - \nabla_x \sum_t Q(s_t, \tanh x_t) \right), \qquad
        \tanh x_t = \mu_w(s_t)

    It is what `improvement` becomes for a small step of length 1 on the policy's outputs before the tanh, where actions
    at their bounds count little, as they do for the weights: no scale of rewards, values
    or losses matters, agents of all worlds count alike, and no second derivative goes through a policy. Differentiable
    in the objective's weights.

    Args:
        objective: the learned objective.
        agents: the agents.
        segments: what they did.
        flip: ``[N, 1, 1, D]`` of 1 and -1, the actions that are shown to the objective with the other sign, as in a
            world whose actuators are reversed; None: none.
    """
    s, now = segments.observation, segments.observation[..., :-1, :]
    b = segments.action
    flip = torch.ones_like(b[:, :1, :1]) if flip is None else flip
    with torch.no_grad():
        policy = agents.policy(agents.w, s)
        value, worth = agents.opinion(s, policy), agents.opinion(now, b)
    p = policy[..., :-1, :].clone().requires_grad_()
    losses = objective(p * flip, value, worth, segments._replace(action=b * flip))
    slope = 1 - p.detach().square()  # of tanh
    ours = slope * torch.autograd.grad(losses.sum(), p, create_graph=True)[0]
    wanted = slope * torch.autograd.grad((agents.opinion(now, p) * segments.mask).sum(), p)[0]
    shared, lengths = (ours * -wanted).flatten(1).sum(1), [x.square().flatten(1).sum(1) for x in (ours, wanted)]
    return shared / (lengths[0] * lengths[1] + _EPSILON**2).sqrt()


def _mean(x: Tensor, segments: Segments) -> Tensor:
    """The mean over B and T, padding counted as the released code does."""
    return (x * segments.mask).mean((-2, -1))
