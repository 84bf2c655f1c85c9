"""ExampleScores: an example counts once, however often and wherever it was scored."""

import pytest
import torch

from algornn.learners import ExampleScores

GROUPS = ("easy", "hard", "absent")
IDS = torch.tensor([4, 0, 2, 1])
CORRECT = torch.tensor([True, False, True, True])
ONE = torch.ones(4, dtype=torch.long)  # answers that an example asks for
LOSS = torch.tensor([0.5, 2.0, 0.25, 1.0])
GROUP = torch.tensor([0, 1, 1, 0])
WANTED = {
    "loss": 0.9375,
    "sequence_accuracy": 0.75,
    "examples": 4,
    "easy/sequence_accuracy": 1.0,
    "easy/examples": 2,
    "hard/sequence_accuracy": 0.5,
    "hard/examples": 2,
}


def scored(*parts):
    scores = ExampleScores(6, GROUPS)
    for rows in parts:
        scores.update(IDS[rows], CORRECT[rows], ONE[rows], LOSS[rows], GROUP[rows])
    return scores


def values(scores):
    return {key: value.item() for key, value in scores.compute().items()}


def in_two_processes(one, other):
    """`one` in the process that gathers every state from both."""

    def gather(state, group):
        (name,) = [name for name in ("right", "asked", "group", "loss") if getattr(one, name) is state]
        return [state, getattr(other, name)]

    one.dist_sync_fn, one.distributed_available_fn = gather, lambda: True
    return one


def test_scores_in_all_and_by_group():
    assert values(scored([0, 1, 2, 3])) == WANTED


def test_repeats_count_once():
    assert values(scored([0, 1, 2, 3], [0, 0, 3], [1])) == WANTED
    assert values(scored([0, 1, 2, 3, 3, 3, 2])) == WANTED


@pytest.mark.parametrize("halves", [([0, 1], [2, 3]), ([0, 2, 1], [3, 1]), ([0, 1, 2, 3], [1]), ([3], [0, 1, 2])])
def test_two_processes_are_one(halves):
    for order in (halves, halves[::-1]):
        one, other = (scored(rows) for rows in order)
        assert values(in_two_processes(one, other)) == WANTED
        assert values(other) != WANTED or sorted(order[1]) == [0, 1, 2, 3]  # alone it knows only its own


def test_several_answers_per_example():
    scores = ExampleScores(6, GROUPS)
    scores.update(IDS, torch.tensor([3, 2, 0, 1]), torch.tensor([3, 4, 2, 1]), LOSS, GROUP)
    found = values(scores)
    assert (found["sequence_accuracy"], found["token_accuracy"]) == (0.5, pytest.approx(0.6))
    assert (found["easy/token_accuracy"], found["hard/token_accuracy"]) == (1.0, pytest.approx(2 / 6))


def test_without_groups():
    scores = ExampleScores(6)
    scores.update(IDS, CORRECT, ONE, LOSS)
    assert values(scores) == {key: value for key, value in WANTED.items() if "/" not in key}


def test_reset_forgets():
    scores = scored([0, 1, 2, 3])
    scores.reset()
    scores.update(IDS[:1], CORRECT[:1], ONE[:1], LOSS[:1], GROUP[:1])
    assert values(scores)["examples"] == 1
    assert "hard/examples" not in values(scores)


def test_half_precision_losses_and_large_sets():
    scores = ExampleScores(20_000)
    half = torch.full((20_000,), 0.1, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.arange(20_000)
    scores.update(ids, ids % 4 == 0, torch.ones_like(ids), half)
    found = scores.compute()
    assert (found["sequence_accuracy"].item(), found["examples"].item()) == (0.25, 20_000)
    assert found["loss"].item() == pytest.approx(half[0].item(), rel=1e-6)
    assert not found["loss"].requires_grad
