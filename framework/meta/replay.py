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
    """The last episodes of N agents, each with a buffer of its own.

    Args:
        real: ``[N, D]``, the dimensions of its actions that every agent has.
        capacity: episodes that a buffer holds; the oldest go first.
        length: L, steps of the longest episode.
        observation_size: O.

    Attributes:
        count: ``[N]`` int64, episodes that went into each buffer.
    """

    def __init__(self, real: Tensor, capacity: int, length: int, observation_size: int) -> None:
        N, D = real.shape
        self.real, self.capacity = real, capacity
        self.count = torch.zeros(N, dtype=torch.long, device=real.device)
        new = real.new_zeros
        shape = (N, capacity, length)
        self.episodes = Segments(
            new(N, capacity, length + 1, observation_size), new(*shape, D), *(new(shape) for _ in range(4))
        )

    def add(self, episodes: Segments) -> None:
        """Store E episodes of every agent, ``[N, E, L, ...]``."""
        E = episodes.reward.shape[1]
        slot = (self.count[:, None] + torch.arange(E, device=self.count.device)) % self.capacity
        owner = torch.arange(len(slot), device=slot.device)[:, None]
        for stored, added in zip(self.episodes[:-1], episodes[:-1], strict=True):
            stored[owner, slot] = added
        self.count += E

    def forget(self, which: Tensor) -> None:
        """Empty the buffers of some agents, ``[N]`` bool."""
        self.count[which] = 0
        self.episodes.reward[which] = 0  # which is looked at over the whole buffer

    def draw(self, number: Tensor, T: int, newest: int | None = None, owner: Tensor | None = None) -> Segments:
        """Draw B segments of T steps: an episode, then where in it the segment begins, both uniformly.

        Args:
            number: ``[N, B, 2]``, uniform in [0, 1).
            T: steps; an episode with fewer is padded.
            newest: how many of the newest episodes are drawn from; None: all.
            owner: ``[N, B]`` int64, the agents whose episodes are drawn; None: every agent's own.
        """
        if owner is None:
            owner = torch.arange(len(number), device=number.device)[:, None]
        held = self.count[owner]
        choices = held.clamp(max=min(newest or self.capacity, self.capacity))
        slot = (held - choices + pick(number[..., 0], choices)) % self.capacity
        lasted = self.episodes.mask[owner, slot].sum(-1).long()
        start = pick(number[..., 1], (lasted - T).clamp(min=0) + 1)
        step = start[..., None] + torch.arange(T + 1, device=start.device)
        owner, slot = owner[..., None], slot[..., None]
        now = step[..., :T]
        observation, *others = self.episodes[:-1]
        found = Segments(observation[owner, slot, step], *(stored[owner, slot, now] for stored in others))
        return found._replace(real=self.real[:, None, None])

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored, without the room that is still empty."""
        used = min(int(self.count.max()), self.capacity)
        stored = zip(Segments._fields[:-1], self.episodes[:-1], strict=True)
        return {"count": self.count, **{name: x[:, :used] for name, x in stored}}

    def load_rows(self, state: dict[str, Tensor], rows: Tensor, places: Tensor) -> None:
        """Take over the buffers of agents: rows of the state, for places here, int64 both."""
        self.count[places] = state["count"][rows].to(self.count)
        for name, stored in zip(Segments._fields[:-1], self.episodes[:-1], strict=True):
            stored[places, : state[name].shape[1]] = state[name][rows].to(stored)
