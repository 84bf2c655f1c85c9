"""Recurrent fast weight programmers whose fast weights are written from the inputs: Delta RNN and Delta LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algornn.memory.associations import Associations, clear_masked, merge_heads, state_parts
from algornn.memory.feature_maps import EluPlusOne
from algornn.memory.linear_transformer import split_size, sum_normalized
from algornn.triton_kernels import delta_rnn, delta_rule
from algornn.triton_kernels.arguments import accumulation_dtype, keep_valid

State = tuple[Tensor, ...]


class DeltaRNN(nn.Module):
    r"""A DeltaNet whose output also passes through a recurrent fast weight matrix R.

    .. math::
        z_t &= W_t^\top \hat q_t \quad\text{with } W \text{ updated by the delta rule from } \hat k, v, \beta \\
        R_t &= R_{t-1} + \beta'_t k'_t (v'_t - R_{t-1}^\top k'_t)^\top, \qquad k' = \mathrm{softmax}(\cdot) \\
        h_t &= z_t + R_t^\top \mathrm{softmax}(h_{t-1}), \qquad y_t = W_o h_t

    with :math:`\hat q, \hat k` as in `DeltaNet` (elu + 1, divided by their sum). The state is h before its softmax.

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going Beyond Linear Transformers with Recurrent Fast Weight
    Programmers", sec. 3.2, version 2 of the authors' code.
    """

    def __init__(self, input_size: int, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.head_size = heads, split_size(input_size, heads)
        self.feature_map = EluPlusOne()
        self.slow = nn.Linear(input_size, 5 * input_size + 2 * heads, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token.

        Args:
            x: tokens ``[B, T, D]``.
            state: (W ``[B, H, D/H, D/H]``, R ``[B, H, D/H, D/H]``, h ``[B, H, D/H]``); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        (q, k, v, beta), (rk, rv, rbeta) = self._heads(clear_masked(x, mask, self.slow.in_features))
        d = (self.head_size, self.head_size)
        W, R, h = state_parts(state, x, W=(self.heads, *d), R=(self.heads, *d), h=(self.heads, self.head_size))
        z, W = delta_rule(q, k, v, beta, initial_state=W, mask=mask)
        recurrent = None if R is None or h is None else (R, h)
        y, (R, h) = delta_rnn(z, rk, rv, rbeta, recurrent, mask)
        return self.output(merge_heads(y)), (W, R, h)

    def _heads(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        rows = self.slow(x).unflatten(-1, (self.heads, -1))
        q, k, v, rk, rv, beta, rbeta = rows.split([self.head_size] * 5 + [1, 1], -1)
        q, k = (sum_normalized(self.feature_map(y)) for y in (q, k))
        return (q, k, v, beta[..., 0].sigmoid()), (rk.softmax(-1), rv, rbeta[..., 0].sigmoid())

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written to W and to R, the heads of W before those of R."""
        written, recurrent = self._heads(clear_masked(x, mask, self.slow.in_features))
        k, v, beta = (torch.cat(pair, 2) for pair in zip(written[1:], recurrent, strict=True))
        W, R, _ = self(x, state, mask)[1]
        return Associations.of_heads(k, v, beta, torch.cat([W, R], 1), mask)


