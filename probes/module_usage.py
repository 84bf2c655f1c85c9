r"""Does a router give each rule a module of its own, and does it use all of its modules?

From the routing scores of M modules, averaged over the examples of each of R rules, comes the joint table
:math:`P_{rm} = p(m | r) / R`, in which every rule weighs the same. With :math:`p_m = \sum_r P_{rm}`:

.. math::
    collapse_{avg} = \frac{M}{M - 1} \sum_m \max(0, 1/M - p_m), \quad collapse_{worst} = 1 - M \min_m p_m

    alignment = \frac{1}{2 \max(M, R)} \min_\Pi \sum_{rm} |\Pi_{rm} - R P_{rm}|, \quad
    inverse\ MI = \log R - I(r; m)

    adaptation = \frac{1}{2} E_q \| sort(q) - sort(p_m(q)) \|_1, \quad p_m(q) = \sum_r q_r R P_{rm}

where Pi assigns each rule another module and q is drawn from the flat Dirichlet distribution. All are 0 for one module
per rule. Collapse is 1 where one module does everything, and 0 where all are used alike, whatever for. Alignment is
1 - 1/R, and the inverse mutual information log R (in nats), where the module says nothing about the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from algornn.probes.batches import field_of
from algornn.probes.controls import around, finite, permuted, with_interval
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject

_METRICS = ("collapse_avg", "collapse_worst", "alignment", "inverse_mutual_information", "adaptation")
_MARGIN = 0.25  # difference between soft scores and counts of the largest that changes what the reader would conclude


class ModuleUsageProbe(Probe):
    """Collapse, alignment, mutual information and adaptation of a router's use of its modules.

    Beside each value stand its interval of 1.96 bootstrap standard errors over examples, that of counts of the largest
    score (`_straight`), and that with the rules dealt out to the examples at random (`_permuted`).

    Read with care: soft scores of a router of high temperature look collapsed although the largest one is always
    another's, and a router that takes the best few needs `straight=True`. Adaptation is blind to swapped modules.

    Args:
        site: of the router's scores, ``[B, M]``, or ``[B, ..., M]`` with one choice per place.
        rule: field of the batch with each example's rule, integers ``[B]``, or ``[B, ...]`` with one rule per place;
            below 0: left out.
        straight: count the largest scores instead of averaging them.
        softmax: the scores are logits.
        draws: of q, for the adaptation.
        schedule: the arguments of `Probe`.

    Source: Mittal, Bengio and Lajoie (2022), NeurIPS, https://arxiv.org/abs/2206.02713, section 5.
    Deviations: defined for M = R there; collapse has 1/M as a module's fair share here, and a rectangular alignment is
    divided by the larger of the two (with M < R it can not reach 0, nor the inverse mutual information go below
    log R - log M).
    """

    tried = ("site", "rule")

    def __init__(
        self,
        site: str,
        rule: int | Callable[[Any], Any] | str = "group",
        straight: bool = False,
        softmax: bool = False,
        draws: int = 100,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if draws < 1:
            raise ValueError(f"draws must be positive, got {draws}.")
        self.site = site
        self.rule = rule
        self.straight = straight
        self.softmax = softmax
        self.draws = draws

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather scores and rules, one batch at a time, shared out over the processes."""

        def routed(index: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            batch = subject.loader[index]
            rules = field_of(batch, self.rule, "rule")
            return scores_of(subject.activations([self.site], batch)[self.site], rules, self.softmax, self.site)

        parts = subject.map(routed, range(len(subject.loader)))
        widths = {part[0].shape[-1] for part in parts}
        if len(widths) > 1:
            raise ValueError(f"The site {self.site!r} has {sorted(widths)} modules in different batches.")
        first, examples = 0, []
        for _, _, example in parts:
            examples.append(example + first)
            first += int(example.max()) + 1 if len(example) else 0
        scores, rules = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        if not len(rules):
            raise ValueError(
                f"No choice of the site {self.site!r} has a rule: all rules are below 0, or scores no number."
            )
        names = subject.loader.names if self.rule == "group" else ()
        return self._report(scores, rules, torch.cat(examples), names, subject.generator)

    def _report(
        self, scores: Tensor, rules: Tensor, examples: Tensor, names: tuple[str, ...], generator: torch.Generator
    ) -> ProbeResult:
        """The measures of the table, their intervals and controls."""
        values, rules = rules.unique(return_inverse=True)
        R, counts = len(values), straightened(scores)
        soft, straight = joint_table(scores, rules, R), joint_table(counts, rules, R)
        chosen, table = (counts, straight) if self.straight else (scores, soft)
        q = _dirichlet(self.draws, R, generator)
        found, other = usage(table, q), usage(soft if self.straight else straight, q)
        scalars = {key: found[key] for key in _METRICS}
        members = int(examples.max()) + 1

        def resampled(rows: Tensor) -> dict[str, float]:
            weight = torch.bincount(rows, minlength=members)[examples]
            return usage(joint_table(chosen, rules, R, weight), q)

        def dealt(order: Tensor, key: str) -> float:
            return usage(joint_table(chosen, rules[order], R), q)[key]

        draws = torch.randint(members, (50, members), generator=generator, device=generator.device).cpu()
        again = [resampled(rows) for rows in draws] if members > 1 else []
        for key in _METRICS:
            most = math.log(R) if key == "inverse_mutual_information" else 1.0
            scalars |= with_interval(key, found[key], around(found[key], [row[key] for row in again], 0, most))
        for key in ("alignment", "inverse_mutual_information"):
            null = permuted(lambda order, key=key: dealt(order, key), len(rules), generator)  # type: ignore[misc]
            scalars |= dict(zip((f"{key}_permuted", f"{key}_permuted_std"), null, strict=True))
        suffix = "soft" if self.straight else "straight"
        scalars |= {f"{key}_{suffix}": other[key] for key in _METRICS}
        scalars |= {"modules": table.shape[1], "rules": R}
        labels = [names[v] if v < len(names) else str(v) for v in values.tolist()]
        tables = {"joint": dict(zip(labels, table.tolist(), strict=True)), "usage": table.sum(0).tolist(), "of": labels}
        return ProbeResult(finite(scalars), tables, _figures(table, labels, found), _failures(scalars, suffix))


def scores_of(scores: Tensor, rules: Any, softmax: bool, site: str) -> tuple[Tensor, Tensor, Tensor]:
    """The choices of a batch: scores ``[N, M]`` that sum to 1, their rules ``[N]`` and their examples ``[N]``.

    Raises:
        TypeError: rules are no integers.
        ValueError: shapes that do not fit, or scores that are no probabilities.
    """
    if not isinstance(rules, Tensor) or rules.is_floating_point() or rules.is_complex():
        raise TypeError(f"rule must lead to a tensor of integers, got {getattr(rules, 'dtype', type(rules).__name__)}.")
    if scores.ndim < 2 or rules.shape not in (scores.shape[:1], scores.shape[:-1]):
        raise ValueError(
            f"Expected scores [B, ..., modules] at the site {site!r} and rules [B] or [B, ...], got "
            f"{list(scores.shape)} and {list(rules.shape)}."
        )
    places = scores.shape[1:-1]
    rules = rules.reshape(rules.shape + (1,) * (scores.ndim - 1 - rules.ndim)).expand(scores.shape[:-1])
    examples = torch.arange(len(scores), device=scores.device).reshape(-1, *(1,) * len(places)).expand(rules.shape)
    scores = (scores.double().softmax(-1) if softmax else scores.double()).flatten(0, -2)
    kept = scores.isfinite().all(-1) & (rules.flatten().to(scores.device) >= 0)
    scores = scores[kept]
    if len(scores) and (float(scores.min()) < -1e-6 or float((scores.sum(-1) - 1).abs().max()) > 1e-3):
        raise ValueError(f"The scores at the site {site!r} are no probabilities over the modules: pass softmax=True.")
    return scores, rules.flatten().to(kept.device)[kept].long(), examples.flatten()[kept]


def straightened(scores: Tensor) -> Tensor:
    """1 at the largest score of each row ``[N, M]``, shared evenly where several are the largest."""
    largest = (scores == scores.amax(-1, keepdim=True)).to(scores.dtype)
    return largest / largest.sum(-1, keepdim=True)


def joint_table(scores: Tensor, rules: Tensor, R: int, weight: Tensor | None = None) -> Tensor:
    """P ``[R, M]``: the mean score of each rule, over R; not-a-numbers for a rule without an example.

    Args:
        scores: ``[N, M]``.
        rules: ``[N]``, from 0 to R - 1.
        R: number of rules.
        weight: of each row ``[N]``; None: 1.
    """
    weight = torch.ones(len(rules), dtype=scores.dtype) if weight is None else weight.to(scores.dtype)
    sums = scores.new_zeros(R, scores.shape[1]).index_add(0, rules, scores * weight[:, None])
    total = scores.new_zeros(R).index_add(0, rules, weight)
    return sums / total[:, None] / R


def usage(P: Tensor, q: Tensor) -> dict[str, float]:
    """The measures of a joint table.

    Args:
        P: ``[R, M]``, rows of sum 1 / R.
        q: distributions over the rules ``[n, R]``, for the adaptation.

    Returns:
        Not-a-numbers where a rule has no example; for one module no collapse is defined.
    """
    from scipy.optimize import linear_sum_assignment

    if bool(P.isnan().any()):
        return dict.fromkeys(_METRICS, math.nan)
    R, M = P.shape
    p, conditional = P.sum(0), P * R
    rows, columns = linear_sum_assignment(1 - 2 * conditional.numpy())
    distance = conditional.sum() + (1 - 2 * conditional[rows, columns]).sum()
    information = torch.special.entr(p).sum() - torch.special.entr(conditional).sum() / R
    width = max(M, R)
    ordered, answer = (
        torch.nn.functional.pad(x, (0, width - x.shape[1])).sort(-1).values for x in (q, q @ conditional)
    )
    return {
        "collapse_avg": float((1 / M - p).clamp(min=0).sum() * M / (M - 1)) if M > 1 else math.nan,
        "collapse_worst": float(1 - M * p.min()) if M > 1 else math.nan,
        "alignment": float(distance) / (2 * width),
        "inverse_mutual_information": math.log(R) - float(information),
        "adaptation": float((ordered - answer).abs().sum(-1).mean()) / 2,
    }


def _dirichlet(n: int, R: int, generator: torch.Generator) -> Tensor:
    """N draws of the flat Dirichlet distribution: exponential variables over their sum."""
    uniform = torch.rand(n, R, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    waits = -torch.log1p(-uniform) + 1e-300
    return waits / waits.sum(-1, keepdim=True)


def _failures(scalars: dict[str, float], suffix: str) -> list[str]:
    failures = []
    key = "inverse_mutual_information"
    null, spread = scalars[f"{key}_permuted"], scalars[f"{key}_permuted_std"]
    if scalars["rules"] < 2:
        failures.append("There is only one rule: nothing can be concluded about which module serves which rule.")
    elif not scalars[key] < null - 3 * spread - 1e-9:
        failures.append(
            "The modules say no more about the rules than about rules dealt out at random: do not conclude that the "
            "router tells rules apart, however evenly it uses its modules."
        )
    apart = [k for k in ("collapse_avg", "alignment") if abs(scalars[k] - scalars[f"{k}_{suffix}"]) > _MARGIN]
    if apart:
        failures.append(
            f"Soft scores and counts of the largest one disagree about {' and '.join(apart)}: do not take the soft "
            "scores for the choices of a router that takes the largest, or the other way round."
        )
    return failures


def _figures(table: Tensor, labels: list[str], found: dict[str, float]) -> dict[str, dict[str, Any]]:
    R, M = table.shape
    modules = list(range(1, M + 1))
    return {
        "joint": {
            "kind": "heatmap",
            "title": f"Modules that each rule uses (alignment {found['alignment']:.2f})",
            "xlabel": "module",
            "ylabel": "rule",
            "x": modules,
            "y": labels,
            "values": (table * R).tolist(),
        },
        "usage": {
            "kind": "bar",
            "title": f"Use of each module (collapse: mean {found['collapse_avg']:.2f}, "
            f"worst {found['collapse_worst']:.2f})",
            "xlabel": "module",
            "ylabel": "share, all rules alike",
            "x": modules,
            "series": {"share": table.sum(0).tolist()},
        },
    }
