r"""Do a network's weights fall into clusters of neurons?

Neurons are nodes, and a weight between two of them is an edge of size :math:`A_{ij} = |w_{ij}|`. A partition of the
nodes into k clusters, found by spectral clustering, has the normalized cut and the modularity

.. math::
    ncut = \sum_c \frac{cut(c)}{vol(c)}, \quad Q = \sum_c \frac{vol(c) - cut(c)}{2 m} - \Big(\frac{vol(c)}{2 m}\Big)^2

where cut(c) sums the edges that leave c, vol(c) the degrees in c, and 2m all degrees. The cut lies in [0, k]: 0 for k
networks side by side, about k - 1 where there is no structure. It means something beside that of the same network with
the entries of each layer shuffled: :math:`z = (ncut - mean) / std` over shuffles, below 0 where it is more clusterable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from algornn.probes.controls import finite
from algornn.probes.layer_graph import Layer, adjacency, graph_layers, rescaled, shuffled
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

_DENSE = 1500  # nodes up to which the whole spectrum is computed at once: exact where eigenvalues coincide
_SURE = 0.05  # chance of a shuffled network's doing as well, above which the network is called no more clusterable


class ClusterabilityProbe(Probe):
    """The n-cut and the modularity of the graph of weights, beside those of shuffled networks.

    Needs no activations; one batch is run to see which layer follows which. `layer_graph` says how convolutions (one
    node per channel) and recurrent layers (one node per hidden unit) become edges. Attention has no such graph:
    its layers are left out, unless one path of layers runs through them; the table "layers" says what was taken, and
    `coverage` which share of the weights.

    Read with care: clusters of weights need not be modules in function (`WeightMaskProbe`). Shuffling a sparse layer
    spreads its zeros evenly, which alone can raise or lower the cut: compare `z` with `z_non_zero`, for which the zeros
    stay in their places. A neuron's scale is arbitrary with ReLU; `rescale` takes it out.

    Args:
        layers: names of parameters ``[out, in, ...]``, each with the neurons that the one before leads to as its
            inputs; None: the longest path of linear, convolutional and recurrent layers.
        clusters: k.
        shuffles: shuffled networks, for each of the two kinds of shuffles.
        rescale: divide each hidden neuron's incoming weights by their mean and multiply its outgoing ones.
        restarts: of k-means.
        schedule: the arguments of `Probe`.

    Source: Filan, Casper, Hod, Wild, Critch and Russell (2021), https://arxiv.org/abs/2103.03386, sections 2 and 3;
    Shi and Malik (2000), IEEE PAMI 22; modularity: Newman (2006), PNAS 103.
    Deviations: the kernels of a convolution are shuffled whole, so that the sizes of the edges stay the same.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        clusters: int = 12,
        shuffles: int = 50,
        rescale: bool = False,
        restarts: int = 25,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        if clusters < 2:
            raise ValueError(f"clusters must be 2 or more, got {clusters}.")
        for name, value in {"shuffles": shuffles, "restarts": restarts}.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}.")
        if isinstance(layers, str):
            raise TypeError(f"layers is a list of parameters, got the text {layers!r}: write [{layers!r}].")
        if layers is not None and not layers:
            raise ValueError("layers is empty: name the parameters in their order, or leave it out.")
        self.layers = layers
        self.clusters = clusters
        self.shuffles = shuffles
        self.rescale = rescale
        self.restarts = restarts

    def measure(self, subject: Subject) -> ProbeResult:
        """Cluster the network and its shuffles, shared out over the processes."""
        layers, left_out = graph_layers(subject, self.layers)
        layers = rescaled(layers) if self.rescale else layers
        kinds = ["all", "non_zero"] if any(int((x == 0).sum()) for layer in layers for x in layer.shuffleable()) else [
            "all"
        ]  # fmt: skip
        jobs = ["network", *(kind for kind in kinds for _ in range(self.shuffles))]

        def one(kind: str, generator: torch.Generator) -> dict[str, Any]:
            drawn = layers if kind == "network" else shuffled(layers, generator, kind == "non_zero")
            return self._clustered(drawn, generator, kind == "network")

        found = subject.map(one, jobs)
        by_kind = {kind: [row for row, job in zip(found, jobs, strict=True) if job == kind] for kind in kinds}
        return _report(found[0], by_kind, layers, left_out, self.clusters)

    def _clustered(self, layers: list[Layer], generator: torch.Generator, with_labels: bool) -> dict[str, Any]:
        """Cut and modularity of one network, and on demand each node's cluster (-1: it has no edge)."""
        import numpy as np

        A = adjacency(layers)
        alive = np.flatnonzero(A.sum(1) > 0)
        row: dict[str, Any] = {"isolated": A.shape[0] - len(alive), "ncut": math.nan, "modularity": math.nan}
        labels = np.full(A.shape[0], -1)
        if len(alive) > self.clusters and np.isfinite(A.data).all():
            A = A[alive][:, alive]
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            labels[alive] = spectral_labels(A, self.clusters, seed, self.restarts)
            row["ncut"], row["modularity"] = cut_and_modularity(A, labels[alive])
        return row | {"labels": labels.tolist()} if with_labels else row


