"""What a long measurement has so far, in a file, so that the same measurement goes on after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

SECONDS = 30.0  # of work that an interruption may cost


class Unfinished:
    """One piece of work's file, ``<folder>/unfinished/<name>-<digest>.pt``; without a folder nothing is kept.

    The digest is that of everything the work depends on, so what was begun for another model, other data or other
    settings is never taken up.

    Args:
        folder: where the probe's results go.
        name: of the work, for the reader of the folder.
        key: what the work depends on: tensors, arrays, numbers and texts, in tuples, lists, dicts and dataclasses.
    """

    def __init__(self, folder: Path | None, name: str, key: Any) -> None:
        self.file = None if folder is None else folder / "unfinished" / f"{name}-{digest(key)[:16]}.pt"
        self._saved = time.monotonic()

    def load(self) -> Any:
        """What `save` wrote last; None if there is nothing, or nothing that can be read."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            return torch.load(self.file, weights_only=True)
        except Exception:  # a file that a full disk cut short costs the work in it, not the measurement
            return None

    def due(self) -> bool:
        """Whether `SECONDS` have gone since the last `save`."""
        return self.file is not None and time.monotonic() - self._saved >= SECONDS

    def save(self, value: Any) -> None:
        """Write tensors, numbers and texts, all at once or not at all; without space for them, warn and go on."""
        if self.file is not None:
            partial = self.file.with_suffix(f".{os.getpid()}.part")
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(value, partial)
                partial.replace(self.file)
            except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
                with contextlib.suppress(OSError):
                    partial.unlink()
                text = f"{self.file} cannot be written, so an interruption costs all that is learned: {error}"
                warnings.warn(text, stacklevel=2)
        self._saved = time.monotonic()


def clear(folder: Path | None) -> None:
    """Remove what is unfinished in a folder: its measurement is complete."""
    if folder is not None:
        shutil.rmtree(folder / "unfinished", ignore_errors=True)


def digest(key: Any) -> str:
    """A hash of all leaves and of how they are nested."""
    leaves, structure = tree_flatten(key)
    found = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found.update(f"{leaf.dtype}{list(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, np.ndarray):
            found.update(f"{leaf.dtype}{leaf.shape}".encode())
            found.update(leaf.tobytes())
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):  # their text leaves out most of a tensor
            found.update(digest({field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}).encode())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()
