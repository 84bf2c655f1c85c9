"""ActorCritic: the loss against its equation, what it learns, processes, and its place in the command line."""

import json
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from algornn import LSTM, ActorCritic, FastWeightMemory, GraphWorld, MemoryAugmentedLSTM, RecurrentAgent, cli
from algornn.datamodules import GraphNavigation
from algornn.meta import BanditWorld, Pendulum
from algornn.meta.actor_critic import EpisodeReturns, discounted


def agent(layer=None):
    torch.manual_seed(0)
    return RecurrentAgent(17, 3, layer or partial(LSTM, hidden_size=8))


def batch(n=6):
    return next(iter(GraphNavigation(batch_size=n, size=n, episodes=1).train_dataloader()))


def published_agent():
    memory = partial(FastWeightMemory, entity_size=16, role_size=16, tanh_roles=False, residual=True)
    return agent(partial(MemoryAugmentedLSTM, hidden_size=32, memory=memory, forget_bias=None))


def test_parameters_are_those_of_the_published_agents():
    assert sum(p.numel() for p in published_agent().parameters()) == 10_933
    assert sum(p.numel() for p in agent(partial(LSTM, hidden_size=512)).parameters()) == 1_089_540


def test_the_loss_is_that_of_the_equation():
    model, b = agent(), batch()
    learner = ActorCritic(model, GraphWorld, gamma=0.9, value_weight=0.1, entropy_weight=0.03)
    episodes = learner.act(model, b)
    logits, values, _ = model(episodes.observation)
    total = 0.0
    for e in range(6):
        for t in range(30):
            ahead = sum(0.9 ** (k - t) * episodes.reward[e, k] for k in range(t, 30))
            p = logits[e, t].softmax(-1)
            advantage = ahead - values[e, t]
            total = total - p[episodes.action[e, t]].log() * advantage.detach()
            total = total + 0.1 * advantage**2 + 0.03 * (p * p.log()).sum()
    loss = learner.episode_loss(model, episodes).mean()
    torch.testing.assert_close(loss, total / 180)
    torch.testing.assert_close(
        torch.autograd.grad(loss, list(model.parameters())), torch.autograd.grad(total / 180, list(model.parameters()))
    )


@pytest.mark.parametrize("make", [agent, published_agent])
def test_the_whole_episode_gives_what_the_steps_gave_and_acts_by_its_probabilities(make):
    model, b = make(), batch(200)
    learner = ActorCritic(model, GraphWorld)
    seen = []

    def recorded(x, state):
        seen.append(model(x, state))
        return seen[-1]

    episodes = learner.act(recorded, b)
    logits, values, _ = model(episodes.observation)
    torch.testing.assert_close(torch.cat([step[0] for step in seen], 1), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([step[1] for step in seen], 1), values, rtol=1e-4, atol=1e-5)
    expected = logits.softmax(-1).sum((0, 1))
    found = torch.nn.functional.one_hot(episodes.action, 3).sum((0, 1))
    assert float(((found - expected) / (6000 * 0.25) ** 0.5).abs().max()) < 4


def test_an_untrained_agent_has_the_published_return():
    learner = ActorCritic(published_agent(), GraphWorld)
    data = GraphNavigation(size=600, episodes=1)
    returns = learner.act(learner.model, next(iter(data.train_dataloader()))).reward.sum(1)
    assert float(returns.mean()) == pytest.approx(45.5, abs=4 * 20 / 600**0.5)  # released logs; 20 is their deviation


def test_the_agent_of_the_documentation_learns_to_learn_which_lever_pays():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    found = {}
    exec(compile(next(part for part in examples if "Lever" in part), str(page), "exec"), found)
    assert isinstance(found["learner"], ActorCritic)
    torch.manual_seed(0)
    learner = ActorCritic(RecurrentAgent(3, 2, partial(LSTM, hidden_size=16)), found["Lever"], gamma=0.5)
    optimizer = torch.optim.Adam(learner.parameters(), 2e-2)
    seeds = type("Batch", (), {"seed": torch.arange(128)})
    for step in range(60):
        seeds.seed = torch.arange(128) + 128 * step
        optimizer.zero_grad()
        learner.loss(learner.model, seeds).backward()
        optimizer.step()
    reward = learner.act(learner.model, seeds).reward.mean(0)
    assert reward[1:].min() > 0.9  # known from the second pull on
    assert reward[0] < 0.7  # by chance


def test_discounted_sums():
    reward = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 0.0]])
    assert discounted(reward, 0.5).tolist() == [[1.5, 1.0, 2.0], [2.0, 4.0, 0.0]]


