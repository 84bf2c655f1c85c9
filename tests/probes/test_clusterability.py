"""ClusterabilityProbe against graphs whose cuts are known, and the graphs of networks."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from tiny_learner import Learner, loader
from torch import nn

from algornn.probes import ClusterabilityProbe
from algornn.probes.clusterability import cut_and_modularity, spectral_labels
from algornn.probes.layer_graph import Layer, adjacency, graph_layers, layer_of, rescaled, shuffled
from algornn.probes.subject import Subject


def blocks(k, size, epsilon):
    """All nodes joined with 1 within k equal blocks and epsilon between them."""
    inside = np.kron(np.eye(k), np.ones((size, size)))
    return csr_array(inside + epsilon * (1 - inside)), np.repeat(np.arange(k), size)


@pytest.mark.parametrize(
    ("k", "epsilon", "expected"),
    [(4, 0.0, 0.0), (4, 1.0, 3.0), (4, 0.1, 12 * 0.1 / 1.3), (4, 0.5, 2.4), (7, 0.2, 42 * 0.2 / 2.2)],
)
def test_cut_of_equal_blocks(k, epsilon, expected):
    A, labels = blocks(k, 5, epsilon)
    ncut, Q = cut_and_modularity(A, labels)
    assert ncut == pytest.approx(expected, abs=1e-12)
    assert pytest.approx(1 - ncut / k - 1 / k, abs=1e-12) == Q  # equal volumes
    if epsilon < 1:
        found = spectral_labels(A, k, seed=0)
        assert cut_and_modularity(A, found) == pytest.approx((expected, Q), abs=1e-9)
    assert round(12 * 0.1 / 1.3, 3) == 0.923


def test_cut_of_unequal_parts_by_hand():
    # a - b (1), b - c (2), c - d (3): {a, b} has volume 1 + 3 and cut 2; {c, d} 5 + 3 and 2.
    A = np.zeros((4, 4))
    for i, w in enumerate((1, 2, 3)):
        A[i, i + 1] = A[i + 1, i] = w
    ncut, Q = cut_and_modularity(csr_array(A), np.array([0, 0, 1, 1]))
    assert ncut == pytest.approx(2 / 4 + 2 / 8)
    assert pytest.approx(2 / 12 - (4 / 12) ** 2 + 6 / 12 - (8 / 12) ** 2) == Q


def test_a_large_graph_is_cut_by_the_iterative_solver():
    rng = np.random.default_rng(0)
    k, size = 3, 700  # above the size up to which the whole spectrum is computed
    rows = rng.integers(0, k * size, 60_000)
    columns = (rows // size) * size + rng.integers(0, size, 60_000)
    W = csr_array((np.ones(60_000), (rows, columns)), (k * size, k * size))
    A = csr_array(W + W.T)
    assert cut_and_modularity(A, spectral_labels(A, k, seed=0))[0] == pytest.approx(0, abs=1e-9)


def mlp(k=4, size=3, epsilon=0.0, depth=3, relu=False):
    """k networks side by side, with weights epsilon between them."""
    W = torch.block_diag(*[torch.ones(size, size)] * k)
    W = W + epsilon * (1 - W)
    layers = [nn.Linear(k * size, k * size) for _ in range(depth)]
    for layer in layers:
        layer.weight.data = W.clone()
    return nn.Sequential(*[part for layer in layers for part in ([layer, nn.ReLU(inplace=True)] if relu else [layer])])


def data(width=12, n=8):
    return [(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), torch.zeros(n).long())]


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, 0.0), (0.1, 0.923), (0.5, 2.4)])
def test_networks_side_by_side_are_found(epsilon, expected):
    result = ClusterabilityProbe(clusters=4, shuffles=10).run(mlp(epsilon=epsilon, relu=True), data())
    scalars = result.scalars
    assert scalars["ncut"] == pytest.approx(expected, abs=5e-4)
    assert list(result.tables["layers"]) == ["0.weight", "2.weight", "4.weight"]
    assert (scalars["nodes"], scalars["coverage"]) == (48, 1)
    if epsilon:
        assert scalars["z"] < -3
        assert scalars["p"] == 1 / 11
        assert result.failures == []
    else:  # a shuffle of the ones among themselves is the network itself
        assert scalars["p_non_zero"] == 1
        assert scalars["ncut_shuffled_non_zero"] == pytest.approx(0, abs=1e-9)
        assert any("Shuffles of all entries and of those that are not zero disagree" in f for f in result.failures)
    if epsilon < 0.5:  # each cluster has a block of each layer; beyond, cuts between depths are as small
        shares = torch.tensor(list(result.tables["neurons"].values()))
        assert torch.allclose(shares, torch.full((4, 4), 0.25), atol=1e-6)


def test_a_network_without_structure_has_a_cut_of_k_less_one_and_says_so():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 60))
    result = ClusterabilityProbe(clusters=4, shuffles=20, restarts=10).run(model, data(60))
    assert 2.3 < result.scalars["ncut"] < 3
    assert abs(result.scalars["z"]) < 3
    assert "do not conclude that the weights form clusters" in result.failures[0]
    low, high = (result.scalars[f"ncut_shuffled_{end}"] for end in ("low", "high"))
    assert low < result.scalars["ncut_shuffled"] < high


def test_neurons_without_an_edge_are_dropped_and_nothing_raises():
    model = mlp(k=4, size=3)
    with torch.no_grad():
        for layer in model:
            layer.weight[:, 0] = layer.weight[0] = 0
    found = ClusterabilityProbe(clusters=4, shuffles=3).run(model, data()).scalars
    assert (found["isolated"], found["ncut"]) == (4, pytest.approx(0, abs=1e-9))
    model[0].weight.data.fill_(math.nan)
    result = ClusterabilityProbe(clusters=4, shuffles=3).run(model, data())
    assert "ncut" not in result.scalars
    assert "There is no n-cut" in result.failures[0]
    assert "There is no n-cut" in ClusterabilityProbe(clusters=60, shuffles=2).run(mlp(), data()).failures[0]


# --- graphs ------------------------------------------------------------------------------------------------------


def subject_of(model, batch):
    return Subject(
        model.eval(), [batch], lambda call, b: call(b).sum(), torch.device("cpu"), torch.Generator().manual_seed(0)
    )


class Mixed(nn.Module):
    """Convolutions, a recurrent layer called cell by cell, a branch and a residual connection."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.flat = nn.Linear(4 * 4, 6)
        self.residual = nn.Linear(6, 6)
        self.cell = nn.GRUCell(6, 5)
        self.side = nn.Linear(2, 5)
        self.lstm = nn.LSTM(5, 3, num_layers=2, bidirectional=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = self.flat(self.conv(x).flatten(1)).relu_()
        h = h + self.residual(h)
        state = None
        for _ in range(3):
            state = self.cell(h, state)
        side = self.side(x.mean((2, 3)))
        return self.head(self.lstm((state + side)[None])[0])


def test_the_longest_path_is_found_by_what_depends_on_what():
    torch.manual_seed(0)
    layers, left_out = graph_layers(subject_of(Mixed(), torch.randn(3, 2, 4, 4)), None)
    names = ["conv.weight", "flat.weight", "residual.weight", "cell.weight_ih"]
    names += ["lstm.weight_ih_l0", "lstm.weight_ih_l1", "head.weight"]
    assert [layer.name for layer in layers] == names
    assert left_out == {"side.weight": 10}
    again, _ = graph_layers(subject_of(Mixed(), None), names)  # given names need no forward
    assert [layer.edges.shape for layer in again] == [layer.edges.shape for layer in layers]


def test_layers_in_parallel_are_not_taken_for_consecutive_ones():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            return self.o((self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ self.v(x))

    layers, left_out = graph_layers(subject_of(Attention(), torch.randn(2, 3, 6)), None)
    assert len(layers) == 2
    assert layers[1].name == "o.weight"
    assert len(left_out) == 2


def test_edges_of_convolutions_and_recurrent_layers():
    torch.manual_seed(0)
    model = Mixed()
    conv = layer_of(model, "conv.weight")
    w = model.conv.weight.detach().abs().double().sum((2, 3))[:, 0]
    assert torch.allclose(conv.edges, torch.stack([w * torch.tensor([1, 1, 0, 0]), w * torch.tensor([0, 0, 1, 1])], 1))
    flat = layer_of(model, "flat.weight").after(conv)
    assert torch.allclose(flat.edges[:, 1], model.flat.weight.detach().abs().double()[:, 4:8].sum(1))
    cell = layer_of(model, "cell.weight_ih")
    assert torch.allclose(cell.edges, model.cell.weight_ih.detach().abs().double().view(3, 5, 6).sum(0))
    among = model.cell.weight_hh.detach().abs().double().view(3, 5, 5).sum(0)
    assert torch.allclose(cell.recurrent, among - torch.diag(among.diag()))
    both = layer_of(model, "lstm.weight_ih_l1")
    assert (both.outputs, both.inputs, both.weights) == (6, 6, 2 * (12 * 6 + 12 * 3))
    assert both.recurrent[:3, 3:].abs().sum() == 0
    assert both.recurrent[3:, :3].abs().sum() == 0
    A = adjacency([flat, cell]).toarray()
    assert A.shape == (4 + 6 + 5, 4 + 6 + 5)
    assert np.array_equal(A, A.T)
    assert np.allclose(A[4:10, :4], flat.edges)
    assert np.allclose(A[10:, 4:10], cell.edges)
    assert np.allclose(A[10:, 10:], cell.recurrent + cell.recurrent.T)
    assert A[:4, 10:].sum() == 0
    embedding = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    assert layer_of(embedding, "0.weight").edges.shape == (4, 9)


def test_shuffles_permute_within_blocks():
    generator = torch.Generator().manual_seed(0)
    edges = torch.rand(5, 4, generator=generator) * (torch.rand(5, 4, generator=generator) < 0.5)
    recurrent = torch.rand(5, 5, generator=generator).fill_diagonal_(0)
    layer = Layer("a", edges, recurrent)
    for non_zero in (False, True):
        (drawn,) = shuffled([layer], generator, non_zero)
        assert torch.equal(drawn.edges.flatten().sort().values, edges.flatten().sort().values)
        assert not torch.equal(drawn.edges, edges)
        assert torch.equal(drawn.edges == 0, edges == 0) == non_zero
        assert drawn.recurrent.diagonal().abs().sum() == 0
        assert torch.equal(drawn.recurrent.flatten().sort().values, recurrent.flatten().sort().values)


def test_rescaling_takes_out_the_scale_of_hidden_neurons():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(5, 4, generator=generator), torch.rand(3, 5, generator=generator)
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.5])
    plain = rescaled([Layer("a", first), Layer("b", second)])
    scaled = rescaled([Layer("a", first * scale[:, None]), Layer("b", second / scale)])
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(a.edges, b.edges)
    assert torch.allclose(plain[0].edges.mean(1), torch.ones(5))
    assert torch.allclose(plain[1].edges, second * first.mean(1))
    model = mlp(epsilon=0.1)
    before = ClusterabilityProbe(clusters=4, shuffles=2, rescale=True).run(model, data()).scalars["ncut"]
    with torch.no_grad():
        model[0].weight[::2] *= 50
        model[1].weight[:, ::2] /= 50
    assert ClusterabilityProbe(clusters=4, shuffles=2, rescale=True).run(model, data()).scalars["ncut"] == (
        pytest.approx(before)
    )
    assert ClusterabilityProbe(clusters=4, shuffles=2).run(model, data()).scalars["ncut"] != pytest.approx(before)


