r"""Is a representation of a sequence a sum of bindings of its fillers to roles, and to which roles?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from algornn.probes import controls
from algornn.probes.batches import field_of
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.roles import GIVEN, SCHEMES, Sequences, counts_of, equivalent, numbered_roles, numbers_of
from algornn.probes.samples import FILL, Field, gathered, labels_of, vectors_of
from algornn.probes.sites import Site, replaced
from algornn.probes.subject import Subject


class TensorProductProbe(Probe):
    r"""Tensor-product decomposition: how much of an activation each role scheme explains.

    .. math::
        h(x) \approx c + W \sum_t f(x_t) \otimes r(\rho_t(x))

    with free vectors for fillers and roles is linear in the counts N of the pairs (filler, role), so it is solved for:

    .. math::
        \min_B \|H - c - N B\|^2 + \lambda \|B\|^2, \quad R^2 = 1 - \sum \|h - \hat h\|^2 / \sum \|h - \bar h\|^2

    in float64, on some of the examples; :math:`R^2` is that of the others (no sequence is on both sides), against the
    mean :math:`\bar h` of the former. `r2` is that of the best scheme, `r2/<scheme>` that of each.

    Beside them: activations shuffled over the sequences, the network with scrambled weights, and the substitution
    accuracy, the share of held-out examples on which the model decides as before (all its largest outputs are the same)
    when the reconstruction takes the activation's place; for the mean activation as well. Intervals are bootstraps over
    held-out examples with the fit kept.

    Args:
        site: site of the activation; all its dimensions but the first are one vector.
        fillers: tokens ``[B, T]``, a field of the batches or a function of a batch.
        schemes: of "left_to_right", "right_to_left", "bidirectional", "wickelrole" (the two neighbours) and
            "bag_of_words" (one role).
        role: a scheme of the user's, called "given": a field or function with whole numbers ``[B, T]`` or B lists of T
            hashable roles, such as places in a tree.
        padding: token that is no filler; None: all are.
        ridge: the strength :math:`\lambda` of the penalty.
        test_fraction: share of the different sequences that are held out.
        substitute: whether to measure the substitution accuracy.
        permutations: number of shufflings.
        schedule: the arguments of `Probe`.

    Source: McCoy, Linzen, Dunbar and Smolensky (2019), ICLR, https://arxiv.org/abs/1812.08718.
    Deviations: solved for instead of trained, so that fillers, roles and W are of unrestricted rank, and there is no
    seed; the decoder is the rest of the model under the loss, so a decoder that is fed the target stays fed.
    """

    tried = ("site", "fillers", "role")

    def __init__(
        self,
        site: str,
        fillers: Field,
        schemes: Sequence[str] = SCHEMES,
        role: Field | None = None,
        padding: int | None = 0,
        ridge: float = 1e-2,
        test_fraction: float = 0.25,
        substitute: bool = True,
        permutations: int = 5,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
        if unknown or not (schemes or role is not None):
            raise ValueError(f"schemes must be some of {list(SCHEMES)}, got {list(schemes)}; role=... adds your own.")
        if ridge <= 0 or not 0 < test_fraction < 1:
            raise ValueError(f"Expected ridge > 0 and test_fraction in (0, 1), got {ridge} and {test_fraction}.")
        call = Site.parse(site).call
        if substitute and (call == ":" or (isinstance(call, int) and call < 0)):
            raise ValueError(
                f"A reconstruction takes the place of one call, counted from the first: the site {site!r} is not "
                "written so; set substitute=False to measure it all the same."
            )
        self.site = site
        self.fillers = fillers
        self.schemes = tuple(schemes)
        self.role = role
        self.padding = padding
        self.ridge = ridge
        self.test_fraction = test_fraction
        self.substitute = substitute
        self.permutations = permutations

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather activations and fillers; each fit is one job, then each batch is run with its reconstructions."""
        twin = controls.scrambled(subject.model, subject.generator)
        rows = gathered(subject, lambda batch: self._read(subject, batch, twin))
        sequences = self._sequences(rows)
        usable = rows["activation"].isfinite().all(1) & sequences.written.any(1)
        test = usable & held_out(sequences, self.test_fraction, subject.generator)
        train = (usable & ~test).nonzero().flatten()
        if len(train) < 2 or not test.any():
            return controls.nothing(int(usable.sum()), len(usable))
        schemes = [*self.schemes, *([GIVEN] if sequences.given is not None else [])]
        pairs = {scheme: sequences.pairs(scheme) for scheme in schemes}
        fit = _Fit(pairs, rows["activation"], rows["scrambled"], train, test.nonzero().flatten(), self.ridge)
        kinds: list[str | int] = ["model", "scrambled", *range(self.permutations)]
        jobs = [(scheme, kind) for scheme in schemes for kind in kinds]
        fits = dict(zip(jobs, subject.map(lambda job, generator: fit(job[0], job[1], generator), jobs), strict=True))
        agreement = self._substituted(subject, fits, schemes, fit, rows) if self.substitute else {}
        same = [(a, b) for i, a in enumerate(schemes) for b in schemes[i + 1 :]
                if equivalent(pairs[a][0], pairs[b][0], sequences.written)]  # fmt: skip
        table = [self._row(scheme, fits, fit, agreement, subject.generator) for scheme in schemes]
        return _report(table, agreement, same, float(usable.sum()), float(len(fit.test)))

    def _read(self, subject: Subject, batch: Any, twin: torch.nn.Module) -> dict[str, Any]:
        tokens = labels_of(batch, self.fillers, "fillers")
        codes = {
            "activation": vectors_of(subject, self.site, batch),
            "scrambled": vectors_of(subject, self.site, batch, twin),
        }
        roles = {} if self.role is None else {"role": numbers_of(field_of(batch, self.role), tokens.shape)}
        return {"tokens": tokens, "size": [len(tokens)], **codes, **roles}

    def _sequences(self, rows: dict[str, Any]) -> Sequences:
        tokens = rows["tokens"]
        written = tokens != FILL
        if self.padding is not None:
            written &= tokens != self.padding
        roles = rows.get("role")
        if isinstance(roles, list):
            roles = numbered_roles(roles, tokens.shape[1])
        return Sequences.of(tokens, written, roles)

    def _substituted(
        self, subject: Subject, fits: dict[Any, Any], schemes: list[str], fit: _Fit, rows: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Whether each held-out example is decided as before ``[m]``, by scheme, and for the mean activation."""
        estimates = {scheme: fits[scheme, "model"]["estimate"] for scheme in schemes}
        estimates["mean"] = fit.H[fit.train].mean(0).expand_as(fit.H)
        ends = torch.tensor(rows["size"]).cumsum(0).tolist()

        def decided(index: int, generator: torch.Generator) -> dict[str, Tensor]:
            batch, part = subject.loader[index], slice(ends[index] - rows["size"][index], ends[index])
            before = decisions(subject.forward(batch), rows["size"][index])
            found = {}
            for name, estimate in estimates.items():
                with replaced(subject.model, {self.site: _instead(estimate[part])}):
                    after = decisions(subject.forward(batch), rows["size"][index])
                found[name] = (after == before).all(1).double()
            return found

        parts = subject.map(decided, range(len(subject.loader)))
        return {name: torch.cat([part[name] for part in parts])[fit.test] for name in estimates}

    def _row(
        self, scheme: str, fits: dict[Any, Any], fit: _Fit, agreement: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Any]:
        """All that is known of a scheme."""
        own, base = fits[scheme, "model"], fits[scheme, "model"]["base"]
        low, high = controls.bootstrap(lambda rows: r2(own["error"][rows], base[rows]), len(base), generator)
        shuffled = controls.spread([r2(**_errors(fits[scheme, k])) for k in range(self.permutations)])
        same = agreement.get(scheme)
        return {
            "scheme": scheme,
            "r2": r2(own["error"], base),
            "r2_low": low,
            "r2_high": high,
            "r2_shuffled": shuffled[0],
            "r2_shuffled_std": shuffled[1],
            "r2_scrambled": r2(**_errors(fits[scheme, "scrambled"])),
            "substitution_accuracy": math.nan if same is None else float(same.mean()),
            "pairs": fit.pairs[scheme][1],
            "pairs_seen": own["seen"],
        }


class _Fit:
    """Fits one scheme to the activations, to shuffled ones or to those of the scrambled network."""

    def __init__(
        self,
        pairs: dict[str, tuple[Tensor, int]],
        H: Tensor,
        scrambled: Tensor,
        train: Tensor,
        test: Tensor,
        ridge: float,
    ) -> None:
        self.pairs, self.H, self.scrambled = pairs, H, scrambled
        self.train, self.test, self.ridge = train, test, ridge

    def __call__(self, scheme: str, kind: str | int, generator: torch.Generator) -> dict[str, Any]:
        """The held-out squared errors ``[m]`` and those of the mean; for the model the estimates ``[n, d]``, too."""
        N, H = self.pairs[scheme], self.scrambled if kind == "scrambled" else self.H
        rows, others = self.train, self.test
        if isinstance(kind, int):
            rows, others = (part[_order(len(part), generator)] for part in (rows, others))
        intercept, B = solved(N[0][self.train], N[1], H[rows], self.ridge)
        estimate = intercept + torch.cat([counts_of(part, N[1]) @ B for part in N[0].split(256)])
        base = (H[others] - H[rows].mean(0)).square().sum(1)
        if base.mean() < 1e-12 * H[others].square().sum(1).mean():  # the rounding of float32 activations
            base = torch.zeros_like(base)
        found: dict[str, Any] = {"error": (H[others] - estimate[self.test]).square().sum(1), "base": base}
        if kind == "model":
            held = N[0][self.test]
            known = torch.isin(held, N[0][self.train].unique())[held < N[1]]
            found.update(estimate=estimate, seen=float(known.double().mean()))
        return found


def solved(pairs: Tensor, P: int, H: Tensor, ridge: float, rows: int = 256) -> tuple[Tensor, Tensor]:
    """The constant ``[d]`` and the coefficients B ``[P, d]`` of ridge regression on counts of pairs.

    N'N and N'H are summed up over parts of `rows` examples; with fewer examples than pairs the equal dual form
    B = N' (N N' + ridge)^-1 H is taken, which solves a system of the size of the examples.

    Args:
        pairs: ``[n, T]``, as `Sequences.pairs` numbers them.
        P: their number.
        H: ``[n, d]``.
        ridge: added to the diagonal; the constant is not penalised.
        rows: examples per part.
    """
    n, d = H.shape
    mean_N = torch.stack([counts_of(part, P).sum(0) for part in pairs.split(rows)]).sum(0) / n
    mean_H = H.mean(0)
    if n < P:
        N = counts_of(pairs, P) - mean_N
        gram = N @ N.T + ridge * torch.eye(n, dtype=torch.float64)
        B = N.T @ torch.cholesky_solve(H - mean_H, torch.linalg.cholesky(gram))
    else:
        gram, both = ridge * torch.eye(P, dtype=torch.float64), torch.zeros(P, d, dtype=torch.float64)
        for part, h in zip(pairs.split(rows), H.split(rows), strict=True):
            N = counts_of(part, P) - mean_N
            gram += N.T @ N
            both += N.T @ (h - mean_H)
        B = torch.cholesky_solve(both, torch.linalg.cholesky(gram))
    return mean_H - mean_N @ B, B


def held_out(sequences: Sequences, fraction: float, generator: torch.Generator) -> Tensor:
    """Which examples are held out ``[n]``: all of some of the different sequences, and at least one of two."""
    _, which = sequences.fillers.where(sequences.written, -1).unique(dim=0, return_inverse=True)
    groups = int(which.max()) + 1
    chosen = _order(groups, generator)[: max(round(fraction * groups), int(groups > 1))]
    return torch.isin(which, chosen)


def r2(error: Tensor, base: Tensor) -> float:
    """1 - error / base, summed over examples; not-a-number where the base is 0."""
    whole = float(base.sum())
    return 1 - float(error.sum()) / whole if whole > 0 else math.nan


def decisions(output: Any, size: int) -> Tensor:
    """The index of the largest output at every place, ``[B, places]``; of a single output its sign.

    Args:
        output: of the model: the first floating-point tensor ``[B, ...]`` in it counts.
        size: B.

    Raises:
        ValueError: there is none.
    """
    for leaf in tree_leaves(output if isinstance(output, (tuple, list, dict, Tensor)) else vars(output)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1 and len(leaf) == size:
            largest = leaf.argmax(-1) if leaf.shape[-1] > 1 else leaf[..., 0] > 0
            return largest.reshape(size, -1)
    raise ValueError(
        f"Expected outputs [{size}, ..., classes] to see whether a reconstruction changes them, got "
        f"{type(output).__name__}: set substitute=False."
    )


def _instead(estimate: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(activation: Tensor) -> Tensor:
        if not activation.is_floating_point():
            raise ValueError(f"A reconstruction cannot take the place of {activation.dtype}: set substitute=False.")
        return estimate.to(activation).view_as(activation)

    return edit


def _order(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator, device=generator.device).cpu()


def _errors(fit: dict[str, Any]) -> dict[str, Tensor]:
    return {"error": fit["error"], "base": fit["base"]}


def _report(
    table: list[dict[str, Any]], agreement: dict[str, Tensor], same: list[tuple[str, str]], examples: float, held: float
) -> ProbeResult:
    known = [row for row in table if not math.isnan(row["r2"])]
    best = max(known, key=lambda row: row["r2"], default=None)
    scalars: dict[str, float] = {}
    if best is not None:
        scalars.update({key: best[key] for key in ("r2", "r2_low", "r2_high", "substitution_accuracy")})
    mean = float(agreement["mean"].mean()) if agreement else math.nan
    for key in ("r2", "r2_shuffled", "r2_scrambled", "substitution_accuracy"):
        scalars.update({f"{key}/{row['scheme']}": row[key] for row in table})
    scalars.update({"substitution_accuracy/mean": mean, "examples": examples, "held_out": held})
    failures = [_indistinguishable(a, b) for a, b in same]
    failures += [
        "All activations are equal, so there is nothing to explain: do not read the absence of r2 as a value of 0."
    ] if best is None else _failures(best, mean)  # fmt: skip
    return ProbeResult(controls.finite(scalars), {"schemes": table}, _figures(table, mean), failures)


def _indistinguishable(a: str, b: str) -> str:
    return (
        f"On these sequences {a} and {b} are the same scheme up to the names of the roles (are all of one length?): do "
        "not prefer one to the other, measure on sequences of several lengths."
    )


def _failures(best: dict[str, Any], mean: float) -> list[str]:
    value, name, null = best["r2"], best["scheme"], best["r2_shuffled"]
    failures = []
    if value <= max(null + 2 * best["r2_shuffled_std"], 0):
        failures.append(
            f"The best scheme, {name}, explains {value:.2f} of held-out activations, and {null:.2f} of shuffled ones: "
            "do not conclude that any of the schemes is used."
        )
    if best["r2_scrambled"] > value - 1e-9:
        failures.append(
            f"Of a network with scrambled weights {name} explains {best['r2_scrambled']:.2f}, not less than "
            f"{value:.2f}: do not conclude that the scheme was learned."
        )
    accuracy = best["substitution_accuracy"]
    if value > 0.5 and accuracy < (1 + mean) / 2:
        failures.append(
            f"{name} explains {value:.2f} of the activation, but with it in place only {accuracy:.2f} of examples are "
            f"decided as before ({mean:.2f} with the mean activation): do not conclude that the model uses this part."
        )
    return failures


def _figures(table: list[dict[str, Any]], mean: float) -> dict[str, dict[str, Any]]:
    names = [row["scheme"].replace("_", " ") for row in table]
    bars = {"held out": "r2", "shuffled activations": "r2_shuffled", "scrambled weights": "r2_scrambled"}
    # A fit far below 0 would hide the others: what explains less than the mean stands at the floor.
    series = {label: [max(row[key], -0.5) for row in table] for label, key in bars.items()}
    figures: dict[str, dict[str, Any]] = {
        "r2": {
            "kind": "bar",
            "title": "Activation explained by each role scheme",
            "xlabel": "role scheme",
            "ylabel": "held-out R2 (at least -0.5)",
            "x": names,
            "series": series,
        }
    }
    if not math.isnan(mean):
        figures["substitution"] = {
            "kind": "bar",
            "title": "Decisions kept with the reconstruction in place",
            "xlabel": "role scheme",
            "ylabel": "share of held-out examples",
            "ylim": [0, 1],
            "x": [*names, "mean activation"],
            "series": {"as before": [*(row["substitution_accuracy"] for row in table), mean]},
        }
    return figures
