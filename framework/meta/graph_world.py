"""The graph world: find the way to one place after another in a graph that is never shown."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.learners.checks import check_whole
from algornn.meta.world import World, field_of, other_than, pick

_ACTIONS, _GOAL, _PLACE = 0, 1, 2  # streams of chance


class GraphWorld(World):
    r"""Walks to goals in directed graphs of N nodes with A actions, partially observed: edges are found by trying.

    Reaching the goal gives `reward` and draws another goal and a place that is not it; an action without an edge costs
    `penalty` and moves nothing. Every other step counts, and when more than `patience` have been counted, goal and
    place are drawn anew, the last action is forgotten and the count begins anew (it does not at a goal).

    An observation has 2 N + A + 4 numbers: the goal and the place (one-hot), a 0, the last action (one-hot), a 1, the
    share of the episode that is over, and the last reward. As released, the last one is always 0, for the array is made
    anew before it is read, and the 1 shares its unit with "no last action", which it hides.

    Args:
        batch: `algornn.datamodules.GraphBatch`, or anything with its fields `edges` ``[B, N, A]`` and `seed` ``[B]``.
        length: T, steps of an episode.
        patience: steps without success after which goal and place are drawn anew.
        reward: of reaching the goal.
        penalty: of an action without an edge.
        show_reward: let the agent see its last reward.

    Source: Schlag, Munkhdalai and Schmidhuber (2021), "Learning Associative Inference Using Fast Weight Memory",
    section 4.2, and the released code.
    """

    def __init__(
        self,
        batch: Any,
        length: int = 30,
        patience: int = 5,
        reward: float = 10.0,
        penalty: float = 0.05,
        show_reward: bool = False,
    ) -> None:
        check_whole(1, length=length)
        check_whole(0, patience=patience)
        self.edges, self.seed, self.length, self.patience = field_of(batch, "edges", self), batch.seed, length, patience
        self.reward, self.penalty, self.show_reward = reward, penalty, show_reward
        self.nodes, self.actions = self.edges.shape[1:]
        self.goal = pick(self.chance(_GOAL), self.nodes)
        self.place = other_than(self.goal, self.chance(_PLACE), self.nodes)
        self.last_action = torch.full_like(self.place, self.actions)  # none
        self.count = torch.zeros_like(self.place)
        self.last_reward = torch.zeros(len(self.place), device=self.place.device)

    def observe(self) -> Tensor:
        """What the agents see, ``[B, 2 N + A + 4]``."""
        goal, place = F.one_hot(self.goal, self.nodes), F.one_hot(self.place, self.nodes)
        action = F.one_hot(self.last_action, self.actions + 1)
        action[:, -1] = 1
        seen = torch.cat([goal, place, torch.zeros_like(goal[:, :1]), action], 1).float()
        time = torch.full_like(seen[:, :1], self.time / self.length)
        reward = self.last_reward if self.show_reward else torch.zeros_like(self.last_reward)
        return torch.cat([seen, time, reward[:, None]], 1)

    def step(self, action: Tensor) -> Tensor:
        """Move, ``[B]`` int64 actions, and return the rewards ``[B]``."""
        self.time += 1
        target = self.edges.take_along_dim(self.place[:, None, None], 1)[:, 0].take_along_dim(action[:, None], 1)[:, 0]
        place = torch.where(target >= 0, target, self.place)
        success = place == self.goal
        count = torch.where(success, self.count, self.count + 1)
        lost = count > self.patience
        anew = success | lost
        goal = other_than(self.goal, self.chance(_GOAL), self.nodes)
        goal = torch.where(lost, pick(self.chance(_GOAL), self.nodes), goal)
        self.goal = torch.where(anew, goal, self.goal)
        self.place = torch.where(anew, other_than(self.goal, self.chance(_PLACE), self.nodes), place)
        self.last_action = torch.where(lost, self.actions, action)
        self.count = torch.where(lost, 0, count)
        self.last_reward = success * self.reward - (target < 0) * self.penalty
        return self.last_reward
