r"""Does each place, or each symbol, of a discrete message stand for one attribute of its meaning?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from algornn.probes import controls
from algornn.probes.information import Indicators, binned, indicators, information
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import FILL, Field, finite_rows, gathered, labels_of, messages_of, vectors_of
from algornn.probes.subject import Subject

BY_SYMBOL = ("bosdis", "context_independence_token", "context_independence_presence")


class DisentanglementProbe(Probe):
    r"""Positional and bag-of-symbols disentanglement, and context independence, of discrete messages.

    For place j let :math:`i_1, i_2` be the attributes with the largest and second largest mutual information. Then

    .. math::
        posdis = mean_j (I(a_{i_1}; c_j) - I(a_{i_2}; c_j)) / H(c_j)

    over the places whose symbol varies. `bosdis` is the same with :math:`c_j` the number of times that symbol j occurs
    in the message. Context independence, over the concepts c (an attribute with one of its values) and symbols v:

    .. math::
        v(c) = argmax_v p(c | v), \quad CI = mean_c \, p(v(c) | c) \, p(c | v(c))

    where p(c | v) is normalised over concepts. Two conventions are in use: `context_independence_token` counts symbols,
    so that p(v | c) is the share of v among all symbols of the messages about c (a perfect code of K symbols has
    1 / K^2), and `context_independence_presence` counts messages, p(v | c) is the share of those about c that hold v
    (1 / K). What is not defined, such as `posdis` of a message that never varies, is left out: it is not 0.

    Beside each: the mean and standard deviation with messages shuffled over the examples (mutual information is biased
    upwards where examples are few), the network with scrambled weights, and an interval of 1.96 bootstrap standard
    errors over examples.

    Args:
        meaning: at least two attributes ``[B, A]`` of whole numbers, a field of the batches or a function of a batch.
        message: messages ``[B, L]`` of whole numbers, a field or a function.
        site: site of the messages; takes the place of `message`.
        read: "argmax": the largest of the last dimension of an activation ``[B, L, V]``; "bins": every unit is a place,
            its symbol one of `bins` bins of equally many examples, for which only `posdis` has a sense.
        bins: number of them.
        padding: symbol that fills messages up; `bosdis` and context independence leave it out.
        corrected: whether entropies have Miller and Madow's correction for few examples (not those of the shares).
        permutations: number of shufflings.
        resamples: of the bootstrap.
        schedule: the arguments of `Probe`.

    Source: posdis, bosdis: Chaabouni et al. (2020), ACL, https://arxiv.org/abs/2004.09124; context independence: Bogin,
    Geva and Berant (2018), https://arxiv.org/abs/1809.00549; correction: Miller (1955).
    Deviation: of symbols with equal p(c | v), the one with the larger p(v | c) is v(c).
    """

    tried = ("site", "meaning", "message")

    def __init__(
        self,
        meaning: Field,
        message: Field | None = None,
        site: str | None = None,
        read: str = "argmax",
        bins: int = 20,
        padding: int | None = None,
        corrected: bool = False,
        permutations: int = 50,
        resamples: int = 100,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if (site is None) == (message is None):
            raise ValueError("Give either site=..., the site of the messages, or message=..., their field.")
        if read not in ("argmax", "bins"):
            raise ValueError(f"read must be 'argmax' or 'bins', got {read!r}.")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}.")
        self.meaning = meaning
        self.message = message
        self.site = site
        self.read = read
        self.bins = bins
        self.padding = padding
        self.corrected = corrected
        self.permutations = permutations
        self.resamples = resamples

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather meanings and messages, and compare their tables of counts."""
        models = {"message": subject.model}
        if self.site is not None:
            models["scrambled"] = controls.scrambled(subject.model, subject.generator)

        def read(batch: Any) -> dict[str, Any]:
            meaning = labels_of(batch, self.meaning, "meaning")
            if meaning.shape[1] < 2:
                raise ValueError("Disentanglement compares attributes: meaning must have at least two, [B, A].")
            return {"meaning": meaning, **{name: self._message(subject, batch, m) for name, m in models.items()}}

        rows = gathered(subject, read)
        meaning, found = rows.pop("meaning"), {}
        for name, message in rows.items():
            kept = finite_rows(message)
            found[name] = self._tables(meaning[kept], message[kept])
        return self._report(found, subject.generator)

    def _message(self, subject: Subject, batch: Any, model: Any) -> Tensor:
        if self.site is None:
            return labels_of(batch, 0 if self.message is None else self.message, "message")
        return (vectors_of if self._in_bins else messages_of)(subject, self.site, batch, model)

    @property
    def _in_bins(self) -> bool:
        return self.site is not None and self.read == "bins"

    def _tables(self, meaning: Tensor, message: Tensor) -> dict[str, Indicators]:
        """Indicators of the attributes, of the places, of the counts of symbols, and the counts themselves."""
        if not len(meaning):
            return {}
        if self._in_bins:
            return {"meaning": indicators(meaning), "places": indicators(binned(message, self.bins))}
        tables = {"meaning": indicators(meaning), "places": indicators(message)}
        counts, symbols = symbol_counts(message, self.padding)
        if len(symbols):
            tables["symbols"] = indicators(counts)
            tables["counts"] = Indicators(counts.double(), torch.zeros_like(symbols), symbols)
        return tables

    def _values(self, tables: dict[str, Indicators], order: Tensor | None = None) -> dict[str, float]:
        """All measures, with the messages in another order."""
        nothing = dict.fromkeys(("posdis", *BY_SYMBOL), math.nan)
        if not tables:
            return nothing
        moved = tables if order is None else {k: t if k == "meaning" else t.take(order) for k, t in tables.items()}
        meaning = tables["meaning"]
        values = {**nothing, "posdis": gap(meaning, moved["places"], self.corrected)}
        if "symbols" in tables:
            values["bosdis"] = gap(meaning, moved["symbols"], self.corrected)
            counts = moved["counts"].matrix
            values["context_independence_token"] = context_independence(meaning.matrix.double(), counts, "token")
            values["context_independence_presence"] = context_independence(meaning.matrix.double(), counts, "presence")
        return values

    def _report(self, found: dict[str, dict[str, Indicators]], generator: torch.Generator) -> ProbeResult:
        tables = found["message"]
        n = len(tables["meaning"].matrix) if tables else 0
        values = self._values(tables)
        scrambled = self._values(found["scrambled"]) if "scrambled" in found else {}
        null = _spread([self._values(tables, order) for order in _orders(n, generator, self.permutations)])
        drawn = torch.randint(max(n, 1), (self.resamples, n), generator=generator, device=generator.device).cpu()
        resampled = [self._values({k: t.take(rows) for k, t in tables.items()}) for rows in drawn] if n > 1 else []
        scalars: dict[str, float] = {}
        for name, value in values.items():
            interval = controls.around(value, [row[name] for row in resampled], 0, 1)
            scalars.update(controls.with_interval(name, value, interval))
        for name in values:
            scalars[f"{name}_shuffled"], scalars[f"{name}_shuffled_std"] = null[name]
            scalars[f"{name}_scrambled"] = scrambled.get(name, math.nan)
        scalars["examples"] = float(n)
        matrix = information(tables["meaning"], tables["places"], self.corrected) if tables else None
        return ProbeResult(
            controls.finite(scalars), _table(matrix), _figures(scalars, matrix), _failures(scalars, list(values))
        )


