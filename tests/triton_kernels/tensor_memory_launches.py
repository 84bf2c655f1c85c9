"""Launches of `tensor_memory` for `compile_kernels.py`: forward and backward, at the sizes of recipes."""

import torch
from memory_cases import draw, gradients

SIZES = {"TPR-RNN": (90, 20, 90), "TPR-RNN quickstart": (32, 12, 32), "memory of 32": (32, 32, 32)}


def launch(E, R, V):
    for erase in ("shared entity", "none"):
        x, switches = draw(B=1, T=30, M=3, E=E, R=R, V=V, erase=erase, dtype=torch.float32)
        gradients(x, switches, backend="triton")


CASES = {name: lambda size=size: launch(*size) for name, size in SIZES.items()}
