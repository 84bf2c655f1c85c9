r"""Sites: places inside any model whose activation is read, or replaced, during one forward.

A site is written ``path:input[slot]@call``; everything but the path may be left out:

=====================  ==============================================================================================
``encoder.lstm``       the output of that module (its name in `model.named_modules()`; "" is the model itself)
``head:input``         the first argument of that module
``lstm[1][0][-1]``     a part of the output: index into tuples, lists and tensors, or the name of a field or key
``output[logits]``     a field of an output class, of a named tuple or of a dictionary
``head:input[mask]``   an argument by its name
``cell@2``, ``@-1``    that call of a module which one forward calls several times, from 0 or from the last
``cell@:``             all calls, stacked: T tensors ``[B, d]`` become ``[B, T, d]``
=====================  ==============================================================================================

Hooks live only while the block that sets them runs, on the probe's own copy of the model.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

_SITE = re.compile(r"(?P<path>[^\[\]:@]*)(?P<input>:input)?(?P<slots>(\[[^\[\]]+\])*)(@(?P<call>-?\d+|:))?")

Edit = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a model.

    Args:
        path: the module's name in the model.
        slots: how to get from the module's output (or arguments) to the tensor.
        call: which of the module's calls; ":" all of them; None: it has to be the only one.
        input: whether the site is among the arguments instead of the output.
    """

    path: str
    slots: tuple[int | str, ...] = ()
    call: int | str | None = None
    input: bool = False

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site from its text.

        Raises:
            ValueError: the text is no site.
        """
        match = _SITE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"A site is written 'path:input[slot]@call', such as 'lstm[1][0]@-1', got {text!r}.")
        slots = tuple(
            int(slot) if re.fullmatch(r"-?\d+", slot) else slot for slot in re.findall(r"\[(.+?)\]", match["slots"])
        )
        call = match["call"] if match["call"] in (None, ":") else int(match["call"])
        return cls(match["path"], slots, call, match["input"] is not None)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        slots = "".join(f"[{slot}]" for slot in self.slots)
        return f"{self.path}{':input' if self.input else ''}{slots}{'' if self.call is None else f'@{self.call}'}"

    def module(self, model: nn.Module) -> nn.Module:
        """The module that the site belongs to.

        Raises:
            ValueError: the model has no module of that name; the message offers the closest ones.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        if self.path not in modules:
            close = get_close_matches(self.path, modules, n=3, cutoff=0.3)
            raise ValueError(
                f"{type(model).__name__} has no module {self.path!r} for the site {str(self)!r}; "
                f"close names: {', '.join(close) or 'none'}."
            )
        return modules[self.path]


