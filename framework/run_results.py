"""What one run folder holds, read with care: results, configuration, learning curves and probe artefacts."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

Curve = list[tuple[int, float]]  # points (step, value)
# What a run folder holds at least one of; the last one, what probes leave without the command line's `fit`.
MARKS = ("metrics.json", "config.yaml", "logs", "probes/*/step=*.json")
OTHER_MEASURES = (
    "perplexity",
    "squared_error",
    "return",
)  # what a test set may have in place of an accuracy, or beside


@dataclass
class RunResults:
    """The content of a run folder. What is missing or broken is left out here and told in `notes`.

    Attributes:
        folder: the run folder.
        metrics: ``metrics.json``; empty while the run is unfinished.
        config: ``config.yaml``; empty where there is none.
        curves: log key to its points ``(step, value)``, over all starts of the run.
        probes: probe name to step to the artefact (``scalars``, ``tables``, ``figures``).
        notes: one sentence about everything that could not be read, and about every control of a probe that failed.
        label: the run's name in tables and pictures.
    """

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    probes: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    label: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run was tested."""
        return bool(self.stages)

    @property
    def recipe(self) -> str:
        """The recipe's name, else that of the folder above, or of this one where a recipe can't be told."""
        known = self.metrics.get("recipe") or _entry(self.config, "recipe", "name")
        return str(known or (self.folder.parent if self.metrics or self.config else self.folder).name)

    @property
    def about(self) -> str:
        """The recipe's one sentence; it is not about other data."""
        return "" if self.other_data else str(_entry(self.config, "recipe", "about") or "")

    @property
    def seed(self) -> str:
        """The run's seed."""
        return str(self.metrics.get("seed", self.config.get("seed_everything", "?")))

    @property
    def model(self) -> str:
        """The network's class name."""
        path = _entry(self.config, "model", "init_args", "model", "class_path") or _entry(
            self.config, "model", "class_path"
        )
        return str(self.metrics.get("model") or str(path or "?").rpartition(".")[2])

    @property
    def data(self) -> str:
        """The data module's class name and its split."""
        name = str(_entry(self.config, "data", "class_path") or "?").rpartition(".")[2]
        split = _entry(self.config, "data", "init_args", "split")
        return str(self.metrics.get("data") or f"{name} {split or ''}".strip())

    @property
    def steps(self) -> int | None:
        """Optimizer steps; of an unfinished run, the last step that was logged."""
        logged = [points[-1][0] for points in self.curves.values()]
        return _number(self.metrics.get("steps")) or (max(logged) if logged else None)

    @property
    def budget(self) -> float | None:
        """Steps as a fraction of the published runs' steps; None where nothing is published on these data."""
        if self.other_data:
            return None
        published = _number(_entry(self.config, "recipe", "published_steps"))
        return _number(self.metrics.get("budget")) or (self.steps / published if published and self.steps else None)

    @property
    def incomplete(self) -> list[str]:
        """Groups whose training data were only partly at hand; they are reported apart."""
        named = self.metrics.get("incomplete")
        return [str(name) for name in named] if isinstance(named, list) else []

    @property
    def options(self) -> dict[str, str]:
        """Options of the model, the data and the test that the command line set otherwise than the recipe."""
        ours = ("model", "data", "trainer.limit_test_batches", "trainer.limit_train_batches")
        free = ("data.seed", "data.data_dir", "data.init_args.data_dir", "data.init_args.seed")
        found, words = dict[str, str](), shlex.split(str(self.metrics.get("command") or ""))
        for word, after in pairwise([*words, ""]):
            option, equals, value = word.removeprefix("--").partition("=")
            meant = any(option == our or option.startswith(f"{our}.") for our in ours)
            if word.startswith("--") and option not in free and meant:
                found[option] = value if equals else "" if after == "&&" or after.startswith("--") else after
        return found

    @property
    def other_data(self) -> bool:
        """Whether the command line put other data or another split in the place of the recipe's."""
        return not {"data", "data.class_path", "data.split", "data.init_args.split"}.isdisjoint(self.options)

    @property
    def note(self) -> str:
        """Why results on these data are not comparable with published ones, such as a generated training set."""
        return str(self.metrics.get("note") or "")

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Test set to its result: ``ood``, ``sequence_accuracy`` and ``groups``; in-distribution sets first."""
        stages = self.metrics.get("stages", {})
        return dict(sorted(stages.items(), key=lambda item: bool(item[1].get("ood"))))

    @property
    def published(self) -> list[dict[str, Any]]:
        """The published numbers of the recipe with a stage and an error or a return; none where the data differ."""
        listed = None if self.other_data else _entry(self.config, "recipe", "published")
        numbered = [p for p in listed if isinstance(p, dict)] if isinstance(listed, list) else []
        numbered = [
            p | {key: _number(p.get(key)) for key in ("error", "mean_return", "std", "runs")}
            for p in numbered
            if "stage" in p
        ]
        return [p for p in numbered if p["error"] is not None or p["mean_return"] is not None]

    @property
    def max_steps(self) -> float:
        """The most steps that the configuration allows."""
        steps = _number(_entry(self.config, "trainer", "max_steps"))
        return math.inf if steps is None or steps < 0 else steps

    @property
    def sweep(self) -> dict[str, Any]:
        """What the recipe says of the option that it sweeps; empty where it sweeps none or the data differ."""
        sweep: Any = None if self.other_data else _entry(self.config, "recipe", "sweep")
        usable = isinstance(sweep, dict) and sweep.get("option") and isinstance(sweep.get("values"), list)
        return sweep if usable else {}

    @property
    def setting(self) -> dict[str, Any]:
        """The option that the recipe sweeps and its value in this run."""
        setting = self.metrics.get("setting")
        return setting if isinstance(setting, dict) else {}

    @property
    def why_not_validated(self) -> str:
        """Why the run has no validation curve, to be added to a sentence; empty where it is not known."""
        trainer = _entry(self.config, "trainer")
        every = _number(_entry(trainer, "val_check_interval"))
        if _entry(trainer, "limit_val_batches") == 0:
            return ": its validation is off (trainer.limit_val_batches: 0)"
        batches = (self.steps or 0) * (_number(_entry(trainer, "accumulate_grad_batches")) or 1)
        if isinstance(every, int) and batches < every:
            return f": the first is after {every:,} batches (trainer.val_check_interval), it has trained on {batches:,}"
        return ""

    def measure(self, stage: str, name: str) -> float | None:
        """Return ``loss`` or one of `OTHER_MEASURES` of a test set, or its ``error`` (1 less the accuracy)."""
        if name != "error":
            return _number(_entry(self.stages, stage, name))
        accuracy = self.accuracy(stage)
        return None if accuracy is None else 1 - accuracy

    def groups(self, stage: str, measure: str = "sequence_accuracy") -> dict[str, float]:
        """Return group to accuracy, or another measure, of a test set, in natural order (qa2 before qa10)."""
        groups = self.stages.get(stage, {}).get("groups")
        found = {name: _number(_entry(g, measure)) for name, g in groups.items()} if isinstance(groups, dict) else {}
        return {name: value for name in sorted(found, key=natural) if (value := found[name]) is not None}

    def return_error(self, stage: str, group: str | None = None) -> float | None:
        """Return the standard error of the return of a test set or of a group; None of a single episode or agent."""
        at = (stage,) if group is None else (stage, "groups", group)
        several = (_number(_entry(self.stages, *at, "examples")) or 0) > 1
        return _number(_entry(self.stages, *at, "return_error")) if several else None

    def after(self, stage: str, measure: str) -> list[tuple[int, float]]:
        """Return (n, "accuracy" or "squared_error" of what follows n examples) of a test set of streams, in order."""
        found = {key: _number(value) for key, value in self.stages.get(stage, {}).items()}
        after = f"{measure}_after_"
        return sorted(
            (int(key[len(after) :]), a) for key, a in found.items() if key.startswith(after) and a is not None
        )

    @property
    def over(self) -> str:
        """What the benchmark's accuracy is a mean over: ``groups`` or ``examples``."""
        return str(self.metrics.get("over") or "groups")

    def accuracy(self, stage: str, over: str = "") -> float | None:
        """Return the mean accuracy over the groups of a test set without the incomplete ones, or that of its examples.

        Which of the two, `over` says, else the benchmark; a set without groups has only its examples.
        """
        over = over or self.over
        if over == "examples":
            return _number(self.stages.get(stage, {}).get("sequence_accuracy"))
        groups = [accuracy for name, accuracy in self.groups(stage).items() if name not in self.incomplete]
        return sum(groups) / len(groups) if groups else _number(self.stages.get(stage, {}).get("sequence_accuracy"))

    def scalars_over_steps(self, probe: str) -> list[tuple[int, dict[str, float]]]:
        """Return ``(step, scalars)`` of every measurement of a probe, finite numbers only."""
        return [(step, _numbers(_entry(a, "scalars"))) for step, a in sorted(self.probes.get(probe, {}).items())]

    def last_scalars(self) -> dict[str, dict[str, float]]:
        """Return probe to its scalars at the last measured step."""
        recorded = self.metrics.get("probes") if not self.probes else None
        latest = (
            recorded if isinstance(recorded, dict) else {name: steps[max(steps)] for name, steps in self.probes.items()}
        )
        return {name: _numbers(_entry(result, "scalars")) for name, result in sorted(latest.items())}


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``qa2`` before ``qa10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_runs(folders: Sequence[Path]) -> list[RunResults]:
    """Read run folders and give each a name that tells it from the others.

    Raises:
        FileNotFoundError: a folder is no run folder.
    """
    runs = [read_run(folder) for folder in folders]
    names = []
    for run in runs:
        at = "".join(f" {option.rpartition('.')[2]}={value}" for option, value in run.setting.items())
        # Without its note: a name is short.
        own = f"{run.model} on {run.data.removesuffix(f' ({run.note})')}"
        what = f"{own if run.other_data else run.recipe}{at}"
        seeded = what if run.seed == "?" else f"{what} seed {run.seed}"
        names.append([seeded, f"{what} {run.folder.name}", str(run.folder)])
    # The shortest kind of name that no two runs share.
    kind = next((k for k in range(2) if len({name[k] for name in names}) == len(names)), 2)
    for run, name in zip(runs, names, strict=True):
        run.label = name[kind]
    return runs


