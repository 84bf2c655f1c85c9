"""Worlds: many episodes of reinforcement learning side by side, as tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea and Flood 2014) as signed numbers.
_APART = 1000  # between the streams of chance of the dimensions of an action
_GAMMA, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def field_of(batch: Any, name: str, world: World) -> Tensor:
    """A field of a batch that a world is made of."""
    if not hasattr(batch, name):
        raise ValueError(
            f"{type(world).__name__} needs batches with {name}, these are {type(batch).__name__}: choose the "
            "world that belongs to the data."
        )
    return getattr(batch, name)


class World(ABC):
    """B episodes of one length that run side by side on the device of their batch.

    A subclass sets `seed` in its constructor, which gets the batch, and `length`, and adds 1 to `time` in every `step`.
    Everything random in an episode comes from its seed by `chance`, so that it does not depend on the other episodes of
    the batch, on the number of processes or on where a run was resumed.

    Attributes:
        length: number of steps T of an episode.
        seed: ``[B]`` int64.
        time: number of steps taken.
    """

    length: int
    seed: Tensor
    time: int = 0

    @abstractmethod
    def observe(self) -> Tensor:
        """What the agents see, ``[B, D]`` float32."""

    @abstractmethod
    def step(self, action: Tensor) -> Tensor:
        """Let the agents act, ``[B]`` int64, and return their rewards ``[B]`` float32."""

    def action_mask(self) -> Tensor | None:
        """The actions that there are now, ``[B, A]`` bool, at least one in every row; None: all."""
        return None

    def chance(self, stream: int) -> Tensor:
        """Numbers that are uniform in [0, 1), ``[B]`` float64, from (seed, time, stream) alone.

        Stream 0 is that of the agents' actions, the others are the world's own.
        """
        return uniform(self.seed, self.time, stream)


class ContinuousWorld(World):
    """Episodes in which agents act by numbers between -1 and 1, and which may end early.

    Actions are ``[B, action_size]``, clipped to [-1, 1].

    Attributes:
        action_size: D.
        terminal: ``[B]`` bool, whether the last step ended the episode; what comes after it does not count.
    """

    action_size: int
    terminal: Tensor


class WorldsTogether:
    """E episodes of each of N agents, in worlds of several kinds; what these lack up to the widest is 0.

    Args:
        kinds: for every agent, what makes its world of a batch of seeds.
        seeds: ``[N, E]`` int64.
        observation_size: O, the widest.
        among: ``[N]`` bool, the agents that there are episodes of.

    Attributes:
        over: ``[N]`` bool, whose episodes have reached their length.
    """

    def __init__(
        self, kinds: Sequence[Callable[[Any], ContinuousWorld]], seeds: Tensor, observation_size: int, among: Tensor
    ) -> None:
        here = among.tolist()
        groups = {
            kind: torch.tensor([n for n, own in enumerate(kinds) if own == kind and here[n]], device=seeds.device)
            for kind in dict.fromkeys(kinds)
        }
        self._running = [
            (rows, kind(SimpleNamespace(seed=seeds[rows].flatten()))) for kind, rows in groups.items() if len(rows)
        ]
        self._shape, self._size, self._time = seeds.shape, observation_size, 0
        self.over = ~among

    def observe(self) -> Tensor:
        """What the agents see, ``[N, E, O]`` in the default dtype."""
        seen = torch.zeros(*self._shape, self._size, device=self.over.device)
        for rows, world in self._running:
            x = world.observe()
            seen[rows, :, : x.shape[1]] = x.view(len(rows), self._shape[1], -1).to(seen)
        return seen

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Let all act, ``[N, E, D]``, where the length is not reached; give rewards and terminals, ``[N, E]`` both."""
        reward, terminal = torch.zeros(2, *self._shape, device=action.device)
        self._time += 1
        for rows, world in self._running:
            if self._time <= world.length:
                reward[rows] = (
                    world.step(action[rows, :, : world.action_size].flatten(0, 1)).view(len(rows), -1).to(reward)
                )
                terminal[rows] = world.terminal.view(len(rows), -1).to(terminal)
                self.over[rows] = self._time == world.length
        return reward, terminal