class DeltaLSTM(nn.Module):
    r"""An LSTM whose gates are read from six fast weight matrices, all written from the inputs by the delta rule.

    With :math:`s_t = \mathrm{softmax}(h_{t-1})` and, for every gate g of i, u, o, a forward matrix read as
    :math:`z^g_t = W_t^{g\top} \hat q_t` and a recurrent one, :math:`R^g_t`:

    .. math::
        i_t &= \sigma(z^i_t + R_t^{i\top} s_t), \quad u_t = z^u_t + R_t^{u\top} s_t, \quad
        o_t = \sigma(z^o_t + R_t^{o\top} s_t) \\
        c_t &= i_t \odot u_t + (1 - i_t) \odot c_{t-1}, \qquad h_t = o_t \odot c_t, \qquad y_t = W_o h_t

    The update u is not squashed. Keys and queries of the forward matrices are as in `DeltaNet`, the keys of the
    recurrent ones pass a softmax.

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), sec. 3.2, version 4 of the authors' code. Only the reads of
    the recurrent matrices are sequential; they are a loop over tokens in torch.
    """

    def __init__(self, input_size: int, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.head_size = heads, split_size(input_size, heads)
        self.feature_map = EluPlusOne()
        # A query for each forward matrix, a key, a value and a write strength for each of the six.
        self.slow = nn.Linear(input_size, 15 * input_size + 6 * heads, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token.

        Args:
            x: tokens ``[B, T, D]``.
            state: (W ``[B, 3H, d, d]``, R ``[B, 3H, d, d]``, h ``[B, H, d]``, c ``[B, H, d]``), d = D/H; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        (q, k, v, beta), recurrent = self._heads(clear_masked(x, mask, self.slow.in_features))
        H, d = self.heads, self.head_size
        matrices, vectors = (3 * H, d, d), (H, d)
        W, R, h, c = state_parts(state, x, W=matrices, R=matrices, h=vectors, c=vectors)
        z, W = delta_rule(q, k, v, beta, initial_state=W, mask=mask)
        with torch.autocast(x.device.type, enabled=False):
            hs, (R, h, c) = self._gates(z, recurrent, R, h, c, mask)
        return self.output(merge_heads(keep_valid(hs, mask).to(z.dtype))), (W, R, h, c)

    def _heads(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Queries and what is written, each with 3H heads: to the forward and to the recurrent matrices."""
        rows = self.slow(x).unflatten(-1, (3 * self.heads, -1))
        q, k, v, rk, rv, beta, rbeta = rows.split([self.head_size] * 5 + [1, 1], -1)
        q, k = (sum_normalized(self.feature_map(y)) for y in (q, k))
        return (q, k, v, beta[..., 0].sigmoid()), (rk.softmax(-1), rv, rbeta[..., 0].sigmoid())

    def _gates(
        self, z: Tensor, recurrent: tuple[Tensor, ...], R: Tensor | None, h: Tensor | None, c: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Read the recurrent matrices token by token, in the dtype of sums: z ``[B, T, 3H, d]``, i before u and o."""
        to = accumulation_dtype(z)
        z, rk, rv, rbeta = (y.to(to) for y in (z, *recurrent))
        d = self.head_size
        zeros = [z.new_zeros(len(z), *size) for size in ((3 * self.heads, d, d), (self.heads, d), (self.heads, d))]
        R, h, c = (zero if y is None else y for y, zero in zip((R, h, c), zeros, strict=True))
        hs: list[Tensor] = []
        for t in range(z.shape[1]):
            k = rk[:, t, :, :, None]
            u = rbeta[:, t, :, None] * (rv[:, t] - (R * k).sum(2))
            new_R = R + k * u[:, :, None]
            gates = z[:, t] + (new_R * h.softmax(-1).repeat(1, 3, 1)[..., None]).sum(2)
            i, u, o = gates.chunk(3, 1)
            new_c = i.sigmoid() * u + (1 - i.sigmoid()) * c
            new_h = o.sigmoid() * new_c
            if mask is not None:
                counts = mask[:, t, None, None]
                new_h, new_c = torch.where(counts, new_h, h), torch.where(counts, new_c, c)
                new_R = torch.where(counts[..., None], new_R, R)
            R, h, c = new_R, new_h, new_c
            hs.append(h)
        return torch.stack(hs, 1) if hs else z[:, :, : self.heads], (R, h, c)

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written to the six matrices, 3H forward heads before 3H recurrent ones."""
        written, recurrent = self._heads(clear_masked(x, mask, self.slow.in_features))
        k, v, beta = (torch.cat(pair, 2) for pair in zip(written[1:], recurrent, strict=True))
        W, R, *_ = self(x, state, mask)[1]
        return Associations.of_heads(k, v, beta, torch.cat([W, R], 1), mask)
