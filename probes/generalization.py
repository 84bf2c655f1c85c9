r"""Does a model that solves what it was trained on solve what it was not?

Exact match counts an example as right where the whole prediction is the target. With :math:`a_{iid}` and
:math:`a_{ood}`, its mean in and out of the training distribution,

.. math:: gap = a_{iid} - a_{ood}

Its mean against length or depth is the productivity curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from algornn.probes.batches import Batches, field_of, group_name
from algornn.probes.controls import bootstrap, finite, mean_interval, permuted, with_interval
from algornn.probes.predictions import Answers, Field, Predict, exact_match, known, numbered
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject

IID = "iid"


class GeneralizationGapProbe(Probe):
    r"""Exact match in and out of distribution, by group, and against length.

    * `exact_match` in distribution, `ood_exact_match` over all examples out of distribution, and their `gap`, each
      with a bootstrap interval over examples; `exact_match/<set>` and `gap/<set>` of each set out of distribution;
      groups of a set are in the table `sets` and, as `exact_match/<set>: <group>`, among the scalars;
    * `length_match`: whether a prediction at least has the target's length, which tells a wrong end from wrong content;
    * the productivity curve: exact match against `length`.

    Controls: `chance` and `ood_chance`, the exact match with the targets of other examples, drawn by permutation. The
    exact match in distribution is the ceiling; where it is at chance, there is no gap to speak of.

    Never choose a checkpoint by `ood_exact_match` of a test set. That is what validation sets out of distribution, of
    lengths between those of training and of the test, are for.

    Args:
        ood: sets out of distribution, {name: loader}; or the names of those groups of the probe's own batches that are;
            None: all is in distribution.
        target: field of the targets, see `Answers`.
        mask: field that says where targets count, see `Answers`.
        predict: `predict(model, batch) -> ids`, see `Answers`; None: the largest output.
        eos: the token that ends a sequence, see `Answers`.
        length: field of the length or depth ``[B]`` of each example; None: the number of tokens of its target.
        group: field ``[B]`` of the group of each example; None: `group` if there is one.
        schedule: the arguments of `Probe`; its loader is in distribution.

    Source: the tests of Hupkes, Dankers, Mul and Bruni (2020), JAIR 67, https://arxiv.org/abs/1908.08351, section 4;
    ends apart from content: Newman, Hewitt, Liang and Manning (2020), https://arxiv.org/abs/2010.07174.
    """

    def __init__(
        self,
        ood: Mapping[str, Iterable[Any]] | Sequence[str] | None = None,
        target: Field | None = None,
        mask: Field | None = None,
        predict: Predict | None = None,
        eos: int | None = None,
        length: Field | None = None,
        group: Field | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if isinstance(ood, str):
            raise TypeError(f"ood is a list of groups or {{name: loader}}, got the text {ood!r}: write [{ood!r}].")
        if ood is not None and IID in ood:
            raise ValueError(f"A set out of distribution cannot be named {IID!r}: give it another name in ood.")
        self.ood = ood
        self.target = target
        self.mask = mask
        self.predict = predict
        self.eos = eos
        self.length = length
        self.group = group

    def measure(self, subject: Subject) -> ProbeResult:
        """One forward (or decoding) per batch of every set, shared out over the processes."""
        sets = {IID: subject.loader}
        if isinstance(self.ood, Mapping):
            sets |= {k: Batches.of(v, self.max_batches, self.seed, subject.device) for k, v in self.ood.items()}
        items = [(name, index) for name, batches in sets.items() for index in range(len(batches))]
        parts = subject.map(lambda item, _: self._batch(subject, item[0], item[1], sets[item[0]]), items)
        rows = [row for part in parts for row in part]
        if self.ood is not None and not isinstance(self.ood, Mapping):
            rows = _moved(rows, self.ood)
        return report(rows, subject.generator)

    def _batch(self, subject: Subject, name: str, index: int, batches: Batches) -> list[dict[str, Any]]:
        """One row per example."""
        batch = batches[index]
        answers = Answers(self.target, self.mask, self.predict, self.eos)
        predictions, targets = answers.of(subject, batch)
        group = known(batch, ("group",)) if self.group is None else field_of(batch, self.group, "group")
        groups = [None] * len(targets) if group is None else [_name(g, batches.names) for g in _values(group)]
        lengths = list(map(len, targets)) if self.length is None else _values(field_of(batch, self.length, "length"))
        columns = {"prediction": predictions, "target": targets, "group": groups, "length": lengths}
        for key in ("group", "length"):
            if len(columns[key]) != len(targets):
                raise ValueError(f"{key} must give one value per example, {len(targets)}, got {len(columns[key])}.")
        return [{"set": name, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]


def gap_of(iid: Tensor, ood: Tensor, generator: torch.Generator) -> tuple[float, tuple[float, float]]:
    """The generalization gap, mean(iid) - mean(ood), and its bootstrap interval.

    Args:
        iid: correctness ``[n]`` of independent examples, 0 to 1.
        ood: the same ``[m]``, of others.
        generator: draws the resamples.

    Returns:
        Not-a-number where one of them is empty.
    """
    correct = torch.cat([iid, ood]).double()
    inside = torch.arange(len(correct)) < len(iid)

    def gap(indices: Tensor) -> float:
        drawn, own = correct[indices], inside[indices]
        return float(drawn[own].mean() - drawn[~own].mean())

    return gap(torch.arange(len(correct))), bootstrap(gap, len(correct), generator)


def productivity(correct: Tensor, lengths: Sequence[float]) -> dict[float, tuple[float, int]]:
    """Exact match and number of examples at each length, in the order of the lengths."""
    of = torch.tensor(list(lengths), dtype=torch.float64)
    return {
        (int(n) if n == int(n) else n): (float(correct[of == n].double().mean()), int((of == n).sum()))
        for n in of.unique().tolist()
    }


def chance_of(predictions: Sequence[Any], targets: Sequence[Any], generator: torch.Generator) -> float:
    """Mean exact match of predictions with the targets of other examples, over 20 permutations."""
    a, b = numbered(predictions, targets)
    return permuted(lambda order: float((a == b[order]).double().mean()), len(a), generator)[0]


def report(rows: Sequence[dict[str, Any]], generator: torch.Generator) -> ProbeResult:
    """Scalars, tables and figures of examples.

    Args:
        rows: one dictionary per example: `set` ("iid" or the name of a set out of distribution), `prediction` and
            `target` (sequences), `group` (a name or None), `length` (a number).
        generator: draws intervals and permutations.
    """
    of = {name: [row for row in rows if row["set"] == name] for name in dict.fromkeys([IID, *_column(rows, "set")])}
    outside = [row for name, part in of.items() if name != IID for row in part]
    scalars: dict[str, float] = _pooled(of[IID], "", generator)
    if outside:
        gap, interval = gap_of(_correct(of[IID]), _correct(outside), generator)
        scalars = {**_pooled(outside, "ood_", generator), **with_interval("gap", gap, interval), **scalars}
        scalars = {key: scalars[key] for key in sorted(scalars, key=_order)}
    table = [_row(name, None, part, generator) for name, part in of.items() if part]
    for name, part in of.items():
        groups = sorted({row["group"] for row in part} - {None, name})
        table += [_row(name, g, [r for r in part if r["group"] == g], generator) for g in groups]
    for entry in table:
        name = entry["set"] if entry["group"] is None else f"{entry['set']}: {entry['group']}"
        scalars[f"exact_match/{name}"] = entry["exact_match"]
        if entry["set"] != IID and entry["group"] is None:
            scalars[f"gap/{name}"] = scalars["exact_match"] - entry["exact_match"]
    curves = {name: productivity(_correct(part), _column(part, "length")) for name, part in of.items() if part}
    tables = {"sets": table, "productivity": _curve_table(curves)}
    return ProbeResult(finite(scalars), tables, _figures(table, curves, scalars), _failures(scalars))


def _order(key: str) -> int:
    """The key scalars first."""
    first = ("exact_match", "ood_exact_match", "gap", "chance", "ood_chance")
    return first.index(key) if key in first else len(first)


def _pooled(rows: Sequence[dict[str, Any]], prefix: str, generator: torch.Generator) -> dict[str, float]:
    """Exact match with interval, chance and length match of a set of examples."""
    if not rows:
        return {f"{prefix}exact_match": math.nan}
    correct, predictions, targets = _correct(rows), _column(rows, "prediction"), _column(rows, "target")
    interval = mean_interval(correct, generator)
    return {
        **with_interval(f"{prefix}exact_match", float(correct.double().mean()), interval),
        f"{prefix}chance": chance_of(predictions, targets, generator),
        f"{prefix}length_match": sum(len(p) == len(t) for p, t in zip(predictions, targets, strict=True)) / len(rows),
    }


def _row(name: str, group: str | None, rows: Sequence[dict[str, Any]], generator: torch.Generator) -> dict[str, Any]:
    correct = _correct(rows)
    interval = mean_interval(correct, generator)
    match = with_interval("exact_match", float(correct.double().mean()), interval)
    return {"set": name, "group": group, "examples": len(rows), **match}


def _correct(rows: Sequence[dict[str, Any]]) -> Tensor:
    return exact_match(_column(rows, "prediction"), _column(rows, "target"))


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows]


def _moved(rows: list[dict[str, Any]], ood: Sequence[str]) -> list[dict[str, Any]]:
    """Make sets of the groups that are out of distribution.

    Raises:
        ValueError: no example belongs to one of them.
    """
    groups = sorted({str(row["group"]) for row in rows if row["group"] is not None})
    unknown = sorted(set(ood) - set(groups))
    if unknown:
        raise ValueError(f"ood names {unknown}, which no example belongs to; there are {groups}.")
    return [{**row, "set": row["group"]} if row["group"] in ood else row for row in rows]


def _values(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else list(column)


def _name(group: Any, names: Sequence[str]) -> str:
    """The name of a group that is given by its number or itself is a name."""
    if not isinstance(group, int):
        return str(group)
    return group_name(group, names)


def _curve_table(curves: dict[str, dict[float, tuple[float, int]]]) -> list[dict[str, Any]]:
    return [
        {"set": name, "length": length, "exact_match": match, "examples": n}
        for name, curve in curves.items()
        for length, (match, n) in curve.items()
    ]


def _failures(scalars: dict[str, float]) -> list[str]:
    low, chance = scalars.get("exact_match_low", math.nan), scalars.get("chance", math.nan)
    if math.isnan(low) or low > chance:
        return []
    return [
        f"Exact match in distribution ({scalars['exact_match']:.3f}) is not above that with the targets of other "
        f"examples ({chance:.3f}): the model has not learned the task (or always answers the same), so do not read a "
        "gap, small or large, as a statement about generalization."
    ]


def _figures(
    table: list[dict[str, Any]], curves: dict[str, dict[float, tuple[float, int]]], scalars: dict[str, float]
) -> dict[str, dict[str, Any]]:
    names = [row["set"] if row["group"] is None else f"{row['set']}: {row['group']}" for row in table]
    chance = [scalars.get("chance" if row["set"] == IID else "ood_chance") for row in table]
    ends = [[row[f"exact_match_{end}"] for row in table] for end in ("low", "high")]
    figures = {
        "exact_match": {
            "kind": "bar",
            "title": "Exact match in and out of distribution",
            "xlabel": "set of examples",
            "ylabel": "exact match",
            "ylim": [0, 1],
            "x": names,
            "series": {"exact match": [row["exact_match"] for row in table]},
            "intervals": {"exact match": ends},
            "levels": {"targets of other examples": chance},
        }
    }
    lengths = sorted({length for curve in curves.values() for length in curve})
    if len(lengths) > 1:
        figures["productivity"] = {
            "kind": "line",
            "title": "Exact match by length",
            "xlabel": "length or depth",
            "ylabel": "exact match",
            "ylim": [0, 1],
            "x": lengths,
            "series": {name: [curve.get(n, (None,))[0] for n in lengths] for name, curve in curves.items()},
        }
    return figures
