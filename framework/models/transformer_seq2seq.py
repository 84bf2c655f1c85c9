"""The Transformer from sequences to sequences: an encoder, and a decoder with cached keys and values."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory.associations import check_sizes
from algornn.models.attention import MultiHeadAttention, Pair, RelativeAttention, check_probabilities
from algornn.models.token_networks import check_ids, embed
from algornn.models.transformer import Transformer, UniversalTransformer, feedforward

# Keys and values of the source for every block, its mask (or none), and what every layer has seen of the target.
State = tuple[tuple[Pair, ...], tuple[Tensor, ...], tuple[Pair, ...]]


class _Vocabularies(nn.Module):
    """The embeddings of source and target ids, and the output layer."""

    def __init__(self, vocab_size: int, output_size: int, size: int, tied: bool) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(vocab_size, size)
        self.target_embedding = nn.Embedding(output_size, size)
        self.output = nn.Linear(size, output_size)
        nn.init.xavier_uniform_(self.output.weight)
        if tied:
            self.output.weight = self.target_embedding.weight
            nn.init.zeros_(self.output.bias)


class TransformerSeq2Seq(_Vocabularies):
    r"""A Transformer encoder and decoder, LayerNorms after the sums.

    The encoder is `Transformer` or, with `shared`, `UniversalTransformer`. A layer of the decoder is, with
    :math:`m` the encoder's outputs,

    .. math::
        a = \mathrm{LN}(y + \mathrm{attention}(y)), \quad c = \mathrm{LN}(a + \mathrm{attention}(a, m)), \quad
        y \leftarrow \mathrm{LN}(c + W_2 \, \mathrm{relu}(W_1 c + b_1) + b_2)

    The first attention is causal, and relative where `positions` are; the second knows no positions. Id 0 pads both
    vocabularies and, as an input of the decoder, starts every target; id 1 ends it.

    Args:
        vocab_size: number of source ids, padding included.
        output_size: number of target ids, padding and the end included.
        size: width D.
        heads: number of heads; it divides D.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        feedforward_size: hidden units of the feed-forward parts.
        dropout: probability, everywhere that `Transformer` has it, and on the attention's weights.
        positions: see `Transformer`.
        scaling: see `Transformer`; it holds for both embeddings.
        shared: whether all layers of the encoder are one, and all layers of the decoder.
        tied: whether the output's weights are the target's embedding.

    Source: Csordas, Irie and Schmidhuber (2021), "The Devil is in the Detail", and its release; the defaults are its
    SCAN model with position embedding downscaling. Relative positions are published with "TEU". For SCAN the release
    names a dropout of 0.5, but does not hand it to the model, which trains with 0.1. Differs: start, end and padding
    are ids of the vocabularies here, and the start has another id than the end.
    """

    def __init__(
        self,
        vocab_size: int,
        output_size: int,
        size: int = 128,
        heads: int = 8,
        encoder_layers: int = 3,
        decoder_layers: int = 3,
        feedforward_size: int = 256,
        dropout: float = 0.1,
        positions: str = "absolute",
        scaling: str = "PED",
        shared: bool = False,
        tied: bool = True,
    ) -> None:
        check_sizes(vocab_size=vocab_size, output_size=output_size, size=size, feedforward_size=feedforward_size)
        check_sizes(encoder_layers=encoder_layers, decoder_layers=decoder_layers)
        check_probabilities(dropout=dropout)
        super().__init__(vocab_size, output_size, size, tied)
        encoder = UniversalTransformer if shared else Transformer
        self.encoder = encoder(size, encoder_layers, heads, feedforward_size, dropout, dropout, positions, scaling)
        self.encoder.init_embedding(self.source_embedding)
        self.encoder.init_embedding(self.target_embedding)
        attend = RelativeAttention if positions == "relative" else MultiHeadAttention
        self.decoder_layers = decoder_layers
        self.decoder = nn.ModuleList(
            [
                _DecoderBlock(attend(size, heads, dropout), size, heads, feedforward_size, dropout)
                for _ in range(1 if shared else decoder_layers)
            ]
        )

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Give logits for every token of a known target.

        Args:
            source: ids ``[B, S]``.
            target: ids ``[B, T]``, the end included. The decoder sees them one step later, id 0 first; what follows a
                token, such as padding, has no influence on its logits.
            source_mask: ``[B, S]`` bool, False at ids that only pad the batch; None: all count.

        Returns:
            Logits ``[B, T, output_size]``.
        """
        check_ids("target", target, "[B, T]", 2, len(source))
        return self._decode(F.pad(target, (1, 0))[:, :-1], self.start(source, source_mask))[0]

    def start(self, source: Tensor, source_mask: Tensor | None = None) -> State:
        """Return the state before the first token of the target, nested tuples of tensors, all batch first."""
        check_ids("source", source, "[B, S]", 2)
        memory = self.encoder(embed("source", self.source_embedding, source), None, source_mask)[0]
        read = tuple(cast(_DecoderBlock, block).source_attention.keys_values(memory) for block in self.decoder)
        nothing = read[0][0][:, :, :0]
        return read, () if source_mask is None else (source_mask,), ((nothing, nothing),) * self.decoder_layers

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Give the logits of the next token.

        Args:
            token: the ids ``[B]`` of the token before, 0 at first.
            state: what `start` or the step before has returned; it is not modified.

        Returns:
            Logits ``[B, output_size]`` and the new state.
        """
        if not (isinstance(state, tuple) and len(state) == 3):
            raise ValueError(f"`state` must be what `start` or a step has returned, got {type(state).__name__}.")
        check_ids("token", token, "[B]", 1, len(state[0][0][0]))
        logits, state = self._decode(token[:, None], state)
        return logits[:, 0], state

    def _decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits ``[B, T, V]`` after each of T more tokens, and the state after them."""
        memory, mask, pasts = state
        y = self.encoder.add_positions(embed("target", self.target_embedding, tokens), pasts[0][0].shape[2])
        seen = []
        for n, past in enumerate(pasts):
            block = n % len(self.decoder)
            y, past = self.decoder[block](y, past, memory[block], mask[0] if mask else None)
            seen.append(past)
        return self.output(y), (memory, mask, tuple(seen))


class _DecoderBlock(nn.Module):
    """Causal attention, attention to the source, and a feed-forward part; see `TransformerSeq2Seq`."""

    def __init__(
        self, attention: MultiHeadAttention, size: int, heads: int, feedforward_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.source_attention = attention, MultiHeadAttention(size, heads, dropout)
        self.attention_norm, self.source_norm, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.feedforward, self.dropout = feedforward(size, feedforward_size, dropout), nn.Dropout(dropout)

    def forward(self, y: Tensor, past: Pair, memory: Pair, mask: Tensor | None) -> tuple[Tensor, Pair]:
        """Run over tokens ``[B, T, D]`` after those whose keys and values are `past`; return the longer past too."""
        k, v = (torch.cat(pair, 2) for pair in zip(past, self.attention.keys_values(y), strict=True))
        a = self.attention_norm(y + self.dropout(self.attention.read(y, k, v, causal=True)))
        c = self.source_norm(a + self.dropout(self.source_attention.read(a, *memory, mask)))
        return self.norm(c + self.dropout(self.feedforward(c))), (k, v)
