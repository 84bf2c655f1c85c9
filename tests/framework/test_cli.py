"""The command line in this process: a run folder, what it refuses, and its messages."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import algornn
from algornn import cli, recipes
from tests.framework.tiny_runs import TINY, curve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run folder, trained in this process."""
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    probes = ["--trainer.callbacks+=FastWeightProbe", "--trainer.callbacks.every_n_steps=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["fit", "--config", str(config), "--run_dir", "run", *probes]) == 0
    return folder / "run"


def test_a_run_folder_holds_config_logs_checkpoints_and_metrics(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["model"]["class_path"] == "algornn.TPRRNN"
    assert config["trainer"]["max_steps"] == 60
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((run / "tensorboard").glob("events*"))
    assert sorted(curve(run, "train/loss")) == list(range(60))
    assert sorted(curve(run, "val/sequence_accuracy")) == [19, 39, 59]
    assert {f.name for f in (run / "probes" / "fast_weight").iterdir()} == {f"step={n}.json" for n in (20, 40, 60)}


def test_metrics_json_has_every_test_set_by_group_and_the_machine(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: s["ood"] for name, s in metrics["stages"].items()} == {
        "test": False, "pairs": True, "names": True, "longer": True,
    }  # fmt: skip
    for stage in metrics["stages"].values():
        assert stage["examples"] == 151 == sum(g["examples"] for g in stage["groups"].values())
        right = sum(g["examples"] * g["sequence_accuracy"] for g in stage["groups"].values())
        assert right / 151 == pytest.approx(stage["sequence_accuracy"], abs=1e-6)
    assert metrics["steps"] == 60
    assert metrics["seed"] == 3
    assert metrics["model"] == "TPRRNN"
    assert metrics["probes"]["fast_weight"]["step"] == 60
    assert metrics["versions"]["torch"] == torch.__version__


def test_load_gives_the_trained_network(run):
    learner = algornn.load(run)
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert isinstance(learner.model, algornn.TPRRNN)
    assert all(torch.equal(saved[name], value) for name, value in learner.state_dict().items())
    assert not learner.training


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*best\.ckpt or .*last\.ckpt"):
        algornn.load(tmp_path)


def test_test_needs_only_the_run_folder_and_gives_the_same_numbers(run, capsys):
    before = json.loads((run / "metrics.json").read_text())["stages"]
    assert cli.main(["test", "--run_dir", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["stages"] == before
    assert "names (OOD)" in capsys.readouterr().out


def test_a_second_fit_into_the_folder_is_refused_and_changes_nothing(run, capsys):
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    assert cli.main(["fit", "--config", str(run / "config.yaml")]) == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(run, capsys, tmp_path):
    args = ["--run_dir", str(run), "--config", str(run / "config.yaml"), "--ckpt_path", "best"]
    assert cli.main(["test", *args, "--model.model.entity_size=9"]) == 2
    message = capsys.readouterr().err
    assert "weights of another model" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["fit", "--config", "quickstrat"], "did you mean 'quickstart'?"),
        (["fit", "--config", "quickstart", "--data.split", "systmatic"], "did you mean 'systematic'?"),
        (["fit", "--config", "quickstart", "--data", "StoryWord"], "did you mean 'StoryWorld'?"),
        (["fit", "--config", "quickstart", "--model.model", "TPRRN"], "did you mean 'TPRRNN'?"),
        (["fit", "--config", "quickstart", "--trainer.callbacks+=FastWightProbe"], "did you mean 'FastWeightProbe'?"),
        (["fit", "--config", "quickstart", "--data.batch_size", "many"], "batch_size: Expected a int"),
        (["fit", "--config", "quickstart", "--trainer.max_stepz", "3"], "--trainer.max_stepz"),
        (["fit", "--config", "quickstart", "--ckpt_path", "no.ckpt"], "No checkpoint at no.ckpt"),
        (["fit", "--config", "babi_all_tprrnn", "--data.data_dir", "nowhere"], "nowhere"),
        (["list", "modells"], "models, probes, splits or recipes"),
        (["report", "nowhere"], "nowhere"),
        (["reproduce", "quickstrat"], "did you mean 'quickstart'?"),
    ],
)
def test_a_mistake_ends_in_one_plain_sentence_and_writes_nothing(args, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("algornn: error:")]
    assert len(message) == 1
    assert told in message[0]
    assert "Traceback" not in message[0]
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_an_unknown_class_in_a_yaml_file_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(TINY.replace("TPRRNN", "TPRNN"))
    assert cli.main(["fit", "--config", "mine.yaml"]) == 2
    assert "'TPRNN' (did you mean 'TPRRNN'?)" in capsys.readouterr().err


def test_an_override_reaches_what_interpolates_it(capsys, tmp_path, monkeypatch):
    # OmegaConf keeps the stale value here unless paths are made relative: jsonargparse issue 461.
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(TINY.replace("role_size: 4", "role_size: '${data.init_args.batch_size}'"))
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "mine.yaml", "--data.batch_size", "6", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["model"]["init_args"]["role_size"] == 6


def test_list_names_every_model_probe_split_and_recipe(capsys):
    expected = {"models": "TPRRNN", "probes": "WeightMaskProbe", "splits": "BAbI", "recipes": "babi_all_tprrnn"}
    for what, name in expected.items():
        assert cli.main(["list", what]) == 0
        assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains_a_step(name, tmp_path, monkeypatch, capsys):
    if name.startswith("babi"):
        monkeypatch.setenv("ALGORNN_DATA", str(babi_folder()))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--config", name, "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]) == 0
    assert recipes.about(name).endswith(".")


def babi_folder() -> Path:
    import os

    folder = Path(os.environ.get("ALGORNN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (folder / "babi").is_dir():
        pytest.skip(f"no bAbI files at {folder / 'babi'}: set ALGORNN_DATA to the folder that holds babi/")
    return folder
