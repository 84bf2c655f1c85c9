"""Cloning of a learning algorithm: the cells of VSML are taught what backpropagation does to one weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from algornn.learners.checks import check_whole
from algornn.meta.in_context import InContextLearner
from algornn.meta.vsml import VSML, Cells

_INPUTS = (1.0, 5.0)  # logarithm of the number of inputs of the layers that cells are taken from
_ERRORS = (-3.0, 0.0)  # logarithm of the size of a cell's errors
_CLASS = 0.1  # share of the ticks that tell the right class
_AFTER = 0.1  # factor of the learning rate after cloning


class BackpropagationCloning(InContextLearner):
    r"""Teach `VSML` to run backpropagation by its states alone, and then, if there are steps left, to learn better.

    In its first `cloning_steps` the training looks at no data, only at random numbers. A single cell begins with the
    states of one in a layer of random width; the first number of its c stands for a weight w. In examples t it is
    shown forward messages :math:`x_t` and errors :math:`e_t`, and has to send, by its first message each,

    .. math::
        f'_t = \gamma\, w_t \tanh x_t \text{ when } x_t \text{ comes alone}, \qquad
        g'_t = \gamma\, w_t e_t (1 - \tanh^2 x_t) \text{ with } e_t, \qquad w_{t+1} = w_t - \eta\, e_t \tanh x_t

    and 0 by all other messages, :math:`\gamma` being the network's `gain`. So the cells of a network, which then only
    run forward, do what stochastic gradient descent does to units :math:`z_b = \gamma\, \mathrm{mean}_a w_{ab}
    \tanh z_a`: with A inputs and B outputs, a layer's rate in it is :math:`\eta A / \gamma` times A / B for every
    layer above. The loss is the mean square of the messages' deviations over :math:`\gamma`, summed over both messages;
    the errors of a cell are correlated with its inputs, as they are where there is something to learn.

    From then on it is trained as an `InContextLearner` with a tenth of the learning rate, and the rule leaves
    backpropagation behind. Scores are an `InContextLearner`'s from the start.

    Args:
        model: the network. Its `backward_pass` has to be set where it has hidden layers.
        optimizer: called with the parameters that are trained; None: Adam with its defaults.
        cooldown: share of the training, at its end, over which the learning rate falls linearly to 0.
        cloning_steps: optimizer steps of cloning, over which the learning rate falls linearly to a tenth.
        rate: :math:`\eta`.
        cells: cells of a step of cloning, per process.
        examples: what each of them is shown.

    Source: Kirsch and Schmidhuber (2021), "Meta Learning Backpropagation And Improving It",
    https://arxiv.org/abs/2012.14905, section 3.2. Assumed: distributions and sizes.
    """

    def __init__(
        self,
        model: VSML,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] | None = None,
        cooldown: float = 0.0,
        cloning_steps: int = 2000,
        rate: float = 0.05,
        cells: int = 256,
        examples: int = 30,
    ) -> None:
        super().__init__(model, optimizer, cooldown=cooldown)
        if not isinstance(model, VSML):
            raise TypeError(f"`model` must be a VSML, whose cells are cloned, got {type(model).__name__}.")
        if len(model.sizes) > 2 and not model.backward_pass:
            raise ValueError("`model` has hidden layers, which backpropagation reaches only with `backward_pass`.")
        check_whole(1, cells=cells, examples=examples)
        check_whole(0, cloning_steps=cloning_steps)
        if not 0 < rate < math.inf:
            raise ValueError(f"`rate` must be above 0, got {rate}.")
        self.cloning_steps, self.rate, self.cells, self.examples = cloning_steps, rate, cells, examples
        model.backward_out.requires_grad_(True)  # a rule for deeper networks, too

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of cloning, or later that of a batch."""
        if self.global_step >= self.cloning_steps:
            idle = sum(p.sum() for p in cast(VSML, self.model).backward_out.parameters())  # without hidden layers
            return super().training_step(batch, batch_idx) + 0 * idle
        batch_number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        number = batch_number * self.trainer.world_size + self.global_rank
        loss = self.deviation(torch.Generator().manual_seed(hash((torch.initial_seed(), number))))
        self.log("train/cloning", loss, prog_bar=True, sync_dist=True)
        return loss

    def deviation(self, generator: torch.Generator) -> Tensor:
        """The loss of cloning, on numbers from a generator of the CPU."""
        net, N = cast(VSML, self.model), self.cells
        like = net.recurrent.weight

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(like)

        def between(low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(N, generator=generator)).to(like)

        def message(*numbers: Tensor) -> Tensor:
            return F.pad(torch.stack(numbers, -1)[:, None], (0, net.message_size - len(numbers)))

        c = net.random_half((N, 1, 1), generator).to(like) / between(*_INPUTS).exp().sqrt().view(-1, 1, 1, 1)
        w, cell = c[:, 0, 0, 0], Cells(torch.zeros_like(c), c)
        shared, size, nothing = between(-1, 1), between(*_ERRORS).exp(), torch.zeros_like(w)
        total = torch.zeros_like(w[0])
        for _ in range(self.examples):
            x = normal(N)
            e = size * (shared * x + (1 - shared**2).sqrt() * normal(N))
            told = (torch.rand(N, generator=generator) < _CLASS).to(like)
            active = x.tanh()
            cell, forward, _ = net.layer(cell, message(x), message(nothing))
            cell, _, back = net.layer(cell, message(x), message(e, told))
            for sent, wanted in ((forward, w * active), (back, w * e * (1 - active**2))):
                total = total + (sent / net.gain - message(wanted)).square().sum(-1).mean()
            w = w - self.rate * e * active
        return total / self.examples

    def _learning_rate_factor(self, step: int) -> float:
        gone = min(1.0, step / self.cloning_steps) if self.cloning_steps else 1.0
        return (1 - (1 - _AFTER) * gone) * super()._learning_rate_factor(step)
