"""The learned optimiser: Adam at first, differentiable, and learned with the objective that it serves."""

from functools import partial

import pytest
import torch
from test_metagenrl import SMALL, WORLDS, learner, trained, weights

from algornn.datamodules import ControlTasks
from algornn.meta import Agents, LearnedObjective, LearnedStep, OriginalAgents, improvement
from algornn.meta.control_networks import unit
from algornn.meta.metagenrl import mean_of_clipped
from algornn.meta.policy_rules import critics_own, learned


def stepping():
    torch.manual_seed(1)
    step = LearnedStep(hidden_size=4).double()
    torch.nn.init.normal_(step.network[2].weight, std=0.5)
    return step


def small():
    torch.manual_seed(2)
    return LearnedStep(hidden_size=4)


def test_it_is_adam_at_first():
    torch.manual_seed(0)
    w = torch.randn(1, 7, dtype=torch.float64).requires_grad_()
    adam, step = torch.optim.Adam([w], lr=0.1), LearnedStep().double()
    first, second, mine = torch.zeros_like(w), torch.zeros_like(w), w.detach().clone()
    for count in range(1, 6):
        w.grad = torch.randn(1, 7, dtype=torch.float64)
        adam.step()
        delta, first, second = step(w.grad, first.detach(), second.detach(), torch.tensor([count]))
        mine = mine - 0.1 * delta
        torch.testing.assert_close(mine, w.detach(), rtol=1e-6, atol=1e-8)


def test_steps_are_at_most_four_times_adams_and_one_more():
    step = stepping()
    step.network[2].bias.data.fill_(50)
    g = torch.randn(3, 50, dtype=torch.float64)
    delta, *_ = step(g, torch.zeros_like(g), torch.zeros_like(g), torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(delta, 1 + 4 * g.sign(), rtol=1e-4, atol=1e-4)  # Adam's first is the sign
    nothing = torch.zeros_like(g)
    still = step(nothing, nothing, nothing, torch.ones(3, dtype=torch.int64))[0]
    assert still.isfinite().all()


def test_every_agent_counts_its_own_steps():
    step, g = stepping(), torch.randn(1, 6, dtype=torch.float64).expand(2, 6)
    first, second = 0.1 * g, 0.2 * g.square()
    delta, *_ = step(g, first, second, torch.tensor([1, 50]))
    alone, *_ = step(g[1:], first[1:], second[1:], torch.tensor([50]))
    assert torch.equal(delta[1:], alone)
    assert not torch.allclose(delta[0], delta[1])


def test_the_improvement_after_learned_steps_is_that_of_a_loop_and_has_its_derivatives():
    agents = SMALL([WORLDS["pendulum"]] * 2, torch.tensor([3, 4]))
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    for name in ("w", "u"):
        setattr(agents, name, {key: x.double() for key, x in getattr(agents, name).items()})
    agents.moments = {key: {n: x.double() for n, x in m.items()} for key, m in agents.moments.items()}
    segments = [agents.draw(k) for k in (3, 4, 5)]
    segments = [type(s)(*(x.double() for x in s)) for s in segments]
    torch.manual_seed(0)
    objective, agents.step = LearnedObjective(units=4, features=3, advantages=True).double(), stepping()

    score = improvement(objective, agents, segments)
    w = {name: x.detach().requires_grad_() for name, x in agents.w.items()}
    moments = {name: [agents.moments[f"{order}_w"][name] for order in ("first", "second")] for name in w}
    for k in range(2):
        losses = learned(objective, agents, w, segments[k])
        slope = torch.autograd.grad(losses.mean((1, 2)).sum(), list(w.values()))
        length = torch.stack([g.square().flatten(1).sum(1) for g in slope]).sum(0).sqrt()
        for name, g in zip(w, slope, strict=True):
            g = g / length.view(-1, *[1] * (g.dim() - 1))
            step, *moments[name] = agents.step(g, *moments[name], agents.policy_steps() + k)
            w[name] = (w[name] - agents.learning_rates[0] * step).detach().requires_grad_()
    moved, both = w, segments[0].join(segments[1]).join(segments[2])
    s = both.observation[..., :-1, :]
    expected = (agents.opinion(s, agents.policy(moved, s)) * both.mask).mean((-2, -1))
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=1e-9)

    del segments[2]  # in a second step differences would see the values move, which the objective takes as data
    for weight in (agents.step.network[0].weight, next(p for p in objective.parameters() if p.dim() == 2)):
        (found,) = torch.autograd.grad(improvement(objective, agents, segments).sum(), weight)
        place, h = int(found.abs().argmax()), 1e-6
        ends = []
        for sign in (1, -1):
            weight.data.view(-1)[place] += sign * h
            ends.append(improvement(objective, agents, segments).sum().item())
            weight.data.view(-1)[place] -= sign * h
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(found.view(-1)[place].item(), rel=1e-5)


