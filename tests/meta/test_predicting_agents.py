"""Predictions that a learned objective teaches: who makes them, what they change, and their place in training."""

from functools import partial

import pytest
import torch
from test_learned_objective import derivative_and_difference
from test_metagenrl import WORLDS, learner, trained, weights

from algornn import MetaGenRL
from algornn.meta import Agents, LearnedStep, PredictingAgents, PredictingObjective, improvement
from algornn.meta.policy_rules import critics_own, learned

SMALL = {"hidden_sizes": (8,), "segments": (4, 5), "every": 2, "random": 1}


def objective():
    torch.manual_seed(3)
    return PredictingObjective(3, units=8, features=4)


def agents(updates=4, dtype=torch.float64):
    found = PredictingAgents([WORLDS["pendulum"], WORLDS["reacher"]], torch.tensor([3, 4]), predictions=3, **SMALL)
    for _ in range(updates):
        found.update((partial(critics_own, found), 1.0))
    for name in ("w", "u"):
        setattr(found, name, {key: x.to(dtype) for key, x in getattr(found, name).items()})
    return found


def drawn(population, index):
    segments = population.draw(index)
    return type(segments)(*(x.double() for x in segments))


def pupil(**settings):
    model = learner(score="improvement", **settings)
    model.model = objective()
    model.agents = partial(PredictingAgents, predictions=3, **SMALL)
    return model


def test_a_policy_acts_as_it_would_without_and_predicts_a_distribution():
    told = agents(updates=0)
    plain = Agents([WORLDS["pendulum"], WORLDS["reacher"]], torch.tensor([3, 4]), **SMALL)
    last = list(told.w)[-2:]
    w = {name: x[:, : told.action_size] if name in last else x for name, x in told.w.items()}
    s = torch.randn(2, 6, told.observation_size, dtype=torch.float64)
    torch.testing.assert_close(told.policy(told.w, s), plain.policy(w, s))
    y = told.foretold(told.w, s)
    assert y.shape == (2, 6, 3)
    torch.testing.assert_close(y.sum(-1), torch.ones(2, 6, dtype=torch.float64))


def test_the_loss_is_that_of_its_equation_and_moves_predictions():
    network, population = objective().double(), agents()
    segments = drawn(population, 3)
    terminal, mask = (torch.zeros_like(segments.mask) for _ in range(2))
    terminal[:, :, 2], mask[:, :, :4] = 1, 1
    segments = segments._replace(terminal=terminal, mask=mask)
    w = {name: x.clone().requires_grad_() for name, x in population.w.items()}
    loss = learned(network, population, w, segments)
    slope = torch.autograd.grad(loss.sum(), w[list(w)[-1]], retain_graph=True)[0]
    assert (slope[:, population.action_size :] != 0).all()

    def z(x):
        return (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), correction=0, keepdim=True)

    q, T = population.foretold(w, segments.observation), segments.reward.shape[-1]
    time = (torch.arange(T) / T).expand_as(segments.reward)
    known = [z(segments.reward)[..., None], time[..., None], (1 - terminal)[..., None] * q[:, :, 1:], q[:, :, :-1]]
    cell = torch.nn.LSTMCell(4, 8, dtype=torch.float64)
    cell.weight_ih, cell.weight_hh, cell.bias_ih = network.gates.weight, network.recurrent.weight, network.gates.bias
    torch.nn.init.zeros_(cell.bias_hh)
    state, hidden = None, []
    for c in reversed(network.context(torch.cat(known, -1)).flatten(0, 1).unbind(1)):
        state = cell(c, state)
        hidden.insert(0, state[0])
    hidden = torch.stack(hidden, 1).view(*segments.reward.shape, 8)
    p, now = population.policy(w, segments.observation[:, :, :-1]), q[:, :, :-1]
    followed = z(network.head(hidden)[..., 0]) * (segments.action - p).square().sum(-1)
    divergence = (now * (now / network.predicting(hidden).softmax(-1)).log()).sum(-1)
    torch.testing.assert_close(loss, (followed + divergence) * mask, rtol=1e-5, atol=1e-6)


def test_the_improvement_is_that_of_steps_to_which_predictions_are_data():
    network, population = objective().double(), agents()
    batches, rate = [drawn(population, k) for k in (3, 4, 5)], 0.1
    w = {name: x.detach() for name, x in population.w.items()}
    for segments in batches[:2]:
        w = {name: x.requires_grad_() for name, x in w.items()}
        slope = torch.autograd.grad(learned(network, population, w, segments).sum(), list(w.values()))
        w = {name: (x - rate * g).detach() for (name, x), g in zip(w.items(), slope, strict=True)}
    expected = -critics_own(population, w, batches[0].join(batches[1]).join(batches[2]))
    torch.testing.assert_close(improvement(network, population, batches, rate), expected)


def test_the_critic_is_not_looked_at():
    network, population = objective().double(), agents()
    segments = drawn(population, 3)
    before = learned(network, population, population.w, segments)
    population.u = {name: -3 * x for name, x in population.u.items()}
    assert torch.equal(learned(network, population, population.w, segments), before)


def test_what_a_prediction_is_good_for_reaches_the_objective_through_the_next_step():
    network, population = objective().double(), agents()
    batches = [drawn(population, k) for k in (3, 4, 5)]
    for steps in (1, 2):
        score = lambda steps=steps: improvement(network, population, batches[: steps + 1], 0.1).sum()  # noqa: E731
        slope = torch.autograd.grad(score(), network.predicting.weight)[0]
        derivative, difference = derivative_and_difference(network, score, 0)
        assert derivative == pytest.approx(difference, rel=1e-5)
        assert slope.abs().max() > 1e-9


@pytest.mark.parametrize("step", [None, 4])
def test_killed_and_resumed_it_goes_on_as_it_would_have(step, tmp_path):
    made = lambda: pupil(step=None if step is None else LearnedStep(step))  # noqa: E731
    torch.manual_seed(0)
    first = made()
    trained(first, tmp_path, 4).save_checkpoint(tmp_path / "model.ckpt")
    torch.manual_seed(0)
    whole = made()
    before = weights(whole)
    trained(whole, tmp_path, 7)
    resumed = made()
    trained(resumed, tmp_path, 7, resume=tmp_path / "model.ckpt")
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(whole), before)


def test_two_processes_train_as_one(tmp_path):
    one, two = pupil(), pupil()
    trained(one, tmp_path, 5)
    trained(two, tmp_path, 5, world=2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`predictions` is a number of classes, expected at least 2, got 1"):
        PredictingAgents([WORLDS["pendulum"]], torch.tensor([3]), predictions=1, **SMALL)
    with pytest.raises(ValueError, match="`predictions` must be at least 2, got 1"):
        PredictingObjective(1)
    with pytest.raises(ValueError, match="`units` must be even"):
        PredictingObjective(units=5)
    with pytest.raises(ValueError, match="learned from the score 'improvement' alone, got 'agreement'"):
        MetaGenRL(objective(), WORLDS, partial(PredictingAgents, predictions=3, **SMALL))
    plain = Agents([WORLDS["pendulum"]], torch.tensor([3]), **SMALL)
    with pytest.raises(ValueError, match="to predict 3 classes, these predict 0: give it `PredictingAgents`"):
        learned(objective(), plain, plain.w, plain.draw(3))
    told = PredictingAgents([WORLDS["pendulum"]], torch.tensor([3]), predictions=5, **SMALL)
    with pytest.raises(ValueError, match="to predict 3 classes, these predict 5"):
        learned(objective(), told, told.w, told.draw(3))
