"""Gaussian clusters: what is drawn, and in which spread."""

import numpy as np
import pytest

from algornn.datamodules import GaussianClusters


def test_points_lie_around_centres_of_their_class_that_are_new_in_every_stream():
    data = GaussianClusters(length=400, classes=3, size=4, spread=2.0, test_examples=60)
    for stage, spread in (("train", 2.0), ("test", 2.0), ("closer", 1.0)):
        items = [data.dataset(stage)[k] for k in range(60)]
        means = np.stack([[item.x[item.y == c].mean(0) for c in range(3)] for item in items])
        within = np.concatenate([item.x - m[item.y] for item, m in zip(items, means, strict=True)])
        assert within.std() == pytest.approx(1.0, abs=0.02)
        assert means.std() == pytest.approx(spread, rel=0.1)
        assert set(items[0].y.tolist()) == {0, 1, 2}
    first = [data.dataset(stage)[0].x for stage in ("train", "val", "test")]
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first[1], first[2])


def test_batches_and_sizes():
    data = GaussianClusters(batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (3, 50, 8)
    assert batch.y.shape == (3, 50)
    assert (data.input_size, data.output_size) == (8, 5)
    assert data.ood == ("closer",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"spread": 0.0}, "spread is a standard deviation"), ({"classes": 0}, "classes"), ({"split": "x"}, "clusters")],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GaussianClusters(**settings)
