"""What the command line says of a mistake: one plain sentence, with the closest valid name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentError, ArgumentParser

import algornn
import algornn.datamodules
import algornn.probes

ROOMS: dict[str, tuple[ModuleType, type]] = {
    "models": (algornn, torch.nn.Module),
    "learners": (algornn, lightning.LightningModule),
    "probes": (algornn.probes, algornn.probes.Probe),
    "splits": (algornn.datamodules, algornn.datamodules.SplitDataModule),
}

# Lines of the parser's messages that only repeat what it tried.
_PARSER_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate|Subtypes:|Errors:|Given value"
    r"|Problem with given|Not a valid subclass|Subclass types|a class path|a dict"
)

# The command line's own options, but for those of the trainer, which its signature tells.
_OPTIONS = (
    *("config", "run_dir", "ckpt_path", "seed_everything", "data", "model", "trainer", "recipe", "checkpoint"),
    *("resume_every_n_steps", "test_after_fit"),
)

# What to do about some of the parser's messages.
_HINTS = {
    "unrecognized": "--help lists all options",
    "not accept": "--help lists all options",
    "are required: probe": "give --probe CLASS, one of `algornn list probes`",
    "Expected a collections.abc.Sequence": """a list, even of one, is written as '["{value}"]'""",
    "to be a function that returns Tensor": "annotate what it returns: -> torch.Tensor",
    "arguments are required": "give --config RECIPE, or the --run_dir of a run",
}


def plain_sentence(error: BaseException) -> str:
    """Say what is wrong in one sentence; of the parser's many lines, the first that names the mistake."""
    text = str(error).strip() or type(error).__name__
    if not isinstance(error, ArgumentError) and not text.startswith("Does not validate"):
        return text
    key, keys = "", dict[int, str]()  # by how far they are indented
    kind = ""  # whose options are talked of
    for indented in text.splitlines():
        line = indented.strip(" -")
        depth = indented.index(line)
        line = line.rpartition("expects a function or a callable class: ")[2]  # another key may come after it
        kind = found[1] if (found := re.search(r"class_path[ =]'([\w.]+)'", line)) else kind
        if found := re.match(r'Parser key "(.+?)"', line):
            keys = {d: outer for d, outer in keys.items() if d < depth} | {depth: found[1]}
            key = f"{'.'.join(keys.values())}: "
        elif found := re.search(r"Expected a dot import path string: (\S+)|Import path (\S+)", line):
            name = found[1] or found[2]
            known = [known for room, _ in ROOMS.values() for known in room.__all__]
            if name in known:
                return (
                    f"{key}{name} is a class of another kind. `algornn list models|learners|probes|splits` shows all."
                )
            meant = [n for n in known if n.endswith("Probe")] if key == "probe: " else known
            return f"{key}no class is named {name!r}{closest(name, meant)}; one of your own is given as module.Class."
        elif (found := re.search(r"Option '(\w+)' is not accepted", line)) and (
            options := [option for option in _options_of(kind, "Callable[" in indented) if option != found[1]]
        ):
            told = closest(found[1], options) or f"; it has {', '.join(options)}"
            return f"{key}{kind.rpartition('.')[2]} has no option {found[1]!r}{told}."
        elif (found := re.search(r"nrecognized arguments:.*?--([\w.-]+)", line)) and not key:
            place, _, name = found[1].rpartition(".")
            options = list(inspect.signature(lightning.Trainer).parameters) if place == "trainer" else [*_OPTIONS]
            told = closest(name.replace("-", "_"), options)
            return f"There is no option --{found[1]}{told}; --help lists all options."
        elif found := re.search(r"Multiple subclasses with name (\w+)", line):
            return f"{key}several libraries have a class {found[1]}: write algornn.{found[1]}."
        elif line and not _PARSER_NOISE.match(line):
            line = re.sub(r"<class '([\w.]+)'>", r"\1", line.partition(". Got value: Namespace")[0])
            fitting = {part: hint for part, hint in _HINTS.items() if part in line}
            if key:  # what a class requires is no option of the command
                fitting.pop("arguments are required", None)
            value = line.rpartition("Got value: ")[2]
            return key + line + next((f" ({hint.replace('{value}', value)})" for hint in fitting.values()), "")
    return text.splitlines()[0]


def _options_of(kind: str, called: bool) -> list[str]:
    """Return the options that the parser takes for a class, those that it hands on as keywords among them.

    Args:
        kind: the class.
        called: whether the command line leaves to a caller what has no default.
    """
    try:
        found: Any = locate(kind)
        named = ArgumentParser(exit_on_error=False).add_class_arguments(found, fail_untyped=False)
        own = inspect.signature(found).parameters
    except (ValueError, TypeError, ImportError, ErrorDuringImport):
        return []
    names = dict.fromkeys(name.partition(".")[0] for name in named)
    return [name for name in names if not (called and name in own and own[name].default is inspect.Parameter.empty)]


def closest(name: str, known: Sequence[str]) -> str:
    """Return a question that names the closest of the known names; nothing where none is close."""
    names = {other.lower(): other for other in known}
    # Not the default of 0.6: names that only end alike, such as those of two probes, are no closer than that.
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.7)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
