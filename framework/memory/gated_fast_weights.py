"""Gated fast weights: a slow network decides, entry by entry, what a fast recurrent network's weights become."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import check_sizes, clear_masked, state_or_zeros
from algornn.triton_kernels.arguments import accumulation_dtype, keep_valid

State = tuple[Tensor, Tensor, Tensor, Tensor]


class GatedFastWeights(nn.Module):
    r"""A slow RNN that writes the two weight matrices of a fast RNN, mixing old and new entries by a rank-one gate.

    For :math:`F_1 \in R^{n \times (n + n_x)}` and :math:`F_2 \in R^{n \times n}`, each with a, b, g, d from the slow s:

    .. math::
        s_t &= \tanh(W_s s_{t-1} + U_s x_t), \qquad H = \tanh(a) \otimes \tanh(b), \qquad
        T = \sigma(g) \otimes \sigma(d), \qquad F \leftarrow T \odot H + (1 - T) \odot F \\
        h_t &= \mathrm{LN}(\tanh(F_2 \, \mathrm{LN}(\tanh(F_1 [h_{t-1}; x_t]))))

    with LN without affine parameters.

    Args:
        input_size: :math:`n_x`, width of the input.
        hidden_size: n, units of the fast network, width of the output.
        slow_size: units of the slow network; None: n.

    Source: Schlag and Schmidhuber (2017), "Gated Fast Weights for On-The-Fly Neural Program Generation", with the
    sigmoid gate of the paper (the only public port has tanh). No published number is at hand to compare with.
    """

    def __init__(self, input_size: int, hidden_size: int = 50, slow_size: int | None = None) -> None:
        super().__init__()
        n, slow_size = hidden_size, hidden_size if slow_size is None else slow_size
        check_sizes(input_size=input_size, hidden_size=n, slow_size=slow_size)
        self.slow = nn.RNNCell(input_size, slow_size)
        # a, b, g, d for F1 (n rows, n + n_x columns) and for F2 (n rows and columns).
        self.sizes = [n, n + input_size] * 2 + [n, n] * 2
        self.program = nn.Linear(slow_size, sum(self.sizes))
        self.hidden_size, self.input_size = n, input_size

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence, token by token.

        Args:
            x: tokens ``[B, T, input_size]``.
            state: (s ``[B, slow_size]``, F1 ``[B, n, n + input_size]``, F2 ``[B, n, n]``, h ``[B, n]``); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs h ``[B, T, n]`` and the new state.
        """
        x = clear_masked(x, mask, self.input_size)
        to, B, n = accumulation_dtype(x), len(x), self.hidden_size
        wide, slow_size = (n, n + self.input_size), (self.slow.hidden_size,)
        s, *fast = state_or_zeros(state, x, to, s=slow_size, F1=wide, F2=(n, n), h=(n,))
        slow = self._slow_states(x.to(to), s, mask)
        hs: list[Tensor] = []
        for t, program in enumerate(self.program(slow.to(x.dtype)).to(to).unbind(1)):
            new = self._step(x[:, t].to(to), program, *fast)
            if mask is not None:
                counts = mask[:, t, None]
                new = [
                    torch.where(counts if y.dim() == 2 else counts[..., None], y, old)
                    for y, old in zip(new, fast, strict=True)
                ]
            fast = new
            hs.append(fast[2])
        y = torch.stack(hs, 1) if hs else x.new_zeros(B, 0, n)
        s = torch.cat([s[:, None], slow], 1)[:, -1]
        return keep_valid(y, mask).to(x.dtype), (s, *fast)  # type: ignore[return-value]  # three tensors

    def _slow_states(self, x: Tensor, s: Tensor, mask: Tensor | None) -> Tensor:
        """Run the slow network, which never sees the fast one: x ``[B, T, input_size]`` to s ``[B, T, slow_size]``."""
        cell = self.slow
        with torch.autocast(x.device.type, enabled=False):
            U, W, bias = (y.to(x.dtype) for y in (cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh))
            inputs = F.linear(x, U, bias)
            states: list[Tensor] = []
            for t in range(x.shape[1]):
                new = (inputs[:, t] + s @ W.mT).tanh()
                s = new if mask is None else torch.where(mask[:, t, None], new, s)
                states.append(s)
        return torch.stack(states, 1) if states else inputs

    def _step(self, x: Tensor, program: Tensor, F1: Tensor, F2: Tensor, h: Tensor) -> list[Tensor]:
        a1, b1, g1, d1, a2, b2, g2, d2 = program.split(self.sizes, -1)
        with torch.autocast(x.device.type, enabled=False):
            F1, F2 = _mix(F1, a1, b1, g1, d1), _mix(F2, a2, b2, g2, d2)
            inner = (F1 @ torch.cat([h, x], 1)[..., None])[..., 0].tanh()
            inner = F.layer_norm(inner, (self.hidden_size,))
            h = F.layer_norm((F2 @ inner[..., None])[..., 0].tanh(), (self.hidden_size,))
        return [F1, F2, h]


def _mix(old: Tensor, a: Tensor, b: Tensor, g: Tensor, d: Tensor) -> Tensor:
    gate = g.sigmoid()[:, :, None] * d.sigmoid()[:, None]
    return gate * (a.tanh()[:, :, None] * b.tanh()[:, None]) + (1 - gate) * old
