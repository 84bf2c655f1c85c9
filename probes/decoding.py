r"""Can a linear classifier read a label off an activation, and is that the training's doing?

A high accuracy alone says little: the classifier may know the inputs by heart, and a random network keeps much of what
it is given. So the accuracy on held-out examples stands beside that for control labels,

.. math:: selectivity = accuracy(labels) - accuracy(control labels),

beside that on a scrambled network, and beside the codelength of the labels (`codelength`), which also counts how many
examples the classifier needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from algornn.probes.batches import field_of
from algornn.probes.codelength import LogisticCoder, online_codelength
from algornn.probes.controls import bootstrap, finite, scrambled, with_interval
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import flat
from algornn.probes.sites import Site
from algornn.probes.subject import Subject

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
MODEL, SCRAMBLED = "model", "scrambled"  # networks
LABEL, CONTROL = "label", "control"  # tasks, beside SCRAMBLED: the label, from that network

Tasks = dict[str, dict[str, Any]]

_CONTROL = {
    True: "control labels ({:.3f}): the classifier may know types by heart, so do not conclude that it is encoded.",
    False: "permuted labels ({:.3f}): do not conclude that the label is there.",
}  # whether there are types


class Rows(NamedTuple):
    """The labelled rows of all batches, example by example, the examples in random order.

    Args:
        h: activations ``[n, d]`` of the model and of the scrambled network, by (network, site).
        y: labels ``[n]``, 0 to C - 1.
        control: control labels ``[n]``.
        example: ``[n]``, ascending from 0.
        C: number of classes.
    """

    h: dict[tuple[str, str], Tensor]
    y: Tensor
    control: Tensor
    example: Tensor
    C: int


class LinearDecodingProbe(Probe):
    r"""Accuracy, selectivity and online codelength of a linear classifier at each site, beside their controls.

    The classifier is logistic regression on standardised activations. It is fitted on a random part of the examples and
    scored on the others; tokens of one example never stand on both sides, nor in two portions of the online code.

    * accuracy: share of the held-out labels that are decoded; its floor `majority_accuracy` is that of always answering
      the most frequent label;
    * control: with `types`, one label per type, drawn once from the distribution of the labels (a classifier that
      decodes it has learned types by heart); without, the labels in permuted order;
    * scrambled: the labels decoded from the network with permuted weights;
    * compression: uniform codelength / online codelength, both in bits, of the labels of all examples. Where classes
      are unequal, the control's compression exceeds 1 as well.

    Scalars are means over the sites, and `<scalar>/<site>`; intervals are bootstraps over held-out examples. Rows whose
    activation is not finite are left out at their site.

    Args:
        sites: where to read (see `algornn.probes.sites`): activations ``[B, ...]``, flattened, for a label per example,
            ``[B, T, ...]`` for a label per token.
        label: the batches' field of integers ``[B]`` or ``[B, T]``, its place, or a function of the batch. Negative
            labels are ignored.
        types: a field like `label`: the input type of each label, such as the word, for the control task.
        held_out: share of the examples that is scored.
        portions: shares of the examples that have been sent after each portion, ascending to 1.
        l2: penalty on the squared weights (see `LogisticCoder`).
        max_iter: of each fit.
        schedule: the arguments of `Probe`.

    Source: Alain and Bengio (2016), https://arxiv.org/abs/1610.01644; control tasks: Hewitt and Liang (2019), EMNLP,
    https://arxiv.org/abs/1909.03368; codelength: Voita and Titov (2020), EMNLP, https://arxiv.org/abs/2003.12298.
    Deviations: the coder is linear (theirs: a network of two layers), and smoothed by one observation.
    """

    tried = ("types",)

    def __init__(
        self,
        sites: Sequence[str],
        label: int | Callable[[Any], Any] | str = "y",
        types: int | Callable[[Any], Any] | str | None = None,
        held_out: float = 0.25,
        portions: Sequence[float] = PORTIONS,
        l2: float = 1.0,
        max_iter: int = 1000,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if isinstance(sites, str) or not sites:
            raise ValueError(f"sites must be a list of at least one site, such as ['encoder'], got {sites!r}.")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {held_out}.")
        if not portions or sorted(set(portions)) != list(portions) or portions[0] <= 0 or portions[-1] != 1:
            raise ValueError(f"portions must ascend from above 0 to 1, such as (0.1, 0.5, 1), got {portions}.")
        if l2 <= 0 or max_iter < 1:
            raise ValueError(f"l2 and max_iter must be positive, got {l2} and {max_iter}.")
        self.sites = sites
        self.label = label
        self.types = types
        self.held_out = held_out
        self.portions = portions
        self.l2 = l2
        self.max_iter = max_iter

    def try_out(self, subject: Subject) -> None:
        """Raise before a training where labels and activations do not fit each other."""
        super().try_out(subject)
        batch = subject.loader[0]
        y = integers_of(batch, self.label, "label")
        for site, h in subject.activations(self.sites, batch).items():
            rows_of(h, y, site)

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather the activations, then fit the classifiers of every site, shared out over the processes."""
        rows = self._rows(subject)
        jobs = [(site, task) for site in dict.fromkeys(self.sites) for task in (LABEL, CONTROL, SCRAMBLED)]
        outcomes = subject.map(lambda job, generator: self._job(rows, *job), jobs)
        sites: dict[str, Tasks] = {}
        for (site, task), outcome in zip(jobs, outcomes, strict=True):
            sites.setdefault(site or "output", {})[task] = outcome
        return _report(sites, rows, self.types is not None, subject.generator)

    def _rows(self, subject: Subject) -> Rows:
        networks = {MODEL: subject.model, SCRAMBLED: scrambled(subject.model, subject.generator)}

        def gathered(index: int, generator: torch.Generator) -> dict[Any, Tensor]:
            batch = subject.loader[index]
            y = integers_of(batch, self.label, "label")
            marked = y >= 0
            part: dict[Any, Any] = {"y": y[marked], "example": marked.nonzero()[:, 0], "size": len(y)}
            if self.types is not None:
                types = integers_of(batch, self.types, "types")
                if types.shape != y.shape:
                    raise ValueError(f"types must have the labels' shape {list(y.shape)}, got {list(types.shape)}.")
                part["types"] = types[marked]
            for network, model in networks.items():
                for site, h in subject.activations(self.sites, batch, model).items():
                    part[network, site] = rows_of(h, y, site)[marked.to(h.device)]
            return part

        return joined(subject.map(gathered, range(len(subject.loader))), subject.generator)

    def _job(self, rows: Rows, site: str, task: str) -> dict[str, Any]:
        """One task at one site: its online codelength, and the hits among the labels of each held-out example."""
        h = rows.h[SCRAMBLED if task == SCRAMBLED else MODEL, site]
        known = h.isfinite().all(1)
        h, example = h[known].double(), rows.example[known]
        y = (rows.control if task == CONTROL else rows.y)[known]
        E = int(rows.example[-1]) + 1
        coder = LogisticCoder(rows.C, self.l2, self.max_iter)
        sent = sorted({max(1, math.floor(portion * E)) for portion in self.portions})
        ends = torch.searchsorted(example, torch.tensor(sent)).tolist()
        bits = online_codelength(h, y, ends, rows.C, coder)
        uniform = len(y) * math.log2(rows.C)
        return {
            **self._held_out(h, y, example, E, coder),
            "codelength": float(bits.sum()),
            "uniform_codelength": uniform,
            "compression": uniform / float(bits.sum()) if bits.sum() > 0 else math.nan,
            "bits": bits,
            "ends": ends,
            "sent": [examples / E for examples in sent],
            "n": len(y),
            "of": len(known),
            "unfinished": coder.unfinished,
        }

    def _held_out(self, h: Tensor, y: Tensor, example: Tensor, E: int, coder: LogisticCoder) -> dict[str, Tensor]:
        """Labels, hits, and hits of the most frequent label, of each of the last examples, fitted on the others."""
        split = E - max(1, round(self.held_out * E))
        train, test = example < split, example >= split
        guess = coder(h[train], y[train])(h[test]).argmax(1)
        frequent = torch.bincount(y[train], minlength=coder.C).argmax()
        place, truth = example[test] - split, y[test]
        weights = {"count": torch.ones_like(truth), "hits": guess == truth, "majority": truth == frequent}
        if not train.any():  # no accuracy, rather than one of a classifier that has seen nothing
            weights = {key: torch.zeros_like(truth) for key in weights}
        return {key: torch.bincount(place, weight.double(), E - split) for key, weight in weights.items()}