def test_it_is_trained_with_the_objective_moves_the_agents_and_lies_in_checkpoints(tmp_path):
    model = learner(score="improvement", step=small())
    before = weights(model.step)
    trainer = trained(model, tmp_path, 5)
    assert not torch.equal(weights(model.step), before)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    whole = learner(score="improvement", step=small())
    trained(whole, tmp_path, 8)
    again = learner(score="improvement", step=small())
    trained(again, tmp_path, 8, resume=tmp_path / "model.ckpt")
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("kind", [Agents, OriginalAgents])
def test_agents_go_the_steps_that_it_gives_at_their_rate(kind):
    agents = kind([WORLDS["pendulum"]] * 2, torch.tensor([3, 4]), hidden_sizes=(8,), segments=(4, 5), random=0)
    agents.step = stepping().float()
    rule = partial(critics_own, agents)
    for time in range(3):
        agents.update((rule, 1.0))
        w = {name: x.clone().requires_grad_() for name, x in agents.w.items()}
        segments = agents.draw(2)
        slope = torch.autograd.grad(0.01 * rule(w, segments).sum(), list(w.values()))
        length = torch.stack([g.square().flatten(1).sum(1) for g in slope]).sum(0).sqrt()
        length = length.clamp(min=1) if kind is OriginalAgents else length
        expected = {}
        for (name, x), g in zip(w.items(), slope, strict=True):
            g = g / length.view(-1, *[1] * (g.dim() - 1))
            moments = (agents.moments[f"{order}_w"][name] for order in ("first", "second"))
            expected[name] = x.detach() - agents.learning_rates[0] * agents.step(g, *moments, agents.policy_steps())[0]
            assert agents.policy_steps().tolist() == [time + 2] * 2
        agents._move([(lambda w, segments: 0.01 * rule(w, segments), 1.0)], segments)
        for name, x in agents.w.items():
            torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=1e-6)


def test_agents_that_have_not_moved_yet_teach_nothing():
    """A first step is the sign of the gradient: its derivative is rounding, or nothing."""
    model = learner(score="improvement", step=small())
    agents = SMALL([WORLDS["pendulum"]] * 2, torch.tensor([3, 4]))
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    agents.step, agents.age[0] = model.step, 0
    scores = model._scores(agents)
    for row, some in ((0, False), (1, True)):
        slope = torch.autograd.grad(scores[row], list(model.parameters()), retain_graph=True, materialize_grads=True)
        assert any(g.any() for g in slope) is some


def test_a_gradient_of_length_0_has_a_derivative():
    slope = torch.stack([torch.zeros(3), torch.ones(3)]).requires_grad_()
    one = unit({"w": slope})["w"]
    torch.testing.assert_close(one, torch.stack([torch.zeros(3), torch.full((3,), 3**-0.5)]))
    assert torch.autograd.grad(one[:, 0].sum(), slope)[0].isfinite().all()


def test_an_agent_whose_gradient_is_not_finite_is_left_out_of_the_mean():
    bad, good = torch.tensor([torch.nan, 1.0]), torch.tensor([0.3, 0.4])
    torch.testing.assert_close(mean_of_clipped([torch.stack([bad, good])])[0], good / 2)
    torch.testing.assert_close(mean_of_clipped([torch.stack([10 * good, good])])[0], (good / 0.5 + good) / 2)


def test_a_policy_that_has_come_to_rest_does_not_keep_the_others_from_teaching():
    model = learner(score="improvement", step=small())
    agents = SMALL([WORLDS["pendulum"]] * 2, torch.tensor([3, 4]))
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    agents.step = model.step
    list(agents.w.values())[-1][0] = 50.0  # the bias before the tanh
    scores, gradients = model._taught(agents)
    assert scores.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize("score", ["agreement", "improvement"])
def test_parameters_that_reach_no_score_stay_as_they_are(score):
    model = learner(score=score)
    model.model.unused = torch.nn.Parameter(torch.ones(2))
    agents = SMALL([WORLDS["pendulum"]] * 2, torch.tensor([3, 4]))
    agents.update((partial(critics_own, agents), 1.0))
    gradients = dict(zip((name for name, _ in model.named_parameters()), model._taught(agents)[1], strict=True))
    assert not gradients.pop("model.unused").any()
    assert any(g.any() for g in gradients.values())


def test_two_processes_train_as_one(tmp_path):
    one, two = (learner(score="improvement", step=small()) for _ in range(2))
    trained(one, tmp_path, 5)
    trained(two, tmp_path, 5, world=2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-5, atol=1e-5)


def test_rivals_keep_adam():
    model = learner(score="improvement", step=stepping().float())
    batch = next(iter(ControlTasks(test_agents=2, batch_size=2).test_dataloader()["test"]))
    assert model.live(batch, "critic")[0].step is None
    assert model.live(batch)[0].step is model.step


@pytest.mark.parametrize("score", ["agreement", "action_agreement"])
def test_scores_that_see_no_step_are_refused(score):
    with pytest.raises(ValueError, match=f"from the score 'improvement' alone, got '{score}'"):
        learner(score=score, step=LearnedStep())
    with pytest.raises(ValueError, match="`hidden_size` must be a whole number of at least 1, got 0"):
        LearnedStep(0)