def cut_and_modularity(A: csr_array, labels: np.ndarray) -> tuple[float, float]:
    """The normalized cut and Newman's modularity of a partition.

    Args:
        A: symmetric edges ``[N, N]``, none of them negative.
        labels: the cluster of each node, ``[N]``. A cluster without an edge is left out.
    """
    import numpy as np

    degree = np.asarray(A.sum(1)).ravel()
    ncut = Q = 0.0
    for cluster in np.unique(labels):
        member = labels == cluster
        volume, within = degree[member].sum(), A[member][:, member].sum()
        if volume > 0:
            ncut += (volume - within) / volume
            Q += within / degree.sum() - (volume / degree.sum()) ** 2
    return float(ncut), float(Q)


def spectral_labels(A: csr_array, k: int, seed: int, restarts: int = 25) -> np.ndarray:
    """Clusters of a graph without isolated nodes: k-means of the k leading eigenvectors of D^-1 A.

    Args:
        A: symmetric edges ``[N, N]``, N above k.
        k: number of clusters.
        seed: of k-means and of the eigensolver's first vector.
        restarts: of k-means; the best is taken.
    """
    import numpy as np
    from scipy.linalg import eigh
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import eigsh
    from sklearn.cluster import KMeans

    scale = 1 / np.sqrt(np.asarray(A.sum(1)).ravel())
    S = diags_array(scale) @ A @ diags_array(scale)
    N = S.shape[0]
    if N <= _DENSE:
        _, vectors = eigh(S.toarray(), subset_by_index=[N - k, N - 1])
    else:
        _, vectors = eigsh(S, k, which="LA", v0=np.random.default_rng(seed).random(N))
    means = KMeans(k, n_init=restarts, random_state=seed)
    return means.fit_predict(scale[:, None] * vectors)


def _report(
    network: dict[str, Any],
    by_kind: dict[str, list[dict[str, Any]]],
    layers: list[Layer],
    left_out: dict[str, int],
    k: int,
) -> ProbeResult:
    """Compare the network with its shuffles; without zeros both kinds of shuffles are the same."""
    rows = by_kind if "non_zero" in by_kind else {**by_kind, "non_zero": by_kind["all"]}
    scalars: dict[str, float] = {"ncut": network["ncut"], "modularity": network["modularity"]}
    for kind, suffix in {"all": "", "non_zero": "_non_zero"}.items():
        for key, z in {"ncut": "z", "modularity": "modularity_z"}.items():
            values = torch.tensor([row[key] for row in rows[kind]], dtype=torch.float64)
            scalars |= _against(network[key], values, key, z, suffix)
    taken = sum(layer.weights for layer in layers)
    scalars["coverage"] = taken / (taken + sum(left_out.values()))
    scalars |= {"nodes": len(network["labels"]), "isolated": network["isolated"], "clusters": k}
    tables: dict[str, Any] = {
        "layers": {layer.name: layer.weights for layer in layers},
        "left_out": left_out,
        "ncut_shuffled": {kind: [row["ncut"] for row in found] for kind, found in by_kind.items()},
        "neurons": _shares(network["labels"], layers, k),
    }
    return ProbeResult(finite(scalars), tables, _figures(scalars, tables, k), _failures(scalars, len(by_kind["all"])))


