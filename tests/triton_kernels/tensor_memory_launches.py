"""Launches of `tensor_memory` for `compile_kernels.py`: forward and backward, at the sizes of recipes."""

import torch
from memory_cases import draw, gradients

SIZES = {"TPR-RNN": (90, 20, 90), "TPR-RNN quickstart": (32, 12, 32), "memory of 32": (32, 32, 32)}
SYSTEMS = ({"erase": "shared entity"}, {"erase": "none", "decay": "any"})
CLAMPS = ({"mask": "holes"}, {"initial": False})  # the Fast Weight Memory


def launch(variants, T, M, E, R, V):
    for variant in variants:
        x, switches = draw(B=1, T=T, M=M, E=E, R=R, V=V, dtype=torch.float32, **variant)
        gradients(x, switches, backend="triton")


CASES = {name: lambda size=size: launch(SYSTEMS, 30, 3, *size) for name, size in SIZES.items()}
CASES["Fast Weight Memory"] = lambda: launch([{"clamp": True} | clamp for clamp in CLAMPS], 200, 1, 32, 32, 32)
CASES["the widest clamp"] = lambda: launch([{"clamp": True}], 20, 1, 128, 64, 128)
