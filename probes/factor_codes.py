r"""Does each unit of an activation stand for one factor, and each factor for one unit?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from algornn.probes import controls
from algornn.probes.information import Indicators, binned, indicators, information
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.samples import Field, finite_rows, gathered, labels_of, vectors_of
from algornn.probes.subject import Subject

CONDITIONS = ("", "_shuffled", "_scrambled")


class FactorCodeProbe(Probe):
    r"""DCI, mutual information gap, separated attribute predictability and modularity of d units and K factors.

    With the importance :math:`R_{ij}` of unit i for predicting factor j (a classifier of each factor, fitted on
    some of the examples), entropies to the base of the number of their terms, and I the mutual information of a unit's
    bins and a factor:

    .. math::
        D &= \sum_i \rho_i (1 - H_K(R_{i \cdot} / \sum_j R_{ij})), \quad \rho_i = \sum_j R_{ij} / \sum R \\
        C &= \sum_j \rho_j (1 - H_d(R_{\cdot j} / \sum_i R_{ij})), \quad \rho_j = \sum_i R_{ij} / \sum R \\
        MIG &= mean_j (I_{(1)j} - I_{(2)j}) / H(v_j), \quad SAP = mean_j (S_{(1)j} - S_{(2)j}) \\
        modularity &= mean_i \, 1 - \frac{\sum_j I_{ij}^2 - \max_j I_{ij}^2}{(K - 1) \max_j I_{ij}^2}

    `disentanglement` D: a unit stands for one factor; `completeness` C: a factor stands in one unit; `informativeness`:
    held-out accuracy of the classifiers. (1) and (2) are the two best units of a factor, S_ij the balanced held-out
    accuracy of thresholds on unit i alone. A unit without information has weight 0 in D and modularity 0.

    Each value has beside it that with the factors shuffled over the examples and that of the network with scrambled
    weights. `chance` is the accuracy of each factor's commonest value. Intervals are 1.96 bootstrap standard errors
    over examples, that of `informativeness` is of percentiles over those held out; D, C and SAP have none, as every
    resample would need new classifiers.

    Read with care: a rotation of the units loses D, C and MIG and no information; factors that go together cannot be
    told apart.

    Args:
        factors: at least two factors ``[B, K]`` of whole numbers, a field of the batches or a function of a batch.
        site: site of the activation; all its dimensions but the first are units.
        classifier: "boosting" (scikit-learn's gradient boosting), "forest" or "linear" (a support vector classifier
            with an L1 penalty on units of variance 1; absolute weights are the importance).
        trees: of a forest, or boosting steps.
        bins: of a unit, of equally many examples, for mutual information.
        test_fraction: share of the examples that are held out.
        max_items: at most so many examples.
        resamples: of the bootstrap.
        schedule: the arguments of `Probe`.

    Source: DCI: Eastwood and Williams (2018), ICLR; MIG: Chen et al. (2018), https://arxiv.org/abs/1802.04942; SAP:
    Kumar et al. (2018), https://arxiv.org/abs/1711.00848; modularity: Ridgeway and Mozer (2018),
    https://arxiv.org/abs/1802.05312.
    Deviation: bins hold equally many examples instead of being equally wide.
    """

    tried = ("site", "factors")

    def __init__(
        self,
        factors: Field,
        site: str,
        classifier: str = "boosting",
        trees: int = 100,
        bins: int = 20,
        test_fraction: float = 0.25,
        max_items: int = 1000,
        resamples: int = 100,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if classifier not in ("boosting", "forest", "linear"):
            raise ValueError(f"classifier must be 'boosting', 'forest' or 'linear', got {classifier!r}.")
        if bins < 2 or trees < 1 or max_items < 4:
            raise ValueError(f"Expected bins >= 2, trees >= 1, max_items >= 4, got {bins}, {trees} and {max_items}.")
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}.")
        self.factors = factors
        self.site = site
        self.classifier = classifier
        self.trees = trees
        self.bins = bins
        self.test_fraction = test_fraction
        self.max_items = max_items
        self.resamples = resamples

    def measure(self, subject: Subject) -> ProbeResult:
        """Gather activations and factors; each classifier is one job, shared out over the processes."""
        twin = controls.scrambled(subject.model, subject.generator)

        def read(batch: Any) -> dict[str, Any]:
            factors = labels_of(batch, self.factors, "factors")
            if factors.shape[1] < 2:
                raise ValueError("Units are compared over factors: factors must have at least two, [B, K].")
            codes = {"code": vectors_of(subject, self.site, batch), "twin": vectors_of(subject, self.site, batch, twin)}
            return {"factors": factors, **codes}

        rows = gathered(subject, read)
        kept = finite_rows(torch.cat([rows["code"], rows["twin"]], 1))
        order = torch.randperm(len(kept), generator=subject.generator, device=subject.device).cpu()
        kept = kept[order[: self.max_items]]
        factors, held = rows["factors"][kept], max(round(self.test_fraction * len(kept)), 1)
        if len(kept) - held < 2:
            return controls.nothing(len(kept), len(rows["code"]))
        moved = factors[torch.randperm(len(kept), generator=subject.generator, device=subject.device).cpu()]
        cases = {"": (rows["code"][kept], factors), "_shuffled": (rows["code"][kept], moved)}
        cases["_scrambled"] = (rows["twin"][kept], factors)
        jobs = [(name, j) for name in CONDITIONS for j in range(factors.shape[1])]

        def predicted(job: tuple[str, int], generator: torch.Generator) -> dict[str, Tensor]:
            code, labels = cases[job[0]]
            seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
            return self._predicted(code, labels[:, job[1]], held, seed)

        parts = dict(zip(jobs, subject.map(predicted, jobs), strict=True))
        values = {name: self._values(name, cases[name], parts) for name in CONDITIONS}
        return self._report(values, cases[""], parts, held, subject.generator)

    def _predicted(self, code: Tensor, labels: Tensor, held: int, seed: int) -> dict[str, Tensor]:
        """Importance of each unit ``[d]``, correctness of the held-out examples ``[held]``, scores of units ``[d]``."""
        X, x = code[held:].numpy(), code[:held].numpy()
        Y, y = labels[held:].numpy(), labels[:held].numpy()
        if len(set(Y.tolist())) < 2:
            importance, guess = torch.zeros(code.shape[1], dtype=torch.float64), Y[:1].repeat(held)
        else:
            model = classifier_of(self.classifier, self.trees, seed).fit(X, Y)
            importance, guess = importance_of(model), model.predict(x)
        scores = torch.tensor([threshold_score(X[:, [i]], Y, x[:, [i]], y) for i in range(code.shape[1])])
        return {"importance": importance, "right": torch.from_numpy(guess == y).double(), "scores": scores.double()}

    def _values(self, name: str, case: tuple[Tensor, Tensor], parts: dict[Any, dict[str, Tensor]]) -> dict[str, Any]:
        code, factors = case
        K = factors.shape[1]
        R = torch.stack([parts[name, j]["importance"] for j in range(K)], 1)
        S = torch.stack([parts[name, j]["scores"] for j in range(K)], 1)
        units = indicators(binned(code, self.bins))
        return {
            "disentanglement": disentanglement(R),
            "completeness": completeness(R),
            "informativeness": float(torch.stack([parts[name, j]["right"] for j in range(K)]).mean()),
            "mig": mutual_information_gap(units, indicators(factors)),
            "sap": two_best(S),
            "modularity": modularity(information(units, indicators(factors))[0]),
        }

    def _report(
        self,
        values: dict[str, dict[str, Any]],
        case: tuple[Tensor, Tensor],
        parts: dict[Any, dict[str, Tensor]],
        held: int,
        generator: torch.Generator,
    ) -> ProbeResult:
        code, factors = case
        n, K = factors.shape
        units, causes = indicators(binned(code, self.bins)), indicators(factors)
        right = torch.stack([parts["", j]["right"] for j in range(K)]).mean(0)
        drawn = torch.randint(n, (self.resamples, n), generator=generator, device=generator.device).cpu()
        resampled = [(units.take(rows), causes.take(rows)) for rows in drawn]
        intervals = {
            "informativeness": controls.mean_interval(right, generator),
            "mig": controls.around(values[""]["mig"], [mutual_information_gap(u, c) for u, c in resampled], 0, 1),
            "modularity": controls.around(
                values[""]["modularity"], [modularity(information(u, c)[0]) for u, c in resampled], 0, 1
            ),
        }
        scalars: dict[str, float] = {}
        for key, value in values[""].items():
            scalars.update(controls.with_interval(key, value, intervals.get(key, (math.nan, math.nan))))
        for suffix in CONDITIONS[1:]:
            scalars.update({f"{key}{suffix}": value for key, value in values[suffix].items()})
        scalars["chance"] = _chance(factors, held)
        scalars.update({f"informativeness/{j}": float(parts["", j]["right"].mean()) for j in range(K)})
        scalars["examples"] = float(n)
        R = torch.stack([parts["", j]["importance"] for j in range(K)])
        shared = information(units, causes)[0].T
        tables = {"importance": R.tolist(), "information": shared.tolist()}
        return ProbeResult(controls.finite(scalars), tables, _figures(values, R), _failures(scalars))


def disentanglement(R: Tensor) -> float:
    """D of the importances ``[d, K]``; not-a-number where there are none, or for one factor."""
    if R.shape[1] < 2 or not R.sum() > 0:
        return math.nan
    whole = R.sum(1, keepdim=True)
    share = R / whole.where(whole > 0, 1)
    return float((whole[:, 0] / R.sum() * (1 - torch.special.entr(share).sum(1) / math.log(R.shape[1]))).sum())


def completeness(R: Tensor) -> float:
    """C of the importances ``[d, K]``; not-a-number where there are none, or for one unit."""
    return disentanglement(R.T)


def modularity(shared: Tensor) -> float:
    """Mean over units of Ridgeway and Mozer's modularity, of the mutual information ``[d, K]``; 0 for a dead unit."""
    squared = shared.square()
    most = squared.amax(1)
    rest = (squared.sum(1) - most) / (most.where(most > 0, 1) * (shared.shape[1] - 1))
    return float(torch.where(most > 0, 1 - rest, 0).mean())


