"""The replay buffer: what goes in comes out, episode by episode, and padding stays out."""

import pytest
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


def test_rewards_count_while_their_episode_is_held():
    replay = Replay(torch.ones(1, 1), 1, 4, 2)
    shape = {"observation": (6, 2), "action": (5, 1)}
    for lasted, reward, largest in (
        (4, -9.0, 9.0),
        (1, 2.0, 2.0),
        (2, 3.0, 3.0),
        (1, torch.nan, torch.nan),
        (3, 1.0, 1.0),
    ):
        new = Segments(*(torch.full((1, 1, *shape.get(name, (5,))), reward) for name in Segments._fields[:-1]))
        replay.add(new._replace(mask=(torch.arange(5) < lasted).float()[None, None]))
        torch.testing.assert_close(replay.largest(), torch.tensor([largest]), equal_nan=True)
    replay.forget(torch.tensor([True]))
    assert replay.largest().tolist() == [0]


def test_short_episodes_are_padded_with_zeros():
    replay = Replay(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), capacity=2, length=6, observation_size=4)
    replay.add(episodes(N=2, E=1, lasting=2))
    found = drawn(replay, T=3)
    assert found.mask[0, 0].tolist() == [1, 1, 0]
    assert found.reward[1, 0].tolist() == [1000, 1001, 0]
    assert found.action[1, 0, :, 1].tolist() == [1000, 1001, 0]
    assert found.observation[1, 0, :, 0].tolist() == [1000, 1001, 1002, 0]  # also the one that the episode ends with
    assert found.real.shape == (2, 1, 1, 2)


def test_there_is_room_for_more_short_episodes_whichever_lengths_they_have():
    """Against lists of episodes, whose oldest go while all of them take up more places than there are."""
    g = torch.Generator().manual_seed(0)
    replay, lists, most = Replay(torch.ones(3, 2), capacity=2, length=6, observation_size=4), [[], [], []], 0
    for k in range(40):
        lasted = torch.randint(0, 7, (3, 1), generator=g) if k % 3 else torch.ones(3, 1).long()
        added = episodes(E=1, first=k)
        added = added._replace(mask=(torch.arange(6) < lasted[..., None]).float())
        replay.add(added)
        for n, held in enumerate(lists):
            if lasted[n, 0]:
                held.append((1000 * n + 100 * k, int(lasted[n, 0])))
            while sum(steps + 1 for _, steps in held) > 14:
                held.pop(0)
        assert (replay.count - replay.oldest).tolist() == [len(held) for held in lists]
        found = drawn(replay, B=400, T=1)
        for n, held in enumerate(lists):
            assert {int(x) for x in found.reward[n].flatten()} == {at + t for at, steps in held for t in range(steps)}
            assert found.mask[n].all()
            assert torch.equal(found.observation[n, ..., 0, 0], found.reward[n, ..., 0])
            assert torch.equal(found.observation[n, ..., 1, 0], found.reward[n, ..., 0] + 1)
        longer = drawn(replay, B=50, T=4)
        assert (longer.reward[..., 0] + 3 == longer.reward[..., 3])[longer.mask.all(-1)].all()  # across the wrap, too
        assert (longer.reward[longer.mask == 0] == 0).all()
        most = max(most, *map(len, lists))
        # A run that is resumed here goes on with the same, in places of its own, from buffers that were used before.
        other = Replay(torch.ones(3, 2), capacity=2, length=6, observation_size=4)
        other.add(episodes(E=2, first=50))
        other.load_rows(replay.state_dict(), torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
        assert torch.equal(other.largest(), replay.largest()[[2, 0, 1]])
        assert other.lived().tolist() == replay.lived()[[2, 0, 1]].tolist()
        assert drawn(other)[2][1].unique().tolist() == drawn(replay)[2][0].unique().tolist()
    assert most >= 4  # twice as many as of the longest
    assert int(replay.count.max()) > replay.begins.shape[1]


def test_buffers_of_agents_are_taken_over():
    replay = Replay(torch.ones(3, 2), capacity=4, length=6, observation_size=4)
    replay.add(episodes())
    other = Replay(torch.ones(2, 2), capacity=4, length=6, observation_size=4)
    state = replay.state_dict()
    assert state["reward"].shape == (3, 14)  # without the empty room
    other.load_rows(state, torch.tensor([2, 0]), torch.tensor([0, 1]))
    assert other.count.tolist() == [2, 2]
    assert other.lived().tolist() == [12, 12]
    assert torch.equal(other.stored.reward, replay.stored.reward[[2, 0]])
    assert drawn(other).reward[0].unique().tolist() == drawn(replay).reward[2].unique().tolist()


def test_buffers_with_other_room_are_refused():
    replay, other = (Replay(torch.ones(3, 2), capacity=4, length=L, observation_size=4) for L in (6, 9))
    with pytest.raises(
        ValueError, match="has 28 places, that of these agents 40: resume with the worlds and the lengths"
    ):
        other.load_rows(replay.state_dict(), torch.arange(3), torch.arange(3))
