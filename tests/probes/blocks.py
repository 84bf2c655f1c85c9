"""Tasks on the blocks of a matrix, whose masks are known."""

import math

import torch
from torch import nn

M = 6  # width of a block


def relative_error(call, batch):
    """Mean squared error over the outputs that the task asks for, relative to the targets' mean square."""
    x, y = batch
    asked, target = ~y.isnan(), y.nan_to_num()
    return ((call(x) - target) * asked).square().sum() / target.square().sum()


def matrix(n, generator):
    """Entries of random sign, 0.5 to 1.5 in size: none of them is negligible."""
    return (0.5 + torch.rand(n, n, generator=generator)) * (torch.randint(0, 2, (n, n), generator=generator) * 2 - 1)


def block_tasks(weight, batches=4, b=64):
    """Task k puts numbers into block k of x and asks for block k of y."""
    generator, tasks = torch.Generator().manual_seed(1), {}
    for k in range(2):
        block = slice(k * M, (k + 1) * M)
        data = []
        for _ in range(batches):
            x, y = torch.zeros(b, 2 * M), torch.full((b, 2 * M), math.nan)
            x[:, block] = torch.randn(b, M, generator=generator)
            y[:, block] = x[:, block] @ weight[block, block].T
            data.append((x, y))
        tasks[f"task {k + 1}"] = data
    return tasks


def linear(weight, bias=None):
    layer = nn.Linear(*weight.shape, bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer
