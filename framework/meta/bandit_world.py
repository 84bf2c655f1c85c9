"""Bandits: arms that pay with probabilities which have to be found out by pulling them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.learners.checks import check_whole
from algornn.meta.world import World, field_of

_PAY = 1  # a stream of chance


class BanditWorld(World):
    """Bernoulli bandits: pulling arm a pays 1 with probability p_a, otherwise 0. Agents pull no place without an arm.

    An observation has 2 A + 1 numbers: where there are arms, what was pulled last (one-hot, at first none), what it
    paid.

    Args:
        batch: `algornn.datamodules.BanditBatch`, or anything with its fields `probability` ``[B, A]``, negative where
            there is no arm, and `seed` ``[B]``.
        length: T, pulls in an episode.
    """

    def __init__(self, batch: Any, length: int = 50) -> None:
        check_whole(1, length=length)
        self.probability, self.seed, self.length = field_of(batch, "probability", self), batch.seed, length
        self.pulled = torch.zeros_like(self.probability)
        self.paid = torch.zeros_like(self.probability[:, 0])

    def observe(self) -> Tensor:
        """What the agents see, ``[B, 2 A + 1]``."""
        return torch.cat([self.action_mask().float(), self.pulled, self.paid[:, None]], 1)

    def action_mask(self) -> Tensor:
        """Where there are arms, ``[B, A]`` bool."""
        return self.probability >= 0

    def step(self, action: Tensor) -> Tensor:
        """Pull arms ``[B]`` and return what they pay ``[B]``."""
        self.time += 1
        pays = self.probability.gather(1, action[:, None])[:, 0]
        self.paid = (self.chance(_PAY) < pays).float()
        self.pulled = F.one_hot(action, self.probability.shape[1]).float()
        return self.paid