def integers_of(batch: Any, field: int | Callable[[Any], Any] | str, name: str) -> Tensor:
    """A field of integers ``[B, ...]`` of a batch, on the CPU.

    Raises:
        ValueError: it is absent, or no integers per example.
    """
    value = field_of(batch, field, name)
    if not isinstance(value, Tensor) or not value.ndim or value.is_floating_point() or value.is_complex():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of integers [B] or [B, T], got {found}; a function may make one.")
    return value.long().cpu()


def rows_of(h: Tensor, y: Tensor, site: str) -> Tensor:
    """Activations ``[*y.shape, d]``: whatever follows the dimensions of the labels, flattened.

    Raises:
        ValueError: the activation does not begin with the dimensions of the labels.
    """
    if h.shape[: y.ndim] != y.shape:
        place = Site.parse(site)
        deeper = h.shape[1 : y.ndim + 1] == y.shape  # such as the layers of a recurrent state
        last = f"the last of {len(h)} by {str(replace(place, slots=(*place.slots, -1)))!r}, " if deeper else ""
        raise ValueError(
            f"Labels {list(y.shape)} need activations {[*y.shape, 'd']}, got {list(h.shape)} at the site {site!r}: "
            f"choose {last}another site, or a function of the batch as label that gives one label per row."
        )
    return flat(h, y.ndim)


