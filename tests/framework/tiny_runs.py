"""A configuration small enough for tests, and the command line in a process of its own."""

import csv
import os
import subprocess
import sys
from pathlib import Path

TINY = """
recipe: {name: tiny, about: a test}
seed_everything: 3
data: {class_path: StoryWorld, init_args: {batch_size: 16, train_size: 330, test_size: 151}}
model:
  class_path: QuestionAnswering
  init_args:
    model: {class_path: TPRRNN, init_args: {entity_size: 8, role_size: 4, hidden_size: 8}}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
trainer:
  accelerator: cpu
  max_steps: 60
  max_epochs: -1
  val_check_interval: 20
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
"""


def algornn(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    done = subprocess.run(command(*args), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def command(*args: str) -> list[str]:
    """The command line as an interpreter and its arguments."""
    return [sys.executable, "-m", "algornn.cli", *args]


def environment() -> dict[str, str]:
    """One thread per process, no memory of earlier runs."""
    return {k: v for k, v in os.environ.items() if k != "ALGORNN_RUN_STAMP"} | {"OMP_NUM_THREADS": "1"}


def curve(run: Path, key: str) -> dict[int, float]:
    """A logged value by step, over all starts of a run."""
    points: dict[int, float] = {}
    for file in sorted(run.glob("logs/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            if row.get(key):
                points[int(row["step"])] = float(row[key])
    return points


def image_folders(root: Path) -> None:
    """Paint Omniglot and Mini-ImageNet of ten classes in every folder, two grey images each, below `root`."""
    from PIL import Image

    names = ["omniglot/images_background/a", "omniglot/images_evaluation/b"]
    names += [f"mini_imagenet/{stage}" for stage in ("train", "val", "test")]
    for number, name in enumerate(names):
        for c in range(10):
            folder = root / name / f"class{10 * number + c}"
            folder.mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (20, 20), (20 * c, 20 * c, 100 * n)).save(folder / f"{n}.png")
