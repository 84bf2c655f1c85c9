"""Variable shared meta-learning: networks whose every weight is a small LSTM, all with the same parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.models.in_context import as_outputs, check_streams

_LARGEST = 100.0  # of a class's score


class Cells(NamedTuple):
    """The states of all weights of one layer, ``[B, inputs, outputs, S]`` each."""

    h: Tensor
    c: Tensor


class Messages(NamedTuple):
    """The messages to all layers: from their inputs ``[B, inputs, M]`` and from their outputs ``[B, outputs, M]``."""

    forward: list[Tensor]
    backward: list[Tensor]


class VSML(nn.Module):
    r"""A network of dense layers in which the weight from unit a to unit b is an LSTM, and all LSTMs are the same.

    Every weight has a state :math:`h_{ab}` of S numbers. Units exchange messages of M numbers: f forward, g backward.
    In one tick, from the first layer to the last,

    .. math::
        h_{ab} \leftarrow \mathrm{LSTM}(h_{ab}; [f_a, g_b]), \qquad
        f'_b = \tfrac{1}{A} \textstyle\sum_a F h_{ab}, \qquad g'_a = \tfrac{1}{B} \sum_b G h_{ab}

    f' is the next layer's f, and g' the g of the layer before at the next tick. The first layer's :math:`f_a` begins
    with the input :math:`x_a`; the last layer's :math:`f'_b` begins with the score of class b. An example takes two
    ticks: one with g = 0 at the output, which gives the prediction, and one that tells the last layer :math:`\partial
    loss / \partial score_b` and whether b is the class; of numbers, how far score_b is above y_b, and y_b. The
    parameters, LSTM, F and G, do not depend on the sizes of the network: what is meta-learnt with some inputs and
    classes runs with any.

    With `backward_pass`, what the last layer is told goes through all layers at once, from the last to the first: there
    the second tick repeats the :math:`f_a` of the first, and its :math:`g'` are the g of the layer before in the same
    tick; in the first tick all g are 0. Only with it do layers below the last learn from the example that they saw.

    Half of each cell begins with random numbers (truncated normal, over :math:`\sqrt{A}`), which tells the weights
    apart; they come from `seed` and are the same for every stream and call.

    Args:
        input_size: numbers of an input.
        output_size: number of classes.
        hidden_sizes: units of the layers between.
        state_size: S, at least 2.
        message_size: M, at least 2.
        seed: of the first states.
        gate_bias: added to the forget gates and taken from the input gates: the larger, the slower states change at
            first.
        backward_pass: see above; the same without hidden layers.
        gain: factor of all messages, for the mean over A weights that are new is small.

    The parameter count is 4 S (S + 2 M + 1) + 2 M (S + 1): 2,384 at the default sizes. Without hidden layers G is not
    trained, for its messages go nowhere.

    Source: Kirsch and Schmidhuber (2021), "Meta Learning Backpropagation And Improving It",
    https://arxiv.org/abs/2012.14905, section 3, and the released code. Deviations: prediction and observation are a
    tick each, and messages are not normalised.
    """

    gate_shift: Tensor

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_sizes: Sequence[int] = (),
        state_size: int = 16,
        message_size: int = 8,
        seed: int = 0,
        gate_bias: float = 5.0,
        backward_pass: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.backward_pass, self.gain = backward_pass, gain
        self.sizes = (input_size, *hidden_sizes, output_size)
        if min(self.sizes) < 1:
            raise ValueError(f"Every layer of VSML needs at least one unit, got sizes {self.sizes}.")
        if message_size < 2:
            raise ValueError(f"`message_size` must be at least 2, for the error and the class, got {message_size}.")
        if state_size < 2:
            raise ValueError(f"`state_size` must be at least 2, half of it random at first, got {state_size}.")
        if not 0 < gain < math.inf:
            raise ValueError(f"`gain` must be a number above 0, got {gain}.")
        if not math.isfinite(gate_bias):
            raise ValueError(f"`gate_bias` must be a number, got {gate_bias}.")
        self.state_size, self.message_size, self.seed = state_size, message_size, seed
        S, M = state_size, message_size
        self.forward_in, self.backward_in = nn.Linear(M, 4 * S, bias=False), nn.Linear(M, 4 * S, bias=False)
        self.recurrent = nn.Linear(S, 4 * S)
        self.forward_out, self.backward_out = nn.Linear(S, M), nn.Linear(S, M)
        for layer, fan_in in ((self.forward_in, S + 2 * M), (self.backward_in, S + 2 * M), (self.recurrent, S + 2 * M)):
            nn.init.trunc_normal_(layer.weight, std=fan_in**-0.5)
        for layer in (self.forward_out, self.backward_out):
            nn.init.trunc_normal_(layer.weight, std=S**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.recurrent.bias)
        shift = torch.tensor([-gate_bias, gate_bias, 0.0]).repeat_interleave(S)  # of input, forget and output gates
        self.register_buffer("gate_shift", shift, persistent=False)
        self.backward_out.requires_grad_(bool(hidden_sizes))  # without hidden layers nobody reads its messages

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from streams of examples, and predict each before its class is told.

        Args:
            x: inputs ``[B, T, D]``.
            y: classes ``[B, T]``, or numbers for a network of one output; the last one is not looked at.

        Returns:
            Logits ``[B, T, C]``, those of example t from inputs 1 to t and classes 1 to t - 1.
        """
        check_streams(x, y, self.sizes[0])
        if not x.shape[1]:
            return x.new_zeros(len(x), 0, self.sizes[-1])
        cells = self.first_cells(x)
        messages = Messages([], [x.new_zeros(len(x), size, self.message_size) for size in self.sizes[1:]])
        logits = []
        for t in range(x.shape[1]):
            score = self.tick(cells, messages, x[:, t], None)
            logits.append(score)
            if t + 1 < x.shape[1]:
                told = as_outputs(y[:, t], score.shape[-1]).to(score.dtype)
                guess = score if y.is_floating_point() else score.softmax(-1)
                told = torch.stack([guess - told, told], -1)
                if self.backward_pass:
                    self.learn(cells, messages, told)
                else:
                    self.tick(cells, messages, x[:, t], told)
        return torch.stack(logits, 1)

    def first_cells(self, x: Tensor) -> list[Cells]:
        """The first states of all layers for the streams of x ``[B, ...]``."""
        generator, cells = torch.Generator().manual_seed(self.seed), []
        for a, b in pairwise(self.sizes):
            c = self.random_half((a, b), generator) * a**-0.5
            c = c.to(x).expand(len(x), -1, -1, -1)
            cells.append(Cells(torch.zeros_like(c), c))
        return cells

    def random_half(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Numbers ``[..., S]``, the first half from the standard normal cut at 2, the others 0."""
        empty = torch.empty(*shape, self.state_size // 2, dtype=torch.float32)  # whatever the default is
        half = nn.init.trunc_normal_(empty, generator=generator)
        return F.pad(half, (0, self.state_size - half.shape[-1]))

    def tick(self, cells: list[Cells], messages: Messages, x: Tensor, told: Tensor | None) -> Tensor:
        """One tick of all layers from the first to the last, in place of the lists' entries.

        Args:
            cells: the states of all layers.
            messages: the messages to all layers; the forward ones are overwritten.
            x: the input ``[B, D]``.
            told: what the last layer is told, ``[B, C, 2]``; None: nothing.

        Returns:
            The classes' scores ``[B, C]``.
        """
        M, forward, backward = self.message_size, messages.forward, messages.backward
        f = F.pad(x[..., None], (0, M - 1))
        backward[-1] = torch.zeros_like(backward[-1]) if told is None else F.pad(told, (0, M - 2))
        forward.clear()
        sent = []
        for layer, g in enumerate(backward):
            forward.append(f)
            cells[layer], f, back = self.layer(cells[layer], f, g)
            sent.append(back)
        if not self.backward_pass:
            backward[:-1] = sent[1:]
        return _LARGEST * (f[..., 0] / _LARGEST).tanh()

    def learn(self, cells: list[Cells], messages: Messages, told: Tensor) -> None:
        """One tick of all layers from the last to the first, with the forward messages of the tick before.

        Args:
            cells: the states of all layers, replaced in place.
            messages: as `tick` has left them.
            told: what the last layer is told, ``[B, C, 2]``.
        """
        g = F.pad(told, (0, self.message_size - 2))
        for layer in reversed(range(len(cells))):
            cells[layer], _, g = self.layer(cells[layer], messages.forward[layer], g)

    def layer(self, old: Cells, f: Tensor, g: Tensor) -> tuple[Cells, Tensor, Tensor]:
        """One tick of one layer.

        Args:
            old: its states.
            f: messages from its inputs, ``[B, inputs, M]``.
            g: messages from its outputs, ``[B, outputs, M]``.

        Returns:
            The new states, messages to the outputs ``[B, outputs, M]``, messages to the inputs ``[B, inputs, M]``.
        """
        gates = self.recurrent(old.h) + self.forward_in(f)[:, :, None] + self.backward_in(g)[:, None]
        opened, new = gates.split([3 * self.state_size, self.state_size], -1)
        i, forget, o = (opened + self.gate_shift).sigmoid().chunk(3, -1)
        c = forget * old.c + i * new.tanh()
        h = o * c.tanh()
        # The mean over weights before the linear map: the same, and much less to map.
        return Cells(h, c), self.gain * self.forward_out(h.mean(1)), self.gain * self.backward_out(h.mean(2))
