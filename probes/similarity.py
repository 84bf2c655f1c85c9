r"""Do two sites, or two networks, represent the same inputs alike?

* CKA (`hsic`): whether the inner products between examples agree at both sites, debiased.
* RSA: whether the distances do: Spearman's correlation of the dissimilarities of all pairs of examples.

Neither sees a rotation, a scale or a shift. Both are ruled by the directions of highest variance: what a network does
may depend on others, so a high similarity is no evidence of equal function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from algornn.probes.controls import finite, jackknife, jackknife_interval, permuted, scrambled, with_interval
from algornn.probes.hsic import cka, compact
from algornn.probes.model_copy import copy_of
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import flat
from algornn.probes.sites import Site
from algornn.probes.subject import Subject

MODEL, SCRAMBLED, OTHER = "model", "scrambled", "other"
DISTANCES = ("correlation", "euclidean")
NEAR = 0.1  # a control that is off by more has failed

Place = tuple[str, str]  # network and site


class Pair(NamedTuple):
    """Two sites to compare.

    Args:
        name: of the pair in the results.
        a: site of the model.
        b: site of the model, or of the other one.
        counted: whether the pair is part of the scalars; the others are in the tables and figures alone.
    """

    name: str
    a: str
    b: str
    counted: bool


class RepresentationSimilarityProbe(Probe):
    r"""Debiased linear CKA and RSA between the sites of a model, or between its sites and those of another one.

    Every value stands beside the same value with permuted rows (examples that do not belong together: about 0) and
    with the model's weights scrambled (what the inputs and the architecture alone make similar). The biased CKA is
    reported to show how far it is off, and is never the value.

    Scalars are means over pairs of sites, and `<scalar>/<a> vs <b>`. With `other` the pairs of the scalars are those of
    equal sites (`<scalar>/<site>`), unless `other_sites` names others. Intervals are jackknife over groups of examples.
    Examples whose activation is not finite are left out of their pair. Arithmetic is float64. RSA sorts all pairs of
    examples some ten times, which takes seconds from a thousand examples on: `max_batches` sets their number.

    Args:
        sites: where to read (see `algornn.probes.sites`): activations ``[B, ...]``, flattened to one row per example.
        other: another model such as an earlier checkpoint, that the loss can drive with the same batches.
        other_sites: sites of `other`; None: `sites`.
        distance: between rows, for RSA: "correlation" (1 less Pearson's) or "euclidean".
        minibatch: average the terms of CKA, and RSA, over batches rather than over all examples at once: for many
            examples, and for activations whose size differs from batch to batch. Batches of at least four examples.
        permutations: how many of the rows.
        schedule: the arguments of `Probe`.

    Source: CKA: see `hsic`; RSA: Kriegeskorte, Mur and Bandettini (2008), Frontiers in Systems Neuroscience 2:4.
    """

    tried = ("sites",)

    def __init__(
        self,
        sites: Sequence[str],
        other: nn.Module | None = None,
        other_sites: Sequence[str] | None = None,
        distance: str = "correlation",
        minibatch: bool = False,
        permutations: int = 20,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        for name, value in {"sites": sites, "other_sites": other_sites}.items():
            if isinstance(value, str):
                raise ValueError(f"{name} must be a list of sites, such as ['encoder', 'head'], got {value!r}.")
        if len(set(sites)) < (2 if other is None else 1):
            raise ValueError(f"There is nothing to compare at {list(sites)}: name two sites, or pass other=a model.")
        if other is None and other_sites is not None:
            raise ValueError("other_sites are sites of another model: pass it, too, by other=.")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {list(DISTANCES)}, got {distance!r}.")
        if permutations < 2:
            raise ValueError(f"permutations must be at least 2, to have a spread, got {permutations}.")
        self.sites = sites
        self.other = other
        self.other_sites = other_sites
        self.distance = distance
        self.minibatch = minibatch
        self.permutations = permutations

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather the activations, then compare the pairs of sites, shared out over the processes."""
        rows = self._rows(subject)
        pairs = self._pairs()
        second = MODEL if self.other is None else OTHER
        jobs = [((MODEL, pair.a), (second, pair.b), self.permutations) for pair in pairs]
        second = SCRAMBLED if self.other is None else OTHER
        jobs += [((SCRAMBLED, pair.a), (second, pair.b), 0) for pair in pairs]

        def compared(job: tuple[Place, Place, int], generator: torch.Generator) -> dict[str, Any]:
            return compare(rows[job[0]], rows[job[1]], self.distance, job[2], generator)

        found = subject.map(compared, jobs)
        own, control = found[: len(pairs)], found[len(pairs) :]
        table = [_row(*parts) for parts in zip(pairs, own, control, strict=True)]
        return _report(pairs, table, [part["replicates"] for part in own], symmetric=self.other is None)

    def _check_other(self, other: nn.Module) -> None:
        """Refuse sites that the other model does not have; where they are the model's, name the mend."""
        for site in self.sites if self.other_sites is None else self.other_sites:
            try:
                Site.parse(site).module(other)
            except ValueError as error:
                mend = " Name the sites of the other model by other_sites=." if self.other_sites is None else ""
                raise ValueError(f"{error}{mend}") from None

    def _pairs(self) -> list[Pair]:
        sites = list(dict.fromkeys(self.sites))
        if self.other is None:
            return [Pair(f"{_name(a)} vs {_name(b)}", a, b, True) for a, b in combinations(sites, 2)]
        others = list(dict.fromkeys(sites if self.other_sites is None else self.other_sites))
        pairs = [(a, b, self.other_sites is not None or a == b) for a, b in product(sites, others)]
        return [Pair(_name(a) if a == b else f"{_name(a)} vs {_name(b)}", a, b, counted) for a, b, counted in pairs]

    def _rows(self, subject: Subject) -> dict[Place, list[Tensor]]:
        """The rows of every place, one tensor per batch with `minibatch`, else a single one."""
        networks = {MODEL: subject.model, SCRAMBLED: scrambled(subject.model, subject.generator)}
        if self.other is not None:
            networks[OTHER] = copy_of(self.other).to(subject.device)
            self._check_other(networks[OTHER])

        def gathered(index: int, generator: torch.Generator) -> dict[Place, Tensor]:
            batch, rows = subject.loader[index], {}
            for network, model in networks.items():
                sites = self.sites if network != OTHER or self.other_sites is None else self.other_sites
                for site, h in subject.activations(sites, batch, model).items():
                    rows[network, site] = flat(h)
            sizes = {site: len(h) for (_, site), h in rows.items()}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"Every site needs one activation per example, got {sizes} of them: choose others.")
            return rows

        parts = subject.map(gathered, range(len(subject.loader)))
        rows = {place: [part[place] for part in parts] for place in parts[0]}
        return rows if self.minibatch else {place: [_joined(blocks, place)] for place, blocks in rows.items()}


