"""The tensor-product memory of the TPR-RNN: write, move and backlink, then three chained reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import Associations, check_sizes, clear_masked
from algornn.memory.attention_decomposition import AttentionDecomposition, SlotComponents
from algornn.triton_kernels import TensorMemory, tensor_memory
from algornn.triton_kernels.arguments import keep_valid


class MLPHeads(nn.Module):
    r"""Several two-layer heads on one input: :math:`\tanh(W_2 \tanh(W_1 x + b_1) + b_2)` each.

    The first layers are one matrix, which changes nothing but the time. Glorot-uniform weights, zero biases.

    Args:
        input_size: width of the input D.
        output_sizes: width of every head's output.
        hidden_size: hidden units of every head.
    """

    def __init__(self, input_size: int, output_sizes: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(input_size, hidden_size * len(output_sizes))
        second = [nn.Linear(hidden_size, size) for size in output_sizes]
        self.second = nn.ModuleList(second)
        # Glorot's bound of one head, not of the stacked matrix.
        bound = (6 / (input_size + hidden_size)) ** 0.5
        nn.init.uniform_(self.first.weight, -bound, bound)
        for layer in second:
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.first, *second):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map ``[..., D]`` to one ``[..., size]`` per head."""
        hidden = torch.tanh(self.first(x)).chunk(len(self.second), dim=-1)
        return [torch.tanh(layer(h)) for layer, h in zip(self.second, hidden, strict=True)]


class TensorProductMemory(nn.Module):
    r"""Fast weights ``S [E, R, E]`` written by every token and read in three chained steps.

    With :math:`e_1, e_2, r_1, r_2, r_3` from heads on the token and :math:`S(e, r) = S^\top (e \otimes r)`:

    .. math::
        S \leftarrow S + e_1 \otimes r_1 \otimes (e_2 - S(e_1, r_1))
            + e_1 \otimes r_2 \otimes (S(e_1, r_1) - S(e_1, r_2)) + e_2 \otimes r_3 \otimes (e_1 - S(e_2, r_3))

    all three at once (write, move, backlink). A query gives :math:`n, l_1, l_2, l_3` and
    :math:`i_1 = N_1(S(n, l_1)), i_2 = N_2(S(i_1, l_2)), i_3 = N_3(S(i_2, l_3))`, answer :math:`i_1 + i_2 + i_3`, where
    :math:`N(z) = g (z - \bar z) / \sqrt{\mathrm{var}\, z + 10^{-7}} + b` with scalar g, b.

    Keys are not normalised: where :math:`\|e\|^2 \|r\|^2 > 2` the update expands, and long sequences overflow. Keep the
    inputs small, as the sentence encoder of `TPRRNN` does (entries of about 0.1, not of unit variance).

    Args:
        input_size: width D of tokens and queries.
        entity_size: E.
        role_size: R.
        hidden_size: hidden units of every head.
        unused_query_head: also keep the second query-entity head of the released code, which nothing reads. It makes
            the parameter count that of the original; under data parallelism it needs `find_unused_parameters`.
        decomposition: None: the heads are MLPs of the token. Otherwise tokens and queries come as sets of words
            ``[..., W, D]``, and the components are slots of this attention (parts of 5 and of 4 slots); those of the
            query are not squashed. The released code of AID also clamps every entry of the state's increment to
            [-1, 1], which only the literal loop could follow, and gives every N vectors g, b; here neither is so.

    Source: Schlag and Schmidhuber (2018), "Learning to Reason with Third-Order Tensor Products", eq. 4 to 14.
    """

    def __init__(
        self,
        input_size: int,
        entity_size: int = 90,
        role_size: int = 20,
        hidden_size: int = 40,
        unused_query_head: bool = False,
        decomposition: AttentionDecomposition | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, entity_size=entity_size, role_size=role_size, hidden_size=hidden_size)
        entity, role = entity_size, role_size
        written, read = (entity, entity, role, role, role), (entity, role, role, role)
        self.write_heads: nn.Module
        self.read_heads: nn.Module
        if decomposition is None:
            self.write_heads, self.read_heads = (MLPHeads(input_size, sizes, hidden_size) for sizes in (written, read))
        else:
            self.write_heads = SlotComponents(decomposition, 0, written, tanh=True)
            self.read_heads = SlotComponents(decomposition, 1, read, tanh=False)
        self.input_size = input_size if decomposition is None else None  # words come in a dimension of their own
        self.unused_query_head = MLPHeads(input_size, (entity,), hidden_size) if unused_query_head else None
        self.gain = nn.Parameter(torch.ones(3))
        self.bias = nn.Parameter(torch.zeros(3))

    def write(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> TensorMemory:
        """Write every token of x ``[B, T, D]`` into the state ``[B, E, R, E]`` (None: zeros); mask ``[B, T]`` bool."""
        return self._write(self.write_heads(x), state, mask)

    @staticmethod
    def _write(heads: list[Tensor], state: Tensor | None, mask: Tensor | None) -> TensorMemory:
        e1, e2, r1, r2, r3 = heads
        entities = torch.stack([e1, e1, e2], dim=2)
        # Moving the old S(e1, r1) to (e1, r2) is an erase key e1 (r2 - r1) with the value 0.
        return tensor_memory(
            write=(entities, torch.stack([r1, r2, r3], dim=2)),
            values=torch.stack([e2, torch.zeros_like(e2), e1], dim=2),
            erase=(entities, torch.stack([r1, r2 - r1, r3], dim=2)),
            initial_state=state,
            mask=mask,
        )

    def read(self, memory: TensorMemory, query: Tensor, causal: bool = False) -> Tensor:
        """Answer queries ``[B, D]``, ``[B, N, D]`` or, with `causal`, ``[B, T, D]`` by three reads: ``[..., E]``."""
        n, *roles = self.read_heads(query)
        answer = torch.zeros_like(n)
        for hop, role in enumerate(roles):
            n = F.layer_norm(memory.read(n, role, causal), n.shape[-1:], eps=1e-7) * self.gain[hop] + self.bias[hop]
            answer = answer + n
        return answer

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Write every token, then let it query the state after its own write.

        Args:
            x: tokens ``[B, T, D]``.
            state: carried fast weights ``[B, E, R, E]``; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, E]`` and the new state ``[B, E, R, E]``.
        """
        x = clear_masked(x, mask, self.input_size)
        memory = self.write(x, state, mask)
        y = self.read(memory, x, causal=True)
        return keep_valid(y, mask), memory.state

    def fast_weights(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written: per token e1 r1 -> e2 and e2 r3 -> e1; the move has no value of its own."""
        heads = self.write_heads(clear_masked(x, mask, self.input_size))
        memory = self._write(heads, state, mask)
        e1, e2, r1, _, r3 = (keep_valid(head, mask) for head in heads)
        keys = torch.stack([e1[..., None] * r1[..., None, :], e2[..., None] * r3[..., None, :]], dim=2).flatten(3)
        keys, values = keys.flatten(1, 2), torch.stack([e2, e1], dim=2).flatten(1, 2)
        return Associations(keys, values, torch.ones_like(keys[..., 0]), memory.state.flatten(1, 2))
