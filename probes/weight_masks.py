r"""Which weights does a trained network need for a sub-task, and which do sub-tasks share?

For each sub-task a binary mask over the frozen weights :math:`\theta` is learned. One logit :math:`\ell_i` per weight,
logistic noise :math:`g_i`, a hard sample with the gradient of the soft one:

.. math::
    m_i = 1[\ell_i + g_i > 0], \quad \partial m_i / \partial \ell_i := s_i (1 - s_i), \quad s_i = \sigma(\ell_i + g_i)

    L(\ell) = E_m[ loss(f_{\theta \odot m}) ] + \alpha \sum_i \ell_i, \quad \alpha = \beta / batch size

so that P(m_i = 1) = sigmoid(l_i). Every reported number uses the deterministic mask 1[l_i > 0]. The penalty is on
logits: that of a weight without gradient falls by `lr` in each step and crosses zero after `INIT / lr` steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from algornn.probes import unfinished
from algornn.probes.batches import Batches, size_of
from algornn.probes.controls import scrambled
from algornn.probes.mask_learning import INIT, MaskLearning, masked_call
from algornn.probes.mask_overlap import SCRAMBLED, overlap_report
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject
from algornn.probes.unfinished import Unfinished

UNMASKED, CONTROL = "unmasked", "control"
_SLICE = 50  # steps between two looks at the clock
_PATIENCE = 5.0  # seconds before a progress bar appears
_HALVES = 4  # random halves of the layers that the half-mask control averages over
_UNMASKABLE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


class WeightMaskProbe(Probe):
    """Learns one mask per sub-task, and a control mask for all of them, on a frozen copy of the model.

    Reports loss and accuracy of every sub-task under every mask and under its inverse, mask sizes, and how masks
    overlap (`mask_overlap`). Masks are shared out over the processes. Each sub-task's even batches train its masks,
    its odd ones measure them (with a single batch, both do).

    Controls: `inverse_accuracy` (chance, where a sub-task's weights are its own and nobody else can do its work),
    `half_mask_accuracy` (the mask on a random half of the layers; a large drop says that layers depend on each other's
    masks), and with `control_network` the accuracy of masks learned on a network with scrambled weights.

    Read with care: raise `beta` until masks shrink without hurting the control's accuracy, and trust an overlap only
    between its floor (independent masks) and its ceiling (the same sub-task twice, `repeats=2`).

    Args:
        tasks: {name: loader}; None: split the probe's batches by their `group` field; a list of names: those of them.
        loss: `loss(call, batch)`, as in `Probe`.
        steps: of mask learning; more than 2 / lr, the steps in which the logit of an unused weight falls to zero.
        lr: learning rate of Adam on the logits.
        beta: strength of the penalty.
        samples: masks per step, each for an equal slice of the batch.
        repeats: masks per sub-task, with other noise and batch order.
        masked: patterns of parameter names to mask, such as "encoder.*"; None: parameters of two dimensions or more,
            without those of embeddings and norms (and so without biases).
        score: `score(output, batch)`, correctness per example or its mean, 0 to 1; None: accuracy of the largest output
            against y of batches (x, y) or the batch's field `y`, `answer`, `label` or `target`, where the shapes fit;
            of sequences that is the share of right tokens, the target being read, and not exact match.
        control_network: learn masks on the network with scrambled weights, too; where they solve the sub-tasks, masks
            make a solution rather than find one. Doubles the cost.
        schedule: the other arguments of `Probe`. Sub-tasks found by `group` share `max_batches` batches.

    Source: Csordas, van Steenkiste and Schmidhuber (2021), ICLR, https://arxiv.org/abs/2010.02066, section 2.
    Deviations: gradients of the logits are not clipped, and Adam's epsilon is 1e-20, because 1e-8 is not small beside
    alpha and would slow the drift.
    """

    def __init__(
        self,
        tasks: Mapping[str, Iterable[Any]] | Sequence[str] | None = None,
        loss: Callable[[Callable[..., Any], Any], Tensor] | None = None,
        steps: int = 500,
        lr: float = 1e-2,
        beta: float = 1e-4,
        samples: int = 4,
        repeats: int = 1,
        masked: Sequence[str] | None = None,
        score: Callable[[Any, Any], Tensor] | None = None,
        control_network: bool = False,
        **schedule: Any,
    ) -> None:
        for name, names in {"tasks": tasks, "masked": masked}.items():
            if isinstance(names, str):
                raise TypeError(f"{name} is a list, got the text {names!r}: write [{names!r}].")
        if tasks is not None and not tasks:
            raise ValueError("tasks is empty: name at least one task, or leave it out to split batches by their group.")
        loaders = tasks if isinstance(tasks, Mapping) else {}
        if spent := [name for name, loader in loaders.items() if isinstance(loader, Iterator)]:
            raise ValueError(f"The loaders of tasks {spent} are used up by one reading: pass lists or DataLoaders.")
        if isinstance(tasks, Mapping) and schedule.get("loader") is None:
            schedule["loader"] = next(iter(tasks.values()))
        super().__init__(loss=loss, **schedule)
        for name, value in {"steps": steps, "lr": lr, "samples": samples, "repeats": repeats}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}.")
        self.tasks = tasks
        self.steps = steps
        self.lr = lr
        self.beta = beta
        self.samples = samples
        self.repeats = repeats
        self.masked = masked
        self.score = score
        self.control_network = control_network

    def try_out(self, subject: Subject) -> None:
        """Raise before a training where there is nothing to mask, no group, or a loss that does not fit the model."""
        maskable(subject.model, self.masked)
        if not isinstance(self.tasks, Mapping):
            subject.loader.by_group()
        subject.forward(subject.loader[0])

    def measure(self, subject: Subject) -> ProbeResult:
        """Learn and evaluate every mask, then compare them."""
        if self.steps * self.lr <= INIT:
            warnings.warn(
                f"WeightMaskProbe can drop no weight in {self.steps} steps: every mask will be full. "
                f"Set steps above {INIT / self.lr:.0f}, or raise lr.",
                stacklevel=2,
            )
        tasks = self._tasks(subject)
        subjects = {"": subject}
        jobs = [("", UNMASKED, 0), ("", CONTROL, 0), *(("", task, n) for task in tasks for n in range(self.repeats))]
        if self.control_network:
            subjects[SCRAMBLED] = replace(subject, model=scrambled(subject.model, subject.generator))
            jobs += [(SCRAMBLED, UNMASKED, 0), *((SCRAMBLED, task, 0) for task in tasks)]
        weights = {network: maskable(one.model, self.masked) for network, one in subjects.items()}

        def learned(job: tuple[str, str, int], generator: torch.Generator) -> dict[str, Any]:
            network, name, _ = job
            return self._job(subjects[network], tasks, weights[network], name, generator)

        with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no gradient for recurrent layers in eval mode
            found = dict(zip(jobs, subject.map(learned, jobs), strict=True))
        unfinished.clear(subject.folder)
        sizes = {name: weight.numel() for name, weight in weights[""].items()}
        rows = {(name, repeat): row for (network, name, repeat), row in found.items() if not network}
        control = {name: row for (network, name, _), row in found.items() if network}
        return overlap_report(rows, list(tasks), sizes, control)

    def learn(
        self, subject: Subject, batches: Sequence[Any], weights: dict[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Learn the logits ``[P]`` of all weights, in their order, on batches drawn with replacement.

        With a folder, what is learned so far is kept in it, and an interrupted measurement goes on from there.
        """
        batches = list(batches)
        order = torch.randint(len(batches), (self.steps,), generator=generator, device=subject.device).tolist()
        learning = MaskLearning(subject, weights, self.lr, self.beta, self.samples)
        settings = (self.steps, self.lr, self.beta, self.samples)
        model = dict(subject.model.state_dict())
        kept = Unfinished(subject.folder, "mask", (settings, model, list(weights), batches, generator.get_state()))
        done = learning.resume(kept.load(), generator)
        looks = {"delay": _PATIENCE, "disable": None, "leave": False}
        with tqdm(total=self.steps, initial=done, desc="mask", unit="step", **looks) as bar:
            for start in range(done, self.steps, _SLICE):
                stop = min(start + _SLICE, self.steps)
                learning.advance(batches, order[start:stop], generator)
                bar.update(stop - start)
                if kept.due() or stop == self.steps:  # many short masks take long, too
                    kept.save(learning.state(stop, generator))
        return learning.logits

    def _job(
        self,
        subject: Subject,
        tasks: dict[str, Batches],
        weights: dict[str, Tensor],
        name: str,
        generator: torch.Generator,
    ) -> dict[str, Any]:
        """Learn one mask and evaluate it and its inverse on every sub-task."""
        if name == UNMASKED:
            P = sum(weight.numel() for weight in weights.values())
            mask, lost = torch.ones(P, dtype=torch.bool, device=subject.device), False
        else:
            chosen = tasks.values() if name == CONTROL else [tasks[name]]
            batches = [batches[i] for batches in chosen for i in range(0, len(batches), 2)]
            logits = self.learn(subject, batches, weights, generator)
            mask, lost = logits > 0, not bool(logits.isfinite().all())
        row: dict[str, Any] = {"mask": mask, "lost": lost}
        for prefix, m in {"": mask, "inverse_": ~mask}.items():
            scores = {task: self._evaluate(subject, weights, m, batches) for task, batches in tasks.items()}
            row[f"{prefix}loss"] = {task: loss for task, (loss, _) in scores.items()}
            row[f"{prefix}accuracy"] = {task: accuracy for task, (_, accuracy) in scores.items()}
        if name in tasks:
            row["half"] = self._half_masked(subject, weights, mask, tasks[name], generator)
        return row

    def _half_masked(
        self, subject: Subject, weights: dict[str, Tensor], mask: Tensor, batches: Batches, generator: torch.Generator
    ) -> float:
        """Accuracy with the mask on a random half of the layers, mean over some halves; not-a-number for one layer."""
        parts = mask.split([weight.numel() for weight in weights.values()])
        if len(parts) < 2:
            return math.nan
        accuracies = []
        for _ in range(_HALVES):
            open_layers = torch.randperm(len(parts), generator=generator, device=subject.device)[: len(parts) // 2]
            half = torch.cat([torch.ones_like(m) if i in open_layers else m for i, m in enumerate(parts)])
            accuracies.append(self._evaluate(subject, weights, half, batches)[1])
        return sum(accuracies) / len(accuracies)

    @torch.no_grad()
    def _evaluate(
        self, subject: Subject, weights: dict[str, Tensor], mask: Tensor, batches: Batches
    ) -> tuple[float, float]:
        """Mean loss and accuracy per example over the odd batches."""
        call = masked_call(subject.model, weights, mask)
        total, loss, accuracy = 0, 0.0, 0.0
        for batch in batches[1::2] or batches:
            outputs: list[Any] = []

            def recorded(*args: Any, outputs: list[Any] = outputs, **kwargs: Any) -> Any:
                outputs.append(call(*args, **kwargs))
                return outputs[-1]

            size = size_of(batch)
            value = subject.loss(recorded, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise TypeError(f"loss(call, batch) must return the mean over the batch as one number, got {kind}.")
            loss += float(value) * size
            if not outputs:
                raise ValueError("The loss never calls the model: loss(call, batch) must use call(*forward_args).")
            accuracy += float((self.score or accuracy_of)(outputs[-1], batch).double().mean()) * size
            total += size
        return loss / total, accuracy / total

    def _tasks(self, subject: Subject) -> dict[str, Batches]:
        if isinstance(self.tasks, Mapping):
            tasks = {
                name: Batches.of(loader, self.max_batches, self.seed, subject.device)
                for name, loader in self.tasks.items()
            }
        else:
            tasks = subject.loader.by_group()
            unknown = sorted(set(self.tasks or ()) - set(tasks))
            if unknown:
                raise ValueError(f"tasks names {unknown}, which no batch belongs to; there are {list(tasks)}.")
            tasks = {name: tasks[name] for name in self.tasks or tasks}
        taken = {UNMASKED, CONTROL} & tasks.keys()
        if taken:
            raise ValueError(f"A mask is called {min(taken)!r} already: give that task another name in tasks={{...}}.")
        return tasks


def maskable(model: nn.Module, masked: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The parameters that a mask covers, by name; see `WeightMaskProbe`.

    Raises:
        ValueError: there is none.
    """
    exempt = {id(p) for module in model.modules() if isinstance(module, _UNMASKABLE) for p in module.parameters(False)}
    if masked is None:
        chosen = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in exempt}
    else:
        chosen = {n: p for n, p in model.named_parameters() if any(fnmatch(n, pattern) for pattern in masked)}
    if not chosen:
        raise ValueError(
            f"No parameter to mask fits {masked or 'two dimensions or more'}: pass masked=[patterns of names], of "
            f"{', '.join(list(dict(model.named_parameters()))[:5]) or 'a model that has parameters'}."
        )
    return {name: p.detach() for name, p in chosen.items() if p.is_floating_point()}


def accuracy_of(output: Any, batch: Any) -> Tensor:
    """Whether the largest output is the target, for every target that counts; not-a-number without class targets.

    The target is y of a batch (x, y), or the first of the fields `y`, `answer`, `label` and `target`. One per token
    counts where it is not negative and the field `target_mask` or `mask` of its shape is True.
    """
    field: Callable[[str], Any]
    if isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
        field = partial(dict.get, {"y": batch[1]} if len(batch) == 2 else {})
    else:
        field = partial(dict.get, batch) if isinstance(batch, dict) else partial(_attribute, batch)
    named = (field(name) for name in ("y", "answer", "label", "target"))
    target = next((value for value in named if isinstance(value, Tensor)), None)
    if not isinstance(target, Tensor) or not isinstance(output, Tensor) or target.is_floating_point():
        return torch.tensor(math.nan)
    if output.shape[:-1] != target.shape:
        return torch.tensor(math.nan)
    counts = target >= 0
    for mask in (field("target_mask"), field("mask")):
        if isinstance(mask, Tensor) and mask.shape == target.shape:
            counts = counts & mask.bool()
            break
    return (output.argmax(-1) == target)[counts]


def _attribute(batch: Any, name: str) -> Any:
    return getattr(batch, name, None)