def compare(
    X: list[Tensor], Y: list[Tensor], distance: str, permutations: int, generator: torch.Generator
) -> dict[str, Any]:
    """CKA and RSA of two places and their controls.

    Args:
        X: rows ``[n_b, p]`` of each batch b.
        Y: rows ``[n_b, q]`` of the same examples.
        distance: of the dissimilarities.
        permutations: of the rows, within batches; 0: the two values alone.
        generator: draws the permutations.
    """
    known = [x.isfinite().all(1) & y.isfinite().all(1) for x, y in zip(X, Y, strict=True)]
    lost = 1 - sum(int(k.sum()) for k in known) / max(1, sum(map(len, known)))
    X, Y = ([h[k] for h, k in zip(blocks, known, strict=True)] for blocks in (X, Y))
    widths = {"p": max(x.shape[1] for x in X), "q": max(y.shape[1] for y in Y)}
    D, E = ([dissimilarities(h, distance) for h in blocks] for blocks in (X, Y))
    X, Y = ([compact(h) for h in blocks] for blocks in (X, Y))
    n = sum(map(len, X))
    found: dict[str, Any] = {"n": n, **widths, "lost": lost, "cka": cka(X, Y), "rsa": rsa(D, E)}
    if not permutations:
        return found

    def orders(order: Tensor) -> list[Tensor]:
        return [part.argsort() for part in order.split([len(x) for x in X])]

    shuffled_cka = permuted(lambda order: cka(X, _rows(Y, orders(order))), n, generator, permutations)
    R, S = ([ranks(d) for d in blocks] for blocks in (D, E))
    shuffled_rsa = permuted(lambda order: rsa(R, _rows(S, orders(order), True), True), n, generator, permutations)
    units = n if len(X) == 1 else len(X)
    return {
        **found,
        "biased_cka": cka(X, Y, debiased=False),
        "permuted_cka": shuffled_cka,
        "permuted_rsa": shuffled_rsa,
        "replicates": {
            "cka": jackknife(lambda kept: cka(_left(X, kept), _left(Y, kept)), units),
            "rsa": jackknife(lambda kept: rsa(_left(D, kept, True), _left(E, kept, True)), units),
        },
    }


