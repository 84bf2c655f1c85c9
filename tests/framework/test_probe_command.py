"""`algornn probe`: the numbers of the training, of any model, and what it refuses."""

import json
import re
import sys
from typing import get_args, get_type_hints

import pytest
import torch
from tiny_runs import TINY

import algornn.probes
from algornn import cli
from algornn.probes import FastWeightProbe, Probe, ProbeResult

FOREIGN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

def data():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 5, 4, generator=g), torch.randint(0, 3, (16,), generator=g)) for _ in range(4)]

def loss(call, batch):
    return call(batch[0]).sum()

def needy(size):
    return Net()

def label(batch):
    return batch[1]

net = Net()
number = 3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe_command")
    (folder / "tiny.yaml").write_text(TINY)
    probes = ["--trainer.callbacks+=FastWeightProbe", "--trainer.callbacks.every_n_steps=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["fit", "--config", "tiny.yaml", "--run_dir", "run", *probes]) == 0
    return folder / "run"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "foreign_net.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    yield tmp_path
    sys.modules.pop("foreign_net", None)


def test_a_checkpoint_gives_the_numbers_of_the_training(run, tmp_path, capsys):
    command = ["probe", "--run_dir", str(run), "--ckpt_path", "last", "--probe", "FastWeightProbe"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "probes/fast_weight/step=60.json").read_text())
    trained = json.loads((run / "probes/fast_weight/step=60.json").read_text())
    assert found["scalars"] == trained["scalars"]
    assert found["tables"] == trained["tables"]
    assert "effective_rank" in printed
    pictures = sorted(tmp_path.glob("probes/fast_weight/*.png"))
    assert len(pictures) == len(found["figures"]) > 0
    assert all(str(picture) in printed for picture in pictures)
    assert "step_60_recall_error.png" in [picture.name for picture in pictures]
    assert all(re.fullmatch(r"\w+", picture.stem) for picture in pictures)


def test_a_result_of_the_training_is_not_overwritten(run, capsys):
    before = (run / "probes/fast_weight/step=60.json").read_bytes()
    assert cli.main(["probe", "--run_dir", str(run), "--ckpt_path=last", "--probe=FastWeightProbe"]) == 2
    assert "holds a result already. Choose another --out" in capsys.readouterr().err
    assert (run / "probes/fast_weight/step=60.json").read_bytes() == before


def test_another_stage_and_arguments_of_the_probe(run, tmp_path, capsys):
    command = ["probe", "--run_dir", str(run), "--out", str(tmp_path), "--probe=FastWeightProbe"]
    for stage in ("pairs", "train", "test"):
        options = ["--stage", stage, f"--probe.name={stage}", "--probe.max_batches=1"]
        assert cli.main([*command, *options]) == 0
    scalars = [json.loads(file.read_text())["scalars"] for file in sorted(tmp_path.glob("probes/*/step=*.json"))]
    assert len(scalars) == 3
    assert scalars[0] != scalars[1] != scalars[2]
    assert cli.main([*command, "--stage", "pears"]) == 2
    assert "StoryWorld has no stage 'pears'; it has train, val, test, pairs" in capsys.readouterr().err


class TinyLoss(Probe):
    """The loss, without any control."""

    def measure(self, subject):
        losses = [float(subject.loss(subject.model, batch)) for batch in subject.loader]
        return ProbeResult({"loss": sum(losses)}, failures=["Nothing was controlled."])


