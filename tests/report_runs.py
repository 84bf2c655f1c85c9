"""Run folders as trainings leave them, for the tests of the report."""

import csv
import json
import math
import random
from pathlib import Path

import yaml

GROUPS = [f"qa{task}" for task in range(1, 21)]
FIGURES = ("recall", "overlap", "kept")
# Task 16 is the hard one, task 3 lacks data, names unseen in training cost tasks 7 and 18 most.
IID = dict.fromkeys(GROUPS, 0.99) | {"qa3": 0.51, "qa16": 0.55, "qa2": 0.97, "qa1": 1.0}
OOD = {name: accuracy - 0.04 for name, accuracy in IID.items()} | {"qa7": 0.62, "qa18": 0.5}
PUBLISHED = [
    {"stage": "test", "error": 1.34, "std": 0.52, "runs": 8, "verified": True, "source": "Schlag and Schmidhuber 2018"},
    {"stage": "sys", "error": 8.74, "runs": 10, "verified": False, "source": "as re-run by Park et al. 2024"},
]


def stage(accuracies: dict[str, float], ood: bool) -> dict:
    groups = {name: {"sequence_accuracy": accuracy, "examples": 1000} for name, accuracy in accuracies.items()}
    mean = sum(accuracies.values()) / len(accuracies)
    return {"ood": ood, "loss": 0.2, "sequence_accuracy": mean, "examples": 1000 * len(groups), "groups": groups}


def metrics(seed: int = 1, **changes) -> dict:
    return {
        "recipe": "babi_all_tprrnn",
        "seed": seed,
        "model": "TPRRNN",
        "parameters": 141985,
        "data": "BAbI en-valid-10k",
        "steps": 100_000,
        "budget": 0.1,
        "wall_seconds": 5025.3,
        "stages": {"test": stage(IID, ood=False), "sys": stage(OOD, ood=True)},
        "incomplete": ["qa3"],
        "probes": {},
        "command": "algornn fit --config babi_all_tprrnn",
        "commit": "0123456789ab",
        "versions": {"torch": "2.13.0"},
        "hardware": "a processor, 1 thread(s)",
    } | changes


def write_log(file: Path, first: int, last: int, rng: random.Random) -> None:
    file.parent.mkdir(parents=True)
    with file.open("w", newline="") as stream:
        log = csv.DictWriter(stream, ["epoch", "step", "train/loss", "val/sequence_accuracy"])
        log.writeheader()
        for step in range(first, last, 250):
            loss = 0.1 + 2.5 * math.exp(-step / 20_000) * rng.uniform(0.7, 1.3)
            log.writerow({"epoch": 0, "step": step, "train/loss": loss})
            if step % 5000 == 0:
                accuracy = 0.95 - 0.7 * math.exp(-step / 15_000)
                log.writerow({"epoch": 0, "step": step, "val/sequence_accuracy": accuracy})


def artefact(scalars: dict[str, float], step: int) -> dict:
    ages = list(range(40))
    recall = [math.exp(-age * 2000 / (step + 1000)) for age in ages]
    tasks = ["qa1", "qa2", "qa7", "qa16"]
    overlap = [[1.0 if i == j else 1 / (1 + abs(i - j)) for j in range(4)] for i in range(4)]
    line = {"kind": "line", "title": "Recall by age", "xlabel": "age (later writes)", "ylabel": "recall", "x": ages}
    heat = {"kind": "heatmap", "title": "Overlap", "xlabel": "task", "ylabel": "task", "x": tasks, "y": tasks}
    bars = {"kind": "bar", "title": "Kept weights", "xlabel": "layer", "ylabel": "share", "x": ["a", "b"]}
    figures = {
        "recall": line | {"series": {"asked for": recall, "another's": [0.1] * 40}},
        "overlap": heat | {"values": overlap},
        "kept": bars | {"series": {"kept": [0.2, 0.6], "chance": [0.5, None]}},
    }
    return {"name": "P", "about": "What P shows.", "step": step, "scalars": scalars, "tables": {}, "figures": figures}


def write_run(folder: Path, seed: int = 1, finished: bool = True, steps: int = 100_000, **changes) -> Path:
    """Write a run folder as a resumed run leaves it: two logs that overlap, two probes at ten steps."""
    rng = random.Random(seed)
    write_log(folder / "logs/version_0/metrics.csv", 0, steps * 6 // 10, rng)
    write_log(folder / "logs/version_1/metrics.csv", steps // 2, steps + 1, rng)
    for step in range(10_000, steps + 1, 10_000):
        rank = {
            "effective_rank": 5 + step / 10_000,
            "capacity_used": step / 200_000,
            "recall_accuracy": 0.9,
            "interference": 0.3,
        }
        masks = {f"kept/{name}": rng.random() for name in GROUPS} | {"overlap": 0.5 - step / 1e6, "ratio_control": 0.1}
        masks |= {f"accuracy/{name}": rng.random() for name in GROUPS}
        for probe, scalars in {"fast_weight": rank, "weight_mask": masks}.items():
            file = folder / "probes" / probe / f"step={step}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(artefact(scalars, step)))
    config = {
        "seed_everything": seed,
        "recipe": {
            "name": "babi_all_tprrnn",
            "about": "All tasks.",
            "published_steps": 1_000_000,
            "published": PUBLISHED,
        },
        "model": {"class_path": "algornn.QuestionAnswering", "init_args": {"model": {"class_path": "algornn.TPRRNN"}}},
        "data": {"class_path": "algornn.datamodules.BAbI", "init_args": {"split": "en-valid-10k"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        (folder / "metrics.json").write_text(json.dumps(metrics(seed, **changes)))
    return folder