def dissimilarities(X: Tensor, distance: str) -> Tensor:
    """Distances ``[n, n]`` between rows, relative to the largest; not-a-number where a row has no correlation.

    Differences that are rounding alone are taken away, since ranks would see them.
    """
    from scipy.spatial.distance import pdist, squareform

    if len(X) < 2:
        return torch.zeros(len(X), len(X), dtype=torch.float64)
    X = X.double()
    if distance == "correlation":  # a row that is constant up to rounding is constant
        flat = (X - X.mean(1, keepdim=True)).norm(dim=1) <= 1e-12 * X.norm(dim=1)
        X = X.where(~flat[:, None], torch.nan)
    D = torch.from_numpy(squareform(pdist(X.numpy(), distance), checks=False))
    largest = D.nan_to_num(0).max()
    return (D / largest).round(decimals=10) if largest > 0 else D


def rsa(D: Sequence[Tensor], E: Sequence[Tensor], ranked: bool = False) -> float:
    """Spearman's correlation of dissimilarities ``[n_b, n_b]``, a mean over batches weighted by their sizes.

    Args:
        D: dissimilarities of each batch.
        E: of the same examples.
        ranked: whether D and E are their `ranks`, which need not be sorted again.

    Returns:
        Not-a-number where it is not defined: fewer than three examples, or dissimilarities that are all the same.
    """
    from scipy.stats import pearsonr, spearmanr

    correlation = pearsonr if ranked else spearmanr
    total, weight = 0.0, 0
    for d, e in zip(D, E, strict=True):
        above = torch.ones(d.shape, dtype=torch.bool).triu(1)
        d, e = d[above], e[above]
        known = d.isfinite() & e.isfinite()
        d, e = d[known], e[known]
        if len(d) > 1 and d.min() < d.max() and e.min() < e.max():
            total += len(above) * float(correlation(d.numpy(), e.numpy()).statistic)
            weight += len(above)
    return total / weight if weight else math.nan


def ranks(D: Tensor) -> Tensor:
    """The dissimilarities ``[n, n]`` of pairs replaced by their ranks, equal ones by their mean rank."""
    from scipy.stats import rankdata

    above = torch.ones(D.shape, dtype=torch.bool).triu(1)
    R = torch.zeros_like(D)
    if above.any():
        R[above] = torch.from_numpy(rankdata(D[above].numpy(), nan_policy="omit"))
    return R + R.T


def _rows(blocks: list[Tensor], orders: list[Tensor], square: bool = False) -> list[Tensor]:
    """The rows of each batch, and the columns of a square one, in another order."""
    return [h[order][:, order] if square else h[order] for h, order in zip(blocks, orders, strict=True)]


def _left(blocks: list[Tensor], kept: Tensor, square: bool = False) -> list[Tensor]:
    """The batches that are kept; of a single batch, the rows."""
    return _rows(blocks, [kept], square) if len(blocks) == 1 else [blocks[index] for index in kept.tolist()]


def _joined(blocks: list[Tensor], place: Place) -> Tensor:
    widths = sorted({h.shape[1] for h in blocks})
    if len(widths) > 1:
        raise ValueError(
            f"The activations of an example at {place[1]!r} have {widths[0]} numbers in one batch and {widths[-1]} in "
            "another: pass minibatch=True, which compares batch by batch, or choose a site of fixed size."
        )
    return torch.cat(blocks)


def _name(site: str) -> str:
    return site or "output"


