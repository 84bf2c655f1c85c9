"""Agents as MetaGenRL was released: each quirk beside what it takes the place of, and the schedule."""

from functools import partial

import pytest
import torch
from small_worlds import SMALL, WORLDS, Odd

from algornn.meta import Agents, OriginalAgents, Segments
from algornn.meta.control_networks import unit
from algornn.meta.policy_rules import critics_own


def test_the_original_s_quirks():
    g = torch.Generator().manual_seed(0)
    slope = {"a": torch.randn(2, 3, generator=g), "b": torch.randn(2, 4, generator=g)}
    slope = {name: x * torch.tensor([[0.01], [100.0]]) for name, x in slope.items()}
    clipped = unit(slope, shortest=1.0)
    assert all(torch.equal(clipped[name][0], x[0]) for name, x in slope.items())
    assert float(torch.cat([x[1] for x in clipped.values()]).norm()) == pytest.approx(1)

    agents = OriginalAgents(WORLDS[:2], torch.tensor([1, 2]), **SMALL)
    plain = Agents(WORLDS[:2], torch.tensor([1, 2]), **SMALL)
    assert agents.collect(1).terminal[..., -1].eq(1).all()
    assert plain.collect(1).terminal[..., -1].eq(0).all()
    for population in (agents, plain):
        for _ in range(3):
            population.update((partial(critics_own, population), 1.0))
    assert agents.scale.eq(1).all()
    assert not plain.scale.eq(1).any()

    # Where every step ends an episode and pays nothing, an action is worth 1 to the original and nothing otherwise.
    for population, worth in ((agents, 1.0), (plain, 0.0)):
        segments = population.draw(0)
        ended = segments._replace(reward=0 * segments.reward, terminal=torch.ones_like(segments.terminal))
        population.age[:] = 50
        for _ in range(150):
            population._teach(ended, 0)
        found = population.values(population.u, ended.observation[..., :-1, :], ended.action)
        torch.testing.assert_close(found.mean(), torch.tensor(worth), rtol=0, atol=0.15)


def test_policies_of_the_original_move_from_the_first_update_on_and_others_rest_while_they_act_at_random():
    for kind, moves in ((OriginalAgents, True), (Agents, False)):
        agents = kind(WORLDS[:2], torch.tensor([1, 2]), **SMALL | {"random": 3})
        before, rule = agents.w, partial(critics_own, agents)
        agents.update((rule, 1.0))
        for name, x in agents.w.items():
            assert torch.equal(x, before[name]) != moves
        assert agents.collect(1).density.unique().numel() == 2  # that of chance, for 2 actions and for 1
    assert agents.rest == 6


def test_the_original_s_critics_take_their_mean_over_what_pads_segments_too(monkeypatch):
    monkeypatch.setattr("algornn.meta.agents._SMOOTHING", 0.0)  # of which there is other chance in shorter segments
    for kind, share in ((OriginalAgents, 3 / 5), (Agents, 1.0)):
        slopes = []
        for steps in (5, 3):
            agents = kind([partial(Odd, end=3)], torch.tensor([1]), **SMALL)
            agents.update((partial(critics_own, agents), 1.0))
            segments = agents.draw(0)
            assert segments.mask.sum(-1).unique().tolist() == [3]
            first = {name: x.clone() for name, x in agents.moments["first_u"].items()}
            agents._teach(Segments(*(x[:, :, : steps + (x is segments.observation)] for x in segments[:6])), 0)
            slopes.append({name: x - 0.9 * first[name] for name, x in agents.moments["first_u"].items()})
        for name, padded in slopes[0].items():
            torch.testing.assert_close(padded, share * slopes[1][name], rtol=1e-3, atol=1e-6)
        assert max(x.abs().max() for x in slopes[0].values()) > 1e-3


def test_the_original_lives_as_many_steps_as_its_critics_take_whoever_else_there_is():
    settings = SMALL | {"every": 6}  # 12 steps of the critics
    worlds, returns = [partial(Odd, pay=None, end=3), partial(Odd, pay=None, length=20), partial(Odd, end=7)], []
    agents = OriginalAgents(worlds, torch.tensor([1, 2, 3]), **settings)
    for k in range(18):
        returns.append(agents.update((partial(critics_own, agents), 1.0)))
        lived, due = agents.replay.lived(), 12 * (k // 6 + 1)
        assert ((due <= lived) & (lived < due + torch.tensor([3, 20, 7])))[[0, 2]].all()
    assert agents.replay.count.tolist() == [12, 3, 6]  # never less than an episode
    begins = agents.replay.stored.action[0, :16:4, 0]
    assert len(begins.unique()) == 4  # each episode has chance of its own
    state = {name: x.clone() for name, x in agents.state_dict().items()}
    alone = OriginalAgents([worlds[0]], torch.tensor([1]), **settings)
    for wanted in returns:
        found = alone.update((partial(critics_own, alone), 1.0))
        if found is not None:
            torch.testing.assert_close(found, wanted[:1], rtol=1e-4, atol=1e-6)
    assert alone.replay.count.tolist() == [12]
    resumed = OriginalAgents([worlds[2], worlds[1]], torch.tensor([0, 0]), **settings)
    resumed.load_state_dict(state, torch.tensor([2, 1]), torch.tensor([0, 1]))
    for population in (agents, resumed):
        for _ in range(7):
            population.update((partial(critics_own, population), 1.0))
    assert resumed.replay.count.tolist() == agents.replay.count[[2, 1]].tolist()
    for name, x in resumed.w.items():
        torch.testing.assert_close(x, agents.w[name][[2, 1]], rtol=1e-4, atol=1e-6)


def test_steps_are_counted_over_all_lives():
    agents = OriginalAgents([partial(Odd, end=3), partial(Odd, end=99)], torch.tensor([1, 2]), **SMALL)
    for _ in range(3):  # two times for episodes: 4 steps are due, then 8
        agents.update((partial(critics_own, agents), 1.0))
    assert agents.steps_lived.tolist() == [9, 20]
    agents.renew(torch.tensor([True, False]))
    agents.update((partial(critics_own, agents), 1.0))
    assert agents.statistics()["steps"] == 29
