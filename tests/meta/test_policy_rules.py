"""The hand-made rules: each against its formula."""

from functools import partial

import pytest
import torch
from small_worlds import Odd

from algornn.meta import Agents, OriginalAgents, Pendulum, PointMass, Segments
from algornn.meta.learned_objective import standardised
from algornn.meta.policy_rules import RULES, _advantages, advantages, dpo, drift, ppo, ratio, reinforce

SMALL = {"hidden_sizes": (8,), "segments": (4, 5), "every": 2, "random": 1}


def agents_that_acted(updates, **settings):
    worlds = [partial(world, length=12) for world in (PointMass, Pendulum)]
    agents = Agents(worlds, torch.tensor([1, 2]), **SMALL | settings)
    for _ in range(updates):
        agents.update((partial(RULES["critic"], agents), 1.0))
    return agents


def slopes(rule, agents):
    w = {name: x.clone().requires_grad_() for name, x in agents.w.items()}
    return torch.autograd.grad(rule(agents, w, agents.draw(2)).sum(), list(w.values()))


def test_the_ratio_is_one_for_who_acted_and_random_actions_are_uniform():
    agents = agents_that_acted(0, random=0)
    agents.replay.add(agents.collect(3))
    segments = agents.draw(2)
    torch.testing.assert_close(ratio(agents, agents.w, segments), torch.ones(2, 4, 5))
    other = {name: x + 0.1 for name, x in agents.w.items()}
    p = agents.policy(other, segments.observation[..., :-1, :])
    expected = torch.distributions.Normal(p[1, ..., 0], agents.exploration).log_prob(segments.action[1, ..., 0])
    torch.testing.assert_close(ratio(agents, other, segments)[1], (expected - segments.density[1]).exp())
    density = agents_that_acted(0).collect(1).density
    torch.testing.assert_close(density[:, 0, 0], -torch.log(torch.tensor([4.0, 2.0])))  # 2 actions, and 1


def test_advantages_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    T, gamma = 6, 0.9
    draw = lambda *shape: torch.randn(*shape, generator=g).double()  # noqa: E731
    terminal, mask = torch.zeros(1, T).double(), torch.ones(1, T).double()
    terminal[0, 3], mask[0, 4:] = 1, 0
    segments = Segments(draw(1, T + 1, 2), draw(1, T, 1), draw(1, T), terminal, mask, 0 * mask)
    value, kept = draw(1, T + 1), torch.rand(1, T, generator=g).double()
    expected, total = [], 0.0
    for t in reversed(range(T)):
        goes = (1 - terminal[0, t]) * mask[0, t]
        here = segments.reward[0, t] + gamma * goes * value[0, t + 1] - value[0, t] + gamma * 0.95 * goes * total
        here = here * mask[0, t]
        expected.append(here)
        total = kept[0, t] * here
    torch.testing.assert_close(advantages(value, segments, gamma, kept)[0], torch.stack(expected[::-1]))


def test_padding_after_a_time_limit_says_nothing():
    full = Segments(*(torch.zeros(1, n) for n in (4, 3)), *(torch.ones(1, 3) * x for x in (1, 0, 1, 0)))
    value = torch.arange(1.0, 5.0)[None]
    cut = full._replace(mask=torch.tensor([[1.0, 1, 0]]), reward=torch.tensor([[1.0, 1, 0]]))
    short = Segments(*(x[:, :-1] for x in full[:-1]))
    torch.testing.assert_close(advantages(value, cut, 0.9)[:, :2], advantages(value[:, :3], short, 0.9))
    assert advantages(value, cut, 0.9)[0, 2] == 0


def test_the_drift_is_flat_at_one_and_never_negative():
    rho = torch.ones(2, requires_grad=True)
    A = torch.tensor([1.5, -1.5])
    (slope,) = torch.autograd.grad(drift(rho, A).sum(), rho)
    assert slope.tolist() == [0, 0]
    assert drift(torch.tensor([2.0]), torch.tensor([3.0])).item() == pytest.approx(3 - 2 * 0.905148, abs=1e-5)
    assert drift(torch.tensor([0.5]), torch.tensor([-1.0])).item() == pytest.approx(0.693147 - 0.6 * 0.819484, abs=1e-4)
    many = torch.linspace(0.01, 5, 200)
    assert all((drift(many, torch.full_like(many, A)) >= 0).all() for A in (-2.0, -0.5, 0.0, 0.5, 2.0))