def check_world(world: World) -> None:
    """Raise an error unless a fresh world is continuous and fits its description, going one step in it.

    Raises:
        TypeError: it is no `ContinuousWorld`, lacks one of its attributes, or `terminal` is not of truth values.
        ValueError: an observation, a reward or `terminal` of another shape.
    """
    kind = type(world).__name__
    if not isinstance(world, ContinuousWorld):
        raise TypeError(f"Agents act in a ContinuousWorld each, got {kind}.")
    B, seen = len(world.seed), world.observe()
    if seen.dim() != 2 or len(seen) != B:
        raise ValueError(f"{kind}.observe must give the shape [B={B}, D], got {list(seen.shape)}.")
    for name in ("action_size", "terminal"):
        if not hasattr(world, name):
            raise TypeError(f"{kind} lacks `{name}`, which every ContinuousWorld has.")
    reward: Any = world.step(torch.zeros(B, world.action_size, device=seen.device))
    for name, given in {"step": reward, "terminal": world.terminal}.items():
        if getattr(given, "shape", None) != (B,):
            shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{kind}.{name} must give the shape [B={B}], got {shape}.")
    if world.terminal.dtype != torch.bool:
        raise TypeError(f"{kind}.terminal must be of torch.bool, got {world.terminal.dtype}.")


def uniform(seed: Tensor, time: int, stream: int, shape: Sequence[int] = ()) -> Tensor:
    """Numbers uniform in [0, 1), float64, by splitmix64 of (seed, time, stream).

    Args:
        seed: ``[...]`` int64.
        time: a count.
        stream: what the numbers are for.
        shape: of the numbers that every seed gets.

    Returns:
        ``[..., *shape]``.
    """
    word = _mixed(_mixed(_mixed(seed) + (time + 1) * _FIRST % 2**63) + (stream + 1) * _SECOND % 2**63)
    if shape:
        index = torch.arange(math.prod(shape), device=seed.device)
        word = _mixed(word[..., None] + index * _GAMMA).unflatten(-1, tuple(shape))
    return _shifted(word, 11).double() * 2.0**-53


def normal(seed: Tensor, time: int, stream: int, shape: Sequence[int]) -> Tensor:
    """Numbers from N(0, 1), float32, ``[..., *shape]``, as `uniform`."""
    number = uniform(seed, time, stream, shape).clamp(min=2.0**-53)
    return (2**0.5 * torch.erfinv(2 * number - 1)).float()


def each(draw: Callable[..., Tensor], seed: Tensor, time: int, stream: int, shape: Sequence[int]) -> Tensor:
    """Numbers of `uniform` or `normal`, ``[..., *shape]``, that do not depend on how long the last dimension is."""
    *others, D = shape
    return torch.stack([draw(seed, time, stream + _APART * (d + 1), others) for d in range(D)], -1)


def pick(number: Tensor, choices: int | Tensor) -> Tensor:
    """Choose one of 0 to `choices` - 1 by a number in [0, 1)."""
    return (number * choices).long().clamp(max=choices - 1)


def other_than(taken: Tensor, number: Tensor, choices: int) -> Tensor:
    """Choose one of 0 to `choices` - 1 besides `taken` by a number in [0, 1)."""
    found = pick(number, choices - 1)
    return found + (found >= taken)


def _mixed(word: Tensor) -> Tensor:
    """One round; int64 products wrap around as those of unsigned numbers do."""
    word = word + _GAMMA
    word = (word ^ _shifted(word, 30)) * _FIRST
    word = (word ^ _shifted(word, 27)) * _SECOND
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in, as for unsigned numbers."""
    return torch.bitwise_right_shift(word, bits) & (2 ** (64 - bits) - 1)
