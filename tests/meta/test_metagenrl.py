"""MetaGenRL: what a step does, kill and resume, two processes, fresh agents, and its place in the command line."""

import importlib
import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

import algornn
from algornn import MetaGenRL, cli
from algornn.datamodules import ControlTasks
from algornn.meta import (
    Agents,
    LearnedObjective,
    LearnedStep,
    OriginalAgents,
    Pendulum,
    PointMass,
    PredictingAgents,
    PredictingObjective,
    Reacher,
    SharingAgents,
)
from algornn.meta.metagenrl import mean_of_clipped
from algornn.meta.policy_rules import critics_own

WORLDS = {
    "point_mass": partial(PointMass, length=10),
    "reacher": partial(Reacher, length=12),
    "cart_pole": partial(PointMass, length=10),
    "pendulum": partial(Pendulum, length=10),
}
SMALL = partial(Agents, hidden_sizes=(8,), segments=(4, 5), every=2, random=1)


def learner(**settings):
    torch.manual_seed(0)
    model = LearnedObjective(units=8, features=4, advantages=True)
    adam = partial(torch.optim.Adam, lr=1e-2)
    return MetaGenRL(model, WORLDS, SMALL, adam, **{"lifetime": 6, "warmup": 3} | settings)


def trained(model, path, steps, world=1, resume=None, number=6, precision=None):
    data = ControlTasks(batch_size=number // world, agents=number, test_agents=2)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", devices=world, strategy="ddp_spawn" if world > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=path,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0, precision=precision,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=resume, weights_only=False if resume else None)
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("score", ["agreement", "action_agreement", "improvement"])
def test_a_step_moves_the_objective_and_the_agents(score, tmp_path):
    model = learner(score=score)
    before = weights(model)
    trained(model, tmp_path, 1)
    assert model.population.time == 1
    moved = (weights(model) - before).abs()
    assert 0 < moved.max() <= 1.01e-2  # a first step of Adam
    trained(model, tmp_path, 3)
    assert weights(model).isfinite().all()


def tensors(held, seen):
    """All tensors in attributes, lists and dictionaries, at any depth."""
    if id(held) in seen:
        return
    seen[id(held)] = held
    if isinstance(held, torch.Tensor):
        yield held
    inside = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ()
    for part in [*inside, *getattr(held, "__dict__", {}).values()]:
        yield from tensors(part, seen)


@pytest.mark.parametrize(("score", "step"), [("agreement", None), ("improvement", LearnedStep)])
def test_no_graph_goes_on_to_the_next_step(score, step, tmp_path):
    model = learner(score=score, step=step and step())
    trained(model, tmp_path, 4)
    held = list(tensors(model.population, {}))
    assert sum(t.numel() for t in held) > 1000
    assert not [t.shape for t in held if t.grad_fn is not None]


def test_gradients_are_clipped_for_every_agent_before_the_mean():
    gradients = [torch.tensor([[1e-3, 0.0], [50.0, 0.0]]), torch.tensor([[[0.0, 2e-3]], [[0.0, 0.0]]])]
    found = mean_of_clipped(gradients)
    torch.testing.assert_close(found[0], torch.tensor([1e-3 + 1, 0]) / 2)
    torch.testing.assert_close(found[1], torch.tensor([[0, 2e-3]]) / 2)


@pytest.mark.parametrize("kind", ["objective", "step", "predictions"])
def test_the_gradients_of_all_agents_are_those_of_each_alone(kind):
    agents = SMALL([*WORLDS.values()], torch.arange(4))
    model = learner(score="improvement", step=LearnedStep(4) if kind == "step" else None)
    if kind == "predictions":
        model.model = PredictingObjective(3, units=8, features=4)
        agents = PredictingAgents([*WORLDS.values()], torch.arange(4), predictions=3, **SMALL.keywords)
    for _ in range(4):
        agents.update((partial(critics_own, agents), 1.0))
    agents.step = model.step
    for p in model.step.parameters() if model.step is not None else []:
        p.data.normal_(0, 0.1)  # at first its last layer is 0
    scores, found = model._taught(agents)
    alone = model._scores(agents)
    torch.testing.assert_close(scores, alone)
    each = [torch.autograd.grad(-alone[n], list(model.parameters()), retain_graph=True) for n in range(4)]
    wanted = mean_of_clipped([torch.stack(parts) for parts in zip(*each, strict=True)])
    assert min(float(g.abs().max()) for g in wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_agents_begin_anew_at_their_age_and_anchors_follow_their_critic(tmp_path):
    model = learner()
    trained(model, tmp_path, 14)
    agents = model.population
    assert (agents.age <= model._ends(agents.seed) + agents.every).all()
    assert (agents.age < 14).any()
    share = learner()
    share.ids, share.homes, share.warmup = torch.arange(24), [*"abcd"], 0
    share._trainer = None
    share.__class__ = type("At", (MetaGenRL,), {"global_step": 1})
    assert share._share().view(6, 4).tolist() == [[1.0] * 4, [0.0] * 4] * 3  # half of the agents in every world
    share.ids, share.homes, share.anchors = torch.arange(12), [*"ab"], 1 / 3
    assert (share._share() == 0).tolist() == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2


def test_killed_and_resumed_it_goes_on_as_it_would_have(tmp_path):
    whole = learner()
    trained(whole, tmp_path, 9)
    first = learner()
    trained(first, tmp_path, 4).save_checkpoint(tmp_path / "at4.ckpt")
    resumed = learner()
    trained(resumed, tmp_path, 9, resume=tmp_path / "at4.ckpt")
    assert torch.equal(weights(resumed), weights(whole))
    for name, x in whole.population.state_dict().items():
        assert torch.equal(resumed.population.state_dict()[name], x), name


def test_two_processes_train_as_one(tmp_path):
    one, two = learner(), learner()
    trained(one, tmp_path, 5)
    trained(two, tmp_path, 5, world=2)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-6, atol=1e-6)


def test_other_agents_in_a_batch_are_refused(tmp_path):
    model = learner()
    trained(model, tmp_path, 1)
    batch = next(iter(ControlTasks(agents=4, batch_size=4).train_dataloader()))
    with pytest.raises(ValueError, match=r"the same agents in every batch.*Set data.batch_size"):
        model._living(batch)
    with pytest.raises(ValueError, match="`worlds` has only point_mass"):
        learner()._born(batch._replace(world=("moon",) * 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lifetime": 0}, "`lifetime` must be at least 1, got 0"),
        ({"lifetime": 2.5}, "`lifetime` must be a whole number"),
        ({"warmup": -1}, "`warmup` must be at least 0"),
        ({"anchors": 1.5}, "`anchors` must be a share"),
        ({"rivals": "critic"}, r"`rivals` is a list of rules, got 'critic': write \[critic\]"),
        ({"score": "luck"}, "'agreement', 'action_agreement', 'improvement', got 'luck'"),
        ({"rivals": ("ppo2",)}, "among 'reinforce', 'reinforce_corrected', .*, got 'ppo2'"),
        ({"rivals": ("math.tau",)}, "or a function of your own as module.function, got 'math.tau'"),
        (
            {"rivals": ("ppo", "algornn.meta.policy_rules.ppo")},
            "`rivals` need names that tell them apart, got ppo, algo",
        ),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        learner(**settings)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"number": 9}, "The checkpoint has 6 agents, the data have 9"),
        ({"hidden_sizes": (16,)}, "agents of another kind or size, whose .* differs"),
        ({"kind": SharingAgents}, "agents of another kind or size, whose episodes differs"),
    ],
)
def test_a_checkpoint_of_other_agents_is_refused(others, message, tmp_path):
    model = learner()
    trained(model, tmp_path, 3).save_checkpoint(tmp_path / "three.ckpt")
    other = learner()
    settings = SMALL.keywords | {name: x for name, x in others.items() if name == "hidden_sizes"}
    other.agents = partial(others.get("kind", Agents), **settings)
    with pytest.raises(ValueError, match=message):
        trained(other, tmp_path, 5, resume=tmp_path / "three.ckpt", number=others.get("number", 6))


