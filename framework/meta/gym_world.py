"""Worlds of gymnasium, many side by side, for agents that know `ContinuousWorld`."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algornn.meta.world import ContinuousWorld


class GymWorld(ContinuousWorld):
    """B episodes of an environment of gymnasium whose actions are continuous.

    Actions between -1 and 1 are stretched to the bounds of the environment. An episode ends early where it terminates;
    its own time limit is not looked at. Environments are kept for the next world of their name, since making one of
    MuJoCo's takes longer than an episode.

    Args:
        batch: anything with the field `seed` ``[B]``.
        name: the environment's id, such as ``"HalfCheetah-v5"``.
        length: T, steps of an episode.

    Raises:
        ImportError: gymnasium is not installed.
        ValueError: there is no such environment, or its actions are not continuous or have no bounds.
    """

    _idle: ClassVar[dict[str, list[Any]]] = {}

    def __init__(self, batch: Any, name: str, length: int = 1000) -> None:
        self.seed, self.length = batch.seed, length
        idle = self._idle.setdefault(name, [])
        self._environments = [idle.pop() if idle else _made(name) for _ in range(len(self.seed))]
        weakref.finalize(self, idle.extend, self._environments)
        space = self._environments[0].action_space
        self._low, self._high = space.low.ravel(), space.high.ravel()
        self.action_size = len(self._low)
        self.terminal = torch.zeros_like(self.seed, dtype=torch.bool)
        self._over = np.zeros(len(self.seed), dtype=bool)
        starts = [
            environment.reset(seed=seed % 2**31)[0].ravel()
            for environment, seed in zip(self._environments, self.seed.tolist(), strict=True)
        ]
        self._seen = np.stack(starts).astype(np.float32)

    def observe(self) -> Tensor:
        """What the environments show, ``[B, O]``."""
        return torch.from_numpy(self._seen.copy()).to(self.seed.device)

    def step(self, action: Tensor) -> Tensor:
        """Act for one step and return the rewards ``[B]``, 0 where the episode is over."""
        self.time += 1
        share = (action.clamp(-1, 1).cpu().numpy() + 1) / 2
        forces = self._low + share * (self._high - self._low)
        rewards, terminal = np.zeros(len(forces), dtype=np.float32), np.zeros(len(forces), dtype=bool)
        for row in np.flatnonzero(~self._over):
            environment = self._environments[row]
            force = forces[row].astype(environment.action_space.dtype).reshape(environment.action_space.shape)
            seen, rewards[row], terminal[row], _, _ = environment.step(force)
            self._seen[row] = seen.ravel()
        self._over |= terminal
        self.terminal = torch.from_numpy(terminal).to(self.seed.device)
        return torch.from_numpy(rewards).to(self.seed.device)


def _made(name: str) -> Any:
    """One environment, without the checks and the time limit that gymnasium wraps around it."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError(f"The world {name!r} needs gymnasium: pip install 'algornn[rl]'.") from error
    try:
        environment = gymnasium.make(name, disable_env_checker=True).unwrapped
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium has no world {name!r}, or lacks a package for it: {error}") from error
    space = environment.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"GymWorld needs continuous actions with bounds, those of {name!r} are {space}.")
    return environment
