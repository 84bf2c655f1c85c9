"""RepresentationSimilarityProbe on models whose similarities are known."""

import copy
import math

import pytest
import torch
from tiny_learner import Batch, Learner, loader
from torch import nn

from algornn.probes import RepresentationSimilarityProbe
from algornn.probes.controls import jackknife, jackknife_interval
from algornn.probes.hsic import cka
from algornn.probes.similarity import compare, dissimilarities, ranks, rsa


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def white(n, p):
    """Rows whose covariance is exactly the identity, so that similarities are close to those of the population."""
    x = normal(n, p)
    return torch.linalg.qr(x - x.mean(0))[0] * math.sqrt(n)


def linear(weight):
    layer = nn.Linear(*weight.T.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


class Views(nn.Module):
    """Linear views of four inputs: themselves, rotated, the first two and two others, all but the first two."""

    def __init__(self):
        super().__init__()
        self.same = linear(torch.eye(4))
        self.rotated = linear(3 * torch.linalg.qr(normal(4, 4, seed=5))[0])
        self.front = nn.Linear(4, 2, bias=False)
        self.rest = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.front.weight.copy_(torch.eye(4)[:2])
            self.rest.weight.copy_(torch.eye(4)[2:])

    def forward(self, x):
        return torch.cat([self.same(x), self.rotated(x), self.front(x), self.rest(x)], 1)


def compared(x, sites, size=64, model=None, **settings):
    settings = {"loss": lambda call, batch: call(batch).sum(), "max_batches": None, "distance": "euclidean", **settings}
    return RepresentationSimilarityProbe(sites, **settings).run(model or Views(), x.split(size))


@pytest.mark.parametrize("minibatch", [False, True])
def test_known_similarities(minibatch):
    result = compared(white(200, 4), ["same", "rotated", "front", "rest"], 50, minibatch=minibatch)
    scalars = result.scalars
    assert scalars["cka/same vs rotated"] == pytest.approx(1, abs=1e-6)
    assert scalars["rsa/same vs rotated"] == pytest.approx(1, abs=1e-6)
    assert scalars["cka/same vs front"] == pytest.approx(1 / math.sqrt(2), abs=0.02 + 0.05 * minibatch)  # k / sqrt(p q)
    assert scalars["cka/front vs rest"] == pytest.approx(0, abs=0.03)
    assert scalars["rsa/front vs rest"] == pytest.approx(0, abs=0.06)
    assert 0.5 < scalars["rsa/same vs front"] < 0.9
    pairs = ["same vs rotated", "same vs front", "same vs rest", "rotated vs front", "rotated vs rest", "front vs rest"]
    assert [row["pair"] for row in result.tables["pairs"]] == pairs
    assert scalars["cka"] == pytest.approx(sum(scalars[f"cka/{pair}"] for pair in pairs) / 6)
    for key in ("cka", "rsa"):
        assert abs(scalars[f"permuted_{key}"]) < 0.03
        assert scalars[f"{key}_low"] < scalars[key] < scalars[f"{key}_high"] < scalars[key] + 0.1
        figure = result.figures[key]
        assert figure["x"] == figure["y"] == ["same", "rotated", "front", "rest"]
        assert figure["values"][3][2] == figure["values"][2][3] == scalars[f"{key}/front vs rest"]
        assert [figure["values"][i][i] for i in range(4)] == [1.0] * 4


def test_intervals_cover():
    """The jackknife's interval of 200 examples holds the value for the population in about 95 of 100 samples."""
    covered = []
    for seed in range(100):
        X = normal(200, 4, seed=seed)
        left = jackknife(lambda kept, X=X: cka([X[kept]], [X[kept, :2]]), 200)
        low, high = jackknife_interval(cka([X], [X[:, :2]]), left)
        covered.append(low <= 1 / math.sqrt(2) <= high)
    assert 88 <= sum(covered) <= 99


def test_a_similarity_of_architecture_alone_is_a_failure():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = linear(torch.eye(5))
            self.again = nn.Identity()

        def forward(self, x):
            return self.again(self.first(x))

    result = compared(normal(100, 5), ["first", "again"], model=Twice())
    assert result.scalars["cka"] == result.scalars["scrambled_cka"] == pytest.approx(1, abs=1e-12)
    assert [s for s in result.failures if "do not conclude that training made the two alike" in s]
    fine = compared(normal(100, 4), ["same", "rotated"])
    assert fine.scalars["scrambled_cka"] < 0.9
    assert fine.failures == []


def test_few_examples_mislead_the_biased_form_and_that_is_said():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(torch.eye(40)[:20]), linear(torch.eye(40)[20:])

        def forward(self, x):
            return self.a(x) + self.b(x)

    result = compared(normal(20, 40), ["a", "b"], model=Apart())
    assert abs(result.scalars["cka"]) < 0.2
    assert result.scalars["biased_cka"] == pytest.approx(20 / 40, abs=0.1)  # p / (n + p)
    assert [s for s in result.failures if "1 of 1 pairs have too few examples" in s and "20 examples of up to 20" in s]
    many = compared(normal(250, 40), ["a", "b"], model=Apart())
    assert many.scalars["biased_cka"] < 0.1
    assert not [s for s in many.failures if "too few examples" in s]


def test_permuted_rows_that_are_alike_are_a_failure():
    few = compared(normal(5, 4), ["same", "rotated"])
    assert few.scalars["permuted_cka_std"] > 0.1
    assert [s for s in few.failures if "do not conclude anything from a CKA of that size" in s]


# --- another model


def test_another_model_site_by_site():
    model, other = Views(), Views()
    with torch.no_grad():
        other.same.weight.copy_(torch.eye(4) * torch.tensor([5.0, 1, 1, 1]))
        other.front.weight.copy_(torch.eye(4)[2:])
    before = copy.deepcopy(other.state_dict())
    other.train()
    result = compared(white(150, 4), ["same", "front", "rest"], model=model, other=other)
    theory = 28 / math.sqrt(4 * 628)
    assert result.scalars["cka/same"] == pytest.approx(theory, abs=0.03)
    assert result.scalars["cka/front"] == pytest.approx(0, abs=0.03)
    assert result.scalars["cka/rest"] == pytest.approx(1, abs=1e-6)
    assert result.scalars["cka"] == pytest.approx(
        sum(result.scalars[f"cka/{s}"] for s in ("same", "front", "rest")) / 3
    )
    assert len(result.tables["pairs"]) == 9
    figure = result.figures["cka"]
    assert figure["xlabel"] == "site of the other model"
    assert figure["values"][2][1] == pytest.approx(1, abs=1e-6)  # the model's rest is the other's front
    assert figure["values"][1][2] == pytest.approx(0, abs=0.03)
    assert other.training
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_a_model_of_other_names_needs_other_sites():
    with pytest.raises(ValueError, match=r"no module 'front'.*Name the sites of the other model by other_sites="):
        compared(white(100, 4), ["front"], other=nn.Sequential(nn.Linear(4, 3)))


def test_other_sites_of_another_model():
    other = nn.Sequential(linear(torch.eye(4)[2:]))
    result = compared(white(100, 4), ["front", "rest"], other=other, other_sites=["0"])
    assert result.scalars["cka/rest vs 0"] == pytest.approx(1, abs=1e-6)
    assert abs(result.scalars["cka/front vs 0"]) < 0.05


def test_the_state_key_does_not_depend_on_the_other_model():
    keys = {RepresentationSimilarityProbe(["a"], other=other).state_key for other in (Views(), Learner())}
    assert len(keys) == 1
    assert RepresentationSimilarityProbe(["a"], Views(), minibatch=True).state_key not in keys


def test_the_control_of_another_model_does_not_depend_on_the_batches_before():
    class Counting(Views):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return super().forward(x + self.count * x.flip(1))

    x = normal(90, 4)
    tables = [
        compared(x, ["same"], size, Counting(), other=Counting(), permutations=2, minibatch=False).tables
        for size in (30, 45, 90)
    ]
    assert tables[0]["pairs"][0]["cka"] == tables[2]["pairs"][0]["cka"] == pytest.approx(1)
    assert tables[0]["pairs"][0]["scrambled_cka"] == pytest.approx(tables[2]["pairs"][0]["scrambled_cka"])


# --- RSA


def test_rsa_is_spearman_of_the_upper_triangles():
    X, Y = normal(7, 3).double(), normal(7, 4, seed=1).double()
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7)]

    def literal(h):
        distances = torch.stack([1 - torch.corrcoef(torch.stack([h[i], h[j]]))[0, 1] for i, j in pairs])
        return distances.argsort().argsort().double()

    expected = float(torch.corrcoef(torch.stack([literal(X), literal(Y)]))[0, 1])
    D, E = (dissimilarities(h, "correlation") for h in (X, Y))
    assert rsa([D], [E]) == pytest.approx(expected, abs=1e-12)
    assert rsa([D], [E]) != pytest.approx(rsa([dissimilarities(X, "euclidean")], [E]), abs=1e-3)
    assert torch.equal(ranks(D), ranks(D).T)
    assert rsa([ranks(D)], [ranks(E)], ranked=True) == pytest.approx(expected, abs=1e-12)
    assert rsa([D, D[:4, :4]], [E, D[:4, :4]]) == pytest.approx((7 * expected + 4) / 11, abs=1e-12)


