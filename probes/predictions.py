"""What a model predicts for a batch, as sequences that are compared as wholes with targets and with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algornn.probes.batches import field_of
from algornn.probes.subject import Subject

Tokens = tuple[int, ...]
Predict = Callable[[nn.Module, Any], Tensor]
Field = int | Callable[[Any], Any] | str


@dataclass(frozen=True)
class Answers:
    """How predictions and targets are read.

    Args:
        target: field of the batches that holds the targets, class ids ``[B]`` or token ids ``[B, T]``; None: `y`,
            `answer` or `target`, whichever there is, or the second of a pair.
        mask: field ``[B, T]`` bool, where targets count; None: `target_mask` if there is one. A negative target, such
            as the ignored index -100, never counts.
        predict: `predict(model, batch) -> ids [B] or [B, T]`, such as greedy decoding; None: the largest output.
            Exact match needs no decoding: if at each place of the target, given the target before it, the largest
            output is the target's, greedy decoding writes the target, and the other way round. What is written
            instead of the target does need it.
        eos: the token at which predictions and targets end, itself left out; None: predictions of the targets' shape
            are compared where the targets count, others as a whole without their negative ids.
    """

    target: Field | None = None
    mask: Field | None = None
    predict: Predict | None = None
    eos: int | None = None

    def of(
        self, subject: Subject, batch: Any, model: nn.Module | None = None, target: Field | None = None
    ) -> tuple[list[Tokens], list[Tokens]]:
        """Predictions and targets of a batch, one sequence per example.

        Args:
            subject: whose model predicts.
            batch: one of its batches.
            model: takes the place of the subject's model.
            target: takes the place of `self.target`.
        """
        targets = self.targets(batch, target)
        return self.written(self.predicted(subject, batch, targets, model), batch, targets), self.read(batch, targets)

    def targets(self, batch: Any, target: Field | None = None) -> Tensor:
        """The ids of the targets.

        Raises:
            ValueError: the batch shows no targets, or they are no ids.
        """
        target = self.target if target is None else target
        found = field_of(batch, target, "target") if target is not None else known(batch, ("y", "answer", "target"))
        if found is None and isinstance(batch, (tuple, list)) and len(batch) == 2:
            found = batch[1]
        if not isinstance(found, Tensor) or found.is_floating_point() or found.ndim not in (1, 2):
            kind = f"a tensor of {found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise ValueError(f"Expected integer targets [B] or [B, T], got {kind}: name their field by target=.")
        return found

    @torch.no_grad()
    def predicted(self, subject: Subject, batch: Any, targets: Tensor, model: nn.Module | None = None) -> Tensor:
        """The ids that the model predicts.

        Raises:
            ValueError: the output does not fit the targets, and no `predict` says how to read it.
        """
        if self.predict is not None:
            return self.predict(subject.model if model is None else model, batch)
        output = subject.forward(batch, model)
        if not isinstance(output, Tensor) or output.shape[:-1] != targets.shape:
            kind = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(
                f"Expected an output {[*targets.shape, 'classes']} for the targets {list(targets.shape)}, got {kind}: "
                "pass predict=..., a function of (model, batch) that returns ids."
            )
        return output.argmax(-1)

    def read(self, batch: Any, targets: Tensor) -> list[Tokens]:
        """The targets as sequences."""
        return sequences(targets, self._counts(batch, targets), self.eos)

    def written(self, predictions: Tensor, batch: Any, targets: Tensor) -> list[Tokens]:
        """The predictions as sequences."""
        if len(predictions) != len(targets):
            raise ValueError(f"Expected {len(targets)} predictions, one per target, got {len(predictions)}.")
        as_targets = predictions.shape == targets.shape and (self.predict is None or self.eos is None)
        counts = self._counts(batch, targets) if as_targets else predictions >= 0
        return sequences(predictions, counts, self.eos)

    def _counts(self, batch: Any, targets: Tensor) -> Tensor:
        """Where the targets count."""
        mask = field_of(batch, self.mask, "mask") if self.mask is not None else known(batch, ("target_mask",))
        counts = targets >= 0
        return counts & mask.bool() if isinstance(mask, Tensor) and mask.shape == targets.shape else counts


def known(batch: Any, names: Iterable[str]) -> Any:
    """The first of these fields that the batch has; None if it has none of them."""
    for name in names:
        value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        if isinstance(value, Tensor):
            return value
    return None


def sequences(ids: Tensor, counts: Tensor | None = None, eos: int | None = None) -> list[Tokens]:
    """Ids ``[B]`` or ``[B, T]`` as B sequences.

    Args:
        ids: of classes or tokens.
        counts: bool of the same shape; the others are left out.
        eos: a sequence ends before the first of these.
    """
    rows = ids.reshape(len(ids), -1).tolist()
    keep = torch.ones_like(ids, dtype=torch.bool) if counts is None else counts
    kept = keep.reshape(len(ids), -1).tolist()
    found = []
    for row, flags in zip(rows, kept, strict=True):
        tokens = [token for token, flag in zip(row, flags, strict=True) if flag]
        found.append(tuple(tokens[: tokens.index(eos)] if eos in tokens else tokens))
    return found


def numbered(*lists: Sequence[Any]) -> list[Tensor]:
    """Number sequences, so that two have the same number where they are equal; one tensor ``[n]`` per list.

    Elements of sequences may be anything that can be hashed, such as words.
    """
    numbers: dict[Any, int] = {}
    return [torch.tensor([numbers.setdefault(tuple(s), len(numbers)) for s in sequence]) for sequence in lists]


def exact_match(predictions: Sequence[Any], targets: Sequence[Any]) -> Tensor:
    """Whether each prediction is its target as a whole, bool ``[n]``.

    Raises:
        ValueError: there are not as many predictions as targets.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"Expected as many predictions as targets, got {len(predictions)} and {len(targets)}.")
    a, b = numbered(predictions, targets)
    return a == b
