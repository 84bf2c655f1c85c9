"""Control tasks: who lives where, what is held out, and the same agents in every batch."""

from typing import ClassVar

import pytest
import torch

from algornn.datamodules import ControlTasks


def worlds(data, stage):
    return [example.source[0] for example in data.examples(stage)]


@pytest.mark.parametrize("split", ControlTasks.splits)
def test_the_world_of_the_test_is_in_no_other_stage(split):
    data = ControlTasks(split, test_agents=2)
    assert set(worlds(data, "test")) == {split}
    for stage in ("train", "val", "seen"):
        assert split not in worlds(data, stage)
        assert set(worlds(data, stage)) == set(data.trained)
    assert set(data.groups) == {*data.trained, split}
    assert data.ood == ("test",)


def test_agents_are_dealt_to_worlds_in_turn_with_seeds_of_their_own():
    data = ControlTasks("reacher", agents=6, batch_size=6)
    batch = next(iter(data.train_dataloader()))
    assert batch.world == ("point_mass", "pendulum", "cart_pole") * 2
    assert batch.id.tolist() == list(range(6))
    seeds = {example.source[1] for stage in ("val", "seen", "test") for example in data.examples(stage)}
    seeds |= {str(seed) for seed in batch.seed.tolist()}
    assert len(seeds) == 6 + 15 + 15 + 5
    assert [data.groups[g] for g in batch.group] == list(batch.world)
    few = ControlTasks("reacher", test_agents=4, seen_agents=1)
    assert [len(few.examples(stage)) for stage in ("val", "seen", "test")] == [3, 3, 4]
    other = next(iter(ControlTasks("reacher", agents=6, batch_size=6, seed=1).train_dataloader()))
    assert not torch.equal(other.seed, batch.seed)


def test_every_batch_has_the_same_agents_and_resumes():
    data = ControlTasks(agents=4, batch_size=4)
    loader = data.train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(3), strict=False)]
    assert all(torch.equal(batch.seed, batches[0].seed) for batch in batches)
    assert loader.state_dict()["batch"] >= 3
    assert len(loader) == 1000


def test_agents_that_the_processes_cannot_share_out_are_refused(monkeypatch):
    data = ControlTasks(agents=12)
    monkeypatch.setattr(data, "_place", lambda: (0, 5))
    with pytest.raises(ValueError, match="12 agents cannot be shared out evenly to 5 processes"):
        data.train_dataloader()


def test_every_process_has_agents_in_all_worlds(monkeypatch):
    data, found = ControlTasks("hopper", agents=8, batch_size=4), []  # two worlds, two processes
    for rank in range(2):
        monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, 2))
        batches = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
        assert all(set(batch.world) == {"lunar_lander", "half_cheetah"} for batch in batches)
        found.append([batch.id.tolist() for batch in batches])
    assert found == [[[0, 1, 2, 3]] * 3, [[4, 5, 6, 7]] * 3]
    few = ControlTasks(agents=4, batch_size=2)
    monkeypatch.setattr(few, "_place", lambda: (0, 2))
    with pytest.raises(ValueError, match="needs agents in all 3 worlds, 4 agents make 2 for each of 2 processes"):
        few.train_dataloader()


def test_batches_that_do_not_share_out_the_agents_are_refused():
    with pytest.raises(ValueError, match="with 12 agents and 1 processes set batch_size to 12, not 5"):
        ControlTasks(batch_size=5).train_dataloader()
    with pytest.raises(ValueError, match="agents must be at least 1"):
        ControlTasks(agents=0)


def test_a_subclass_has_splits_and_worlds_of_its_own():
    class Driving(ControlTasks):
        tasks: ClassVar = {"car": (("point_mass", "bicycle"), ("car",))}
        splits = tuple(tasks)

    data = Driving("car", test_agents=2)
    assert (data.trained, data.held_out) == (("point_mass", "bicycle"), ("car",))
    assert worlds(data, "test") == ["car", "car"]
    with pytest.raises(ValueError, match="'pendulum' is unknown"):
        Driving("pendulum")


@pytest.mark.parametrize("tasks", [(("car", "car"), ("reacher",)), (("car", "reacher"), ("car",))])
def test_a_world_named_twice_is_refused(tasks):
    kind = type("Twice", (ControlTasks,), {"tasks": {"car": tasks}, "splits": ("car",)})
    with pytest.raises(ValueError, match="`tasks` name every world once"):
        kind("car")
