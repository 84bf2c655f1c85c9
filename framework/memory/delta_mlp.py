"""Fast weight programmers of depth: a fast multi-layer perceptron, and a memory that programs another memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import Associations, check_sizes, clear_masked, merge_heads, state_parts
from algornn.memory.linear_transformer import split_size, sum_normalized
from algornn.triton_kernels import delta_rule

State = tuple[Tensor, ...]


def _features(x: Tensor) -> Tensor:
    return sum_normalized(F.elu(x) + 1)


class DeltaMLP(nn.Module):
    r"""A fast feed-forward network of D blocks, all its weights written by the delta rule from the input.

    With :math:`\phi(x) = (\mathrm{elu}(x) + 1) / \sum_i (\mathrm{elu}(x_i) + 1)`, from the query :math:`h_0 = q`:

    .. math::
        a = A_t^\top \phi(\mathrm{LN}(h_{j-1})), \qquad h_j = h_{j-1} + B_t^\top \phi(a), \qquad y_t = W_o h_D

    where A (d to 4d) and B (4d to d) of every block and head have keys, values and write strengths of their own.

    Args:
        input_size: width of the input and the output.
        heads: number of heads; it divides the input size.
        depth: D, blocks of the fast network.
        expansion: width of the hidden layer as a multiple of the head's width d.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going Beyond Linear Transformers with Recurrent Fast Weight
    Programmers", sec. 3.1, the Delta MLP.
    """

    def __init__(self, input_size: int, heads: int = 8, depth: int = 1, expansion: int = 4) -> None:
        super().__init__()
        check_sizes(depth=depth, expansion=expansion)
        d = split_size(input_size, heads)
        self.heads = heads
        # Per block: keys d and 4d of A and B, their values 4d and d, two write strengths.
        self.block_sizes = [d, expansion * d, expansion * d, d, 1, 1]
        self.slow = nn.Linear(input_size, heads * (d + depth * sum(self.block_sizes)), bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(depth)])
        self.output = nn.Linear(input_size, input_size, bias=False)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write every token to all fast layers, then let it pass through them.

        Args:
            x: tokens ``[B, T, D]``.
            state: A ``[B, H, d, 4d]`` and B ``[B, H, 4d, d]`` of every block, in order; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        h, written = self._heads(clear_masked(x, mask, self.slow.in_features))
        d, wide = self.block_sizes[:2]
        shapes = {
            f"{name}{j + 1}": (self.heads, *size)
            for j in range(len(self.norms))
            for name, size in (("A", (d, wide)), ("B", (wide, d)))
        }
        old = state_parts(state, x, **shapes)
        new: list[Tensor] = []
        for j, norm in enumerate(self.norms):
            a, A = delta_rule(_features(norm(h)), *written[2 * j], initial_state=old[2 * j], mask=mask)
            read, B = delta_rule(_features(a), *written[2 * j + 1], initial_state=old[2 * j + 1], mask=mask)
            h = h + read
            new += [A, B]
        return self.output(merge_heads(h)), tuple(new)

    def _heads(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return the query, and key, value and write strength of every fast layer."""
        rows = self.slow(x).unflatten(-1, (self.heads, -1))
        q, *parts = rows.split([self.block_sizes[0], *self.block_sizes * len(self.norms)], -1)
        written = []
        for j in range(len(self.norms)):
            key_a, key_b, value_a, value_b, beta_a, beta_b = parts[6 * j : 6 * j + 6]
            written.append((_features(key_a), value_a, beta_a[..., 0].sigmoid()))
            written.append((_features(key_b), value_b, beta_b[..., 0].sigmoid()))
        return q, written

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written to A of the first block, the heads after one another."""
        _, written = self._heads(clear_masked(x, mask, self.slow.in_features))
        return Associations.of_heads(*written[0], self(x, state, mask)[1][0], mask)


class DeltaDelta(nn.Module):
    r"""A DeltaNet whose queries, keys, values and write strengths are read from another DeltaNet's memory.

    .. math::
        [q', k', v', b']_t = P_t^\top \phi(q_t), \qquad
        S_t = S_{t-1} + \sigma(b'_t) \phi(k'_t) (v'_t - S_{t-1}^\top \phi(k'_t))^\top, \qquad
        y_t = W_o S_t^\top \phi(q'_t)

    where the program :math:`P \in R^{d \times (3d + 1)}` of every head is written by the delta rule from the input, and
    :math:`\phi` is as in `DeltaMLP`.

    Args:
        input_size: width of the input and the output.
        heads: number of heads; it divides the input size.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), sec. 3.1, the Delta-Delta Net.
    """

    def __init__(self, input_size: int, heads: int = 8) -> None:
        super().__init__()
        self.heads, self.head_size = heads, split_size(input_size, heads)
        self.slow = nn.Linear(input_size, 5 * input_size + 2 * heads, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write every token to the program, run what the program says on the inner memory, and read that.

        Args:
            x: tokens ``[B, T, D]``.
            state: (P ``[B, H, d, 3d + 1]``, S ``[B, H, d, d]``) with d = D/H; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        q, k, v, beta = self._heads(clear_masked(x, mask, self.slow.in_features))
        H, d = self.heads, self.head_size
        P, S = state_parts(state, x, P=(H, d, 3 * d + 1), S=(H, d, d))
        program, P = delta_rule(q, k, v, beta, initial_state=P, mask=mask)
        q, k, v, beta = program.split([self.head_size] * 3 + [1], -1)
        y, S = delta_rule(_features(q), _features(k), v, beta[..., 0].sigmoid(), initial_state=S, mask=mask)
        return self.output(merge_heads(y)), (P, S)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d = self.head_size
        q, k, v, beta = self.slow(x).unflatten(-1, (self.heads, -1)).split([d, d, 3 * d + 1, 1], -1)
        return _features(q), _features(k), v, beta[..., 0].sigmoid()

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written to the program, the heads after one another."""
        _, k, v, beta = self._heads(clear_masked(x, mask, self.slow.in_features))
        return Associations.of_heads(k, v, beta, self(x, state, mask)[1][0], mask)
