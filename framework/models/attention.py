"""Attention: plain, by relative positions, and geometric, which takes the closest match."""

from __future__ import annotations

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import check_sizes, clear_masked, keep_valid, merge_heads
from algornn.memory.linear_transformer import split_size

Pair = tuple[Tensor, Tensor]


class MultiHeadAttention(nn.Module):
    r"""Softmax attention with several heads and no biases.

    .. math:: y_i = W_o \sum_j \mathrm{softmax}_j\left(\frac{q_i \cdot k_j}{\sqrt{d}}\right) v_j

    with :math:`q = W_q x` and :math:`[k; v] = W_{kv} x'`, d the width of a head; all are Xavier-uniform at first.

    Args:
        size: width D of inputs and output.
        heads: number of heads; it divides D.
        dropout: probability, on the attention's weights.

    Source: Vaswani et al. (2017), "Attention Is All You Need", section 3.2; without biases and initialised as released
    with Csordas, Irie and Schmidhuber (2021), "The Devil is in the Detail".
    """

    def __init__(self, size: int, heads: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        check_sizes(size=size, heads=heads)
        check_probabilities(dropout=dropout)
        self.heads, self.head_size, self.dropout = heads, split_size(size, heads), dropout
        self.query = nn.Linear(size, size, bias=False)
        self.key_value = nn.Linear(size, 2 * size, bias=False)
        self.output = nn.Linear(size, size, bias=False)
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.output.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Let every token attend to the tokens of its sequence.

        Args:
            x: tokens ``[B, T, D]``.
            mask: ``[B, T]`` bool; a masked token is attended by none and gives the output 0.
            causal: whether a token attends to itself and the tokens before it only.

        Returns:
            Outputs ``[B, T, D]``.
        """
        x = clear_masked(x, mask, self.query.in_features)
        return keep_valid(self.read(x, *self.keys_values(x), mask, causal), mask)

    @torch.no_grad()
    def match_queries(self) -> None:
        """Make the keys what the queries are, until training parts them."""
        self.key_value.weight[: len(self.query.weight)] = self.query.weight

    def keys_values(self, x: Tensor) -> Pair:
        """Return keys and values ``[B, H, T, d]`` of tokens ``[B, T, D]``."""
        k, v = self.key_value(x).chunk(2, -1)
        return self._split(k), self._split(v)

    def read(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from tokens to given keys.

        Args:
            x: tokens ``[B, Q, D]`` that attend; where positions count, they are the last Q of the K.
            k: keys ``[B, H, K, d]``, as `keys_values` gives them.
            v: their values.
            mask: ``[B, K]`` bool, False at keys that are not attended.
            causal: see `forward`.

        Returns:
            What was read, ``[B, Q, D]``.
        """
        whole = causal and mask is None and k.shape[2] == x.shape[1]  # what the fused kernels know as causal
        allowed = None if whole else allowed_keys(mask, causal, x.shape[1], k)
        q = self._split(self.query(x))
        return self._merge(F.scaled_dot_product_attention(q, k, v, allowed, self._rate(), is_causal=whole))

    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _merge(self, y: Tensor) -> Tensor:
        return self.output(merge_heads(y.transpose(1, 2)))


class RelativeAttention(MultiHeadAttention):
    r"""Softmax attention that sees how far away a key is, and on which side.

    .. math::
        a_{ij} = s \left[ (q_i + u) \cdot k_j + (q_i + w) \cdot (g_i \, r_{j-i} + (1 - g_i) \, r_j) \right], \qquad
        y_i = W_o \sum_j \mathrm{softmax}_j(a_{ij}) \, v_j

    with :math:`r_\delta = W_r \, \mathrm{sinusoids}(\delta)`, trained biases u and w of every head (0 at first), and
    :math:`s = 1/\sqrt{d}`. The gate g is 1 unless `absolute_gate`; then :math:`g_i = \sigma(W_g x_i + b_g)`, one number
    per head. Positions are columns: a masked token keeps its own.

    Args:
        size: width D of inputs and output.
        heads: number of heads; it divides D.
        dropout: probability, on the attention's weights.
        key_dropout: probability, on k and r, in place of dropout on the weights.
        absolute_gate: mix relative positions with absolute ones.
        trained_scale: train s.

    Source: Dai et al. (2019), "Transformer-XL", section 3.3, as used by Csordas et al. (2021), "The Devil is in the
    Detail"; the last three arguments as released with Csordas et al. (2022), "The Neural Data Router", whose layers
    with relative positions all train s.
    """

    def __init__(
        self,
        size: int,
        heads: int = 8,
        dropout: float = 0.0,
        key_dropout: float = 0.0,
        absolute_gate: bool = False,
        trained_scale: bool = False,
    ) -> None:
        super().__init__(size, heads, dropout)
        check_probabilities(key_dropout=key_dropout)
        self.position = nn.Linear(size, size, bias=False)
        nn.init.xavier_uniform_(self.position.weight)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_size))
        self.position_bias = nn.Parameter(torch.zeros(heads, self.head_size))
        scale = torch.tensor(self.head_size**-0.5)
        self.scale = nn.Parameter(scale) if trained_scale else self.head_size**-0.5
        self.gate = nn.Linear(size, heads) if absolute_gate else None
        self.key_dropout = nn.Dropout(key_dropout)

    def read(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from the last Q tokens ``[B, Q, D]`` to keys ``[B, H, K, d]``; see `MultiHeadAttention.read`."""
        q, Q, K = self._split(self.query(x)) * self.scale, x.shape[1], k.shape[2]
        w = q + (self.position_bias * self.scale).to(q.dtype)[:, None]
        a = to_keys(w @ self._positions(torch.arange(-K, Q, device=x.device)).mT)
        if self.gate is not None:
            g = self.gate(x).sigmoid().mT[..., None]
            a = g * a + (1 - g) * (w @ self._positions(torch.arange(K, device=x.device)).mT)
        allowed = allowed_keys(mask, causal, Q, k)
        if allowed is not None:
            a = a.masked_fill(~allowed, -torch.inf)
        u, k = q + (self.content_bias * self.scale).to(q.dtype)[:, None], self.key_dropout(k)
        return self._merge(F.scaled_dot_product_attention(u, k, v, a.to(u.dtype), self._rate(), scale=1.0))

    def _positions(self, distances: Tensor) -> Tensor:
        """The vectors r ``[H, N, d]`` of N distances."""
        r = self.position(sinusoids(distances, self.position.weight))
        return self.key_dropout(r.unflatten(-1, (self.heads, -1)).transpose(0, 1))


class GeometricAttention(MultiHeadAttention):
    r"""Attention to the closest key that matches: a geometric distribution over the keys, from near to far.

    .. math::
        p_{ij} = \sigma\left( s_1 (q_i + u) \cdot k_j + s_2 \, d_{ij} + b \right), \qquad
        a_{ij} = p_{ij} \prod_{k \in C_{ij}} (1 - p_{ik}), \qquad y_i = W_o \sum_j a_{ij} v_j

    where :math:`C_{ij}` are the tokens closer to i than j; of two at the same distance, the right one counts as closer.
    :math:`d_{ij}` is one number for all keys on the left and another for all on the right,
    :math:`[d^{left}_i; d^{right}_i] = W_d x_i + b_d` per head. No token attends to itself: :math:`p_{ii} = 0`. The
    weights sum to at most 1. The products are sums of logarithms, taken from near to far: they neither underflow nor
    cancel.

    Args:
        size: width D of input and output.
        heads: number of heads; it divides D.
        dropout: probability, on the keys.
        normalized: divide the weights by their sum.

    Source: Csordas, Irie and Schmidhuber (2022), "The Neural Data Router", section 3.2, and its release: trained
    :math:`s_1` (:math:`1/\sqrt{d}` at first), :math:`s_2` (1) and b (0); Xavier-uniform weights, of a head's own width.
    The release also holds relative positions that it never uses; they are left out.
    """

    def __init__(self, size: int, heads: int = 1, dropout: float = 0.0, normalized: bool = False) -> None:
        super().__init__(size, heads)
        check_probabilities(dropout=dropout)
        bound = (6 / (size + self.head_size)) ** 0.5
        for linear in (self.query, self.key_value, self.output):
            nn.init.uniform_(linear.weight, -bound, bound)
        self.direction = nn.Linear(size, 2 * heads)
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_size))
        self.scale = nn.Parameter(torch.tensor(self.head_size**-0.5))
        self.direction_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.key_dropout, self.normalized = nn.Dropout(dropout), normalized

    def read(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from tokens ``[B, T, D]`` to their own keys ``[B, H, T, d]``; see `MultiHeadAttention.read`.

        Raises:
            ValueError: `causal`, or keys of other tokens: there is no such geometric attention.
        """
        T = x.shape[1]
        if causal or k.shape[2] != T:
            raise ValueError("Geometric attention is to both sides of every token; decode with RelativeAttention.")
        i = torch.arange(T, device=x.device)
        others = i[:, None] != i
        if mask is not None:
            others = others & mask[:, None, None]
        a = geometric(self._scores(x, k, i[:, None] < i), others)
        a = F.normalize(a, p=1, dim=-1) if self.normalized else a
        return self._merge(a.to(v.dtype) @ v)

    def _scores(self, x: Tensor, k: Tensor, is_right: Tensor) -> Tensor:
        """The logits of p ``[B, H, T, T]``."""
        q = self._split(self.query(x))
        content = (q + self.content_bias.to(q.dtype)[:, None]) @ self.key_dropout(k).mT
        left, right = self.direction(x).unflatten(-1, (self.heads, 2)).transpose(1, 2)[..., None, :].unbind(-1)
        return content * self.scale + torch.where(is_right, right, left) * self.direction_scale + self.bias


def geometric(scores: Tensor, allowed: Tensor) -> Tensor:
    """Return the weights of `GeometricAttention` from the logits of p ``[..., T, T]``; 0 where not `allowed`."""
    if not scores.numel():
        return scores
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    misses = to_distances(F.logsigmoid(-scores).masked_fill(~allowed, 0))
    T = scores.shape[-1]
    right, left = misses[..., T + 1 :], misses[..., 1:T].flip(-1)  # at the distances 1 to T - 1
    before_right = F.pad(right + left, (1, 0)).cumsum(-1)[..., :-1]
    before_left = before_right + right
    before = F.pad(torch.cat([F.pad(before_left.flip(-1), (0, 1)), before_right], -1), (1, 0))
    return (F.logsigmoid(scores) + to_keys(before)).exp().masked_fill(~allowed, 0)


def to_keys(x: Tensor) -> Tensor:
    """Move columns of distances ``[..., Q, K + Q]`` to those of keys ``[..., Q, K]``: y[i, j] = x[i, Q + j - i]."""
    Q, columns = x.shape[-2:]
    return x.flatten(-2)[..., Q:].unflatten(-1, (Q, columns - 1))[..., : columns - Q] if Q else x


def to_distances(x: Tensor) -> Tensor:
    """Undo `to_keys`: ``[..., Q, K]`` becomes ``[..., Q, K + Q]``, 0 at distances where there is no key."""
    Q, K = x.shape[-2:]
    return F.pad(F.pad(x, (0, Q - 1)).flatten(-2), (Q, 0)).unflatten(-1, (Q, K + Q)) if Q else x


def sinusoids(positions: Tensor, like: Tensor) -> Tensor:
    """Return sines and cosines ``[N, D]`` of positions ``[N]``, in the width and the dtype of `like` ``[..., D]``.

    Columns 2n and 2n + 1 are the sine and the cosine of a wave of 2 pi 10000^(2n / D) tokens.
    """
    D, dtype = like.shape[-1], torch.promote_types(like.dtype, torch.float32)
    rate = 10_000.0 ** (-torch.arange(0, D, 2, device=positions.device, dtype=dtype) / D)
    angles = positions[:, None] * rate
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :D].to(like.dtype)


def allowed_keys(mask: Tensor | None, causal: bool, Q: int, k: Tensor) -> Tensor | None:
    """Which of the keys ``[B, H, K, d]`` the last Q tokens attend to, ``[B or 1, 1, Q or 1, K]``; None: all.

    Softmax over no key would be NaN: a row without a real one allows all, and a token allows itself where `causal`.
    """
    allowed = None if mask is None else (mask | ~mask.any(1, keepdim=True))[:, None, None]
    if not causal or (Q == 1 and mask is None):
        return allowed
    own = torch.arange(k.shape[2] - Q, k.shape[2], device=k.device)[:, None]
    j = torch.arange(k.shape[2], device=k.device)
    return j <= own if allowed is None else (j <= own) & allowed | (j == own)


def check_probabilities(**probabilities: object) -> None:
    """Raise a TypeError unless all probabilities are numbers, and a ValueError unless they are 0 to 1."""
    for name, probability in probabilities.items():
        if isinstance(probability, bool) or not isinstance(probability, Real):
            raise TypeError(f"`{name}` must be a probability, a number from 0 to 1, got {probability!r}.")
        if not 0 <= float(probability) <= 1:
            raise ValueError(f"`{name}` must be a probability, from 0 to 1, got {probability}.")
