"""Transformer encoders as sequence layers: deep, universal (one layer for all depths), and the Neural Data Router."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from algornn.memory.associations import check_sizes, clear_masked, keep_valid
from algornn.models.attention import (
    GeometricAttention,
    MultiHeadAttention,
    RelativeAttention,
    check_probabilities,
    sinusoids,
)


class _Encoder(nn.Module):
    """Blocks that run over a whole sequence, each sees what the one before has made of all tokens."""

    needs_whole_sequences: ClassVar[bool] = True  # it cannot be stepped, as a decoder has to be

    def __init__(self, block: Callable[[], nn.Module], blocks: int, layers: int, causal: bool = False) -> None:
        super().__init__()
        self.layers, self.causal = layers, causal
        self.blocks = nn.ModuleList([block() for _ in range(blocks)])

    def forward(
        self, x: Tensor, state: tuple[()] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[()]]:
        """Run over whole sequences.

        Args:
            x: tokens ``[B, T, D]``.
            state: None or the empty tuple. There is nothing to carry: what tokens attend to is the sequence itself.
            mask: ``[B, T]`` bool; a masked token is seen by none and gives the output 0. Positions count it, so that
                padding belongs at the end.

        Returns:
            Outputs ``[B, T, D]`` and the empty tuple.

        Raises:
            ValueError: `state` holds something: a sequence cannot be cut into segments.
        """
        if state is not None and not (isinstance(state, tuple) and not state):
            raise ValueError(
                f"`state` must be None or (), got {type(state).__name__}. {type(self).__name__} attends to the "
                "sequence itself: it carries nothing from segment to segment. Give it whole sequences."
            )
        x = self.add_positions(clear_masked(x, mask))
        for n in range(self._depth()):
            x = self.blocks[n % len(self.blocks)](x, mask, self.causal)
        return keep_valid(x, mask), ()

    @property
    def sees_both_sides(self) -> bool:
        """Whether tokens attend to later ones too."""
        return not self.causal

    def add_positions(self, x: Tensor, first: int = 0) -> Tensor:
        """Return the tokens as they are; layers with absolute positions add them."""
        return x

    def _depth(self) -> int:
        return self.layers


class Transformer(_Encoder):
    r"""The encoder of a Transformer, with its LayerNorms after the sums.

    .. math::
        a = \mathrm{LN}(x + \mathrm{attention}(x)), \qquad
        x \leftarrow \mathrm{LN}(a + W_2 \, \mathrm{relu}(W_1 a + b_1) + b_2)

    with dropout on both added terms, on the hidden units and on the sum of tokens and positions.

    Args:
        input_size: width D of input and output.
        layers: number of layers.
        heads: number of heads; it divides D.
        feedforward_size: hidden units of the feed-forward part.
        dropout: probability, see above.
        attention_dropout: probability, on the attention's weights.
        positions: "absolute": sinusoids are added to the first layer's input. "relative": every layer has
            `RelativeAttention`. "none": neither.
        scaling: how the embedding of a `TokenNetwork` around the layer is initialised, and how tokens and absolute
            positions are balanced. "TEU", token embedding upscaling: Xavier-uniform, tokens times :math:`\sqrt{D}`.
            "PED", position embedding downscaling: Kaiming-normal, positions over :math:`\sqrt{D}`. "none": standard
            normal, no factor. Without absolute positions it is the initialisation alone.
        causal: whether tokens attend to themselves and those before them only.

    Source: Csordas, Irie and Schmidhuber (2021), "The Devil is in the Detail", section 3.1 for the scaling, and its
    release, which gives layers with relative positions a Xavier-uniform embedding ("TEU" here).
    """

    shared: ClassVar[bool] = False  # whether one block is all layers

    def __init__(
        self,
        input_size: int,
        layers: int = 3,
        heads: int = 8,
        feedforward_size: int = 256,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        positions: str = "absolute",
        scaling: str = "none",
        causal: bool = False,
    ) -> None:
        check_choice("positions", positions, ("absolute", "relative", "none"))
        check_choice("scaling", scaling, ("TEU", "PED", "none"))
        check_sizes(input_size=input_size, layers=layers, feedforward_size=feedforward_size)
        check_probabilities(dropout=dropout, attention_dropout=attention_dropout)
        attend = RelativeAttention if positions == "relative" else MultiHeadAttention

        def block() -> nn.Module:
            return _Block(attend(input_size, heads, attention_dropout), input_size, feedforward_size, dropout)

        super().__init__(block, 1 if self.shared else layers, layers, causal)
        self.positions, self.scaling, self.dropout = positions, scaling, nn.Dropout(dropout)

    def add_positions(self, x: Tensor, first: int = 0) -> Tensor:
        """Scale tokens ``[B, T, D]`` and positions, add them, drop out; `first` is the position of the first token."""
        if self.positions != "absolute":
            return x
        D = x.shape[-1]
        position = sinusoids(torch.arange(first, first + x.shape[1], device=x.device), x)
        if self.scaling == "TEU":
            x = x * D**0.5
        return self.dropout(x + (position * D**-0.5 if self.scaling == "PED" else position))

    def init_embedding(self, embedding: nn.Embedding) -> None:
        """Initialise the embedding of the layer's tokens as `scaling` has it; an `nn.Embedding` is "none" already."""
        if self.scaling == "TEU":
            nn.init.xavier_uniform_(embedding.weight)
        elif self.scaling == "PED":
            nn.init.kaiming_normal_(embedding.weight)


