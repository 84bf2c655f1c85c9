"""The Recurrent Delta Network: queries, keys, values and write strengths depend on the previous output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algornn.memory.associations import Associations, clear_masked, merge_heads
from algornn.memory.linear_transformer import split_size
from algornn.triton_kernels import recurrent_delta

State = tuple[Tensor, Tensor]


class RecurrentDeltaNet(nn.Module):
    r"""A fast weight memory that is programmed by what it answered before.

    With :math:`s_t = \tanh(y_{t-1})`, for every head:

    .. math::
        q_t &= \mathrm{softmax}(W_q x_t + R_q s_t), \quad k_t = \mathrm{softmax}(W_k x_t + R_k s_t), \quad
        v_t = W_v x_t + R_v s_t, \quad \beta_t = \sigma(w_\beta x_t + r_\beta \cdot s_t) \\
        S_t &= S_{t-1} + \beta_t k_t (v_t - S_{t-1}^\top k_t)^\top, \qquad y_t = S_t^\top q_t

    and the outputs of all heads are projected. :math:`R_q, R_k, R_v, r_\beta \sim N(0, 1/\sqrt{d})` at first, with the
    width d of a head.

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going Beyond Linear Transformers with Recurrent Fast Weight
    Programmers", sec. 3.2, the RDN.
    """

    def __init__(self, input_size: int, heads: int = 8) -> None:
        super().__init__()
        d = split_size(input_size, heads)
        self.heads, self.head_size = heads, d
        self.slow = nn.Linear(input_size, 3 * input_size + heads, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)
        draw = lambda *shape: nn.Parameter(torch.randn(heads, *shape) * d**-0.5)  # noqa: E731
        self.R_q, self.R_k, self.R_v, self.r_beta = draw(d, d), draw(d, d), draw(d, d), draw(d)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token.

        Args:
            x: tokens ``[B, T, D]``.
            state: (S ``[B, H, D/H, D/H]``, y ``[B, H, D/H]``); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        y, state = self._run(self._heads(clear_masked(x, mask, self.slow.in_features)), state, mask)
        return self.output(merge_heads(y)), state

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = self.slow(x).unflatten(-1, (self.heads, -1))
        q, k, v, beta = rows.split([self.head_size] * 3 + [1], -1)
        return q, k, v, beta[..., 0]

    def _run(self, heads: tuple[Tensor, ...], state: State | None, mask: Tensor | None) -> tuple[Tensor, State]:
        q, k, v, beta = heads
        return recurrent_delta(q, k, v, beta, self.R_q, self.R_k, self.R_v, self.r_beta, state, mask)

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written, the heads after one another.

        Raises:
            ValueError: the mask has holes: what a token writes depends on the output before it.
        """
        if mask is not None and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("`fast_weights` of RecurrentDeltaNet takes padding at the end of a sequence only.")
        heads = self._heads(clear_masked(x, mask, self.slow.in_features))
        y, (S, _) = self._run(heads, state, mask)
        first = y.new_zeros(len(y), *y.shape[2:]) if state is None else state[1].to(y.dtype)
        s = torch.cat([first[:, None], y[:, :-1]], 1).tanh()
        _, k, v, beta = heads
        k, v = (a + torch.einsum("hij,bthj->bthi", R, s) for a, R in ((k, self.R_k), (v, self.R_v)))
        beta = (beta + (s * self.r_beta).sum(-1)).sigmoid()
        return Associations.of_heads(k.softmax(-1), v, beta, S, mask)
