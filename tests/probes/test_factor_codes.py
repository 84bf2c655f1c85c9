"""FactorCodeProbe: measures of importance and information with known values, and a model whose units are factors."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn

from algornn.probes import FactorCodeProbe
from algornn.probes.factor_codes import (
    classifier_of,
    completeness,
    disentanglement,
    importance_of,
    modularity,
    mutual_information_gap,
    threshold_score,
    two_best,
)
from algornn.probes.information import indicators


def test_one_unit_per_factor_is_perfect_and_all_for_all_is_nothing():
    for size in (2, 3, 7):
        assert disentanglement(torch.eye(size).double()) == pytest.approx(1)
        assert completeness(torch.eye(size).double()) == pytest.approx(1)
        assert disentanglement(torch.ones(size, size).double()) == pytest.approx(0, abs=1e-12)
        assert completeness(torch.ones(size, size).double()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("K", [2, 3, 5])
def test_a_unit_of_two_factors_and_a_factor_of_two_units(K):
    R = torch.zeros(1, K, dtype=torch.float64)
    R[0, :2] = 3
    assert disentanglement(R) == pytest.approx(1 - math.log(2, K))
    assert completeness(R.T) == pytest.approx(1 - math.log(2, K))


def test_units_and_factors_are_weighted_by_their_importance():
    R = torch.tensor([[6.0, 0, 0], [1, 1, 0], [0, 0, 0]]).double()
    assert disentanglement(R) == pytest.approx((6 * 1 + 2 * (1 - math.log(2, 3))) / 8)
    split = 1 + (6 / 7 * math.log(6 / 7) + 1 / 7 * math.log(1 / 7)) / math.log(3)
    assert completeness(R) == pytest.approx((7 * split + 1) / 8)
    assert math.isnan(disentanglement(torch.zeros(2, 2)))
    assert math.isnan(disentanglement(torch.ones(2, 1)))


def test_modularity_of_known_information():
    shared = torch.tensor([[2.0, 0, 0], [1, 1, 1], [0, 0, 0], [2, 1, 0]]).double()
    assert modularity(shared[:1]) == 1
    assert modularity(shared[1:2]) == 0
    assert modularity(shared[2:3]) == 0
    assert modularity(shared[3:]) == pytest.approx(1 - (1 / 4) / 2)
    assert modularity(shared) == pytest.approx((1 + 0 + 0 + 7 / 8) / 4)


def test_the_gap_of_known_information():
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    factors = indicators(grid)
    half = grid[:, :1] // 2  # one bit of the first factor's two
    assert mutual_information_gap(indicators(grid), factors) == pytest.approx(1)
    assert mutual_information_gap(indicators(torch.cat([grid, half], 1)), factors) == pytest.approx((1 / 2 + 1) / 2)
    assert mutual_information_gap(indicators(grid.repeat(1, 2)), factors) == pytest.approx(0, abs=1e-12)
    assert mutual_information_gap(indicators(grid[:, :1]), factors) == pytest.approx(1 / 2)
    x, v = torch.randint(0, 3, (60, 2), generator=torch.Generator().manual_seed(0)).unbind(1)
    H = float(mutual_info_score(v, v))
    found = mutual_information_gap(indicators(x[:, None]), indicators(v[:, None]))
    assert found == pytest.approx(float(mutual_info_score(v, x)) / H)


def test_thresholds_on_a_unit():
    y = torch.arange(4).repeat(25)
    rising, cut = 1.5 * y[:, None] - 2, (y[:, None] > 1).double()
    assert threshold_score(rising, y, rising, y) == 1
    assert threshold_score(cut, y, cut, y) == pytest.approx(1 / 2)
    rare = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    assert threshold_score(rare[:, None] * 0.0, rare, rare[:, None] * 0.0, rare) == pytest.approx(1 / 2)  # balanced
    assert threshold_score(rare[:, None], rare * 0, rare[:, None], rare) == 0
    assert two_best(torch.tensor([[0.9, 0.5], [0.6, 0.5], [0.7, 0.1]])) == pytest.approx((0.2 + 0) / 2)


@pytest.mark.parametrize("kind", ["boosting", "forest", "linear"])
def test_classifiers_give_importance_to_the_unit_that_decides(kind):
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 100])
    Y = (X[:, 1] > 0).long() + (X[:, 1] > 1).long()
    importance = importance_of(classifier_of(kind, 20, 0).fit(X.numpy(), Y.numpy()))
    assert importance.shape == (3,)
    assert importance[1] > 0.8 * importance.sum()


class Units(nn.Module):
    """Unit i is factor i; with a rotation, mixtures of them."""

    def __init__(self, mixing):
        super().__init__()
        self.mix = nn.Linear(2, len(mixing), bias=False)
        self.mix.weight.data = torch.tensor(mixing)

    def forward(self, batch):
        return self.mix(batch.float())


def run(mixing, n=400, factors=lambda batch: batch, values=4, **settings):
    rows = torch.randint(0, values, (n, 2), generator=torch.Generator().manual_seed(1))
    settings = {"classifier": "forest", "trees": 20, "resamples": 20, **settings}
    probe = FactorCodeProbe(factors, "mix", loss=lambda call, x: call(x).sum(), max_batches=None, **settings)
    return probe.run(Units(mixing), list(rows.split(64)))


KEYS = ("disentanglement", "completeness", "informativeness", "mig", "sap", "modularity")


def test_units_that_are_factors():
    result = run([[1.0, 0.0], [0.0, 1.0]], classifier="boosting", trees=10)
    scalars = result.scalars
    for key in ("disentanglement", "completeness", "informativeness", "modularity"):
        assert scalars[key] == pytest.approx(1, abs=0.03), key
        assert scalars[f"{key}_shuffled"] < 0.9, key
    assert scalars["mig"] > 0.95
    assert scalars["sap"] > 0.6
    assert scalars["informativeness"] == 1
    assert 0.2 < scalars["chance"] < 0.35
    assert 0.97 < scalars["mig_low"] < scalars["mig"] <= scalars["mig_high"] <= 1
    assert scalars["examples"] == 400
    assert not any("describe noise" in failure for failure in result.failures)
    assert result.tables["importance"][0][0] > 0.95
    assert result.tables["information"][0][0] == pytest.approx(2, abs=0.05)


def test_a_rotation_keeps_the_information_and_loses_the_rest():
    scalars = run([[1.0, 0.3], [-0.3, 1.0]], classifier="boosting", trees=30).scalars
    assert scalars["informativeness"] > 0.95
    scalars = run([[1.0, 0.9], [-0.9, 1.0]], trees=50).scalars
    assert scalars["informativeness"] > 0.9
    assert scalars["disentanglement"] < 0.3
    assert scalars["mig"] < 0.3


def test_a_factor_in_two_units_is_not_complete():
    scalars = run([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], trees=50).scalars
    assert scalars["disentanglement"] > 0.9
    assert scalars["completeness"] < 0.8
    assert scalars["mig"] == pytest.approx(0.5, abs=0.05)


def test_units_of_nothing_fail():
    result = run([[0.0, 0.0], [0.0, 0.0]])
    assert "describe noise" in result.failures[0]
    assert result.scalars["modularity"] == 0
    assert result.scalars["mig"] == 0
    assert "disentanglement" not in result.scalars or result.scalars["disentanglement"] == 0


def test_edges():
    assert run([[1.0, 0.0]], n=1).scalars == {"examples": 1}
    assert run([[math.nan, 0.0], [0.0, 1.0]]).scalars == {"examples": 0}
    assert run([[1.0, 0.0], [0.0, 1.0]], max_items=100).scalars["examples"] == 100
    alone = run([[1.0, 0.5]]).scalars
    assert "completeness" not in alone
    assert alone["disentanglement"] < 0.5
    constant = run([[1.0, 0.0], [0.0, 1.0]], values=1)
    assert constant.scalars["informativeness"] == 1
    assert constant.scalars["chance"] == 1
    assert "describe noise" in constant.failures[0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="classifier must be"):
        run([[1.0, 0.0]], classifier="oracle")
    with pytest.raises(ValueError, match="bins >= 2"):
        run([[1.0, 0.0]], bins=1)
    with pytest.raises(ValueError, match="test_fraction"):
        run([[1.0, 0.0]], test_fraction=1.0)
    with pytest.raises(ValueError, match="at least two"):
        run([[1.0, 0.0]], factors=lambda batch: batch[:, 0])
