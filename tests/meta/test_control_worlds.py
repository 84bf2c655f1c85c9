"""Continuous control: the equations one number at a time, fixed points, and what can be reached."""

import math
from types import SimpleNamespace

import pytest
import torch

from algornn.meta import CartPoleSwingUp, Pendulum, PointMass, Reacher

WORLDS = (PointMass, Reacher, Pendulum, CartPoleSwingUp)
each = pytest.mark.parametrize("kind", WORLDS)


def made(kind, B=16, first=0, **settings):
    return kind(SimpleNamespace(seed=torch.arange(first, first + B)), **settings)


def actions(world, T, seed=0):
    shape = (T, len(world.seed), world.action_size)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each
def test_sizes_seeds_and_clipping(kind):
    world, part = made(kind), made(kind, 4, first=8)
    assert world.observe().shape == (16, kind.observation_size)
    assert torch.equal(world.state[8:12], part.state)
    assert len(world.state.unique(dim=0)) == 16
    clipped = made(kind)
    for u in actions(world, 20):
        reward = world.step(u)
        assert torch.equal(clipped.step(u.clamp(-1, 1)), reward)
        torch.testing.assert_close(part.step(u[8:12]), reward[8:12])
        assert reward.shape == (16,)
        assert reward.isfinite().all()
    assert world.time == 20
    assert world.observe().isfinite().all()


@each
def test_rewards_can_be_differentiated(kind):
    world = made(kind, 3)
    u = torch.zeros(3, kind.action_size, requires_grad=True)
    total = 0
    for _ in range(5):
        total = total + world.step(u)
    slope = torch.autograd.grad(total.sum(), u)[0]
    assert slope.isfinite().all()
    assert (slope != 0).all()


def test_the_pendulum_is_that_of_gymnasium():
    """The step of gymnasium's Pendulum-v1, one episode at a time: g 10, m 1, l 1, dt 0.05, torque 2, speed 8."""
    world = made(Pendulum)
    expected = world.state.double().tolist()
    for u in actions(world, 60):
        reward = world.step(u)
        for b, (angle, velocity) in enumerate(expected):
            torque = 2 * min(max(float(u[b, 0]), -1.0), 1.0)
            turned = (angle + math.pi) % (2 * math.pi) - math.pi
            assert float(reward[b]) == pytest.approx(-(turned**2 + 0.1 * velocity**2 + 0.001 * torque**2), abs=5e-3)
            velocity += (3 * 10 / 2 * math.sin(angle) + 3 * torque) * 0.05
            velocity = min(max(velocity, -8.0), 8.0)
            expected[b] = [angle + velocity * 0.05, velocity]
    assert world.state.tolist() == [pytest.approx(state, abs=2e-2) for state in expected]


def test_the_cart_pole_hangs_and_stands():
    world = made(CartPoleSwingUp, 2)
    world.state = torch.tensor([[0.0, 0.0, math.pi, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for _ in range(50):
        reward = world.step(torch.zeros(2, 1))
    assert reward.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
    for _ in range(100):
        world.step(torch.ones(2, 1))
    assert float(world.state[:, 0].abs().max()) == pytest.approx(2.4)  # the end of the track


def test_the_cart_poles_accelerations_solve_its_equations():
    """Both equations of motion hold: of the cart with its pole along the track, and of the pole about its end."""
    force, angle, turning = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).double()
    linear, angular = CartPoleSwingUp.accelerations(force, angle, turning)
    sine, cosine = angle.sin(), angle.cos()
    torch.testing.assert_close(1.1 * linear + 0.05 * (angular * cosine - turning**2 * sine), force)
    torch.testing.assert_close(4 / 3 * 0.5 * angular + linear * cosine, 9.8 * sine)


@pytest.mark.parametrize("kind", [PointMass, Reacher])
def test_a_simple_controller_reaches_the_goal(kind):
    """The way to the goal is in the observation: a spring along it, for the arm through its Jacobian."""
    world = made(kind, 64)
    first = world.step(torch.zeros(64, 2))
    for _ in range(99):
        way, state = world.observe()[:, -2:], world.state
        if kind is PointMass:
            u = 4 * way - state[:, 2:4]
        else:
            a, b = state[:, 0], state[:, :2].sum(1)
            turn = torch.stack([-way[:, 0] * a.sin() + way[:, 1] * a.cos(), -way[:, 0] * b.sin() + way[:, 1] * b.cos()])
            u = 2 * torch.stack([turn.sum(0), turn[1]], 1) - 0.2 * state[:, 2:4]
        last = world.step(u)
    assert float(first.mean()) < -0.5
    assert float(last.mean()) > -0.06
