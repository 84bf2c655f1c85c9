"""Worlds: the graph world against its rules as a loop, and numbers by chance."""

from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from algornn import GraphWorld
from algornn.datamodules import GraphNavigation
from algornn.meta import BanditWorld
from algornn.meta.world import World, other_than, pick, uniform


def literal(edges, seed, actions, length=30, patience=5):
    """One episode, step by step, as the rules say it; yields (observation, reward)."""
    nodes, A = edges.shape
    u = lambda time, stream: float(uniform(torch.tensor([seed]), time, stream))  # noqa: E731
    among = lambda number, left: left[min(int(number * len(left)), len(left) - 1)]  # noqa: E731
    without = lambda node: [n for n in range(nodes) if n != node]  # noqa: E731
    goal = among(u(0, 1), list(range(nodes)))
    place = among(u(0, 2), without(goal))
    last, count = None, 0
    for t, action in enumerate(actions):
        seen = [0.0] * (2 * nodes + A + 4)
        seen[goal] = seen[nodes + place] = 1.0
        if last is not None:
            seen[2 * nodes + 1 + last] = 1.0
        seen[2 * nodes + 1 + A], seen[-2] = 1.0, t / length
        target = int(edges[place, action])
        reward = -0.05 if target < 0 else 0.0
        place, last = (place if target < 0 else target), action
        if place == goal:
            reward = 10.0
            goal = among(u(t + 1, 1), without(goal))
            place = among(u(t + 1, 2), without(goal))
        else:
            count += 1
            if count > patience:
                goal = among(u(t + 1, 1), list(range(nodes)))
                place = among(u(t + 1, 2), without(goal))
                last, count = None, 0
        yield seen, reward


def test_the_graph_world_follows_its_rules():
    batch = next(iter(GraphNavigation(batch_size=40, size=40, episodes=1).train_dataloader()))
    actions = torch.randint(3, (40, 30), generator=torch.Generator().manual_seed(0))
    world, found = GraphWorld(batch), []
    for t in range(world.length):
        seen = world.observe()
        found.append((seen, world.step(actions[:, t])))
    rewards = torch.stack([reward for _, reward in found], 1)
    assert {round(float(r), 2) for r in rewards.unique()} == {-0.05, 0.0, 10.0}
    for b in range(40):
        for t, (seen, reward) in enumerate(literal(batch.edges[b], int(batch.seed[b]), actions[b].tolist())):
            assert found[t][0][b].tolist() == pytest.approx(seen)
            assert float(rewards[b, t]) == pytest.approx(reward)


def test_an_episode_does_not_depend_on_its_batch():
    batch = next(iter(GraphNavigation(batch_size=20, size=20, episodes=1).train_dataloader()))
    part = SimpleNamespace(edges=batch.edges[5:9], seed=batch.seed[5:9])
    whole, alone = GraphWorld(batch, show_reward=True), GraphWorld(part, show_reward=True)
    for t in range(30):
        assert torch.equal(whole.observe()[5:9], alone.observe())
        action = torch.full((20,), t % 3)
        assert torch.equal(whole.step(action)[5:9], alone.step(action[5:9]))
    assert alone.observe()[:, -1].tolist() == alone.last_reward.tolist()


def test_chance_is_uniform_and_independent_over_seed_time_and_stream():
    seed = torch.arange(20_000) + 2**61
    columns = [uniform(seed, time, stream) for time in (0, 1, 29) for stream in (0, 1, 2)]
    for column in columns:
        assert 0 <= float(column.min()) <= float(column.max()) < 1
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(torch.stack([*columns, columns[0].roll(1)]))
    assert float((correlation - torch.eye(10)).abs().max()) < 0.04
    # splitmix64 of the state 0: the first number of the published generator with that seed.
    assert _first_of_splitmix() == 0xE220A8397B1DCDAF


def _first_of_splitmix():
    from algornn.meta.world import _mixed

    return int(_mixed(torch.zeros((), dtype=torch.int64))) % 2**64


def test_choices_are_even_and_leave_out_what_is_taken():
    number = (torch.arange(1200) + 0.5).double() / 1200
    assert pick(number, 5).bincount().tolist() == [240] * 5
    assert int(pick(torch.tensor([1 - 2.0**-53], dtype=torch.float64), 5)) == 4
    assert other_than(torch.full((1200,), 2), number, 5).bincount().tolist() == [300, 300, 0, 300, 300]


def test_a_world_needs_what_it_shows_and_does():
    with pytest.raises(TypeError, match="abstract"):
        World()


@pytest.mark.parametrize(("world", "field"), [(GraphWorld, "edges"), (BanditWorld, "probability")])
def test_a_batch_for_another_world_is_refused(world, field):
    with pytest.raises(ValueError, match=f"{world.__name__} needs batches with {field}, these are SimpleNamespace"):
        world(SimpleNamespace(seed=torch.arange(2)))
