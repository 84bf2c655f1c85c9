"""The self-referential weight matrix: it makes the keys, queries and learning rates of its own updates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algornn.memory.associations import clear_masked, merge_heads
from algornn.memory.linear_transformer import split_size
from algornn.triton_kernels import self_referential


class SelfReferentialMatrix(nn.Module):
    r"""A weight matrix that modifies itself while it runs, one per head.

    .. math::
        [y_t, a^q_t, a^k_t, a^\beta_t] = x_t W_{t-1}, \quad q = \mathrm{softmax}(a^q), \;
        k = \mathrm{softmax}(a^k), \; \eta = \sigma(a^\beta) \in R^4 \\
        W_t = W_{t-1} + k_t^\top [\eta_{t,g} (q_t W_{t-1} - k_t W_{t-1})_g]_g

    with a learning rate for each of the four groups of columns; the outputs of all heads are projected. What is trained
    is the first matrix :math:`W_0 \in R^{d \times (3d + 4)}`.

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.
        query_key_scale: factor of the first weights of q and k. 1 as published; 0.01 in Automated Continual Learning
            (Irie et al. 2023). `match_queries` sets those of k.

    Source: Irie, Schlag, Csordas and Schmidhuber (2022), "A Modern Self-Referential Weight Matrix That Learns to Modify
    Itself", eq. 5 to 8; :math:`W_0 \sim N(0, 1/\sqrt{d})`. The input is used as it is, without a softmax.
    """

    def __init__(self, input_size: int, heads: int = 8, query_key_scale: float = 1.0) -> None:
        super().__init__()
        d = split_size(input_size, heads)
        self.heads = heads
        first = torch.randn(heads, d, 3 * d + 4) * d**-0.5
        first[..., d : 3 * d] *= query_key_scale
        self.first = nn.Parameter(first)
        self.output = nn.Linear(input_size, input_size, bias=False)

    @torch.no_grad()
    def match_queries(self) -> None:
        """Make the keys softmax(x), which inputs like x read, until training parts them."""
        d = self.first.shape[1]
        self.first[..., 2 * d : 3 * d] = torch.eye(d).to(self.first)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read every token with the matrix that the tokens before it have left, then let it modify the matrix.

        Args:
            x: tokens ``[B, T, D]``.
            state: the matrix W ``[B, H, d, 3d + 4]`` with d = D/H; None: the trained first one.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new matrix.
        """
        x = clear_masked(x, mask, self.output.in_features)
        W = self.first.expand(len(x), *self.first.shape) if state is None else state
        y, W = self_referential(x.unflatten(-1, (self.heads, -1)), W, mask)
        return self.output(merge_heads(y)), W
