r"""Linear attention as a fast weight memory: the sum rule, the delta rule and the gated delta rule.

Every layer makes queries, keys, values and write strengths from its input by one bias-free projection, maps queries and
keys by a feature map :math:`\phi`, runs the memory over the sequence for every head, and projects what the heads read.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import Associations, check_sizes, clear_masked, merge_heads
from algornn.memory.feature_maps import EluPlusOne
from algornn.triton_kernels import delta_rule
from algornn.triton_kernels.arguments import accumulation_dtype

State = Tensor
_EPSILON = 1e-5  # keeps the quotient finite where all features of a query are 0


class LinearTransformer(nn.Module):
    r"""Linear attention: the sum rule, read with the attention's denominator.

    .. math::
        S_t = S_{t-1} + \phi(k_t) v_t^\top, \quad z_t = z_{t-1} + \phi(k_t), \quad
        y_t = W_o \frac{S_t^\top \phi(q_t)}{z_t \cdot \phi(q_t) + \epsilon}

    The denominator is one more column of the memory, of values that are all 1.

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.
        feature_map: :math:`\phi`; None: elu(x) + 1.
        attention_normalization: divide by the denominator; without it the read is :math:`S_t^\top \phi(q_t)`, as in the
            models of algorithmic tasks of Irie et al. (2021).

    Source: Katharopoulos et al. (2020), "Transformers are RNNs", eq. 8 to 12.
    """

    def __init__(
        self,
        input_size: int,
        heads: int = 8,
        feature_map: nn.Module | None = None,
        attention_normalization: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.head_size = heads, split_size(input_size, heads)
        self.feature_map = feature_map or EluPlusOne()
        self.attention_normalization = attention_normalization
        self.slow = nn.Linear(input_size, 3 * input_size, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token.

        Args:
            x: tokens ``[B, T, D]``.
            state: carried memory ``[B, H, K, D/H + 1]``, K the width of the features (without the denominator, D/H
                columns); None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        q, k, v = self._heads(clear_masked(x, mask, self.slow.in_features))
        if self.attention_normalization:
            v = F.pad(v, (0, 1), value=1.0)
        y, state = delta_rule(q, k, v, erase=False, initial_state=state, mask=mask)
        if self.attention_normalization:
            y = y[..., :-1] / (y[..., -1:] + _EPSILON)
        return self.output(merge_heads(y)), state

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both, v = self.slow(x).unflatten(-1, (self.heads, -1)).split([2 * self.head_size, self.head_size], -1)
        q, k = _mapped_together(self.feature_map, both)
        return q, k, v

    def match_queries(self) -> None:
        """Make the keys what the queries are, until training parts them."""
        match_rows(self.slow.weight, self.heads, self.head_size)

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written, the heads after one another."""
        _, k, v = self._heads(clear_masked(x, mask, self.slow.in_features))
        new = self(x, state, mask)[1][..., : self.head_size]
        return Associations.of_heads(k, v, torch.ones_like(v[..., 0]), new, mask)


