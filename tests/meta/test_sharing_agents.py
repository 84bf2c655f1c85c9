"""Agents that share: whose experience is drawn, in whose unit, and who is replaced by whom."""

from functools import partial

import pytest
import torch

from algornn.meta import Agents, Pendulum, PointMass, SharingAgents
from algornn.meta.policy_rules import critics_own

SMALL = {"hidden_sizes": (8,), "segments": (40, 5), "every": 2, "random": 1}
point_mass, pendulum = (partial(world, length=12) for world in (PointMass, Pendulum))
WORLDS = [point_mass, pendulum, point_mass, pendulum, point_mass]


def made(kind=SharingAgents, **settings):
    return kind(WORLDS, torch.arange(5) + 1, **SMALL | settings)


def trained(agents, updates=6):
    for _ in range(updates):
        agents.update((partial(critics_own, agents), 1.0))
    return agents


def same(one, other):
    return all(torch.equal(x, other.w[name]) for name, x in one.w.items())


def test_without_sharing_they_are_agents():
    assert same(trained(made(Agents)), trained(made(share=0.0, replace=False)))
    assert not same(trained(made(Agents)), trained(made(share=0.5, replace=False)))


def test_segments_come_from_the_agents_of_the_same_world_in_the_own_unit():
    agents = made(share=1.0)
    agents.replay.add(agents.collect(2))
    agents.scale = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    whose = torch.arange(5.0)[:, None, None]
    agents.replay.stored.density[:] = whose[:, 0]
    agents.replay.stored.reward[:] = 1.0
    found = agents.draw(0)
    mates = [{0, 2, 4}, {1, 3}, {0, 2, 4}, {1, 3}, {0, 2, 4}]
    assert [set(x.unique().int().tolist()) for x in found.density] == mates
    torch.testing.assert_close(found.reward, agents.scale[found.density.long()] / agents.scale[:, None, None])
    own = agents.draw(0, newest=1).density
    assert (own == whose).all()  # what is on-policy is one's own


def test_half_of_the_segments_are_shared():
    agents = made(share=0.5, segments=(2000, 1))
    agents.replay.add(agents.collect(1))
    agents.replay.stored.density[:] = torch.arange(5.0)[:, None]
    own = (agents.draw(0).density == torch.arange(5.0)[:, None, None]).float().mean((1, 2))
    torch.testing.assert_close(own[0], torch.tensor(0.5 + 0.5 / 3), rtol=0, atol=0.05)
    torch.testing.assert_close(own[1], torch.tensor(0.5 + 0.5 / 2), rtol=0, atol=0.05)


def test_who_fails_takes_over_the_networks_of_the_best_of_its_world():
    agents = trained(made(patience=1), 4)
    agents.episodes[:] = 5
    agents.floor[:] = -10
    agents.mean = torch.tensor([-5.0, -3.0, -20.0, -2.0, -1.0])
    agents.replaced[:] = 0
    agents.scale = torch.tensor([1.0, 1.0, 2.0, 1.0, 4.0])
    assert agents.failed().tolist() == [False, False, True, False, False]
    rewards, seed = agents.replay.stored.reward.clone(), agents.seed.clone()
    agents._replace(agents.failed())
    for net in (agents.w, agents.u, agents.target_w, *agents.moments.values()):
        assert all(torch.equal(x[2], x[4]) for x in net.values())
    torch.testing.assert_close(agents.replay.stored.reward[2], rewards[2] / 2)  # its own, in the new unit
    assert torch.equal(agents.replay.stored.reward[4], rewards[4])
    assert torch.equal(agents.seed, seed)
    assert agents.replaced.tolist() == [0, 0, 1, 0, 0]
    assert agents.episodes.tolist() == [5, 5, 0, 5, 5]
    trained(agents, 2)
    assert not torch.equal(agents.w["0.weight"][2], agents.w["0.weight"][4])  # another chance parts them


@pytest.mark.parametrize("proven", [True, False])
def test_a_diverged_agent_is_found_and_replaced_or_begins_anew(proven):
    agents = trained(made(patience=1), 4)
    agents.episodes[:], agents.floor[:], agents.mean[:] = 5 * proven, -10, -5.0
    agents.w["0.weight"][1] = torch.nan
    agents.u["first.0.weight"][0] *= 1e9
    agents.u["first.3.weight"][0] *= 1e9
    assert agents.unsound().tolist() == [True, True, False, False, False]
    assert agents.statistics()["unsound"] == 2
    assert agents.statistics()["failed"] == 2
    seeds = agents.seed.clone()
    for updates in range(6):
        trained(agents, 1)
        assert all(x.isfinite().all() for net in (agents.w, agents.u) for x in net.values())
        if not updates:
            assert agents.replaced.tolist() == [1, 1, 0, 0, 0]
    assert agents.replay.stored.reward.isfinite().all()
    assert (agents.seed[:2] != seeds[:2]).all() == (not proven)
    assert torch.equal(agents.seed[2:], seeds[2:])


def test_a_diverged_agent_that_is_alone_begins_anew_with_an_episode():
    agents = trained(SharingAgents([pendulum], torch.tensor([1]), **SMALL), 3)
    for x in agents.u.values():
        x.mul_(1e9)
    while int(agents.replaced) == 0 and agents.time < 20:
        trained(agents, 1)
    assert agents.replay.count.tolist() == [1]
    assert agents.age.tolist() == [1]
    assert all(x.isfinite().all() for x in trained(agents, 8).u.values())
    assert agents.replaced.tolist() == [1]


@pytest.mark.parametrize("net", ["w", "u"])
def test_a_diverged_agent_does_not_stop_the_others(net):
    agents = trained(made(Agents), 3)
    for x in getattr(agents, net).values():
        x[1] = torch.nan
    trained(agents, 6)
    assert agents.unsound().tolist() == [False, True, False, False, False]
    assert agents.replay.stored.observation.isfinite().all()
    assert agents.replay.stored.density.isfinite().all()


def test_returns_are_counted_by_episode():
    agents = made(random=2, replace=False)
    found = []
    for _ in range(10):
        returns = agents.update((partial(critics_own, agents), 1.0))
        found += [] if returns is None else [returns]
    torch.testing.assert_close(agents.floor, (found[0] + found[1]) / 2)
    torch.testing.assert_close(agents.mean, found[4] / 2 + found[3] / 4 + found[2] / 4)
    assert agents.episodes.tolist() == [3] * 5


def test_taken_over_they_go_on_as_they_would_have():
    first, other = trained(made(patience=1), 5), made(patience=1)
    state = {name: x.clone() for name, x in first.state_dict().items()}
    other.load_state_dict(state, torch.arange(5), torch.arange(5))
    assert same(trained(first, 9), trained(other, 9))
    assert torch.equal(first.replaced, other.replaced)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "`share` is a part of the segments, expected 0 to 1, got 1.5"),
        ({"patience": 0}, "`patience` is a number of episodes, expected at least 1, got 0"),
        ({"gamma": 2.0}, "`gamma` is a discount"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(**settings)
