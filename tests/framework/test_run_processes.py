"""Runs in processes of their own: killed and resumed, and two processes against one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY, algornn, command, curve, environment


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return "tiny.yaml"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(config, tmp_path):
    args = ["fit", "--config", config, "--resume_every_n_steps", "20", "--trainer.max_steps", "200"]
    args += ["--trainer.callbacks+=FastWeightProbe", "--trainer.callbacks.every_n_steps=50"]
    algornn(*args, "--run_dir", "whole", cwd=tmp_path)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen([*command(*args), "--run_dir", "killed"], cwd=tmp_path, env=environment())
    deadline = time.monotonic() + 120
    while not (last.is_file() and torch.load(last, weights_only=True)["global_step"] >= 60):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()

    algornn("fit", "--config", "killed/config.yaml", "--ckpt_path", "last", cwd=tmp_path)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(killed).values(), strict=True))
    assert curve(killed, "val/loss") == curve(whole, "val/loss")
    assert curve(killed, "train/loss") == curve(whole, "train/loss")
    saved = [json.loads((run / "metrics.json").read_text()) for run in (whole, killed)]
    assert saved[0]["stages"] == saved[1]["stages"]
    for step in (50, 100, 150, 200):
        files = [(run / "probes" / "fast_weight" / f"step={step}.json").read_text() for run in (whole, killed)]
        assert json.loads(files[0])["scalars"] == json.loads(files[1])["scalars"]


@pytest.mark.parametrize("fit", [["fit", "--run_dir", "runs/tiny/seed=1"], ["reproduce"]])
def test_a_terminated_command_ends_its_training_and_says_so(fit, config, tmp_path):
    start, *rest = fit
    args = [start, *(["--config"] if start == "fit" else []), config, *rest, "--trainer.max_steps", "1000000"]
    run = tmp_path / "runs" / "tiny" / "seed=1"
    process = subprocess.Popen(command(*args), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None, "the run ended before it could be terminated"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainer = int((run / "lock").read_text())
    process.terminate()
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    assert told.count("algornn: interrupted") == {"fit": 1, "reproduce": 2}[start]
    assert not (run / "lock").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)
    args = ["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_time", "00:00:00:01"]
    assert algornn(*args, cwd=tmp_path).returncode == 0


def test_two_processes_train_as_one_on_the_same_global_batch(config, tmp_path):
    args = ["fit", "--config", config, "--trainer.precision", "64-true"]
    args += ["--trainer.callbacks+=FastWeightProbe", "--trainer.callbacks.max_batches=1000"]
    algornn(*args, "--run_dir", "one", "--data.batch_size", "16", cwd=tmp_path)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "8"]
    algornn(*args, "--run_dir", "two", *two, cwd=tmp_path)

    losses = [curve(tmp_path / run, "train/loss") for run in ("one", "two")]
    assert len(losses[0]) == 60
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert curve(tmp_path / "one", "val/loss") == pytest.approx(curve(tmp_path / "two", "val/loss"), abs=1e-6)
    one, two = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two"))
    for name, stage in one["stages"].items():  # 151 examples: odd, so that one of them is repeated on a process
        assert two["stages"][name]["examples"] == 151
        assert two["stages"][name]["groups"] == stage["groups"]
        assert two["stages"][name]["loss"] == pytest.approx(stage["loss"], abs=1e-6)
    # Not the controls: they are random by batch, and the batches are of another size.
    found = [m["probes"]["fast_weight"]["scalars"] for m in (one, two)]
    scalars = [{k: v for k, v in f.items() if "control" not in k} for f in found]
    assert scalars[0] == pytest.approx(scalars[1], rel=1e-6)
