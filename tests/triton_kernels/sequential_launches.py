"""Launches of the sequential operators for `compile_kernels.py`: forward and backward, at the sizes of recipes."""

import torch
from sequential_cases import draw, gradients

WIDTHS = {"self_referential": (16, 32, 64), "recurrent_delta": (16, 32), "delta_rnn": (16, 32, 64)}


def launch(name, width):
    x, mask = draw(name, B=1, T=2, H=2, D=width, mask="all", dtype=torch.float32)
    gradients(name, x, mask, backend="triton")


CASES = {f"{name} {D}": lambda name=name, D=D: launch(name, D) for name, widths in WIDTHS.items() for D in widths}
