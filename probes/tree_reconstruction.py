r"""Can a representation be put together from its input's parts?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from algornn.probes import controls
from algornn.probes.batches import size_of
from algornn.probes.derivations import Forest
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import finite_rows, gathered, vectors_of
from algornn.probes.subject import Subject

COMPOSITIONS, DISTANCES = ("add", "linear", "bilinear", "mlp"), ("l2", "l1", "cosine")


class TreeReconstructionProbe(Probe):
    r"""Tree reconstruction error (TRE): how far activations are from the best composition of vectors of primitives.

    For a derivation D(x), a tree over primitives, vectors :math:`\eta` of primitives, and one function * for all nodes:

    .. math::
        TRE = \min_{\eta, *} mean_x \, \delta(h(x), \hat h(D(x))), \quad
        \hat h(leaf) = \eta_{leaf}, \quad \hat h(\langle a, b \rangle) = \hat h(a) * \hat h(b)

    * "add": a + b. With "l2" the minimum is solved for: least squares on how often each primitive occurs;
    * "linear": A a + B b;
    * "bilinear": A a + B b + C (P a . Q b), an elementwise product of at most 32 dimensions;
    * "mlp": A a + B b + C relu(P a + Q b + c).

    :math:`\delta` is "l2", the squared Euclidean distance, "l1", or "cosine", 1 - cos. `tre_normalised` is TRE divided
    by the mean distance to the mean activation: 0 for a code that is composed, 1 for one of which nothing is explained.

    Beside it: the error with the derivations of other examples (mean and standard deviation), which a function that can
    fit anything makes as small; the network with scrambled weights; and the floor, the error of a free vector for each
    derivation, below which no composition comes because the activation depends on more than that. The interval is a
    bootstrap over examples with the fitted vectors kept.

    Args:
        site: site of the activation; all its dimensions but the first are one vector.
        derivation: function of a batch, a list of B derivations: nested tuples, in which anything that is no tuple is
            a primitive. Nodes of more than two parts are composed from the left.
        composition: "add", "linear", "bilinear" or "mlp".
        distance: "l2", "l1" or "cosine".
        steps: of RMSprop, where the minimum is not solved for.
        lr: its learning rate, for activations scaled to a root mean square of 1; it falls linearly to 0.
        permutations: how often derivations are shuffled over the examples.
        schedule: the arguments of `Probe`.

    Source: Andreas (2019), ICLR, https://arxiv.org/abs/1902.07181, equations 2 and 3.
    Deviations: training begins at the least-squares solution of "add" plus noise (zero is a stationary point of a
    product), and the least error of all steps counts, at most that of "add".
    """

    tried = ("site",)

    def __init__(
        self,
        site: str,
        derivation: Callable[[Any], list[Any]],
        composition: str = "add",
        distance: str = "l2",
        steps: int = 400,
        lr: float = 1e-2,
        permutations: int = 5,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if composition not in COMPOSITIONS:
            raise ValueError(f"composition must be one of {list(COMPOSITIONS)}, got {composition!r}.")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {list(DISTANCES)}, got {distance!r}.")
        for name, value in {"steps": steps, "lr": lr, "permutations": permutations}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        self.site = site
        self.derivation = derivation
        self.composition = composition
        self.distance = distance
        self.steps = steps
        self.lr = lr
        self.permutations = permutations

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather activations and derivations; each fit is one job, shared out over the processes."""
        twin = controls.scrambled(subject.model, subject.generator)

        def read(batch: Any) -> dict[str, Any]:
            trees = list(self.derivation(batch))
            if len(trees) != size_of(batch):
                raise ValueError(f"derivation(batch) must give {size_of(batch)} derivations, it gave {len(trees)}.")
            codes = {
                name: vectors_of(subject, self.site, batch, m) for name, m in (("", subject.model), ("twin", twin))
            }
            return {"tree": trees, **codes}

        rows = gathered(subject, read)
        kept = finite_rows(rows[""])
        H, trees = rows[""][kept], [rows["tree"][row] for row in kept.tolist()]
        if len(H) < 2:
            return controls.nothing(len(H), len(rows[""]))
        forest = Forest.of(trees)
        jobs = [H, rows["twin"][kept]]
        for _ in range(self.permutations):
            jobs.append(H[torch.randperm(len(H), generator=subject.generator, device=subject.device).cpu()])
        fits = subject.map(lambda codes, generator: self._fit(forest, codes, generator), jobs)
        return self._report(forest, jobs, fits, trees, subject.generator)

    def _fit(self, forest: Forest, codes: Tensor, generator: torch.Generator) -> Tensor:
        if not bool(codes.isfinite().all()):
            return torch.full((len(codes),), math.nan, dtype=torch.float64)
        added = additive(forest, codes)
        if self.composition == "add" and self.distance == "l2":
            return delta(codes, forest.composed(added, torch.add), "l2")
        return trained(forest, codes, added, self.composition, self.distance, self.steps, self.lr, generator)

    def _report(
        self, forest: Forest, jobs: list[Tensor], fits: list[Tensor], trees: list[Any], generator: torch.Generator
    ) -> ProbeResult:
        base = [around_the_mean(codes, self.distance) for codes in jobs[:2]]
        errors, n = fits[0], len(fits[0])
        interval = controls.bootstrap(lambda rows: ratio(errors[rows], base[0][rows]), n, generator)
        null = controls.spread([ratio(fit, base[0]) for fit in fits[2:]])
        least = floor(forest.roots, jobs[0], self.distance)
        scalars = {
            **controls.with_interval("tre_normalised", ratio(errors, base[0]), interval),
            "tre_normalised_permuted": null[0],
            "tre_normalised_permuted_std": null[1],
            "tre_normalised_scrambled": ratio(fits[1], base[1]),
            "tre_normalised_floor": ratio(least, base[0]),
            "tre": float(errors.mean()),
            "tre_floor": float(least.mean()),
            "primitives": float(len(forest.primitives)),
            "derivations": float(len(forest.roots.unique())),
            "rank": float(torch.linalg.matrix_rank(forest.counts())),
            "examples": float(n),
        }
        tables = {"derivations": _worst(forest.roots, errors, trees)}
        return ProbeResult(controls.finite(scalars), tables, _figures(scalars), _failures(scalars))


