"""ModuleUsageProbe against tables and routers whose measures are known."""

import math

import pytest
import torch
from tiny_learner import Learner, Rows, loader
from torch import nn

from algornn.probes import ModuleUsageProbe
from algornn.probes.module_usage import joint_table, scores_of, straightened, usage

KEYS = ("collapse_avg", "collapse_worst", "alignment", "inverse_mutual_information")


def q_of(R, n=100):
    waits = -torch.rand(n, R, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log()
    return waits / waits.sum(-1, keepdim=True)


def tables(R):
    one = torch.zeros(R, R, dtype=torch.float64)
    one[:, R // 2] = 1 / R
    order = torch.randperm(R, generator=torch.Generator().manual_seed(R))
    return {
        "permutation": torch.eye(R, dtype=torch.float64)[order] / R,
        "uniform": torch.full((R, R), 1 / R**2, dtype=torch.float64),
        "one module": one,
    }


@pytest.mark.parametrize("R", [2, 5, 32])
def test_measures_of_three_tables(R):
    q = q_of(R)
    expected = {
        "permutation": (0, 0, 0, 0),
        "uniform": (0, 0, 1 - 1 / R, math.log(R)),
        "one module": (1, 1, 1 - 1 / R, math.log(R)),
    }
    adaptation = {
        "permutation": 0.0,
        "uniform": float((q - 1 / R).abs().sum(1).mean()) / 2,
        "one module": float(1 - q.amax(1).mean()),  # sorted, (0, ..., 0, 1) against q: half of 2 (1 - largest)
    }
    for name, P in tables(R).items():
        found = usage(P, q)
        assert [found[key] for key in KEYS] == pytest.approx(expected[name], abs=1e-12)
        assert found["adaptation"] == pytest.approx(adaptation[name], abs=1e-12)


def test_measures_of_a_table_by_hand():
    P = torch.tensor([[0.3, 0.2], [0.1, 0.4]], dtype=torch.float64)  # R P = [[.6, .4], [.2, .8]], p = (.4, .6)
    found = usage(P, torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64))
    assert found["collapse_avg"] == pytest.approx(2 * 0.1)
    assert found["collapse_worst"] == pytest.approx(0.2)
    assert found["alignment"] == pytest.approx((0.4 + 0.4 + 0.2 + 0.2) / 4)
    information = sum(p * math.log(p / (0.5 * m)) for p, m in zip((0.3, 0.2, 0.1, 0.4), (0.4, 0.6) * 2, strict=True))
    assert found["inverse_mutual_information"] == pytest.approx(math.log(2) - information)
    assert found["adaptation"] == pytest.approx((0.4 + 0.1) / 2)  # (0, 1) against (.4, .6); (.5, .5) against (.4, .6)


def test_fewer_or_more_modules_than_rules():
    wide = torch.zeros(2, 4, dtype=torch.float64)
    wide[0, 1] = wide[1, 3] = 0.5
    found = usage(wide, q_of(2))
    assert (found["alignment"], found["inverse_mutual_information"]) == pytest.approx((0, 0), abs=1e-12)
    assert found["adaptation"] == pytest.approx(0, abs=1e-12)
    assert found["collapse_worst"] == 1  # two modules lie idle
    assert found["collapse_avg"] == pytest.approx(4 / 3 * 0.5)
    narrow = torch.zeros(4, 2, dtype=torch.float64)
    narrow[:2, 0] = narrow[2:, 1] = 0.25
    found = usage(narrow, q_of(4))
    assert found["alignment"] == pytest.approx(2 / 8)  # two rules have a module to themselves, two are left over
    assert found["inverse_mutual_information"] == pytest.approx(math.log(4) - math.log(2))
    assert (found["collapse_avg"], found["collapse_worst"]) == (0, 0)
    assert math.isnan(usage(torch.ones(3, 1, dtype=torch.float64) / 3, q_of(3))["collapse_avg"])


def test_every_rule_weighs_the_same():
    scores = torch.eye(2, dtype=torch.float64)[[0, 0, 0, 1]]
    P = joint_table(scores, torch.tensor([0, 0, 0, 1]), 2)
    assert torch.equal(P, torch.eye(2, dtype=torch.float64) / 2)
    weighted = joint_table(scores, torch.tensor([0, 0, 1, 1]), 2, torch.tensor([1, 1, 3, 1]))
    assert weighted.tolist() == [[0.5, 0], [0.375, 0.125]]
    assert joint_table(scores, torch.tensor([0, 0, 0, 0]), 2)[1].isnan().all()
    assert straightened(torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]])).tolist() == [[0, 1, 0], [0.5, 0.5, 0]]


