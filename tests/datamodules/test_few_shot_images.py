"""FewShotImages on folders of images that are painted here: classes, streams, pixels, and what goes wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from algornn import LSTM, InContextLearner, InContextNetwork, LinearTransformer, cli
from algornn.datamodules import FewShotImages
from algornn.models import ConvEncoder

SIZE = 16


def paint(folder, classes, images, mode="L", first=0):
    """Every image of a class shows its number: column `c` of the image is dark, by the image's own shade."""
    for c in range(first, first + classes):
        place = folder / f"class{c:02}"
        place.mkdir(parents=True)
        for n in range(images):
            pixels = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
            pixels[:, c] = 10 * n
            Image.fromarray(pixels).convert(mode).save(place / f"{n:02}.png")


@pytest.fixture
def omniglot(tmp_path):
    for name, alphabets in (("images_background", (0, 1)), ("images_evaluation", (2,))):
        for alphabet in alphabets:
            paint(tmp_path / name / f"alphabet{alphabet}", 5, 4)
    return tmp_path


@pytest.fixture
def mini_imagenet(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        paint(tmp_path / name, 5, 6, "RGB", first=5 * number)
    return tmp_path


def data_of(folder, split="omniglot", **settings):
    return FewShotImages(split, folder, **({"batch_size": 4, "test_examples": 40, "image_size": SIZE} | settings))


def column(image, channels=1):
    """The dark column of an image of the streams."""
    return int(image.reshape(channels, SIZE, SIZE)[0].mean(0).argmax())


def test_a_stream_has_k_images_of_n_classes_and_one_more(omniglot):
    data = data_of(omniglot, ways=3, shots=2)
    dataset = data.dataset("test")
    for index in range(40):
        x, y, group, own = dataset[index]
        assert x.shape == (7, SIZE**2)
        assert (group, own) == (0, index)
        assert sorted(np.bincount(y[:-1]).tolist()) == [2, 2, 2]
        columns = [column(image) for image in x]
        assert all(
            (a == b) == (c == d) for a, c in zip(y, columns, strict=True) for b, d in zip(y, columns, strict=True)
        )
        assert len({image.tobytes() for image in x}) == 7  # no image comes twice
        assert x.min() == 0
        assert 0.9 < x.max() <= 1  # the ink
    asked = [int(dataset[index].y[-1]) for index in range(40)]
    assert set(asked) == {0, 1, 2}
    orders = {tuple(dataset[index].y[:-1].tolist()) for index in range(40)}
    assert len(orders) > 10
    again = data_of(omniglot, ways=3, shots=2).dataset("test")
    assert all(np.array_equal(a, b) for a, b in zip(dataset[5][:2], again[5][:2], strict=True))
    other = data_of(omniglot, ways=3, shots=2, seed=1).dataset("test")
    assert not np.array_equal(dataset[5].x, other[5].x)


def test_classes_of_the_stages_are_apart_and_training_turns_characters(omniglot):
    data = data_of(omniglot)
    found = {stage: data._classes(stage) for stage in ("train", "val", "test")}
    assert [len(paths) for paths in found.values()] == [5, 5, 5]
    assert len({path for paths in found.values() for path in paths}) == 15
    assert data.dataset("train").turns == 4
    assert data.dataset("val").turns == data.dataset("test").turns == 1
    turned = [data.dataset("train")[index].x.reshape(-1, SIZE, SIZE) for index in range(20)]
    rows = [bool((x.mean(1) > 0.5).any()) for stream in turned for x in stream]  # a column that became a row
    assert 0.2 < np.mean(rows) < 0.8


def test_colours_come_channels_first(mini_imagenet):
    data = data_of(mini_imagenet, "mini_imagenet", ways=5)
    assert (data.input_size, data.output_size) == (3 * SIZE**2, 5)
    x = data.dataset("val")[0].x.reshape(-1, 3, SIZE, SIZE)
    assert np.array_equal(x[:, 0], x[:, 1])
    assert x.max() == 1  # the paper
    assert FewShotImages("mini_imagenet", mini_imagenet).input_size == 3 * 84**2
    assert FewShotImages("omniglot", mini_imagenet).input_size == 28**2


def test_images_of_any_size_are_scaled(omniglot):
    x = data_of(omniglot, image_size=8).dataset("test")[0].x
    assert x.shape == (6, 64)
    assert 0 <= x.min() <= x.max() <= 1


def test_a_network_behind_convolutions_learns_to_learn(omniglot):
    torch.manual_seed(0)
    data = data_of(omniglot, ways=2, batch_size=32)
    layer = lambda size: LinearTransformer(size, heads=2)  # noqa: E731
    encoder = lambda size: ConvEncoder(size, SIZE, 8, 2)  # noqa: E731
    learner = InContextLearner(InContextNetwork(SIZE**2, 2, layer, 32, synchronous=True, encoder=encoder))
    optimizer, losses = torch.optim.Adam(learner.parameters(), 1e-2), []
    dataset = data.dataset("train")
    for step in range(120):
        batch = data.collate([dataset[32 * step + row] for row in range(32)])
        loss = learner.loss(learner.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_recipe_runs(omniglot, tmp_path):
    run = ["fit", "--config", "omniglot_srwm", "--run_dir", str(tmp_path / "run"), "--data.init_args.data_dir"]
    run += [str(omniglot), "--data.init_args.batch_size", "4", "--data.init_args.test_examples", "8"]
    cli.main([*run, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"])
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_what_is_missing_or_damaged_is_named(omniglot, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"folders train, val, test of mini_imagenet are not in .*: sort the images"
    ):
        data_of(omniglot, "mini_imagenet").dataset("train")
    with pytest.raises(ValueError, match="omniglot test has 5 classes, `ways` asks for 6"):
        data_of(omniglot, ways=6).dataset("test")
    with pytest.raises(ValueError, match=r"class00 has 4 images, expected at least `shots` \+ 1 = 5"):
        data_of(omniglot, shots=4).dataset("test")
    for name in ("ways", "shots", "image_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            data_of(omniglot, **{name: 0})
    file = omniglot / "images_evaluation" / "alphabet2" / "class00" / "00.png"
    whole = file.read_bytes()
    for damaged in (b"no image", whole[:11] + b"\0" + whole[12:], whole[:45]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00\.png is damaged: expected an image"):
            data_of(omniglot).dataset("test")
    for wrong in (100, 84 * 84, 3 * 84 * 84):
        with pytest.raises(ValueError, match=f"`image_size` 28 must be the width of .* images of {wrong} numbers"):
            ConvEncoder(wrong)
    with pytest.raises(TypeError, match="LSTM gives a tuple"):
        InContextNetwork(4, 2, LinearTransformer, 8, encoder=LSTM)


def test_classes_of_two_folders_are_refused(mini_imagenet):
    paint(mini_imagenet / "val", 1, 6, "RGB", first=0)
    with pytest.raises(ValueError, match="is in two of the folders"):
        data_of(mini_imagenet, "mini_imagenet").dataset("train")


def test_a_network_that_is_made_leaves_the_statistics_of_its_encoder_alone():
    encoder = InContextNetwork(256, 2, LinearTransformer, 8, encoder=lambda size: ConvEncoder(size, 16, 8, 2)).encoder
    assert encoder.training
    assert encoder.blocks[0][1].num_batches_tracked == 0
    assert not encoder.blocks[0][1].running_mean.any()


def test_images_too_small_for_the_blocks_are_refused():
    with pytest.raises(ValueError, match="at least 16 for 4 blocks"):
        ConvEncoder(64, image_size=8)
