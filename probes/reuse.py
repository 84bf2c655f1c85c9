r"""Do sub-tasks pull the same weights the same way, and live in the same directions of activation space?

With :math:`g_j` the gradient of the loss of sub-task j over one half of its batches, and :math:`g'_k` that of k over
the other half:

* gradient cosine :math:`\cos(g_j, g'_k)`, per parameter and over all of them; conflict: how often it is below 0 for two
  batches of different sub-tasks;
* importance overlap: IoU of the weights whose :math:`|\theta g_j|` is among the largest (`mask_overlap`);
* subspace overlap :math:`\|U_j^T U'_k\|_F^2 / r` of the first r principal directions of the activations at a site;
* transfer: accuracy, on sub-task k, of a linear classifier of a label fitted to the activations of j.

The ceiling of each is the same sub-task, j = k, on the two halves. The floors: the cosine in a network with scrambled
weights, which learned nothing, and that of j and a sub-task k whose targets are shuffled over its examples, which keeps
nothing of k but its inputs and how frequent each target is; the IoU of independent masks; r / d, the overlap of random
subspaces of d dimensions; and a classifier fitted to permuted labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from algornn.probes.batches import field_of, size_of, take, with_field
from algornn.probes.controls import around, finite, scrambled, with_interval
from algornn.probes.mask_overlap import overlap
from algornn.probes.model_copy import call_with
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import joined, vectors_of
from algornn.probes.subject import Subject

_NOISY = 0.3  # cosine of a sub-task's gradients on two halves below which they are mostly noise


class ReuseProbe(Probe):
    """Gradient cosine, conflict, overlap of important weights, and at `sites` overlap of subspaces and transfer.

    Sub-tasks are the batches' groups. Even batches of one are compared with odd ones of another; a single batch is cut
    in two. The interval is 1.96 bootstrap standard errors over batches: the noise of a batch that is drawn twice counts
    twice, so that percentiles of the resamples would lie too low.

    Read with care: a cosine means something only between its floor and its ceiling. A low ceiling says that gradients
    are mostly noise, as at a minimum of the loss: take larger batches.

    Args:
        sites: places whose activations ``[B, ...]`` are compared, flattened to ``[B, d]``.
        label: field of the batch with the classes that the classifiers tell apart, integers ``[B]``; None: no transfer.
        target: field of the batch with what the loss asks for ``[B, ...]``, such as "y", or a list of fields that go
            together, such as ["target", "target_mask"]; shuffled for a floor of the cosine
            (`gradient_cosine_shuffled`). None: without this floor.
        kept: share of all weights that counts as important.
        rank: r; less where a half has too few examples or dimensions.
        schedule: the arguments of `Probe`. Every batch's gradient is kept in memory.

    Source: conflict: Yu et al. (2020), NeurIPS, https://arxiv.org/abs/2001.06782; importance: Molchanov et al. (2017),
    https://arxiv.org/abs/1611.06440, equation 7; subspaces: Krzanowski (1979), JASA 74.
    """

    tried = ("sites", "label")

    def __init__(
        self,
        sites: Sequence[str] = (),
        label: int | Callable[[Any], Any] | str | None = None,
        target: int | Sequence[int | str] | str | None = None,
        kept: float = 0.1,
        rank: int = 4,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if isinstance(sites, str):
            raise TypeError(f"sites is a list of sites, got the text {sites!r}: write [{sites!r}].")
        if not 0 < kept <= 1:
            raise ValueError(f"kept is a share of the weights, above 0 and at most 1, got {kept}.")
        if rank < 1:
            raise ValueError(f"rank must be positive, got {rank}.")
        if label is not None and not sites:
            raise ValueError("label without sites: name the sites whose activations the classifiers read.")
        self.sites = sites
        self.label = label
        self.target = target
        self.kept = kept
        self.rank = rank

    def try_out(self, subject: Subject) -> None:
        """Raise before a training where there are no groups, or the loss does not fit the model."""
        super().try_out(subject)
        subject.loader.by_group()
        subject.forward(subject.loader[0])

    def measure(self, subject: Subject) -> ProbeResult:
        """Gradients and activations of every batch, shared out over the processes, then their comparison."""
        names, pieces = _pieces(subject)
        control = scrambled(subject.model, subject.generator)

        def one(piece: tuple[int, int, Any], generator: torch.Generator) -> dict[str, Any]:
            batch = piece[2]
            row: dict[str, Any] = {"size": size_of(batch), "gradient": gradient_of(subject.model, subject.loss, batch)}
            row["control"] = gradient_of(control, subject.loss, batch)
            if self.target is not None:
                row["shuffled"] = gradient_of(subject.model, subject.loss, _shuffled(batch, self.target, generator))
            row["sites"] = {site: vectors_of(subject, site, batch) for site in self.sites}
            row["label"] = None if self.label is None else torch.as_tensor(field_of(batch, self.label))
            return row

        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient for recurrent layers in eval mode
            rows = subject.map(one, pieces)
        size = torch.tensor([row["size"] for row in rows], dtype=torch.float64)
        of = torch.tensor([piece[:2] for piece in pieces])
        member = (of[:, 0] == torch.arange(len(names))[:, None, None]) & (of[:, 1] == torch.arange(2)[:, None])
        halves = member.transpose(0, 1).double() * size  # [2, tasks, batches]
        parameters = {n: p for n, p in subject.model.named_parameters() if p.is_floating_point()}
        scalars, tables = _gradients(rows, halves, parameters, subject.generator, self.kept)
        for site in self.sites:
            more, tables[f"subspace/{site}"] = self._site(rows, member, site, subject.generator)
            scalars |= {(f"{key}/{site}" if len(self.sites) > 1 else key): value for key, value in more.items()}
        scalars["tasks"] = len(names)
        return ProbeResult(
            finite(scalars), {"tasks": names, **tables}, _figures(names, tables, scalars), _failures(scalars)
        )

    def _site(
        self, rows: list[dict[str, Any]], member: Tensor, site: str, generator: torch.Generator
    ) -> tuple[dict[str, float], list[list[float]]]:
        """Overlap of subspaces and transfer at one site."""

        def of(task: int, half: int, key: Callable[[dict[str, Any]], Tensor]) -> Tensor:
            chosen = [key(rows[i]) for i in member[task, half].nonzero().flatten().tolist()]
            return joined(f"activation at {site!r}", chosen) if chosen else key(rows[0])[:0]

        K = len(member)
        x = [[of(k, h, lambda row: row["sites"][site]) for h in (0, 1)] for k in range(K)]
        r = max(0, min(self.rank, *(min(len(part) - 1, part.shape[-1]) for pair in x for part in pair)))
        U = [[principal(part, r) for part in pair] for pair in x]
        found = torch.tensor([[subspace_overlap(U[j][0], U[k][1]) for k in range(K)] for j in range(K)])
        scalars = _off_and_on("subspace_overlap", found)
        scalars["subspace_overlap_floor"] = r / x[0][0].shape[-1] if r else math.nan
        if self.label is not None:
            y = [[of(k, h, lambda row: row["label"].flatten()) for h in (0, 1)] for k in range(K)]
            order = [torch.randperm(len(y[k][0]), generator=generator, device=generator.device).cpu() for k in range(K)]
            for suffix in ("", "_permuted"):
                labels = [y[k][0][order[k]] if suffix else y[k][0] for k in range(K)]
                fits = [[transfer_accuracy(x[j][0], labels[j], x[k][1], y[k][1]) for k in range(K)] for j in range(K)]
                scalars |= _off_and_on(f"transfer_accuracy{suffix}", torch.tensor(fits))
            scalars.pop("transfer_accuracy_permuted_ceiling")
        return scalars, found.tolist()


def gradient_of(model: nn.Module, loss: Callable[..., Tensor], batch: Any) -> Tensor:
    """The gradient of a batch's loss in all parameters, flat ``[P]``, on the CPU; zeros where there is none.

    Raises:
        ValueError: the loss depends on no parameter.
    """
    leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.is_floating_point()}
    value = loss(lambda *args, **kwargs: call_with(model, leaves, *args, **kwargs), batch)
    if not value.requires_grad:
        raise ValueError("The loss does not depend on the model's parameters: is the forward under no_grad?")
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves.values(), strict=True)]
    return torch.cat([part.flatten() for part in parts]).cpu()


def cosines(gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Cosines ``[K, K]`` of weighted sums of vectors, from their inner products.

    Args:
        gram: inner products ``[n, n]``.
        left: weights of the vectors ``[K, n]`` in the sums that are the rows.
        right: the same of the columns.

    Returns:
        Not-a-number where a sum is zero or has no vector.
    """
    length = [(w @ gram * w).sum(1).clamp(min=0).sqrt() for w in (left, right)]
    return left @ gram @ right.T / (length[0][:, None] * length[1])


