r"""Measures on binary masks A, B over the same n weights, per layer and pooled.

IoU = |A & B| / |A or B|;  IoMin = |A & B| / min(|A|, |B|);  sharing of k = |M_k & union of the others| / |M_k|.

Independent masks of densities p, q in each layer would have |A & B| = sum of n p q and |A or B| = sum of
n (p + q - p q). That is the floor: with one layer p q / (p + q - p q), and max(p, q) for IoMin. Two masks of the same
sub-task give the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from algornn.probes.controls import finite
from algornn.probes.result import ProbeResult

Job = tuple[str, int]
SCRAMBLED = "scrambled"
_DROP = 0.1  # loss of accuracy, or excess of IoU over its ceiling, that makes a control fail


def overlap_report(
    rows: dict[Job, dict[str, Any]],
    tasks: list[str],
    sizes: dict[str, int],
    control: dict[str, dict[str, Any]] | None = None,
) -> ProbeResult:
    """Compare masks.

    Args:
        rows: (mask's name, repeat) to its `mask` ``[P]`` bool, whether it is `lost` (its logits are not finite), and
            its `loss`, `accuracy`, `inverse_loss` and `inverse_accuracy` per task. The names are "unmasked", "control"
            and the tasks.
        tasks: names of the tasks.
        sizes: number of weights of each layer, in the order of the masks; their sum is P.
        control: the rows "unmasked" and of each task for the network with scrambled weights; None or empty: none.
    """
    first = {name: row for (name, repeat), row in rows.items() if repeat == 0}
    tables: dict[str, Any] = {
        key: {name: row[key] for name, row in first.items()}
        for key in ("loss", "accuracy", "inverse_loss", "inverse_accuracy")
    }
    layers = list(sizes)
    counts = {name: _counts(row["mask"], sizes) for name, row in first.items()}
    tables["density"] = {
        name: {
            "all": int(sum(c)) / sum(sizes.values()),
            **{k: int(x) / sizes[k] for k, x in zip(layers, c, strict=True)},
        }
        for name, c in counts.items()
    }
    masks = [first[task]["mask"] for task in tasks]
    tables["iou"] = {a: {b: overlap(first[a]["mask"], first[b]["mask"], sizes)["iou"] for b in tasks} for a in tasks}
    tables["pairs"] = _pairs(first, tasks, sizes)
    tables["sharing"] = {task: _sharing(masks, k) for k, task in enumerate(tasks)}
    scalars = {**_scalars(tables, tasks), **_ceiling(rows, tasks, sizes), **_remaining(first, tasks)}
    scalars |= _controls(first, tasks)
    if control:
        scalars[f"{SCRAMBLED}_accuracy"] = _mean(control[task]["accuracy"][task] for task in tasks)
        scalars[f"{SCRAMBLED}_unmasked_accuracy"] = _mean(control["unmasked"]["accuracy"].values())
        tables[f"{SCRAMBLED}_accuracy"] = {name: row["accuracy"] for name, row in control.items()}
    lost = [name for name, row in first.items() if row.get("lost")]
    return ProbeResult(finite(scalars), tables, _figures(tables, tasks), _failures(finite(scalars), lost))


def overlap(a: Tensor, b: Tensor, sizes: dict[str, int]) -> dict[str, float]:
    """IoU and IoMin of two masks, pooled over layers, and what independent masks of the same densities would have."""
    A, B, both = (_counts(mask, sizes) for mask in (a, b, a & b))
    n = torch.tensor(list(sizes.values()), dtype=torch.float64)
    chance = (A * B / n).sum()
    total = A.sum() + B.sum()
    smaller = torch.minimum(A.sum(), B.sum())
    return {
        "iou": _ratio(both.sum(), total - both.sum()),
        "iou_floor": _ratio(chance, total - chance),
        "iomin": _ratio(both.sum(), smaller),
        "iomin_floor": _ratio(chance, smaller),
    }


def _counts(mask: Tensor, sizes: dict[str, int]) -> Tensor:
    """Kept weights per layer."""
    return torch.stack([part.sum() for part in mask.split(list(sizes.values()))]).double()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else math.nan


def _pairs(first: dict[str, dict[str, Any]], tasks: list[str], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """One row per pair of tasks and layer; the layer "all" is pooled."""
    pairs = []
    for a, b in combinations(tasks, 2):
        A, B = first[a]["mask"], first[b]["mask"]
        pairs.append({"a": a, "b": b, "layer": "all", **overlap(A, B, sizes)})
        parts = zip(sizes, A.split(list(sizes.values())), B.split(list(sizes.values())), strict=True)
        pairs += [{"a": a, "b": b, "layer": k, **overlap(x, y, {k: len(x)})} for k, x, y in parts]
    return pairs


def _sharing(masks: list[Tensor], k: int) -> float:
    """Share of mask k that some other task's mask keeps as well."""
    others = [mask for j, mask in enumerate(masks) if j != k]
    if not others:
        return math.nan
    return _ratio((masks[k] & torch.stack(others).any(0)).sum(), masks[k].sum())


def _scalars(tables: dict[str, Any], tasks: list[str]) -> dict[str, float]:
    own = {key: [tables[key][task][task] for task in tasks] for key in ("loss", "accuracy")}
    pooled = [pair for pair in tables["pairs"] if pair["layer"] == "all"]
    accuracy = tables["accuracy"]
    special = [
        accuracy[k][k] - max(accuracy[k][j] for j in tasks if j != k) for k in tasks if len(tasks) > 1
    ]  # 1: the mask solves its own task and no other
    scalars = {
        "accuracy": _mean(own["accuracy"]),
        "density": _mean([tables["density"][task]["all"] for task in tasks]),
        **{key: _mean([pair[key] for pair in pooled]) for key in ("iou", "iou_floor", "iomin", "iomin_floor")},
        "sharing": _mean(tables["sharing"].values()),
        "specialisation": _mean(special),
        "loss": _mean(own["loss"]),
    }
    for name in ("control", "unmasked"):
        scalars[f"{name}_accuracy"] = _mean(accuracy[name].values())
        scalars[f"{name}_loss"] = _mean(tables["loss"][name].values())
    scalars["control_density"] = tables["density"]["control"]["all"]
    for k, task in enumerate(tasks):
        scalars.update({f"accuracy/{task}": own["accuracy"][k], f"loss/{task}": own["loss"][k]})
        scalars[f"density/{task}"] = tables["density"][task]["all"]
    return scalars


def _ceiling(rows: dict[Job, dict[str, Any]], tasks: list[str], sizes: dict[str, int]) -> dict[str, float]:
    """Overlap of two masks of the same task; nothing without repeats."""
    same = [overlap(rows[t, 0]["mask"], rows[t, 1]["mask"], sizes) for t in tasks if (t, 1) in rows]
    return {f"{key}_ceiling": _mean([pair[key] for pair in same]) for key in ("iou", "iomin")}


def _remaining(first: dict[str, dict[str, Any]], tasks: list[str]) -> dict[str, float]:
    """Share of the control mask that a task's mask keeps, mean over tasks."""
    control = first["control"]["mask"]
    return {"remaining": _mean([_ratio((first[task]["mask"] & control).sum(), control.sum()) for task in tasks])}


def _controls(first: dict[str, dict[str, Any]], tasks: list[str]) -> dict[str, float]:
    """Accuracy of each task, and of the others, without its mask's weights, and with its mask on half of the layers."""
    inverse = {task: first[task]["inverse_accuracy"] for task in tasks}
    return {
        "inverse_accuracy": _mean(inverse[task][task] for task in tasks),
        "inverse_accuracy_of_others": _mean(inverse[k][j] for k in tasks for j in tasks if j != k),
        "half_mask_accuracy": _mean(first[task].get("half", math.nan) for task in tasks),
    }


def _failures(scalars: dict[str, float], lost: Sequence[str] = ()) -> list[str]:
    """What the reader must not conclude; a floor is not a least value: tasks on weights of their own lie below it."""
    failures = []
    if lost:
        failures.append(
            f"The loss was not a finite number while the masks of {', '.join(lost)} were learned: they are no masks, "
            "do not read what they keep."
        )
    control, unmasked = (scalars.get(f"{name}_accuracy", math.nan) for name in ("control", "unmasked"))
    if math.isnan(unmasked):
        failures.append(
            "No accuracy could be read from the model's output, so it was not tested whether masks hurt: pass score=, "
            "a function of (output, batch), and until then compare control_loss with unmasked_loss."
        )
    if control < unmasked - _DROP:
        failures.append(
            f"Under the control mask the accuracy falls from {unmasked:.2f} to {control:.2f}: masks remove weights "
            "that are needed; do not conclude anything from them, but lower beta or learn for more steps."
        )
    if scalars["control_density"] > 0.99:
        failures.append(
            f"The control mask keeps {scalars['control_density']:.1%} of the weights, so all overlaps are near 1: do "
            "not conclude that sub-tasks share weights, but raise beta or the number of steps."
        )
    ceiling = scalars.get("iou_ceiling", math.nan)
    if ceiling < scalars.get("iou_floor", math.nan) + 0.1 * _DROP:
        failures.append(
            f"Two masks of the same sub-task agree no better than independent ones (IoU {ceiling:.2f}): they depend on "
            "the noise of learning; do not conclude anything from overlaps."
        )
    elif scalars.get("iou", math.nan) > ceiling + _DROP:
        failures.append(
            f"Masks of different sub-tasks overlap more (IoU {scalars['iou']:.2f}) than two of the same one "
            f"({ceiling:.2f}): do not take this for complete sharing; masks are not stable."
        )
    chance, solved = (scalars.get(f"{SCRAMBLED}_{name}", math.nan) for name in ("unmasked_accuracy", "accuracy"))
    if solved - chance > 0.5 * (scalars.get("accuracy", math.nan) - chance) and solved - chance > _DROP:
        failures.append(
            f"Masks on a network that learned nothing reach an accuracy of {solved:.2f}: masks make a solution; do not "
            "conclude that the weights that they keep solve the sub-task in the trained network."
        )
    return failures


def _mean(values: Any) -> float:
    """Mean of the numbers that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _figures(tables: dict[str, Any], tasks: list[str]) -> dict[str, dict[str, Any]]:
    masks = list(tables["loss"])
    known = any(not math.isnan(x) for x in tables["accuracy"]["unmasked"].values())
    score = "accuracy" if known else "loss"
    return {
        score: {
            "kind": "heatmap",
            "title": f"{score.capitalize()} of each task under each mask",
            "xlabel": "task",
            "ylabel": "mask",
            "x": tasks,
            "y": masks,
            "values": [[tables[score][mask][task] for task in tasks] for mask in masks],
        },
        "overlap": {
            "kind": "heatmap",
            "title": "Overlap of the tasks' masks (IoU)",
            "xlabel": "task",
            "ylabel": "task",
            "x": tasks,
            "y": tasks,
            "values": [[tables["iou"][a][b] for b in tasks] for a in tasks],
        },
        "density": {
            "kind": "bar",
            "title": "Weights that each mask keeps",
            "xlabel": "mask",
            "ylabel": "share of all masked weights",
            "x": masks[1:],
            "series": {"kept": [tables["density"][mask]["all"] for mask in masks[1:]]},
        },
    }
