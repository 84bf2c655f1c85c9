"""Agents that predict what a learned objective has them predict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from algornn.meta.agents import Agents
from algornn.meta.control_networks import Weights
from algornn.meta.world import ContinuousWorld


class PredictingAgents(Agents):
    r"""`Agents` whose policies say more of a state than what to do: :math:`q_w(s)`, a distribution over m classes.

    What the classes mean is up to the learned objective, which teaches them (`PredictingObjective`) and looks at them
    where it would look at the critics' values; those then serve its own training alone.

    Args:
        worlds: for every agent, what makes its world of a batch of seeds.
        seed: ``[N]`` int64.
        predictions: m.
        **agents: the arguments of `Agents`.

    Raises:
        ValueError: m is below 2.

    Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms", https://arxiv.org/abs/2007.08794.
    """

    def __init__(
        self, worlds: Sequence[Callable[[Any], ContinuousWorld]], seed: Tensor, predictions: int = 8, **agents: Any
    ) -> None:
        if predictions < 2:
            raise ValueError(f"`predictions` is a number of classes, expected at least 2, got {predictions}.")
        self.predictions = predictions
        super().__init__(worlds, seed, **agents)

    def foretold(self, w: Weights, s: Tensor) -> Tensor:
        """The predictions of policies with weights w, ``[N, ..., O]`` to ``[N, ..., m]``."""
        return self._policy(w, s)[..., self.action_size :].softmax(-1)