def principal(x: Tensor, r: int) -> Tensor:
    """The first r principal directions ``[d, r]`` of activations ``[n, d]``; rows that are not finite are left out."""
    x = x[x.isfinite().all(-1)]
    if r < 1 or len(x) <= r:
        return x.new_full((x.shape[-1], max(r, 1)), math.nan)
    centred = x - x.mean(0)
    _, sigma, V = torch.linalg.svd(centred, full_matrices=False)
    # A direction in which nothing varies is not one.
    known = sigma[:r] > 1e-9 * sigma[0].clamp(min=1e-300)
    return V[:r].T.where(known, torch.nan)


def subspace_overlap(U: Tensor, V: Tensor) -> float:
    """||U^T V||_F^2 / r of orthonormal columns ``[d, r]``: 1 for the same subspace, 0 for orthogonal ones."""
    return float((U.T @ V).square().sum() / U.shape[1])


def transfer_accuracy(x: Tensor, y: Tensor, x_other: Tensor, y_other: Tensor) -> float:
    """Accuracy on (x_other, y_other) of a ridge classifier fitted to (x, y); not-a-number without two classes."""
    from sklearn.linear_model import RidgeClassifier

    known, known_other = x.isfinite().all(-1), x_other.isfinite().all(-1)
    if not known_other.any() or len(y[known].unique()) < 2:
        return math.nan
    fitted = RidgeClassifier().fit(x[known].numpy(), y[known].numpy())
    return float(fitted.score(x_other[known_other].numpy(), y_other[known_other].numpy()))