def additive(forest: Forest, H: Tensor) -> Tensor:
    """The vectors of primitives ``[P, d]`` whose sums are nearest to H ``[n, d]``; of several, the shortest."""
    return torch.linalg.lstsq(forest.counts(), H, driver="gelsd").solution


def delta(h: Tensor, estimate: Tensor, distance: str) -> Tensor:
    """The distance of each row ``[n]``: "l2" (squared), "l1" or "cosine"."""
    if distance == "cosine":
        return 1 - torch.cosine_similarity(h, estimate, dim=1, eps=1e-12)
    return (h - estimate).abs().sum(1) if distance == "l1" else (h - estimate).square().sum(1)


def trained(
    forest: Forest,
    H: Tensor,
    start: Tensor,
    composition: str,
    distance: str,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Tensor:
    """The errors ``[n]`` at the least mean error that RMSprop meets, or that of the sums of `start` ``[P, d]``."""
    device, scale = generator.device, H.square().mean().sqrt().clamp(min=1e-300)
    H, start = (H / scale).to(device), (start / scale).to(device)
    best = delta(H, forest.composed(start, torch.add), distance)
    compose = _Composition(composition, H.shape[1], generator)
    noise = torch.randn(start.shape, generator=generator, device=device, dtype=torch.float64)
    vectors = nn.Parameter(start + 0.1 * noise)
    optimizer = torch.optim.RMSprop([vectors, *compose.parameters()], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
    for _ in range(steps):
        errors = delta(H, forest.composed(vectors, compose), distance)
        if errors.mean() < best.mean():
            best = errors.detach()
        optimizer.zero_grad()
        errors.mean().backward()
        optimizer.step()
        schedule.step()
    return best.cpu() * float(scale) ** {"l2": 2, "l1": 1, "cosine": 0}[distance]


class _Composition(nn.Module):
    """The functions of `TreeReconstructionProbe`; all begin near a + b."""

    def __init__(self, kind: str, d: int, generator: torch.Generator) -> None:
        super().__init__()
        width = {"add": 0, "linear": 0, "bilinear": min(d, 32), "mlp": 2 * min(d, 32)}[kind]

        def weights(rows: int, columns: int) -> nn.Parameter:
            values = torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)
            return nn.Parameter(values / columns**0.5)

        self.kind = kind
        if kind != "add":
            eye = torch.eye(d, dtype=torch.float64, device=generator.device)
            self.A, self.B = nn.Parameter(eye), nn.Parameter(eye.clone())
        if width:
            self.P, self.Q, self.C = weights(width, d), weights(width, d), weights(d, width)
        if kind == "mlp":
            self.c = nn.Parameter(torch.zeros(width, dtype=torch.float64, device=generator.device))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.kind == "add":
            return a + b
        linear = a @ self.A.T + b @ self.B.T
        if self.kind == "linear":
            return linear
        if self.kind == "bilinear":
            return linear + ((a @ self.P.T) * (b @ self.Q.T)) @ self.C.T
        return linear + torch.relu(a @ self.P.T + b @ self.Q.T + self.c) @ self.C.T


def floor(roots: Tensor, H: Tensor, distance: str) -> Tensor:
    """The error of each row ``[n]`` when each derivation has a vector of its own: the best for that distance."""
    errors = torch.zeros(len(H), dtype=torch.float64)
    for root in roots.unique():
        rows = (roots == root).nonzero().flatten()
        own = torch.nn.functional.normalize(H[rows], dim=1) if distance == "cosine" else H[rows]
        centre = own.median(0).values if distance == "l1" else own.mean(0)
        errors[rows] = delta(H[rows], centre.expand_as(own), distance)
    return errors


def around_the_mean(H: Tensor, distance: str) -> Tensor:
    """The distance of each row from the mean row ``[n]``; 0 where it is within the rounding of float32 activations."""
    base = delta(H, H.mean(0).expand_as(H), distance)
    whole = 1.0 if distance == "cosine" else float(delta(H, torch.zeros_like(H), distance).mean())
    tolerance = 1e-6 if distance == "l1" else 1e-12
    return base if base.mean() > tolerance * whole else torch.zeros_like(base)


def ratio(errors: Tensor, base: Tensor) -> float:
    """Mean error over mean error of the base; not-a-number where that is 0."""
    whole = float(base.mean())
    return float(errors.mean()) / whole if whole > 0 else math.nan


def _worst(roots: Tensor, errors: Tensor, trees: list[Any], most: int = 50) -> list[dict[str, Any]]:
    """The derivations with the largest mean error."""
    nodes, inverse, count = roots.unique(return_inverse=True, return_counts=True)
    mean = torch.zeros(len(nodes), dtype=torch.float64).index_add(0, inverse, errors) / count
    first = {int(group): row for row, group in reversed(list(enumerate(inverse.tolist())))}
    worst = mean.argsort(descending=True, stable=True)[:most].tolist()
    return [{"derivation": str(trees[first[k]]), "tre": float(mean[k]), "examples": int(count[k])} for k in worst]


def _failures(scalars: dict[str, float]) -> list[str]:
    value, null, scrambled = (scalars[f"tre_normalised{suffix}"] for suffix in ("", "_permuted", "_scrambled"))
    if math.isnan(value):
        return [
            "All activations are equal, so their tree reconstruction error says nothing: do not read it as a perfect "
            "composition."
        ]
    failures = []
    if scalars["rank"] >= scalars["derivations"]:
        failures.append(
            f"Sums of {scalars['primitives']:.0f} primitives can give each of {scalars['derivations']:.0f} different "
            "derivations any vector: do not read a small error as compositionality, measure on more examples."
        )
    if value >= null - 2 * scalars["tre_normalised_permuted_std"]:
        failures.append(
            f"With the derivations of other examples the error is {null:.2f}, with their own {value:.2f}: do not "
            "conclude that activations are composed as the derivations say."
        )
    if null < 0.1:
        failures.append(
            f"The composition fits even the derivations of other examples (error {null:.2f}): do not read a small "
            "error as compositionality, take a simpler function or more examples."
        )
    if scrambled <= value + 1e-9:
        failures.append(
            f"A network with scrambled weights has an error of {scrambled:.2f}, not above {value:.2f}: do not conclude "
            "that the composition was learned."
        )
    return failures


def _figures(scalars: dict[str, float]) -> dict[str, dict[str, Any]]:
    names = {"": "model", "_permuted": "others' derivations", "_scrambled": "scrambled weights", "_floor": "floor"}
    values = {label: scalars[f"tre_normalised{suffix}"] for suffix, label in names.items()}
    known = {label: value for label, value in values.items() if not math.isnan(value)}
    if not known:
        return {}
    bars = {
        "kind": "bar",
        "title": "Tree reconstruction error",
        "xlabel": "fitted to",
        "ylabel": "error / error of the mean",
        "x": list(known),
        "series": {"error": list(known.values())},
    }
    return {"tre": bars}
