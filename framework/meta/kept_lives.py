"""Long lives of fresh agents, kept while they last, so that a test that was killed goes on with them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from algornn.meta.agents import Agents

_EVERY = 300.0  # seconds between two writes: what a kill costs at most, and what is not worth a file


class KeptLives:
    """The lives of a test, of which those that last for minutes are written to a folder until the test is over.

    A file is named after all that a life depends on: a test by another rule, of other weights, worlds, sizes or length
    begins with lives of its own. What is read again goes on to the bit, since agents draw from their seeds and time.

    Args:
        folder: made where there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._files = folder, list[Path]()

    def updates(self, agents: Agents, lifetime: int, told: Iterable[Any], weights: dict[str, Tensor]) -> Iterator[int]:
        """Yield the updates that agents still have to take, after each of which they may be written.

        Args:
            agents: fresh ones; where they are known, they take up the life that was kept.
            lifetime: updates of a life.
            told: what else the life depends on, as text and numbers: the rule, the names of the worlds.
            weights: of all that is learned and that the rule follows.
        """
        file = self.folder / f"{_digest(agents, [lifetime, *told], weights)}.ckpt"
        self._files.append(file)
        if file.is_file():
            rows = torch.arange(len(agents), device=agents.seed.device)
            state = torch.load(file, map_location=agents.seed.device, weights_only=True)
            agents.load_state_dict(state, rows, rows)
            rank_zero_info(f"These agents go on from update {agents.time:,} of {lifetime:,}, which {file} kept.")
        written = time.monotonic()
        while agents.time < lifetime:
            yield agents.time
            over = agents.time >= lifetime and file.is_file()  # whole lives count when the next one is killed
            if over or time.monotonic() - written >= _EVERY:
                self.folder.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".part")
                torch.save(agents.state_dict(), partial)
                partial.replace(file)
                written = time.monotonic()

    def forget(self) -> None:
        """Remove the files of this test, which is over."""
        for file in self._files:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # files of others, or no folder
            self.folder.rmdir()


def _digest(agents: Agents, told: list[Any], weights: dict[str, Tensor]) -> str:
    """A name for what the lives of fresh agents depend on."""
    one = SimpleNamespace(seed=agents.seed[:1])
    worlds = [_settings(world(one)) for world in dict.fromkeys(agents.worlds)]
    found = hashlib.sha256(repr([told, _settings(agents), worlds]).encode())
    for name, x in sorted((agents.state_dict() | weights).items()):
        found.update(name.encode())
        found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:20]


def _settings(thing: Any) -> list[Any]:
    """The class and the numbers, words and tuples of them among the attributes."""
    plain = (bool, int, float, str, tuple)
    return [type(thing).__name__, *sorted((k, repr(v)) for k, v in vars(thing).items() if isinstance(v, plain))]
