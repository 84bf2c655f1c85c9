r"""Do functions that were learned apart write their results in one code, so that each can read the other's?

Functions f belong to groups g; :math:`h_{f,z}` is the mean representation of the examples to which f is applied and
whose result is the symbol z. With :math:`C^{z z'}_{f f'} = \cos(h_{f,z}, h_{f',z'})`, means over pairs of functions of
different groups,

.. math:: compat = mean_z [ mean_{f f'} C^{z z}_{f f'} - mean_{f f', z' \neq z} C^{z z'}_{f f'} ]

A composition f'(f(x)) of functions of two groups can only be right if f' reads the code of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from algornn.probes.batches import Batches, field_of
from algornn.probes.controls import finite, mean_interval, permuted, scrambled, with_interval
from algornn.probes.predictions import Answers, Field, Predict, exact_match
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import flat
from algornn.probes.subject import Subject

Cell = tuple[str, str, str]  # group, function, symbol


class FunctionCompatibilityProbe(Probe):
    r"""Whether functions of different groups represent the same result alike, and can be composed.

    * `compat`, see above: 1 - (cosine of different symbols) for one code shared by all groups, 0 for codes of their
      own; `within_compat`, the same over pairs of different functions of one group, is its ceiling;
    * `cross_group_accuracy` and `within_group_accuracy` of compositions, the table A[first group, second group], and
      `compat_accuracy_correlation`: over compositions, of being right with the mean of :math:`C^z_{f f'}`, where z is
      the intermediate symbol and f' runs through the functions of the second group;
    * clusters of functions by average linkage of 1 - mean_z C, as many as there are groups, and their agreement with
      the groups, `cluster_rand_index` (adjusted: 0 by chance, 1 for the groups). One code for all has no such clusters.

    Controls: `permuted_compat`, the symbols of each function shuffled (mean of 20), and `scrambled_compat`, a network
    of shuffled weights. The interval is over symbols, the mean of independent codes.

    Cosines are ruled by what all representations have in common: `center=True` takes each function's mean over its
    symbols away. Only networks that solve single functions can be read; see their accuracy, and the share of seeds
    that compose, not their mean.

    Args:
        site: where the result is represented, such as the input of the output layer, "head:input".
        function: field of the function of each example, ``[B]`` numbers or names.
        group: field of its group.
        symbol: field of the symbol that the function gives.
        center: subtract from :math:`h_{f,z}` its mean over z.
        compositions: loader of compositions of two functions, whose targets are their results; fields as in `pair`.
        pair: fields of the compositions' first function, its group, the second's group, and the symbol in between.
        target: field of the compositions' targets, see `Answers`.
        predict: `predict(model, batch) -> ids`, see `Answers`.
        schedule: the arguments of `Probe`.

    Source: Csordás, Irie and Schmidhuber (2022), EMNLP, https://arxiv.org/abs/2210.06350, section 4. Deviation:
    similarities of different symbols are taken across groups, too, so that what marks a group has no part in compat.
    """

    tried = ("site", "function", "group", "symbol")

    def __init__(
        self,
        site: str,
        function: Field = "function",
        group: Field = "group",
        symbol: Field = "symbol",
        center: bool = False,
        compositions: Iterable[Any] | None = None,
        pair: Sequence[Field] = ("first", "first_group", "second_group", "symbol"),
        target: Field | None = None,
        predict: Predict | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if len(pair) != 4:
            raise ValueError(f"pair names four fields (first function, its group, second group, symbol), got {pair!r}.")
        self.site = site
        self.function = function
        self.group = group
        self.symbol = symbol
        self.center = center
        self.compositions = compositions
        self.pair = tuple(pair)
        self.target = target
        self.predict = predict

    def measure(self, subject: Subject) -> ProbeResult:
        """One forward per batch of the network and of its control, batches shared out over the processes."""
        control = scrambled(subject.model, subject.generator)
        items = range(len(subject.loader))
        cells, h = self._represented(subject.map(lambda i, _: self._sums(subject, i, subject.model), items))
        _, scrambled_h = self._represented(subject.map(lambda i, _: self._sums(subject, i, control), items))
        if len({group for group, _, _ in cells}) < 2:
            raise ValueError(
                f"Expected functions of two groups or more, got {cells[0][0]!r} alone: check the argument group."
            )
        rows = []
        if self.compositions is not None:
            batches = Batches.of(self.compositions, self.max_batches, self.seed, subject.device)
            parts = subject.map(lambda i, _: self._composed(subject, batches, i), range(len(batches)))
            rows = [row for part in parts for row in part]
        return report(cells, h, scrambled_h, rows, subject.generator)

    def _sums(self, subject: Subject, index: int, model: nn.Module) -> dict[Cell, tuple[Tensor, int]]:
        """Sum and number of the representations of each cell in a batch."""
        batch = subject.loader[index]
        h = flat(subject.activations([self.site], batch, model)[self.site]).double()
        names = subject.loader.names if self.group == "group" else ()
        columns = [_names(field_of(batch, self.group), names), *(_names(field_of(batch, f)) for f in self._labels)]
        cells: dict[Cell, list[int]] = {}
        for row, (group, function, symbol) in enumerate(zip(*columns, strict=True)):
            cells.setdefault((group, function, symbol), []).append(row)
        if len(columns[0]) != len(h):
            raise ValueError(f"Expected one label per row of the site {self.site!r}, {len(h)}, got {len(columns[0])}.")
        return {cell: (h[rows].sum(0), len(rows)) for cell, rows in cells.items()}

    @property
    def _labels(self) -> tuple[Field, Field]:
        return self.function, self.symbol

    def _represented(self, parts: Sequence[dict[Cell, tuple[Tensor, int]]]) -> tuple[list[Cell], Tensor]:
        """The cells in order, and their means ``[cells, d]``."""
        sums: dict[Cell, Tensor] = {}
        counts: dict[Cell, int] = {}
        for part in parts:
            for cell, (total, n) in part.items():
                sums[cell] = sums[cell] + total if cell in sums else total
                counts[cell] = counts.get(cell, 0) + n
        cells = sorted(sums, key=_natural)
        h = torch.stack([sums[cell] / counts[cell] for cell in cells])
        return cells, centered(cells, h) if self.center else h

    def _composed(self, subject: Subject, batches: Batches, index: int) -> list[dict[str, Any]]:
        """One row per composition: its functions, and whether the answer is right."""
        batch = batches[index]
        correct = exact_match(*Answers(self.target, predict=self.predict).of(subject, batch)).tolist()
        columns = [_names(field_of(batch, field), batches.names if field == "group" else ()) for field in self.pair]
        keys = ("first", "first_group", "second_group", "symbol", "correct")
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, correct, strict=True)]


def cosines(h: Tensor) -> Tensor:
    """Cosine similarities ``[n, n]`` of rows ``[n, d]``; 0 with a row of zeros."""
    unit = h / h.norm(dim=1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
    return unit @ unit.T


def centered(cells: Sequence[Cell], h: Tensor) -> Tensor:
    """Representations without the mean of their function's."""
    functions = [cell[:2] for cell in cells]
    same = torch.tensor([[a == b for b in functions] for a in functions], dtype=h.dtype)
    return h - same @ h / same.sum(1, keepdim=True)


