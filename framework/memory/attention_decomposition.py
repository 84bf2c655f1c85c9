"""Attention-based iterative decomposition: slots compete for the words of a sentence, to become a memory's parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algornn.memory.associations import check_sizes


class AttentionDecomposition(nn.Module):
    r"""Decompose a set of vectors into slots by attention in which the slots compete (AID).

    From a context c and the vectors :math:`x_w`, with :math:`\phi = \mathrm{elu} + 1`:

    .. math::
        S^0 &= W_0 c, \qquad k_w = \phi(W_k x_w), \quad v_w = W_v x_w, \quad S \leftarrow S^0 \\
        &\text{repeat:} \quad q_j = \phi((W_q S_j + S^0_j) / \sqrt{s}), \quad
        A_{wj} = \mathrm{softmax}_j(k_w \cdot q_j), \\
        &\qquad\qquad A_{wj} \leftarrow (A_{wj} + \epsilon) / \textstyle\sum_w (A_{wj} + \epsilon), \\
        &\qquad\qquad S_j \leftarrow S_j + \mathrm{FF}(\mathrm{LN}(\textstyle\sum_w A_{wj} v_w)) / s \\
        \text{slots} &= W [\mathrm{dropout}(S^0); S]

    A vector that is 0 in all its entries is padding: it gets no attention but :math:`\epsilon`. The released code adds
    -10^6 to its scores before the softmax over slots, which leaves that softmax as it is and so hides nothing.

    Args:
        input_size: width of the vectors.
        context_size: width of the context.
        parts: numbers of slots J of the sets that share all weights but :math:`W_0`.
        slot_size: s.
        feedforward_size: hidden units of FF.
        iterations: number of repetitions.
        dropout: probability, on the initial slots.

    Source: Park, Choi and Lee (2024), "Attention-based Iterative Decomposition for Tensor Product Representation", sec.
    3; the softmax over slots and :math:`\epsilon = 10^{-6}` as in the released code.
    """

    def __init__(
        self,
        input_size: int,
        context_size: int,
        parts: Sequence[int],
        slot_size: int = 64,
        feedforward_size: int = 128,
        iterations: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, context_size=context_size, parts=min(parts, default=0))
        check_sizes(slot_size=slot_size, feedforward_size=feedforward_size, iterations=iterations)
        self.slot_size, self.iterations = slot_size, iterations
        self.initial = nn.ModuleList([nn.Linear(context_size, slots * slot_size) for slots in parts])
        self.key, self.value = nn.Linear(input_size, slot_size), nn.Linear(input_size, slot_size)
        self.query = nn.Linear(slot_size, slot_size)
        self.update = nn.Sequential(
            nn.LayerNorm(slot_size),
            nn.Linear(slot_size, feedforward_size),
            nn.ReLU(),
            nn.Linear(feedforward_size, slot_size),
        )
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * slot_size, slot_size)

    def forward(self, x: Tensor, context: Tensor, part: int = 0) -> Tensor:
        """Decompose vectors ``[..., W, D]`` with a context ``[..., C]`` into the slots ``[..., J, s]`` of a part."""
        first = self.initial[part](context).unflatten(-1, (-1, self.slot_size))
        k, v = _phi(self.key(x)), self.value(x)
        padding = (x == 0).all(-1)[..., None]
        slots = first
        for _ in range(self.iterations):
            q = _phi((self.query(slots) + first) * self.slot_size**-0.5)
            attention = (k @ q.mT).softmax(-1).masked_fill(padding, 0) + 1e-6
            attention = attention / attention.sum(-2, keepdim=True)
            slots = slots + self.update(attention.mT @ v) / self.slot_size
        return self.output(torch.cat([self.dropout(first), slots], -1))


class SlotComponents(nn.Module):
    """The components that a memory takes from a sentence's words: a slot each, through a linear layer of its own.

    Args:
        decomposition: the attention, which may be shared.
        part: which set of its slots.
        sizes: width of every component.
        tanh: whether components are squashed.
    """

    def __init__(self, decomposition: AttentionDecomposition, part: int, sizes: Sequence[int], tanh: bool) -> None:
        super().__init__()
        self.decomposition, self.part, self.tanh = decomposition, part, tanh
        self.components = nn.ModuleList([nn.Linear(decomposition.slot_size, size) for size in sizes])

    def forward(self, words: Tensor) -> list[Tensor]:
        """Map words ``[..., W, D]``, zero where they pad, to ``[..., size]`` per component; the context: their sum."""
        slots = self.decomposition(words, words.sum(-2), self.part).unbind(-2)
        found = [layer(slot) for layer, slot in zip(self.components, slots, strict=True)]
        return [component.tanh() for component in found] if self.tanh else found


def _phi(x: Tensor) -> Tensor:
    """Elu(x) + 1. torch.compile traces the gradient of `F.elu` with other strides than a transposed one really has."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())
