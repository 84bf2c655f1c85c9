"""Long lives of fresh agents, kept while they last, so that a test that was killed goes on with them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from algornn.meta.agents import Agents

_EVERY = 60.0  # seconds: what a kill costs of a life, and what is too short to be worth a file


class KeptLives:
    """The lives of a test, of which those that last for minutes are written to a folder until the test is over.

    A file is named after what a life depends on: seeds, weights, plain attributes and the source of the agents, of
    their worlds, of the rule and of this package. A test that differs in these begins with lives of its own. What is
    read again goes on to the bit, since agents draw from their seeds and their time. The folder may be deleted at will.

    Args:
        folder: made where there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._files = folder, list[Path]()

    def updates(
        self, agents: Agents, lifetime: int, told: Iterable[Any], rule: nn.Module | Callable[..., Any]
    ) -> Iterator[int]:
        """Yield the updates that agents still have to take, after each of which they may be written.

        Args:
            agents: fresh ones; where they are known, they take up the life that was kept.
            lifetime: updates of a life.
            told: what else the life depends on, in text and numbers.
            rule: what the agents learn by.
        """
        file = self.folder / f"{_digest(agents, [lifetime, *told], rule)}.ckpt"
        self._files.append(file)
        if _taken_up(agents, file):
            rank_zero_info(f"These agents go on from update {agents.time:,} of {lifetime:,}, which {file} kept.")
        begun = written = time.monotonic()
        while agents.time < lifetime:
            yield agents.time
            now = time.monotonic()
            over = agents.time >= lifetime and now - begun >= _EVERY  # it counts when a later life is killed
            if over or now - written >= _EVERY:
                _write(agents, file)
                written = now

    def forget(self) -> None:
        """Remove the files of this test, which is over."""
        for file in self._files:
            for leftover in (file, *self.folder.glob(f"{file.stem}.*.part")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):  # files of others, or no folder
            self.folder.rmdir()


def _taken_up(agents: Agents, file: Path) -> bool:
    """Let agents take up the life in a file, if there is one that can be read."""
    try:
        state = torch.load(file, map_location=agents.seed.device, weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError):
        rank_zero_warn(f"{file} is damaged: these agents begin anew.")
        return False
    rows = torch.arange(len(agents), device=agents.seed.device)
    agents.load_state_dict(state, rows, rows)
    return True


def _write(agents: Agents, file: Path) -> None:
    """Write agents beside their place, then move them there; a life that cannot be kept goes on all the same."""
    part = file.with_suffix(f".{os.getpid()}.part")  # another process may keep the same life
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Clones: of a view torch would write all that it is a view of.
        torch.save({name: x.detach().cpu().clone() for name, x in agents.state_dict().items()}, part)
        part.replace(file)
    except (OSError, RuntimeError) as error:
        rank_zero_warn(f"These agents cannot be kept in {file}: {error}.")


def _digest(agents: Agents, told: list[Any], rule: nn.Module | Callable[..., Any]) -> str:
    """A name for what the lives of fresh agents depend on."""
    one = SimpleNamespace(seed=agents.seed[:1])
    parts = [agents, *(world(one) for world in dict.fromkeys(agents.worlds))]
    parts += rule.modules() if isinstance(rule, nn.Module) else []
    found = hashlib.sha256(repr([told, [_settings(part) for part in parts]]).encode())
    weights = rule.state_dict() if isinstance(rule, nn.Module) else {}
    for name, x in sorted((agents.state_dict() | weights).items()):
        found.update(name.encode())
        found.update(_bytes(x))
    function = rule.func if isinstance(rule, partial) else rule
    classes = [kind for part in parts for kind in type(part).__mro__]
    for source in sorted({*Path(__file__).parent.glob("*.py"), *map(_source, [function, *classes])}):
        if source.is_file():
            found.update(source.read_bytes())
    return found.hexdigest()[:20]


def _settings(part: Any) -> list[Any]:
    """The class of something, and the numbers, words and tuples among its attributes."""
    plain = (bool, int, float, str, tuple)
    return [type(part).__name__, *sorted((k, repr(v)) for k, v in vars(part).items() if isinstance(v, plain))]


def _source(thing: Any) -> Path:
    """The file that a class or a function is defined in."""
    module = sys.modules.get(getattr(thing, "__module__", ""))
    return Path(getattr(module, "__file__", None) or "")


def _bytes(x: Tensor) -> bytes:
    """Of any number of agents and kind of numbers: numpy has no bfloat16, and a row alone may have any stride."""
    flat = x.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()
