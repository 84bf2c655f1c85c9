"""Worlds of gymnasium, many side by side, for agents that know `ContinuousWorld`."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor

from algornn.learners.checks import check_whole
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
        ValueError: gymnasium is not installed or has no such environment, or actions are not continuous or have no
            bounds.
    """

    _idle: ClassVar[dict[str, list[Any]]] = {}

    def __init__(self, batch: Any, name: str, length: int = 1000) -> None:
        check_whole(1, length=length)
        self.seed, self.length, self.name = batch.seed, length, name
        idle = self._idle.setdefault(name, [])
        self._environments = [idle.pop() if idle else _made(name) for _ in range(len(self.seed))]
        weakref.finalize(self, idle.extend, self._environments)
        space = self._environments[0].action_space
        self._low, self._high = (torch.as_tensor(bound).flatten().float() for bound in (space.low, space.high))
        self.action_size = len(self._low)
        self.terminal = torch.zeros_like(self.seed, dtype=torch.bool)
        self._over = torch.zeros(len(self.seed), dtype=torch.bool)
        starts = [
            environment.reset(seed=seed % 2**31)[0]
            for environment, seed in zip(self._environments, self.seed.tolist(), strict=True)
        ]
        self._seen = torch.stack([_flat(start) for start in starts])

    def observe(self) -> Tensor:
        """What the environments show, ``[B, O]``."""
        return self._seen.clone().to(self.seed.device)

    def step(self, action: Tensor) -> Tensor:
        """Act for one step and return the rewards ``[B]``, 0 where the episode is over."""
        self.time += 1
        forces = self._low + (action.clamp(-1, 1).cpu() + 1) / 2 * (self._high - self._low)
        rewards, terminal = torch.zeros(len(forces)), torch.zeros_like(self._over)
        for row in torch.nonzero(~self._over).flatten().tolist():
            environment = self._environments[row]
            space = environment.action_space
            force = forces[row].numpy().astype(space.dtype).reshape(space.shape)
            seen, reward, ended, _, _ = environment.step(force)
            self._seen[row], rewards[row], terminal[row] = _flat(seen), float(reward), bool(ended)
        self._over |= terminal
        self.terminal = terminal.to(self.seed.device)
        return rewards.to(self.seed.device)


def _flat(seen: Any) -> Tensor:
    """An environment's observation as a vector."""
    return torch.as_tensor(seen).flatten().float()


def _made(name: str) -> Any:
    """One environment, without the checks and the time limit that gymnasium wraps around it."""
    try:
        import gymnasium
    except ImportError as error:
        raise ValueError(f"The world {name!r} needs gymnasium: pip install 'algornn[rl]'.") from error
    try:
        environment = gymnasium.make(name, disable_env_checker=True).unwrapped
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium has no world {name!r}, or lacks a package for it: {error}") from error
    space = environment.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
        raise ValueError(f"GymWorld needs continuous actions with bounds, those of {name!r} are {space}.")
    seen = environment.observation_space
    if not isinstance(seen, gymnasium.spaces.Box):
        raise ValueError(f"GymWorld needs observations that are one array of numbers, those of {name!r} are {seen}.")
    return environment
