"""Controls: intervals, null distributions and the scrambled network."""

import math

import pytest
import torch
from torch import nn

from algornn.probes.controls import (
    around,
    bootstrap,
    finite,
    jackknife,
    jackknife_interval,
    mean_interval,
    permuted,
    scrambled,
    spread,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_bootstrap_of_a_mean_is_two_standard_errors_wide():
    x = torch.randn(400, generator=generator())
    for low, high in (
        bootstrap(lambda rows: float(x[rows].mean()), 400, generator(1), resamples=2000),
        mean_interval(x, generator(1), resamples=2000),
    ):
        error = float(x.std()) / 20
        assert abs(low - (float(x.mean()) - 1.96 * error)) < 0.2 * error
        assert abs(high - (float(x.mean()) + 1.96 * error)) < 0.2 * error


def test_intervals_of_nothing_are_not_numbers():
    assert all(map(math.isnan, bootstrap(lambda rows: 1.0, 1, generator())))
    assert all(map(math.isnan, bootstrap(lambda rows: math.nan, 5, generator())))
    assert all(map(math.isnan, mean_interval(torch.tensor([1.0]), generator())))
    assert mean_interval(torch.tensor([2.0, 2.0, math.nan]), generator()) == (2.0, 2.0)
    assert all(map(math.isnan, permuted(lambda order: math.nan, 5, generator())))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = torch.randn(30, generator=generator(), dtype=torch.float64)
    mean, error = float(x.mean()), float(x.std()) / math.sqrt(30)
    each = jackknife(lambda kept: float(x[kept].mean()), 30, groups=30)
    assert torch.allclose(each, (x.sum() - x) / 29)
    assert jackknife_interval(mean, each) == (
        pytest.approx(mean - 1.96 * error),
        pytest.approx(mean + 1.96 * error),
    )
    assert len(jackknife(lambda kept: float(len(kept)), 7, groups=3)) == 3
    assert jackknife(lambda kept: float(len(kept)), 7, groups=3).tolist() == [4.0, 5.0, 5.0]
    assert len(jackknife(lambda kept: 0.0, 2)) == 2
    assert all(map(math.isnan, jackknife_interval(1.0, torch.tensor([1.0, math.nan]))))
    assert all(map(math.isnan, jackknife_interval(1.0, jackknife(lambda kept: 0.0, 0))))


def test_permuted_gives_the_null_distribution():
    x = torch.arange(30.0)
    mean, std = permuted(lambda order: float(torch.corrcoef(torch.stack([x, x[order]]))[0, 1]), 30, generator(), 500)
    assert abs(mean) < 0.03
    assert abs(std - 1 / math.sqrt(29)) < 0.03


def test_the_scrambled_network_keeps_entries_and_ties_and_leaves_the_model():
    model = nn.Sequential(nn.Linear(5, 5), nn.LSTM(5, 5), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    before = [p.clone() for p in model.parameters()]
    twin = scrambled(model, generator())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert twin[2].weight is twin[0].weight
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_finite_leaves_out_what_is_not_defined():
    assert finite({"a": 1, "b": math.nan}) == {"a": 1.0}


def test_an_interval_around_the_value_stays_within_the_range_of_the_statistic():
    resampled = [0.5, 0.6, 0.7, math.nan]
    std = math.sqrt(2 / 3) * 0.1
    assert spread(resampled) == pytest.approx((0.6, std))
    assert around(0.8, resampled, 0, 1) == pytest.approx((0.8 - 1.96 * std, 0.8 + 1.96 * std))
    assert around(0.9, resampled, 0, 1)[1] == 1
    assert around(0.1, resampled, 0, 1)[0] == 0
    assert all(map(math.isnan, around(0.9, [], 0, 1)))
    assert all(map(math.isnan, around(math.nan, resampled, 0, 1)))
    assert all(map(math.isnan, spread([math.nan])))
