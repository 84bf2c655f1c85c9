"""Worlds of gymnasium: the same as gymnasium's own loop, early ends, and our pendulum against theirs."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algornn.meta import Agents, GymWorld, Pendulum
from algornn.meta.policy_rules import critics_own

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium, the extra [rl], is not installed")


def made(name="Pendulum-v1", seeds=(3, 4, 5), **settings):
    return GymWorld(SimpleNamespace(seed=torch.tensor(seeds)), name, **settings)


def test_it_is_gymnasiums_own_loop():
    world, actions = made(), np.random.default_rng(0).uniform(-1, 1, (3, 20, 1)).astype(np.float32)
    theirs = [gymnasium.make("Pendulum-v1") for _ in range(3)]
    seen = np.stack([environment.reset(seed=seed)[0] for environment, seed in zip(theirs, (3, 4, 5), strict=True)])
    for t in range(20):
        np.testing.assert_allclose(world.observe().numpy(), seen, rtol=1e-6)
        rewards = world.step(torch.from_numpy(actions[:, t]))
        after = [environment.step(2 * actions[n, t]) for n, environment in enumerate(theirs)]
        np.testing.assert_allclose(rewards.numpy(), [step[1] for step in after], rtol=1e-5)
        seen = np.stack([step[0] for step in after])


def test_our_pendulum_is_theirs():
    ours, theirs = Pendulum(SimpleNamespace(seed=torch.arange(4))), [gymnasium.make("Pendulum-v1") for _ in range(4)]
    for n, environment in enumerate(theirs):
        environment.reset(seed=n)
        environment.unwrapped.state = ours.state[n].double().numpy()
    for force in np.random.default_rng(1).uniform(-1, 1, (30, 4, 1)).astype(np.float32):
        rewards = ours.step(torch.from_numpy(force))
        after = [environment.step(2 * force[n]) for n, environment in enumerate(theirs)]
        np.testing.assert_allclose(rewards.numpy(), [step[1] for step in after], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.observe().numpy(), [step[0] for step in after], rtol=2e-3, atol=2e-3)


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"needs gymnasium: pip install 'algornn\[rl\]'"):
        made("Pendulum-of-nobody")


def test_environments_are_used_again_and_never_by_two():
    first, second = made(), made()
    assert not {*map(id, first._environments)} & {*map(id, second._environments)}
    used = {*map(id, first._environments)}
    del first
    assert {*map(id, made()._environments)} & used


class Ending(gymnasium.Env):
    """It terminates after as many steps as its seed; its reward is 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1, 2))
    action_space = gymnasium.spaces.Box(-3, 1, (1, 1))

    def reset(self, seed=None, options=None):
        self.left = seed
        return np.zeros((1, 2)), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        return np.full((1, 2), self.left), 1.0, self.left == 0, False, {}


def test_an_episode_that_ended_stays_as_it_is():
    gymnasium.register("Ending-v0", Ending)
    world = made("Ending-v0", (2, 100))
    rewards, ends = [], []
    for _ in range(4):
        rewards.append(world.step(torch.ones(2, 1)).tolist())
        ends.append(world.terminal.tolist())
    assert rewards == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert ends == [[False, False], [True, False], [False, False], [False, False]]
    assert world.observe().tolist() == [[0, 0], [96, 96]]

    agents = Agents([partial(GymWorld, name="Ending-v0", length=8)] * 2, torch.tensor([1, 2]), segments=(4, 5))
    episodes = agents.collect(1)
    assert (episodes.mask.sum(-1) == 8).all()  # seeds far above 8
    assert (episodes.terminal == 0).all()


def test_padding_after_an_end_is_masked():
    gymnasium.register("Soon-v0", lambda: Soon())
    agents = Agents([partial(GymWorld, name="Soon-v0", length=8)], torch.tensor([1]), segments=(4, 5), every=1)
    episodes = agents.collect(1)
    assert episodes.mask[0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert episodes.terminal[0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert episodes.reward[0, 0].sum() == 3
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    assert all(x.isfinite().all() for x in agents.w.values())


class Soon(Ending):
    """It terminates after 3 steps."""

    def reset(self, seed=None, options=None):
        return super().reset(seed=3)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match=r"continuous actions with bounds, those of 'CartPole-v1' are Discrete"):
        made("CartPole-v1")


def test_observations_of_several_parts_are_refused():
    class Parts(Ending):
        observation_space = gymnasium.spaces.Dict({"place": gymnasium.spaces.Box(-1, 1, (2,))})

    gymnasium.register("Parts-v0", lambda: Parts())
    with pytest.raises(ValueError, match=r"observations that are one array of numbers, those of 'Parts-v0' are Dict"):
        made("Parts-v0")


def test_unknown_environments_are_refused():
    with pytest.raises(ValueError, match="gymnasium has no world 'Moon-v0'"):
        made("Moon-v0")
