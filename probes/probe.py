"""The base class of all probes: schedule, isolation, processes, logging, artefacts and checkpoints, done once."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils._pytree import tree_leaves

from algornn.probes.batches import Batches, field_of
from algornn.probes.model_copy import device_of
from algornn.probes.result import ProbeResult
from algornn.probes.sites import Site
from algornn.probes.subject import (
    Loss,
    ProbeError,
    Subject,
    exchange,
    is_out_of_memory,
    isolated,
    joint_copy,
    loss_of,
)


class Probe(Callback):
    """Measures a model while it trains, without touching it.

    A subclass writes `measure` and nothing else. The measurement sees a copy of the model and its own random state, so
    training with the probe is bit-identical to training without it. It runs after an optimizer step and once more at
    the end of training, on all processes or on none.

    Results are kept in `result`, logged as `probe/<name>/<scalar>` (also for ModelCheckpoint and EarlyStopping, except
    at the end of training) and written to `<default_root_dir>/probes/<name>/step=N.json`.

    Args:
        every_n_epochs: measure after the last batch of every n-th epoch; None: only as `every_n_steps` says.
        every_n_steps: measure after every n-th optimizer step; takes the place of `every_n_epochs`.
        loader: the data to measure on, any iterable of batches; None: the trainer's first validation loader. See
            `Batches.of` for the sample that is taken.
        loss: `loss(call, batch) -> scalar`, where `call(*args)` stands for the model's forward; None: the
            LightningModule's own method `loss(call, batch)`, else cross-entropy of batches (x, y).
        max_batches: number of batches to measure on; None: all.
        max_seconds: wall time in seconds that all measurements of a training run may take together.
        max_fraction: share of the run's wall time that measurements may take. A measurement that is expected (from the
            running mean of the earlier ones) to overdraw either budget is skipped.
        seed: of everything random in the measurement.
        name: folder and key of the results; None: that of the class without "Probe", such as `weight_mask`.

    A subclass keeps its constructor's arguments in attributes of their names, and what changes in attributes that begin
    with an underscore: `state_key` is made of the former. In `tried` it may name arguments that are sites ("site",
    "sites") or fields of the batches, so that wrong ones are refused before a training.
    """

    tried: tuple[str, ...] = ()

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        loader: Any = None,
        loss: Loss | None = None,
        max_batches: int | None = 8,
        max_seconds: float | None = None,
        max_fraction: float | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        counts = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "max_batches": max_batches}
        for key, value in counts.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{key} must be a positive whole number or None, got {value!r}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be a function of (call, batch), got {loss!r}.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.loader = loader
        self.loss = loss
        self.max_batches = max_batches
        self.max_seconds = max_seconds
        self.max_fraction = max_fraction
        self.seed = seed
        self.name = name or re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Probe")).lower()
        if not re.fullmatch(r"[\w-][\w.-]{0,99}", self.name):
            raise ValueError(
                "A probe's name is a folder's name (up to 100 letters, digits, '_', '-', and '.' but not first), got "
                f"{self.name!r}."
            )
        self.result: ProbeResult | None = None
        self._state = self._new_state()
        self._seen = 0
        self._attended = -1
        self._tick = self._seconds = 0.0

    @property
    def about(self) -> str:
        """What the probe shows: the first line of its class's docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    @abstractmethod
    def measure(self, subject: Subject) -> ProbeResult:
        """Measure the model; all that a new probe writes.

        Outside of `subject.map` the method must do the same on every process.
        """

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError before the training of a model that cannot be measured: here, for an unknown site."""
        if any("_orig_mod" in name for name, _ in model.named_modules()):
            return  # compiled: the copy that is measured has other names
        for site in (getattr(self, "site", None), *(getattr(self, "sites", None) or ())):
            if isinstance(site, str):
                Site.parse(site).module(model)

    def try_out(self, subject: Subject) -> None:
        """Raise before a training what `measure` would raise after its first epoch: here, of the arguments in `tried`.

        Args:
            subject: as for `measure`, with one batch.
        """
        batch = subject.loader[0]
        for name in self.tried:
            value = getattr(self, name)
            if name not in ("site", "sites") and value is not None:
                field_of(batch, value, name)
            elif isinstance(value, str) or value:  # "" is the model itself
                subject.activations([value] if isinstance(value, str) else value, batch)

    def run(
        self, model: nn.Module, loader: Iterable[Any] | None = None, folder: str | Path | None = None
    ) -> ProbeResult:
        """Measure any model without a Trainer; the numbers are those that the Trainer would log.

        Args:
            model: any module; it is not changed. The measurement runs on the model's device and this process alone.
            loader: the data; None: the `loader` of the constructor.
            folder: where a long measurement keeps what it has so far, so that the same call goes on after an
                interruption; None: nowhere.

        Raises:
            TypeError: the model is no module.
            ValueError: there is no loader.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(self).__name__}.run measures a torch.nn.Module, got {model!r}.")
        loader = self.loader if loader is None else loader
        if loader is None:
            raise ValueError(f"{type(self).__name__}.run needs data: pass loader=..., any iterable of batches.")
        self.result = self._measure(model, loader, folder)
        return self.result

    def _measure(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        folder: str | Path | None,
        rank: int = 0,
        world: int = 1,
        trial: bool = False,
    ) -> ProbeResult:
        """Measure, or for a trial only try out one batch; the same on every process, and nothing is left behind."""
        device = device_of(model)
        result, error = None, None
        with isolated(device, self.seed):
            try:
                twin = joint_copy(model, rank, world)
                batches = Batches.of(loader, 1 if trial else self.max_batches, self.seed, device)
                generator = torch.Generator(device).manual_seed(self.seed)
                loss = loss_of(twin, self.loss)
                place = None if folder is None else Path(folder)
                subject = Subject(twin, batches, loss, device, generator, self.seed, rank, world, place)
                if trial:
                    self.try_out(subject)
                else:
                    result = self.measure(subject)
                    if not isinstance(result, ProbeResult):
                        raise TypeError(
                            f"{type(self).__name__}.measure must return a ProbeResult, it returned a "
                            f"{type(result).__name__}: write return ProbeResult(scalars={{...}})."
                        )
            except ProbeError:
                raise
            except Exception as raised:
                error = raised
            return exchange(result, world, error)[0]

    def _new_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, at the beginning of a training."""
        return {"step": -1, "scalars": {}, "cost": None, "spent": 0.0, "elapsed": 0.0, "runs": 0, "skipped": 0}

    # What the Trainer calls

    @property
    def state_key(self) -> str:
        """Tells instances apart in a checkpoint: the class and its constructor's plain arguments and lists of texts.

        Lightning refuses two alike before `setup` could; two of other sites get as far, and the mend is named there.
        """
        plain, settings = (bool, int, float, str, type(None)), dict[str, Any]()
        for name, value in sorted(vars(self).items()):
            if isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
                settings[name] = list(value)
            elif isinstance(value, plain):
                settings[name] = value
        settings = {name: value for name, value in settings.items() if name[0] != "_" and name != "result"}
        return self._generate_state_key(**settings)

    def state_dict(self) -> dict[str, Any]:
        """Step and scalars of the last measurement, counts, and the running cost in seconds."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._state.update(state_dict)
        self.result = ProbeResult(scalars=dict(self._state["scalars"])) if self._state["runs"] else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two probes of one name, whose results would overwrite each other."""
        refuse_namesakes(trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and fail now rather than after the first epoch if there is nothing to measure (on)."""
        self._seen, self._tick, self._attended = trainer.global_step, time.monotonic(), -1
        if self._state["step"] > trainer.global_step:  # of a training before
            self._state, self.result = self._new_state(), None
        self.check(pl_module)
        with isolated(pl_module.device, self.seed):
            loader = self._loader(trainer)
            if isinstance(loader, Iterator):
                raise ValueError(
                    f"Probe {self.name!r} measures more than once, but its loader is a "
                    f"{type(self.loader).__name__}, which is used up by the first: pass a list or a DataLoader."
                )
        try:
            self._measure(pl_module, loader, None, trainer.global_rank, trainer.world_size, trial=True)
        except Exception as error:
            if not is_out_of_memory(error):  # a measurement that finds no memory is skipped, too
                raise
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.global_step == 0 and any(self._folder(trainer).glob("step=*.json")):
            rank_zero_warn(
                f"{self._folder(trainer)} holds results of another training, which this one will write over: give the "
                "Trainer another default_root_dir."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is time."""
        before, self._seen = self._seen, trainer.global_step
        if self.every_n_steps:
            due = trainer.global_step // self.every_n_steps > before // self.every_n_steps
        elif self.every_n_epochs:
            due = trainer.is_last_batch and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        else:
            due = False
        if due:
            self._attend(trainer, pl_module, logging=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the trained model, unless that was done at this step."""
        self._attend(trainer, pl_module, logging=False)

    def _attend(self, trainer: Trainer, pl_module: LightningModule, logging: bool) -> None:
        """Measure and publish, or skip; the schedule is the same on every process, the budget is the first one's."""
        step = trainer.global_step
        if trainer.fast_dev_run or step in (self._state["step"], self._attended):  # type: ignore[attr-defined]
            return
        self._attended = step
        start = time.monotonic()
        self._state["elapsed"] += start - self._tick
        self._tick = start
        if not trainer.strategy.broadcast(self._affordable()):
            self._skip(trainer, "its budget is spent")
            return
        if not logging:  # training is over, and the progress bar stands still
            cost = self._state["cost"] or 0.0
            about = f", about {cost:.0f} s" if cost >= 1 else ""
            rank_zero_info(f"Probe {self.name!r} measures the trained model{about}.")
        try:
            folder = self._folder(trainer)
            result = self._measure(pl_module, self._loader(trainer), folder, trainer.global_rank, trainer.world_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._skip(trainer, "memory did not suffice")
            return
        self.result = result
        self._account(step, result, time.monotonic() - start)
        self._publish(trainer, pl_module, result, logging)

    def _affordable(self) -> bool:
        """Whether the expected cost fits into both budgets, as this process sees it."""
        total = self._state["spent"] + (self._state["cost"] or 0.0)
        if self.max_seconds is not None and total > self.max_seconds:
            return False
        first = self._state["cost"] is None
        return self.max_fraction is None or first or total <= self.max_fraction * self._state["elapsed"]

    def _account(self, step: int, result: ProbeResult, seconds: float) -> None:
        cost = self._state["cost"]
        self._state.update(
            step=step,
            scalars={key: float(value) for key, value in result.scalars.items()},
            cost=seconds if cost is None else 0.7 * cost + 0.3 * seconds,
            spent=self._state["spent"] + seconds,
            runs=self._state["runs"] + 1,
        )
        self._seconds = seconds

    def _skip(self, trainer: Trainer, why: str) -> None:
        self._state["skipped"] += 1
        rank_zero_warn(f"Probe {self.name!r} skipped step {trainer.global_step}: {why}.")
        self._log(trainer, {"skipped": self._state["skipped"]})

    def _publish(self, trainer: Trainer, pl_module: LightningModule, result: ProbeResult, logging: bool) -> None:
        scalars = self._state["scalars"]
        if logging:  # no reduction: the values are already the same on every process
            keyed = {self._key(name): value for name, value in scalars.items()}
            pl_module.log_dict(keyed, logger=False, on_step=True, on_epoch=False, rank_zero_only=False)
        counts = {"skipped": self._state["skipped"], "failed_controls": len(result.failures)}
        self._log(trainer, {**scalars, "seconds": self._seconds, **counts})
        if trainer.is_global_zero:
            step, folder = trainer.global_step, self._folder(trainer)
            try:
                about = {"name": self.name, "about": self.about, "step": step, "seconds": self._seconds}
                result.save(folder / f"step={step}.json", **about)
            except OSError as error:  # a full disk is no reason to end the training
                rank_zero_warn(f"Probe {self.name!r} cannot write its result of step {step}: {error}.")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "probes" / self.name

    def _log(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.log_metrics({self._key(name): value for name, value in scalars.items()}, step=trainer.global_step)

    def _key(self, scalar: str) -> str:
        return f"probe/{self.name}/{scalar}"

    def _loader(self, trainer: Trainer) -> Iterable[Any]:
        """The user's loader, else the first validation loader (Lightning makes it only when validation begins)."""
        if self.loader is not None:
            return self.loader
        loaders = trainer.val_dataloaders
        if loaders is None:
            source = trainer.fit_loop.epoch_loop.val_loop._data_source
            loaders = source.dataloader() if source.is_defined() else None
        leaves = tree_leaves(loaders)
        if not leaves or leaves[0] is None:
            raise ValueError(
                f"Probe {self.name!r} needs data: pass loader=... or give the Trainer a validation loader."
            )
        return leaves[0]


def refuse_namesakes(callbacks: Iterable[Callback]) -> None:
    """Refuse two probes of one name, whose results would overwrite each other.

    Raises:
        ValueError: there are two.
    """
    names = [callback.name for callback in callbacks if isinstance(callback, Probe)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two probes are named {name!r}: give each its own name=, as in name={name + '_2'!r}.")
