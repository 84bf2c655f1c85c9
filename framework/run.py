"""One folder per run: its name, its record, and a trained model out of it again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from algornn.checkpoints import read_checkpoint


@dataclass
class Published:
    """A published number that a recipe is compared with.

    Attributes:
        stage: the test set, such as ``test`` or ``sys``.
        error: error in percent; or
        mean_return: undiscounted return of an episode.
        over: what an error is a mean over, ``groups`` or ``examples``.
        std: standard deviation over runs, in percent or in return.
        runs: number of runs.
        verified: False where the number is recalled and so no pass mark.
        source: where it stands.
    """

    stage: str
    error: float | None = None
    mean_return: float | None = None
    std: float | None = None
    runs: int | None = None
    verified: bool = False
    source: str = ""
    over: str = "groups"


@dataclass
class Sweep:
    """An option that a recipe runs over several values, and the published curve over them.

    Attributes:
        option: the option, such as ``data.init_args.size``.
        values: its values, in order.
        published: the published number at every value, null where there is none.
        stage: the test set that the numbers are of.
        measure: ``loss``, or ``error`` (1 less the accuracy).
        solved: a value counts as solved where the number is at most this; None: no such mark.
        verified: False where the numbers are recalled and so no pass mark.
        source: where they stand.
    """

    option: str
    values: list[Any]
    published: list[float | None] = field(default_factory=list)
    stage: str = "test"
    measure: str = "loss"
    solved: float | None = None
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
        sweep: an option that `algornn reproduce` runs over several values; None where there is none.
    """

    name: str = ""
    about: str = ""
    published: list[Published] = field(default_factory=list)
    published_steps: int | None = None
    sweep: Sweep | None = None


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
    from algornn.cli import build_run

    learner: L.LightningModule = build_run(config).model
    learner.load_state_dict(read_checkpoint(found[0])["state_dict"])
    return learner.eval()


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


class RunRecord(L.Callback):
    """Write ``metrics.json`` after a test: results by set and group, the probes' last values, budget and machine.

    ``written`` is the folder that it was written to, on the first process.

    Args:
        recipe: what the run is meant to show.
        seed: the seed of the run.
        command: how it was started.
        setting: the option that the recipe sweeps, and its value in this run.
        apart: write to this folder in ``tests``, since the test has other options than the run; "": to the run folder.
    """

    def __init__(
        self, recipe: Recipe, seed: int, command: str, setting: dict[str, Any] | None = None, apart: str = ""
    ) -> None:
        self.recipe, self.seed, self.command, self.setting, self.apart = recipe, seed, command, setting or {}, apart
        self.written: Path | None = None
        self.seconds, self._trains, self._before = 0.0, False, ""
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds trained so far, over all restarts, and the command, for a later test."""
        return {"seconds": self._training_seconds(), "command": self.command}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the seconds of the run that is resumed; the best checkpoint, loaded for the test, knows fewer."""
        self.seconds, self._before = max(self.seconds, state["seconds"]), state.get("command", "")

    def _training_seconds(self) -> float:
        return self.seconds + (time.monotonic() - self._since if self._since else 0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know that the test that follows is the training's own, and keep the commands that it goes on from."""
        self._trains = True
        if self._before:  # whose options still hold
            self.command = f"{self._before} && {self.command}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.seconds, self._since = self._training_seconds(), None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on the first process only; a later test of a finished run renews the test's results alone."""
        if not trainer.is_global_zero:
            return
        record, folder = self._record(trainer, pl_module), Path(trainer.default_root_dir)
        if self.apart:
            folder = folder / "tests" / self.apart
            folder.mkdir(parents=True)
        file = folder / "metrics.json"
        finished = read_json(file)
        if finished.get("steps", -1) >= record.get("steps", 0):
            record = finished | {key: record[key] for key in ("data", "selection", "stages", "incomplete", "note")}
        partial = file.with_name(f"{file.name}.part")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(file)
        self.written = folder

    def _record(self, trainer: L.Trainer, learner: L.LightningModule) -> dict[str, Any]:
        data = getattr(trainer, "datamodule", None)
        ood, note = set(getattr(data, "ood", ())), getattr(data, "note", "")
        stages = {name: {"ood": name in ood} | result for name, result in getattr(learner, "results", {}).items()}
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "model": _name(getattr(learner, "model", learner)),
            "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
            "data": f"{type(data).__name__} {getattr(data, 'split', '')}".strip() + (f" ({note})" if note else ""),
            "selection": _selection(trainer),
            "stages": stages,
            "setting": self.setting,
            "incomplete": list(getattr(data, "incomplete", ())),
            "note": note,
            "over": getattr(data, "mean_over", "groups"),
            "probes": probe_values(Path(trainer.default_root_dir)),
            **self._training(trainer),
        } | provenance()

    def _training(self, trainer: Any) -> dict[str, Any]:
        """What is known of the whole training: a later test asks its last checkpoint, and leaves out the rest."""
        if self._trains:
            known = {"steps": trainer.global_step, "wall_seconds": round(self.seconds, 1), "command": self.command}
        else:
            tested = getattr(trainer, "ckpt_path", None)
            known = training_of(Path(tested)) if tested else {}
        if "steps" in known:
            published = self.recipe.published_steps
            known["budget"] = known["steps"] / published if published else None
        return known | ({"command": self.command} if self.apart else {})


def training_of(ckpt_path: Path) -> dict[str, Any]:
    """Return steps, seconds and command of the training of a checkpoint, as far as ``last.ckpt`` beside it tells."""
    try:
        last = read_checkpoint(ckpt_path.with_name("last.ckpt"))
    except ValueError:  # missing or damaged
        return {}
    state = last.get("callbacks", {}).get("RunRecord", {})
    seconds = {"wall_seconds": round(state["seconds"], 1)} if "seconds" in state else {}
    return {"steps": last["global_step"]} | seconds | {key: state[key] for key in ("command",) if key in state}


def _name(network: Any) -> str:
    """The network's class, with that of the layer or memory inside where it can have any: SequenceClassifier(LSTM)."""
    inner = getattr(network, "layer", None) or getattr(network, "decoder", None)
    name = type(network).__name__
    wrapped = isinstance(inner, torch.nn.Module) and not isinstance(inner, torch.nn.ModuleList)
    return f"{name}({type(inner).__name__})" if wrapped else name


def _selection(trainer: Any) -> str:
    """Say how the tested weights were chosen: what was monitored, or that they are the last."""
    last = Path(str(getattr(trainer, "ckpt_path", None) or "")).name == "last.ckpt"
    return "last step" if last else getattr(trainer.checkpoint_callback, "monitor", None) or "last step"


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
        cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=False,
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