def test_a_repeated_episode_counts_once_and_groups_stand_apart():
    scores = EpisodeReturns(4, ("a", "b"))
    scores.update(torch.tensor([0, 1, 1]), *(torch.tensor([2.0, 4.0, 4.0]),) * 2, torch.tensor([0, 1, 1]))
    scores.update(torch.tensor([0]), torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([0]))
    assert {k: float(v) for k, v in scores.compute().items()} == {
        "loss": 3.0, "return": 3.0, "return_error": 1.0, "examples": 2,
        "a/return": 2.0, "a/return_error": 0.0, "a/examples": 1,
        "b/return": 4.0, "b/return_error": 0.0, "b/examples": 1,
    }  # fmt: skip


def test_a_return_that_is_not_a_number_is_not_left_out():
    scores = EpisodeReturns(3, ("a",))
    scores.update(torch.tensor([0, 2]), torch.tensor([1.0, torch.nan]), torch.zeros(2), torch.zeros(2).long())
    found = scores.compute()
    assert found["examples"] == 2
    assert found["return"].isnan()


def test_doubles_are_scored():
    scores = EpisodeReturns(2)
    scores.update(torch.arange(2), torch.tensor([1.0, 2.0]).double(), torch.zeros(2).double(), torch.zeros(2).long())
    assert scores.compute()["return"] == 1.5


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`gamma` is a discount, expected 0 to 1, got 1\.5"):
        ActorCritic(agent(), GraphWorld, gamma=1.5)
    with pytest.raises(TypeError, match="`layer` must be a class or a function of the width"):
        RecurrentAgent(17, 3, nn.LSTM(17, 8))


def weights_after(world, tmp_path, rank_batch):
    L.seed_everything(1, verbose=False)
    data = GraphNavigation(batch_size=rank_batch, size=12, episodes=2, test_episodes=1)
    learner = ActorCritic(agent(), GraphWorld)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", devices=world, strategy="ddp_spawn" if world > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, data)
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def test_the_learning_rate_falls_over_the_cooldown(tmp_path):
    rates = []
    note = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    trainer = L.Trainer(
        max_steps=8, accelerator="cpu", logger=False, callbacks=[note], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    learner = ActorCritic(agent(), GraphWorld, partial(torch.optim.Adam, lr=1.0), cooldown=0.5)
    trainer.fit(learner, GraphNavigation(batch_size=4, size=4, episodes=8))
    assert rates == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_two_processes_train_as_one(tmp_path):
    one, two = weights_after(1, tmp_path, 12), weights_after(2, tmp_path, 6)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


def test_a_recipe_trains_tests_and_reports_returns(tmp_path, capsys):
    run = tmp_path / "run"
    sizes = ["--data.init_args.size", "8", "--data.init_args.batch_size", "8", "--data.init_args.test_episodes", "1"]
    settings = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    settings += ["--trainer.enable_progress_bar", "false", "--run_dir", str(run)]
    assert cli.main(["fit", "--config", "graph_navigation_fwm", *sizes, *settings]) == 0
    assert "test (OOD) return" in capsys.readouterr().out
    stages = json.loads((run / "metrics.json").read_text())["stages"]
    assert {name: (stage["ood"], stage["examples"]) for name, stage in stages.items()} == {
        "test": (True, 8), "seen": (False, 8),
    }  # fmt: skip
    assert cli.main(["report", str(run)]) == 0
    assert "graph_navigation_fwm: test, return" in capsys.readouterr().out
    page = (run / "report" / "report.html").read_text()
    assert "Mean return of the validation episodes in unseen worlds" in page
    assert "return," in (run / "report" / "report.csv").read_text()


def test_an_agent_of_doubles_sees_doubles():
    learner = ActorCritic(RecurrentAgent(7, 3, lambda width: LSTM(width, 4)).double(), partial(BanditWorld, length=2))
    batch = SimpleNamespace(probability=torch.rand(5, 3), seed=torch.arange(5))
    assert learner.act(learner, batch).observation.dtype == torch.float64


@pytest.mark.parametrize("name", ["value_weight", "entropy_weight"])
@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_weights_of_the_loss_that_are_no_weights_are_refused(name, weight):
    with pytest.raises(ValueError, match=f"`{name}` must be a number of at least 0"):
        ActorCritic(RecurrentAgent(7, 3, lambda width: LSTM(width, 4)), BanditWorld, **{name: weight})


@pytest.mark.parametrize("world", [BanditWorld, GraphWorld, Pendulum])
def test_episodes_without_a_step_are_refused(world):
    batch = SimpleNamespace(probability=torch.rand(5, 3), edges=torch.zeros(5, 4, 3).long(), seed=torch.arange(5))
    with pytest.raises(ValueError, match="`length` must be at least 1, got 0"):
        world(batch, length=0)
