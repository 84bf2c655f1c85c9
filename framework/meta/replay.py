"""What agents did: episodes, and segments of them drawn from a replay buffer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from algornn.meta.world import pick


class Segments(NamedTuple):
    """B segments of T steps from a replay buffer; those of N agents have N in front.

    Attributes:
        observation: ``[..., B, T + 1, O]``, the one after the last step included.
        action: ``[..., B, T, D]``, the actions that were taken.
        reward: ``[..., B, T]``.
        terminal: ``[..., B, T]``, 1.0 where the episode ended.
        mask: ``[..., B, T]``, 1.0 at real steps, 0.0 at those that only pad a short episode.
        density: ``[..., B, T]``, logarithm of the density that the action had for who took it.
        real: 1.0 for the dimensions of an action that the world has, 0.0 for those that only pad it; of a shape that
            goes with that of the actions. None: all.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminal: Tensor
    mask: Tensor
    density: Tensor
    real: Tensor | None = None

    def join(self, other: Segments) -> Segments:
        """These segments and others of the same agents."""
        dims = dict(zip(self._fields[:-1], (-3, -3, -2, -2, -2, -2), strict=True))
        return self._replace(
            **{name: torch.cat([getattr(self, name), getattr(other, name)], dim) for name, dim in dims.items()}
        )


