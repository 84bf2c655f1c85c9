"""The files of MNIST: their format, what is wrong with them, and the streams that are made of them."""

import gzip
import hashlib

import numpy as np
import pytest

from algornn.datamodules import InContextDigits, mnist_files

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(numbers):
    """The bytes of a file."""
    lengths = b"".join(size.to_bytes(4, "big") for size in numbers.shape)
    return bytes((0, 0, 8, numbers.ndim)) + lengths + numbers.astype(np.uint8).tobytes()


def drawn(part, seed=0, n=40):
    """Images whose class is the place of their bright row, and classes."""
    draw = np.random.default_rng([seed, len(part)])
    classes = draw.permutation(n) % 10
    images = draw.integers(0, 50, (n, 28, 28))
    images[np.arange(n), classes] += 200
    return images, classes


@pytest.fixture
def folder(tmp_path):
    """A folder with the four files, one of them plain."""
    for part in ("train", "t10k"):
        images, classes = drawn(part)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(classes))
    return tmp_path


@pytest.mark.parametrize("benchmark", ["mnist", "fashion_mnist"])
def test_what_was_written_is_read(folder, benchmark):
    for part in ("train", "t10k"):
        images, classes = mnist_files.images(benchmark, part, folder)
        assert np.array_equal(images, drawn(part)[0])
        assert np.array_equal(classes, drawn(part)[1])
        assert (images.dtype, classes.dtype) == (np.uint8, np.int64)


def test_streams_of_them_are_standardised_by_the_images_of_training(folder):
    data = InContextDigits("mnist", data_dir=folder, length=20, image_size=14)
    train, test = data.dataset("train"), data.dataset("test")
    assert (data.input_size, data.output_size, data.groups) == (196, 10, ("digits",))
    pixels = drawn("train")[0].reshape(40, 14, 2, 14, 2).mean((2, 4)).reshape(40, 196)
    others = drawn("t10k")[0].reshape(40, 14, 2, 14, 2).mean((2, 4)).reshape(40, 196)
    scale = (pixels - pixels.mean(0)).std()
    assert train.images == pytest.approx((pixels - pixels.mean(0)) / scale, abs=1e-5)
    assert test.images == pytest.approx((others - pixels.mean(0)) / scale, abs=1e-5)
    assert data.dataset("val").images is train.images  # no second copy of 60,000
    plain = data.dataset("unprojected")[0]
    assert plain.x.shape == (20, 196)
    named = {row.tobytes(): int(c) for row, c in zip(test.images, drawn("t10k")[1], strict=True)}
    assert [named[row.tobytes()] for row in plain.x] == plain.y.tolist()
    assert InContextDigits("fashion_mnist", data_dir=folder).groups == ("clothes",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "damaged: expected bytes of shape"),
        (IMAGES, idx(np.zeros((4, 28, 27))), r"expected bytes of shape \[n, 28, 28\]"),
        (IMAGES, idx(np.zeros((40, 28, 28)))[:-1], "damaged"),
        (LABELS, idx(np.zeros((40, 1))), r"expected bytes of shape \[n\]"),
        (LABELS, idx(np.zeros(39)), "40 images and 39 classes"),
        (LABELS, idx(np.full(40, 10)), "classes up to 10"),
    ],
)
def test_wrong_files_are_refused(folder, name, content, message):
    for path in folder.glob(f"{name}*"):
        path.unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mnist_files.images("mnist", "train", folder)


def test_a_file_that_is_cut_short_or_has_too_few_images_is_refused(folder):
    path = folder / f"{IMAGES}.gz"
    with pytest.raises(ValueError, match="a file of 40 images, too few for streams of 100"):
        InContextDigits("mnist", data_dir=folder).dataset("val")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged: expected a complete gzip file"):
        mnist_files.images("mnist", "train", folder)


def test_what_is_at_hand_nowhere_is_downloaded_compressed_and_checked(folder, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            raw = path.read_bytes()
            (served / f"{path.name.removesuffix('.gz')}.gz").write_bytes(raw if path.suffix else gzip.compress(raw))
    digests = {
        path.name.removesuffix(".gz"): hashlib.sha256(path.read_bytes()).hexdigest() for path in served.iterdir()
    }
    monkeypatch.setitem(mnist_files.SOURCES, "mnist", mnist_files.Source(f"{served.as_uri()}/", digests))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALGORNN_DATA", raising=False)
    data = InContextDigits("mnist", length=10)
    data.prepare_data()
    assert sorted(path.name for path in (tmp_path / "cache/algornn/mnist").iterdir()) == sorted(
        f"{name}.gz" for name in digests
    )
    assert np.array_equal(mnist_files.images("mnist", "train")[0], drawn("train")[0])
    wrong = mnist_files.Source(f"{served.as_uri()}/", dict.fromkeys(digests, "0" * 64))
    monkeypatch.setitem(mnist_files.SOURCES, "mnist", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"-ubyte \(or \S+-ubyte.gz\) is in none"):
        data.prepare_data()
