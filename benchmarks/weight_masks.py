"""Do masks find the weights of each sub-task? A network that adds and multiplies, and one that adds two pairs.

    python benchmarks/weight_masks.py [--tasks add_mul double_addition] [--seeds 1 2 3] [--steps 20000]
        [--untrained 1 2 3] [--runs runs/weight_masks] [--out FILE]

For every task and seed: `algornn fit --config TASK_feed_forward` (400, 400 and 200 units, 20,000 steps), then
`WeightMaskProbe` on problems of its training set, half of them to learn the masks and half to measure them: two masks
of every sub-task, one of all, and one of every sub-task on the network with its weights permuted; then one of every
sub-task on an untrained network of the run's seed (`--untrained` says for which seeds). A problem counts as right when
all its digits are. What is finished is not done again, and what is interrupted goes on.

The marks: the network is right in at least 99 % of the problems; a sub-task's mask in at least 95 % of its own and at
most 20 % of the other's; masks of one sub-task overlap more (IoU) than masks of two; masks on the permuted and on the
untrained network are right by chance (1 %) and 5 points at most.

Csordás, van Steenkiste and Schmidhuber (2021), https://arxiv.org/abs/2010.02066, section 3.1, which shows bars only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import results_file, write_results
from torch import Tensor, nn

from algornn.probe_command import from_run
from algornn.probes import WeightMaskProbe
from algornn.probes.batches import Batches
from algornn.probes.mask_overlap import SCRAMBLED

TASKS, PUBLISHED_STEPS, BATCHES = ("add_mul", "double_addition"), 20_000, 800
CHANCE = 0.01  # one of a hundred results


def all_digits(logits: Tensor, batch: Any) -> Tensor:
    """Whether all digits that are asked for are right."""
    return ((logits.argmax(-1) == batch.target) | (batch.target < 0)).all(-1)


def trained(task: str, seed: int, runs: Path) -> Path:
    """The folder of a finished run of the task's recipe."""
    run = runs / f"{task}-seed={seed}"
    if not (run / "metrics.json").is_file():
        command = [sys.executable, "-m", "algornn.cli", "fit", "--config", f"{task}_feed_forward"]
        command += ["--run_dir", str(run), "--seed_everything", str(seed), "--data.seed", str(seed)]
        if (run / "checkpoints" / "last.ckpt").is_file():
            command += ["--ckpt_path", "last"]
        subprocess.run(command, check=True)
    return run


def masked(run: Path, steps: int, untrained: bool = False, seed: int = 0) -> dict[str, Any]:
    """The masks' scalars and tables for a run, and the seconds of processor time they took."""
    folder = run / f"{'untrained-' if untrained else ''}masks-steps={steps}"
    file = folder / "result.json"
    if not file.is_file():
        learner, loader, step = from_run(run, "best", "train")
        sample = Batches.of(loader, BATCHES, 0, torch.device("cpu"))
        tasks = {name: list(batches) for name, batches in sample.by_group().items()}
        controls = {"repeats": 1 if untrained else 2, "control_network": not untrained}
        probe = WeightMaskProbe(tasks, steps=steps, score=all_digits, max_batches=None, **controls)
        if untrained:
            torch.manual_seed(seed)
            for module in learner.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        start = time.process_time()
        result = probe.run(learner, tasks[min(tasks)], folder)
        result.save(file, step=0 if untrained else step, seconds=time.process_time() - start)
    return json.loads(file.read_text())


def row_of(task: str, seed: int, steps: int, run: Path, untrained: bool) -> dict[str, Any]:
    """What was measured, and the marks that were missed."""
    result = masked(run, steps)
    scalars, accuracy = result["scalars"], result["tables"]["accuracy"]
    first, second = (name for name in accuracy if name not in ("unmasked", "control"))
    row: dict[str, Any] = {"task": task, "seed": seed, "mask_steps": steps, "budget": steps / PUBLISHED_STEPS}
    row |= {f"{mask} on {on}": accuracy[mask][on] for mask in accuracy for on in (first, second)}
    row |= {"same_task_iou": scalars["iou_ceiling"], "cross_task_iou": scalars["iou"], "floor": scalars["iou_floor"]}
    row |= {key: scalars[key] for key in ("density", "control_density", "sharing", "inverse_accuracy")}
    row["permuted_network"] = scalars[f"{SCRAMBLED}_accuracy"]
    marks = {
        **{f"network on {on} >= .99": accuracy["unmasked"][on] >= 0.99 for on in (first, second)},
        **{f"{own} on {own} >= .95": accuracy[own][own] >= 0.95 for own in (first, second)},
        f"{first} on {second} <= .20": accuracy[first][second] <= 0.2,
        f"{second} on {first} <= .20": accuracy[second][first] <= 0.2,
        "same-task IoU > cross-task IoU": scalars["iou_ceiling"] > scalars["iou"],
        "permuted network <= .06": scalars[f"{SCRAMBLED}_accuracy"] <= CHANCE + 0.05,
    }
    if untrained:
        accuracy = masked(run, steps, True, seed)["tables"]["accuracy"]
        row["untrained_network"] = max(accuracy[own][own] for own in (first, second))
        marks["untrained network <= .06"] = row["untrained_network"] <= CHANCE + 0.05
    return row | {"missed": [mark for mark, met in marks.items() if not met], "seconds": result.get("seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=PUBLISHED_STEPS, help="of learning each mask")
    parser.add_argument(
        "--untrained", type=int, nargs="*", default=[1, 2, 3], help="seeds with the untrained network, too"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/weight_masks"))
    parser.add_argument("--out", type=results_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    for task in args.tasks:
        for seed in args.seeds:
            run = trained(task, seed, args.runs)
            rows.append(row_of(task, seed, args.steps, run, seed in args.untrained))
            for key, value in rows[-1].items():
                print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
            print(flush=True)
            write_results(args.out, rows)


if __name__ == "__main__":
    main()
