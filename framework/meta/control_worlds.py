"""Continuous control as tensors: a point mass, a two-link arm, a pendulum and a cart-pole, thousands side by side."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from algornn.learners.checks import check_whole
from algornn.meta.world import ContinuousWorld

_FIRST = 1  # stream of chance of the first number of a first state; the others follow


class ControlWorld(ContinuousWorld):
    """A body that forces act on; its episodes have a fixed length and no terminal states.

    Args:
        batch: anything with the field `seed` ``[B]``.
        length: T, steps of an episode.

    Attributes:
        observation_size: O.
        state: ``[B, n]``.
    """

    observation_size: ClassVar[int]

    def __init__(self, batch: Any, length: int = 100) -> None:
        check_whole(1, length=length)
        self.seed, self.length = batch.seed, length
        self.terminal = torch.zeros_like(self.seed, dtype=torch.bool)
        self.state = self._first()

    @abstractmethod
    def _first(self) -> Tensor:
        """The first states, ``[B, n]``."""

    @abstractmethod
    def _moved(self, force: Tensor) -> tuple[Tensor, Tensor]:
        """The next states and the rewards of actions in [-1, 1]."""

    def step(self, action: Tensor) -> Tensor:
        """Act for one step and return the rewards ``[B]``."""
        self.time += 1
        self.state, reward = self._moved(action.clamp(-1, 1))
        return reward

    def _between(self, low: float, high: float, n: int) -> Tensor:
        """Numbers from the episodes' seeds, uniform between `low` and `high`, ``[B, n]``."""
        numbers = torch.stack([self.chance(_FIRST + k) for k in range(n)], 1)
        return (low + (high - low) * numbers).float()


class PointMass(ControlWorld):
    r"""A mass in the plane that is to be moved to a goal and kept there.

    State: position x, velocity v and the goal g; x and g begin in the square of :math:`\pm 1`, walls stand at
    :math:`\pm 2`. With the force u and steps of 0.1 s, :math:`v \leftarrow 0.9 v + 0.5 u,\ x \leftarrow x + 0.1 v`.
    Reward: :math:`-|x - g|` (before the step). Observed: x, v, g - x.
    """

    observation_size, action_size = 6, 2

    def _first(self) -> Tensor:
        place = self._between(-1, 1, 4)
        return torch.cat([place[:, :2], torch.zeros_like(place[:, :2]), place[:, 2:]], 1)

    def observe(self) -> Tensor:
        """Position, velocity and the way to the goal, ``[B, 6]``."""
        x, v, g = self.state.chunk(3, 1)
        return torch.cat([x, v, g - x], 1)

    def _moved(self, force: Tensor) -> tuple[Tensor, Tensor]:
        x, v, g = self.state.chunk(3, 1)
        reward = -(x - g).norm(dim=1)
        v = 0.9 * v + 0.5 * force
        x = x + 0.1 * v
        v = torch.where(x.abs() >= 2, 0.0, v)
        return torch.cat([x.clamp(-2, 2), v, g], 1), reward


class Reacher(ControlWorld):
    r"""An arm of two links of length 0.5 whose tip is to reach a goal.

    State: the joints' angles :math:`\theta_1, \theta_2`, their velocities :math:`\omega`, and the goal, between 0.2 and
    0.9 from the shoulder. The torques u turn damped joints, :math:`\omega \leftarrow 0.9 \omega + u,\ \theta \leftarrow
    \theta + 0.1 \omega`. Reward: the tip's distance from the goal, negative. Observed: cosines and sines of the joints,
    velocities, the goal, and the way to it.
    """

    observation_size, action_size = 10, 2

    def _first(self) -> Tensor:
        angles, radius = self._between(-math.pi, math.pi, 3), self._between(0.2, 0.9, 4)[:, 3:]
        goal = radius * torch.stack([angles[:, 2].cos(), angles[:, 2].sin()], 1)
        return torch.cat([angles[:, :2], torch.zeros_like(goal), goal], 1)

    def _tip(self) -> Tensor:
        first, second = self.state[:, 0], self.state[:, :2].sum(1)
        return 0.5 * torch.stack([first.cos() + second.cos(), first.sin() + second.sin()], 1)

    def observe(self) -> Tensor:
        """Joints, velocities, goal and the way to it, ``[B, 10]``."""
        angles, velocity, goal = self.state.chunk(3, 1)
        return torch.cat([angles.cos(), angles.sin(), velocity, goal, goal - self._tip()], 1)

    def _moved(self, force: Tensor) -> tuple[Tensor, Tensor]:
        angles, velocity, goal = self.state.chunk(3, 1)
        reward = -(self._tip() - goal).norm(dim=1)
        velocity = 0.9 * velocity + force
        return torch.cat([angles + 0.1 * velocity, velocity, goal], 1), reward


