"""The learned objective: its size, what it may see, and how it is scored, against differences and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algornn.meta import LearnedObjective, Segments, agreement, improvement
from algornn.meta.policy_rules import learned


class Alone:
    """One agent without a stack, in float64."""

    step = None

    def __init__(self, observed=3, D=2, seed=0):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(observed, 6), nn.Tanh(), nn.Linear(6, D), nn.Tanh()).double()
        self.critic = (
            nn.Sequential(nn.Linear(observed + D, 6), nn.Tanh(), nn.Linear(6, 1)).double().requires_grad_(False)
        )
        self.w = {name: p.detach() for name, p in self.net.named_parameters()}

    def policy(self, w, s):
        return torch.func.functional_call(self.net, w, (s,))

    def opinion(self, s, b):
        return self.critic(torch.cat([s, b], -1))[..., 0]


def segments(observed=3, D=2, B=4, T=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).double()  # noqa: E731
    mask = torch.ones(B, T).double()
    mask[0, 3:] = 0
    terminal = torch.zeros(B, T).double()
    terminal[1, -1] = 1
    return Segments(draw(B, T + 1, observed), draw(B, T, D).tanh(), draw(B, T), terminal, mask, 0 * mask)


def objective(seed=3, **settings):
    torch.manual_seed(seed)
    return LearnedObjective(**settings).double()


def asked(network, b, p=None, value=None):
    """The losses for actions p and values of a critic."""
    p = torch.zeros_like(b.action) if p is None else p
    value = torch.zeros(b.observation.shape[:-1]).double() if value is None else value
    return network(p, value, torch.zeros_like(b.reward), b)


def test_the_size_is_the_published_one():
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in LearnedObjective().named_children()}
    assert parts["actions"] == 2400
    assert parts["context"] == 1480
    assert parts["gates"] + parts["recurrent"] == 9344
    assert parts["head"] == 2272  # without the last bias
    assert sum(parts.values()) == 15_496


@pytest.mark.parametrize(("observed", "D"), [(3, 2), (7, 1), (1, 5)])
def test_one_objective_serves_agents_of_any_size(observed, D):
    agent = Alone(observed, D)
    loss = learned(objective(advantages=True), agent, agent.w, segments(observed, D))
    assert loss.shape == (4, 5)
    assert loss[0, 3:].tolist() == [0, 0]
    assert (loss[1:] != 0).all()


def test_a_step_has_seen_the_future_and_not_the_past():
    network, b = objective(), segments()
    moved = b.action.clone()
    moved[:, 2] += 0.5
    changed = ((asked(network, b._replace(action=moved)) - asked(network, b)).abs() > 1e-12).any(0)
    assert changed.tolist() == [True, True, True, False, False]


def test_the_gradient_flows_through_the_policys_actions_alone_and_scales_do_not_matter():
    network, b = objective(), segments()
    p = torch.zeros_like(b.action, requires_grad=True)
    value = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    loss = asked(network, b, p, value)
    slope = torch.autograd.grad(loss.sum(), [p, value], allow_unused=True)
    assert slope[0].abs().max() > 0
    assert slope[1] is None
    scaled = asked(network, b._replace(reward=3 * b.reward - 5), p, 100 * value + 7)
    torch.testing.assert_close(scaled, loss, rtol=1e-5, atol=1e-6)


def test_stacked_agents_are_standardised_apart():
    network, batches = objective(), [segments(seed=n) for n in range(3)]
    stacked = Segments(*map(torch.stack, zip(*(b[:-1] for b in batches), strict=True)))
    torch.testing.assert_close(asked(network, stacked), torch.stack([asked(network, b) for b in batches]))


def test_padded_actions_are_not_looked_at():
    network, b = objective(), segments()
    wider = b._replace(action=torch.cat([b.action, torch.zeros(4, 5, 1).double()], -1), real=torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(asked(network, wider), asked(network, b))


def test_what_a_policy_does_in_padding_is_not_looked_at():
    network, b, p = objective(), segments(), segments(seed=1).action.requires_grad_()
    losses = asked(network, b, p)
    torch.testing.assert_close(asked(network, b, torch.where(b.mask[..., None] > 0, p, 9.0)), losses)
    slope = torch.autograd.grad(losses.sum(), p)[0]
    assert torch.equal(slope.abs().sum(-1) > 0, b.mask > 0)


def test_advantages_are_looked_at_where_they_are_asked_for():
    b = segments()
    g = torch.Generator().manual_seed(2)
    p, value, worth = torch.zeros_like(b.action), torch.zeros(4, 6).double(), torch.randn(4, 5, generator=g).double()
    for advantages in (False, True):
        network = objective(advantages=advantages)
        same = torch.allclose(network(p, value, worth, b), network(p, value, -worth, b))
        assert same is not advantages
        torch.testing.assert_close(network(p, value, worth, b), network(p, value, 9 * worth, b), rtol=1e-6, atol=1e-8)


def test_an_advantage_weighs_a_learned_distance_and_keeps_its_sign():
    network, b = objective(advantages=True), segments()
    network.head[-1].weight.data.zero_()
    g = torch.Generator().manual_seed(2)
    p, value = torch.rand(4, 5, 2, generator=g).double(), torch.randn(4, 6, generator=g).double()
    worth = value[:, :-1] + torch.rand(4, 5, generator=g).double()  # all better than the policy
    A = worth - value[:, :-1]
    distance = network.distance(network.actions(torch.stack([b.action, p], -1)).mean(-2))[..., 0]
    expected = A / A.square().mean().sqrt() * distance * b.mask
    torch.testing.assert_close(network(p, value, worth, b), expected, rtol=1e-5, atol=1e-6)


def opinion_by_hand(network, agent, batches, rate):
    """What the critic thinks after the steps, with autograd, step by step."""
    w = {name: value.clone().requires_grad_() for name, value in agent.w.items()}
    for b in batches[:-1]:
        total = learned(network, agent, w, b).sum()
        slopes = torch.autograd.grad(total, list(w.values()), create_graph=True)
        w = {name: value - rate * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
    J, n = 0.0, 0
    for b in batches:
        s = b.observation[:, :-1]
        J = J + (agent.opinion(s, agent.policy(w, s)) * b.mask).sum()
        n += b.mask.numel()
    return J / n


def derivative_and_difference(network, score, seed):
    """The derivative of a score along a random direction of the objective's weights, and its differences."""
    g, h = torch.Generator().manual_seed(seed), 1e-6
    weights = list(network.parameters())
    along = [torch.randn(p.shape, generator=g).double() for p in weights]
    slopes = torch.autograd.grad(score(), weights)
    derivative = float(sum((slope * x).sum() for slope, x in zip(slopes, along, strict=True)))
    ends = []
    for k in (-2, -1, 1, 2):
        with torch.no_grad():
            for p, x in zip(weights, along, strict=True):
                p += k * h * x
        ends.append(float(score().detach()))
        with torch.no_grad():
            for p, x in zip(weights, along, strict=True):
                p -= k * h * x
    return derivative, (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)