def test_a_diverged_agent_stops_neither_the_objective_nor_the_count_of_steps(tmp_path):
    model = learner(lifetime=1000)
    trained(model, tmp_path, 3)
    for x in model.population.target_u.values():
        x[0] = torch.nan
    before = weights(model)
    trainer = trained(model, tmp_path, 8)
    assert trainer.global_step == 8
    assert model.population.time == 3 + 8  # no step was taken twice
    assert model.population.finite().all()
    assert not torch.equal(weights(model), before)


def test_doubles_train_and_are_scored(tmp_path):
    model = learner()
    trainer = trained(model, tmp_path, 2, precision="64-true")
    assert weights(model).dtype == torch.float64
    assert weights(model).isfinite().all()
    trainer.test(model, ControlTasks(batch_size=2, test_agents=2), verbose=False)
    assert model.results["test"]["examples"] == 2


def test_logs_are_of_the_agents_of_all_processes(tmp_path, monkeypatch):
    model = learner()
    trained(model, tmp_path, 1)
    logged = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    other = torch.tensor([30.0, 3.0])  # what the other process has of every world: a sum, and of how many agents
    reduced = lambda x, reduce_op: x + (other if x.dim() else 1)  # noqa: E731
    monkeypatch.setattr(model.trainer.strategy, "reduce", reduced)
    batch = next(iter(ControlTasks(agents=6, batch_size=6).train_dataloader()))
    model._log_agents(batch._replace(world=("reacher",) * 6), torch.arange(6.0), model.population)
    assert logged["train/return/reacher"] == pytest.approx(45 / 9)
    assert logged["train/return/point_mass"] == 10  # of a world that this process has not
    assert logged["train/agents/unsound"] == 1