class UniversalTransformer(Transformer):
    """A `Transformer` whose layers are all the same one.

    Its attribute `layers` may be changed at any time: a network may run deeper in a test than it was trained.

    Args:
        input_size: width D of input and output.
        layers: how often the layer runs.
        heads: number of heads; it divides D.
        feedforward_size: hidden units of the feed-forward part.
        dropout: probability, see `Transformer`.
        attention_dropout: probability, on the attention's weights.
        positions: see `Transformer`; absolute ones are added once, before the first layer.
        scaling: see `Transformer`.

    Source: as `Transformer`. The defaults are the Transformer of the compositional table lookup in Csordas et al.
    (2022), "The Neural Data Router", for D = 128; "+ rel" there is ``positions="relative", scaling="PED"``. There the
    attention's scale is trained where positions are relative, and keys and values are initialised as one matrix.
    Differs from Dehghani et al. (2019), as both releases do: neither positions of time and depth before every layer
    nor halting.
    """

    shared = True

    def __init__(
        self,
        input_size: int,
        layers: int = 11,
        heads: int = 4,
        feedforward_size: int = 256,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        positions: str = "absolute",
        scaling: str = "none",
    ) -> None:
        super().__init__(input_size, layers, heads, feedforward_size, dropout, attention_dropout, positions, scaling)


class NeuralDataRouter(_Encoder):
    r"""One layer, run again and again, in which every token keeps its state until its turn has come.

    .. math::
        a = \mathrm{LN}(x + \mathrm{attention}(x)), \quad
        u = \mathrm{LN}(W_2 \, \mathrm{relu}(W_1 a + b_1) + b_2), \quad
        g = \sigma(G_2 \, \mathrm{relu}(G_1 a + c_1) + c_2), \quad
        x \leftarrow g \odot u + (1 - g) \odot x

    The copy gate g is nearly closed at first, :math:`c_2 = -3`. In training a token's whole gate is shut with the
    probability `gate_dropout`, without a rescaling. Dropout is on what the attention adds and on all hidden units.

    Args:
        input_size: width D of input and output.
        layers: how often the layer runs; the attribute may be changed at any time.
        heads: number of heads; it divides D.
        feedforward_size: hidden units of the update u.
        dropout: probability, see above.
        attention_dropout: probability, on the attention's keys (and relative positions).
        gate_dropout: probability, see above.
        attention: "geometric" (`GeometricAttention`); "relative" and "absolute_relative" (`RelativeAttention`, without
            and with its absolute gate) are the ablations "+ rel + gate" and "+ abs/rel + gate". As released, u is then
            a tanh, not a LayerNorm; published with `feedforward_size` = 4 D and `gate_dropout` = 0.
        gate: False, with geometric attention alone: the ablation "+ geom. att.", the layer of a `UniversalTransformer`
            around geometric attention. As released, its weights are then divided by their sum, and the embedding of
            a `TokenNetwork` around it is Kaiming-normal; published with the defaults of `UniversalTransformer`.
        test_layers: how often the layer runs in evaluation; None: as in training.

    Source: Csordas, Irie and Schmidhuber (2022), "The Neural Data Router", section 3; the defaults are those of its
    compositional table lookup, for D = 256. Parameters of the release that have no effect are left out.
    """

    def __init__(
        self,
        input_size: int,
        layers: int = 14,
        heads: int = 1,
        feedforward_size: int = 512,
        dropout: float = 0.5,
        attention_dropout: float = 0.1,
        gate_dropout: float = 0.1,
        attention: str = "geometric",
        gate: bool = True,
        test_layers: int | None = None,
    ) -> None:
        check_choice("attention", attention, ("geometric", "relative", "absolute_relative"))
        check_sizes(input_size=input_size, layers=layers, feedforward_size=feedforward_size)
        if test_layers is not None:
            check_sizes(test_layers=test_layers)
        check_probabilities(dropout=dropout, attention_dropout=attention_dropout, gate_dropout=gate_dropout)
        if not gate and attention != "geometric":
            raise ValueError(
                f'`gate` must be True with attention="{attention}": without it this is UniversalTransformer(positions='
                '"relative"), take that.'
            )

        def block() -> nn.Module:
            attend = _routing(attention, input_size, heads, attention_dropout, gate)
            if gate:
                return _GatedBlock(attend, input_size, feedforward_size, dropout, gate_dropout)
            return _Block(attend, input_size, feedforward_size, dropout)

        super().__init__(block, 1, layers)
        self.has_gate, self.test_layers = gate, test_layers

    def init_embedding(self, embedding: nn.Embedding) -> None:
        """Initialise the embedding of the layer's tokens as released: Kaiming-normal where there is no gate."""
        if not self.has_gate:
            nn.init.kaiming_normal_(embedding.weight)

    def _depth(self) -> int:
        return self.layers if self.training or self.test_layers is None else self.test_layers


