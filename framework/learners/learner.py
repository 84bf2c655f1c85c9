"""What all learners share: the optimizer with its schedule, steps that are not finite, scores by set and group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric

from algornn.learners.checks import check_shares, check_whole
from algornn.learners.example_scores import ExampleScores

Scored = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # ids, right answers, answers asked for, loss, group; all [B]


class Learner(L.LightningModule):
    """Train a network by the `loss` of its batches; score every example once, by group, in and out of distribution.

    A subclass defines `loss` and `scored`, and names in `reads` the fields of a batch that these look at.

    Args:
        model: the network.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        warmup_steps: optimizer steps at the start with a reduced learning rate.
        warmup_factor: the factor of the learning rate during these steps.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.

    Raises:
        TypeError: an optimizer that is made already, or a number of steps that is not whole.
        ValueError: a number out of its range, or a layer that does not read as the learner has to.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    # What no layer may be: "sees_both_sides", or "needs_whole_sequences" as a causal Transformer does.
    refuses: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
        cooldown: float = 0.0,
    ) -> None:
        super().__init__()
        if optimizer is not None and not callable(optimizer):
            raise TypeError(
                f"`optimizer` must be called with the parameters, as torch.optim.Adam is, got {optimizer!r}."
            )
        check_whole(0, warmup_steps=warmup_steps)
        check_shares(warmup_factor=warmup_factor, cooldown=cooldown)
        for layer in model.modules():
            if any(getattr(layer, trait, False) for trait in self.refuses):
                raise ValueError(
                    f"{type(self).__name__} needs layers that read token by token, {type(layer).__name__} sees what "
                    "comes later or needs whole sequences: take a memory or an LSTM."
                )
        self.model = model
        # A class as the default would hand its own settings on to every other one that a configuration names.
        self.optimizer = optimizer or torch.optim.Adam
        self.warmup_steps, self.warmup_factor, self.cooldown = warmup_steps, warmup_factor, cooldown
        self.scores: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def forward(self, *args: Any) -> Any:
        """The model's own forward."""
        return self.model(*args)

    def loss(self, call: Callable[..., Any], batch: Any) -> Tensor:
        """Return the mean loss of a batch; `call` stands for the model's forward."""
        raise NotImplementedError

    def scored(self, batch: Any) -> Iterator[Scored]:
        """Yield the scores of the examples of a batch, in one part or several."""
        raise NotImplementedError

    def terms(self, batch: Any) -> Tensor | None:
        """The number of terms that `loss` is the mean of, where batches of one size differ in it; None: they do not."""
        return None

    def shared_out(self, loss: Tensor, batch: Any) -> Tensor:
        """Weight the loss of this process's part of a batch so that the mean over processes is that of the whole.

        Data-parallel training averages gradients over processes; a mean over tokens would count those of a process
        with few tokens more than others. With n terms here and N on all W processes the factor is n W / N.
        """
        world = 1 if self._trainer is None else self.trainer.world_size
        n = self.terms(batch) if world > 1 else None
        if n is None:
            return loss
        total = cast(Tensor, self.all_gather(n.to(loss.dtype))).sum().clamp(min=1)
        return loss * (n * world / total)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse a batch of another kind of task.

        Raises:
            ValueError: it lacks a field.
        """
        missing = [field for field in self.reads if not hasattr(batch, field)]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs batches with {', '.join(self.reads)}, these are {type(batch).__name__} "
                f"without {missing[0]}. Choose a learner for this data: the table in docs/data.md has them all."
            )
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.shared_out(self.loss(self.model, batch), batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer with its warm-up and cool-down."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_factor
        if not self.cooldown:
            return 1.0
        steps = self.trainer.estimated_stepping_batches
        return max(0.0, min(1.0, (steps - step) / (self.cooldown * steps)))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; where a gradient is not finite, drop all of them, so that the step is skipped.

        Unnormalised keys make the memory expand now and then (the released code restarts its training on NaN). Without
        gradients the optimizer leaves weights and moments alone; zeros would let its momentum go on.
        """
        plugin = self.trainer.precision_plugin
        scaled = getattr(plugin, "scaler", None) is not None
        if scaled and any(group.get("fused") for group in optimizer.param_groups):
            raise ValueError(
                "precision 16-mixed scales gradients, and a fused optimizer undoes that only after they are clipped: "
                "set fused: false of the optimizer, or take bf16-mixed."
            )
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients or torch.stack([g.isfinite().all() for g in gradients]).all():
            if isinstance(plugin, MixedPrecision) and not scaled:
                # Lightning refuses to clip for a fused optimizer under bf16 as well, where nothing is scaled.
                kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
                Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, kind)
            else:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            optimizer.zero_grad(set_to_none=True)

    # Validation and test: one ExampleScores per loader.

    def on_validation_epoch_start(self) -> None:
        """Start the scores of every validation set."""
        self._start_scores(self.trainer.val_dataloaders, "val")

    def on_test_epoch_start(self) -> None:
        """Start the scores of the test set and of every further test set."""
        self.results = {}
        self._start_scores(self.trainer.test_dataloaders, "test")

    def _start_scores(self, loaders: Any, only: str) -> None:
        named = loaders if isinstance(loaders, dict) else {only: loaders}
        self.scores = {name: self.new_scores(loader.dataset).to(self.device) for name, loader in named.items()}

    def new_scores(self, dataset: Any) -> Metric:
        """Return the metric that scores the examples of a dataset."""
        return ExampleScores(len(dataset), getattr(dataset, "groups", ()))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of the current loader."""
        scores = list(self.scores.values())[dataloader_idx]
        for part in self.scored(batch):
            scores.update(*part)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the scores of every validation set."""
        for name, metric in self.scores.items():
            for key, value in metric.compute().items():
                if not key.endswith("examples"):
                    self.log(f"{name}/{key}", value, prog_bar=key == "sequence_accuracy")
        self.scores = {}

    def on_test_epoch_end(self) -> None:
        """Log the scores of every test set and keep them in `results`."""
        for name, metric in self.scores.items():
            values = {key: float(value) for key, value in metric.compute().items()}
            self.results[name] = nested(values)
            self.log_dict({f"test/{name}/{key}": x for key, x in values.items() if not key.endswith("examples")})
        self.scores = {}


def nested(values: dict[str, float]) -> dict[str, Any]:
    """Turn ``{"loss": ..., "qa1/examples": ...}`` into ``{"loss": ..., "groups": {"qa1": {"examples": ...}}}``."""
    result: dict[str, Any] = {"groups": {}}
    for key, value in values.items():
        group, _, measure = key.rpartition("/")
        place = result["groups"].setdefault(group, {}) if group else result
        place[measure] = int(value) if measure == "examples" else value
    return result
