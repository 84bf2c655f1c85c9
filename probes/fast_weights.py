r"""How well does a fast-weight memory hold what was written into it?

A memory that was written with keys :math:`k_i`, values :math:`v_i` and strengths :math:`\beta_i` ends in the state
:math:`S \in R^{K \times V}` and answers a key with :math:`S^T k`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.sites import Site
from algornn.probes.subject import Subject


class FastWeightTrace(NamedTuple):
    """What was written, and what it left; any named tuple with these fields will do.

    Args:
        keys: write keys ``[B, N, K]``; a zero vector where nothing was written (padding).
        values: ``[B, N, V]``.
        beta: write strengths ``[B, N]``.
        state: ``[B, K, V]`` after all N writes.
    """

    keys: Tensor
    values: Tensor
    beta: Tensor
    state: Tensor


@runtime_checkable
class OwnsFastWeights(Protocol):
    """A module that shows its fast weights: same arguments as its forward."""

    def fast_weights(self, *args: Any, **kwargs: Any) -> FastWeightTrace:
        """The trace of one forward."""


class FastWeightProbe(Probe):
    r"""Rank of the state, interference between keys, and recall of every association by its age.

    * effective rank :math:`\exp H(\sigma / \sum \sigma)`, stable rank :math:`\|S\|_F^2 / \sigma_1^2`,
      participation ratio :math:`(\sum \sigma^2)^2 / \sum \sigma^4` of its singular values; 0 for an empty state;
    * interference: mean of :math:`\cos^2(k_i, k_j)` over :math:`i \neq j`, beside its least possible value for N
      keys in K dimensions, the Welch bound :math:`(N - K) / (K (N - 1))` (0 for :math:`N \le K`);
    * recall error :math:`\|S^T k_i - v_i\|^2 / \|v_i\|^2`, and recall accuracy: whether the stored value nearest to
      :math:`S^T k_i` is :math:`v_i`; against the age (the number of later writes), beside a control in which every
      key is asked for the value of another.

    Means are over examples for rank and interference, over associations for recall (error: those whose value is not
    zero), in each case over the finite ones. An association counts unless its key is zero. Arithmetic is float64.

    Args:
        at: path of the module that owns the fast weights; None: the first module that offers `fast_weights`.
        trace: `trace(model, batch) -> FastWeightTrace`, for models whose modules do not offer `fast_weights`.
        call: which of the owner's calls within one forward to look at.
        schedule: the arguments of `Probe`.

    Source: effective rank: Roy and Vetterli (2007), EUSIPCO; capacity and recall of fast weights: Schlag, Irie and
    Schmidhuber (2021), ICML, https://arxiv.org/abs/2102.11174; bound: Welch (1974), IEEE Trans. Inf. Theory 20.
    """

    def __init__(
        self,
        at: str | None = None,
        trace: Callable[[nn.Module, Any], FastWeightTrace] | None = None,
        call: int = 0,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        self.at = at
        self.trace = trace
        self.call = call

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError where no module has fast weights to show."""
        super().check(model)
        if self.trace is None:
            self._owner(model)

    def measure(self, subject: Subject) -> ProbeResult:
        """One trace per batch, shared out over the processes."""

        def traced(index: int, generator: torch.Generator) -> dict[str, Tensor]:
            return self._batch(subject, subject.loader[index], generator)

        return _report(subject.map(traced, range(len(subject.loader))))

    @torch.no_grad()
    def _batch(self, subject: Subject, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        trace = self._trace(subject, batch)
        keys, values, written = _compact(trace)
        ages = {"age": (written.sum(1, keepdim=True) - 1 - torch.arange(keys.shape[1], device=keys.device))[written]}
        state = trace.state.double()
        recall = recall_of(keys, values, state, written, generator)
        strength = {"write_strength": trace.beta.double()[trace.keys.ne(0).any(-1)]}
        return {**recall, **spectrum_of(state), **interference_of(keys, written), **strength, **ages}

    def _trace(self, subject: Subject, batch: Any) -> FastWeightTrace:
        """Let the loss drive the model, catch the owner's arguments, and ask it for its trace."""
        if self.trace is not None:
            return _checked(self.trace(subject.model, batch))
        owner = self._owner(subject.model)
        calls: list[tuple[Any, Any]] = []
        hook = owner.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        try:
            subject.loss(subject.model, batch)
        finally:
            hook.remove()
        if not -len(calls) <= self.call < len(calls):
            raise ValueError(f"call={self.call} asked for, but {type(owner).__name__} was called {len(calls)} times.")
        args, kwargs = calls[self.call]
        return _checked(owner.fast_weights(*args, **kwargs))

    def _owner(self, model: nn.Module) -> Any:
        modules = [Site(self.at).module(model)] if self.at is not None else model.modules()
        for module in modules:
            if callable(getattr(module, "fast_weights", None)):
                return module
        where = f"the module at={self.at!r}" if self.at is not None else f"any module of {type(model).__name__}"
        elsewhere = "name another module by at=, or " if self.at is not None else ""
        raise ValueError(
            f"Expected fast_weights(*forward_args) in {where}, found none: {elsewhere}pass a function of (model, "
            "batch) by trace=."
        )


def spectrum_of(state: Tensor) -> dict[str, Tensor]:
    """Singular values ``[B, min(K, V)]`` of states ``[B, K, V]``, largest first, and the three ranks ``[B]``.

    They come from the Gram matrix of the smaller side in float64: relative error about 1e-8 of the largest.
    A state that is not finite has no spectrum: not a number, rather than an error that would end a diverging training.
    """
    state = state.double()
    small = state.transpose(1, 2) if state.shape[1] >= state.shape[2] else state
    gram = small @ small.transpose(1, 2)
    finite = gram.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    power = torch.linalg.eigvalsh(gram.where(finite, 0)).flip(-1).clamp(min=0).where(finite[:, 0], torch.nan)
    sigma = power.sqrt()
    total = sigma.sum(-1, keepdim=True)
    full = total[:, 0] > 0
    share = sigma / total.where(total > 0, 1)
    effective = torch.special.entr(share).sum(-1).exp()
    energy = power.sum(-1)
    stable = energy / power[:, 0].where(full, 1)
    participation = energy**2 / (power**2).sum(-1).where(full, 1)
    ranks = {"effective_rank": effective * full, "stable_rank": stable, "participation_ratio": participation}
    return {**ranks, "state_norm": energy.sqrt(), "sigma": sigma}


def interference_of(keys: Tensor, written: Tensor) -> dict[str, Tensor]:
    """Mean squared cosine between different keys ``[B, N, K]``, and the Welch bound, for examples of two keys."""
    unit = keys / keys.norm(dim=-1, keepdim=True).where(written[..., None], 1)
    cosine = (unit @ unit.transpose(1, 2)) ** 2
    n = written.sum(1)
    pairs = n * (n - 1)
    enough = pairs > 0
    mean = (cosine.sum((1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(1))[enough] / pairs[enough]
    N, K = n[enough].double(), keys.shape[-1]
    return {"interference": mean, "interference_floor": ((N - K) / (K * (N - 1))).clamp(min=0), "writes": n}


def recall_of(
    keys: Tensor, values: Tensor, state: Tensor, written: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Relative squared error and nearest-value accuracy of each association, and of one with another's value.

    Args:
        keys: ``[B, N, K]``, written ones first.
        values: ``[B, N, V]``.
        state: ``[B, K, V]``.
        written: ``[B, N]`` bool.
        generator: draws the control: values are rotated among the n written ones by 1 to n - 1 places.

    Returns:
        Vectors over the written associations of all examples, in their order.
    """
    B, N = written.shape
    n = written.sum(1, keepdim=True)
    answers = keys @ state
    distance = torch.cdist(answers, values).masked_fill(~written[:, None], torch.inf)
    nearest = distance.argmin(-1) if N else distance.new_zeros(B, 0).long()
    guess = _rows(values, nearest)
    shift = 1 + (torch.rand(B, 1, generator=generator, device=keys.device, dtype=keys.dtype) * (n - 1)).long()
    other = _rows(values, (torch.arange(N, device=keys.device) + shift) % n.clamp(min=1))
    measured = {}
    for suffix, target in {"": values, "_control": other}.items():
        error = (answers - target).square().sum(-1) / target.square().sum(-1)
        measured[f"recall_error{suffix}"] = error[written]
        right = (guess == target).all(-1).double().where(answers.isfinite().all(-1), torch.nan)
        measured[f"recall_accuracy{suffix}"] = right[written]
    return measured


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _compact(trace: FastWeightTrace) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values in float64 with the written ones first, and which those are, ``[B, N]``."""
    written = trace.keys.ne(0).any(-1)
    order = written.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return _rows(trace.keys.double(), order), _rows(trace.values.double(), order), written.gather(1, order)


def _checked(trace: Any) -> FastWeightTrace:
    """Refuse a trace whose shapes do not fit together."""
    missing = [name for name in FastWeightTrace._fields if not isinstance(getattr(trace, name, None), Tensor)]
    if missing:
        raise TypeError(f"A trace of fast weights needs the tensors keys, values, beta and state; {missing} missing.")
    (B, N, K), V = trace.keys.shape, trace.values.shape[-1]
    expected = {"keys": (B, N, K), "values": (B, N, V), "beta": (B, N), "state": (B, K, V)}
    for name, shape in expected.items():
        if tuple(getattr(trace, name).shape) != shape:
            raise ValueError(f"Trace: {name} must be {list(shape)} beside keys {[B, N, K]} and values [..., {V}], "
                             f"got {list(getattr(trace, name).shape)}.")  # fmt: skip
    return trace


def _report(parts: list[dict[str, Tensor]]) -> ProbeResult:
    """Join the batches in their order, so that the sums do not depend on the number of processes."""
    sigma = torch.cat([part["sigma"] for part in parts])
    joined = {key: torch.cat([part[key].flatten() for part in parts]) for key in parts[0] if key != "sigma"}
    age = joined.pop("age")
    by_age: dict[str, list[float]] = {"age": list(range(int(age.max()) + 1 if len(age) else 0))}
    by_age["count"] = torch.bincount(age).tolist()
    # A memory may write two kinds of association in turn, as the tensor-product memory does (e1 r1 -> e2, and back
    # e2 r3 -> e1): one kind has the even ages, the other the odd ones, and a line through all would zigzag.
    by_two: dict[str, list[float]] = {"age": [min(i + 0.5, by_age["age"][-1]) for i in by_age["age"][::2]]}
    scalars = {}
    for key, value in joined.items():
        scalars[key] = float(value[value.isfinite()].double().mean())
        if key.startswith("recall"):
            by_age[key], by_two[key] = _means(value, age), _means(value, age // 2)
    spectrum = (sigma / sigma[:, :1].where(sigma[:, :1] > 0, 1)).nanmean(0).tolist()
    tables = {"recall_by_age": by_age, "spectrum": spectrum}
    failures = [] if math.isfinite(scalars["recall_accuracy"]) else [
        "Nothing was written into the memory, or no answer of it is finite: do not read the absence of recall as 0."
    ]  # fmt: skip
    return ProbeResult(scalars, tables, _figures(by_two, spectrum), failures)


def _means(value: Tensor, place: Tensor) -> list[float]:
    """Means of the finite values at each place from 0 on."""
    known = value.isfinite()
    zeros = torch.zeros(int(place.max()) + 1 if len(place) else 0, dtype=torch.float64)
    count = torch.bincount(place[known], minlength=len(zeros))
    means: list[float] = (zeros.index_add(0, place[known], value[known]) / count).tolist()
    return means


def _figures(by_two: dict[str, list[float]], spectrum: list[float]) -> dict[str, dict[str, Any]]:
    xlabel = "age (later writes); each point is the mean over two neighbouring ages"

    def recall(key: str, title: str, ylabel: str) -> dict[str, Any]:
        series = {"stored value": by_two[key], "control: value of another write": by_two[f"{key}_control"]}
        frame = {"kind": "line", "title": title, "xlabel": xlabel, "ylabel": ylabel}
        return {**frame, "x": by_two["age"], "series": series}

    accuracy = recall("recall_accuracy", "Recall of an association by its age", "share whose nearest value is right")
    return {
        "recall_accuracy": {**accuracy, "ylim": [0, 1]},
        "recall_error": recall("recall_error", "Error of recall by age", "squared error / squared norm of the value"),
        "spectrum": {
            "kind": "line",
            "title": "Singular values of the state",
            "xlabel": "index",
            "ylabel": "relative to the largest",
            "x": list(range(1, len(spectrum) + 1)),
            "series": {"mean over examples": spectrum},
        },
    }