def test_euclidean_distances_keep_their_order_under_rotation_and_scale_and_correlations_under_shift_of_rows():
    X = normal(9, 4).double()
    rotation = torch.linalg.qr(normal(4, 4, seed=1).double())[0]
    D = dissimilarities(X, "euclidean")
    assert torch.allclose(D, torch.cdist(X, X) / torch.cdist(X, X).max(), atol=1e-9)
    assert torch.allclose(dissimilarities(2 * X @ rotation + 1, "euclidean"), D, atol=1e-9)
    C = dissimilarities(X, "correlation")
    assert torch.allclose(dissimilarities(3 * X + normal(9, 1, seed=2), "correlation"), C, atol=1e-9)


def test_rsa_that_is_not_defined_is_no_number_and_no_noise():
    X = normal(10, 3)
    D = dissimilarities(X, "correlation")
    for p in range(1, 40):  # rows without a correlation; for some p their mean rounds
        Y = torch.linspace(0.1, 0.9, 10, dtype=torch.float64)[:, None].expand(10, p)
        assert math.isnan(rsa([D], [dissimilarities(Y, "correlation")]))
    for n in range(5, 40):  # all alike, but for rounding
        Y = torch.linalg.qr(normal(n, n).double())[0]
        assert math.isnan(rsa([dissimilarities(normal(n, 3), "euclidean")], [dissimilarities(Y, "euclidean")]))
    for n in (0, 1, 2):
        assert math.isnan(rsa([dissimilarities(X[:n], "euclidean")], [dissimilarities(X[:n], "euclidean")]))
    half = X.clone()
    half[0] = 0.1
    assert math.isfinite(rsa([D], [dissimilarities(half, "correlation")]))


