"""Worlds of a few steps, and the sizes of agents that live in them."""

from functools import partial

import torch

from algornn.meta import CartPoleSwingUp, ContinuousWorld, Pendulum, PointMass, Reacher

SMALL = {"hidden_sizes": (8,), "segments": (4, 5), "every": 2, "random": 1}
short = lambda world: partial(world, length=12)  # noqa: E731
WORLDS = [short(world) for world in (PointMass, Pendulum, CartPoleSwingUp, Reacher)]


class Odd(ContinuousWorld):
    """It pays `pay`, ends after `end` steps, and from then on pays and shows `after`."""

    action_size = 1

    def __init__(self, batch, length=10, end=99, pay=1.0, after=float("nan")):
        self.seed, self.length, self.end, self.pay, self.after = batch.seed, length, end, pay, after
        self.terminal = torch.zeros_like(self.seed, dtype=torch.bool)

    def observe(self):
        return torch.full((len(self.seed), 2), 0.1 if self.time < self.end else self.after)

    def step(self, action):
        self.time += 1
        self.terminal = torch.full_like(self.terminal, self.time == self.end)
        paid = action[:, 0] if self.pay is None else torch.tensor(self.pay).expand(len(self.seed))
        return paid if self.time <= self.end else torch.full_like(action[:, 0], self.after)
