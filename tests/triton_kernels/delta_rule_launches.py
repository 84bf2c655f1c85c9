"""Launches of `delta_rule` for `compile_kernels.py`: forward and backward, with all arguments, at a recipe's sizes."""

import torch
from delta_cases import draw, gradients

SIZES = {
    "float32 32": (torch.float32, 32),
    "float32 64": (torch.float32, 64),
    "bfloat16 64": (torch.bfloat16, 64),
    "bfloat16 128": (torch.bfloat16, 128),
}


def launch(dtype, width):
    """The kernels with every argument, then those of the plain delta rule."""
    for given in ({"erase": "given", "decay": "any"}, {"initial": False}):
        x, switches = draw(B=1, T=160, H=2, K=width, V=width, dtype=dtype, **given)
        gradients(x, switches, backend="triton")


CASES = {name: lambda size=size: launch(*size) for name, size in SIZES.items()}