def _shuffled(batch: Any, target: int | Sequence[int | str] | str, generator: torch.Generator) -> Any:
    """The batch with its targets in another order."""
    order = torch.randperm(size_of(batch), generator=generator, device=generator.device)
    for field in [target] if isinstance(target, (str, int)) else target:
        asked = field_of(batch, field)
        if not isinstance(asked, Tensor) or len(asked.shape[:1]) == 0 or len(asked) != len(order):
            raise ValueError(f"target is a field with a tensor [B, ...] to shuffle, {field!r} has none.")
        batch = with_field(batch, field, asked[order.to(asked.device)])
    return batch


def _pieces(subject: Subject) -> tuple[list[str], list[tuple[int, int, Any]]]:
    """The names of the tasks, and their batches as (task, half, batch); a task's only batch is cut in two."""
    tasks = subject.loader.by_group()
    if len(tasks) < 2:
        raise ValueError(f"Reuse needs two sub-tasks or more, but the batches' groups are {list(tasks)}.")
    pieces: list[tuple[int, int, Any]] = []
    for k, batches in enumerate(tasks.values()):
        size = size_of(batches[0])
        if len(batches) == 1 and size > 1:
            pieces += [(k, h, take(batches[0], rows)) for h, rows in enumerate((slice(0, None, 2), slice(1, None, 2)))]
        else:
            pieces += [(k, i % 2, batches[i]) for i in range(len(batches))]
    return list(tasks), pieces


def _gradients(
    rows: list[dict[str, Any]],
    halves: Tensor,
    parameters: Mapping[str, Tensor],
    generator: torch.Generator,
    kept: float,
) -> tuple[dict[str, float], dict[str, Any]]:
    """What the gradients tell: cosines per layer and pooled, conflict, overlap of important weights."""
    sizes = {name: p.numel() for name, p in parameters.items()}
    g = torch.stack([row["gradient"] for row in rows]).double()
    grams = {name: part @ part.T for name, part in zip(sizes, g.split(list(sizes.values()), 1), strict=True)}
    gram = torch.stack(list(grams.values())).sum(0)
    control = torch.stack([row["control"] for row in rows]).double()
    scalars = _off_and_on("gradient_cosine", table := cosines(gram, *halves))

    def resampled(chosen: Tensor) -> float:
        weight = torch.bincount(chosen, minlength=len(g))
        return _off_and_on("c", cosines(gram, *(halves * weight)))["c"]

    drawn = torch.randint(len(g), (200, len(g)), generator=generator, device=generator.device).cpu()
    interval = around(scalars["gradient_cosine"], [resampled(chosen) for chosen in drawn], -1, 1)
    scalars |= with_interval("gradient_cosine", scalars["gradient_cosine"], interval)
    scalars["gradient_cosine_scrambled"] = _off_and_on("c", cosines(control @ control.T, *halves))["c"]
    if "shuffled" in rows[0]:
        both = torch.cat([g, torch.stack([row["shuffled"] for row in rows]).double()])
        plain, other = (torch.cat(pair, 1) for pair in ((halves[0], 0 * halves[0]), (0 * halves[1], halves[1])))
        scalars["gradient_cosine_shuffled"] = _off_and_on("c", cosines(both @ both.T, plain, other))["c"]
    task = halves.sum(0).argmax(0)
    same = task[:, None] == task
    pair = ~torch.eye(len(g), dtype=torch.bool)
    scalars["conflict"] = float((gram < 0)[~same].double().mean())
    scalars["conflict_ceiling"] = float((gram < 0)[same & pair].double().mean())
    theta = torch.cat([p.detach().flatten() for p in parameters.values()]).double().cpu()
    masks = [[important(w @ g, theta, kept) for w in half] for half in halves]
    pairs = [[overlap(a, b, sizes) for b in masks[1]] for a in masks[0]]
    for key, name in {"iou": "importance_iou", "iou_floor": "importance_iou_floor"}.items():
        scalars |= _off_and_on(name, torch.tensor([[pair[key] for pair in row] for row in pairs]))
    scalars.pop("importance_iou_floor_ceiling")
    layers = {name: _off_and_on("c", cosines(part, *halves)) for name, part in grams.items()}
    for name, found in layers.items():
        scalars[f"gradient_cosine/{name}"] = found["c"]
    tables = {
        "gradient_cosine": table.tolist(),
        "layers": {name: {"cosine": found["c"], "ceiling": found["c_ceiling"]} for name, found in layers.items()},
    }
    return scalars, tables


