r"""Learns one binary mask over frozen weights: sampling, the gradient of the logits, and Adam on them.

With a uniform u in (0, 1), logistic noise is :math:`g = \log u - \log(1 - u)`, so that

.. math::
    \ell + g > 0 \iff u\,e^\ell > 1 - u, \quad s (1 - s) = \frac{u\,e^\ell (1 - u)}{(u\,e^\ell + 1 - u)^2}

takes one exponential per weight and step, and no logarithm per sample. The masks of one step, each for an equal slice
of the batch, go through the model together wherever `torch.func.vmap` can run it, and one by one otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.func import vmap

from algornn.probes.batches import size_of, take
from algornn.probes.model_copy import call_with
from algornn.probes.subject import Subject

INIT = 2.0  # of the logits: a weight is kept with probability 0.88 at first
_LARGEST = 30.0  # size of a logit beyond which sampling does not tell it from this: sigmoid(-30) is 1e-13
_BLOCK = 2**18  # entries that are sampled at a time
_TOGETHER = 2**27  # entries of all sampled masks of one step up to which they are run together


class MaskLearning:
    """The learning of one mask; `advance` may be called in several parts.

    Args:
        subject: the frozen model and its loss.
        weights: what is masked, by name.
        lr: learning rate of Adam.
        beta: strength of the penalty; its gradient on each logit is beta over the size of the batch.
        samples: masks per step, each for an equal slice of the batch.
        grouped: whether to run the masks of a step together; None: if the model and the loss allow it.
    """

    def __init__(
        self,
        subject: Subject,
        weights: dict[str, Tensor],
        lr: float,
        beta: float,
        samples: int,
        grouped: bool | None = None,
    ) -> None:
        self.subject = subject
        self.weights = weights
        self.beta = beta
        self.samples = samples
        self.grouped = grouped
        self.sizes = [weight.numel() for weight in weights.values()]
        self.theta = torch.cat([weight.flatten() for weight in weights.values()])
        self.logits = torch.full_like(self.theta, INIT)
        self._samplers: dict[int, MaskSampler] = {}
        # eps: 1e-8 is not small beside beta / size and would slow the drift of idle weights.
        self.adam = torch.optim.Adam([self.logits], lr=lr, eps=1e-20, fused=subject.device.type in ("cpu", "cuda"))

    def advance(self, batches: Sequence[Any], order: Sequence[int], generator: torch.Generator) -> Tensor:
        """Take one step on each of the batches named by `order`, and return the logits ``[P]``."""
        for index in order:
            self.logits.grad = self.gradient(batches[index], generator)
            self.adam.step()
        return self.logits

    def state(self, done: int, generator: torch.Generator) -> dict[str, Any]:
        """What `resume` needs after `done` steps."""
        return {
            "done": done,
            "logits": self.logits,
            "adam": self.adam.state_dict(),
            "grouped": self.grouped,
            "generator": generator.get_state(),
        }

    def resume(self, state: dict[str, Any] | None, generator: torch.Generator) -> int:
        """Go on from a `state`, bit for bit, and return the number of steps that it had done; 0 without one."""
        if state is None:
            return 0
        self.logits.copy_(state["logits"])
        self.adam.load_state_dict(state["adam"])
        self.grouped = state["grouped"]
        generator.set_state(state["generator"])
        return int(state["done"])

    def gradient(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The gradient of L: the mean over sampled masks, each on a slice of the batch, and the penalty's constant."""
        size = size_of(batch)
        K = min(self.samples, size)
        if K not in self._samplers:
            self._samplers = {K: MaskSampler(self.logits, K)}
        hard, slope = self._samplers[K](self.logits, generator)
        masked = hard.mul_(self.theta)
        states = {
            name: part.view(K, *weight.shape).detach().requires_grad_()
            for (name, weight), part in zip(self.weights.items(), masked.split(self.sizes, 1), strict=True)
        }
        if self._can_group(size, K):
            try:
                return self._total(slope, self._grouped(states, batch, K), size)
            except Exception:  # whatever vmap does not know, such as aten::lstm, data-dependent control flow, noise
                if self.grouped:
                    raise
                self.grouped = False
        return self._total(slope, self._looped(states, batch, size, K), size)

    def _can_group(self, size: int, K: int) -> bool:
        return self.grouped is not False and size % K == 0 and K * len(self.theta) <= _TOGETHER

    def _total(self, slope: Tensor, gradients: list[Tensor], size: int) -> Tensor:
        """Sum over the sampled masks of dL/dm s (1 - s), where dL/dm is theta times that of the masked weight."""
        total = torch.empty_like(self.theta)
        parts = zip(slope.split(self.sizes, 1), gradients, total.split(self.sizes), strict=True)
        for part, gradient, out in parts:  # mask by mask: a gradient that lies transposed is read where it is
            shape = gradient.shape[1:]
            torch.mul(part[0].view(shape), gradient[0], out=out.view(shape))
            for one, own in zip(part[1:], gradient[1:], strict=True):
                out.view(shape).addcmul_(one.view(shape), own)
        return total.mul_(self.theta).add_(self.beta / size)

    def _grouped(self, states: dict[str, Tensor], batch: Any, K: int) -> list[Tensor]:
        size = size_of(batch)
        tensors: list[Tensor] = []

        def cut(value: Tensor) -> Tensor:
            if value.ndim and len(value) == size:
                tensors.append(value.unflatten(0, (K, -1)))
            return value

        apply_to_collection(batch, Tensor, cut)

        def one(state: dict[str, Tensor], *slices: Tensor) -> Tensor:
            parts = iter(slices)
            piece = apply_to_collection(
                batch, Tensor, lambda value: next(parts) if value.ndim and len(value) == size else value
            )
            return self.subject.loss(_call(self.subject.model, state), piece)

        with _no_fast_attention():
            return _gradients(vmap(one)(states, *tensors).mean(), states)

    def _looped(self, states: dict[str, Tensor], batch: Any, size: int, K: int) -> list[Tensor]:
        edges = [size * k // K for k in range(K + 1)]
        rows = []
        for k, (start, stop) in enumerate(pairwise(edges)):
            with _holding(self.subject.model, {name: value.detach()[k] for name, value in states.items()}) as masked:
                loss = self.subject.loss(self.subject.model, take(batch, slice(start, stop)))
                rows.append(_gradients(loss * ((stop - start) / size), masked))
        return [torch.stack(parts) for parts in zip(*rows, strict=True)]


class MaskSampler:
    """Draws K binary masks with P(m = 1) = sigmoid(logits), and the slopes s (1 - s) of the soft ones.

    Args:
        like: logits ``[P]``.
        K: number of masks.
    """

    def __init__(self, like: Tensor, K: int) -> None:
        # Memory is taken once, for what is not returned a block of it.
        self.block = min(len(like), max(1, _BLOCK // K))
        self.bits = torch.empty((K * self.block + 1) // 2, dtype=torch.int64, device=like.device)
        self.odds, self.rest = (like.new_empty(K * self.block) for _ in range(2))
        self.hard, self.slope = (like.new_empty(K, len(like)) for _ in range(2))

    def __call__(self, logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masks and slopes, each ``[K, P]``; the next call overwrites them."""
        for start in range(0, len(logits), self.block):
            part = slice(start, start + self.block)
            hard, slope = self.hard[:, part], self.slope[:, part]
            odds, rest = (x[: hard.numel()].view(hard.shape) for x in (self.odds, self.rest))
            # Two numbers of 32 bits from each one of 64: half the cost of torch.rand.
            bits = self.bits.random_(-(2**63), None, generator=generator).view(torch.int32)
            odds.copy_(bits[: hard.numel()].view(hard.shape)).mul_(2.0**-32).add_(0.5)
            torch.sub(1, odds, out=rest)
            odds.mul_(logits[part].clamp(-_LARGEST, _LARGEST).exp_())
            torch.gt(odds, rest, out=hard)
            torch.mul(odds, rest, out=slope)
            slope.div_(odds.add_(rest).square_())
        return self.hard, self.slope


def masked_call(model: nn.Module, weights: dict[str, Tensor], mask: Tensor) -> Callable[..., Any]:
    """The model's forward with `weights` multiplied by their parts of the flat `mask`."""
    parts = mask.split([weight.numel() for weight in weights.values()])
    state = {name: weight * part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}
    return _call(model, state)


def _call(model: nn.Module, state: dict[str, Tensor]) -> Callable[..., Any]:
    return lambda *args, **kwargs: call_with(model, state, *args, **kwargs)


@contextmanager
def _holding(model: nn.Module, state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let the model's own parameters hold other values, with gradients, until the block ends.

    A functional call would be over before the backward pass, in which gradient checkpointing runs the forward again.
    """
    held = {name: parameter for name, parameter in model.named_parameters() if name in state}
    before = {name: parameter.data for name, parameter in held.items()}
    try:
        for name, parameter in held.items():
            parameter.data = state[name]
            parameter.requires_grad_(True)
        yield dict(held)
    finally:
        for name, parameter in held.items():
            parameter.requires_grad_(False)
            parameter.data = before[name]


@contextmanager
def _no_fast_attention() -> Iterator[None]:
    """Without the kernel of attention that has no gradient, which PyTorch takes where vmap hides that one is needed."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _gradients(loss: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """Gradients of the masked weights; zeros for those that the loss does not depend on.

    Raises:
        ValueError: it depends on none of them.
    """
    if not loss.requires_grad:
        raise ValueError("The loss does not depend on the masked weights: is the forward under no_grad?")
    found = torch.autograd.grad(loss, list(state.values()), allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, state.values(), strict=True)]