def read_run(folder: Path) -> RunResults:
    """Read a run folder, finished or not.

    Raises:
        FileNotFoundError: it holds neither results nor a configuration nor logs nor results of probes.
    """
    marks = [mark for mark in MARKS if any(folder.glob(mark))]
    if not marks:
        wrong = "holds no metrics.json, config.yaml, logs or results of probes" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(f"{folder} {wrong}. Give a run folder, as `algornn fit` names it when it starts.")
    run = RunResults(folder.resolve())
    run.metrics, run.config = _read_metrics(run), _read_config(run)
    run.curves, run.probes = _read_curves(run), _read_probes(run)
    if marks == list(MARKS[3:]):
        run.notes.insert(0, f"{run.folder.name} holds results of probes alone: of model and data it tells nothing.")
    elif not run.finished:
        at = f" Shown is what it wrote up to step {run.steps:,}." if run.steps else ""
        run.notes.insert(
            0, f"{folder.name} has no test results yet: it is unfinished, or was stopped before its test.{at}"
        )
    if cut := run.options.get("trainer.limit_test_batches"):
        run.notes.append(f"{folder.name} was tested on a part of every set: trainer.limit_test_batches is {cut}.")
    return run


def _read_metrics(run: RunResults) -> dict[str, Any]:
    path = run.folder / "metrics.json"
    metrics = _read_json(path, run.notes) if path.exists() else {}
    stages = metrics.get("stages")
    usable = {str(n): s for n, s in stages.items() if _usable(s)} if isinstance(stages, dict) else {}
    if metrics and (not isinstance(stages, dict) or len(usable) < len(stages)):
        run.notes.append(
            f"{path} lacks the results of some test sets; `algornn test --run_dir {run.folder}` writes it anew."
        )
    return metrics | {"stages": usable} if metrics else {}


