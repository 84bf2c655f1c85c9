"""The learned objective: its size, what it may see, and its meta-gradient against differences and by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from algornn.meta.learned_objective import Agent, LearnedObjective, Segments, meta_gradient, policy_loss


def networks(observed=3, D=2, seed=0):
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(observed, 6), nn.Tanh(), nn.Linear(6, D), nn.Tanh()).double()
    critic = nn.Sequential(nn.Linear(observed + D, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    return policy, critic


def agent_of(policy, critic, w=None, u=None):
    w, u = w or dict(policy.named_parameters()), u or dict(critic.named_parameters())
    w, u = ({name: value.detach() for name, value in weights.items()} for weights in (w, u))
    return Agent(
        lambda w, s: functional_call(policy, w, (s,)),
        lambda u, s, p: functional_call(critic, u, (torch.cat([s, p], -1),))[..., 0],
        w,
        u,
    )


def segments(observed=3, D=2, B=4, T=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).double()  # noqa: E731
    mask = torch.ones(B, T).double()
    mask[0, 3:] = 0
    terminal = torch.zeros(B, T).double()
    terminal[1, -1] = 1
    return Segments(draw(B, T + 1, observed), draw(B, T, D).tanh(), draw(B, T), terminal, mask)


def objective(seed=3):
    torch.manual_seed(seed)
    network = LearnedObjective().double()
    return network, {name: p.detach() for name, p in network.named_parameters()}


def test_the_size_is_the_published_one():
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in LearnedObjective().named_children()}
    assert parts["actions"] == 2400
    assert parts["context"] == 1480
    assert parts["gates"] + parts["recurrent"] == 9344
    assert parts["head"] == 2272  # without the last bias
    assert sum(parts.values()) == 15_496


@pytest.mark.parametrize(("observed", "D"), [(3, 2), (7, 1), (1, 5)])
def test_one_objective_serves_agents_of_any_size(observed, D):
    network, a = objective()
    agent = agent_of(*networks(observed, D))
    loss = policy_loss(network, a, agent, agent.w, segments(observed, D))
    assert loss.shape == (4, 5)
    assert loss[0, 3:].tolist() == [0, 0]
    assert (loss[1:] != 0).all()


def test_a_step_has_seen_the_future_and_not_the_past():
    network, _ = objective()
    b = segments()
    p, value = torch.zeros_like(b.action), torch.zeros(4, 6).double()
    plain = network(p, value, b)
    moved = b.action.clone()
    moved[:, 2] += 0.5
    other = network(p, value, b._replace(action=moved))
    changed = ((other - plain).abs() > 1e-12).any(0)
    assert changed.tolist() == [True, True, True, False, False]


def test_the_gradient_flows_through_the_policys_actions_alone_and_scales_do_not_matter():
    network, _ = objective()
    b = segments()
    p = torch.zeros_like(b.action, requires_grad=True)
    value = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    loss = network(p, value, b)
    slope = torch.autograd.grad(loss.sum(), [p, value], allow_unused=True)
    assert slope[0].abs().max() > 0
    assert slope[1] is None
    scaled = network(p, 100 * value + 7, b._replace(reward=3 * b.reward - 5))
    torch.testing.assert_close(scaled, loss, rtol=1e-5, atol=1e-6)


def opinion_by_hand(network, a, agent, batches, rate):
    """The same by autograd, step by step."""
    w = {name: value.clone().requires_grad_() for name, value in agent.w.items()}
    for b in batches[:-1]:
        slopes = torch.autograd.grad(policy_loss(network, a, agent, w, b).sum(), list(w.values()), create_graph=True)
        w = {name: value - rate * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
    J, n = 0.0, 0
    for b in batches:
        s = b.observation[:, :-1]
        J = J + (agent.critic(agent.u, s, agent.policy(w, s)) * b.mask).sum()
        n += b.mask.numel()
    return J / n


@pytest.mark.parametrize("K", [2, 3])
def test_the_meta_gradient_is_that_of_the_unrolled_steps_and_of_differences(K):
    network, a = objective()
    agent, rate = agent_of(*networks()), 1e-3
    batches = tuple(segments(seed=seed) for seed in range(K))
    found, J = meta_gradient(network, a, agent, batches, rate)
    leaves = {name: value.clone().requires_grad_() for name, value in a.items()}
    expected = opinion_by_hand(network, leaves, agent, batches, rate)
    torch.testing.assert_close(J, expected.detach())
    slopes = torch.autograd.grad(-expected, list(leaves.values()))
    for name, slope in zip(leaves, slopes, strict=True):
        torch.testing.assert_close(found[name], slope, rtol=1e-9, atol=1e-14)

    if K > 2:  # differences would see the values move at the second step, which the objective takes as data
        return
    g, h = torch.Generator().manual_seed(5), 1e-6
    for _ in range(3):
        along = {name: torch.randn(value.shape, generator=g).double() for name, value in a.items()}
        ends = [
            float(opinion_by_hand(network, {n: v + k * h * along[n] for n, v in a.items()}, agent, batches, rate))
            for k in (-2, -1, 1, 2)
        ]
        difference = -(ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        derivative = float(sum((found[name] * along[name]).sum() for name in a))
        assert derivative == pytest.approx(difference, rel=1e-5)
        assert abs(derivative) > 1e-8


def test_mapped_over_stacked_agents_it_is_that_of_each():
    network, a = objective()
    pairs = [networks(seed=seed) for seed in range(3)]
    w, u = (stack_module_state([pair[k] for pair in pairs])[0] for k in range(2))
    batches = [tuple(segments(seed=10 * n + k) for k in range(2)) for n in range(3)]
    stacked = tuple(Segments(*map(torch.stack, zip(*(b[k] for b in batches), strict=True))) for k in range(2))

    def one(w, u, batches):
        return meta_gradient(network, a, agent_of(*pairs[0])._replace(w=w, u=u), batches, 0.05)

    detached = [{name: value.detach() for name, value in weights.items()} for weights in (w, u)]
    slopes, opinions = vmap(one)(*detached, stacked)
    for n, pair in enumerate(pairs):
        slope, J = meta_gradient(network, a, agent_of(*pair), batches[n], 0.05)
        torch.testing.assert_close(opinions[n], J)
        for name, value in slope.items():
            torch.testing.assert_close(slopes[name][n], value, rtol=1e-9, atol=1e-14)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`units` must be even"):
        LearnedObjective(units=31)
    network, a = objective()
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        meta_gradient(network, a, agent_of(*networks()), (segments(),))
