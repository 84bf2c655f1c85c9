"""Which form of an operator runs, and how a form with a hand-written backward becomes differentiable. Once, for all.

Every operator has a literal loop ("reference"), a form in plain torch ("torch") and kernels ("triton"). The kernels of
an operator lie beside it in `<operator>_triton.py`, the only kind of file that imports Triton when it is loaded, and
that is itself imported on first use.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("triton", "torch", "reference")
TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None
Tensors = Sequence[Tensor | None]


def choose_backend(operator: str, backend: str, tensor: Tensor, refusal: Callable[[], str | None]) -> str:
    """Return the form that runs: ``"triton"``, ``"torch"`` or ``"reference"``.

    ``"auto"`` takes the kernels for CUDA tensors where Triton is installed, and the torch form elsewhere; where the
    kernels do not take the arguments, it says so once and goes on with the torch form.

    Args:
        operator: its name, for messages.
        backend: what the caller asked for.
        tensor: any of the arguments; its device decides.
        refusal: says why the kernels do not take the arguments, or None; called only where kernels can run at all.

    Raises:
        ValueError: an unknown backend, or ``"triton"`` where it cannot run.
    """
    if backend not in ("auto", *BACKENDS):
        names = ("auto", *BACKENDS)
        close = difflib.get_close_matches(str(backend), names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"`backend` must be one of {', '.join(map(repr, names))}, got {backend!r}{hint}.")
    if backend in ("torch", "reference"):
        return backend
    if backend == "auto" and (tensor.device.type != "cuda" or not TRITON_IS_INSTALLED or under_transform()):
        return "torch"
    reason = _no_kernels(tensor) or refusal()
    if backend == "triton" and reason:
        raise ValueError(f"`backend='triton'` cannot run {operator} here: {reason}. Use backend='auto' or 'torch'.")
    if reason:
        _warn_once(f"{operator} runs in its torch form: {reason}. backend='torch' chooses it without this warning.")
    return "torch" if reason or under_transform() else "triton"


def _no_kernels(tensor: Tensor) -> str | None:
    """Say why no kernel can run on the device of `tensor`, or None."""
    if not TRITON_IS_INSTALLED:
        return "Triton is not installed"
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {tensor.device}, and Triton needs CUDA tensors (or TRITON_INTERPRET=1)"
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels compute in float32 and do not take {tensor.dtype}"
    return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


@torch.compiler.assume_constant_result  # the compiler enters the transforms of what it traces, so this asks it rightly
def under_transform() -> bool:
    """Whether vmap, forward mode or another transform of torch.func is at work: it must see through the operator."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def differentiable(
    name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[[Tensors, Sequence[Any], Sequence[Tensor], Sequence[int]], list[Tensor]],
    fake: Callable[..., tuple[Tensor, ...]],
    composite: Callable[..., tuple[Tensor, ...]],
) -> Callable[..., tuple[Tensor, ...]]:
    """Make one differentiable function of a forward and a backward pass; `torch.compile` keeps it as one node.

    The gradient of the gradient is that of `composite`, so derivatives of any order are right. A caller under a
    transform of torch.func must take `composite` itself (`under_transform`): forward mode would silently see zeros.

    Args:
        name: unique name of the function.
        forward: tensors (some of them optional), then whole numbers, all positional and typed, to a tuple of new
            tensors: the outputs, then whatever `backward` wants kept.
        backward: called with the gradients of the outputs (None where there is none), the tensor arguments (None where
            one was not given), all outputs, and the whole numbers; returns the gradients of the floating-point
            arguments that were given (masks have none), in their order.
        fake: `forward` in shapes alone.
        composite: the outputs, without what is kept, from the same arguments by differentiable torch operations.
    """
    function = torch.library.custom_op(f"algornn::{name}", forward, mutates_args=())
    function.register_fake(fake)
    gradient = torch.library.custom_op(
        f"algornn::{name}_gradient",
        backward,
        mutates_args=(),
        schema="(Tensor?[] gradients, Tensor?[] inputs, Tensor[] outputs, int[] numbers) -> Tensor[]",
    )

    @gradient.register_fake
    def _(gradients: Tensors, inputs: Tensors, outputs: list[Tensor], numbers: list[int]) -> list[Tensor]:
        given = [x for x in inputs if x is not None and x.is_floating_point()]
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]

    def keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.arguments = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.numbers = [x for x in inputs if isinstance(x, int)]
        ctx.tensor_count = len(inputs) - len(ctx.numbers)
        ctx.save_for_backward(*(inputs[i] for i in ctx.places), *output)

    def pull(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given, outputs = saved[: len(ctx.places)], saved[len(ctx.places) :]
        arguments = list(ctx.arguments)
        for place, tensor in zip(ctx.places, given, strict=True):
            arguments[place] = tensor
        # The pass may be called under an autocast that the forward pass did not see.
        with torch.autocast(outputs[0].device.type, enabled=False):
            if torch.is_grad_enabled() or _batched(gradients):  # create_graph, or is_grads_batched
                found = _differentiable_gradients(composite, arguments, gradients)
            else:
                dense = [None if g is None else g.contiguous() for g in gradients]
                found = gradient(dense, arguments[: ctx.tensor_count], list(outputs), ctx.numbers)
        values = iter(found)
        return tuple(next(values) if isinstance(x, Tensor) and x.is_floating_point() else None for x in arguments)

    function.register_autograd(pull, setup_context=keep)
    return function


def _batched(gradients: Sequence[Tensor | None]) -> bool:
    """Whether autograd computes a batch of gradients at once, which only plain operations can."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    return any(
        g is not None and (functorch.is_batchedtensor(g) or functorch.is_legacy_batchedtensor(g)) for g in gradients
    )


def _differentiable_gradients(
    composite: Callable[..., tuple[Tensor, ...]], arguments: list, gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Compute the gradients of `composite` by plain operations: again differentiable where gradients are enabled."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view of each, so that gradients stop at an argument even where another was computed from it or is the same.
        arguments = [x.view_as(x) if isinstance(x, Tensor) else x for x in arguments]
        given = [x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
        pairs = [(y, g) for y, g in zip(composite(*arguments), gradients, strict=False) if g is not None]
        outputs, cotangents = zip(*[(y, g) for y, g in pairs if y.requires_grad], strict=True)
        wanted = [x for x in given if x.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=again, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in given]
