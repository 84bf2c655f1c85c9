"""Few-shot images: streams of images of classes that no training stream has, each named after it was asked for."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from algornn.datamodules.files import search_dirs
from algornn.datamodules.in_context_digits import InContextDigits, TaskBatch, TaskStreams
from algornn.datamodules.split_datamodule import (
    ItemGenerators,
    SplitDataModule,
    check_positive,
    generator,
)

_TURNS = 4
_VALIDATION = 172  # characters of Omniglot's background set


class Source(NamedTuple):
    """Where the classes of a benchmark lie.

    Attributes:
        folders: Stage to the folder that holds its classes.
        depth: Folders from there down to those of the classes.
        mode: Of Pillow: "L" for grey, "RGB" for colours.
        size: Published width and height, in pixels.
        origin: Where to get it.
    """

    folders: dict[str, str]
    depth: int
    mode: str
    size: int
    origin: str


SOURCES = {
    "omniglot": Source(
        {"train": "images_background", "val": "images_background", "test": "images_evaluation"},
        2,  # alphabet, character
        "L",
        28,
        "unpack images_background.zip and images_evaluation.zip of https://github.com/brendenlake/omniglot there",
    ),
    "mini_imagenet": Source(
        {"train": "train", "val": "val", "test": "test"},
        1,
        "RGB",
        84,
        "sort the images of ImageNet into train/CLASS, val/CLASS and test/CLASS as Ravi and Larochelle (2017) do",
    ),
}


class FewShotStreams(TaskStreams):
    """Streams of images of a few classes.

    Args:
        draws: The generator of every stream.
        number: Number of streams.
        images: The images of every class, ``[n, size, size, channels]`` of bytes each.
        ways: Classes of a stream.
        shots: Images of every class before the last image.
        turned: Whether an image that is turned by 90, 180 or 270 degrees is one of another class.
        group: Name of the one group.
    """

    def __init__(
        self,
        draws: ItemGenerators,
        number: int,
        images: list[NDArray[np.uint8]],
        ways: int,
        shots: int,
        turned: bool,
        group: str,
    ) -> None:
        super().__init__(draws, number, group)
        self.images, self.ways, self.shots, self.turns = images, ways, shots, _TURNS if turned else 1

    def stream(self, draw: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
        """Images in rows, and their classes."""
        chosen = draw.permutation(len(self.images) * self.turns)[: self.ways]
        asked = int(draw.integers(self.ways))
        pictures, names = [], []
        for name, (which, turn) in enumerate(divmod(int(c), self.turns) for c in chosen):
            of_class = self.images[which]
            rows = draw.permutation(len(of_class))[: self.shots + (name == asked)]
            pictures += [np.rot90(of_class[row], turn) for row in rows]
            names += [name] * len(rows)
        last = max(row for row, name in enumerate(names) if name == asked)
        order = draw.permutation([row for row in range(len(names)) if row != last]).tolist()
        x = np.stack([pictures[row] for row in [*order, last]]).transpose(0, 3, 1, 2)
        y = np.array([names[row] for row in [*order, last]])
        return x.reshape(len(x), -1).astype(np.float32) / np.float32(255), y


class FewShotImages(SplitDataModule):
    """Streams of N K images of N unseen classes in random order, K of each, and one more image to be named.

    Which class has which name is drawn for every stream, so that only the stream can tell; the accuracy on its last
    image is that of N-way K-shot classification with labels told in sequence. Images are numbers from 0 to 1, channels
    first, in one row each; Omniglot's ink is 1.

    | split | train | val | test (out of distribution) |
    |---|---|---|---|
    | "omniglot" | 792 background characters, turned by quarters: 3,168 classes | 172 others | 659 of other alphabets |
    | "mini_imagenet" | 64 classes | 16 | 20 |

    Files: folders of images, one per class, as they are released; they are not downloaded. Omniglot:
    ``images_background/ALPHABET/CHARACTER/*.png`` and ``images_evaluation/...`` (Lake, Salakhutdinov and Tenenbaum
    2015, MIT). Mini-ImageNet: ``train/CLASS/*.jpg``, ``val/``, ``test/`` (Vinyals et al. 2016).

    Source: Vinyals et al. (2016), "Matching Networks for One Shot Learning"; Irie et al. (2022), "A Modern
    Self-Referential Weight Matrix That Learns to Modify Itself", section 4.2. Differs: Omniglot's classes are parted
    as its authors part them, alphabets apart, not at random into 1,028, 172 and 423.

    Args:
        split: One of the table.
        data_dir: The folder that holds the images' folders. None: `$ALGORNN_DATA/<split>`, then the user cache.
        batch_size: Streams per batch and process.
        seed: Seed of the streams, of Omniglot's val and of the order of training.
        ways: N.
        shots: K.
        image_size: Width and height in pixels; None: as published, 28 and 84.
        train_examples: Streams of an epoch.
        test_examples: Streams of every other stage.

    Raises:
        TypeError: A number that is not whole.
        ValueError: Unknown split, a number below 1, too few classes or images, or a file that is no image.
        FileNotFoundError: There are no such folders.

    Attributes:
        groups: The split.
        input_size: Numbers of an image.
        output_size: N.
    """

    benchmark = "few_shot_images"
    splits = tuple(SOURCES)
    ood = ("test",)

    def __init__(
        self,
        split: str = "omniglot",
        data_dir: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
        ways: int = 5,
        shots: int = 1,
        image_size: int | None = None,
        train_examples: int = 1_000_000,
        test_examples: int = 2000,
    ) -> None:
        super().__init__(split, data_dir, batch_size, seed)
        source = SOURCES[split]
        size = source.size if image_size is None else image_size
        check_positive(ways=ways, shots=shots, train_examples=train_examples, test_examples=test_examples)
        check_positive(image_size=size)
        self.source, self.size, self.ways, self.shots = source, size, ways, shots
        self.train_examples, self.test_examples = train_examples, test_examples
        self.groups = (split,)
        self.input_size, self.output_size = size**2 * len(source.mode), ways

    def dataset_of(self, stage: str) -> FewShotStreams:
        """The streams of a stage."""
        turned = self.split == "omniglot" and stage == "train"
        folders = self._classes(stage)
        if len(folders) * (_TURNS if turned else 1) < self.ways:
            raise ValueError(f"{self.split} {stage} has {len(folders)} classes, `ways` asks for {self.ways}.")
        images = [
            self._images(folder)
            for folder in tqdm(folders, f"{self.split} {stage}", delay=5, leave=False, unit="class")
        ]
        draws = ItemGenerators(self.benchmark, self.split, stage, self.seed, self.ways, self.shots)
        number = self.train_examples if stage == "train" else self.test_examples
        return FewShotStreams(draws, number, images, self.ways, self.shots, turned, self.split)

    def _classes(self, stage: str) -> list[Path]:
        """The folders of the classes of a stage."""
        names = tuple(dict.fromkeys(self.source.folders.values()))
        looked = search_dirs(self.split, self.data_dir)
        root = next((folder for folder in looked if all((folder / name).is_dir() for name in names)), None)
        if root is None:
            raise FileNotFoundError(
                f"The folders {', '.join(names)} of {self.split} are not in {', '.join(map(str, looked))}: "
                f"{self.source.origin}."
            )
        pattern = "/".join("*" * self.source.depth)
        classes = {name: [path for path in sorted((root / name).glob(pattern)) if path.is_dir()] for name in names}
        relative = [str(path.relative_to(root / name)) for name, paths in classes.items() for path in paths]
        if twice := sorted({name for name in relative if relative.count(name) > 1}):
            raise ValueError(f"Class {twice[0]} is in two of the folders of {root}, whose classes must be apart.")
        found = classes[self.source.folders[stage]]
        if self.split == "omniglot" and stage != "test":
            order = generator(self.benchmark, "val", self.seed).permutation(len(found))
            held_out = set(order[: min(_VALIDATION, len(found) // 2)].tolist())
            found = [path for row, path in enumerate(found) if (row in held_out) is (stage == "val")]
        return found

    def _images(self, folder: Path) -> NDArray[np.uint8]:
        """The images of a class."""
        images = list(self._read(folder))
        if len(images) <= self.shots:
            raise ValueError(f"{folder} has {len(images)} images, expected at least `shots` + 1 = {self.shots + 1}.")
        return np.stack(images)

    def _read(self, folder: Path) -> Iterator[NDArray[np.uint8]]:
        from PIL import Image

        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                try:
                    with Image.open(path) as image:
                        small = image.convert(self.source.mode).resize(
                            (self.size, self.size), Image.Resampling.BILINEAR
                        )
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise ValueError(f"{path} is damaged: expected an image ({error}); fetch it again.") from error
                pixels = np.asarray(small).reshape(self.size, self.size, -1)
                yield 255 - pixels if self.split == "omniglot" else pixels

    @staticmethod
    def collate(items: list[Any]) -> TaskBatch:
        """A batch of streams."""
        return InContextDigits.collate(items)