def mutual_information_gap(units: Indicators, factors: Indicators) -> float:
    """MIG; factors that never vary are left out, a second unit that is not there has information 0."""
    shared, _, H = information(units, factors)
    first, second = _two_largest(shared)
    varies = H > 1e-12
    gaps = (first - second).where(first - second > 1e-12, 0)
    return float((gaps[varies] / H[varies]).mean())


def two_best(S: Tensor) -> float:
    """Mean over factors of how much better the best unit's score is than the second's, scores ``[d, K]``."""
    first, second = _two_largest(S)
    return float((first - second).mean())


def classifier_of(kind: str, trees: int, seed: int) -> Any:
    """scikit-learn's classifier, of the name that `FactorCodeProbe` has for it."""
    if kind == "linear":
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        return make_pipeline(StandardScaler(), LinearSVC(penalty="l1", dual=False, random_state=seed))
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    kinds = {"boosting": GradientBoostingClassifier, "forest": RandomForestClassifier}
    return kinds[kind](n_estimators=trees, random_state=seed)


def importance_of(model: Any) -> Tensor:
    """The importance of each unit ``[d]``: that of the trees, or the absolute weights summed over the classes."""
    if hasattr(model, "feature_importances_"):
        return torch.from_numpy(model.feature_importances_).double()
    return torch.from_numpy(model[-1].coef_).double().abs().sum(0)


