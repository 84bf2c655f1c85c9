"""The LSTM in the contract of this project's sequence layers, and an LSTM that programs a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from algornn.memory import Associations, FastWeightMemory
from algornn.memory.associations import clear_masked

Pair = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    r"""PyTorch's LSTM, batch first, with a mask.

    Args:
        input_size: width of the input.
        hidden_size: units of every layer, width of the output.
        layers: number of layers.
        forget_bias: None: PyTorch's two trained biases. A number: one trained bias, 0 at first, and this constant added
            to the forget gates, as TensorFlow's cell and the released Fast Weight Memory have it. The constant lies in
            ``bias_hh``, which is not trained; weights are :math:`U(\pm 1/\sqrt{D})` either way.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int = 1, forget_bias: float | None = None) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, layers, batch_first=True)
        if forget_bias is None:
            return
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            if name.startswith("bias_hh"):
                nn.init.constant_(parameter[hidden_size : 2 * hidden_size], forget_bias)  # gates: i, f, g, o
                parameter.requires_grad_(False)

    def forward(self, x: Tensor, state: Pair | None = None, mask: Tensor | None = None) -> tuple[Tensor, Pair]:
        """Run over a sequence.

        Args:
            x: tokens ``[B, T, input_size]``.
            state: (h, c), ``[B, layers, D]`` each; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs of the last layer ``[B, T, D]`` and the new state.
        """
        if x.shape[1] == 0:  # PyTorch's LSTM refuses no tokens
            zeros = x.new_zeros(len(x), self.lstm.num_layers, self.lstm.hidden_size)
            return x.new_zeros(len(x), 0, self.lstm.hidden_size), (zeros, zeros) if state is None else state
        first = None
        if state is not None:
            first = (state[0].transpose(0, 1).contiguous(), state[1].transpose(0, 1).contiguous())
        if mask is None:
            y, (h, c) = self.lstm(x, first)
        else:
            y, (h, c) = self._packed(clear_masked(x, mask), first, mask)
        return y, (h.transpose(0, 1), c.transpose(0, 1))

    def _packed(self, x: Tensor, first: Pair | None, mask: Tensor) -> tuple[Tensor, Pair]:
        """Run over the unmasked tokens alone, wherever they are; rows without one keep their state."""
        length = mask.sum(1)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[..., None]  # unmasked tokens first, in their order
        tokens = pack_padded_sequence(
            x.take_along_dim(order, 1), length.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, new = self.lstm(tokens, first)
        y = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]
        y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        any_token = (length > 0)[None, :, None]
        first = (torch.zeros_like(new[0]), torch.zeros_like(new[1])) if first is None else first
        h, c = (torch.where(any_token, after, before) for after, before in zip(new, first, strict=True))
        return y.masked_fill(~mask[..., None], 0), (h, c)


class MemoryAugmentedLSTM(nn.Module):
    """An LSTM whose outputs write and read a memory; the LSTM itself never sees what is read.

    Args:
        input_size: width of the input.
        hidden_size: units of the LSTM.
        memory: called with `hidden_size`; makes the memory layer.
        forget_bias: see `LSTM`.

    Source: Schlag, Munkhdalai and Schmidhuber (2021), "Learning Associative Inference Using Fast Weight Memory", with
    `FastWeightMemory` as the memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        memory: Callable[[int], nn.Module] = FastWeightMemory,
        forget_bias: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.controller = LSTM(input_size, hidden_size, forget_bias=forget_bias)
        self.memory = memory(hidden_size)

    def forward(
        self, x: Tensor, state: tuple[Pair, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Pair, Tensor]]:
        """Run over tokens ``[B, T, D]``; the state is that of the LSTM and that of the memory."""
        lstm_state, memory_state = (None, None) if state is None else state
        z, lstm_state = self.controller(x, lstm_state, mask)
        y, memory_state = self.memory(z, memory_state, mask)
        return y, (lstm_state, memory_state)

    def fast_weights(
        self, x: Tensor, state: tuple[Pair, Tensor] | None = None, mask: Tensor | None = None
    ) -> Associations:
        """Return what was written to the memory."""
        lstm_state, memory_state = (None, None) if state is None else state
        z, _ = self.controller(x, lstm_state, mask)
        memory: Any = self.memory  # with fast weights to show, or the probe says that there are none
        return memory.fast_weights(z, memory_state, mask)
