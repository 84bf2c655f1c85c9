r"""Does a model treat synonyms alike, build wholes from its own parts, and let a rule beat its exceptions?

With the prediction f(x), none of these asks for the right answer:

.. math::
    consistency = mean 1[f(x) = f(x')], \quad localism = mean 1[f(x) = f(unrolled\ x)], \quad
    overgeneralisation = \max_{measurements} mean 1[f(x) = rule(x)]

where x' has a word of x replaced by its synonym, the unrolled x is computed constituent by constituent with the
model's own outputs put in, and the last mean is over exceptions, whose target is not what the rule gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from algornn.probes.batches import Batches
from algornn.probes.controls import finite, mean_interval, permuted, with_interval
from algornn.probes.predictions import Answers, Field, Predict, Tokens, exact_match, numbered
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject


class ConsistencyProbe(Probe):
    r"""Substitutivity, localism and overgeneralisation, of which at least one is asked for.

    * `consistency` of the predictions of twin inputs, right or wrong; `consistency_both_wrong`, the same where both
      are wrong, which tells invariance from mere accuracy; `exact_match` and `twin_exact_match`;
    * `localism`: agreement with the prediction for the unrolled input;
    * `overgeneralisation`: the largest share of exceptions answered by the rule in any measurement of this probe, and
      `rule_match` and `exception_match` of the present one. The former rises and falls in training, so measure often.

    Controls: `consistency_chance`, `consistency_both_wrong_chance` and `localism_chance`, agreement with the prediction
    for another example (of those that count); the adapted curve (`exception_match`) beside that of the rule.

    Args:
        twin: `twin(batch) -> batch` whose row i is the twin of row i; or a loader of as many rows in the same order.
        unrolled: `unrolled(model, batch) -> ids`, the prediction when each constituent is computed alone.
        exceptions: loader of exceptions; their targets are the exceptional ones.
        rule: field of the exceptions' batches that holds the targets under the rule.
        target: field of the targets, see `Answers`.
        mask: field that says where targets count, see `Answers`.
        predict: `predict(model, batch) -> ids`, see `Answers`; greedy decoding for sequences: with None, the largest
            outputs, a decoder that reads the target shows the same wrong prefix to both twins.
        eos: the token that ends a sequence, see `Answers`.
        schedule: the arguments of `Probe`.

    Source: Hupkes, Dankers, Mul and Bruni (2020), JAIR 67, https://arxiv.org/abs/1908.08351, sections 4.3 to 4.5.
    Deviation: the maximum is over the measurements of this probe, of the paper's over epochs.
    """

    def __init__(
        self,
        twin: Callable[[Any], Any] | Iterable[Any] | None = None,
        unrolled: Predict | None = None,
        exceptions: Iterable[Any] | None = None,
        rule: Field = "rule",
        target: Field | None = None,
        mask: Field | None = None,
        predict: Predict | None = None,
        eos: int | None = None,
        **schedule: Any,
    ) -> None:
        if twin is None and unrolled is None and exceptions is None:
            raise ValueError("Nothing to compare: pass at least one of twin=, unrolled= and exceptions=.")
        if exceptions is not None and schedule.get("loader") is None and twin is None and unrolled is None:
            schedule["loader"] = exceptions
        super().__init__(**schedule)
        self.twin = twin
        self.unrolled = unrolled
        self.exceptions = exceptions
        self.rule = rule
        self.target = target
        self.mask = mask
        self.predict = predict
        self.eos = eos

    def _new_state(self) -> dict[str, Any]:
        return {**super()._new_state(), "overgeneralisation": []}

    def measure(self, subject: Subject) -> ProbeResult:
        """One forward (or decoding) per batch and per kind of input, shared out over the processes."""
        result = ProbeResult()
        if self.twin is not None:
            twins = self.twin if callable(self.twin) else self._twin_batches(subject).__getitem__
            a, b, own, other = self._gathered(subject, partial(self._twins, twins), subject.loader)
            _merge(result, twin_report(a, b, own, other, subject.generator))
        if self.unrolled is not None:
            a, b = self._gathered(subject, self._unrolled, subject.loader)
            _merge(result, local_report(a, b, subject.generator))
        if self.exceptions is not None:
            batches = Batches.of(self.exceptions, self.max_batches, self.seed, subject.device)
            match = overgeneralisation(*self._gathered(subject, self._exceptions, batches))
            history = [*self._state["overgeneralisation"], [match["rule_match"], match["exception_match"]]]
            self._state["overgeneralisation"] = history
            _merge(result, exception_report(match, history))
        result.scalars = finite(result.scalars)
        return result

    def _gathered(
        self, subject: Subject, kind: Callable[..., tuple[list[Tokens], ...]], batches: Batches
    ) -> list[list[Tokens]]:
        """The columns that `kind(subject, batch, index)` gives for each batch, joined."""
        parts = subject.map(lambda index, _: kind(subject, batches[index], index), range(len(batches)))
        return [[sequence for part in column for sequence in part] for column in zip(*parts, strict=True)]

    @property
    def _answers(self) -> Answers:
        return Answers(self.target, self.mask, self.predict, self.eos)

    def _twins(self, twins: Callable[[Any], Any], subject: Subject, batch: Any, index: int) -> tuple[list[Tokens], ...]:
        twin = twins(batch) if callable(self.twin) else twins(index)
        predictions, targets = self._answers.of(subject, batch)
        twin_predictions, twin_targets = self._answers.of(subject, twin)
        if len(predictions) != len(twin_predictions):
            raise ValueError(
                f"Batch {index} has {len(predictions)} rows and its twin {len(twin_predictions)}: twin batches hold "
                "the twins of the same rows in the same order."
            )
        return predictions, twin_predictions, targets, twin_targets

    def _twin_batches(self, subject: Subject) -> Batches:
        """The twins in the order of the subject's batches, which depends on the seed and the number of rows alone."""
        twins = Batches.of(self.twin, self.max_batches, self.seed, subject.device)  # type: ignore[arg-type]
        if len(twins) != len(subject.loader):
            raise ValueError(
                f"There are {len(subject.loader)} batches and {len(twins)} of twins: the loader of twins holds as many "
                "rows in batches of the same size."
            )
        return twins

    @torch.no_grad()
    def _unrolled(self, subject: Subject, batch: Any, index: int) -> tuple[list[Tokens], ...]:
        answers = self._answers
        targets = answers.targets(batch)
        whole = answers.predicted(subject, batch, targets)
        parts = self.unrolled(subject.model, batch)  # type: ignore[misc]
        return answers.written(whole, batch, targets), answers.written(parts, batch, targets)

    def _exceptions(self, subject: Subject, batch: Any, index: int) -> tuple[list[Tokens], ...]:
        predictions, targets = self._answers.of(subject, batch)
        ruled = self._answers.targets(batch, self.rule)
        return predictions, self._answers.read(batch, ruled), targets