def _usable(stage: Any) -> bool:
    groups = _entry(stage, "groups")
    parts = [stage, *(groups.values() if isinstance(groups, dict) else ())]
    measures = ("sequence_accuracy", *OTHER_MEASURES)
    return any(_number(_entry(part, measure)) is not None for part in parts for measure in measures)


def _read_config(run: RunResults) -> dict[str, Any]:
    path = run.folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        run.notes.append(f"{path} cannot be read as YAML and is left out.")
        return {}
    return config


def _read_curves(run: RunResults) -> dict[str, Curve]:
    """Join the logs of every start: from where a resumed run goes on, the later log holds."""
    curves: dict[str, Curve] = {}
    for file in sorted(run.folder.glob("logs/version_*/metrics.csv"), key=lambda f: natural(f.parent.name)):
        for key, points in _read_log(file, run.notes).items():
            curves[key] = [point for point in curves.get(key, []) if point[0] < points[0][0]] + points
    return curves


def _read_log(file: Path, notes: list[str]) -> dict[str, Curve]:
    curves: dict[str, dict[int, float]] = {}
    try:
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            step = _parse(row.get("step"))
            for key, text in row.items():
                # The last line of a run that still goes on may be cut short: such cells are no numbers.
                if step is not None and key not in (None, "step", "epoch") and (value := _parse(text)) is not None:
                    curves.setdefault(key, {})[int(step)] = value
    except (OSError, ValueError, csv.Error):
        notes.append(f"{file} cannot be read and is left out.")
        return {}
    return {key: sorted(points.items()) for key, points in curves.items()}


def _read_probes(run: RunResults) -> dict[str, dict[int, dict[str, Any]]]:
    probes: dict[str, dict[int, dict[str, Any]]] = {}
    for file, step in _artefacts(run.folder):
        artefact = _read_json(file, run.notes)
        if artefact:
            probes.setdefault(file.parent.name, {})[step] = artefact
    for probe, steps in probes.items():  # a number whose control failed must not be read without it
        failures = steps[max(steps)].get("failures")
        told = failures if isinstance(failures, list) else []
        run.notes += [f"{probe}, step {max(steps):,}: a control failed: {failure}" for failure in told]
    return probes


def _artefacts(folder: Path) -> Iterator[tuple[Path, int]]:
    for file in sorted(folder.glob("probes/*/step=*.json"), key=lambda f: natural(str(f))):
        step = file.stem.removeprefix("step=")
        if step.isdigit():
            yield file, int(step)


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict):
        notes.append(f"{path} cannot be read as JSON and is left out.")
        return {}
    return document


def _entry(tree: Any, *keys: str) -> Any:
    """Return ``tree[key][key]...``, or None where some level is missing or is no dictionary."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _number(value: Any) -> Any:
    """Return a finite number as it is, anything else as None."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _numbers(values: Any) -> dict[str, float]:
    """Return the entries of a dictionary that are finite numbers."""
    return {str(k): v for k, v in values.items() if _number(v) is not None} if isinstance(values, dict) else {}


def _parse(text: Any) -> float | None:
    try:
        return _number(float(text))
    except (TypeError, ValueError):
        return None