def threshold_score(X: Any, Y: Any, x: Any, y: Any) -> float:
    """Balanced accuracy on (x, y) of as many thresholds as classes need, fitted to (X, Y); X and x are one column."""
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    classes = len(set(Y.tolist()))
    if classes < 2:
        return 0.0
    tree = DecisionTreeClassifier(max_leaf_nodes=classes, class_weight="balanced", random_state=0).fit(X, Y)
    seen = sorted(set(y.tolist()))
    return float(recall_score(y, tree.predict(x), labels=seen, average="macro", zero_division=0))


def _two_largest(table: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and second largest of each column."""
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])]) if len(table) == 1 else table
    first, second = padded.topk(2, 0).values
    return first, second


def _chance(factors: Tensor, held: int) -> float:
    """Held-out accuracy of each factor's commonest value."""
    commonest = factors[held:].mode(0).values
    return float((factors[:held] == commonest).double().mean())


def _failures(scalars: dict[str, float]) -> list[str]:
    found, null, _ = (scalars[f"informativeness{suffix}"] for suffix in CONDITIONS)
    failures = []
    if scalars["informativeness_low"] <= max(null, scalars["chance"]):
        failures.append(
            f"The units tell factors with an accuracy of {found:.2f}, shuffled factors with {null:.2f}, and the "
            f"commonest value is right in {scalars['chance']:.2f}: disentanglement and completeness then describe "
            "noise, do not read them."
        )
    for key in ("disentanglement", "completeness", "mig", "sap", "modularity"):
        value, shuffled, other = (scalars[key + suffix] for suffix in CONDITIONS)
        name = key if len(key) > 3 else key.upper()
        if value <= shuffled:
            failures.append(
                f"A {name} of {value:.2f} is no more than that of shuffled factors ({shuffled:.2f}): do not "
                "conclude from it that units and factors go together one by one."
            )
        elif other > value - 1e-9:
            failures.append(
                f"A network with scrambled weights has a {name} of {other:.2f}, not below {value:.2f}: do not conclude "
                "that it was learned."
            )
    return failures


def _figures(values: dict[str, dict[str, Any]], R: Tensor) -> dict[str, dict[str, Any]]:
    labels = dict(zip(CONDITIONS, ("model", "shuffled factors", "scrambled weights"), strict=True))
    measures = list(values[""])
    figures: dict[str, dict[str, Any]] = {
        "measures": {
            "kind": "bar",
            "title": "Units and factors",
            "xlabel": "measure",
            "ylabel": "0 to 1",
            "x": [name if len(name) > 3 else name.upper() for name in measures],
            "series": {label: [values[suffix][name] for name in measures] for suffix, label in labels.items()},
        }
    }
    most = R.sum(0).argsort(descending=True, stable=True)[:24].sort().values
    figures["importance"] = {
        "kind": "heatmap",
        "title": "Importance of units for factors" + (" (the 24 largest)" if R.shape[1] > 24 else ""),
        "xlabel": "unit",
        "ylabel": "factor",
        "x": most.tolist(),
        "y": list(range(len(R))),
        "values": R[:, most].tolist(),
    }
    return figures
