"""Gaps and productivity curves of models whose answers are known, and of the released predictions on PCFG SET."""

import gzip
import os
import statistics
from pathlib import Path

import pytest
import torch
from tiny_learner import Learner, loader
from torch import nn

from algornn.probes import GeneralizationGapProbe
from algornn.probes.generalization import chance_of, gap_of, productivity
from algornn.probes.plots import draw
from algornn.probes.predictions import exact_match


class UpTo(nn.Module):
    """Answers x modulo 5, but 0 where x is larger than it can count."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return nn.functional.one_hot((x % 5) * (x <= self.limit), 5).float()


def batches(first, last, size=7):
    x = torch.arange(first, last)
    return list(zip(x.split(size), (x % 5).split(size), strict=True))


def released(name):
    """Predictions and targets of a published run: $ALGORNN_GOLDEN, or shared/golden beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("ALGORNN_GOLDEN", beside)) / "pcfg_predictions" / f"{name}.txt.gz"
    if not path.is_file():
        pytest.skip(f"the released predictions {path} are missing; set ALGORNN_GOLDEN to the folder above theirs")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [row[2].split() for row in rows], [row[1].split() for row in rows]


@pytest.mark.parametrize(
    ("name", "n", "mean", "std"), [("systematicity", 10175, 0.526, 0.030), ("productivity", 11333, 0.301, 0.006)]
)
def test_the_published_table_of_pcfg_set(name, n, mean, std):
    runs = [exact_match(*released(f"{name}__run{run}")) for run in (1, 2, 3)]
    assert {len(run) for run in runs} == {n}
    found = [float(run.double().mean()) for run in runs]
    assert round(statistics.mean(found), 3) == mean
    assert round(statistics.pstdev(found), 3) == std  # the population's: the table's convention


def test_gap_and_its_interval():
    generator = torch.Generator().manual_seed(0)
    iid, ood = torch.arange(400) % 10 > 0, torch.arange(100) % 10 > 6  # .9 and .3
    gap, (low, high) = gap_of(iid, ood, generator)
    assert gap == pytest.approx(0.6)
    spread = 1.96 * (0.9 * 0.1 / 400 + 0.3 * 0.7 / 100) ** 0.5
    assert (gap - low, high - gap) == (pytest.approx(spread, rel=0.3), pytest.approx(spread, rel=0.3))
    assert gap_of(iid, ood[:0], generator)[0] != gap_of(iid, ood[:0], generator)[0]  # not a number


def test_productivity_counts_every_length():
    correct = torch.tensor([True, False, True, True])
    assert productivity(correct, [3, 1, 3, 2.5]) == {1: (0.0, 1), 2.5: (1.0, 1), 3: (1.0, 2)}


def test_chance_is_that_of_shuffled_targets():
    targets = [(i % 4,) for i in range(400)]
    found = chance_of(targets, targets, torch.Generator().manual_seed(0))
    assert found == pytest.approx(0.25, abs=0.01)
    assert chance_of([(1,)] * 9, [(1,)] * 9, torch.Generator()) == 1


def test_a_model_that_counts_to_twenty():
    probe = GeneralizationGapProbe({"near": batches(21, 26), "far": batches(26, 41)}, length=0)
    result = probe.run(UpTo(20), batches(1, 21))
    scalars = result.scalars
    assert list(scalars)[:5] == ["exact_match", "ood_exact_match", "gap", "chance", "ood_chance"]
    assert scalars["exact_match"] == scalars["exact_match/iid"] == 1
    # beyond, it answers 0 to every number, which is right for each fifth
    assert scalars["ood_exact_match"] == scalars["exact_match/near"] == scalars["exact_match/far"] == pytest.approx(0.2)
    assert scalars["gap"] == scalars["gap/far"] == pytest.approx(0.8)
    assert scalars["gap_low"] < 0.8 < scalars["gap_high"]
    assert scalars["ood_chance"] == pytest.approx(0.2)
    assert scalars["chance"] == pytest.approx(0.2, abs=0.06)
    assert scalars["length_match"] == 1
    assert result.failures == []
    curve = {row["length"]: row["exact_match"] for row in result.tables["productivity"]}
    assert curve == {n: float(n <= 20 or n % 5 == 0) for n in range(1, 41)}
    assert {row["set"]: row["examples"] for row in result.tables["sets"]} == {"iid": 20, "near": 5, "far": 15}
    for figure in result.figures.values():
        draw(figure)