class Replay:
    """The last episodes of N agents, each with a buffer of its own, in which they stand one after the other.

    An episode of n steps takes up n + 1 places, the last one for the observation that it ends with.

    Args:
        real: ``[N, D]``, the dimensions of its actions that every agent has.
        capacity: episodes of L steps that a buffer has room for, or more of shorter ones; the oldest go first.
        length: L, steps of the longest episode.
        observation_size: O.

    Attributes:
        room: R, the places of a buffer.
        stored: what the buffers hold, ``[N, R, ...]``.
        count: ``[N]`` int64, episodes that went into each buffer.
        oldest: ``[N]`` int64, the number of the first one that is still there.
        begins: ``[N, M]`` int64, the places that were taken before episode k, at k modulo M.
    """

    def __init__(self, real: Tensor, capacity: int, length: int, observation_size: int) -> None:
        N, D = real.shape
        self.real, self.room = real, capacity * (length + 1)
        self.count, self.oldest = (torch.zeros(N, dtype=torch.long, device=real.device) for _ in range(2))
        self.begins = self.count.new_zeros(N, self.room // 2 + 3)  # the shortest episodes take up 2 places
        sizes = ((observation_size,), (D,), (), (), (), ())
        self.stored = Segments(*(real.new_zeros(N, self.room, *size) for size in sizes))

    def _begin(self, owner: Tensor, episode: Tensor) -> Tensor:
        return self.begins[owner, episode % self.begins.shape[1]]

    def lived(self) -> Tensor:
        """Steps that went into each buffer, ``[N]``."""
        return self._begin(self._all(), self.count) - self.count

    def largest(self) -> Tensor:
        """The largest size of a reward in each buffer, ``[N]``, 0 where it is empty."""
        begin, end = (self._begin(self._all(), episode)[:, None] for episode in (self.oldest, self.count))
        held = (torch.arange(self.room, device=end.device) - begin) % self.room < end - begin
        return torch.where(held, self.stored.reward, 0.0).abs().amax(1)

    def _all(self) -> Tensor:
        return torch.arange(len(self.count), device=self.count.device)

    def add(self, episodes: Segments) -> None:
        """Store E episodes of every agent, ``[N, E, L, ...]``, but for those without a step."""
        for e in range(episodes.reward.shape[1]):
            self._add(Segments(*(x[:, e] for x in episodes[:-1])))

    def _add(self, episode: Segments) -> None:
        lasted = episode.mask.sum(-1, dtype=torch.long)
        owner = lasted.nonzero()[:, 0]
        begin, lasted = self._begin(owner, self.count[owner]), lasted[owner]
        # An observation more than steps; of the other fields at its place only the reward is looked at, by `largest`.
        row, step = (torch.arange(episode.mask.shape[1] + 1, device=lasted.device) <= lasted[:, None]).nonzero().T
        place = (begin[row] + step) % self.room
        acted = step < lasted[row]
        observation, *others = self.stored[:-1]
        observation[owner[row], place] = episode.observation[owner[row], step].to(observation)
        row, step, place = row[acted], step[acted], place[acted]
        for stored, added in zip(others, episode[1:-1], strict=True):
            stored[owner[row], place] = added[owner[row], step].to(stored)
        self.stored.reward[owner, (begin + lasted) % self.room] = 0
        end = begin + lasted + 1
        self.count[owner] += 1
        self.begins[owner, self.count[owner] % self.begins.shape[1]] = end
        while (lost := self._begin(owner, self.oldest[owner]) < end - self.room).any():
            self.oldest[owner[lost]] += 1

    def forget(self, which: Tensor) -> None:
        """Empty the buffers of some agents, ``[N]`` bool."""
        self.count[which] = self.oldest[which] = self.begins[which, 0] = 0

    def draw(self, number: Tensor, T: int, newest: int | None = None, owner: Tensor | None = None) -> Segments:
        """Draw B segments of T steps: an episode, then where in it the segment begins, both uniformly.

        Args:
            number: ``[N, B, 2]``, uniform in [0, 1).
            T: steps; an episode with fewer is padded with zeros.
            newest: how many of the newest episodes are drawn from; None: all.
            owner: ``[N, B]`` int64, the agents whose episodes are drawn; None: every agent's own.
        """
        owner = self._all()[:, None] if owner is None else owner
        choices = (self.count - self.oldest)[owner].clamp(max=newest or self.room)
        episode = self.count[owner] - choices + pick(number[..., 0], choices)
        begin = self._begin(owner, episode)
        lasted = self._begin(owner, episode + 1) - begin - 1
        start = pick(number[..., 1], (lasted - T).clamp(min=0) + 1)
        step = start[..., None] + torch.arange(T + 1, device=start.device)
        owner, place = owner[..., None], (begin[..., None] + step) % self.room
        observation, *others = self.stored[:-1]
        found = Segments(observation[owner, place], *(stored[owner, place[..., :T]] for stored in others))
        return kept(found._replace(real=self.real[:, None, None]), step[..., :T] < lasted[..., None])

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored, without the room that is still empty."""
        known = min(int(self.count.max()) + 1, self.begins.shape[1])
        used = min(int((self.lived() + self.count).max()), self.room)
        stored = zip(Segments._fields[:-1], self.stored[:-1], strict=True)
        return {
            "room": torch.full_like(self.count, self.room),
            "count": self.count,
            "oldest": self.oldest,
            "begins": self.begins[:, :known],
            **{name: x[:, :used] for name, x in stored},
        }

    def load_rows(self, state: dict[str, Tensor], rows: Tensor, places: Tensor) -> None:
        """Take over the buffers of agents: rows of the state, for places here, int64 both.

        Raises:
            ValueError: they have other room, so that their episodes stand elsewhere.
        """
        if (state["room"] != self.room).any():
            raise ValueError(
                f"The replay of the checkpoint has {int(state['room'][0])} places, that of these agents {self.room}: "
                "resume with the worlds and the lengths of episodes that they were trained with, or start anew."
            )
        self.count[places], self.oldest[places] = (state[name][rows].to(self.count) for name in ("count", "oldest"))
        for name, stored in (("begins", self.begins), *zip(Segments._fields[:-1], self.stored[:-1], strict=True)):
            stored[places, : state[name].shape[1]] = state[name][rows].to(stored)


def kept(segments: Segments, inside: Tensor) -> Segments:
    """Segments with 0 wherever a step is not inside, ``[..., T]`` bool, but for the observation after the last one."""
    seen = torch.cat([torch.ones_like(inside[..., :1]), inside], -1)
    zero = {"observation": seen[..., None], "action": inside[..., None]}
    found = {
        name: torch.where(zero.get(name, inside), x, 0.0)
        for name, x in zip(segments._fields[:-1], segments[:-1], strict=True)
    }
    return segments._replace(**found)
