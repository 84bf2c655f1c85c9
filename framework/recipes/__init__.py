"""Recipes: one YAML file per published number or demonstration."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def path(name: str) -> str:
    """Return the file of a configuration: `name` itself where it is a file, else the packaged recipe of that name.

    Raises:
        FileNotFoundError: neither exists.
    """
    if Path(name).is_file():
        return name
    if name in names():
        return str(FOLDER / f"{name}.yaml")
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise FileNotFoundError(f"No file and no recipe named {name!r}{hint} `algornn list recipes` shows all.")


def about(name: str) -> str:
    """Return the one sentence that a recipe says of itself."""
    return yaml.safe_load(Path(path(name)).read_text())["recipe"]["about"]