@pytest.mark.parametrize("K", [2, 3])
def test_improvement_is_that_of_the_unrolled_steps_and_its_gradient_that_of_differences(K):
    network, agent, rate = objective(), Alone(), 1e-3
    batches = tuple(segments(seed=seed) for seed in range(K))
    found, expected = improvement(network, agent, batches, rate), opinion_by_hand(network, agent, batches, rate)
    torch.testing.assert_close(found, expected)
    weights = list(network.parameters())
    pairs = zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
    if K > 2:  # differences would see the values move at the second step, which the objective takes as data
        return
    for seed in range(3):
        derivative, difference = derivative_and_difference(
            network, lambda: improvement(network, agent, batches, rate), seed
        )
        assert derivative == pytest.approx(difference, rel=1e-5)
        assert abs(derivative) > 1e-8


class Stack:
    """Two agents of `Alone`, stacked."""

    def __init__(self):
        self.agents = [Alone(seed=seed) for seed in range(2)]
        self.w = {name: torch.stack([agent.w[name] for agent in self.agents]) for name in self.agents[0].w}

    def policy(self, w, s):
        own = [{name: x[n] for name, x in w.items()} for n in range(2)]
        return torch.stack(
            [agent.policy(weights, s[n]) for n, (agent, weights) in enumerate(zip(self.agents, own, strict=True))]
        )

    def opinion(self, s, b):
        return torch.stack([agent.opinion(s[n], b[n]) for n, agent in enumerate(self.agents)])


