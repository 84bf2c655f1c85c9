"""`algornn reproduce RECIPE --seeds N`: a recipe over seeds -> a results file, published against measured."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from algornn import recipes
from algornn.report import result_table
from algornn.run import read_config, read_json


def main(args: list[str]) -> None:
    """Train a recipe once per seed, or take finished runs, and append what was measured to its results file.

    A seed's run lies in ``runs/<recipe>/seed=<seed>``, where the recipe sweeps an option in
    ``runs/<recipe>/<option>=<value>/seed=<seed>``: a finished one is not trained again, an interrupted one goes on.

    Args:
        args: the command line's arguments.

    Raises:
        FileNotFoundError: there is no such recipe or run.
        ValueError: a given run is of another recipe, or not finished.
        ChildProcessError: a training run failed.
    """
    parser = argparse.ArgumentParser(prog="algornn reproduce", description=__doc__, exit_on_error=False)
    parser.add_argument("recipe", help="a packaged recipe's name or a YAML file")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; they are 1, 2, ..., N")
    parser.add_argument(
        "--runs", type=Path, nargs="+", metavar="RUN", help="finished runs to record instead of training"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results files")
    asked, overrides = parser.parse_known_args(args)
    if asked.seeds < 1:
        raise ValueError(f"--seeds is the number of training runs, expected at least 1, got {asked.seeds}.")
    config = recipes.path(asked.recipe)
    swept = (recipe_of(config).get("sweep") or {}).get("option")
    if any(swept and override.partition("=")[0] == f"--{swept}" for override in overrides):
        raise ValueError(f"--{swept} is what the recipe {asked.recipe} sweeps; run one value by `algornn fit`.")
    name = recipe_of(config).get("name") or Path(config).stem
    read_results(asked.results / f"{name}.json")  # before hours of training, not after
    runs = asked.runs or [
        train(asked.recipe, name, seed, setting + overrides, folder)
        for folder, setting in settings(recipe_of(config).get("sweep"))
        for seed in range(1, asked.seeds + 1)
    ]
    file = record(name, config, runs, asked.results)
    print(f"{result_table(runs)}\n\nresults file: {file}")


def settings(sweep: dict[str, Any] | None) -> list[tuple[str, list[str]]]:
    """Return, for every value of the option that a recipe sweeps, a folder's name and what the command line says."""
    if not sweep:
        return [("", [])]
    option = str(sweep["option"])
    return [(f"{option.rpartition('.')[2]}={value}", [f"--{option}", str(value)]) for value in sweep["values"]]


def train(recipe: str, name: str, seed: int, overrides: list[str], setting: str = "") -> Path:
    """Run ``algornn fit`` for one seed in a process of its own and return its run folder.

    Args:
        recipe: the recipe, as the command line names it.
        name: its own name, that of the folder.
        seed: the seed.
        overrides: further options.
        setting: a folder below the recipe's, for a value of the option that it sweeps.

    Raises:
        FileExistsError: the folder holds a finished run of other options.
        ChildProcessError: training failed.
    """
    run = Path("runs", name, setting, f"seed={seed}")
    fit = ["fit", "--config", recipe, "--run_dir", str(run), "--seed_everything", str(seed), "--data.seed", str(seed)]
    fit += overrides
    if (run / "metrics.json").is_file():
        before = str(finished(run, name).get("command", "unknown")).partition(" && ")[0]
        before = before.removesuffix(" --ckpt_path last")
        if before != shlex.join(["algornn", *fit]):
            raise FileExistsError(
                f"{run} holds a run with other options: {before}. Move it away, or give it as --runs."
            )
        print(f"seed {seed}: already finished in {run}", flush=True)
        return run
    command = [sys.executable, "-m", "algornn.cli", *fit]
    if (run / "checkpoints" / "last.ckpt").is_file():
        print(f"seed {seed}: going on from {run / 'checkpoints' / 'last.ckpt'}", flush=True)
        command += ["--ckpt_path", "last"]
    status = _ended(command)
    if status == 2:  # a mistake, which the training has told in one sentence
        raise SystemExit(status)
    if status or not (run / "metrics.json").is_file():
        raise ChildProcessError(
            f"Seed {seed} of {name} did not finish; its message is above. The same command goes on with it."
        )
    return run


def _ended(command: list[str]) -> int:
    """Run a command to its end and return its exit status; what ends this process ends it, too."""

    def terminated(*_: Any) -> None:
        raise SIGTERMException

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        child = subprocess.Popen(command)
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


def record(name: str, config: str, runs: list[Path], folder: Path) -> Path:
    """Append the metrics of `runs` to ``<folder>/<name>.json`` and return that file; what it holds stays as it is."""
    file = folder / f"{name}.json"
    recorded = read_results(file)
    for run in runs:
        metrics = finished(run, name)
        if metrics not in recorded:
            recorded.append(metrics)
    results = {"recipe": recipe_of(config) | {"name": name}, "runs": recorded}
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(file)
    return file


def finished(run: Path, name: str) -> dict[str, Any]:
    """Return the metrics of a finished run of the recipe `name`.

    Raises:
        FileNotFoundError: the run has no ``metrics.json``.
        ValueError: the run is of another recipe.
    """
    file = run / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{run} holds no metrics.json: the run is not finished. Go on with it by --ckpt_path last."
        )
    metrics = read_json(file)
    if "recipe" not in metrics:
        raise ValueError(f"{file} is damaged. `algornn test --run_dir {run}` writes it anew.")
    if metrics["recipe"] != name:
        raise ValueError(f"{run} is a run of {metrics['recipe']!r}, not of {name!r}. Give runs of one recipe.")
    return metrics


def recipe_of(config: str) -> dict[str, Any]:
    """Return what a configuration says of itself under ``recipe``, which may be nothing.

    Raises:
        ValueError: the file holds no options.
    """
    return read_config(Path(config)).get("recipe") or {}


def read_results(file: Path) -> list[dict[str, Any]]:
    """Return the runs of a results file, none where there is no such file.

    Raises:
        ValueError: the file is damaged or something else, or its folder is a file.
    """
    there = next(folder for folder in file.absolute().parents if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, where a folder of results files belongs. Give another --results.")
    runs = read_json(file).get("runs") if file.is_file() else []
    if not isinstance(runs, list):
        raise ValueError(f"{file} is not a results file, or damaged. Mend it, move it away, or give another --results.")
    return runs