def test_what_lies_beside_the_path_is_told():
    result = ClusterabilityProbe(clusters=2, shuffles=2).run(Learner(), loader(31))
    assert list(result.tables["layers"]) == ["head.weight"]
    assert set(result.tables["left_out"]) == {"memory.key.weight", "memory.value.weight"}
    assert result.scalars["coverage"] == 105 / 177
    result = ClusterabilityProbe(["memory.key.weight"], clusters=2, shuffles=2).run(Learner(), loader(31))
    assert result.scalars["coverage"] == 1

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.a(x) + self.b(x) + self.c(x)

    found = ClusterabilityProbe(clusters=2, shuffles=2).run(Wide(), data(3)).failures
    assert any("The graph holds 33% of the weights" in failure for failure in found)


def test_mistakes_are_named():
    model = nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 3), nn.Embedding(2, 2))
    for wrong, message in (
        ({"clusters": 1}, "clusters must be 2 or more"),
        ({"shuffles": 0}, "shuffles must be positive"),
        ({"restarts": 0}, "restarts must be positive"),
        ({"layers": []}, "layers is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterabilityProbe(**wrong)
    for names, message in (
        (["0.wight"], "'0.wight' is no matrix of weights of the model; close names: 0.weight"),
        (["0.bias"], "'0.bias' is no matrix"),
        (["1.weight_hh_l0"], "name a recurrent layer by its weight_ih"),
        (["0.weight", "0.weight"], "'0.weight' has 4 inputs, but '0.weight' before it has 3 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterabilityProbe(names).run(model, data(4))
    with pytest.raises(ValueError, match="whose graph is not defined"):
        layer_of(nn.LSTM(3, 4, proj_size=2), "weight_ih_l0")
    with pytest.raises(ValueError, match="needs the symmetry of ReLU"):
        rescaled([layer_of(model, "1.weight_ih_l0")])
    with pytest.raises(ValueError, match="calls no linear, convolutional or recurrent layer"):
        ClusterabilityProbe().run(nn.Sequential(nn.LayerNorm(4)), data(4))