class Routed(nn.Module):
    """Scores as given, one row per rule, at the site "router"."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))
        self.router = nn.Identity()

    def forward(self, x):
        return self.router(self.scores[x])


def routed(scores, rules, **settings):
    batches = [{"x": r, "group": r} for r in torch.as_tensor(rules).split(8)]
    probe = ModuleUsageProbe("router", loss=lambda call, batch: call(batch["x"]).mean(), **settings)
    return probe.run(Routed(scores), batches)


RULES = torch.arange(60) ** 2 % 7 % 3  # unequally many of each


def test_a_router_that_is_given_the_rule_is_perfect():
    result = routed([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], RULES)
    scalars = result.scalars
    for key in (*KEYS, "adaptation"):
        assert scalars[key] == scalars[f"{key}_low"] == scalars[f"{key}_high"] == pytest.approx(0, abs=1e-12)
    assert scalars["inverse_mutual_information_permuted"] > 0.9
    assert scalars["alignment_permuted"] > 0.4
    assert result.failures == []
    assert result.tables["joint"] == {"0": [0, 1 / 3, 0], "1": [0, 0, 1 / 3], "2": [1 / 3, 0, 0]}


def test_a_collapsed_router_fails_its_control():
    result = routed([[0.0, 1.0, 0.0]] * 3, RULES)
    assert [result.scalars[key] for key in KEYS] == pytest.approx([1, 1, 2 / 3, math.log(3)])
    assert "no more about the rules than about rules dealt out at random" in result.failures[0]


def test_soft_scores_and_counts_disagree_for_a_warm_router():
    warm = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]]
    soft, straight = routed(warm, RULES), routed(warm, RULES, straight=True)
    assert soft.scalars["alignment"] == pytest.approx(0.6)
    assert soft.scalars["alignment_straight"] == straight.scalars["alignment"] == pytest.approx(0, abs=1e-12)
    assert straight.scalars["alignment_soft"] == pytest.approx(0.6)
    for result in (soft, straight):
        assert "disagree about alignment" in result.failures[-1]
    logits = (10 * torch.tensor(warm)).tolist()
    found = routed(logits, RULES, softmax=True).tables["joint"]["0"]
    assert found == pytest.approx((torch.tensor([4.0, 3, 3]).softmax(0) / 3).tolist(), abs=1e-7)


def test_choices_at_every_place_with_padding():
    scores = torch.eye(2)[torch.tensor([[0, 1, 0], [1, 1, 0]])]
    kept, rules, examples = scores_of(scores, torch.tensor([[0, 1, -1], [1, 1, -1]]), False, "router")
    assert kept.tolist() == torch.eye(2)[[0, 1, 1, 1]].tolist()
    assert (rules.tolist(), examples.tolist()) == ([0, 1, 1, 1], [0, 0, 1, 1])
    kept, rules, examples = scores_of(scores, torch.tensor([4, 2]), False, "router")
    assert (rules.tolist(), examples.tolist()) == ([4, 4, 4, 2, 2, 2], [0, 0, 0, 1, 1, 1])
    scores[0, 0] = math.nan  # a diverged place is left out
    assert len(scores_of(scores, torch.tensor([4, 2]), False, "router")[0]) == 5


def test_rules_by_group_carry_their_names_and_one_rule_is_no_comparison():
    result = ModuleUsageProbe("head", softmax=True).run(Learner(), loader(31))
    assert list(result.tables["joint"]) == list(Rows.groups)
    assert result.scalars["modules"] == result.scalars["rules"] == 3
    alone = ModuleUsageProbe("head", rule=lambda batch: torch.zeros_like(batch.y), softmax=True).run(
        Learner(), loader(9)
    )
    assert "There is only one rule" in alone.failures[0]
    single = ModuleUsageProbe("head", softmax=True, max_batches=1).run(Learner(), loader(9, batch_size=1))
    assert "collapse_avg_low" not in single.scalars  # one example has no interval


def test_intervals_hold_their_values():
    # Few examples per rule look as if modules knew it, and a resample, with fewer different ones, even more so.
    class Router(nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x, 8).double()

    x = torch.randint(8, (128,), generator=torch.Generator().manual_seed(0))
    batch = {"x": x, "rule": torch.arange(128) % 8}
    probe = ModuleUsageProbe("", "rule", loss=lambda call, batch: call(batch["x"]).sum())
    scalars = probe.run(Router(), [batch]).scalars
    for key in (*KEYS, "adaptation"):
        assert scalars[f"{key}_low"] < scalars[key] < scalars[f"{key}_high"]
    assert scalars["inverse_mutual_information_high"] <= math.log(8)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="draws must be positive"):
        ModuleUsageProbe("router", draws=0)
    with pytest.raises(ValueError, match=r"are no probabilities over the modules: pass softmax=True"):
        ModuleUsageProbe("head").run(Learner(), loader(9))
    with pytest.raises(TypeError, match=r"must lead to a tensor of integers, got torch.float32"):
        ModuleUsageProbe("head", rule=lambda batch: batch.y.float(), softmax=True).run(Learner(), loader(9))
    with pytest.raises(ValueError, match=r"rules \[B\] or \[B, ...\], got \[8, 3\] and \[8, 5\]"):
        ModuleUsageProbe("head", rule="x", softmax=True).run(Learner(), loader(9))
    with pytest.raises(ValueError, match="has no field 'rule'"):
        ModuleUsageProbe("head", rule="rule", softmax=True).run(Learner(), loader(9))
    with pytest.raises(ValueError, match="No choice of the site 'head' has a rule"):
        ModuleUsageProbe("head", rule=lambda batch: -1 - batch.y, softmax=True).run(Learner(), loader(9))