def activations(model: nn.Module, sites: Iterable[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Run a forward and return the activation of every site, in the order of the sites, detached.

    Args:
        model: whose modules the sites name.
        sites: their texts.
        run: calls the model once, directly or through a loss.

    Raises:
        ValueError: an unknown module, one that was not called, more than one call without `@`, or no tensor there.
    """
    parsed = {text: Site.parse(text) for text in sites}
    seen: dict[str, list[Any]] = {text: [] for text in parsed}

    def keep(text: str) -> Callable[[Any], None]:
        return lambda value: seen[text].append(value)

    with ExitStack() as stack:
        for text, site in parsed.items():
            stack.enter_context(_hooked(model, site, keep(text)))
        with torch.no_grad():
            run()
    return {text: _chosen(parsed[text], calls).detach() for text, calls in seen.items()}


@contextmanager
def replaced(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Within the block, put `edit(activation)` in the place of the activation at every site of `edits`.

    A site without `@` is edited at each call, as one with `@:` is.

    Raises:
        ValueError: at the forward: a call of a negative number, or a slot without a tensor.
    """
    with ExitStack() as stack:
        for text, edit in edits.items():
            stack.enter_context(_edited(model, Site.parse(text), edit))
        yield


def tensor_sites(model: nn.Module, *runs: tuple[Callable[[], Any], int]) -> list[str]:
    """Every site of a forward whose output is a floating-point tensor ``[B, ...]``, in the order of the calls.

    Modules that are called several times give one site per call. Module outputs only: inputs are outputs of others.

    Args:
        model: the model.
        runs: forwards and the sizes B of their batches. Two sizes tell a batch from a dimension that happens to have
            its size, such as the layers of a recurrent state.
    """
    found = [_batch_sites(model, run, size) for run, size in runs]
    return [site for site in found[0] if all(site in other for other in found[1:])]


def _batch_sites(model: nn.Module, run: Callable[[], Any], size: int) -> list[str]:
    found: list[str] = []
    counts: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            call = counts[path] = counts.get(path, -1) + 1
            for slots, tensor in _tensors(output):
                if tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) == size:
                    found.append(str(Site(path, slots, call)))

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    once = {path for path, last in counts.items() if last == 0}
    return [str(dataclasses.replace(s, call=None)) if s.path in once else str(s) for s in map(Site.parse, found)]


@contextmanager
def _hooked(model: nn.Module, site: Site, see: Callable[[Any], None]) -> Iterator[None]:
    """Show the site's module's arguments or output to `see` at each call."""
    module = site.module(model)
    if site.input:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: see(_argument(site, args, kwargs)), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda _, args, output: see(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _edited(model: nn.Module, site: Site, edit: Edit) -> Iterator[None]:
    """Edit the site at the chosen call."""
    module, count = site.module(model), -1
    if isinstance(site.call, int) and site.call < 0:
        raise ValueError(f"An activation can be replaced at calls counted from the first, got the site {str(site)!r}.")

    def due() -> bool:
        nonlocal count
        count += 1
        return site.call in (None, ":", count)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not due():
            return None
        name = next(iter(site.slots), None)
        if isinstance(name, str) and name in kwargs:
            return args, {**kwargs, name: _put(kwargs[name], site.slots[1:], edit, site)}
        if not args:  # the only argument was given by its name
            key = next(iter(kwargs))
            return args, {**kwargs, key: _put(kwargs[key], site.slots, edit, site)}
        first, rest = (name, site.slots[1:]) if isinstance(name, int) else (0, site.slots)
        changed = list(args)
        changed[first] = _put(args[first], rest, edit, site)
        return tuple(changed), kwargs

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return _put(output, site.slots, edit, site) if due() else None

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if site.input
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def _argument(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the slots of an input site index: the named arguments, else the positional ones, else the only one."""
    name = next(iter(site.slots), None)
    if isinstance(name, str) and name in kwargs:
        return kwargs
    if isinstance(name, int) and args:
        return args
    return args[0] if args else next(iter(kwargs.values()), None)


def _chosen(site: Site, calls: list[Any]) -> Tensor:
    """The tensor of the chosen call."""
    if not calls:
        raise ValueError(f"The module of the site {str(site)!r} was not called by the forward.")
    if site.call == ":":
        return torch.stack([_tensor(site, call) for call in calls], dim=1)
    if site.call is None and len(calls) > 1:
        raise ValueError(
            f"The module of the site {str(site)!r} was called {len(calls)} times in one forward: "
            f"write {site}@0 to {site}@{len(calls) - 1}, or {site}@: for all."
        )
    index = 0 if site.call is None else int(site.call)
    if not -len(calls) <= index < len(calls):
        raise ValueError(f"The site {str(site)!r} asks for a call that did not happen: there were {len(calls)}.")
    return _tensor(site, calls[index])


def _tensor(site: Site, value: Any) -> Tensor:
    """Follow the slots to a tensor."""
    inside = value
    for slot in site.slots:
        inside = _get(inside, slot, site)
    if isinstance(inside, Tensor):
        return inside
    offers = ", ".join(f"{site.path}{''.join(f'[{slot}]' for slot in slots)}" for slots, _ in _tensors(value))
    raise ValueError(
        f"There is a {type(inside).__name__} and no tensor at the site {str(site)!r}; there are tensors at: "
        f"{offers or 'none'}."
    )


def _get(value: Any, slot: int | str, site: Site) -> Any:
    try:
        if isinstance(value, Mapping) or isinstance(slot, int):
            return value[slot]
        return getattr(value, slot)
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ValueError(f"A {type(value).__name__} has no slot [{slot}], as the site {str(site)!r} asks.") from None


def _put(value: Any, slots: tuple[int | str, ...], edit: Edit, site: Site) -> Any:
    """A copy of `value` with `edit` applied at the end of the slots; the original is not changed."""
    if not slots:
        if not isinstance(value, Tensor):
            _tensor(site, value)
            raise ValueError(f"There is no tensor to replace at the site {str(site)!r}.")
        return edit(value)
    slot, rest = slots[0], slots[1:]
    inner = _put(_get(value, slot, site), rest, edit, site)
    if isinstance(value, tuple):
        if isinstance(slot, str):
            return value._replace(**{slot: inner})  # type: ignore[attr-defined]
        parts = [inner if i == slot % len(value) else part for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    changed = value.clone() if isinstance(value, Tensor) else copy.copy(value)
    if isinstance(slot, int) or isinstance(value, Mapping):
        changed[slot] = inner  # type: ignore[index]
    else:
        setattr(changed, slot, inner)
    return changed


def _tensors(value: Any, slots: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], Tensor]]:
    """All tensors in nested tuples, lists and dictionaries, with their slots."""
    if isinstance(value, Tensor):
        yield slots, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, (*slots, key))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _tensors(part, (*slots, index))
