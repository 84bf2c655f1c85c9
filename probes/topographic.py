r"""Do inputs of similar meaning have similar codes?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from algornn.probes import controls
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import FILL, Field, finite_rows, gathered, labels_of, messages_of, vectors_of
from algornn.probes.subject import Subject

VECTORS, MESSAGES = ("cosine", "euclidean"), ("hamming", "edit")
_DIGITS = 6  # of a distance, in units of the largest: what equal inputs in other batches can differ by in float32


class TopographicSimilarityProbe(Probe):
    r"""Rank correlation between distances of meanings and distances of codes.

    .. math::
        topsim = \rho_S(\{\delta_M(i, j)\}, \{\delta_C(i, j)\}), \quad i < j

    with Spearman's correlation :math:`\rho_S` (ties get their mean rank), the Hamming distance :math:`\delta_M` over
    attributes, and for :math:`\delta_C` the cosine or Euclidean distance of activations, or the Hamming or edit
    distance of messages. 1: codes are ordered as meanings are; 0: they have nothing to do with them.

    Beside it: the same with codes shuffled over the items (mean, standard deviation, and the value's distance from it
    in standard deviations, z), the same for the network with scrambled weights, and a bootstrap interval over items, in
    which pairs of an item with itself do not count.

    Read with care: a code can be compositional and have a low value (each symbol a sum of two attributes), and one that
    keeps the order of an attribute's values has a high one without being so.

    Args:
        meaning: attributes ``[B, A]`` of whole numbers: a field of the batches or a function of a batch.
        site: site of the codes. Messages are read from it as the largest of its last dimension, ``[B, L, V]``.
        message: messages ``[B, L]`` of whole numbers, a field or a function; takes the place of `site`.
        distance: "cosine" or "euclidean" of activations, "hamming" or "edit" (Levenshtein, not divided by the length)
            of messages; None: "cosine" for `site`, "edit" for `message`.
        padding: symbol that fills messages up; the edit distance leaves it out.
        max_items: at most so many items, drawn at random from those that do not repeat another's meaning and code.
        permutations: number of shufflings.
        resamples: of the bootstrap.
        schedule: the arguments of `Probe`.

    Source: Brighton and Kirby (2006), Artificial Life 12(2); messages: Lazaridou et al. (2018), ICLR,
    https://arxiv.org/abs/1804.03984.
    """

    tried = ("site", "meaning", "message")

    def __init__(
        self,
        meaning: Field,
        site: str | None = None,
        message: Field | None = None,
        distance: str | None = None,
        padding: int | None = None,
        max_items: int = 256,
        permutations: int = 100,
        resamples: int = 100,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if (site is None) == (message is None):
            raise ValueError("Give either site=..., the site of the codes, or message=..., the field of the messages.")
        offers = VECTORS + MESSAGES if message is None else MESSAGES
        if distance is not None and distance not in offers:
            raise ValueError(f"distance must be one of {list(offers)}, got {distance!r}.")
        if max_items < 3:
            raise ValueError(f"max_items must be at least 3, got {max_items}.")
        self.meaning = meaning
        self.site = site
        self.message = message
        self.distance = distance or ("edit" if site is None else "cosine")
        self.padding = padding
        self.max_items = max_items
        self.permutations = permutations
        self.resamples = resamples

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather meanings and codes of all examples, then compare all pairs of items."""
        scrambled = None if self.site is None else controls.scrambled(subject.model, subject.generator)

        def read(batch: Any) -> dict[str, Any]:
            rows = {"meaning": labels_of(batch, self.meaning, "meaning"), "code": self._code(subject, batch)}
            return rows if scrambled is None else {**rows, "scrambled": self._code(subject, batch, scrambled)}

        rows = gathered(subject, read)
        kept = self._items(rows["meaning"], rows["code"], subject.generator)
        meaning, code = rows["meaning"][kept], rows["code"][kept]
        other = rows["scrambled"][kept] if scrambled is not None else None
        return self._report(meaning, code, other, subject.generator)

    def _code(self, subject: Subject, batch: Any, model: Any = None) -> Tensor:
        if self.site is None:
            return labels_of(batch, 0 if self.message is None else self.message, "message")
        read = vectors_of if self.distance in VECTORS else messages_of
        return read(subject, self.site, batch, model)

    def _items(self, meaning: Tensor, code: Tensor, generator: torch.Generator) -> Tensor:
        """The first of each group of items that are equal in meaning and code, at most `max_items` of them."""
        kept = finite_rows(code)
        scale = code[kept].abs().max().clamp(min=1e-300) if code.is_floating_point() and len(kept) else 1
        rounded = (code[kept] / scale * 10**_DIGITS).round() if code.is_floating_point() else code[kept]
        both = torch.cat([meaning[kept].to(rounded.dtype), rounded], 1)
        kept = kept[_first_of_each(both)]
        order = torch.randperm(len(kept), generator=generator, device=generator.device).cpu()
        return kept[order[: self.max_items].sort().values]

    def _report(self, meaning: Tensor, code: Tensor, other: Tensor | None, generator: torch.Generator) -> ProbeResult:
        between = hamming(meaning)
        apart = code_distance(code, self.distance, self.padding)
        n, value = len(meaning), similarity(between, apart)
        interval = controls.bootstrap(lambda rows: similarity(between, apart, rows), n, generator, self.resamples)
        null = shuffled(between, apart, generator, self.permutations)
        scalars = {
            **controls.with_interval("topsim", value, interval),
            "topsim_shuffled": null[0],
            "topsim_shuffled_std": null[1],
            "topsim_z": (value - null[0]) / null[1] if null[1] > 0 else math.nan,
            "topsim_scrambled": math.nan if other is None else self._scrambled(between, other),
            "items": float(n),
        }
        curve = _curve(between, apart)
        return ProbeResult(
            controls.finite(scalars), {"distances": curve}, _figures(scalars, curve, self.distance), _failures(scalars)
        )

    def _scrambled(self, between: Tensor, code: Tensor) -> float:
        rows = finite_rows(code)
        return similarity(between[rows][:, rows], code_distance(code[rows], self.distance, self.padding))