def _row(pair: Pair, own: dict[str, Any], control: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    replicates = own["replicates"]
    row: dict[str, Any] = {"pair": pair.name, "a": _name(pair.a), "b": _name(pair.b)}
    for key in ("cka", "rsa"):
        row |= with_interval(key, own[key], jackknife_interval(own[key], replicates[key]))
        row[f"scrambled_{key}"] = control[key]
        row[f"permuted_{key}"], row[f"permuted_{key}_std"] = own[f"permuted_{key}"]
    return {**row, "biased_cka": own["biased_cka"], **{key: own[key] for key in ("n", "p", "q", "lost")}}


def _report(
    pairs: list[Pair], table: list[dict[str, Any]], replicates: list[dict[str, Tensor]], symmetric: bool
) -> ProbeResult:
    """The means over the counted pairs first, then every one of them, with what its controls say."""
    counted = [row for pair, row in zip(pairs, table, strict=True) if pair.counted]
    left = [part for pair, part in zip(pairs, replicates, strict=True) if pair.counted]
    keys = [key for key in table[0] if key not in ("pair", "a", "b", "lost", "n", "p", "q")]
    scalars = {key: _mean([row[key] for row in counted]) for key in keys}
    for key in ("cka", "rsa"):
        together = [float(_mean(values)) for values in zip(*(part[key].tolist() for part in left), strict=False)]
        interval = jackknife_interval(scalars[key], torch.tensor(together, dtype=torch.float64))
        scalars |= with_interval(key, scalars[key], interval)
    for row in counted:
        scalars |= {f"{key}/{row['pair']}": row[key] for key in keys}
    failures = [sentence for row in counted for sentence in _failures(row)] + _misled(counted)
    return ProbeResult(finite(scalars), {"pairs": table}, _figures(table, counted, symmetric), failures)


def _mean(values: Sequence[float]) -> float:
    """Mean of the numbers that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _failures(row: dict[str, Any]) -> list[str]:
    """One sentence per control that failed for a pair; comparisons with what is not defined are false."""
    pair, few = row["pair"], _few(row)
    spread = max(abs(row["permuted_cka"]), row["permuted_cka_std"])
    undefined = [key.upper() for key in ("cka", "rsa") if math.isnan(row[key])]
    checks = [
        (row["lost"] > 0, f"{pair}: {row['lost']:.0%} of the examples have activations that are not finite and were "
         "left out: do not take the numbers for those of all examples."),
        (bool(undefined), f"{pair}: {' and '.join(undefined)} not defined with {few} (constant, or equally far apart, "
         "or too few): do not read this as no similarity."),
        (spread > NEAR, f"{pair}: the CKA of permuted rows is {row['permuted_cka']:.2f} +- "
         f"{row['permuted_cka_std']:.2f} with {few}, not near 0: do not conclude anything from a CKA of that size."),
        (row["cka_low"] <= row["scrambled_cka"], f"{pair}: CKA ({row['cka']:.2f}, from {row['cka_low']:.2f}) is not "
         f"clearly above that of a scrambled network ({row['scrambled_cka']:.2f}): do not conclude that training made "
         "the two alike."),
    ]  # fmt: skip
    return [sentence for failed, sentence in checks if failed]


def _misled(counted: list[dict[str, Any]]) -> list[str]:
    """One sentence on the pairs whose biased CKA is far above the debiased one, with the worst as its example."""
    misled = [row for row in counted if row["biased_cka"] - row["cka"] > NEAR]
    if not misled:
        return []
    worst = max(misled, key=lambda row: row["biased_cka"] - row["cka"])
    return [
        f"{len(misled)} of {len(counted)} pairs have too few examples for their dimensions ({_few(worst)}): the biased "
        f"CKA of {worst['pair']} would be {worst['biased_cka']:.2f} instead of {worst['cka']:.2f}. Do not compare "
        "these values with a CKA that is not debiased."
    ]


def _few(row: dict[str, Any]) -> str:
    return f"{row['n']} examples of up to {max(row['p'], row['q'])} dimensions"


def _figures(table: list[dict[str, Any]], counted: list[dict[str, Any]], symmetric: bool) -> dict[str, dict[str, Any]]:
    series = {
        "CKA": "cka",
        "scrambled network": "scrambled_cka",
        "permuted rows": "permuted_cka",
        "biased CKA": "biased_cka",
    }
    return {
        "cka": _matrix(table, "cka", "Similarity of sites (debiased CKA)", symmetric),
        "rsa": _matrix(table, "rsa", "Similarity of sites (RSA)", symmetric),
        "controls": {
            "kind": "bar",
            "title": "CKA and its controls",
            "xlabel": "sites",
            "ylabel": "CKA",
            "x": [row["pair"] for row in counted],
            "series": {name: [row[key] for row in counted] for name, key in series.items()},
        },
    }


def _matrix(table: list[dict[str, Any]], key: str, title: str, symmetric: bool) -> dict[str, Any]:
    """A heat map of all pairs; between the sites of one model it is symmetric, with ones on its diagonal."""
    cells = {(row["a"], row["b"]): row[key] for row in table}
    if symmetric:
        cells |= {(b, a): value for (a, b), value in cells.items()}
        defined = {a for (a, _), value in cells.items() if not math.isnan(value)}
        cells |= {(a, a): 1.0 if a in defined else math.nan for a, _ in cells}
    y = list(dict.fromkeys(a for a, _ in cells))
    x = y if symmetric else list(dict.fromkeys(b for _, b in cells))
    return {
        "kind": "heatmap",
        "title": title,
        "xlabel": "site" if symmetric else "site of the other model",
        "ylabel": "site",
        "x": x,
        "y": y,
        "values": [[cells[a, b] for b in x] for a in y],
    }