class Pendulum(ControlWorld):
    r"""A pendulum that is to be swung up and held, by a torque too weak to lift it: gymnasium's ``Pendulum-v1``.

    With the angle :math:`\theta` from the upright, :math:`g = 10, m = l = 1`, the torque :math:`2u`, steps of 0.05 s,
    :math:`\dot\theta \leftarrow \dot\theta + 0.05 (15 \sin\theta + 3 \cdot 2u)` within :math:`\pm 8`. Reward:
    :math:`-(\theta^2 + 0.1 \dot\theta^2 + 0.001 (2u)^2)`, :math:`\theta` in :math:`\pm \pi`. Observed: cosine, sine,
    velocity.
    """

    observation_size, action_size = 3, 1

    def _first(self) -> Tensor:
        return self._between(-1, 1, 2) * torch.tensor([math.pi, 1.0], device=self.seed.device)

    def observe(self) -> Tensor:
        """Cosine and sine of the angle, and the velocity, ``[B, 3]``."""
        angle, velocity = self.state.unbind(1)
        return torch.stack([angle.cos(), angle.sin(), velocity], 1)

    def _moved(self, force: Tensor) -> tuple[Tensor, Tensor]:
        (angle, velocity), torque = self.state.unbind(1), 2 * force[:, 0]
        turned = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        reward = -(turned.square() + 0.1 * velocity.square() + 0.001 * torque.square())
        velocity = (velocity + 0.05 * (15 * angle.sin() + 3 * torque)).clamp(-8, 8)
        return torch.stack([angle + 0.05 * velocity, velocity], 1), reward


class CartPoleSwingUp(ControlWorld):
    r"""A pole that hangs from a cart and is to be swung up and balanced, by a force on the cart.

    Cart 1 kg, pole 0.1 kg with its middle at l = 0.5 m, g = 9.8, the force 10 u, steps of 0.02 s, two for each action;
    with :math:`\theta` from the upright and :math:`a = (10u + 0.05\, \dot\theta^2 \sin\theta) / 1.1`,

    .. math:: \ddot\theta = \frac{9.8 \sin\theta - a \cos\theta}{l (4/3 - 0.1 \cos^2\theta / 1.1)}, \qquad
        \ddot x = a - 0.05\, \ddot\theta \cos\theta / 1.1

    The track ends at 2.4 m, where the cart stops. Reward: :math:`(1 + \cos\theta)/2 - 0.05 |x|`. Observed: place and
    velocity of the cart, cosine, sine and velocity of the pole.

    Source: the equations of Barto, Sutton and Anderson (1983), without friction.
    """

    observation_size, action_size = 5, 1

    def _first(self) -> Tensor:
        start = torch.tensor([0.0, 0.0, math.pi, 0.0], device=self.seed.device)
        return start + self._between(-0.1, 0.1, 4)

    def observe(self) -> Tensor:
        """Place and velocity of the cart; cosine, sine and velocity of the pole, ``[B, 5]``."""
        x, v, angle, turning = self.state.unbind(1)
        return torch.stack([x, v, angle.cos(), angle.sin(), turning], 1)

    def _moved(self, force: Tensor) -> tuple[Tensor, Tensor]:
        x, v, angle, turning = self.state.unbind(1)
        reward = (1 + angle.cos()) / 2 - 0.05 * x.abs()
        for _ in range(2):
            linear, angular = self.accelerations(10 * force[:, 0], angle, turning)
            x, angle = x + 0.02 * v, angle + 0.02 * turning
            v, turning = v + 0.02 * linear, turning + 0.02 * angular
            v = torch.where(x.abs() >= 2.4, 0.0, v)
            x = x.clamp(-2.4, 2.4)
        return torch.stack([x, v, angle, turning], 1), reward

    @staticmethod
    def accelerations(force: Tensor, angle: Tensor, turning: Tensor) -> tuple[Tensor, Tensor]:
        """The accelerations of the cart and of the pole's angle under a force in newton, all ``[B]``."""
        sine, cosine = angle.sin(), angle.cos()
        a = (force + 0.05 * turning.square() * sine) / 1.1
        angular = (9.8 * sine - a * cosine) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
        return a - 0.05 * angular * cosine / 1.1, angular