def joined(parts: list[dict[Any, Any]], generator: torch.Generator) -> Rows:
    """Join the batches' rows, put the examples into random order, and draw the control labels.

    Raises:
        ValueError: no row has a label, or a site's activations differ in size from batch to batch.
    """
    sizes = torch.tensor([0, *(part["size"] for part in parts)]).cumsum(0)
    example = torch.cat([part["example"] + start for part, start in zip(parts, sizes, strict=False)])
    if not len(example):
        raise ValueError("No label is 0 or above, so there is nothing to decode: check the argument label.")
    classes, y = torch.cat([part["y"] for part in parts]).unique(return_inverse=True)
    labelled, example = example.unique(return_inverse=True)  # examples without a label do not count
    place = torch.randperm(len(labelled), generator=generator, device=generator.device).cpu()[example]
    order = place.argsort(stable=True)
    h: dict[tuple[str, str], Tensor] = {}
    for key in (key for key in parts[0] if isinstance(key, tuple)):
        widths = sorted({part[key].shape[1] for part in parts})
        if len(widths) > 1:
            raise ValueError(f"The activations of an example at {key[1]!r} have {widths[0]} numbers in one batch and "
                             f"{widths[-1]} in another: choose a site of fixed size, such as one step.")  # fmt: skip
        h[key] = torch.cat([part[key] for part in parts])[order]
    y = y[order]
    if "types" in parts[0]:
        types = torch.cat([part["types"] for part in parts]).unique(return_inverse=True)[1][order]
        control = control_labels(y, types, generator)
    else:
        control = y[torch.randperm(len(y), generator=generator, device=generator.device).cpu()]
    return Rows(h, y, control, place[order], len(classes))


def control_labels(y: Tensor, types: Tensor, generator: torch.Generator) -> Tensor:
    """The control task: one label per type, drawn from the distribution of the labels ``[n]``, for each of n types."""
    share = torch.bincount(y).double().to(generator.device)
    drawn = torch.multinomial(share, int(types.max()) + 1, replacement=True, generator=generator).cpu()
    return drawn[types]


def _report(sites: dict[str, Tasks], rows: Rows, typed: bool, generator: torch.Generator) -> ProbeResult:
    """The means over the sites first, then every site, with what its controls say."""
    table = {site: _scalars([tasks], generator) for site, tasks in sites.items()}
    parts = {f"{key}/{site}": value for site, row in table.items() for key, value in row.items()}
    scalars = {**_scalars(list(sites.values()), generator), **parts}
    online = {site: _online(tasks[LABEL]) for site, tasks in sites.items()}
    failures = [sentence for site in sites for sentence in _failures(site, sites[site], table[site], typed)]
    if rows.C == 1:
        failures.insert(0, "All labels are the same: do not read these numbers, nothing was decoded.")
    tables = {"sites": table, "online": online}
    return ProbeResult(finite(scalars), tables, _figures(table, online, math.log2(rows.C)), failures)


