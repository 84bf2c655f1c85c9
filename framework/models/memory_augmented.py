"""LSTMs that program a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from algornn.memory import Associations, AttentionDecomposition, FastWeightMemory
from algornn.memory.associations import check_sizes, clear_masked, keep_valid, state_parts
from algornn.memory.fast_weight_memory import recall, remember
from algornn.models.recurrent import LSTM

Pair = tuple[Tensor, Tensor]


class MemoryAugmentedLSTM(nn.Module):
    """An LSTM whose outputs write and read a memory; the LSTM itself never sees what is read.

    Args:
        input_size: width of the input.
        hidden_size: units of the LSTM.
        memory: called with `hidden_size`; makes the memory layer. None: `FastWeightMemory`.
        forget_bias: see `LSTM`.

    Source: Schlag, Munkhdalai and Schmidhuber (2021), "Learning Associative Inference Using Fast Weight Memory", with
    `FastWeightMemory` as the memory.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        memory: Callable[[int], nn.Module] | None = None,
        forget_bias: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.controller = LSTM(input_size, hidden_size, forget_bias=forget_bias)
        self.memory = (memory or FastWeightMemory)(hidden_size)

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
        written: Any = getattr(self.memory, "fast_weights", None)
        if written is None:
            raise TypeError(
                f"{type(self.memory).__name__} shows no fast weights; give the probe a function of your own."
            )
        return written(z, memory_state, mask)


class DecomposedFastWeightMemory(nn.Module):
    r"""A Fast Weight Memory whose keys, values and queries are slots of an attention over the parts of a token (AID).

    A token is mapped to P parts. An LSTM, shared by the parts, runs over the sequence of each; its outputs
    :math:`h_1 \ldots h_P` are decomposed into the slots e, r, v, and, with the same attention, n and
    :math:`\rho_1 \ldots \rho_N`, all squashed by tanh. Memory and chained reads are those of `FastWeightMemory`, with
    :math:`\beta = \sigma(w \cdot [h_1; \ldots; h_P] + b + 1)`, and

    .. math:: y = \mathrm{dropout}(W_h [h_1; \ldots; h_P]) + W_o n_N

    Args:
        input_size: width of the input.
        hidden_size: units of the LSTM, width of the output.
        parts: P.
        part_size: width of a part before the LSTM.
        slot_size: width of the slots, which is E, R and V.
        reads: N.
        dropout: probability, on the LSTM's share of the output.

    Source: Park, Choi and Lee (2024), "Attention-based Iterative Decomposition for Tensor Product Representation", the
    model of the systematic associative recall task in the released code.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        parts: int = 3,
        part_size: int = 32,
        slot_size: int = 32,
        reads: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size, parts=parts, part_size=part_size, reads=reads)
        self.parts, context = parts, parts * hidden_size
        self.input = nn.Linear(input_size, parts * part_size)
        self.controller = LSTM(part_size, hidden_size)
        sets = (3, 1 + reads)
        self.decomposition = AttentionDecomposition(hidden_size, context, sets, slot_size, 2 * slot_size)
        self.rate = nn.Linear(context, 1)
        self.context, self.dropout = nn.Linear(context, hidden_size), nn.Dropout(dropout)
        self.output = nn.Linear(slot_size, hidden_size)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run over a sequence.

        Args:
            x: tokens ``[B, T, input_size]``.
            state: (h ``[B, P, D]``, c ``[B, P, D]``, fast weights ``[B, s, s, s]``); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        x = clear_masked(x, mask, self.input.in_features)
        P, s, D = self.parts, self.decomposition.slot_size, self.context.out_features
        first_h, first_c, old = state_parts(state, x, h=(P, D), c=(P, D), fast_weights=(s, s, s))
        h, lstm = self._parts(x, first_h, first_c, mask)
        context = h.flatten(2)
        memory = remember(*self._associations(h, context), old, mask)
        n, *roles = self.decomposition(h, context, 1).tanh().unbind(2)
        y = self.dropout(self.context(context)) + self.output(recall(memory, n, roles))
        return keep_valid(y, mask), (*lstm, memory.state)

    def _parts(self, x: Tensor, h: Tensor | None, c: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Pair]:
        """The LSTM's outputs ``[B, T, P, D]`` and its state ``[B, P, D]`` twice: a part is a sequence of its own."""
        B, P = len(x), self.parts
        parts = self.input(x).unflatten(-1, (P, -1)).transpose(1, 2).flatten(0, 1)
        first = None if h is None or c is None else (h.flatten(0, 1)[:, None], c.flatten(0, 1)[:, None])
        y, (h, c) = self.controller(parts, first, None if mask is None else mask.repeat_interleave(P, 0))
        return y.unflatten(0, (B, P)).transpose(1, 2), (h[:, 0].unflatten(0, (B, P)), c[:, 0].unflatten(0, (B, P)))

    def _associations(self, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        e, r, v = self.decomposition(h, context, 0).tanh().unbind(2)
        return e, r, v, (self.rate(context)[..., 0] + 1).sigmoid() / v.shape[-1]

    def fast_weights(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None, mask: Tensor | None = None
    ) -> Associations:
        """Return what was written: per token e r -> v."""
        first_h, first_c, old = (None, None, None) if state is None else state
        h, _ = self._parts(clear_masked(x, mask, self.input.in_features), first_h, first_c, mask)
        associations = self._associations(h, h.flatten(2))
        memory = remember(*associations, old, mask)
        e, r, v, beta = (keep_valid(y, mask) for y in associations)
        return Associations((e[..., None] * r[..., None, :]).flatten(2), v, beta, memory.state.flatten(1, 2))
