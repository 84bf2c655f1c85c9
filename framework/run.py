"""One folder per run: its name, what is written into it, and a trained model out of it again."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint


@dataclass
class Published:
    """A published number that a recipe is compared with.

    Attributes:
        stage: the test set, such as ``test`` or ``sys``.
        error: error in percent, mean over groups.
        std: standard deviation over runs, in percent.
        runs: number of runs.
        verified: False where the number is recalled and so no pass mark.
        source: where it stands.
    """

    stage: str
    error: float
    std: float | None = None
    runs: int | None = None
    verified: bool = False
    source: str = ""


@dataclass
class Recipe:
    """What a run is meant to show.

    Attributes:
        name: the run's name; empty: that of the configuration file.
        about: one sentence.
        published: the numbers to compare with.
        published_steps: optimizer steps of the published runs; None where there is none.
    """

    name: str = ""
    about: str = ""
    published: list[Published] = field(default_factory=list)
    published_steps: int | None = None


def new_run_folder(name: str, seed: int) -> Path:
    """Return ``runs/<name>/<time>-seed<seed>``, the same on every process of a job."""
    # A launcher's job id, where there is one, is what processes that start apart have in common.
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    job = os.environ.get("SLURM_JOB_ID", "none") if job == "none" else job
    # To the microsecond, so that two runs that are started together have a folder each.
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f") if job == "none" else f"job{job}"
    # Lightning starts its other processes with this process's environment.
    stamp = os.environ.setdefault("ALGORNN_RUN_STAMP", stamp)
    return Path("runs", name, f"{stamp}-seed{seed}")


def load(run_or_checkpoint: str | Path) -> L.LightningModule:
    """Return the trained learner of a run folder (its best checkpoint, else its last) or of a checkpoint inside one.

    Its network is the learner's ``model``. Nothing is read but the configuration and the weights.

    Args:
        run_or_checkpoint: a run folder, or a ``.ckpt`` file in the ``checkpoints`` of one.

    Raises:
        FileNotFoundError: there is no checkpoint or no configuration.
    """
    path = Path(run_or_checkpoint)
    names = ("best.ckpt", "last.ckpt")
    candidates = [path] if path.suffix == ".ckpt" else [path / "checkpoints" / name for name in names]
    found = [file for file in candidates if file.is_file()]
    if not found:
        places = " or ".join(map(str, candidates))
        raise FileNotFoundError(f"No checkpoint at {places}. Give a run folder or a .ckpt file.")
    config = found[0].parent.parent / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"No configuration at {config}. For a checkpoint of your own script, build the learner "
            "and call its load_state_dict with the checkpoint's 'state_dict'."
        )
    from algornn.cli import build_learner

    learner = build_learner(config)
    learner.load_state_dict(read_checkpoint(found[0])["state_dict"])
    return learner.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that Lightning wrote, on the CPU.

    Raises:
        ValueError: the file is damaged or something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint at all. Use another, last or best.") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise ValueError(f"{path} is not a checkpoint that Lightning wrote. Use one of a run's folder, last or best.")
    return checkpoint


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration file's options as they are written.

    Raises:
        ValueError: the file is not YAML, or holds no options.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options such as `data: ...` and `model: ...`.")
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Return what a file holds; nothing where it is missing or broken: a run's results must not be lost over it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, then move it there: a killed run leaves the old one or the new one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`."""
        partial = f"{path}.part"
        super().save_checkpoint(checkpoint, partial, storage_options)
        Path(partial).replace(path)


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` at the start, every few steps and after every validation: a killed run goes on from it.

    Being a `Checkpoint`, it is called after all other callbacks, so the file holds what they know by then; and a
    resumed run misses no validation, which one written before the validation of its step would.

    Args:
        path: the file.
        every_n_steps: optimizer steps between two writes.
    """

    def __init__(self, path: str | Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"`resume_every_n_steps` must be at least 1, got {every_n_steps}.")
        self.path, self.every_n_steps = path, every_n_steps
        self._saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the start of a run, so that whatever has started can go on."""
        if trainer.global_step == 0:
            self._save(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save after every n-th optimizer step, or leave it to the validation that follows."""
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step > self._saved
        if due and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation during training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of training."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.path)


def _validation_follows(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    done = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    return bool(trainer.enable_validation and trainer.val_check_batch and done % trainer.val_check_batch == 0)


class RandomState(L.Callback):
    """Keep the state of every global random number generator in the checkpoint."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states, as types that a weights-only load accepts."""
        # The global generators: users' code may draw from them, and does.
        kind, keys, *rest = cast(tuple, np.random.get_state())  # noqa: NPY002
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold the states until training starts: building loaders must not draw from them."""
        self._restored = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the saved states back."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
        version_, internal, gauss = state["python"]
        random.setstate((version_, tuple(internal), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


class RunRecord(L.Callback):
    """Write ``metrics.json`` after a test: results by set and group, the probes' last values, budget and machine.

    Args:
        recipe: what the run is meant to show.
        seed: the seed of the run.
        command: how it was started.
    """

    def __init__(self, recipe: Recipe, seed: int, command: str) -> None:
        self.recipe, self.seed, self.command = recipe, seed, command
        self.steps, self.seconds = 0, 0.0
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds trained so far, over all restarts."""
        return {"seconds": self._training_seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the seconds of the run that is resumed; the best checkpoint, loaded for the test, knows fewer."""
        self.seconds = max(self.seconds, state["seconds"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the number of steps, which a trainer that only tests does not."""
        self.steps = max(self.steps, checkpoint["global_step"])

    def _training_seconds(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._since else 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds, self._since = self._training_seconds(), None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on the first process only; a later test of a finished run renews the test's results alone."""
        if trainer.is_global_zero:
            record, file = self._record(trainer, pl_module), Path(trainer.default_root_dir, "metrics.json")
            finished = read_json(file)
            if finished.get("steps", -1) >= record["steps"]:
                record = finished | {key: record[key] for key in ("data", "stages", "incomplete")}
            partial = file.with_name(f"{file.name}.part")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(file)

    def _record(self, trainer: L.Trainer, learner: L.LightningModule) -> dict[str, Any]:
        data, steps = getattr(trainer, "datamodule", None), max(trainer.global_step, self.steps)
        ood = set(getattr(data, "ood", ()))
        stages = {name: {"ood": name in ood} | result for name, result in getattr(learner, "results", {}).items()}
        budget = steps / self.recipe.published_steps if self.recipe.published_steps else None
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "model": type(getattr(learner, "model", learner)).__name__,
            "parameters": sum(p.numel() for p in learner.parameters()),
            "data": f"{type(data).__name__} {getattr(data, 'split', '')}".strip(),
            "steps": steps,
            "budget": budget,
            "wall_seconds": round(self.seconds, 1),
            "stages": stages,
            "incomplete": list(getattr(data, "incomplete", ())),
            "probes": probe_values(Path(trainer.default_root_dir)),
            "command": self.command,
        } | provenance()


def probe_values(run: Path) -> dict[str, Any]:
    """Return ``{probe: {"step": n, "scalars": {...}}}`` from the latest readable artefact of every probe of a run."""
    latest: dict[str, Any] = {}
    for file in run.glob("probes/*/step=*.json"):
        step, scalars = file.stem.removeprefix("step="), read_json(file).get("scalars")
        if step.isdigit() and scalars is not None and int(step) >= latest.get(file.parent.name, {"step": -1})["step"]:
            latest[file.parent.name] = {"step": int(step), "scalars": scalars}
    return latest


def provenance() -> dict[str, Any]:
    """Return what a measured number needs beside it: commit, versions and hardware."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    packages = ("algornn", "torch", "lightning", "torchmetrics")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "commit": commit.stdout.strip() or None,
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "hardware": f"{gpu or _processor()}, {torch.get_num_threads()} thread(s)",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
