"""FastWeightProbe against what is known exactly, or in expectation, about fast-weight memories."""

import math

import pytest
import torch
from tiny_learner import Learner, Memory, loader
from torch import nn

from algornn.probes import FastWeightProbe, OwnsFastWeights
from algornn.probes.fast_weights import FastWeightTrace, spectrum_of


def measure(*traces):
    return FastWeightProbe(trace=lambda model, batch: batch).run(nn.Identity(), list(traces))


def unit(*shape, seed):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def sum_rule(keys, values):
    return FastWeightTrace(keys, values, torch.ones(keys.shape[:2]), keys.transpose(1, 2) @ values)


def delta_rule(keys, values):
    state = keys.new_zeros(len(keys), keys.shape[-1], values.shape[-1])
    for k, v in zip(keys.unbind(1), values.unbind(1), strict=True):
        error = v - torch.einsum("bkv,bk->bv", state, k)
        state = state + torch.einsum("bk,bv->bkv", k, error)
    return FastWeightTrace(keys, values, torch.ones(keys.shape[:2]), state)


@pytest.mark.parametrize(
    ("sigma", "effective", "stable", "participation"),
    [([2.0] * 5, 5.0, 5.0, 5.0), ([1, 0.5, 0.25, 0.125], 3.117, 1.328, 1.654), ([0.0, 0.0], 0.0, 0.0, 0.0)],
)
@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
def test_ranks_of_known_spectra(sigma, effective, stable, participation, shape):
    left, _ = torch.linalg.qr(unit(shape[0], shape[0], seed=1))
    right, _ = torch.linalg.qr(unit(shape[1], shape[1], seed=2))
    n = len(sigma)
    state = left[:, :n] @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right[:n]
    found = spectrum_of(state[None])
    expected = {"effective_rank": effective, "stable_rank": stable, "participation_ratio": participation}
    # The figures are stated to three decimals; beyond them the noise floor of the zero singular values (1e-8) is all.
    assert {key: round(float(found[key]), 3) for key in expected} == expected
    assert found["sigma"][0, :n].tolist() == pytest.approx(sorted(sigma, reverse=True), abs=1e-7)


