"""Does a decoder see the target one step later? Asked once, of a network that is about to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from algornn.models.seq2seq import EOS_ID, shifted

_TOKENS = 8  # that are compared: an error shows at once, and states need not be carried far
_TOLERANCE = 1e-2  # of the logits' norm: above TF32's rounding, below what a token more or less makes


@torch.no_grad()
def check_shift(
    model: nn.Module, source: Tensor, target: Tensor, source_mask: Tensor | None, target_mask: Tensor | None = None
) -> None:
    """Raise a ValueError where a network sees the token that it has to name, or decodes otherwise than it reads.

    Args:
        model: the network of a `SequenceToSequence`; nothing of it is changed, and no random number is used up.
        source: ids ``[B, S]``.
        target: ids ``[B, T]``; the first tokens of the first two rows are looked at.
        source_mask: ``[B, S]`` bool or None.
        target_mask: ``[B, T]`` bool, False at tokens whose logits do not matter; None: all do.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled network would be compiled for these small sizes, too
    source, target = source[:2], target[:2, :_TOKENS]
    if source_mask is not None:  # as in a batch of these two rows, where the longest is not padded
        longest = int(source_mask[:2].sum(1).max())
        source, source_mask = source[:, :longest], source_mask[:2, :longest]
    asked = torch.ones_like(target, dtype=torch.bool) if target_mask is None else target_mask[:2, :_TOKENS]
    t = target.shape[1] // 2
    # Ids that the target itself has: every network knows them, and takes none of them for padding.
    others = torch.cat([target[:, :t], torch.where(target[:, t:] == EOS_ID, target.max(), EOS_ID)], 1)
    with _undisturbed(model, source.device):
        logits = model(source, target, source_mask)
        logits = logits.where(asked[..., None], 0)
        if _differ(model(source, target, source_mask), logits, asked):
            return  # it draws random numbers, and no two of its outputs can be compared
        if _differ(model(source, others, source_mask)[:, : t + 1], logits[:, : t + 1], asked[:, : t + 1]):
            raise ValueError(
                f"forward of {type(model).__name__} sees the token that it has to name: "
                "the decoder must see target one step later, id 0 first."
            )
        if torch.is_autocast_enabled(source.device.type) or torch.finfo(logits.dtype).bits < 32:
            return  # rounding alone may part the two
        if _differ(_stepped(model, source, target, source_mask), logits, asked):
            raise ValueError(
                f"forward of {type(model).__name__} and its start and step give other logits for the same tokens: "
                "in both the decoder must see target one step later, id 0 first."
            )


def _stepped(model: Any, source: Tensor, target: Tensor, source_mask: Tensor | None) -> Tensor:
    """The logits of `start` and `step`, fed with what the decoder reads of a target."""
    state, logits = model.start(source, source_mask), []
    for token in shifted(target).unbind(1):
        found, state = model.step(token, state)
        logits.append(found)
    return torch.stack(logits, 1)


def _differ(found: Tensor, wanted: Tensor, asked: Tensor) -> bool:
    """Whether logits are others; not where they are not finite, which is no matter of the shift."""
    return bool((found.where(asked[..., None], 0) - wanted).norm() > _TOLERANCE * wanted.norm())


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation that leaves modes, buffers, random numbers and autocast's cache as they were."""
    modules = list(model.modules())
    modes, buffers = [module.training for module in modules], [dict(module._buffers) for module in modules]
    kind = device.type
    cuda = [device] if kind == "cuda" else []
    # A weight that autocast casts without gradients must not lie in its cache for the training step.
    autocast = torch.autocast(
        kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
    )
    with torch.random.fork_rng(cuda), autocast:
        try:
            for module in modules:  # not by eval(), which may be a module's own; buffers are written into as copies
                module.training = False
                module._buffers.update({k: v if v is None else v.clone() for k, v in module._buffers.items()})
            yield
        finally:
            for module, mode, own in zip(modules, modes, buffers, strict=True):
                module.training = mode
                module._buffers.update(own)
