"""The replay buffer: what goes in comes out, episode by episode, and padding stays out."""

import torch

from algornn.meta import Replay, Segments


def episodes(N=3, E=2, L=6, observed=4, D=2, first=0, lasting=None):
    """Episodes whose numbers tell where they stand: 1000 * agent + 100 * episode + time."""
    place = 1000 * torch.arange(N)[:, None, None] + 100 * (first + torch.arange(E))[:, None] + torch.arange(L + 1)
    place = place.float()
    mask = torch.ones(N, E, L)
    if lasting is not None:
        mask[..., lasting:] = 0
    now = place[..., :L]
    return Segments(
        place[..., None].repeat(1, 1, 1, observed),
        now[..., None].repeat(1, 1, 1, D),
        now,
        torch.zeros_like(now),
        mask,
        -now,
    )


def drawn(replay, B=200, T=3):
    number = torch.rand(len(replay.count), B, 2, generator=torch.Generator().manual_seed(0)).double()
    return replay.draw(number, T)


def test_segments_are_consecutive_steps_of_one_episode_of_their_agent():
    replay = Replay(torch.ones(3, 2), capacity=4, length=6, observation_size=4)
    replay.add(episodes())
    found = drawn(replay)
    assert found.observation.shape == (3, 200, 4, 4)
    assert found.action.shape == (3, 200, 3, 2)
    assert (found.reward // 1000 == torch.arange(3)[:, None, None]).all()
    assert (found.observation[..., 1:, 0] - found.observation[..., :-1, 0] == 1).all()
    assert torch.equal(found.observation[..., :-1, 0], found.reward)
    assert torch.equal(found.action[..., 1], found.reward)
    assert {int(x) for x in found.reward[1, :, 0].unique()} == {1000 + 100 * e + t for e in (0, 1) for t in range(4)}


def test_the_oldest_episodes_go_first_and_a_forgotten_agent_begins_anew():
    replay = Replay(torch.ones(3, 2), capacity=3, length=6, observation_size=4)
    for first in (0, 2):
        replay.add(episodes(first=first))
    assert {int(x) // 100 % 10 for x in drawn(replay).reward.flatten()} == {1, 2, 3}
    replay.forget(torch.tensor([True, False, False]))
    replay.add(episodes(E=1, first=7))
    found = drawn(replay).reward // 100 % 10
    assert found[0].unique().tolist() == [7]
    assert found[1].unique().tolist() == [2, 3, 7]


def test_nothing_is_left_of_forgotten_rewards_that_a_checkpoint_would_not_hold():
    replay = Replay(torch.ones(1, 1), 4, 3, 2)
    episode = Segments(*(torch.ones(1, 3, *shape) for shape in ((4, 2), (3, 1), (3,), (3,), (3,), (3,))))
    replay.add(episode)
    replay.forget(torch.tensor([True]))
    replay.add(episode._replace(**{name: x[:, :1] for name, x in episode._asdict().items() if x is not None}))
    taken = Replay(torch.ones(1, 1), 4, 3, 2)
    taken.load_rows(replay.state_dict(), torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(taken.episodes.reward, replay.episodes.reward)


def test_short_episodes_are_padded():
    replay = Replay(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), capacity=2, length=6, observation_size=4)
    replay.add(episodes(N=2, lasting=2))
    found = drawn(replay, T=3)
    assert found.mask[0, 0].tolist() == [1, 1, 0]
    assert found.real.shape == (2, 1, 1, 2)


def test_buffers_of_agents_are_taken_over():
    replay = Replay(torch.ones(3, 2), capacity=4, length=6, observation_size=4)
    replay.add(episodes())
    other = Replay(torch.ones(2, 2), capacity=4, length=6, observation_size=4)
    state = replay.state_dict()
    assert state["reward"].shape == (3, 2, 6)  # without the empty room
    other.load_rows(state, torch.tensor([2, 0]), torch.tensor([0, 1]))
    assert other.count.tolist() == [2, 2]
    assert torch.equal(other.episodes.reward[:, :2], replay.episodes.reward[[2, 0], :2])