def test_rivals_live_the_same_lives_and_the_objective_stays_as_it_is():
    model = learner()
    batch = next(iter(ControlTasks(test_agents=2, batch_size=2).test_dataloader()["test"]))
    before = weights(model)
    with torch.inference_mode():
        (found,) = model.scored(batch, "critic")
    agents = SMALL([WORLDS["pendulum"]] * 2, batch.seed)
    for _ in range(6):
        agents.update((partial(critics_own, agents), 1.0))
    expected = agents.collect(16, explore=False).reward.sum(-1).mean(-1)
    torch.testing.assert_close(found[1], expected)
    assert torch.equal(weights(model), before)
    (mine,) = model.scored(batch)
    assert not torch.allclose(mine[1], found[1])


def test_a_plain_loader_is_the_test(tmp_path):
    model = learner(rivals=("critic",))
    loader = ControlTasks(test_agents=2, batch_size=2).test_dataloader()["test"]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.test(model, loader, verbose=False)
    assert set(model.results) == {"test", "test_critic"}


def test_scaled_losses_are_refused():
    model = learner()
    model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(ValueError, match=r"does not train in 16-mixed, .* choose 32-true or bf16-mixed"):
        model.on_fit_start()
    model._trainer.precision = "bf16-true"
    with pytest.raises(ValueError, match="does not train in bf16-true: choose 32-true or bf16-mixed"):
        model.on_fit_start()


def test_agents_of_a_checkpoint_that_lived_elsewhere_are_refused(tmp_path):
    other = learner()
    other.agents = partial(OriginalAgents, **SMALL.keywords)
    trained(learner(), tmp_path, 3).save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"Agent 0 of the checkpoint is one of Agents in point_mass, here .* of OriginalAgents in"
    ):
        trained(other, tmp_path, 5, resume=tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=False)
    ids, homes, state = saved["agents"][0]
    saved["agents"] = [(ids, [home.replace("reacher", "swamp") for home in homes], state)]
    torch.save(saved, tmp_path / "moved.ckpt")
    with pytest.raises(
        ValueError, match="Agent 1 of the checkpoint is one of Agents in swamp, here it is one of Agents in reacher"
    ):
        trained(learner(), tmp_path, 5, resume=tmp_path / "moved.ckpt")
    for unknown in ("replay.room", "steps_lived"):
        saved["agents"] = [(ids, {name: x for name, x in state.items() if name != unknown})]
        torch.save(saved, tmp_path / "old.ckpt")
        with pytest.raises(ValueError, match=r"of an older algornn, .*: go on with it, or start anew"):
            trained(learner(), tmp_path, 5, resume=tmp_path / "old.ckpt")


class Own(LearnedObjective):
    """An objective with chance in it, and a branch where it is told."""

    branch = False

    def forward(self, p, *others):
        y = super().forward(torch.nn.functional.dropout(p, 0.1), *others)
        return y if not self.branch or y.isfinite().all() else 0 * y