def stacked():
    return Segments(*map(torch.stack, zip(*(segments(seed=n)[:-1] for n in range(2)), strict=True)))


def test_agreement_does_not_count_padded_actions():
    network, agents, b = objective(advantages=True), Stack(), stacked()
    expected = agreement(network, agents, b)

    class Padded(Stack):
        def policy(self, w, s):
            return F.pad(super().policy(w, s), (0, 1))

        def opinion(self, s, b):
            return super().opinion(s, b[..., :2]) + 5 * b[..., 2]

    real = torch.tensor([1.0, 1, 0]).double().expand(2, 1, 1, 3)
    found = agreement(network, Padded(), b._replace(action=F.pad(b.action, (0, 1)), real=real))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("signs", "squashed"), [((1.0, 1.0), True), ((1.0, -1.0), True), ((1.0, -1.0), False)])
def test_agreement_is_the_cosine_of_both_slopes_and_its_gradient_that_of_differences(signs, squashed):
    network, agents, b = objective(advantages=True), Stack(), stacked()
    f = torch.tensor(signs).double()
    found = agreement(network, agents, b, f.expand(2, 1, 1, 2), squashed)
    for n, agent in enumerate(agents.agents):
        own = Segments(*(x[n] for x in b[:-1]))
        s = own.observation
        p = agent.policy(agent.w, s)[:, :-1].detach().requires_grad_()
        value = agent.opinion(s, agent.policy(agent.w, s)).detach()
        worth, shown = agent.opinion(s[:, :-1], own.action), own._replace(action=own.action * f)
        ours = torch.autograd.grad(network(p * f, value, worth, shown).sum(), p)[0]
        theirs = -torch.autograd.grad((agent.opinion(s[:, :-1], p) * own.mask).sum(), p)[0]
        if squashed:
            ours, theirs = ((1 - p.detach() ** 2) * slope for slope in (ours, theirs))
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert float(found[n]) == pytest.approx(float(cosine), rel=1e-6)
    derivative, difference = derivative_and_difference(
        network, lambda: agreement(network, agents, b, None, squashed).mean(), 0
    )
    assert derivative == pytest.approx(difference, rel=1e-5)
    assert abs(derivative) > 1e-6


def test_reversed_actuators_are_another_world_in_which_the_critic_is_the_same():
    network, agents, b = objective(), Stack(), stacked()
    flip = torch.tensor([1.0, -1.0]).double().view(1, 1, 1, 2).expand(2, 1, 1, 2)
    plain, flipped = agreement(network, agents, b), agreement(network, agents, b, flip)
    assert not torch.allclose(plain, flipped)
    torch.testing.assert_close(agreement(network, agents, b, flip.abs()), plain)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`units` must be even"):
        LearnedObjective(units=31)
    with pytest.raises(ValueError, match="`features` must be at least 1, got 0"):
        LearnedObjective(features=0)
    with pytest.raises(TypeError, match="`units` must be a whole number"):
        LearnedObjective(units=4.0)
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        improvement(objective(), Alone(), (segments(),))
