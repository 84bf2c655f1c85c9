"""Bandits: numbers of arms, their places, their probabilities."""

import numpy as np
import pytest

from algornn.datamodules import Bandits


def test_every_stage_has_its_numbers_of_arms_at_random_places():
    data = Bandits(test_examples=60)
    assert (data.input_size, data.output_size) == (41, 20)
    assert data.groups == ("arms_2", "arms_5", "arms_10", "arms_20")
    for stage, arms in (("val", {5}), ("seen", {5}), ("test", {2, 10, 20})):
        dataset = data.dataset(stage)
        items = [dataset[k] for k in range(60)]
        assert {int((item.probability >= 0).sum()) for item in items} == arms
        assert {data.groups[item.group] for item in items} == {f"arms_{count}" for count in arms}
        assert all(data.groups[item.group] == f"arms_{(item.probability >= 0).sum()}" for item in items)
        taken = np.stack([item.probability >= 0 for item in items]).mean(0)
        assert (taken > 0).all()
    assert data.examples("seen")[0].group == "arms_5"
    assert len(data.examples("seen")[0].source) == 5


def test_probabilities_are_uniform_and_new_in_every_stage_and_episode():
    data = Bandits()
    drawn = np.concatenate([data.dataset("train")[k].probability for k in range(400)])
    drawn = drawn[drawn >= 0]
    assert len(drawn) == 2000
    assert np.abs(np.histogram(drawn, 5, (0, 1))[0] - 400).max() < 80
    assert len(np.unique(drawn)) == 2000
    first = [data.dataset(stage)[0] for stage in ("train", "val", "seen")]
    assert len({item.seed for item in first}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": 0}, "arms"),
        ({"test_arms": (2, 30)}, "There are 20 places, too few for 30 arms"),
        ({"test_arms": (5,)}, "expected them without 5"),
        ({"test_arms": (0,)}, "test_arms"),
        ({"test_arms": ()}, r"expected at least one in a list, not \(\)"),
        ({"test_arms": 7}, "expected at least one in a list, not 7"),
        ({"test_examples": 2}, "test_examples are dealt to 3 numbers of arms, expected as many at least, not 2"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Bandits(**settings)