def test_an_objective_of_ones_own_may_have_chance_and_frozen_weights_but_no_branch_by_its_data(tmp_path):
    model = learner(score="improvement")
    model.model = Own(units=8, features=4)
    frozen = model.model.gates.weight.requires_grad_(False)
    before, kept = weights(model), frozen.clone()
    trained(model, tmp_path, 2)
    assert not torch.equal(weights(model), before)
    assert torch.equal(frozen, kept)
    model.model.branch = True
    with pytest.raises(ValueError, match=r"Own is called for every agent apart, under vmap: .*data-dependent"):
        model._taught(model.population)


def test_a_world_of_the_test_that_nobody_makes_is_told_before_training(tmp_path):
    model = learner()
    del model.worlds["pendulum"]  # which is held out
    with pytest.raises(ValueError, match="The data have the world 'pendulum', `worlds` has only point_mass"):
        trained(model, tmp_path, 1)
    assert model.population is None


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"A rule must be among 'reinforce', .*, got 'luck'"):
        learner().rule(None, "luck")
    with pytest.raises(
        ValueError, match=r"'my_rules.luck' is not there: give the working folder a module my_rules with luck"
    ):
        learner(rivals=("my_rules.luck",))


def test_a_rule_whose_module_has_an_error_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_rules.py").write_text("import no_such_thing\n")
    with pytest.raises(ValueError, match=r"'broken_rules.mine' cannot be imported: .*no_such_thing"):
        learner(rivals=("broken_rules.mine",))


def documented(word):
    """The Python block of the documentation that holds a word."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block)


def test_a_world_and_a_split_of_the_documentation_and_agents_that_learn_there_by_hand(tmp_path, monkeypatch, capsys):
    file, by_hand = documented("class Driving"), documented("update((rule")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "driving.py").write_text(file)
    driving = importlib.import_module("driving")
    batch = next(iter(driving.Driving(split="car", agents=2, batch_size=2).train_dataloader()))
    assert set(batch.world) == {"point_mass", "pendulum"}
    model = learner(lifetime=4)
    model.worlds["car"] = driving.Car
    monkeypatch.setattr(algornn, "load", lambda run: model)
    exec(compile(by_hand.replace("range(400)", "range(4)"), "models.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 2
    # A car that is pushed towards 0 comes nearer.
    car = driving.Car(type("Batch", (), {"seed": torch.arange(64)}))
    rewards = torch.stack([car.step(-car.observe().sum(1, keepdim=True)) for _ in range(car.length)])
    assert rewards[-1].mean() > rewards[0].mean() + 0.2


def test_a_recipe_trains_tests_and_reports_returns(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_rules.py").write_text(documented("def cautious"))
    run = tmp_path / "run"
    small = ["--data.init_args.agents", "3", "--data.init_args.batch_size", "3", "--data.init_args.test_agents", "1"]
    small += ["--data.init_args.seen_agents", "1", "--model.init_args.rivals", "[reinforce, my_rules.cautious]"]
    small += ["--model.init_args.lifetime", "3", "--trainer.max_steps", "3", "--trainer.val_check_interval", "3"]
    small += ["--trainer.log_every_n_steps", "1"]
    small += ["--model.init_args.agents.init_args.hidden_sizes", "[8]"]
    assert cli.main(["fit", "--config", "metagenrl_pendulum", *small, "--run_dir", str(run)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\| return +\| +cart_pole \| +pendulum \| +point_mass \| +reacher \|", told)
    assert re.search(r"\| test_reinforce \(OOD\) \| +- \| +-\d[\d.,]* \| +- \| +- \|", told)
    assert "seen_cautious: 3 agents learn by the rule 'my_rules.cautious', 3 updates" in told
    stages = json.loads((run / "metrics.json").read_text())["stages"]
    assert {name: (stage["ood"], stage["examples"]) for name, stage in stages.items()} == {
        "test": (True, 1), "test_reinforce": (True, 1), "test_cautious": (True, 1),
        "seen": (False, 3), "seen_reinforce": (False, 3), "seen_cautious": (False, 3),
    }  # fmt: skip
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report/train_returns.png").is_file()
    assert cli.main(["fit", "--config", "metagenrl_pendulum", *small, "--run_dir", str(tmp_path / "other"),
                     "--data.init_args.batch_size", "2"]) == 2  # fmt: skip
    assert "with 3 agents and 1 processes set batch_size to 3, not 2" in capsys.readouterr().err
