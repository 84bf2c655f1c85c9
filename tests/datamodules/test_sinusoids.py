"""Sinusoids: what is drawn, and in which phases."""

import numpy as np
import pytest

from algornn.datamodules import Sinusoids


def waves(data, stage, number):
    """Amplitudes and phases of streams, solved for from their points by least squares."""
    found = []
    for k in range(number):
        item = data.dataset(stage)[k]
        features = np.concatenate([np.sin(item.x), np.cos(item.x)], 1)
        (s, c), rest, *_ = np.linalg.lstsq(features, item.y, rcond=None)
        assert rest < 1e-6
        found.append((np.hypot(s, c), np.arctan2(-c, s) % (2 * np.pi)))
    return np.array(found).T


def test_streams_are_waves_whose_phases_are_new_out_of_distribution():
    data = Sinusoids(length=30, test_examples=300)
    for stage, low in (("train", 0.0), ("test", 0.0), ("unseen_phases", np.pi)):
        amplitude, phase = waves(data, stage, 300)
        assert 0.1 <= amplitude.min() < 0.3
        assert 4.8 < amplitude.max() <= 5.001
        assert low - 1e-3 <= phase.min() < low + 0.1
        assert low + np.pi - 0.1 < phase.max() <= low + np.pi + 1e-3
        x = np.concatenate([data.dataset(stage)[k].x for k in range(300)])
        assert np.abs(x).max() == pytest.approx(5, abs=0.01)
        assert x.mean() == pytest.approx(0, abs=0.1)
    firsts = [data.dataset(stage)[0].y for stage in ("train", "val", "test")]
    assert not np.allclose(firsts[0], firsts[1])
    assert not np.allclose(firsts[1], firsts[2])


def test_batches_and_sizes():
    data = Sinusoids(batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (3, 40, 1)
    assert batch.y.shape == (3, 40)
    assert batch.y.is_floating_point()
    assert (data.input_size, data.output_size, data.ood) == (1, 1, ("unseen_phases",))


@pytest.mark.parametrize(("settings", "message"), [({"length": 0}, "length"), ({"split": "x"}, "waves")])
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sinusoids(**settings)