@pytest.mark.parametrize("model", ["foreign_net:Net", "foreign_net:net"])
def test_a_model_of_ones_own(foreign, model, capsys):
    command = ["probe", "--model", model, "--data=foreign_net:data", f"--probe={__name__}.TinyLoss"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "loss" in out
    assert "failed control: Nothing was controlled." in out
    assert (foreign / "probes/tiny_loss/step=0.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Give --run_dir RUN for a trained run, or --model"),
        (["--model=foreign_net:Net"], "needs data: --data module:factory"),
        (["--model=foreign_net", "--data=foreign_net:data"], "Expected module:name"),
        (["--model=foreign_nut:Net", "--data=foreign_net:data"], "no module 'foreign_nut'"),
        (["--model=foreign_net:Nut", "--data=foreign_net:data"], "has no 'Nut'"),
        (["--model=foreign_net:needy", "--data=foreign_net:data"], "needs size"),
        (["--model=foreign_net:number", "--data=foreign_net:data"], "expected a torch.nn.Module"),
        (["--model=foreign_net:Net", "--data=foreign_net:number"], "expected a loader"),
        (["--run_dir=nowhere"], "no run folder"),
        (["--run_dir=nowhere", "--data=foreign_net:data"], "leave out --data"),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--ckpt_path=last"], "--ckpt_path is a run's"),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--stage=test"], "--stage test is a set"),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--device=gpo"], "--device gpo cannot be used"),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--probe.at=lstn"], "close names: lstm"),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--probe.loss=foreign_net.loss"], "-> torch.Tensor"),
        (["--probe=ReuseProbe", "--probe.sites=lstm"], """(a list, even of one, is written as '["lstm"]')"""),
        (["--model=foreign_net:Net", "--data=foreign_net:data", "--out=foreign_net.py"], "Not a directory"),
    ],
)
def test_bad_input_is_one_sentence(foreign, options, words, capsys):
    assert cli.main(["probe", "--probe=FastWeightProbe", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("label", ["1", "foreign_net.label"])
@pytest.mark.parametrize("probe", ["LinearDecodingProbe", "ModuleUsageProbe"])
def test_a_field_is_given_by_its_place_or_a_function(foreign, probe, label):
    command = ["probe", "--model=foreign_net:Net", "--data=foreign_net:data", f"--probe={probe}"]
    head = {
        "LinearDecodingProbe": ['--probe.sites=["head"]', f"--probe.label={label}"],
        "ModuleUsageProbe": ["--probe.site=head", "--probe.softmax=true", f"--probe.rule={label}"],
    }
    assert cli.main([*command, *head[probe]]) == 0


@pytest.mark.parametrize(
    "kind", [getattr(algornn.probes, name) for name in algornn.probes.__all__ if name.endswith("Probe")]
)
def test_a_command_line_reads_a_field_as_a_text_last(kind):
    for name, hint in get_type_hints(kind.__init__).items():
        kinds = [part for part in get_args(hint) if part is not type(None)]
        if str in kinds and len(kinds) > 1:
            assert kinds[-1] is str, name


def test_help_on_a_probe_says_what_its_scalars_mean(capsys):
    with pytest.raises(SystemExit):
        cli.main(["probe", "--probe.help=LinearDecodingProbe"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: algornn probe")
    assert "its floor `majority_accuracy` is that of always answering" in printed


def test_an_unknown_probe_is_named(foreign, capsys):
    assert cli.main(["probe", "--model=foreign_net:Net", "--data=foreign_net:data", "--probe=FastWaitProbe"]) == 2
    assert "did you mean 'FastWeightProbe'?); one of your own is given as module.Class." in capsys.readouterr().err
    assert cli.main(["probe", "--run_dir=run", "--probe=StateMotionProbe"]) == 2
    assert "named 'StateMotionProbe'; one of your own is given as module.Class." in capsys.readouterr().err


def test_what_is_missing_is_named(foreign, capsys):
    assert cli.main(["probe", "--run_dir=run"]) == 2
    assert "give --probe CLASS" in capsys.readouterr().err
    assert cli.main(["probe", "--run_dir=run", "--probe=LinearDecodingProbe"]) == 2
    assert """LinearDecodingProbe needs sites: give --probe.sites '["model.encoder"]'""" in capsys.readouterr().err
    assert cli.main(["probe", "--run_dir=run", "--probe=InterchangeProbe"]) == 2
    assert "--probe.causal_model VALUE and --probe.site 'model.encoder'" in capsys.readouterr().err
    assert cli.main(["probe", "--run_dir=run", "--probe=FastWeight"]) == 2
    assert "did you mean 'FastWeightProbe'?" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(run, tmp_path, capsys):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, tmp_path / "other.ckpt")
    options = ["--ckpt_path", str(tmp_path / "other.ckpt"), "--out", str(tmp_path)]
    assert cli.main(["probe", "--run_dir", str(run), "--probe=FastWeightProbe", *options]) == 2
    assert "weights of another model" in capsys.readouterr().err


def test_two_probes_of_one_name_are_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    probes = ["--trainer.callbacks+=FastWeightProbe", "--trainer.callbacks+=FastWeightProbe"]
    assert cli.main(["fit", "--config", "tiny.yaml", "--run_dir", str(tmp_path / "two"), *probes]) == 2
    assert "Two probes are named 'fast_weight'" in capsys.readouterr().err


def test_run_and_command_agree(run):
    """The library's call on the loaded learner and the command's are one and the same."""
    from algornn.probe_command import from_run

    learner, loader, step = from_run(run, "last", "val")
    trained = json.loads((run / "probes/fast_weight/step=60.json").read_text())
    assert step == 60
    assert json.loads(FastWeightProbe().run(learner, loader).to_json())["scalars"] == trained["scalars"]
