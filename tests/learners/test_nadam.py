"""TFNadam against its recurrence in numpy."""

import copy

import numpy as np
import pytest
import torch

from algornn import TFNadam


def recurrence(theta, gradients, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """m, v, alpha and the Nesterov step as in TensorFlow's kernel; yields theta after every step."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        alpha = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        theta = theta - alpha * (beta1 * m + (1 - beta1) * g) / (np.sqrt(v) + eps)
        yield theta


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def parameter(values):
    return torch.nn.Parameter(torch.from_numpy(values.copy()))


def step(optimizer, *pairs):
    for p, g in pairs:
        p.grad = torch.from_numpy(g.copy())
    optimizer.step()


def test_the_recurrence():
    theta, gradients = drawn(3, 4), drawn(12, 3, 4, seed=1)
    p = parameter(theta)
    optimizer = TFNadam([p])
    for g, wanted in zip(gradients, recurrence(theta, gradients), strict=True):
        step(optimizer, (p, g))
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-13, atol=1e-15)


def test_the_first_step_by_hand():
    """m = 0.1 g, v = 0.001 g^2, alpha = lr sqrt(0.001) / 0.1, so the step is lr (0.09 + 0.1) / 0.1 = 1.9 lr."""
    p = parameter(np.zeros(1))
    step(TFNadam([p], lr=0.01, eps=0.0), (p, np.array([-5.0])))
    assert p.item() == pytest.approx(0.019, rel=1e-12)


def test_parameter_groups():
    settings = [{"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}, {}]
    thetas, gradients = drawn(2, 5), drawn(2, 8, 5, seed=1)
    parameters = [parameter(theta) for theta in thetas]
    groups = [{"params": [p], **own} for p, own in zip(parameters, settings, strict=True)]
    optimizer = TFNadam(groups, lr=0.02)
    for t in range(8):
        step(optimizer, *((p, gradients[n, t]) for n, p in enumerate(parameters)))
    wanted = [
        list(recurrence(thetas[0], gradients[0], 0.1, 0.8, 0.95, 1e-3))[-1],
        list(recurrence(thetas[1], gradients[1], 0.02))[-1],
    ]
    for p, theta in zip(parameters, wanted, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-13, atol=1e-15)


def test_a_changed_learning_rate_counts_from_the_next_step():
    p, g = parameter(np.zeros(1)), np.ones(1)
    optimizer = TFNadam([p], lr=0.0)
    step(optimizer, (p, g))
    assert p.item() == 0
    optimizer.param_groups[0]["lr"] = 1.0
    step(optimizer, (p, g))
    assert p.item() == pytest.approx(list(recurrence(np.zeros(1), [g, g], lr=1.0))[-1][0] + 1.9, rel=1e-6)


def test_the_state_goes_through_a_checkpoint(tmp_path):
    theta, gradients = drawn(2, 6), drawn(9, 2, 6, seed=1)
    whole, first = ([parameter(row) for row in theta] for _ in range(2))
    optimizers = TFNadam(whole, lr=0.1), TFNadam(first, lr=0.1)
    for g in gradients[:4]:
        for optimizer, parameters in zip(optimizers, (whole, first), strict=True):
            step(optimizer, *zip(parameters, g, strict=True))
    torch.save(optimizers[1].state_dict(), tmp_path / "optimizer.pt")

    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = TFNadam(second)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    for g in gradients[4:]:
        step(optimizers[0], *zip(whole, g, strict=True))
        step(resumed, *zip(second, g, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_without_a_gradient_nothing_moves():
    p, q = parameter(np.ones(2)), parameter(np.ones(2))
    optimizer = TFNadam([p, q])
    step(optimizer, (p, np.ones(2)))
    before = copy.deepcopy(optimizer.state_dict())
    p.grad = None
    optimizer.step()
    assert torch.equal(q, torch.ones(2, dtype=torch.float64))
    assert q not in optimizer.state
    assert optimizer.state[p]["step"] == before["state"][0]["step"] == 1
    assert torch.equal(optimizer.state[p]["m"], before["state"][0]["m"])


def test_a_closure_is_called_with_gradients():
    p = parameter(np.array([3.0]))
    optimizer = TFNadam([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[0] == 9
    assert losses[-1] < 1


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1e-8}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=r"TFNadam needs lr >= 0, eps >= 0 and betas in \[0, 1\), got lr="):
        TFNadam([parameter(np.ones(1))], **wrong)
