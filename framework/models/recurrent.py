"""PyTorch's recurrent networks in the contract of this project's sequence layers."""

from __future__ import annotations

from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from algornn.memory.associations import check_sizes, clear_masked, state_parts
from algornn.models.attention import check_probabilities

Parts = tuple[Tensor, ...]
_BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Recurrent(nn.Module):
    """One of PyTorch's recurrent networks, batch first, with a mask.

    Args:
        network: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, batch first.
        parts: the names of the parts of its state.
    """

    def __init__(self, network: nn.RNNBase, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.parts = network, parts
        self.width = network.hidden_size * (2 if network.bidirectional else 1)

    def forward(self, x: Tensor, state: Parts | None = None, mask: Tensor | None = None) -> tuple[Tensor, Parts]:
        """Run over a sequence.

        Args:
            x: tokens ``[B, T, input_size]``.
            state: the parts that an earlier call returned, ``[B, layers, D]`` each; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs of the last layer ``[B, T, D]`` and the new state.
        """
        x = clear_masked(x, mask, self.network.input_size)
        size = (self.network.num_layers, self.width)
        found = state_parts(state, x, **dict.fromkeys(self.parts, size))
        first = tuple(part for part in found if part is not None)
        if x.shape[1] == 0:  # PyTorch refuses no tokens
            return x.new_zeros(len(x), 0, self.width), first or tuple(x.new_zeros(len(x), *size) for _ in self.parts)
        inner = tuple(part.transpose(0, 1).contiguous() for part in first)
        if mask is None or mask.all():  # nothing to pack
            y, new = self._run(x, inner)
        else:
            y, new = self._packed(x, inner, mask)
        return y, tuple(self._batch_first(part) for part in new)

    def _run(self, x: Tensor, first: Parts) -> tuple[Tensor, Parts]:
        """Call the network, whose state is a tuple only where it has several parts."""
        start = None if not first else first[0] if len(self.parts) == 1 else first
        y, new = run_network(self.network, x, start)
        return y, (new,) if len(self.parts) == 1 else new

    def _packed(self, x: Tensor, first: Parts, mask: Tensor) -> tuple[Tensor, Parts]:
        """Run over the unmasked tokens alone, wherever they are; rows without one keep their state."""
        length = mask.sum(1)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[..., None]  # unmasked tokens first, in their order
        tokens = pack_padded_sequence(
            x.take_along_dim(order, 1), length.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, new = self._run(tokens, first)  # type: ignore[arg-type]
        y = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]  # type: ignore[arg-type]
        y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        any_token = (length > 0)[None, :, None]
        first = first or tuple(torch.zeros_like(part) for part in new)
        kept = tuple(torch.where(any_token, after, before) for after, before in zip(new, first, strict=True))
        return y.masked_fill(~mask[..., None], 0), kept

    def _batch_first(self, part: Tensor) -> Tensor:
        """Turn PyTorch's ``[layers * directions, B, H]`` into ``[B, layers, D]``."""
        return part.unflatten(0, (self.network.num_layers, -1)).permute(2, 0, 1, 3).flatten(2)


def run_network(network: nn.RNNBase, x: Any, start: Any = None) -> tuple[Any, Any]:
    """Run one of PyTorch's recurrent networks; in float32 where the processor has no instructions for bfloat16.

    There oneDNN, which runs it under autocast on a CPU, refuses with "could not create a primitive descriptor".
    """
    if _BFLOAT16 or not torch.is_autocast_enabled("cpu") or next(network.parameters()).device.type != "cpu":
        return network(x, start)
    with torch.autocast("cpu", enabled=False):
        return network(x.float(), tree_map(torch.Tensor.float, start) if start is not None else None)


class LSTM(_Recurrent):
    r"""PyTorch's LSTM; its state is (h, c).

    Args:
        input_size: width of the input.
        hidden_size: units of every layer, width of the output.
        layers: number of layers.
        forget_bias: None: PyTorch's two trained biases. A number: one trained bias, 0 at first, and this constant added
            to the forget gates, as TensorFlow's cell and the released Fast Weight Memory have it. The constant lies in
            ``bias_hh``, which is not trained; weights are :math:`U(\pm 1/\sqrt{D})` either way.
        dropout: probability, on what one layer gives to the next.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 200,
        layers: int = 1,
        forget_bias: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        _check(input_size, hidden_size, layers, dropout)
        if forget_bias is not None and not (isinstance(forget_bias, Real) and isfinite(forget_bias)):
            raise ValueError(f"`forget_bias` must be a number, or None for PyTorch's own biases, got {forget_bias!r}.")
        super().__init__(nn.LSTM(input_size, hidden_size, layers, batch_first=True, dropout=dropout), ("h", "c"))
        if forget_bias is None:
            return
        for name, parameter in self.network.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            if name.startswith("bias_hh"):
                nn.init.constant_(parameter[hidden_size : 2 * hidden_size], forget_bias)  # gates: i, f, g, o
                parameter.requires_grad_(False)


class GRU(_Recurrent):
    """PyTorch's GRU; its state is (h,).

    Args:
        input_size: width of the input.
        hidden_size: units of every layer, width of the output.
        layers: number of layers.
        dropout: probability, on what one layer gives to the next.
    """

    def __init__(self, input_size: int, hidden_size: int = 200, layers: int = 1, dropout: float = 0.0) -> None:
        _check(input_size, hidden_size, layers, dropout)
        super().__init__(nn.GRU(input_size, hidden_size, layers, batch_first=True, dropout=dropout), ("h",))


class BidirectionalLSTM(_Recurrent):
    """PyTorch's LSTM in both directions, for sequences that are there as a whole.

    Outputs and state hold the forward half, then the backward half; the state is that of an `LSTM` of `hidden_size`
    units, so that such a decoder can start from it.

    Args:
        input_size: width of the input.
        hidden_size: width of the output; each direction has half as many units.
        layers: number of layers.
        dropout: probability, on what one layer gives to the next.

    Raises:
        ValueError: an odd `hidden_size`; by forward, a state is given: a later part cannot be read backwards first.
    """

    bidirectional = sees_both_sides = True

    def __init__(self, input_size: int, hidden_size: int = 200, layers: int = 1, dropout: float = 0.0) -> None:
        _check(input_size, hidden_size, layers, dropout)
        if hidden_size % 2:
            raise ValueError(f"`hidden_size` is shared by two directions and must be even, got {hidden_size}.")
        network = nn.LSTM(input_size, hidden_size // 2, layers, batch_first=True, dropout=dropout, bidirectional=True)
        super().__init__(network, ("h", "c"))

    def forward(self, x: Tensor, state: Parts | None = None, mask: Tensor | None = None) -> tuple[Tensor, Parts]:
        """Run over a whole sequence; see `LSTM.forward`."""
        if state is not None:
            raise ValueError("`state` must be None: a bidirectional network reads whole sequences. Use LSTM to go on.")
        return super().forward(x, None, mask)


def _check(input_size: int, hidden_size: int, layers: int, dropout: float) -> None:
    check_sizes(input_size=input_size, hidden_size=hidden_size, layers=layers)
    check_probabilities(dropout=dropout)