def important(gradient: Tensor, theta: Tensor, kept: float) -> Tensor:
    """Which weights are among the share `kept` of the largest |theta gradient|, ``[P]`` bool; zeros never are."""
    size = (theta * gradient).abs().nan_to_num(0)
    mask = torch.zeros(len(theta), dtype=torch.bool)
    mask[size.argsort(descending=True, stable=True)[: max(1, round(kept * len(theta)))]] = True
    return mask & (size > 0)


def _off_and_on(name: str, table: Tensor) -> dict[str, float]:
    """The mean between different tasks, and of the same (the ceiling), of a table ``[K, K]``."""
    on = table.diagonal()
    off = torch.stack([table[j, k] for j, k in permutations(range(len(table)), 2)])
    return {name: float(off.double().nanmean()), f"{name}_ceiling": float(on.double().nanmean())}


def _failures(scalars: dict[str, float]) -> list[str]:
    failures = []
    ceiling, low = scalars["gradient_cosine_ceiling"], scalars["gradient_cosine_low"]
    if not ceiling >= _NOISY:
        failures.append(
            f"Gradients of the same sub-task on other batches have a cosine of {ceiling:.2f}: they are mostly noise; "
            "do not conclude from low cosines that sub-tasks share nothing, but take larger or more batches."
        )
    floor = scalars["gradient_cosine_scrambled"]
    if scalars["gradient_cosine"] > 0 and not low > floor:
        failures.append(
            f"In a network that learned nothing the sub-tasks' gradients are as alike (cosine {floor:.2f}): do not "
            "conclude that the model learned to reuse weights."
        )
    shuffled = scalars.get("gradient_cosine_shuffled", -1.0)
    if scalars["gradient_cosine"] > 0 and not low > shuffled:
        failures.append(
            f"With shuffled targets the sub-tasks' gradients are as alike (cosine {shuffled:.2f}): do not conclude "
            "that they ask for the same: their inputs, or how frequent each target is, explain it."
        )
    if scalars.get("transfer_accuracy_ceiling", 1.0) <= scalars.get("transfer_accuracy_permuted", 0.0):
        failures.append(
            "A classifier fitted to permuted labels does as well as one fitted to the sub-task itself: the label can "
            "not be read at the site; do not conclude anything from the transfer."
        )
    return failures


def _figures(names: list[str], tables: dict[str, Any], scalars: dict[str, float]) -> dict[str, dict[str, Any]]:
    def heat(title: str, values: list[list[float]]) -> dict[str, Any]:
        where = {"xlabel": "sub-task, odd batches", "ylabel": "sub-task, even batches", "x": names, "y": names}
        return {"kind": "heatmap", "title": title, **where, "values": values}

    layers = tables["layers"]
    figures = {
        "gradient_cosine": heat("Cosine of sub-tasks' gradients (diagonal: ceiling)", tables["gradient_cosine"]),
        "layers": {
            "kind": "bar",
            "title": "Cosine of sub-tasks' gradients by parameter",
            "xlabel": "parameter",
            "ylabel": "cosine",
            "x": list(layers),
            "series": {
                "different sub-tasks": [row["cosine"] for row in layers.values()],
                "the same (ceiling)": [row["ceiling"] for row in layers.values()],
            },
        },
    }
    for key in (key for key in tables if key.startswith("subspace/")):
        figures[key.replace("/", "_")] = heat(f"Overlap of subspaces at {key.split('/', 1)[1]}", tables[key])
    return figures
