"""What moves the policies of `Agents`: a learned objective, the critic, or REINFORCE; and how good a learned one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pydoc import ErrorDuringImport, locate
from typing import cast

import torch
from torch import Tensor

from algornn.meta.agents import Agents
from algornn.meta.control_networks import Weights, leaves, over, unit
from algornn.meta.learned_objective import standardised
from algornn.meta.predicting_agents import PredictingAgents
from algornn.meta.replay import Segments

_SPREAD = 0.1  # standard deviation of the policy that REINFORCE takes the actions to come from
_CLIP = 0.2  # of PPO
_FAR = 20.0  # logarithm of a ratio, where it is cut
_POLICY = 2  # the segments of an update that move policies
_NEWEST = 4  # episodes that count as on-policy
_EPSILON = 1e-8


def learned(
    objective: Callable[..., Tensor], agents: Agents, w: Weights, segments: Segments, given: Weights | None = None
) -> Tensor:
    """The learned losses ``[N, B, T]`` of policies w.

    Args:
        objective: the learned objective.
        agents: the agents.
        w: weights of their policies.
        segments: what they did.
        given: the same weights, from which predictions are data; None: without a gradient.
    """
    s = segments.observation
    p = agents.policy(w, s)
    value, worth = agents.opinion(s, p.detach()), agents.opinion(s[..., :-1, :], segments.action)
    return objective(p[..., :-1, :], value, worth, segments, _told(agents, w, s, given))


def _told(agents: Agents, w: Weights, s: Tensor, given: Weights | None = None) -> tuple[Tensor, Tensor] | None:
    """The predictions of agents that make them, and the same as data."""
    if not isinstance(agents, PredictingAgents):
        return None
    q = agents.foretold(w, s)
    return q, q.detach() if given is None else agents.foretold(given, s)


def critics_own(agents: Agents, w: Weights, segments: Segments) -> Tensor:
    r"""The loss ``[N]`` of DDPG and TD3, minus the mean of :math:`Q(s_t, \mu_w(s_t))`."""
    s = segments.observation[..., :-1, :]
    return -_mean(agents.opinion(s, agents.policy(w, s)), segments)


def reinforce(
    agents: Agents, w: Weights, segments: Segments, newest: int | None = None, corrected: bool = False
) -> Tensor:
    r"""The loss ``[N]`` of REINFORCE on replayed actions.

    The mean of :math:`-\log N(b_t; \mu_w(s_t), 0.1^2)\, \hat A_t`, where :math:`\hat A` is generalized advantage
    estimation (`Agents.gae_lambda`) with the critic's values, standardised over the segments. For `OriginalAgents` it
    is the mean of :math:`|b_t - \mu_w(s_t)|^2 \hat A_t / D`, as released, with advantages as they are.

    Args:
        agents: the agents.
        w: weights of their policies.
        segments: what they did.
        newest: learn on-policy, from segments of that many of the newest episodes instead; None: from `segments`.
        corrected: correct for the policies that took the actions, as V-trace does: with
            :math:`\bar\rho_t = \min(1, \rho_t)` of `ratio`, the mean has the factor :math:`\bar\rho_t`, and what comes
            after a step counts in :math:`\hat A` as far as :math:`\bar\rho` goes.

    Source: the baselines of Kirsch, van Steenkiste and Schmidhuber (2020), section 5; Schulman et al. (2016); Espeholt
    et al. (2018), "IMPALA", eq. 1, for the correction.
    """
    segments = segments if newest is None else agents.draw(_POLICY, newest)
    kept = ratio(agents, w, segments).detach().clamp(max=1) if corrected else torch.ones_like(segments.reward)
    p = agents.policy(w, segments.observation[..., :-1, :])
    far, A = segments.action - p, _advantages(agents, w, segments, kept)
    if agents.quirks:
        mean = far.square().sum(-1) / over(agents.real.sum(-1), A)
        return _mean(mean * kept * A, segments)
    return _mean((far / _SPREAD).square().sum(-1) / 2 * kept * standardised(A), segments)


def ppo(agents: Agents, w: Weights, segments: Segments, newest: int = _NEWEST) -> Tensor:
    r"""The loss ``[N]`` of proximal policy optimisation, on segments of the newest episodes.

    The mean of :math:`-\min(\rho_t \hat A_t, \mathrm{clip}(\rho_t, 1 \pm 0.2)\, \hat A_t)`, with `ratio` and the
    standardised advantages of `reinforce`; the values are the off-policy critic's.

    Args:
        agents: the agents.
        w: weights of their policies.
        segments: not looked at.
        newest: number of episodes.

    Source: Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7.
    """
    segments = agents.draw(_POLICY, newest)
    rho, A = ratio(agents, w, segments), standardised(_advantages(agents, w, segments))
    return -_mean(torch.minimum(rho * A, rho.clamp(1 - _CLIP, 1 + _CLIP) * A), segments)


def dpo(agents: Agents, w: Weights, segments: Segments, newest: int = _NEWEST) -> Tensor:
    r"""The loss ``[N]`` of discovered policy optimisation, on segments of the newest episodes.

    The mean of :math:`-(\rho_t \hat A_t - F_t)` with the drift, of which meta-learning found the form,

    .. math::
        F = \begin{cases}
            \max(0, (\rho - 1) A - 2 \tanh((\rho - 1) A / 2)) & A \ge 0 \\
            \max(0, A \log \rho - 0.6 \tanh(A \log \rho / 0.6)) & A < 0
        \end{cases}

    Args: as of `ppo`.

    Source: Lu et al. (2022), "Discovered Policy Optimisation", https://arxiv.org/abs/2210.05639, eq. 10.
    """
    segments = agents.draw(_POLICY, newest)
    rho, A = ratio(agents, w, segments), standardised(_advantages(agents, w, segments))
    return -_mean(rho * A - drift(rho, A), segments)


def drift(rho: Tensor, A: Tensor) -> Tensor:
    """The drift F of `dpo`."""
    up, down = (rho - 1) * A, A * rho.log()
    return torch.where(A >= 0, up - 2 * (up / 2).tanh(), down - 0.6 * (down / 0.6).tanh()).clamp(min=0)


def ratio(agents: Agents, w: Weights, segments: Segments) -> Tensor:
    r"""How much likelier policies w are to act as those did that acted, ``[N, B, T]``.

    :math:`\rho_t = N(b_t; \mu_w(s_t), \sigma^2) / \pi(b_t \mid s_t)` with the exploration's :math:`\sigma`, and the
    density :math:`\pi` of who took the action.
    """
    p = agents.policy(w, segments.observation[..., :-1, :])
    return (agents.density(p, segments.action) - segments.density).clamp(-_FAR, _FAR).exp()


def _advantages(agents: Agents, w: Weights, segments: Segments, kept: Tensor | None = None) -> Tensor:
    s = segments.observation
    value = agents.opinion(s, agents.policy(w, s)).detach()
    if agents.quirks:
        segments = segments._replace(reward=segments.reward + segments.terminal)
    return advantages(value, segments, agents.gamma, kept, agents.gae_lambda)


def advantages(
    value: Tensor,
    segments: Segments,
    gamma: float,
    kept: Tensor | None = None,
    gae_lambda: float = Agents.gae_lambda,
) -> Tensor:
    """Generalized advantage estimation ``[..., T]`` from values ``[..., T + 1]``.

    Args:
        value: of the states.
        segments: what was done.
        gamma: the discount.
        kept: weighs what comes after a step.
        gae_lambda: how far what comes later counts, 1 in full and 0 not at all.
    """
    going = (1 - segments.terminal) * segments.mask
    missed = (segments.reward + gamma * going * value[..., 1:] - value[..., :-1]) * segments.mask
    kept = torch.ones_like(missed) if kept is None else kept
    total, found = torch.zeros_like(missed[..., 0]), []
    for now, goes, keeps in reversed(list(zip(*(x.unbind(-1) for x in (missed, going, kept)), strict=True))):
        found.append(now + gamma * gae_lambda * goes * total)
        total = keeps * found[-1]
    return torch.stack(found[::-1], -1)


def improvement(
    objective: Callable[..., Tensor],
    agents: Agents,
    batches: Sequence[Segments],
    rate: float = 1e-3,
    step: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> Tensor:
    r"""How the critics find the policies after steps with the learned objective, ``[N]``, as MetaGenRL was published.

    .. math::
        w_{k+1} = w_k - h \nabla_w \textstyle\sum_{B_k} \ell(a, w_k), \qquad
        J(a) = \mathrm{mean}_{B_1 \cup \ldots \cup B_K}\, Q(s, \mu_{w_K}(s))

    with :math:`w_1` the agents' own and one step per batch but the last, on which J is measured too. Differentiable in
    the objective's weights a. Agents with a learned `step` take that, of gradients that are scaled as theirs are and at
    their own rate, and J is differentiable in its weights, too.

    Args:
        objective: the learned objective.
        agents: their own weights are not changed.
        batches: K sets of segments, K of at least 2.
        rate: h.
        step: a learned step in the place of the agents' own.

    Source: Kirsch, van Steenkiste and Schmidhuber (2020), eq. 4 to 6, and the released code, which sums the losses.
    """
    if len(batches) < 2:
        raise ValueError(f"`batches` needs one for every step and one more, expected at least 2, got {len(batches)}.")
    w, step = leaves(agents.w), step or agents.step
    if step is not None:
        first, second, count = dict(agents.moments["first_w"]), dict(agents.moments["second_w"]), agents.policy_steps()
    for k, segments in enumerate(batches[:-1]):
        now = {name: x.view_as(x) for name, x in w.items()}  # predictions are data to the step, and not to J
        losses = learned(objective, agents, now, segments, w)
        total = losses.sum() if step is None else losses.mean((1, 2)).sum()
        slope = dict(zip(w, torch.autograd.grad(total, list(now.values()), create_graph=True), strict=True))
        if step is not None:
            rate, slope = agents.learning_rates[0], unit(slope, agents.shortest)
            for name, g in slope.items():
                slope[name], first[name], second[name] = step(g, first[name], second[name], count + k)
        w = {name: x - rate * slope[name] for name, x in w.items()}
    joined = batches[0]
    for segments in batches[1:]:
        joined = joined.join(segments)
    return -critics_own(agents, w, joined)


def agreement(
    objective: Callable[..., Tensor],
    agents: Agents,
    segments: Segments,
    flip: Tensor | None = None,
    squashed: bool = True,
) -> Tensor:
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
        squashed: where False, both gradients are those in the actions :math:`\mu_w(s_t)` themselves, which lets actions
            at their bounds count in full.
    """
    s, now = segments.observation, segments.observation[..., :-1, :]
    b = segments.action
    flip = torch.ones_like(b[:, :1, :1]) if flip is None else flip
    with torch.no_grad():
        policy = agents.policy(agents.w, s)
        value, worth, told = agents.opinion(s, policy), agents.opinion(now, b), _told(agents, agents.w, s)
    p = policy[..., :-1, :].clone().requires_grad_()
    losses = objective(p * flip, value, worth, segments._replace(action=b * flip), told)
    slope = 1 - p.detach().square() if squashed else torch.ones_like(p)  # of tanh
    slope = slope if segments.real is None else slope * segments.real  # critics have a slope in padding, too
    ours = slope * torch.autograd.grad(losses.sum(), p, create_graph=True)[0]
    wanted = slope * torch.autograd.grad((agents.opinion(now, p) * segments.mask).sum(), p)[0]
    shared, lengths = (ours * -wanted).flatten(1).sum(1), [x.square().flatten(1).sum(1) for x in (ours, wanted)]
    return shared / (lengths[0] * lengths[1] + _EPSILON**2).sqrt()