def test_large_float32_state_agrees_with_svd():
    state = torch.randn(2, 1800, 90, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(spectrum_of(state)["sigma"], torch.linalg.svdvals(state.double()), rtol=1e-10)


@pytest.mark.parametrize("rule", [sum_rule, delta_rule])
def test_orthonormal_keys_are_recalled_exactly(rule):
    keys = torch.linalg.qr(unit(4, 16, 16, seed=3))[0][:, :12]
    scalars = measure(rule(keys, unit(4, 12, 10, seed=4))).scalars
    assert scalars["recall_error"] < 1e-24
    assert scalars["recall_accuracy"] == 1.0
    assert scalars["recall_accuracy_control"] == 0.0
    assert scalars["interference"] < 1e-24


def test_sum_rule_error_is_n_minus_1_over_d():
    N, d, B = 128, 64, 64
    result = measure(sum_rule(unit(B, N, d, seed=5), unit(B, N, d, seed=6)))
    each = torch.tensor(
        [
            measure(sum_rule(unit(1, N, d, seed=100 + i), unit(1, N, d, seed=200 + i))).scalars["recall_error"]
            for i in range(16)
        ]
    )
    sampling_error = float(each.std()) / math.sqrt(B)
    assert abs(result.scalars["recall_error"] - (N - 1) / d) < 4 * sampling_error < 0.05
    assert result.scalars["write_strength"] == 1.0
    assert result.scalars["writes"] == N


def test_delta_rule_recalls_the_last_pair_exactly_and_errs_less():
    keys, values = unit(32, 128, 64, seed=7), unit(32, 128, 64, seed=8)
    delta = measure(delta_rule(keys, values))
    by_age = delta.tables["recall_by_age"]
    assert by_age["age"] == list(range(128))
    assert by_age["count"] == [32] * 128
    assert by_age["recall_error"][0] < 1e-24
    assert by_age["recall_accuracy"][0] == 1.0
    assert by_age["recall_error"][1] > 1e-4
    assert delta.scalars["recall_error"] == pytest.approx(1.07, abs=0.02)
    assert delta.scalars["recall_error"] < 0.6 * measure(sum_rule(keys, values)).scalars["recall_error"]


def test_the_same_key_written_twice():
    key, values = unit(1, 1, 8, seed=9).expand(1, 2, 8), torch.tensor([[[3.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    delta, total = (
        measure(rule(key, values)).tables["recall_by_age"]["recall_error"] for rule in (delta_rule, sum_rule)
    )
    assert delta == pytest.approx([0.0, 13 / 9], abs=1e-12)  # returns v2: exact for it, |v2 - v1|^2 / |v1|^2 for v1
    assert total == pytest.approx([9 / 4, 4 / 9])  # returns v1 + v2


def test_interference_meets_the_welch_bound_on_a_tight_frame():
    d = 16
    bases = torch.cat([torch.eye(d), torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]])
    scalars = measure(sum_rule(bases[None].double(), unit(1, 2 * d, d, seed=2))).scalars
    assert scalars["interference_floor"] == pytest.approx(1 / (2 * d - 1))
    assert scalars["interference"] == pytest.approx(scalars["interference_floor"], rel=1e-5)
    keys = unit(64, 2 * d, d, seed=3)
    random_keys = measure(sum_rule(keys, keys)).scalars
    assert random_keys["interference"] == pytest.approx(1 / d, rel=0.02)
    assert random_keys["interference"] > random_keys["interference_floor"]


def test_two_kinds_of_writes_in_turn_are_drawn_without_a_zigzag():
    keys, values = torch.eye(5)[None].double(), unit(1, 5, 7, seed=12)
    state = keys.clone()
    state[:, 1::2] = 0  # every other association is lost
    result = measure(FastWeightTrace(keys, values, torch.ones(1, 5), state.transpose(1, 2) @ values))
    figure = result.figures["recall_error"]
    assert result.tables["recall_by_age"]["recall_error"] == pytest.approx([0, 1, 0, 1, 0])
    assert figure["x"] == [0.5, 2.5, 4.0]
    assert figure["series"]["stored value"] == pytest.approx([0.5, 0.5, 0.0])
    assert list(figure["series"])[1].startswith("control: ")


def test_zero_keys_are_left_out():
    keys, values = unit(3, 6, 5, seed=10), unit(3, 6, 4, seed=11)
    plain = sum_rule(keys, values)
    places = torch.tensor([0, 2, 3, 6, 7, 9])
    padded_keys, padded_values, beta = (
        torch.zeros(3, 10, 5).double(),
        torch.full((3, 10, 4), 9.0).double(),
        torch.zeros(3, 10),
    )
    padded_keys[:, places], padded_values[:, places], beta[:, places] = keys, values, 1.0
    padded = FastWeightTrace(padded_keys, padded_values, beta, plain.state)
    assert measure(padded).scalars == pytest.approx(measure(plain).scalars, rel=1e-12)
    assert measure(padded).tables["recall_by_age"]["count"] == [3] * 6


def test_an_empty_memory_is_reported_as_empty():
    trace = FastWeightTrace(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2, 4), torch.zeros(2, 3, 3))
    result = measure(trace)
    assert result.scalars["effective_rank"] == result.scalars["writes"] == 0.0
    assert math.isnan(result.scalars["recall_error"])
    assert '"recall_error": null' in result.to_json()
    assert "Nothing was written" in result.failures[0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e200])
def test_a_state_that_is_not_finite_ends_no_measurement(broken):
    keys, values = unit(2, 3, 4, seed=0), unit(2, 3, 5, seed=1)
    trace = sum_rule(keys, values)
    state = torch.stack([trace.state[0], torch.full((4, 5), broken, dtype=torch.float64)])
    result = measure(trace._replace(state=state))
    alone = measure(sum_rule(keys[:1], values[:1]))
    for name in ("effective_rank", "stable_rank", "participation_ratio", "state_norm"):
        assert result.scalars[name] == pytest.approx(alone.scalars[name])
    assert result.tables["spectrum"] == pytest.approx(alone.tables["spectrum"])
    assert math.isnan(
        measure(trace._replace(state=torch.full((2, 4, 5), broken, dtype=torch.float64))).scalars["effective_rank"]
    )


def test_an_answer_that_is_no_number_is_not_the_nearest_to_any_value():
    keys, values = unit(2, 3, 4, seed=0), unit(2, 3, 5, seed=1)
    trace = sum_rule(keys, values)
    broken = measure(trace._replace(state=torch.full_like(trace.state, torch.nan)))
    assert math.isnan(broken.scalars["recall_accuracy"])
    assert "no answer of it is finite" in broken.failures[0]
    assert not measure(trace).failures


def test_a_value_of_zero_does_not_spoil_the_mean():
    keys, values = torch.eye(3)[None].double(), torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]).double()
    assert measure(sum_rule(keys, values)).scalars["recall_error"] == 0.0


def test_the_owner_is_found_by_itself_or_by_path():
    learner, data = Learner(), loader(31)
    assert isinstance(learner.memory, OwnsFastWeights)
    assert not isinstance(learner.head, OwnsFastWeights)
    found = FastWeightProbe().run(learner, data).scalars
    assert found == FastWeightProbe(at="memory").run(learner, data).scalars
    by_hand = FastWeightProbe(trace=lambda model, batch: model.memory.fast_weights(batch.x)).run(learner, data).scalars
    assert found == by_hand
    assert found["writes"] == pytest.approx(float((Rows31.x > 0).sum(1).float().mean()))


Rows31 = loader(31).dataset


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = Memory()

    def forward(self, x):
        return self.memory(x).sum() + self.memory(x[:, :2]).sum()


@pytest.mark.parametrize(("call", "writes"), [(0, 5.0), (1, 2.0), (-1, 2.0)])
def test_which_call_is_looked_at(call, writes):
    batch = torch.ones(4, 5, dtype=torch.long)
    probe = FastWeightProbe(call=call, loss=lambda model, x: model(x))
    assert probe.run(Twice(), [batch]).scalars["writes"] == writes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": "head"}, "at='head'"),
        ({"call": 3}, "call=3 asked for, but Memory was called 1 times"),
        (
            {"trace": lambda model, batch: model.memory.fast_weights(batch.x)._replace(beta=torch.ones(2))},
            "beta must be",
        ),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FastWeightProbe(**settings).run(Learner(), loader(8))


def test_a_model_without_fast_weights_is_refused():
    with pytest.raises(ValueError, match="in any module of Linear, found none"):
        FastWeightProbe().run(nn.Linear(3, 2), [(torch.ones(2, 3), torch.zeros(2).long())])