def consistency(a: Sequence[Any], b: Sequence[Any], targets: Sequence[Any], twin_targets: Sequence[Any]) -> Tensor:
    """Agreement of the predictions of twins, and its condition.

    Args:
        a: predictions, n sequences.
        b: predictions for the twins.
        targets: of the examples.
        twin_targets: of the twins.

    Returns:
        Bool ``[2, n]``: whether the predictions are the same, and whether both are wrong.
    """
    wrong = ~exact_match(a, targets) & ~exact_match(b, twin_targets)
    return torch.stack([exact_match(a, b), wrong])


def localism(predictions: Sequence[Any], unrolled: Sequence[Any]) -> float:
    """Share of examples whose prediction is that of the unrolled input."""
    return float(exact_match(predictions, unrolled).double().mean())


def overgeneralisation(predictions: Sequence[Any], ruled: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
    """Share of exceptions that are answered by the rule, and by what they are an exception for.

    Examples whose target is what the rule gives are no exceptions and do not count.
    """
    exception = ~exact_match(ruled, targets)
    rule, right = exact_match(predictions, ruled), exact_match(predictions, targets)
    return {
        "rule_match": float(rule[exception].double().mean()),
        "exception_match": float(right[exception].double().mean()),
    }


def agreement_by_chance(a: Sequence[Any], b: Sequence[Any], generator: torch.Generator) -> float:
    """Mean agreement of predictions with the predictions for other examples, over 20 permutations."""
    x, y = numbered(a, b)
    return permuted(lambda order: float((x == y[order]).double().mean()), len(x), generator)[0]


def twin_report(
    a: Sequence[Any],
    b: Sequence[Any],
    targets: Sequence[Any],
    twin_targets: Sequence[Any],
    generator: torch.Generator,
) -> ProbeResult:
    """Substitutivity; the arguments are those of `consistency`."""
    same, wrong = consistency(a, b, targets, twin_targets)
    accuracy, twin_accuracy = exact_match(a, targets), exact_match(b, twin_targets)
    both = same[wrong].double()
    a_wrong, b_wrong = ([s for s, w in zip(column, wrong.tolist(), strict=True) if w] for column in (a, b))
    scalars = {
        "consistency": float(same.double().mean()),
        "consistency_both_wrong": float(both.mean()),
        "consistency_chance": agreement_by_chance(a, b, generator),
        "consistency_both_wrong_chance": agreement_by_chance(a_wrong, b_wrong, generator),
        "exact_match": float(accuracy.double().mean()),
        "twin_exact_match": float(twin_accuracy.double().mean()),
        "both_wrong": float(wrong.double().mean()),
    }
    for name, values in {"consistency": same.double(), "consistency_both_wrong": both}.items():
        scalars |= with_interval(name, scalars[name], mean_interval(values, generator))
    kinds = {
        "same, both wrong": same & wrong,
        "same, not both wrong": same & ~wrong,
        "different, both wrong": ~same & wrong,
        "different, not both wrong": ~same & ~wrong,
    }
    table = {name: int(rows.sum()) for name, rows in kinds.items()}
    return ProbeResult(
        scalars,
        {"twins": table},
        {
            "consistency": _bars(
                scalars, {"all examples": "consistency", "both predictions wrong": "consistency_both_wrong"}
            )
        },
        _twin_failures(scalars),
    )


def _twin_failures(scalars: dict[str, float]) -> list[str]:
    failures = []
    chance, wrong_chance = scalars["consistency_chance"], scalars["consistency_both_wrong_chance"]
    if not scalars["consistency_low"] > chance:  # a single example has no interval
        failures.append(
            f"Predictions agree with those for the twin ({scalars['consistency']:.3f}) no more than with those for "
            f"other examples ({chance:.3f}): the model may answer always the same, so do not read the consistency as "
            "knowledge of synonyms."
        )
    elif scalars["consistency_both_wrong_low"] <= wrong_chance:
        failures.append(
            f"Where both predictions are wrong they agree ({scalars['consistency_both_wrong']:.3f}) no more than those "
            f"for other examples ({wrong_chance:.3f}): the consistency comes from right answers, so do not read it as "
            "invariance beyond accuracy."
        )
    return failures


def local_report(predictions: Sequence[Any], unrolled: Sequence[Any], generator: torch.Generator) -> ProbeResult:
    """Localism; the arguments are those of `localism`."""
    interval = mean_interval(exact_match(predictions, unrolled), generator)
    scalars = {
        **with_interval("localism", localism(predictions, unrolled), interval),
        "localism_chance": agreement_by_chance(predictions, unrolled, generator),
    }
    failures = []
    if not interval[0] > scalars["localism_chance"]:
        failures.append(
            f"Predictions agree with those for the unrolled input ({scalars['localism']:.3f}) no more than with those "
            f"for other inputs ({scalars['localism_chance']:.3f}): do not read the localism as computation by parts."
        )
    return ProbeResult(scalars, {}, {"localism": _bars(scalars, {"all examples": "localism"})}, failures)


def exception_report(match: dict[str, float], history: Sequence[Sequence[float]]) -> ProbeResult:
    """Overgeneralisation so far.

    Args:
        match: of the present measurement, see `overgeneralisation`.
        history: `rule_match` and `exception_match` of every measurement.
    """
    known = [rule for rule, _ in history if not math.isnan(rule)]
    curves = {name: [row[i] for row in history] for i, name in enumerate(("rule", "exception"))}
    figure = {
        "kind": "line",
        "title": "Exceptions answered by the rule, and as the exceptions they are",
        "xlabel": "measurement",
        "ylabel": "exact match",
        "ylim": [0, 1],
        "x": list(range(1, len(history) + 1)),
        "series": curves,
    }
    scalars = {"overgeneralisation": max(known, default=math.nan), **match}
    return ProbeResult(scalars, {"overgeneralisation": curves}, {"overgeneralisation": figure})


def _bars(scalars: dict[str, float], names: dict[str, str]) -> dict[str, Any]:
    """Agreement beside its chance, for each (label, scalar) of `names`."""
    series: dict[str, Any] = {
        "in a pair": names.values(),
        "in shuffled pairs": [f"{name}_chance" for name in names.values()],
    }
    return {
        "kind": "bar",
        "title": "Predictions that agree",
        "xlabel": "",
        "ylabel": "share of examples",
        "ylim": [0, 1],
        "x": list(names),
        "series": {label: [scalars[key] for key in keys] for label, keys in series.items()},
    }


def _merge(result: ProbeResult, part: ProbeResult) -> None:
    """Add the part's numbers, tables, figures and failures to the result."""
    result.scalars.update(part.scalars)
    result.tables.update(part.tables)
    result.figures.update(part.figures)
    result.failures.extend(part.failures)
