"""What may be written into a run folder: the results of its own tests, and its own training, by one process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY

from algornn import cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("run_folder")
    (folder / "tiny.yaml").write_text(TINY)
    args = ["--run_dir", str(folder / "run"), "--trainer.max_steps=6", "--trainer.val_check_interval=3"]
    assert cli.main(["fit", "--config", str(folder / "tiny.yaml"), *args]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


def content(folder: Path) -> dict[Path, bytes]:
    return {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("option", ["--data.test_size=300", "--trainer.limit_test_batches=2", "--model.optimizer.lr=1"])
def test_a_test_of_other_options_is_written_apart(run, option, tmp_path, capsys):
    before = content(run)
    assert cli.main(["test", "--run_dir", str(run), option]) == 0
    (folder,) = (run / "tests").iterdir()
    told = capsys.readouterr().out
    assert f"test results: {folder}" in told
    assert {file: text for file, text in content(run).items() if folder not in file.parents} == before
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["command"] == f"algornn test --run_dir {run} {option}"
    assert metrics["recipe"] == "tiny"
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "page")]) == 0
    assert "names (OOD)" in capsys.readouterr().out


def test_a_test_of_the_last_weights_where_the_best_are_the_runs_own_is_written_apart(run):
    before = (run / "metrics.json").read_bytes()
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert cli.main(["test", "--run_dir", str(run), "--ckpt_path", "last"]) == 0
    assert (run / "metrics.json").read_bytes() == before
    assert len(list((run / "tests").iterdir())) == 1
    assert cli.main(["test", "--run_dir", str(run), "--ckpt_path", "best"]) == 0
    assert len(list((run / "tests").iterdir())) == 1


def test_a_resumed_training_keeps_the_options_that_it_began_with(run):
    began = json.loads((run / "metrics.json").read_text())["command"]
    assert cli.main(["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_steps=9"]) == 0
    again = f"algornn fit --run_dir {run} --ckpt_path last --trainer.max_steps=9"
    assert json.loads((run / "metrics.json").read_text())["command"] == f"{began} && {again}"


def test_predictions_of_other_options_are_written_apart(run, capsys):
    assert cli.main(["predict", "--run_dir", str(run)]) == 0
    before = content(run)
    assert cli.main(["predict", "--run_dir", str(run), "--data.test_size=300"]) == 0
    (folder,) = (part for part in (run / "predictions").iterdir() if part.is_dir())
    assert f"predictions: {folder}" in capsys.readouterr().out
    assert {file: text for file, text in content(run).items() if folder not in file.parents} == before


def test_a_test_that_only_shows_more_or_computes_elsewhere_is_the_runs_own(run, tmp_path):
    (run / "metrics.json").unlink()
    options = ["--trainer.enable_progress_bar=true", "--trainer.devices=1", f"--data.data_dir={tmp_path}"]
    assert cli.main(["test", "--run_dir", str(run), *options]) == 0
    assert (run / "metrics.json").is_file()
    assert not (run / "tests").exists()


def test_a_test_of_another_runs_weights_is_written_apart(run, trained):
    before = (run / "metrics.json").read_bytes()
    assert cli.main(["test", "--run_dir", str(run), "--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]) == 0
    assert (run / "metrics.json").read_bytes() == before
    assert len(list((run / "tests").iterdir())) == 1


def test_results_that_were_lost_are_written_anew_with_what_is_known_of_the_training(run):
    best, last, file = (run / name for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.json"))
    torch.save(torch.load(best, weights_only=True) | {"global_step": 2}, best)
    before = json.loads(file.read_text())
    file.unlink()
    assert cli.main(["test", "--run_dir", str(run)]) == 0
    after = json.loads(file.read_text())
    told = ("steps", "budget", "wall_seconds", "command")
    assert [after[key] for key in told] == [before[key] for key in told]
    assert after["steps"] == 6
    file.write_text("{")
    last.unlink()
    assert cli.main(["test", "--run_dir", str(run)]) == 0
    assert not set(told) & json.loads(file.read_text()).keys()
    assert cli.main(["report", str(run), "--out", str(run.parent / "page")]) == 0


HOLD = "import fcntl, time; f = open('lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"


def test_a_folder_in_use_is_refused_and_a_killed_process_does_not_hold_it(run, capsys):
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=run, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline()
        before = content(run)
        args = ["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_steps=7"]
        assert cli.main(args) == 2
        assert "is in use by process" in capsys.readouterr().err
        assert content(run) == before
        holder.kill()
    assert (run / "lock").is_file()
    assert cli.main(args) == 0
    assert not (run / "lock").exists()


@pytest.mark.parametrize("option", ["data.init_args.batch_size", "model.init_args.optimizer.init_args.lr"])
def test_a_training_of_other_data_or_another_model_does_not_go_on(run, option, capsys):
    before = content(run)
    assert cli.main(["fit", "--run_dir", str(run), "--ckpt_path", "last", f"--{option}=5"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"was trained with {option} = " in message
    assert "start a new run in another folder" in message
    assert content(run) == before


def test_weights_alone_do_not_go_on(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    weights = torch.load(last, weights_only=True)
    torch.save({key: value for key, value in weights.items() if key != "optimizer_states"}, last)
    before = content(run)
    assert cli.main(["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_steps=7"]) == 2
    assert "last.ckpt holds weights alone" in capsys.readouterr().err
    assert content(run) == before
