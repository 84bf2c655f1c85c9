"""Consistency of models whose mistakes are known, and of the released predictions on PCFG SET."""

import statistics

import pytest
import torch
from test_generalization import released
from tiny_learner import Learner, loader, train
from torch import nn

from algornn.probes import ConsistencyProbe
from algornn.probes.consistency import consistency, localism, overgeneralisation, twin_report
from algornn.probes.plots import draw


class Table(nn.Module):
    """Answers x by a table; a buffer, so that it can be another at another measurement."""

    def __init__(self, answers):
        super().__init__()
        self.register_buffer("answers", torch.tensor(answers))

    def forward(self, x):
        return nn.functional.one_hot(self.answers[x], 10).float()


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "same", "both_wrong"), [("equally_distributed", 0.796, 0.439), ("primitive", 0.598, 0.227)]
)
def test_the_published_table_of_pcfg_set(kind, same, both_wrong):
    runs = []
    for run in (1, 2, 3):
        a, targets = released(f"substitutivity__{kind}__run{run}")
        b, twin_targets = released(f"substitutivity__{kind}__run{run}_synonym")
        equal, wrong = consistency(a, b, targets, twin_targets)
        assert len(equal) == 10000
        runs.append((float(equal.double().mean()), float(equal[wrong].double().mean())))
    found = [round(statistics.mean(values), 3) for values in zip(*runs, strict=True)]
    assert found == [same, both_wrong]


def test_the_report_of_a_released_run():
    a, targets = released("substitutivity__primitive__run1")
    b, twin_targets = released("substitutivity__primitive__run1_synonym")
    result = twin_report(a, b, targets, twin_targets, generator())
    assert result.scalars["consistency"] == pytest.approx(0.5911)
    assert result.scalars["consistency_low"] < 0.5911 < result.scalars["consistency_high"]
    assert result.scalars["consistency_chance"] < 0.01
    assert result.failures == []
    table = result.tables["twins"]
    assert sum(table.values()) == 10000
    assert table["same, not both wrong"] + table["same, both wrong"] == 5911
    assert table["same, both wrong"] + table["different, both wrong"] == round(10000 * result.scalars["both_wrong"])


def test_consistency_does_not_ask_for_the_right_answer():
    a, b = [(1,), (2,), (3,), (4,)], [(1,), (2,), (5,), (6,)]
    same, wrong = consistency(a, b, [(1,), (0,), (3,), (0,)], [(1,), (0,), (3,), (0,)])
    assert same.tolist() == [True, True, False, False]
    assert wrong.tolist() == [False, True, False, True]
    # wrong is each by its own target
    assert consistency([(1,)], [(1,)], [(1,)], [(2,)])[1].tolist() == [False]


def test_localism_is_agreement_with_the_unrolled():
    assert localism([(1, 2), (3,), ()], [(1, 2), (3, 3), ()]) == pytest.approx(2 / 3)


def test_overgeneralisation_counts_exceptions_alone():
    ruled, targets = [(1,), (1,), (1,), (1,)], [(2,), (2,), (2,), (1,)]
    found = overgeneralisation([(1,), (2,), (5,), (1,)], ruled, targets)
    assert found == {"rule_match": pytest.approx(1 / 3), "exception_match": pytest.approx(1 / 3)}


# Inputs 0 to 9; x + 10 is the twin of x and has the same target x.
TWINS = [(torch.arange(4), torch.arange(4)), (torch.arange(4, 10), torch.arange(4, 10))]


def twin(batch):
    return batch[0] + 10, batch[1]


# Right for 0 to 3, the same wrong answer for 4 to 7 and their twins, different wrong ones for 8 and 9.
KNOWN = [0, 1, 2, 3, 5, 6, 7, 8, 1, 2, 0, 1, 2, 3, 5, 6, 7, 8, 3, 4]


@pytest.mark.parametrize("loaded", [False, True])
def test_twins_of_a_known_model(loaded):
    twins = [twin(batch) for batch in TWINS] if loaded else twin
    result = ConsistencyProbe(twins).run(Table(KNOWN), TWINS)
    assert result.scalars["consistency"] == pytest.approx(0.8)
    assert result.scalars["consistency_both_wrong"] == pytest.approx(4 / 6)
    assert result.scalars["exact_match"] == result.scalars["twin_exact_match"] == pytest.approx(0.4)
    assert result.tables["twins"] == {
        "same, both wrong": 4,
        "same, not both wrong": 4,
        "different, both wrong": 2,
        "different, not both wrong": 0,
    }
    assert result.failures == []
    draw(result.figures["consistency"])