def gap(meaning: Indicators, code: Indicators, corrected: bool = False) -> float:
    """Mean over the columns of the code of (I_1 - I_2) / H; columns that never vary are left out.

    Args:
        meaning: the attributes, at least two.
        code: places (for `posdis`) or numbers of occurrences of symbols (for `bosdis`).
        corrected: see `information`.

    Returns:
        Not-a-number if no column varies.
    """
    shared, _, H = information(meaning, code, corrected)
    first, second = shared.topk(2, 0).values
    varies = H > 1e-12
    return float(((first - second)[varies] / H[varies]).mean())


def symbol_counts(messages: Tensor, padding: int | None = None) -> tuple[Tensor, Tensor]:
    """How often each symbol occurs in each message: counts ``[n, V]`` and the V symbols, without `padding`."""
    symbols, inverse = messages.unique(return_inverse=True)
    counts = torch.zeros(len(messages), len(symbols), dtype=torch.long)
    counts.scatter_add_(1, inverse, torch.ones_like(inverse))
    kept = (symbols != FILL) & (symbols != (FILL if padding is None else padding))
    return counts[:, kept], symbols[kept]


def context_independence(concepts: Tensor, counts: Tensor, convention: str) -> float:
    """Mean over concepts of p(v(c) | c) p(c | v(c)).

    Args:
        concepts: ``[n, C]``, 1 where the message is about the concept.
        counts: ``[n, V]``, how often the message holds the symbol.
        convention: "token" or "presence", as `DisentanglementProbe` says.
    """
    if convention == "token":
        joint = concepts.T @ counts  # [C, V]
        of_concept = joint.sum(1, keepdim=True)
    else:
        joint = concepts.T @ counts.gt(0).to(concepts)
        of_concept = concepts.sum(0)[:, None]
    known = of_concept[:, 0] > 0
    if not known.any():
        return math.nan
    p_v = (joint / of_concept)[known]
    p_c = (joint / joint.sum(0).clamp(min=1))[known]
    best = p_c == p_c.amax(1, keepdim=True)
    return float(((p_v * p_c) * best).amax(1).mean())


