"""A test that was killed goes on with the lives that it kept, and gives what it would have given."""

import importlib
import sys
from functools import partial

import lightning as L
import pytest
import torch

from algornn import MetaGenRL
from algornn.datamodules import ControlTasks
from algornn.meta import Agents, LearnedObjective, Pendulum, PointMass
from algornn.meta.kept_lives import KeptLives
from algornn.meta.policy_rules import critics_own

WORLDS = {name: partial(PointMass, length=10) for name in ("point_mass", "reacher", "cart_pole")}
WORLDS["pendulum"] = partial(Pendulum, length=10)
SMALL = partial(Agents, hidden_sizes=(8,), segments=(4, 5), every=2, random=1)


def scores_of(path, seed=0, lifetime=6, processes=1):
    """The returns of a test, from which nothing but `path` goes on to the next."""
    torch.manual_seed(seed)
    model = MetaGenRL(LearnedObjective(units=8, features=4), WORLDS, SMALL, lifetime=lifetime, rivals=["critic"])
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=path,
        devices=processes, strategy="ddp_fork" if processes > 1 else "auto",
    )  # fmt: skip
    trainer.test(model, ControlTasks(batch_size=6, agents=6, test_agents=1), verbose=False)
    return {name: result["return"] for name, result in model.results.items()}


@pytest.fixture
def updates(monkeypatch):
    """How many updates there were, and after how many there shall be no more."""
    monkeypatch.setattr("algornn.meta.kept_lives._EVERY", 0.0)
    counts, update = {"done": 0, "last": None}, Agents.update

    def counted(self, *rules, **settings):
        if counts["done"] == counts["last"]:
            raise KeyboardInterrupt
        counts["done"] += 1
        return update(self, *rules, **settings)

    monkeypatch.setattr(Agents, "update", counted)
    return counts


def test_a_killed_test_goes_on_where_it_was(tmp_path, updates):
    wanted = scores_of(tmp_path / "whole")
    whole = updates["done"]
    assert whole == 6 * len(wanted)
    assert not (tmp_path / "whole" / "lives").exists()
    for last in (4, 9, whole - 1):  # in the first life, in the second, and in the last
        updates.update(done=0, last=last)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            scores_of(tmp_path / "killed")
        assert list((tmp_path / "killed" / "lives").glob("*.ckpt"))
        updates.update(done=0, last=None)
        assert scores_of(tmp_path / "killed") == wanted
        assert updates["done"] == whole - last
        assert not (tmp_path / "killed" / "lives").exists()


@pytest.mark.parametrize(("other", "rule_alone"), [({"lifetime": 8}, False), ({"seed": 1}, True)])
def test_a_test_of_something_else_begins_with_its_own_lives(tmp_path, updates, other, rule_alone):
    """Other weights of the objective make no difference to who follows a critic."""
    wanted = scores_of(tmp_path / "whole", **other)
    updates.update(done=0, last=11)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        scores_of(tmp_path / "killed")
    updates.update(done=0, last=None)
    assert scores_of(tmp_path / "killed", **other) == wanted
    assert updates["done"] == other.get("lifetime", 6) * len(wanted) - (5 if rule_alone else 0)
    assert len(list((tmp_path / "killed" / "lives").glob("*.ckpt"))) == (1 if rule_alone else 2)


def test_what_is_over_soon_is_not_written(tmp_path):
    agents = SMALL([WORLDS["pendulum"]], torch.tensor([3]))
    lives = KeptLives(tmp_path / "lives")
    for _ in lives.updates(agents, 4, [], critics_own):
        agents.update((partial(critics_own, agents), 1.0))
    assert agents.time == 4
    assert not lives.folder.exists()


def test_two_processes_may_keep_the_same_life(tmp_path, updates, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(KeptLives, "forget", lambda self: None)
        scores_of(tmp_path, processes=2)  # there is one agent in the test, so both have it
    kept = list((tmp_path / "lives").iterdir())
    assert {file.suffix for file in kept} == {".ckpt"}
    ages = [torch.load(file, weights_only=True)["time"].unique().tolist() for file in kept]
    assert ages == [[6]] * len(kept)
    scores_of(tmp_path, processes=2)
    assert not (tmp_path / "lives").exists()


def kept(folder, world, rule=critics_own, **settings):
    """Keep the first update of a life."""
    agents, lives = SMALL([world], torch.tensor([3]), **settings), KeptLives(folder)
    updates = lives.updates(agents, 4, [], rule)
    next(updates)
    agents.update((partial(critics_own, agents), 1.0))
    next(updates)
    return agents, lives


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr("algornn.meta.kept_lives._EVERY", 0.0)


def test_lives_depend_on_what_worlds_and_agents_are_made_of(tmp_path, always):
    pendulum = partial(Pendulum, length=10)
    for world, settings in (
        (pendulum, {}),
        (partial(Pendulum, length=11), {}),
        (pendulum, {"gamma": 0.5}),
        (pendulum, {}),
    ):
        agents, _ = kept(tmp_path / "lives", world, **settings)
    assert len(list((tmp_path / "lives").iterdir())) == 3
    assert agents.time == 2


def test_a_rule_that_was_mended_begins_anew(tmp_path, always, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for body, name in (("return 0", "first"), ("return 1", "second"), ("return 0", "third")):
        (tmp_path / "own_rules.py").write_text(f"def rule(agents, w, segments):\n    {body}\n")
        monkeypatch.delitem(sys.modules, "own_rules", raising=False)
        agents, _ = kept(tmp_path / "lives", WORLDS["pendulum"], importlib.import_module("own_rules").rule)
        assert agents.time == (2 if name == "third" else 1)


def test_a_file_has_no_room_that_is_empty_and_another_of_the_same_life_does_no_harm(tmp_path, always):
    agents, lives = kept(tmp_path, WORLDS["pendulum"])
    kept(tmp_path, WORLDS["pendulum"])
    (file,) = tmp_path.glob("*.ckpt")
    stored = sum(x.nbytes for x in agents.state_dict().values())
    assert file.stat().st_size < 2 * stored + 50_000 < agents.replay.stored.observation.nbytes
    (tmp_path / f"{file.stem}.7.part").touch()  # of a process that was killed while it wrote
    lives.forget()
    assert not tmp_path.exists()


def test_a_damaged_file_and_a_place_that_cannot_be_written_are_told(tmp_path, always):
    kept(tmp_path, WORLDS["pendulum"])
    (file,) = tmp_path.glob("*.ckpt")
    file.write_bytes(b"half")
    with pytest.warns(UserWarning, match="is damaged: these agents begin anew"):
        agents, _ = kept(tmp_path, WORLDS["pendulum"])
    assert agents.time == 1
    (tmp_path / "taken").touch()
    with pytest.warns(UserWarning, match="cannot be kept in .*taken"):
        kept(tmp_path / "taken", WORLDS["pendulum"])