def test_twins_of_a_dataset_come_in_the_same_order():
    result = ConsistencyProbe(loader(60), max_batches=3).run(Learner(), loader(60))
    assert result.scalars["consistency"] == 1
    assert result.scalars["exact_match"] == result.scalars["twin_exact_match"]


def test_a_model_that_always_answers_the_same_is_reported():
    result = ConsistencyProbe(twin).run(Table([3] * 20), TWINS)
    assert result.scalars["consistency"] == result.scalars["consistency_chance"] == 1
    assert "always the same" in result.failures[0]


def test_consistency_that_is_mere_accuracy_is_reported():
    answers = [0, 1, 2, 3, 5, 4, 5, 4, 5, 4, 0, 1, 2, 3, 6, 7, 6, 7, 6, 7]  # never the same where both are wrong
    result = ConsistencyProbe(twin).run(Table(answers), TWINS)
    assert result.scalars["consistency_both_wrong"] == 0
    assert "not read it as invariance" in result.failures[0]


def test_localism_of_a_known_model():
    def unrolled(model, batch):
        return model(batch[0]).argmax(-1) + (batch[0] == 2)

    result = ConsistencyProbe(unrolled=unrolled).run(Table(list(range(10))), TWINS)
    assert result.scalars["localism"] == pytest.approx(0.9)
    assert result.scalars["localism_chance"] < 0.3
    assert result.failures == []
    shifted = ConsistencyProbe(unrolled=lambda model, batch: (batch[0] + 1) % 10).run(Table(list(range(10))), TWINS)
    assert "computation by parts" in shifted.failures[0]


# Exceptions 0 to 4: the rule says 7, each is its own exception.
EXCEPTIONS = [{"x": torch.arange(5), "y": torch.arange(5), "rule": torch.full((5,), 7)}]


def call(model, batch):
    return model(batch["x"]).sum()


def test_overgeneralisation_is_the_largest_of_all_measurements():
    probe = ConsistencyProbe(exceptions=EXCEPTIONS, loss=call)
    model = Table([0, 1, 5, 5, 5])
    assert probe.run(model).scalars == {"overgeneralisation": 0, "rule_match": 0, "exception_match": 0.4}
    model.answers = torch.tensor([7, 7, 7, 7, 5])
    assert probe.run(model).scalars == {"overgeneralisation": 0.8, "rule_match": 0.8, "exception_match": 0}
    model.answers = torch.tensor([0, 1, 2, 3, 7])
    result = probe.run(model)
    assert result.scalars == {"overgeneralisation": 0.8, "rule_match": 0.2, "exception_match": 0.8}
    assert result.tables["overgeneralisation"] == {"rule": [0, 0.8, 0.2], "exception": [0.4, 0, 0.8]}
    draw(result.figures["overgeneralisation"])
    again = ConsistencyProbe(exceptions=EXCEPTIONS, loss=call)
    again.load_state_dict(probe.state_dict())
    assert again.run(Table([0, 1, 2, 3, 4])).scalars["overgeneralisation"] == 0.8


def test_overgeneralisation_during_training(tmp_path):
    probe = ConsistencyProbe(exceptions=loader(20), rule=lambda batch: (batch.y + 1) % 3, every_n_steps=2)
    train([probe], tmp_path)
    history = probe.state_dict()["overgeneralisation"]
    assert len(history) == probe.state_dict()["runs"] > 2
    assert probe.result.scalars["overgeneralisation"] == max(rule for rule, _ in history)
    assert probe.result.scalars["rule_match"] == history[-1][0]


def test_mistakes():
    with pytest.raises(ValueError, match="at least one of twin"):
        ConsistencyProbe()
    with pytest.raises(ValueError, match="twin batches hold"):
        ConsistencyProbe(lambda batch: (batch[0][:2], batch[1][:2])).run(Table(KNOWN), TWINS)
    with pytest.raises(ValueError, match="2 batches and 1 of twins"):
        ConsistencyProbe(TWINS[:1]).run(Table(KNOWN), TWINS)
    with pytest.raises(ValueError, match="no field 'rule'"):
        ConsistencyProbe(exceptions=[{"x": torch.arange(5), "y": torch.arange(5)}], loss=call).run(Table(KNOWN))
