"""What a probe measures: an isolated copy of the model, fixed batches, and one way to share work between processes."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from algornn.probes.batches import Batches
from algornn.probes.model_copy import call_with, copy_of
from algornn.probes.sites import activations

Loss = Callable[[Callable[..., Any], Any], Tensor]


class ProbeError(RuntimeError):
    """A measurement failed on some process; raised on all of them together, so that none waits for another."""

    out_of_memory = False


@dataclass
class Subject:
    """An isolated view of a model, handed to `Probe.measure`.

    Args:
        model: a copy in eval mode, floating-point halves as float32, no gradient required, no trainer attached.
        loader: the batches to measure on, the same on every process.
        loss: `loss(call, batch) -> scalar`, where `call(*args)` stands for the model's forward.
        device: where model and batches are.
        generator: for randomness outside of `map`; the same on every process.
        seed: seeds `generator` and, together with the item's index, the generator of each item of `map`.
        rank: index of this process.
        world: number of processes.
        folder: where a long measurement may keep what it has so far (see `algornn.probes.unfinished`); None: nowhere.
    """

    model: nn.Module
    loader: Batches
    loss: Loss
    device: torch.device
    generator: torch.Generator
    seed: int = 0
    rank: int = 0
    world: int = 1
    folder: Path | None = None

    def map(self, function: Callable[[Any, torch.Generator], Any], items: Iterable[Any]) -> list[Any]:
        """Apply `function(item, generator)` to every item, shared out over the processes.

        Item i is done by process i modulo `world`. Its generator and the global random state are set from (seed, i),
        and the model begins it with the buffers and attributes that it had before the first one. Every process returns
        all results in the order of the items, tensors on the CPU, so a reduction over them gives bit for bit the same
        value on any number of processes.

        Raises:
            ProbeError: `function` failed on some process (on a single process its own error is raised).
        """
        items, results, error = list(items), {}, None
        restore = _restorer(self.model)
        try:
            for index in range(self.rank, len(items), self.world):
                seed = _seed(self.seed, index)
                _seed_globally(seed, self.device)
                generator = torch.Generator(self.device).manual_seed(seed)
                results[index] = apply_to_collection(function(items[index], generator), Tensor, _to_cpu)
                restore()
        except Exception as raised:
            error = raised
        gathered = exchange(results, self.world, error)
        return [gathered[index % self.world][index] for index in range(len(items))]

    def forward(self, batch: Any, model: nn.Module | None = None, gradient: bool = False) -> Any:
        """The output of the model for a batch, driven by the loss: its last call's.

        Args:
            batch: one of `loader`.
            model: takes the place of the subject's model, for a control. It works on copies of its buffers, so what it
                answers does not depend on the batches that this process had before.
            gradient: whether to record the graph, for gradients of what replaces activations.

        Raises:
            ValueError: the loss never calls the model.
        """
        outputs: list[Any] = []
        model = self.model if model is None else model
        buffers = {} if model is self.model else {name: buffer.clone() for name, buffer in model.named_buffers()}

        def recorded(*args: Any, **kwargs: Any) -> Any:
            outputs.append(call_with(model, buffers, *args, **kwargs) if buffers else model(*args, **kwargs))
            return outputs[-1]

        with torch.set_grad_enabled(gradient):
            self.loss(recorded, batch)
        if not outputs:
            raise ValueError("The loss never calls the model: loss(call, batch) must use call(*forward_args).")
        return outputs[-1]

    def activations(self, sites: Iterable[str], batch: Any, model: nn.Module | None = None) -> dict[str, Tensor]:
        """The activations of one forward at `sites` (see `algornn.probes.sites`), detached.

        Args:
            sites: texts of sites of the model.
            batch: one of `loader`.
            model: takes the place of the subject's model, for a control.
        """
        model = self.model if model is None else model
        return activations(model, sites, lambda: self.forward(batch, model))


def _restorer(model: nn.Module) -> Callable[[], None]:
    """A function that gives the modules back the attributes and the values of buffers that they have now.

    A model that keeps a state between forwards, as a buffer or not, would answer by what its process did before.
    """
    held = [(vars(m), dict(vars(m)), m._buffers, dict(m._buffers)) for m in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def restore() -> None:
        for own, attributes, buffers, named in held:
            own.clear()
            own.update(attributes)
            buffers.clear()
            buffers.update(named)
        for buffer, value in values:
            buffer.copy_(value)

    return restore


def exchange(value: Any, world: int, error: Exception | None = None) -> list[Any]:
    """Gather one picklable value per process; an error of any process is raised on all.

    This is the only collective of a measurement, so a process that fails anywhere meets the others here.

    Raises:
        ProbeError: some process passed an error (on a single process that error itself is raised).
    """
    if world == 1:
        if error is not None:
            raise error
        return [value]
    ours = None if error is None else (f"{type(error).__name__}: {error}", is_out_of_memory(error))
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, (None if error else value, ours))
    failures = [(rank, *theirs) for rank, (_, theirs) in enumerate(gathered) if theirs is not None]
    if failures:
        text = "; ".join(f"process {rank}: {message}" for rank, message, _ in failures)
        joint = ProbeError(f"The measurement failed on {text}")
        joint.out_of_memory = all(memory for _, _, memory in failures)
        raise joint from error
    return [entry for entry, _ in gathered]


def joint_copy(model: nn.Module, rank: int, world: int) -> nn.Module:
    """Copy a live model (see `copy_of`); the copies of all processes have the buffers of the first one's.

    Data-parallel training lets running statistics differ: each process updates them with its own examples, until the
    next forward takes over those of the first process.

    Raises:
        ProbeError: some process could not copy it (on a single process its own error is raised).
    """
    twin, buffers, error = model, list[Tensor](), None
    try:
        twin = copy_of(model)
        buffers = list(twin.buffers())
    except Exception as raised:
        error = raised
    first = exchange([_to_cpu(buffer) for buffer in buffers] if rank == 0 else None, world, error)[0]
    for buffer, value in zip(buffers, first, strict=True):
        buffer.copy_(value)
    return twin


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that an accelerator's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or getattr(error, "out_of_memory", False)


@contextlib.contextmanager
def isolated(device: torch.device, seed: int) -> Iterator[None]:
    """Run a block with its own random state, gradients enabled and autocast off; restore all of it whatever happens.

    Covers `random`, numpy's global state, torch's CPU generator and that of `device` (of no other accelerator),
    grad mode, inference mode and autocast. Inside, all of them start from `seed`.
    """
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(device.type, enabled=False),
        ):
            _seed_globally(seed, device)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002


def loss_of(model: nn.Module, loss: Loss | None) -> Loss:
    """The loss that a probe uses: the user's, else the LightningModule's `loss(call, batch)`, else cross-entropy."""
    if loss is not None:
        return loss
    own: Any = getattr(model, "loss", None)
    # Many LightningModules have another loss, of (logits, y): the name of the first argument tells.
    offers = isinstance(model, LightningModule) and inspect.ismethod(own)
    return own if offers and [*inspect.signature(own).parameters][:1] == ["call"] else cross_entropy


def cross_entropy(call: Callable[..., Any], batch: Any) -> Tensor:
    """Cross-entropy of `call(x)` against y for batches (x, y), pairs or with fields of these names.

    Logits are ``[B, C]`` for y ``[B]`` and ``[B, ..., C]`` for y ``[B, ...]``, as predictions are read; where these do
    not fit, ``[B, C, ...]``, as torch has them. No other field of the batch is read.

    Raises:
        TypeError: the batch is not a pair and has no fields x and y.
        ValueError: the output and y do not fit.
    """
    x, y = _x_and_y(batch)
    output = call(x)
    try:
        if isinstance(output, Tensor) and isinstance(y, Tensor) and y.ndim > 1 and output.shape[:-1] == y.shape:
            return F.cross_entropy(output.flatten(0, -2), y.flatten())
        return F.cross_entropy(output, y)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        kinds = [f"{v.dtype} {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in (output, y)]
        raise ValueError(
            f"The default cross-entropy does not fit the output ({kinds[0]}) and y ({kinds[1]}) of a batch (x, y): "
            f"{str(error).rstrip('.')}. Pass loss=..., a function of (call, batch)."
        ) from error


def _x_and_y(batch: Any) -> tuple[Any, Any]:
    named = [batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None) for name in ("x", "y")]
    if all(value is not None for value in named):
        return named[0], named[1]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise TypeError(
        f"Expected batches (x, y) for the default cross-entropy, got {type(batch).__name__} that is no pair and has no "
        "fields x and y. Pass loss=..., a function of (call, batch), or give the LightningModule a method "
        "loss(self, call, batch)."
    )


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)  # a result that is a buffer would change with the next item


def _seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def _seed_globally(seed: int, device: torch.device) -> None:
    """Seed the global generators that `isolated` restores, and no others."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
