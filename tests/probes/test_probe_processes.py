"""Probes under two gloo processes: same training, the numbers of one process, no process left waiting."""

import copy
import datetime
import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import CASES
from lightning.pytorch.strategies import DDPStrategy
from tiny_learner import Learner, MeanLoss, Recorder, loader, same, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from algornn.probes import Probe, ProbeResult, WeightMaskProbe
from algornn.probes.subject import ProbeError

# The same rows with all batches; `max_batches` is what the checks below vary.
KINDS = {kind: {key: x for key, x in row.items() if key != "max_batches"} for kind, row in CASES.items()}
KINDS[WeightMaskProbe] = {"steps": 3, "tasks": ["second", "third"]}


def fit(probes, root, recorder=None, **settings):
    """One epoch of 67 examples on both processes: an odd number, and no whole number of batches."""
    settings = {
        "devices": 2,
        "max_epochs": 1,
        "strategy": DDPStrategy(timeout=datetime.timedelta(seconds=60)),
        **settings,
    }
    return train(probes, root, recorder=recorder, **settings)


class Failing(Probe):
    """Fails on the second process alone, within `map` or outside of it."""

    def __init__(self, where):
        super().__init__(every_n_steps=2)
        self.where = where

    def measure(self, subject):
        def one(item, generator):
            if self.where == "map" and item == 1:
                raise ArithmeticError("in item 1")
            return item

        if self.where == "outside" and subject.rank == 1:
            raise ArithmeticError("before the map")
        subject.map(one, range(3))
        if self.where == "after" and subject.rank == 1:
            raise ArithmeticError("after the map")
        return ProbeResult()


class Greedy(MeanLoss):
    """Each process has another opinion of the budget; the first one's holds."""

    def _affordable(self):
        return dist.get_rank() == 0


def check_training(root):
    plain, probed = Recorder(), Recorder()
    fit([], root / "plain", plain)
    probes = [kind(every_n_steps=4, **settings) for kind, settings in KINDS.items()]
    _, trainer = fit(probes, root / "probed", probed)
    assert trainer.world_size == 2
    assert len(plain.snapshots) == trainer.global_step == 5
    assert all(same(a, b) for a, b in zip(plain.snapshots, probed.snapshots, strict=True))
    return [probe.state_dict()["runs"] for probe in probes]


def check_numbers(root):
    """31 examples: four batches of which the last is odd; one batch: the second process has nothing to do."""
    checked = []
    for max_batches in (1, 3, None):
        probes = [kind(max_batches=max_batches, every_n_steps=5, **settings) for kind, settings in KINDS.items()]
        learner, trainer = fit(probes, root / str(max_batches))
        for buffer in learner.buffers():  # after its last step each process has statistics of its own examples
            dist.broadcast(buffer, 0)
        for probe in probes:
            logged = probe.result.to_json()
            assert logged == probe.run(learner, loader(31, seed=1)).to_json()
            checked.append([probe.name, max_batches])
        ours = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("probe/")}
        everyone = [None, None]
        dist.all_gather_object(everyone, ours)
        assert len(ours) > 20
        assert str(everyone[0]) == str(everyone[1])
    return checked


def check_failures(root):
    messages, plain = [], Recorder()
    fit([], root / "plain", plain, max_steps=2)
    for where in ("map", "outside", "after"):
        recorder = Recorder()
        with pytest.raises(ProbeError) as caught:
            fit([Failing(where)], root / where, recorder)
        assert same(plain.snapshots[1], recorder.at_exception)
        messages.append(str(caught.value))
    return messages


def check_budget(root):
    probe = Greedy(every_n_steps=2)
    fit([probe], root)
    return probe.state_dict()["runs"]


def check_sharded(root):
    """A model dealt to both processes by FSDP2 gives the plain model's numbers, and trains on as if not probed."""
    torch.manual_seed(5)
    plain = Learner()
    twins = [copy.deepcopy(plain) for _ in range(2)]
    mesh = init_device_mesh("cpu", (2,))
    for twin in twins:
        fully_shard(twin.memory.key, mesh=mesh)
        fully_shard(twin.memory, mesh=mesh)
        fully_shard(twin, mesh=mesh)
    numbers = []
    batch = next(iter(loader(31)))
    for kind, settings in KINDS.items():
        expected = kind(**settings).run(plain, loader(31)).to_json()
        numbers.append(kind(**settings).run(twins[0], loader(31)).to_json() == expected)
    for twin in twins:
        torch.manual_seed(6)  # of the dropout
        for step in range(2):
            optimizer = torch.optim.SGD(twin.parameters(), 0.1)
            twin.loss(twin, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if twin is twins[0] and step == 0:
                MeanLoss().run(twin, loader(31))
    pairs = zip(twins[0].parameters(), twins[1].parameters(), strict=True)
    equal = [torch.equal(a.full_tensor(), b.full_tensor()) for a, b in pairs]  # collectives: no `all` that stops early
    return [*numbers, all(equal)]


def work(rank, root, port):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    root = Path(root)
    checks = {"training": check_training, "numbers": check_numbers, "failures": check_failures, "budget": check_budget,
              "sharded": check_sharded}  # fmt: skip
    report = {name: check(root / name) for name, check in checks.items()}
    (root / f"report-{rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Both processes' accounts of all checks; an assertion that fails in one of them is raised here."""
    root = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(root), port), nprocs=2)
    return root, [json.loads((root / f"report-{rank}.json").read_text()) for rank in range(2)]


def test_training_is_bit_identical_on_both_processes(reports):
    assert [report["training"] for report in reports[1]] == [[2] * len(KINDS)] * 2  # step 4 and the end


def test_two_processes_give_the_numbers_of_one(reports):
    expected = [[kind(**row).name, max_batches] for max_batches in (1, 3, None) for kind, row in KINDS.items()]
    assert [report["numbers"] for report in reports[1]] == [expected] * 2


def test_an_error_of_one_process_is_raised_on_both(reports):
    error = "The measurement failed on process 1: ArithmeticError: "
    for report in reports[1]:
        assert report["failures"] == [error + "in item 1", error + "before the map", error + "after the map"]


def test_the_first_process_decides_on_the_budget(reports):
    assert [report["budget"] for report in reports[1]] == [3, 3]  # steps 2 and 4, and the end


def test_a_sharded_model_is_probed_whole(reports):
    assert [report["sharded"] for report in reports[1]] == [[True] * (len(KINDS) + 1)] * 2


def test_artefacts_are_written_once(reports):
    root = reports[0]
    saved = sorted(path.name for path in (root / "training" / "probed" / "probes" / "mean_loss").iterdir())
    assert saved == ["step=4.json", "step=5.json"]