# --- edges


def test_an_example_that_is_lost_on_either_side_is_left_out_of_both():
    X = normal(12, 3)
    Y = X.clone()
    Y[5] = math.nan
    for pair in ((X, Y), (Y, X)):
        found = compare([pair[0]], [pair[1]], "euclidean", 0, torch.Generator())
        assert found["cka"] == pytest.approx(1)
        assert found["n"] == 11
        assert found["lost"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("minibatch", [False, True])
def test_nothing_raises_where_nothing_can_be_measured(minibatch):
    x = normal(12, 4)
    lost = compared(torch.full_like(x, math.nan), ["same", "front"], minibatch=minibatch)
    assert not [key for key in lost.scalars if "cka" in key or "rsa" in key]
    assert [s for s in lost.failures if "100% of the examples" in s]
    assert [s for s in lost.failures if "CKA and RSA not defined with 0 examples" in s]
    constant = compared(torch.ones_like(x), ["same", "front"], minibatch=minibatch)
    assert "cka" not in constant.scalars
    assert [s for s in constant.failures if "do not read this as no similarity" in s]
    for n in (1, 3):
        assert "cka" not in compared(x[:n], ["same", "front"], minibatch=minibatch).scalars
    some = x.clone()
    some[3, 1] = math.inf
    some = compared(some, ["same", "rotated"], minibatch=minibatch)
    assert some.scalars["cka"] == pytest.approx(1)
    assert [s for s in some.failures if "8% of the examples" in s]


def test_activations_of_varying_size_are_compared_batch_by_batch():
    batches = [Batch(loader(16).dataset.x[:9, :T], torch.zeros(9, dtype=torch.long), None) for T in (3, 5)]
    sites = ["memory.embedding", "memory.key"]
    with pytest.raises(ValueError, match=r"18 numbers in one batch and 30 in another: pass minibatch=True"):
        RepresentationSimilarityProbe(sites).run(Learner(), batches)
    result = RepresentationSimilarityProbe(sites, minibatch=True).run(Learner(), batches)
    assert result.scalars["cka"] > 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": "memory"}, "sites must be a list of sites"),
        ({"sites": ["memory"]}, "nothing to compare"),
        ({"sites": ["memory", "memory"]}, "nothing to compare"),
        ({"sites": [], "other": nn.Identity()}, "nothing to compare"),
        ({"other_sites": ["head"]}, "other_sites are sites of another model"),
        ({"other_sites": "head", "other": nn.Identity()}, "other_sites must be a list"),
        ({"distance": "cosine"}, "distance must be one of"),
        ({"permutations": 1}, "permutations must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RepresentationSimilarityProbe(**{"sites": ["memory", "head"], **settings})


def test_sites_need_one_row_per_example():
    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.b(self.a(x).flatten())

    with pytest.raises(ValueError, match=r"one activation per example, got \{'a': 6, 'b': 24\}"):
        compared(normal(6, 4), ["a", "b"], model=Reshaped())