def test_sets_of_unequal_size_are_pooled_by_example():
    scalars = GeneralizationGapProbe({"easy": batches(1, 5), "hard": batches(21, 25)[:1]}).run(UpTo(20), batches(1, 21))
    assert scalars.scalars["ood_exact_match"] == pytest.approx(4 / 8)
    scalars = GeneralizationGapProbe({"easy": batches(1, 17), "hard": batches(21, 25)}).run(UpTo(20), batches(1, 21))
    assert scalars.scalars["ood_exact_match"] == pytest.approx(16 / 20)


def test_groups_of_one_loader_can_be_out_of_distribution():
    result = GeneralizationGapProbe(["third"]).run(Learner(), loader(60))
    names = [row["set"] for row in result.tables["sets"] if row["group"] is None]
    assert names == ["iid", "third"]
    assert {row["group"] for row in result.tables["sets"]} == {None, "first", "second"}
    counts = {(row["set"], row["group"]): row["examples"] for row in result.tables["sets"]}
    assert counts["third", None] == counts["iid", "first"] == 20
    third = result.scalars["exact_match/third"]
    assert result.scalars["gap/third"] == pytest.approx(result.scalars["exact_match"] - third)
    with pytest.raises(ValueError, match=r"\['fourth'\].*\['first', 'second', 'third'\]"):
        GeneralizationGapProbe(["fourth"]).run(Learner(), loader(60))


def test_without_sets_out_of_distribution_there_is_no_gap():
    result = GeneralizationGapProbe(length=lambda batch: batch.x.gt(0).sum(1)).run(Learner(), loader(60))
    assert "gap" not in result.scalars
    assert {"exact_match/iid: first", "exact_match/iid: second"} <= set(result.scalars)
    assert [row["length"] for row in result.tables["productivity"]] == [3, 4, 5]


def test_groups_may_be_named_by_the_batch_itself():
    grouped = [{"x": torch.arange(1, 5), "y": torch.arange(1, 5), "kind": ["a", "a", "b", "b"]}]
    probe = GeneralizationGapProbe(["b"], group="kind", loss=lambda call, batch: call(batch["x"]).sum())
    assert probe.run(UpTo(3), grouped).scalars["exact_match/b"] == 0.5


def test_a_model_that_has_learned_nothing_is_reported():
    result = GeneralizationGapProbe({"far": batches(26, 41)}).run(UpTo(0), batches(1, 21))
    assert result.scalars["gap"] == 0
    assert len(result.failures) == 1
    assert "do not read a gap" in result.failures[0]


def test_a_single_example_has_no_interval():
    result = GeneralizationGapProbe({"far": batches(27, 28)}).run(UpTo(20), batches(1, 2))
    assert result.scalars["gap"] == 1
    assert "exact_match_low" not in result.scalars
    assert result.failures == []


def test_activations_that_are_not_numbers_are_no_obstacle():
    learner = Learner()
    learner.head.bias.data.fill_(torch.nan)
    assert 0 <= GeneralizationGapProbe(["third"]).run(learner, loader(30)).scalars["exact_match"] <= 1


def test_mistakes_in_the_sets():
    with pytest.raises(TypeError, match=r"write \['third'\]"):
        GeneralizationGapProbe("third")
    with pytest.raises(ValueError, match="cannot be named 'iid'"):
        GeneralizationGapProbe({"iid": []})
