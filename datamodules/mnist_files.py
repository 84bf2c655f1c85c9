"""The files of MNIST and of Fashion-MNIST, which is made like it: images of 28 x 28 bytes, and their classes."""

import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algornn.datamodules.files import DAMAGE, obtain

SIZE = 28
_KINDS = {"images": (3, (SIZE, SIZE)), "labels": (1, ())}  # what is in a file: number of its axes, all but the first


class Source(NamedTuple):
    """Where a benchmark's files are.

    Attributes:
        url: The folder of the compressed files.
        sha256: Name of a file to the hexadecimal digest of the compressed one.
    """

    url: str
    sha256: dict[str, str]


SOURCES = {
    "mnist": Source(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Source(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        {
            "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def files(benchmark: str, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """The four files of a benchmark by their names, plain or compressed; what is nowhere is downloaded.

    Raises:
        FileNotFoundError: A file is nowhere and no server answered.
        ValueError: A file is nowhere and the server's had another digest.
    """
    source = SOURCES[benchmark]
    return {
        name: obtain(benchmark, f"{name}.gz", f"{source.url}{name}.gz", sha256, data_dir)
        for name, sha256 in source.sha256.items()
    }


def read(path: Path) -> NDArray[np.uint8]:
    """The numbers of a file, images ``[n, 28, 28]`` or classes ``[n]``.

    The header is two bytes 0, the kind of number (8: bytes), the number of axes, and four bytes for the length of each.

    Raises:
        ValueError: The file is damaged, or holds something else.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except DAMAGE as error:
        raise ValueError(
            f"{path} is damaged: expected a complete gzip file ({error}); delete it and fetch it again."
        ) from error
    axes, rest = next(kind for name, kind in _KINDS.items() if name in path.name)
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(raw[4:start], ">i4").tolist()) if len(raw) >= start else ()
    if raw[:4] != bytes((0, 0, 8, axes)) or shape[1:] != rest or len(raw) - start != np.prod(shape):
        raise ValueError(
            f"{path} is damaged: expected bytes of shape [n{''.join(f', {size}' for size in rest)}] in the IDX format; "
            "delete it and fetch it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def images(
    benchmark: str, part: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images ``[n, 28, 28]`` and classes ``[n]`` of a part, "train" (60,000) or "t10k" (10,000).

    Raises:
        FileNotFoundError: A file is nowhere and no server answered.
        ValueError: A file is damaged, or images and classes are not as many.
    """
    found = files(benchmark, data_dir)
    pixels, classes = (read(found[name]) for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"))
    if len(pixels) != len(classes) or classes.max(initial=0) > 9:
        raise ValueError(
            f"{benchmark} has {len(pixels)} images and {len(classes)} classes up to {classes.max(initial=0)} in its "
            f"{part} files, expected as many, up to 9; fetch them again."
        )
    return pixels, classes.astype(np.int64)