def similarity(between: Tensor, apart: Tensor, rows: Tensor | None = None) -> float:
    """Spearman's correlation of two distance matrices ``[n, n]`` over the pairs i < j.

    Args:
        between: distances of meanings.
        apart: distances of codes.
        rows: items to take, with repetitions; pairs of an item with itself are left out.

    Returns:
        Not-a-number where either distance is the same for all pairs.
    """
    rows = torch.arange(len(between)) if rows is None else rows
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    i, j = rows[i], rows[j]
    differ = i != j
    i, j = i[differ], j[differ]
    return _pearson(_ranks(between[i, j]), _ranks(apart[i, j]))


def shuffled(between: Tensor, apart: Tensor, generator: torch.Generator, times: int) -> tuple[float, float]:
    """Mean and standard deviation of `similarity` with the codes shuffled over the items."""
    n = len(between)
    i, j = torch.triu_indices(n, n, 1)
    meanings, ranks = _ranks(between[i, j]), torch.zeros(n, n, dtype=torch.float64)
    ranks[i, j] = ranks[j, i] = _ranks(apart[i, j])  # a shuffling moves the pairs' ranks and makes no new ones
    return controls.permuted(lambda order: _pearson(meanings, ranks[order[i], order[j]]), n, generator, times)


def hamming(rows: Tensor) -> Tensor:
    """Number of columns in which two rows ``[n, A]`` differ, ``[n, n]``."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for column in rows.unbind(1):
        total += column[:, None] != column[None]
    return total


def edit_distance(messages: Tensor, padding: int | None = None) -> Tensor:
    """Levenshtein distance of all pairs of messages ``[n, L]``, ``[n, n]``; `padding` and `FILL` are no symbols.

    D[s, t] = min(D[s-1, t] + 1, D[s, t-1] + 1, D[s-1, t-1] + (a_s != b_t)), for all pairs at once.
    """
    written = (messages != FILL) & (torch.ones_like(messages).bool() if padding is None else messages != padding)
    order = written.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # symbols first, where padding is inside
    messages, lengths = messages.gather(1, order), written.sum(1)
    n, L = messages.shape
    row = torch.arange(L + 1)[None, None].expand(n, n, -1)
    result = torch.where(lengths[:, None] == 0, lengths[None], 0)
    for s in range(L):
        below = [torch.full((n, n), s + 1)]
        for t in range(L):
            change = row[..., t] + (messages[:, s, None] != messages[None, :, t])
            below.append(torch.minimum(torch.minimum(row[..., t + 1] + 1, below[t] + 1), change))
        row = torch.stack(below, -1)
        ends = row.gather(-1, lengths[None, :, None].expand(n, n, 1))[..., 0]
        result = torch.where(lengths[:, None] == s + 1, ends, result)
    return result.double()


def code_distance(code: Tensor, distance: str, padding: int | None = None) -> Tensor:
    """The distances of all pairs of codes, ``[n, n]``, rounded so that equal codes tie.

    Args:
        code: activations ``[n, d]`` or messages ``[n, L]``.
        distance: "cosine", "euclidean", "hamming" or "edit".
        padding: symbol that the edit distance leaves out.
    """
    if distance in MESSAGES:
        return hamming(code) if distance == "hamming" else edit_distance(code, padding)
    code = code.double()
    scale = code.norm(dim=1).max().clamp(min=1e-300) if len(code) else 1.0
    if distance == "euclidean":
        apart = torch.cdist(code / scale, code / scale, compute_mode="donot_use_mm_for_euclid_dist")
        return apart.round(decimals=_DIGITS) * scale
    unit = torch.nn.functional.normalize(code / scale, dim=1)
    return (1 - unit @ unit.T).round(decimals=_DIGITS)


def _first_of_each(rows: Tensor) -> Tensor:
    """Indices of the first occurrence of every distinct row, ascending."""
    if not len(rows):
        return torch.zeros(0, dtype=torch.long)
    _, inverse = rows.unique(dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(rows))
    first = first.scatter_reduce(0, inverse, torch.arange(len(rows)), "amin")
    return first.sort().values


def _ranks(values: Tensor) -> Tensor:
    from scipy.stats import rankdata

    return torch.from_numpy(rankdata(values.numpy())).double()


def _pearson(x: Tensor, y: Tensor) -> float:
    if len(x) < 2:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else math.nan


def _curve(between: Tensor, apart: Tensor) -> dict[str, list[float]]:
    """Mean distance of codes, and number of pairs, at each distance of meanings."""
    i, j = torch.triu_indices(len(between), len(between), 1)
    levels, inverse, count = between[i, j].unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(levels), dtype=torch.float64).index_add(0, inverse, apart[i, j])
    return {"meanings": levels.long().tolist(), "codes": (total / count).tolist(), "pairs": count.tolist()}


def _failures(scalars: dict[str, float]) -> list[str]:
    value, z, scrambled = scalars["topsim"], scalars["topsim_z"], scalars["topsim_scrambled"]
    if math.isnan(value):
        return [
            "Topographic similarity is not defined, because all codes or all meanings are equally far from each other: "
            "do not read its absence as a value of 0."
        ]
    failures = []
    if z < 2:
        failures.append(
            f"Shuffled codes come close to the topographic similarity of {value:.2f} (z = {z:.1f}): do not conclude "
            "that codes are ordered as meanings are."
        )
    if scrambled > value - 1e-9:
        failures.append(
            f"A network with scrambled weights has a topographic similarity of {scrambled:.2f}, not below {value:.2f}: "
            "do not conclude that it was learned."
        )
    return failures


def _figures(scalars: dict[str, float], curve: dict[str, list[float]], distance: str) -> dict[str, dict[str, Any]]:
    names = {"topsim": "model", "topsim_shuffled": "shuffled codes", "topsim_scrambled": "scrambled weights"}
    known = [key for key in names if not math.isnan(scalars[key])]
    bars: dict[str, Any] = {
        "kind": "bar",
        "title": "Topographic similarity",
        "xlabel": "codes of",
        "ylabel": "Spearman's correlation",
        "x": [names[key] for key in known],
        "series": {"topsim": [scalars[key] for key in known]},
    }
    return {
        **({"topsim": bars} if known else {}),
        "distances": {
            "kind": "line",
            "title": "Distance of codes by distance of meanings",
            "xlabel": "attributes that differ",
            "ylabel": f"mean {distance} distance of codes",
            "x": curve["meanings"],
            "series": {"pairs of items": curve["codes"]},
        },
    }