def test_where_the_ratio_is_one_all_policy_gradients_are_one():
    agents = agents_that_acted(0, random=0)
    agents.replay.add(agents.collect(4))
    of_ppo, of_dpo = slopes(ppo, agents), slopes(dpo, agents)
    plain, corrected = (slopes(partial(reinforce, newest=4, corrected=on), agents) for on in (False, True))
    for a, b, c, d in zip(of_ppo, of_dpo, plain, corrected, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, d)
        # REINFORCE takes the actions to come from a narrower distribution.
        torch.testing.assert_close(a * (agents.exploration / 0.1) ** 2, c, rtol=1e-3, atol=1e-5)


def test_reinforce_of_the_original_is_that_of_its_release():
    worlds = [partial(PointMass, length=12), partial(Odd, pay=None, end=5)]  # of 2 actions, and of 1
    agents = OriginalAgents(worlds, torch.tensor([1, 2]), **SMALL | {"segments": (4, 7)})
    agents.update((partial(RULES["critic"], agents), 1.0))
    segments = agents.draw(2)
    assert segments.mask.sum() < segments.mask.numel()
    s = segments.observation
    p = agents.policy(agents.w, s)
    value = agents.opinion(s, p)
    expected = torch.zeros(2)
    for n, D in enumerate((2, 1)):
        for b in range(4):
            total = torch.tensor(0.0)
            for t in reversed(range(int(segments.mask[n, b].sum()))):
                end = segments.terminal[n, b, t]
                target = segments.reward[n, b, t] + end + agents.gamma * (1 - end) * value[n, b, t + 1]
                total = target - value[n, b, t] + agents.gamma * 0.97 * (1 - end) * total
                far = (segments.action[n, b, t, :D] - p[n, b, t, :D]).square().mean()
                expected[n] += far * total / (4 * 7)
    torch.testing.assert_close(reinforce(agents, agents.w, segments), expected)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_ppo_is_flat_beyond_the_clip(shift):
    """Where the ratio is e, only what was worse than expected has a gradient; where it is 1 / e, what was better."""
    agents = agents_that_acted(0, random=0)
    agents.replay.add(agents.collect(4))
    agents.replay.stored.density.add_(shift)

    def unclipped(agents, w, segments):
        segments = agents.draw(2, 4)
        A = standardised(_advantages(agents, w, segments))
        sloped = A < 0 if shift < 0 else A > 0
        return -(ratio(agents, w, segments) * A * sloped * segments.mask).mean((-2, -1))

    found, wanted = slopes(ppo, agents), slopes(unclipped, agents)
    assert all(x.abs().max() > 1e-4 for x in wanted)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)


def test_on_policy_rules_take_the_newest_episodes_only():
    agents = agents_that_acted(6)
    newest, replay = agents.draw(2, newest=1), agents.replay
    begin = replay.begins[torch.arange(2), replay.count - 1]
    for n in range(2):
        stored = replay.stored.action[n, begin[n] : begin[n] + agents.length]
        assert all((stored == step).all(-1).any() for step in newest.action[n].flatten(0, 1))
    for rule in (ppo, dpo, partial(reinforce, newest=4)):
        assert rule(agents, agents.w, None).isfinite().all()  # what was drawn for the others is not looked at


@pytest.mark.parametrize(
    "rule", [name if name == "critic" else pytest.param(name, marks=pytest.mark.slow) for name in RULES]
)
def test_the_rules_learn(rule):
    agents = Agents([PointMass] * 3, torch.tensor([1, 2, 3]), hidden_sizes=(32, 32))
    returns = lambda: agents.collect(8, explore=False).reward.sum(-1).mean()  # noqa: E731
    before = returns()
    patient = rule in ("ppo", "dpo")  # at the ratio's bounds they wait for new episodes
    for _ in range(800 if patient else 300):
        agents.update((partial(RULES[rule], agents), 1.0))
    assert before < -100
    assert returns() > before + 60
