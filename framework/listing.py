"""What `algornn list` shows."""

from __future__ import annotations

import lightning as L

from algornn import recipes
from algornn.messages import ROOMS


def list_names(what: str) -> list[str]:
    """Return the names of the models, learners, probes, splits or recipes with one line each.

    Raises:
        ValueError: `what` is none of them.
    """
    if what == "recipes":
        return _aligned({name: recipes.about(name) for name in recipes.names()})
    if what not in ROOMS:
        raise ValueError(f"`algornn list` takes models, learners, probes, splits or recipes, got {what!r}.")
    room, base = ROOMS[what]
    classes = {name: getattr(room, name) for name in sorted(room.__all__)}
    listed = {name: c for name, c in classes.items() if isinstance(c, type) and issubclass(c, base) and c is not base}
    if what == "splits":
        listed = {name: c for name, c in listed.items() if hasattr(c, "splits")}
    learners = what == "learners"
    return _aligned({name: _about(c) for name, c in listed.items() if issubclass(c, L.LightningModule) == learners})


def _aligned(abouts: dict[str, str]) -> list[str]:
    width = max(map(len, abouts), default=0)
    return [f"{name:{width}s}  {about}" for name, about in abouts.items()]


def _about(listed: type) -> str:
    splits = getattr(listed, "splits", ())
    about = (listed.__doc__ or "").strip().splitlines()[0]
    return about + (f" Splits: {', '.join(splits)}." if splits else "")