RULES: dict[str, Callable[..., Tensor]] = {
    "reinforce": reinforce,
    "reinforce_corrected": partial(reinforce, corrected=True),
    "reinforce_on_policy": partial(reinforce, newest=_NEWEST),
    "ppo": ppo,
    "dpo": dpo,
    "critic": critics_own,
}
"""The hand-made rules ``(agents, w, segments) -> losses [N]`` by name."""


def rule_named(name: str) -> Callable[..., Tensor]:
    """Return the rule of `RULES` that has this name, or a function of one's own, ``module.function``, of the same kind.

    Raises:
        ValueError: there is no such rule, or its module has an error.
    """
    try:
        found = RULES.get(name) or (locate(name) if "." in name else None)
    except ErrorDuringImport as error:
        raise ValueError(f"The rule {name!r} cannot be imported: {error}.") from error
    if found is None and "." in name:
        module, _, function = name.rpartition(".")
        raise ValueError(f"The rule {name!r} is not there: give the working folder a module {module} with {function}.")
    if not callable(found):
        known = ", ".join(map(repr, RULES))
        raise ValueError(f"A rule must be among {known}, or a function of your own as module.function, got {name!r}.")
    return cast(Callable[..., Tensor], found)


def _mean(x: Tensor, segments: Segments) -> Tensor:
    """The mean over B and T, padding counted as the released code does."""
    return (x * segments.mask).mean((-2, -1))
