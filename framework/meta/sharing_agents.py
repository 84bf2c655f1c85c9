"""Agents of one world that learn from each other's experience, and replace those that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from algornn.meta.agents import Agents, Rule
from algornn.meta.replay import Segments
from algornn.meta.world import ContinuousWorld, pick, uniform

_OWNER = 6  # a stream of chance


class SharingAgents(Agents):
    r"""`Agents` that draw a part of their segments from the replay of all agents of their world.

    The experience of others is off-policy: TD3's critics may take any; a rule for the policies that needs the densities
    of actions has them in the segments (`algornn.meta.policy_rules.ratio`). Rewards of another agent are brought to the
    own unit of variance.

    An agent has failed when it is `unsound`, or when after `patience` episodes of its own policy its mean return (older
    episodes count by halves) is below that of its episodes at random. With `replace`, it then takes over the networks
    of that agent of its world whose mean return is highest, and keeps its own experience and chance. Where nobody has
    proven better than at random, an unsound agent begins anew, and others go on.

    Agents share within their process.

    Args:
        worlds: for every agent, what makes its world of a batch of seeds.
        seed: ``[N]`` int64.
        share: part of the segments that comes from all agents of the world, the own among them.
        replace: whether failed agents are replaced.
        patience: episodes of its own policy after which an agent can be found to fail by its returns.
        **agents: the arguments of `Agents`.

    Raises:
        ValueError: a number out of its range.

    Attributes:
        replaced: ``[N]`` int64, how often each was replaced.

    Source: Christianos, Schaefer and Albrecht (2020), "Shared Experience Actor-Critic", for the sharing; Jaderberg et
    al. (2017), "Population Based Training of Neural Networks", for taking over the networks of another.
    """

    def __init__(
        self,
        worlds: Sequence[Callable[[Any], ContinuousWorld]],
        seed: Tensor,
        share: float = 0.5,
        replace: bool = True,
        patience: int = 10,
        **agents: Any,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"`share` is a part of the segments, expected 0 to 1, got {share}.")
        if patience < 1:
            raise ValueError(f"`patience` is a number of episodes, expected at least 1, got {patience}.")
        super().__init__(worlds, seed, **agents)
        self.share, self.replace, self.patience = share, replace, patience
        number = {world: k for k, world in enumerate(dict.fromkeys(self.worlds))}
        world = torch.tensor([number[world] for world in self.worlds], device=seed.device)
        self.mates = world[:, None] == world
        self.floor, self.mean = (torch.zeros(len(self), device=seed.device) for _ in range(2))
        self.episodes, self.replaced = (torch.zeros_like(seed) for _ in range(2))

    def draw(self, index: int, newest: int | None = None) -> Segments:
        """Segments from the replay of every agent and its mates; the newest ones are only its own."""
        if newest is not None or not self.share:
            return super().draw(index, newest)
        number = uniform(self.seed, self.time, _OWNER + 10 * index, (self.segments, 2))
        own = torch.arange(len(self), device=self.seed.device)[:, None]
        nth = pick(number[..., 1], self.mates.sum(1, keepdim=True))
        mates = self.mates.long().argsort(dim=1, descending=True, stable=True).gather(1, nth)
        owner = torch.where(number[..., 0] < self.share, mates, own)
        found = self.replay.draw(self._number(index), self.steps, owner=owner)
        return found._replace(reward=found.reward * (self.scale[owner] / self.scale[:, None])[..., None])

    def update(self, *rules: tuple[Rule, Tensor | float], expired: Tensor | None = None) -> Tensor | None:
        """As of `Agents`; before an episode, failed agents are replaced."""
        if self.replace and self.time and self.time % self.every == 0:
            lost = self._replace(self.failed())
            expired = lost if expired is None else expired | lost
        found = super().update(*rules, expired=expired)
        if found is not None:
            self._count(found)
        return found

    def _count(self, found: Tensor) -> None:
        """Keep the mean returns: of the random episodes, and of the others with the older ones by halves."""
        before = (self.age - 1) // self.every
        at_random = before < max(self.random, 1)
        floor = torch.where(before == 0, found, self.floor + (found - self.floor) / (before + 1))
        self.floor = torch.where(at_random, floor, self.floor)
        self.episodes = torch.where(at_random, 0, self.episodes + 1)
        older = torch.where(self.episodes > 1, 0.5, 0.0)
        self.mean = older * self.mean + (1 - older) * found

    def failed(self) -> Tensor:
        """Agents that diverged or do no better than at random, ``[N]`` bool."""
        return self.unsound() | ((self.episodes >= self.patience) & (self.mean < self.floor))

    def statistics(self) -> dict[str, Tensor]:
        """Also how many have failed just now, and how many were replaced so far."""
        return super().statistics() | {"failed": self.failed().sum(), "replaced": self.replaced.sum()}

    def _replace(self, failed: Tensor) -> Tensor:
        """Let failed agents take over the networks of the best of their world; return those that must begin anew."""
        proven = (self.episodes >= self.patience) & ~failed
        best, donor = torch.where(self.mates & proven, self.mean, -torch.inf).max(1)
        taken = failed & best.isfinite()
        rows, places = donor[taken], taken.nonzero()[:, 0]
        lost = self.unsound() & ~taken
        for net in (self.w, self.u, self.target_w, self.target_u, *self.moments.values()):
            for name, x in net.items():
                net[name] = x.index_copy(0, places, x[rows])
        self.replay.stored.reward[places] *= (self.scale[places] / self.scale[rows])[:, None]
        for x in (self.scale, self.age, self.mean):
            x[places] = x[rows]
        self.episodes[places] = 0
        self.replaced[taken | lost] += 1
        return lost

    def state_dict(self) -> dict[str, Tensor]:
        """Also what each agent is known to reach."""
        own = {"floor": self.floor, "mean": self.mean, "episodes": self.episodes, "replaced": self.replaced}
        return super().state_dict() | own