def _orders(n: int, generator: torch.Generator, times: int) -> list[Tensor]:
    return [torch.randperm(n, generator=generator, device=generator.device).cpu() for _ in range(times if n else 0)]


def _spread(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each measure over the shufflings."""
    return {name: controls.spread([row[name] for row in rows]) for name in ("posdis", *BY_SYMBOL)}


def _table(matrix: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, Any]:
    if matrix is None:
        return {}
    shared, H_a, H_c = matrix
    return {"information": shared.tolist(), "attribute_entropy": H_a.tolist(), "place_entropy": H_c.tolist()}


def _failures(scalars: dict[str, float], names: list[str]) -> list[str]:
    failures = []
    if math.isnan(scalars["posdis"]):
        failures.append("The messages never vary, so posdis is not defined: do not read its absence as a value of 0.")
    for name in names:
        value, null, scrambled = scalars[name], scalars[f"{name}_shuffled"], scalars[f"{name}_scrambled"]
        if value <= null + 2 * scalars[f"{name}_shuffled_std"]:
            failures.append(
                f"A {name} of {value:.2f} is no more than that of shuffled messages ({null:.2f}): do not conclude from "
                "it that symbols stand for attributes."
            )
        elif scrambled > value - 1e-9:
            failures.append(
                f"A network with scrambled weights has a {name} of {scrambled:.2f}, not below {value:.2f}: do not "
                "conclude that it was learned."
            )
    return failures


def _figures(scalars: dict[str, float], matrix: tuple[Tensor, Tensor, Tensor] | None) -> dict[str, dict[str, Any]]:
    measures = [name for name in ("posdis", *BY_SYMBOL) if not math.isnan(scalars[name])]
    series = {"messages": "", "shuffled": "_shuffled", "scrambled weights": "_scrambled"}
    bars = {label: [scalars[name + suffix] for name in measures] for label, suffix in series.items()}
    figures: dict[str, dict[str, Any]] = {
        "disentanglement": {
            "kind": "bar",
            "title": "Disentanglement of messages",
            "xlabel": "measure",
            "ylabel": "0 to 1",
            "x": [name.replace("context_independence_", "CI by ") for name in measures],
            "series": {label: values for label, values in bars.items() if not all(map(math.isnan, values))},
        }
    }
    if not measures:
        del figures["disentanglement"]
    if matrix is not None:
        shared = matrix[0]
        figures["information"] = {
            "kind": "heatmap",
            "title": "Information of places about attributes (bits)",
            "xlabel": "place in the message",
            "ylabel": "attribute",
            "x": list(range(shared.shape[1])),
            "y": list(range(shared.shape[0])),
            "values": shared.tolist(),
        }
    return figures
