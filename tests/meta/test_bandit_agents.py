"""Bandits: what arms pay, a rule that is the same for all of them, and the human-made one beside it."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from algornn import LSTM, ActorCritic, RecurrentAgent, Transformer, cli
from algornn.datamodules import Bandits
from algornn.meta import BanditWorld, SymmetricAgent, UpperConfidenceBound
from algornn.meta.actor_critic import discounted

A = 4


def bandits(B=6, seed=0):
    p = torch.rand(B, A, generator=torch.Generator().manual_seed(seed))
    p[:, 2] = -1  # no arm there
    return SimpleNamespace(probability=p, seed=torch.arange(B), id=torch.arange(B), group=torch.zeros(B).long())


def acted(agent, batch, length=7):
    torch.manual_seed(0)
    return ActorCritic(agent, partial(BanditWorld, length=length)).act(agent, batch)


def test_arms_pay_with_their_probabilities_and_empty_places_never():
    batch = bandits(1)
    batch = SimpleNamespace(probability=batch.probability.expand(20_000, A), seed=torch.arange(20_000))
    for arm in range(A):
        world = BanditWorld(batch, length=3)
        assert world.observe()[:, A:].eq(0).all()
        paid = world.step(torch.full((20_000,), arm))
        expected = float(batch.probability[0, arm].clamp(min=0))
        assert float(paid.mean()) == pytest.approx(expected, abs=0.015)
        seen = world.observe()
        assert seen.shape == (20_000, 2 * A + 1)
        assert seen[0, :A].tolist() == [1, 1, 0, 1]
        assert seen[:, A : 2 * A].argmax(1).eq(arm).all()
        assert torch.equal(seen[:, -1], paid)


def test_the_symmetric_agent_does_not_care_which_arm_is_which_nor_how_many_there_are():
    torch.manual_seed(0)
    agent, batch = SymmetricAgent(2 * A + 1, A), bandits()
    x = acted(agent, batch).observation
    logits, values, _ = agent(x)
    order = torch.tensor([3, 0, 2, 1])
    moved = torch.cat([x[..., order], x[..., A + order], x[..., -1:]], -1)
    other, same, _ = agent(moved)
    torch.testing.assert_close(other, logits[..., order])
    torch.testing.assert_close(same, values)
    wider = torch.cat([x[..., :A], x[..., :1] * 0, x[..., A : 2 * A], x[..., :1] * 0, x[..., -1:]], -1)
    wide = SymmetricAgent(2 * A + 3, A + 1)
    wide.load_state_dict(agent.state_dict())
    assert sum(p.numel() for p in wide.parameters()) == 2385  # VSML's, and the sharpness
    torch.testing.assert_close(wide(wider)[0][..., :A], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [SymmetricAgent, UpperConfidenceBound])
def test_step_by_step_is_the_whole(kind):
    torch.manual_seed(0)
    agent, batch = kind(2 * A + 1, A), bandits()
    episodes = acted(agent, batch)
    whole, values, _ = agent(episodes.observation)
    state, steps = None, []
    for t in range(7):
        logits, value, state = agent(episodes.observation[:, t : t + 1], state)
        steps.append((logits[:, 0], value[:, 0]))
    for found, wanted in zip(zip(*steps, strict=True), (whole, values), strict=True):
        torch.testing.assert_close(torch.stack(found, 1), wanted)
    loss = ActorCritic(agent, BanditWorld).episode_loss(agent, episodes).mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in agent.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", [SymmetricAgent, UpperConfidenceBound, partial(RecurrentAgent, layer=LSTM)])
def test_places_without_an_arm_are_not_pulled_and_the_loss_does_not_know_them(kind):
    torch.manual_seed(0)
    agent, batch, arms = kind(2 * A + 1, A), bandits(), [0, 1, 3]
    learner = ActorCritic(agent, BanditWorld, gamma=0.9, value_weight=0.1, entropy_weight=0.03)
    episodes = learner.act(agent, batch)
    assert set(episodes.action.unique().tolist()) == set(arms)
    logits, values, _ = agent(episodes.observation)
    policy = torch.distributions.Categorical(logits=logits[..., arms])
    advantage = discounted(episodes.reward, 0.9) - values
    chosen = policy.log_prob(episodes.action.clamp(max=2))
    loss = (0.1 * advantage**2 - chosen * advantage.detach() - 0.03 * policy.entropy()).mean(1)
    torch.testing.assert_close(learner.episode_loss(agent, episodes), loss)


def test_the_upper_confidence_bound_is_that_of_its_equation():
    agent = UpperConfidenceBound(2 * A + 1, A)
    pulled, paid = torch.tensor([3, 3, 0]), torch.tensor([1.0, 0.0, 1.0])
    rows = [torch.cat([torch.ones(A), torch.zeros(A + 1)])]
    rows += [torch.cat([torch.ones(A), torch.eye(A)[a], r[None]]) for a, r in zip(pulled, paid, strict=True)]
    logits = agent(torch.stack(rows)[None])[0][0, -1]
    n, r = torch.tensor([1.0, 0, 0, 2]), torch.tensor([1.0, 0, 0, 1])
    bound = (r + 0.5) / (n + 1) + 0.5 * (torch.log(torch.tensor(4.0)) / (n + 1)).sqrt()
    torch.testing.assert_close(logits, 10 * bound, rtol=1e-4, atol=1e-4)


def test_the_rule_learns_in_a_minute():
    torch.manual_seed(0)
    data = Bandits(batch_size=64, places=5, test_arms=(2,))
    learner = ActorCritic(UpperConfidenceBound(11, 5), BanditWorld, entropy_weight=0.0)
    optimizer, returns = torch.optim.Adam(learner.parameters(), 0.03), []
    for _, batch in zip(range(60), data.train_dataloader(), strict=False):
        episodes = learner.act(learner.model, batch)
        optimizer.zero_grad()
        learner.episode_loss(learner.model, episodes).mean().backward()
        optimizer.step()
        returns.append(float(episodes.reward.sum(1).mean()))
    assert sum(returns[:5]) / 5 < 36
    assert sum(returns[-10:]) / 10 > 36.5


@pytest.mark.parametrize("kind", [SymmetricAgent, UpperConfidenceBound])
def test_other_observations_are_refused(kind):
    with pytest.raises(ValueError, match="Observations of 4 arms have 9 numbers, got 7"):
        kind(7, 4)


@pytest.mark.parametrize("layer", [partial(Transformer, heads=3), partial(Transformer, heads=3, causal=True)])
def test_agents_that_cannot_go_step_by_step_are_refused(layer):
    with pytest.raises(ValueError, match="ActorCritic needs layers that read token by token, Transformer"):
        ActorCritic(RecurrentAgent(9, 4, layer), BanditWorld)


def test_recipes_train_and_test_by_number_of_arms(tmp_path, capsys):
    sizes = ["--data.init_args.batch_size", "4", "--data.init_args.test_examples", "12", "--trainer.max_steps", "2"]
    sizes += ["--trainer.val_check_interval", "1", "--trainer.enable_progress_bar", "false"]
    for recipe in ("bandits_symmetric", "bandits_lstm", "bandits_ucb"):
        run = tmp_path / recipe
        assert cli.main(["fit", "--config", recipe, "--run_dir", str(run), *sizes]) == 0
        stages = json.loads((run / "metrics.json").read_text())["stages"]
        assert stages["test"]["ood"]
        assert not stages["seen"]["ood"]
        assert {name: group["examples"] for name, group in stages["test"]["groups"].items()} == {
            "arms_2": 4, "arms_10": 4, "arms_20": 4,
        }  # fmt: skip


def test_a_recurrent_agent_learns_beside_it():
    data = Bandits(batch_size=8)
    agent = RecurrentAgent(data.input_size, data.output_size, partial(LSTM, hidden_size=8))
    assert ActorCritic(agent, BanditWorld).loss(agent, next(iter(data.train_dataloader()))).isfinite()
