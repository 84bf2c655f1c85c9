"""A copy of a live model that a probe may do anything to: eager, whole, in float32, with nothing attached."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

# FSDP2 is known to torch from 2.6 on; an empty tuple makes `isinstance` false.
_SHARDED: Any = getattr(fsdp, "FSDPModule", ())


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a live model for probing; the live model is only read.

    The copy is in eval mode, requires no gradient, has half-precision weights as float32 and refers to no trainer.
    Compiled modules are copied as the eager modules inside them. Tied weights stay tied; forward hooks that belong to
    the model (such as weight normalisation) stay in force. Of a model that `fully_shard` has dealt to processes every
    process gets the whole: all of them have to call this together.

    Raises:
        TypeError: the model holds FullyShardedDataParallel modules, whose weights cannot be gathered within a step, or
            something that cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, fsdp.FullyShardedDataParallel):
            raise TypeError("A probe cannot copy FullyShardedDataParallel modules: use fully_shard or DDP.")
        for name in ("_trainer", "_fabric", "_compiler_ctx"):
            if vars(module).get(name) is not None:
                memo[id(vars(module)[name])] = None
        # Tensors that carry a graph (a recurrent state kept between batches) cannot be deep-copied.
        for leaf in tree_leaves(list(vars(module).values())):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    for module in model.modules():
        if hasattr(module, "_orig_mod"):
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    for module in _children_first(model):
        if isinstance(module, _SHARDED):
            memo[id(module)] = _whole(module, memo)
    try:
        twin = copy.deepcopy(model, memo)
    except TypeError as error:
        raise TypeError(
            f"A probe measures a copy of the model, but {_stubborn(model, memo)} cannot be copied ({error}): keep it "
            "outside of the model, or give its class a __deepcopy__."
        ) from error
    if getattr(model, "_compiler_ctx", None) is not None:
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            vars(twin).pop(name, None)  # compiled entry points would run the live model
    twin._apply(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)
    return twin.eval().requires_grad_(False)


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> Any:
    """The model's forward with `tensors` in the place of parameters and buffers of these names, for this call alone.

    Tied ones are replaced together, each module once: of a module with two names (`self.encode = self.encoder`)
    `functional_call` puts back what the first name had replaced, and then under the second name what it had put there.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = {id(own[name]): tensor for name, tensor in tensors.items()}
    placed: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for of in (module.named_parameters, module.named_buffers):
            places = of(path, recurse=False, remove_duplicate=False)
            placed |= {name: given[id(tensor)] for name, tensor in places if id(tensor) in given}
    return functional_call(model, placed, args, kwargs, tie_weights=False)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has neither."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _stubborn(model: nn.Module, memo: dict[int, Any]) -> str:
    """The first attribute of a module that cannot be copied."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                try:
                    copy.deepcopy(value, dict(memo))
                except TypeError:
                    return f"{path}.{name}".lstrip(".")
    return "a part of it"


def _children_first(model: nn.Module) -> Iterator[nn.Module]:
    """All modules, every one after those inside it, in the same order on every process."""
    return reversed(list(model.modules()))


def _whole(module: Any, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module of FSDP2 as the plain module that it was, its weights gathered from all processes."""
    module.reshard()  # weights that the last forward left gathered may be of lower precision
    for parameter in module.parameters():
        if hasattr(parameter, "full_tensor") and id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(parameter.detach().full_tensor().clone())
    content = {key: value for key, value in vars(module).items() if "composable_api_state" not in key}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_pre_hooks", "_state_dict_hooks"):
        ours = {key: hook for key, hook in content[hooks].items() if not _of_fsdp(hook)}
        content[hooks] = type(content[hooks])(ours)
    plain: Any = next(kind for kind in type(module).__mro__[1:] if not issubclass(kind, _SHARDED))
    twin: nn.Module = plain.__new__(plain)
    vars(twin).update(copy.deepcopy(content, memo))
    return twin


def _of_fsdp(hook: Any) -> bool:
    owner = getattr(hook, "__self__", hook)
    return ".fsdp." in getattr(type(owner), "__module__", "") or ".fsdp." in (getattr(hook, "__module__", "") or "")