class DeltaNet(nn.Module):
    r"""The delta rule: what a key reads is replaced, not added to.

    .. math::
        \hat k = \phi(k) / \textstyle\sum_i \phi(k)_i, \quad \hat q \text{ alike}, \quad \beta = \sigma(w_\beta x) \\
        S_t = \gamma_t S_{t-1} + \beta_t \hat k_t (v_t - \gamma_t S_{t-1}^\top \hat k_t)^\top, \quad
        y_t = W_o (c \, S_t^\top \hat q_t)

    Args:
        input_size: width D of the input and the output.
        heads: number of heads; it divides D.
        feature_map: :math:`\phi`; None: elu(x) + 1.
        gated: forget by :math:`\gamma = \exp(-e^a \, \mathrm{softplus}(w_\gamma x + b))` per head (Gated DeltaNet);
            otherwise :math:`\gamma = 1`.
        scaled: multiply the read by :math:`c = 1/\sqrt{D/H}`, as the authors' language models do; their models of
            algorithmic tasks do not (c = 1).
        attention_normalization: keep the sum z of the keys: the old value is read with
            :math:`\hat k_t / (z_{t-1} \cdot \hat k_t)` and the output is divided by :math:`z_t \cdot \hat q_t`. The
            authors found it best left off.

    Source: Schlag, Irie and Schmidhuber (2021), "Linear Transformers Are Secretly Fast Weight Programmers", eq. 19 to
    25; Yang, Kautz and Hatamizadeh (2024), "Gated Delta Networks", eq. 10, for the gate. Unlike theirs, this
    one has no short convolutions and normalises keys by their sum.
    """

    def __init__(
        self,
        input_size: int,
        heads: int = 8,
        feature_map: nn.Module | None = None,
        gated: bool = False,
        scaled: bool = False,
        attention_normalization: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.head_size = heads, split_size(input_size, heads)
        self.feature_map = feature_map or EluPlusOne()
        self.slow = nn.Linear(input_size, 3 * input_size + heads, bias=False)
        self.output = nn.Linear(input_size, input_size, bias=False)
        self.gate = nn.Linear(input_size, heads) if gated else None
        # At first the heads forget within 6 to 100 tokens.
        self.log_rate = nn.Parameter(torch.linspace(0, 2.77, heads)) if gated else None
        if self.gate is not None:
            nn.init.constant_(self.gate.bias, -4.6)
        self.scale = self.head_size**-0.5 if scaled else 1.0
        self.attention_normalization = attention_normalization

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token.

        Args:
            x: tokens ``[B, T, D]``.
            state: carried memory ``[B, H, K, D/H]``, K the width of the features, with `attention_normalization`
                ``[B, H, K, D/H + 1]``, whose last column is z; None: zeros.
            mask: ``[B, T]`` bool; a masked token leaves the state as it is and gives the output 0.

        Returns:
            Outputs ``[B, T, D]`` and the new state.
        """
        x = clear_masked(x, mask, self.slow.in_features)
        q, k, v, beta = self._heads(x)
        decay = self._decay(x)
        if self.attention_normalization:
            y, state = _attention_normalized(q, k, v, beta, decay, state, mask)
        else:
            y, state = delta_rule(q, k, v, beta, decay, initial_state=state, mask=mask)
        return self.output(merge_heads(y * self.scale)), state

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = self.slow(x).unflatten(-1, (self.heads, -1))
        both, v, beta = rows.split([2 * self.head_size, self.head_size, 1], -1)
        q, k = (sum_normalized(y) for y in _mapped_together(self.feature_map, both))
        return q, k, v, beta[..., 0].sigmoid()

    def _decay(self, x: Tensor) -> Tensor | None:
        if self.gate is None:
            return None
        # Half precision would round 0.99 to 0.988, which forgets a sixth more in 100 tokens.
        to = accumulation_dtype(x)
        return torch.exp(-cast(Tensor, self.log_rate).to(to).exp() * F.softplus(self.gate(x).to(to)))

    def match_queries(self) -> None:
        """Make the keys what the queries are, until training parts them."""
        match_rows(self.slow.weight, self.heads, self.head_size)

    def fast_weights(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> Associations:
        """Return what was written, the heads after one another."""
        _, k, v, beta = self._heads(clear_masked(x, mask, self.slow.in_features))
        new = self(x, state, mask)[1][..., : self.head_size]
        return Associations.of_heads(k, v, beta, new, mask)


def _attention_normalized(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None, state: State | None, mask: Tensor | None
) -> tuple[Tensor, State]:
    """The delta rule with reads divided by z . key; z is a memory of its own, of values that are all 1."""
    ones = torch.ones_like(v[..., :1])
    if state is not None and not isinstance(state, Tensor):
        raise TypeError(f"`state` must be the tensor that this layer returned, got {type(state).__name__}.")
    S, z = (None, None) if state is None else state.split([v.shape[-1], state.shape[-1] - v.shape[-1]], -1)
    # Reading before the write: what z_t . k_t holds less the key's own k_t . k_t, a difference of near numbers.
    wide = k.to(accumulation_dtype(k))
    at_k, _ = delta_rule(wide, wide, ones.to(wide.dtype), erase=False, initial_state=z, mask=mask)
    before = at_k - wide.square().sum(-1, keepdim=True)
    erase = (wide / torch.where(before > _EPSILON, before, 1.0)).to(v.dtype)  # the first token reads 0 in any case
    read, S = delta_rule(q, k, v, beta, decay, erase, S, mask)
    total, z = delta_rule(q, k, ones, erase=False, initial_state=z, mask=mask)
    return read / (total + _EPSILON), torch.cat([S, z], -1)


def _mapped_together(feature_map: nn.Module, both: Tensor) -> tuple[Tensor, Tensor]:
    """Map queries and keys, side by side in ``[..., 2 d]``, in one call: a random map draws its rows once per call."""
    q, k = feature_map(both.unflatten(-1, (2, -1))).unbind(-2)
    return q, k


@torch.no_grad()
def match_rows(slow: Tensor, heads: int, head_size: int) -> None:
    """Copy the rows of a projection that make queries to those that make keys, head by head."""
    rows = slow.view(heads, -1, slow.shape[1])
    rows[:, head_size : 2 * head_size] = rows[:, :head_size]


def sum_normalized(features: Tensor) -> Tensor:
    """Divide non-negative features by their sum, so that a key reads a weighted mean of what is stored."""
    return features / (features.sum(-1, keepdim=True) + _EPSILON)


def split_size(size: int, heads: int) -> int:
    """Return the width of one head.

    Raises:
        TypeError: a number that is not whole.
        ValueError: the number of heads does not divide the size.
    """
    check_sizes(size=size, heads=heads)
    if size % heads:
        raise ValueError(f"`heads` must divide the layer's size {size}, got {heads}.")
    return size // heads