def compat_of(cells: Sequence[Cell], C: Tensor, within: bool = False) -> dict[str, float]:
    """Same-symbol minus different-symbol similarity for each symbol.

    Args:
        cells: n times group, function and symbol.
        C: similarities ``[n, n]``.
        within: pairs of different functions of the same group, instead of those of different groups.

    Returns:
        Symbol to its value; not-a-number for a symbol without pairs of either kind.
    """
    groups, functions, symbols = (torch.tensor(_ids(column)) for column in zip(*cells, strict=True))
    same_group = groups[:, None] == groups
    pairs = same_group & (functions[:, None] != functions) if within else ~same_group
    same = symbols[:, None] == symbols
    names = {int(id_): cell[2] for id_, cell in zip(symbols, cells, strict=True)}
    return {
        name: float(C[pairs & same & own[:, None]].mean() - C[pairs & ~same & own[:, None]].mean())
        for name, own in ((name, symbols == id_) for id_, name in names.items())
    }


def function_similarity(cells: Sequence[Cell], C: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Functions (group, name), and their similarity ``[F, F]``: the mean of C over the symbols that both give."""
    functions = list(dict.fromkeys((group, function) for group, function, _ in cells))
    rows = {cell: row for row, cell in enumerate(cells)}
    symbols = list(dict.fromkeys(cell[2] for cell in cells))
    values = C.tolist()

    def mean(a: tuple[str, str], b: tuple[str, str]) -> float:
        pairs = [((*a, z), (*b, z)) for z in symbols]
        shared = [(rows[x], rows[y]) for x, y in pairs if x in rows and y in rows]
        return sum(values[i][j] for i, j in shared) / len(shared) if shared else 0.0

    return functions, torch.tensor([[mean(a, b) for b in functions] for a in functions], dtype=torch.float64)


def clusters_of(similarity: Tensor, k: int) -> tuple[list[int], list[int]]:
    """Each row's cluster, from 0, of at most k by average linkage of 1 - similarity; and the dendrogram's order."""
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(similarity) < 2 or not similarity.isfinite().all():
        return [0] * len(similarity), list(range(len(similarity)))
    distance = (1 - (similarity + similarity.T) / 2).clamp(min=0).fill_diagonal_(0)
    tree = linkage(squareform(distance.numpy(), checks=False), method="average")
    return (fcluster(tree, k, criterion="maxclust") - 1).tolist(), leaves_list(tree).tolist()


def composition_table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """A[first group, second group], the accuracy of compositions; not-a-number where there is none."""
    groups = sorted({row[key] for row in rows for key in ("first_group", "second_group")})
    return {a: {b: _cell(rows, a, b) for b in groups} for a in groups}


def report(
    cells: Sequence[Cell],
    h: Tensor,
    scrambled_h: Tensor,
    rows: Sequence[dict[str, Any]],
    generator: torch.Generator,
) -> ProbeResult:
    """Scalars, tables, figures and failures.

    Args:
        cells: n times group, function and symbol.
        h: their representations ``[n, d]``.
        scrambled_h: those of the network of shuffled weights.
        rows: compositions, with `first`, `first_group`, `second_group`, `symbol` and `correct`.
        generator: draws intervals and permutations.
    """
    from sklearn.metrics import adjusted_rand_score

    C = cosines(h)
    per_symbol = compat_of(cells, C)
    functions, similarity = function_similarity(cells, C)
    groups = [group for group, _ in functions]
    cluster, order = clusters_of(similarity, len(set(groups)))
    values = torch.tensor(list(per_symbol.values()), dtype=torch.float64)
    scalars: dict[str, float] = {"compat": _mean(per_symbol)}
    if rows:
        scalars["cross_group_accuracy"] = _accuracy(rows, lambda r: r["first_group"] != r["second_group"])
        scalars["within_group_accuracy"] = _accuracy(rows, lambda r: r["first_group"] == r["second_group"])
        scalars["compat_accuracy_correlation"] = _correlation(cells, C, rows)
    scalars |= {
        "within_compat": _mean(compat_of(cells, C, within=True)),
        "permuted_compat": permuted_compat(cells, C, generator),
        "scrambled_compat": _mean(compat_of(cells, cosines(scrambled_h))),
        "cluster_rand_index": float(adjusted_rand_score(groups, cluster)) if len(functions) > 1 else math.nan,
        **with_interval("compat", scalars["compat"], mean_interval(values, generator)),
        **{f"compat/{symbol}": value for symbol, value in per_symbol.items()},
    }
    members = [{"function": f, "group": g, "cluster": c} for (g, f), c in zip(functions, cluster, strict=True)]
    tables: dict[str, Any] = {"functions": members, "similarity": similarity.tolist()}
    names = [f"{group}: {function}" for group, function in functions]
    figures = {"similarity": _map("Similarity of functions that give the same symbol", "function", "function",
                                  [names[i] for i in order], [names[i] for i in order],
                                  similarity[order][:, order].tolist())}  # fmt: skip
    if rows:
        tables["compositions"] = composition_table(rows)
        tables["clusters"] = cluster_table(rows, members)
        A, second = tables["compositions"], list(tables["compositions"])
        values_of = [[A[a][b] for b in second] for a in second]
        figures["compositions"] = _map("Accuracy of compositions", "group of the second function",
                                       "group of the first", second, second, values_of)  # fmt: skip
    return ProbeResult(finite(scalars), tables, figures, _failures(scalars))


def cluster_table(rows: Sequence[dict[str, Any]], members: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """A[cluster, group], the accuracy of compositions by the cluster of the first function and the second's group."""
    cluster = {(m["group"], m["function"]): f"cluster {m['cluster']}" for m in members}
    known = [{**r, "first_group": cluster.get((r["first_group"], r["first"]), "unknown")} for r in rows]
    first, second = (sorted({r[key] for r in known}) for key in ("first_group", "second_group"))
    return {a: {b: _cell(known, a, b) for b in second} for a in first}


def permuted_compat(cells: Sequence[Cell], C: Tensor, generator: torch.Generator) -> float:
    """Mean of compat over 20 permutations of the symbols of each function."""
    functions = torch.tensor(_ids([cell[:2] for cell in cells]))

    def compat(order: Tensor) -> float:
        source = torch.empty_like(order)
        for function in functions.unique():
            rows = (functions == function).nonzero()[:, 0]
            source[rows] = rows[order[rows].argsort()]  # the order of the function's own rows among all
        return _mean(compat_of([(*cell[:2], cells[j][2]) for cell, j in zip(cells, source.tolist(), strict=True)], C))

    return permuted(compat, len(cells), generator)[0]


def _correlation(cells: Sequence[Cell], C: Tensor, rows: Sequence[dict[str, Any]]) -> float:
    """Of right compositions with the similarity of the first function's code to those of the second's group."""
    place = {cell: index for index, cell in enumerate(cells)}
    members: dict[tuple[str, str], list[int]] = {}
    for index, (group, _, symbol) in enumerate(cells):
        members.setdefault((group, symbol), []).append(index)
    known = [
        (float(C[place[cell], others].mean()), float(row["correct"]))
        for row in rows
        if (cell := (row["first_group"], row["first"], row["symbol"])) in place
        and (others := members.get((row["second_group"], row["symbol"])))
    ]
    if len(known) < 3:
        return math.nan
    return float(torch.corrcoef(torch.tensor(known, dtype=torch.float64).T)[0, 1])


def _failures(scalars: dict[str, float]) -> list[str]:
    failures = []
    low = scalars["compat_low"]
    if math.isnan(scalars["compat"]):
        failures.append(
            "No symbol is given by functions of two groups beside another symbol, or the activations are not finite: "
            "there is no compatibility, do not read its absence as a value of 0."
        )
    for name, what in {"permuted": "with shuffled symbols", "scrambled": "in a network of shuffled weights"}.items():
        if low <= scalars[f"{name}_compat"]:
            failures.append(
                f"Compatibility ({scalars['compat']:.3f}) is no greater than {what} ({scalars[f'{name}_compat']:.3f}): "
                "do not conclude that the groups have learned to share a code."
            )
    if scalars["within_compat"] <= scalars["permuted_compat"]:
        failures.append(
            f"Not even functions of one group represent a symbol alike ({scalars['within_compat']:.3f}): the site may "
            "not hold the result, so do not read the compatibility of groups from it."
        )
    return failures


def _map(title: str, xlabel: str, ylabel: str, x: Any, y: Any, values: Any) -> dict[str, Any]:
    return {"kind": "heatmap", "title": title, "xlabel": xlabel, "ylabel": ylabel, "x": x, "y": y, "values": values}


def _accuracy(rows: Sequence[dict[str, Any]], chosen: Callable[[dict[str, Any]], bool]) -> float:
    correct = [float(row["correct"]) for row in rows if chosen(row)]
    return sum(correct) / len(correct) if correct else math.nan


def _cell(rows: Sequence[dict[str, Any]], first: str, second: str) -> float:
    return _accuracy(rows, lambda row: (row["first_group"], row["second_group"]) == (first, second))


def _mean(values: dict[str, float]) -> float:
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _names(column: Any, names: Sequence[str] = ()) -> list[str]:
    """The labels of a field as text; numbers of named groups as their names."""
    values = column.tolist() if isinstance(column, Tensor) else list(column)
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values]


def _natural(cell: Cell) -> tuple[tuple[bool, float, str], ...]:
    """Order of cells in which 10 comes after 9."""
    return tuple((not part.isdecimal(), float(part) if part.isdecimal() else 0.0, part) for part in cell)


def _ids(column: Sequence[Any]) -> list[int]:
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in column]
