"""Stacked agents: each is as if it were alone; padding changes nothing; they learn; they begin anew."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small_worlds import SMALL, WORLDS, Odd

from algornn.meta import (
    Agents,
    GraphWorld,
    OriginalAgents,
    SharingAgents,
)
from algornn.meta.control_networks import Policy, TwinCritics
from algornn.meta.policy_rules import critics_own


def trained(worlds, seeds, updates=5, **settings):
    agents = Agents(worlds, torch.tensor(seeds), **SMALL | settings)
    returns = [agents.update((partial(critics_own, agents), 1.0)) for _ in range(updates)]
    return agents, returns


def test_an_agent_does_not_depend_on_the_others():
    together, returns = trained(WORLDS + WORLDS[:1], [3, 4, 5, 6, 7])
    alone, own = trained([WORLDS[3]], [6])  # the widest world, so that nothing is padded
    for mine, all_of_them in ((alone.w, together.w), (alone.u, together.u), (alone.target_u, together.target_u)):
        for name, x in mine.items():
            torch.testing.assert_close(all_of_them[name][3:4], x, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(returns[4][3:4], own[4], rtol=1e-4, atol=1e-4)
    assert returns[1] is None  # an episode every second update
    assert not torch.equal(together.w["0.weight"][0], together.w["0.weight"][4])


def test_an_agent_is_the_same_however_far_it_is_padded():
    together, returns = trained(WORLDS, [3, 4, 5, 6])
    for n in range(4):
        alone, own = trained([WORLDS[n]], [3 + n])
        torch.testing.assert_close(returns[4][n : n + 1], own[4], rtol=1e-4, atol=1e-4)
        s = alone.collect(1).observation
        wide = torch.nn.functional.pad(s, (0, together.observation_size - s.shape[-1]))
        wide = wide.expand(4, *wide.shape[1:])
        b = together.policy(together.w, wide)[n : n + 1, ..., : alone.action_size]
        torch.testing.assert_close(b, alone.policy(alone.w, s), rtol=1e-4, atol=1e-5)
        assert (together.u["first.0.weight"][n, :, alone.observation_size : 10] == 0).all()
        assert (together.u["second.0.weight"][n, :, 10 + alone.action_size :] == 0).all()
        assert (together.w["3.weight"][n, alone.action_size :] == 0).all()


def test_policy_and_critics_are_born_of_other_numbers():
    agents, _ = trained(WORLDS[:1], [1], updates=0)
    assert not torch.equal(agents.w["0.bias"], agents.u["first.0.bias"])
    bounds = [x.abs().max() * size**0.5 for x, size in ((agents.w["0.weight"], 6), (agents.u["first.0.weight"], 8))]
    assert all(0.8 < bound <= 1 for bound in bounds)  # torch's, by the sizes of the agent's own world


def test_padded_observations_and_actions_are_zero_and_change_nothing():
    agents, _ = trained(WORLDS, [1, 2, 3, 4])
    assert agents.observation_size == 10
    assert agents.real.tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    segments = agents.draw(0)
    assert (segments.observation[1, ..., 3:] == 0).all()
    assert (segments.action[1, ..., 1] == 0).all()
    assert (segments.action[1, ..., 0] != 0).all()
    assert (agents.policy(agents.w, segments.observation)[1:3, ..., 1] == 0).all()


def test_the_stacked_networks_are_the_single_ones():
    agents, _ = trained(WORLDS, [1, 2, 3, 4])
    s, b = torch.randn(4, 7, 10), torch.rand(4, 7, 2)
    for n in range(4):
        policy, critics = Policy(10, 2, (8,)), TwinCritics(10, 2, (8,))
        policy.load_state_dict({name: x[n] for name, x in agents.w.items()})
        critics.load_state_dict({name: x[n] for name, x in agents.u.items()})
        torch.testing.assert_close(agents.policy(agents.w, s)[n], policy(s[n]) * agents.real[n])
        torch.testing.assert_close(agents.values(agents.u, s, b)[n], critics(s[n], b[n]))


def test_adam_is_that_of_torch():
    agents, _ = trained(WORLDS[:1], [1])
    ours, theirs = agents.u, {name: x.clone().requires_grad_() for name, x in agents.u.items()}
    for moments in agents.moments.values():
        for x in moments.values():
            x.zero_()
    optimizer = torch.optim.Adam(list(theirs.values()), agents.learning_rates[1])
    for step in range(3):
        slope = {name: torch.randn_like(x) for name, x in ours.items()}
        agents.u = agents._adam("u", slope, torch.tensor([step + 1]))
        for name, p in theirs.items():
            p.grad = slope[name]
        optimizer.step()
    for name, p in theirs.items():
        torch.testing.assert_close(agents.u[name], p.detach(), rtol=1e-5, atol=1e-7)


def test_policies_rest_while_actions_are_random():
    agents, _ = trained(WORLDS[:1], [1], updates=2)
    fresh = Agents(WORLDS[:1], torch.tensor([1]), **SMALL)
    assert all(torch.equal(agents.w[name], x) for name, x in fresh.w.items())
    assert all((moment == 0).all() for moment in agents.moments["first_w"].values())
    assert not torch.equal(agents.u["first.0.weight"], fresh.u["first.0.weight"])
    agents.update((partial(critics_own, agents), 1.0))
    assert not torch.equal(agents.w["0.weight"], fresh.w["0.weight"])


def test_some_begin_anew_and_the_others_go_on():
    agents, _ = trained(WORLDS, [1, 2, 3, 4], updates=6)
    kept = {name: x.clone() for name, x in agents.u.items()}
    which = torch.tensor([False, True, False, True])
    agents.renew(which)
    assert agents.age.tolist() == [6, 0, 6, 0]
    assert agents.replay.count.tolist() == [3, 0, 3, 0]
    for name, x in kept.items():
        if "weight" in name and x.dim() == 3:
            assert not torch.equal(agents.u[name][1], x[1])
        assert torch.equal(agents.u[name][0], x[0])
        assert torch.equal(agents.target_u[name][1], agents.u[name][1])
    assert agents.seed[0] == 1
    assert agents.seed[1] != 2
    agents.update((partial(critics_own, agents), 1.0))
    assert agents.age.tolist() == [7, 1, 7, 1]
    assert all(x.isfinite().all() for x in agents.w.values())


def test_agents_that_are_taken_over_go_on_as_they_would_have():
    first, _ = trained(WORLDS, [1, 2, 3, 4])
    state = {name: x.clone() for name, x in first.state_dict().items()}
    other = Agents([WORLDS[3], WORLDS[0]], torch.tensor([9, 9]), **SMALL)
    other.load_state_dict(state, torch.tensor([3, 0]), torch.tensor([0, 1]))
    for agents in (first, other):
        for _ in range(3):
            agents.update((partial(critics_own, agents), 1.0))
    for name, x in other.w.items():
        torch.testing.assert_close(x, first.w[name][[3, 0]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "`gamma` is a discount"),
        ({"exploration": -0.1}, "`exploration` is a standard deviation"),
        ({"every": 0}, "`every` and both numbers of `segments` must be at least 1"),
        ({"segments": (4, 0)}, r"got 2 and \(4, 0\)"),
        ({"segments": (4,)}, "`segments` are two numbers"),
        ({"random": -1}, "`random` must be at least 0"),
        ({"random": 1.5}, "`random` must be a whole number"),
        ({"exploration": float("nan")}, "`exploration` is a standard deviation"),
        ({"learning_rates": (1e-3,)}, "`learning_rates` are two, of the policies and of the critics"),
        ({"learning_rates": (-1e-3, 1e-3)}, r"expected 0 or more, got \(-0.001, 0.001\)"),
        ({"polyak": 1.5}, "`polyak` must be a share"),
        ({"hidden_sizes": ()}, "`hidden_sizes` needs a hidden layer"),
        ({"hidden_sizes": (8, 0)}, "`hidden_sizes` must be at least 1, got 0"),
        ({"segments": (4, 13)}, "have 13 steps, the longest episode has only 12"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Agents(WORLDS, torch.arange(4), **SMALL | settings)


@pytest.mark.parametrize("number", [0, 3])
def test_every_agent_needs_a_world_and_a_seed(number):
    with pytest.raises(ValueError, match=f"a world and a seed each, got {number} worlds and 2 seeds"):
        Agents(WORLDS[:number], torch.arange(2), **SMALL)


@pytest.mark.parametrize("pay", [0, 1, 0.1, 100.0])
def test_rewards_that_do_not_vary_keep_their_unit(pay):
    agents, _ = trained([partial(Odd, pay=pay)], [1])
    assert agents.scale.tolist() == [1]
    assert agents.replay.stored.reward.max() == torch.tensor(float(pay))


def test_the_unit_of_rewards_is_that_of_the_steps_before_an_end_and_one_step_has_none():
    agents, _ = trained([partial(Odd, pay=None, end=6), partial(Odd, pay=None, end=1)], [1, 2], updates=1)
    replayed = agents.replay.stored.reward[0] * agents.scale[0]
    torch.testing.assert_close(agents.scale, torch.tensor([float(replayed[:6].std()), 1.0]))


def test_what_a_world_pays_and_shows_after_an_end_does_not_count():
    agents, returns = trained([partial(Odd, pay=None, end=6)], [1])
    assert agents.finite().all()
    assert returns[4].isfinite().all()
    assert agents.draw(0).observation.isfinite().all()


def test_only_those_among_go_and_nothing_is_left_after_an_end():
    worlds = [partial(Odd, end=3, after=0.7), partial(Odd, length=7), partial(Odd, end=5)]
    agents = OriginalAgents(worlds, torch.tensor([1, 2, 3]), **SMALL)
    found = agents.collect(2, among=torch.tensor([True, True, False]))
    assert found.mask.sum(-1).tolist() == [[3, 3], [7, 7], [0, 0]]
    assert found.terminal.nonzero()[:, 2].tolist() == [2, 2, 6, 6]
    assert (found.observation[0, :, 3] == 0.7).all()  # what the episode ends with
    assert (found.observation[0, :, 4:] == 0).all()
    for x in (found.action, found.reward, found.density):
        assert (x[0, :, :3] != 0).all()
        assert (x[0, :, 3:] == 0).all()
        assert (x[1, :, :7] != 0).all()
    nobody = agents.collect(1, among=torch.zeros(3, dtype=torch.bool))
    assert nobody.mask.shape == (3, 1, 10)
    assert (nobody.mask == 0).all()


@pytest.mark.parametrize("kind", [Agents, OriginalAgents])
def test_where_no_reward_was_found_yet_nobody_is_unsound(kind):
    agents = kind([partial(Odd, pay=0)], torch.tensor([1]), **SMALL)
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    assert not agents.unsound().any()


def test_agents_that_share_have_time_to_find_a_reward():
    agents = SharingAgents([partial(Odd, pay=0)] * 2, torch.tensor([1, 2]), **SMALL)
    for _ in range(12):
        agents.update((partial(critics_own, agents), 1.0))
    assert agents.replaced.tolist() == [0, 0]


def test_diverged_agents_begin_anew_with_those_that_expired():
    agents, _ = trained(WORLDS[:2], [1, 2], updates=4)
    agents.u = {name: torch.where(torch.tensor([1, 0]).bool().view(-1, *[1] * (x.dim() - 1)), torch.nan, x)
                for name, x in agents.u.items()}  # fmt: skip
    assert agents.finite().tolist() == [False, True]
    agents.update((partial(critics_own, agents), 1.0), expired=torch.zeros(2, dtype=torch.bool))
    assert agents.finite().all()
    assert agents.age.tolist() == [1, 5]


def test_doubles_by_default_make_agents_of_doubles():
    torch.set_default_dtype(torch.float64)
    try:
        agents, returns = trained(WORLDS, [1, 2, 3, 4])
    finally:
        torch.set_default_dtype(torch.float32)
    assert returns[4].dtype == agents.w["0.weight"].dtype == agents.draw(0).reward.dtype == torch.float64


def test_worlds_with_discrete_actions_are_refused():
    graphs = lambda batch: GraphWorld(SimpleNamespace(edges=torch.zeros(1, 5, 3).long(), seed=batch.seed))  # noqa: E731
    with pytest.raises(TypeError, match="act in a ContinuousWorld each, got GraphWorld"):
        Agents([graphs], torch.arange(1), **SMALL)


class Misshapen(Odd):
    """One of what it gives has gone through `change`."""

    def __init__(self, batch, what, change):
        super().__init__(batch)
        self.what, self.change = what, change

    def observe(self):
        return self.change(super().observe()) if self.what == "observe" else super().observe()

    def step(self, action):
        reward = super().step(action)
        if self.what == "terminal":
            self.terminal = self.change(self.terminal)
        return self.change(reward) if self.what == "step" else reward


@pytest.mark.parametrize(
    ("what", "change", "error", "said"),
    [
        ("step", lambda x: x[:, None], ValueError, r"Misshapen.step must give the shape \[B=1\], got \[1, 1\]"),
        ("observe", lambda x: x[0], ValueError, r"Misshapen.observe must give the shape \[B=1, D\], got \[2\]"),
        ("terminal", lambda x: x.any(), ValueError, r"Misshapen.terminal must give the shape \[B=1\], got \[\]"),
        ("terminal", lambda x: x.float(), TypeError, r"Misshapen.terminal must be of torch.bool, got torch.float32"),
    ],
)
def test_worlds_that_give_something_else_are_refused(what, change, error, said):
    with pytest.raises(error, match=said):
        Agents([partial(Misshapen, what=what, change=change)], torch.arange(1), **SMALL)


def test_worlds_that_lack_something_are_refused():
    class Unfinished(Odd):
        def __init__(self, batch):
            super().__init__(batch)
            del self.terminal

    with pytest.raises(TypeError, match="Unfinished lacks `terminal`, which every ContinuousWorld has"):
        Agents([Unfinished], torch.arange(1), **SMALL)
    with pytest.raises(TypeError, match="act in a ContinuousWorld each, got SimpleNamespace"):
        Agents([lambda batch: SimpleNamespace()], torch.arange(1), **SMALL)
