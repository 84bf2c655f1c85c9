"""The command line in this process: a run folder, what it refuses, and what it lists."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import TINY, curve, image_folders

import algornn
from algornn import cli, recipes
from algornn.datamodules import StoryWorld
from algornn.predictions import in_words


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
    assert metrics["command"].startswith("algornn fit --config ")
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


def test_load_names_what_is_missing(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "config.yaml").write_text("seed_everything: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml says nothing of data and model"):
        algornn.load(copy)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*best\.ckpt or .*last\.ckpt"):
        algornn.load(tmp_path)


def test_wall_seconds_are_those_of_the_training_not_of_its_best_checkpoint(run):
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["RunRecord"]
    assert json.loads((run / "metrics.json").read_text())["wall_seconds"] == pytest.approx(last["seconds"], abs=0.1)


@pytest.mark.parametrize("given", ["run_dir", "config"])
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_trained_run_needs_only_its_folder_and_stays_as_it_is(run, command, given, capsys):
    before = content(run)
    path = {"run_dir": run, "config": run / "config.yaml"}[given]
    assert cli.main([command, f"--{given}", str(path)]) == 0
    shutil.rmtree(run / "predictions", ignore_errors=True)
    assert content(run) == before
    assert ("names (OOD)" in capsys.readouterr().out) == (command == "test")


@pytest.mark.parametrize("given", ["run_dir", "config", "foreign"])
def test_a_second_fit_into_the_folder_is_refused_and_changes_nothing(run, given, capsys, tmp_path):
    before = content(run)
    (tmp_path / "foreign.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    args = {
        "run_dir": ["--run_dir", str(run)],
        "config": ["--config", str(run / "config.yaml")],
        "foreign": ["--run_dir", str(run), "--ckpt_path", str(tmp_path / "foreign.ckpt")],
    }[given]
    assert cli.main(["fit", *args]) == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert content(run) == before


def test_a_run_from_anothers_configuration_leaves_that_one_alone(run, tmp_path):
    before = content(run)
    args = ["--config", str(run / "config.yaml"), "--run_dir", str(tmp_path / "new"), "--trainer.max_steps", "3"]
    assert cli.main(["fit", *args, "--test_after_fit", "false"]) == 0
    assert content(run) == before
    assert (tmp_path / "new" / "checkpoints" / "last.ckpt").is_file()


def test_a_start_that_fails_leaves_no_run_behind(run, tmp_path, capsys):
    folder = tmp_path / "new"
    args = ["fit", "--config", str(run / "config.yaml"), "--run_dir", str(folder), "--trainer.max_steps", "3"]
    assert cli.main([*args, "--data.batch_size", "1000"]) == 2
    told = capsys.readouterr()
    assert "choose a smaller batch_size" in told.err
    assert "run folder" not in told.out
    assert not (folder / "lock").exists()
    assert cli.main([*args, "--test_after_fit", "false"]) == 0


def test_nulls_of_a_configuration_are_kept(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    args = ["--trainer.max_steps=3", "--trainer.val_check_interval=2", "--checkpoint.monitor=null"]
    folder = tmp_path / "run"
    assert cli.main(["fit", "--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(folder), *args]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["checkpoint"]["monitor"] is None
    before = json.loads((folder / "metrics.json").read_text())
    assert before["selection"] == "last step"
    assert cli.main(["test", "--run_dir", str(folder)]) == 0
    after = json.loads((folder / "metrics.json").read_text())
    assert (after["selection"], after["stages"]) == (before["selection"], before["stages"])


def test_a_later_test_of_other_weights_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["selection"] == "val/sequence_accuracy"
    assert cli.main(["test", "--run_dir", str(tmp_path / "run"), "--ckpt_path", "last"]) == 0
    (file,) = (tmp_path / "run" / "tests").glob("*/metrics.json")
    assert json.loads(file.read_text())["selection"] == "last step"


def test_a_start_that_failed_at_its_first_batch_does_not_block_its_folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    args = ["fit", "--config", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run"), "--trainer.max_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algornn.QuestionAnswering, "training_step", lambda *_: {}["wrong"])
        with pytest.raises(KeyError):
            cli.main(args)
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert cli.main([*args, "--test_after_fit", "false"]) == 0


def test_predictions_are_written_once_per_example(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    assert cli.main(["predict", "--run_dir", str(tmp_path / "run")]) == 0
    files = sorted((tmp_path / "run" / "predictions").iterdir())
    assert [file.name for file in files] == ["longer.jsonl", "names.jsonl", "pairs.jsonl", "test.jsonl"]
    rows = [json.loads(line) for line in files[-1].read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(151))
    words = StoryWorld().vocabulary
    assert all(row["prediction"] in words for row in rows)
    assert f"151 predictions: {files[-1]}" in capsys.readouterr().out


def test_predictions_are_in_the_words_of_the_data():
    words = ("<pad>", "<eos>", "JUMP", "WALK")
    assert in_words([2, 3, 1, 0, 0], words) == ["JUMP", "WALK"]
    assert in_words([2, 3], words) == ["JUMP", "WALK"]
    assert in_words(3, words) == "WALK"
    assert in_words([2, 1], None) == [2, 1]


def test_a_run_that_stops_before_its_first_step_begins_anew(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    folder = tmp_path / "run"
    args = ["--run_dir", str(folder), "--trainer.max_steps", "4", "--test_after_fit", "false"]
    with monkeypatch.context() as patch:
        patch.setattr(algornn.QuestionAnswering, "training_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(["fit", "--config", str(tmp_path / "tiny.yaml"), *args])
    assert cli.main(["fit", *args, "--ckpt_path", "last"]) == 0
    assert "no step of this run was kept: it begins anew" in capsys.readouterr().out
    assert sorted(curve(folder, "train/loss")) == [0, 1, 2, 3]


def test_a_run_in_a_moved_folder_goes_on_with_its_own_best_checkpoint(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved here")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    before = content(run)
    args = ["--ckpt_path", "last", "--trainer.max_steps", "61"]
    assert cli.main(["fit", "--run_dir", str(moved), *args]) == 0
    assert content(run) == before
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best
    state = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    known = next(value for key, value in state.items() if key.startswith("ModelCheckpoint"))
    assert known["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")
    assert list(known["best_k_models"]) == [known["best_model_path"]]


@pytest.mark.parametrize("damage", [b"", b"hello", None])
@pytest.mark.parametrize("command", ["test", "fit"])
def test_a_damaged_checkpoint_is_said_and_changes_nothing(run, damage, command, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "copy")
    last = tmp_path / "copy" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:9000] if damage is None else damage)
    before = content(tmp_path / "copy")
    assert cli.main([command, "--run_dir", str(tmp_path / "copy"), "--ckpt_path", "last"]) == 2
    assert "last.ckpt is damaged" in capsys.readouterr().err
    assert content(tmp_path / "copy") == before


def test_broken_files_of_a_run_do_not_cost_its_results(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    before = json.loads((copy / "metrics.json").read_text())
    (copy / "metrics.json").write_text("{")
    (copy / "probes" / "fast_weight" / "step=60.json").write_text("{")
    (copy / "probes" / "fast_weight" / "step=mine.json").write_text("{}")
    assert cli.main(["test", "--run_dir", str(copy)]) == 0
    after = json.loads((copy / "metrics.json").read_text())
    assert after["stages"] == before["stages"]
    assert after["probes"]["fast_weight"]["step"] == 40


def content(folder: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_checkpoint_of_another_model_is_refused(run, capsys, tmp_path):
    args = ["--run_dir", str(run), "--config", str(run / "config.yaml"), "--ckpt_path", "best"]
    assert cli.main(["test", *args, "--model.model.entity_size=9"]) == 2
    message = capsys.readouterr().err
    assert "weights of another model" in message
    assert message.count("\n") == 1


def test_an_override_reaches_what_interpolates_it(capsys, tmp_path, monkeypatch):
    # OmegaConf keeps the stale value here unless paths are made relative: jsonargparse issue 461.
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(TINY.replace("role_size: 4", "role_size: '${data.init_args.batch_size}'"))
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", "mine.yaml", "--data.batch_size", "6", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["model"]["init_args"]["role_size"] == 6


NETWORKS = """
import torch
from torch import nn