def _against(value: float, shuffles: Tensor, key: str, z: str, suffix: str) -> dict[str, float]:
    """z, the mean and the middle 95 % of the shuffles, and for the cut the chance of one as small."""
    shuffles = shuffles[shuffles.isfinite()]
    if not len(shuffles) or math.isnan(value):
        return {}
    std = float(shuffles.std(correction=0))
    low, high = shuffles.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    scalars = {
        f"{z}{suffix}": (value - float(shuffles.mean())) / std if std > 1e-9 else math.nan,
        f"{key}_shuffled{suffix}": float(shuffles.mean()),
        f"{key}_shuffled{suffix}_low": low,
        f"{key}_shuffled{suffix}_high": high,
    }
    if key == "ncut":
        scalars[f"p{suffix}"] = (1 + int((shuffles <= value + 1e-9).sum())) / (1 + len(shuffles))
    return scalars


def _shares(labels: list[int], layers: list[Layer], k: int) -> dict[str, list[float]]:
    """For each set of neurons, the share that lies in each cluster; clusters in the order of their mean depth."""
    sets = ["input", *(layer.name for layer in layers)]
    parts = torch.tensor(labels).split([layers[0].inputs, *(layer.outputs for layer in layers)])
    counts = torch.stack([torch.bincount(part[part >= 0], minlength=k) for part in parts]).double()
    depth = (counts * torch.arange(len(parts))[:, None]).sum(0) / counts.sum(0).clamp(min=1)
    shares = counts[:, depth.argsort(stable=True)] / torch.tensor([[len(part)] for part in parts])
    return dict(zip(sets, shares.tolist(), strict=True))


def _failures(scalars: dict[str, float], shuffles: int) -> list[str]:
    failures = []
    sure = max(_SURE, 1 / (1 + shuffles)) + 1e-9  # with few shuffles, the least p that there can be
    alike, alike_non_zero = (scalars.get(key, 0) > sure for key in ("p", "p_non_zero"))
    if math.isnan(scalars["ncut"]):
        failures.append(
            f"There is no n-cut: fewer than {scalars['clusters'] + 1:.0f} neurons have an edge, or a weight is not "
            "finite; conclude nothing."
        )
    elif alike and alike_non_zero:
        failures.append(
            f"Shuffled networks have as small an n-cut (p = {scalars['p']:.2g}): do not conclude that the weights form "
            "clusters."
        )
    elif alike != alike_non_zero:
        failures.append(
            "Shuffles of all entries and of those that are not zero disagree: what is found depends on where the zeros "
            "lie; do not conclude from one of them."
        )
    if scalars["coverage"] < 0.5:
        failures.append(
            f"The graph holds {scalars['coverage']:.0%} of the weights of the layers: do not take its clusters for "
            "those of the network; name the path with layers=[...]."
        )
    return failures


def _figures(scalars: dict[str, float], tables: dict[str, Any], k: int) -> dict[str, dict[str, Any]]:
    names = {"ncut": "network", "ncut_shuffled": "all entries shuffled", "ncut_shuffled_non_zero": "non-zero shuffled"}
    shown = {name: scalars[key] for key, name in names.items() if not math.isnan(scalars.get(key, math.nan))}
    ends = [[scalars.get(f"{key}_{end}") for key, name in names.items() if name in shown] for end in ("low", "high")]
    return {
        "ncut": {
            "kind": "bar",
            "title": f"Normalized cut into {k} clusters (no structure: about {k - 1})",
            "xlabel": "",
            "ylabel": "n-cut",
            "x": list(shown),
            "series": {"n-cut": list(shown.values())},
            "intervals": {"n-cut": ends},
        },
        "neurons": {
            "kind": "heatmap",
            "title": "Where the clusters lie",
            "xlabel": "cluster",
            "ylabel": "neurons",
            "x": list(range(1, k + 1)),
            "y": list(tables["neurons"]),
            "values": list(tables["neurons"].values()),
        },
    }