def _scalars(sites: list[Tasks], generator: torch.Generator) -> dict[str, float]:
    """Means over the sites; intervals resample the held-out examples of all of them together."""

    def share(key: str, task: str, chosen: Tensor | slice = slice(None)) -> float:
        hits = torch.stack([tasks[task][key] for tasks in sites])[:, chosen].sum(1)
        count = torch.stack([tasks[task]["count"] for tasks in sites])[:, chosen].sum(1)
        return float((hits / count).nanmean())  # 0 / 0 is not a number

    def selectivity(chosen: Tensor | slice = slice(None)) -> float:
        return share("hits", LABEL, chosen) - share("hits", CONTROL, chosen)

    def mean(key: str, task: str) -> float:
        return float(torch.tensor([tasks[task][key] for tasks in sites], dtype=torch.float64).nanmean())

    n = len(sites[0][LABEL]["count"])
    interval = bootstrap(lambda chosen: share("hits", LABEL, chosen), n, generator)
    return {
        **with_interval("accuracy", share("hits", LABEL), interval),
        "control_accuracy": share("hits", CONTROL),
        "scrambled_accuracy": share("hits", SCRAMBLED),
        **with_interval("selectivity", selectivity(), bootstrap(selectivity, n, generator)),
        "compression": mean("compression", LABEL),
        "control_compression": mean("compression", CONTROL),
        "scrambled_compression": mean("compression", SCRAMBLED),
        "majority_accuracy": share("majority", LABEL),
        "codelength": mean("codelength", LABEL),
        "uniform_codelength": mean("uniform_codelength", LABEL),
        "control_codelength": mean("codelength", CONTROL),
        "scrambled_codelength": mean("codelength", SCRAMBLED),
    }


def _online(outcome: dict[str, Any]) -> dict[str, list[float]]:
    """Bits per label in every portion, against the share of the examples that had been sent before."""
    ends = torch.tensor([0, *outcome["ends"]])
    return {"seen": [0.0, *outcome["sent"][:-1]], "bits_per_label": (outcome["bits"] / ends.diff()).tolist()}


def _failures(site: str, tasks: Tasks, row: dict[str, float], typed: bool) -> list[str]:
    """One sentence per control that failed at a site; comparisons with what is not defined are false."""
    lost = {task: 1 - outcome["n"] / max(1, outcome["of"]) for task, outcome in tasks.items()}
    unfinished = sum(outcome["unfinished"] for outcome in tasks.values())
    said = f"accuracy {row['accuracy']:.3f}, from {row['accuracy_low']:.3f}"
    better = f"At {site} the label is not clearly better decoded ({said}) than"
    checks = [
        (lost[LABEL] > 0, f"At {site} {lost[LABEL]:.0%} of the activations are not finite and were left out: do not "
         "take the numbers for those of all examples."),
        (lost[SCRAMBLED] > 0, f"At {site} {lost[SCRAMBLED]:.0%} of the scrambled network's activations are not finite: "
         "do not compare with it."),
        (math.isnan(row["accuracy_low"]), f"At {site} too few examples are held out: do not judge the label by them."),
        (row["selectivity_low"] <= 0, f"{better} {_CONTROL[typed].format(row['control_accuracy'])}"),
        (row["accuracy_low"] <= row["scrambled_accuracy"], f"{better} from a scrambled network "
         f"({row['scrambled_accuracy']:.3f}): do not conclude that training put it there."),
        (unfinished > 0, f"At {site} {unfinished} fits did not converge: raise max_iter or l2 before you read on."),
    ]  # fmt: skip
    return [sentence for failed, sentence in checks if failed]


def _figures(table: dict[str, dict[str, float]], online: dict[str, Any], uniform: float) -> dict[str, dict[str, Any]]:
    def bars(title: str, ylabel: str, series: dict[str, str]) -> dict[str, Any]:
        values = {name: [row[key] for row in table.values()] for name, key in series.items()}
        return {"kind": "bar", "title": title, "xlabel": "site", "ylabel": ylabel, "x": list(table), "series": values}

    seen = next(iter(online.values()))["seen"]  # the same at every site
    accuracy = {
        "label": "accuracy",
        "control labels": "control_accuracy",
        "scrambled network": "scrambled_accuracy",
    }
    beside = {
        "ylim": [0, 1],
        "intervals": {"label": [[row[f"accuracy_{end}"] for row in table.values()] for end in ("low", "high")]},
        "levels": {"most frequent label": [row["majority_accuracy"] for row in table.values()]},
    }
    compression = {
        "label": "compression",
        "control labels": "control_compression",
        "scrambled network": "scrambled_compression",
    }
    return {
        "accuracy": {**bars("Accuracy of linear decoding", "share of held-out labels", accuracy), **beside},
        "compression": bars("Compression of the labels", "uniform / online codelength", compression),
        "online": {
            "kind": "line",
            "title": "Online code of the labels",
            "xlabel": "share of the examples seen before",
            "ylabel": "bits per label",
            "xscale": "log",  # most of the portions are small
            "x": seen,
            "series": {
                **{site: part["bits_per_label"] for site, part in online.items()},
                "uniform code": [uniform] * len(seen),
            },
        },
    }