class OnlySizes(nn.Module):
    def __init__(self, vocab_size, sentence_length):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, vocab_size)
    def forward(self, story, query, mask=None):
        return self.embedding(query).sum(1)

class OtherNames(OnlySizes):
    def __init__(self, vocab, sentence_length):
        super().__init__(vocab, sentence_length)
"""


def test_a_network_of_sizes_alone_trains_and_is_found_from_its_run_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "only_sizes.py").write_text(NETWORKS)
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    args = ["--model.model=only_sizes.OnlySizes", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert cli.main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/own", *args]) == 0, capsys.readouterr().err
    assert cli.main(["test", "--run_dir", "runs/own"]) == 0, capsys.readouterr().err

    args[0] = "--model.model=only_sizes.OtherNames"
    assert cli.main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/other", *args]) == 2
    told = capsys.readouterr().err
    assert "Nothing fills in `vocab` of only_sizes.OtherNames: give --model.model.vocab, give it a default, or" in told
    assert not (tmp_path / "runs" / "other").exists()
    named = [*args, "--model.model.vocab=200"]
    assert cli.main(["fit", "--config", "tiny.yaml", "--run_dir", "runs/named", *named]) == 0, capsys.readouterr().err


def test_a_name_that_torch_has_too_means_ours():
    args = ["--config", "quickstart", "--model.model.layer", "GRU", "--model.model.encoder=LSTM", "--data", "GRU"]
    assert cli.resolve_recipes(args)[2:] == [
        "--model.model.layer", "algornn.GRU", "--model.model.encoder=algornn.LSTM", "--data", "GRU",
    ]  # fmt: skip


def test_list_names_every_model_probe_split_and_recipe(capsys):
    expected = {"models": "TPRRNN", "learners": "QuestionAnswering", "probes": "WeightMaskProbe", "splits": "BAbI"}
    for what, name in (expected | {"recipes": "babi_all_tprrnn"}).items():
        assert cli.main(["list", what]) == 0
        lines = capsys.readouterr().out.splitlines()
        abouts = dict(line.split(maxsplit=1) for line in lines)
        assert name in abouts
        starts = {line.index(about, len(listed)) for line, (listed, about) in zip(lines, abouts.items(), strict=True)}
        assert len(starts) == 1, "one column of descriptions"
        assert what in ("learners", "recipes") or "QuestionAnswering" not in abouts


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains_a_step(name, tmp_path, monkeypatch, capsys):
    with_files = {"babi": "babi", "scan_simple": "scan", "cogs": "cogs", "pcfg": "pcfgset"}
    for benchmark in (with_files[part] for part in with_files if part in name):
        monkeypatch.setenv("ALGORNN_DATA", str(data_folder(benchmark)))
    if name.startswith(("omniglot", "mini_imagenet")):
        image_folders(tmp_path)
        monkeypatch.setenv("ALGORNN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog lay by the fire\n" * 900)
    small = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu", "--data.init_args.batch_size", "2"]
    if name.startswith(("arithmetic", "ctlpp", "listops_balanced")):  # of which the published sizes take a while
        small += ["--data.init_args.train_size", "1000", "--data.init_args.test_size", "100"]
    if name.startswith("metagenrl"):  # every batch has all agents, and a validation is a life
        small += ["--data.init_args.agents", "2", "--model.init_args.lifetime", "2"]
        small += ["--model.init_args.agents.init_args.hidden_sizes", "[8]"]
    if name == "metagenrl_hopper":
        pytest.importorskip("Box2D", reason="Box2D, of the extra [rl], is not installed: it has no wheels from 3.14 on")
    assert cli.main(["fit", "--config", name, *small]) == 0
    assert recipes.about(name).endswith(".")


def data_folder(benchmark: str) -> Path:
    folder = Path(os.environ.get("ALGORNN_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (folder / benchmark).is_dir():
        pytest.skip(f"no files at {folder / benchmark}: set ALGORNN_DATA to the folder that holds {benchmark}/")
    return folder


def test_an_interrupted_command_ends_in_one_sentence(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == f"{cli.INTERRUPTED}\n"


def test_an_interrupted_training_is_told_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(args):
        cli.AlgornnCLI.fitting = str(tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["fit"]) == 130
    assert capsys.readouterr().err == f"{cli.INTERRUPTED}\n"  # nothing has been trained there
    (tmp_path / "config.yaml").touch()
    assert cli.main(["fit"]) == 130
    assert f"Go on with it: algornn fit --run_dir {tmp_path} --ckpt_path last\n" in capsys.readouterr().err