class _Block(nn.Module):
    """Attention and a feed-forward part; see `Transformer`."""

    def __init__(self, attention: MultiHeadAttention, size: int, feedforward_size: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.dropout = attention, nn.Dropout(dropout)
        self.attention_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.feedforward = feedforward(size, feedforward_size, dropout)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        a = self.attention_norm(x + self.dropout(self.attention(x, mask, causal)))
        return self.norm(a + self.dropout(self.feedforward(a)))


class _GatedBlock(nn.Module):
    """Attention, an update and a copy gate; see `NeuralDataRouter`."""

    def __init__(
        self, attention: MultiHeadAttention, size: int, feedforward_size: int, dropout: float, gate_dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.dropout, self.gate_dropout = attention, nn.Dropout(dropout), gate_dropout
        self.attention_norm = nn.LayerNorm(size)
        geometric = isinstance(attention, GeometricAttention)
        gain = nn.init.calculate_gain("tanh") if geometric else None
        self.update = feedforward(size, feedforward_size, dropout, gain)
        self.squash: nn.Module = nn.LayerNorm(size) if geometric else nn.Tanh()
        self.gate = feedforward(size, size, dropout, bias=-3.0)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        a = self.attention_norm(x + self.dropout(self.attention(x, mask, causal)))
        u, g = self.squash(self.update(a)), self.gate(a).sigmoid()
        if self.training and self.gate_dropout:
            g = g * (torch.rand_like(g[..., :1]) >= self.gate_dropout)
        return g * u + (1 - g) * x


def feedforward(
    size: int, hidden_size: int, dropout: float, gain: float | None = 1.0, bias: float | None = None
) -> nn.Sequential:
    """Return a two-layer ReLU network of width D to D, with dropout on its hidden units.

    Args:
        size: D.
        hidden_size: hidden units.
        dropout: probability.
        gain: of the Xavier-uniform weights of the second layer; None: PyTorch's own first weights.
        bias: first bias of the second layer; None: PyTorch's own.
    """
    first, second = nn.Linear(size, hidden_size), nn.Linear(hidden_size, size)
    nn.init.xavier_uniform_(first.weight, nn.init.calculate_gain("relu"))
    if gain is not None:
        nn.init.xavier_uniform_(second.weight, gain)
    if bias is not None:
        nn.init.constant_(second.bias, bias)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), second)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _routing(attention: str, size: int, heads: int, dropout: float, gate: bool) -> MultiHeadAttention:
    """The attention of a `NeuralDataRouter`, initialised as in the release."""
    if attention == "geometric":
        return GeometricAttention(size, heads, dropout, normalized=not gate)
    made = RelativeAttention(
        size, heads, key_dropout=dropout, absolute_gate=attention == "absolute_relative", trained_scale=True
    )
    nn.init.xavier_uniform_(made.key_value.weight)  # keys and values as one matrix
    made.output.reset_parameters()
    return made
