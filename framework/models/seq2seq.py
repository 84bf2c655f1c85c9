"""Recurrent sequence-to-sequence networks, and greedy decoding for all that can be stepped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from algornn.memory.associations import check_sizes
from algornn.models.attention import check_probabilities
from algornn.models.recurrent import LSTM
from algornn.models.token_networks import check_factory, check_ids, embed, output_width

EOS_ID = 1  # "<eos>" ends every source and target; id 0 pads, and starts a target where the decoder reads it


def shifted(target: Tensor) -> Tensor:
    """Return what a decoder reads for a target ``[B, T]``: the start symbol (id 0), then all but the last token."""
    return torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)


class Seq2Seq(nn.Module):
    r"""An encoder reads the source; from its final state, a decoder writes the target.

    .. math::
        h_1 \ldots h_S, \, s_0 = \mathrm{encoder}(E_x x_1 \ldots E_x x_S), \qquad
        y_t, \, s_t = \mathrm{decoder}(E_y z_{t-1}, s_{t-1}), \qquad p_t = \mathrm{softmax}(W y_t + b)

    Encoder and decoder are sequence layers whose states have the same form: LSTM and GRU, and every fast-weight memory,
    which hands its fast weights over. With attention, the decoder reads :math:`[E_y z_{t-1}; c_t]` and the output
    :math:`[y_t; c_t]`, where

    .. math:: c_t = \sum_i \alpha_i h_i, \qquad \alpha = \mathrm{softmax}_i(w^\top \tanh(U h_i + V y_{t-1}))

    and :math:`y_0` is the encoder's last output.

    Args:
        vocab_size: number of ids of the source, padding (0) and "<eos>" (1) included.
        output_size: number of ids of the target, likewise; the embedding of id 0 is the start symbol.
        layer: called with the width of its input; makes encoder and decoder. None: `LSTM`.
        encoder: called likewise; makes the encoder, such as `BidirectionalLSTM`; None: `layer` does.
        embedding_size: width of the embeddings.
        shared: whether encoder and decoder are one layer, which reads the source and then the target. Of a memory in
            residual blocks nothing is idle then; apart, what the encoder's last block reads is of no use without
            attention (with several processes, such parameters need ``ddp_find_unused_parameters_true``).
        attention: whether the decoder attends to the encoder's outputs.
        dropout: probability, on embedded tokens.

    Source: Sutskever, Vinyals and Le (2014); attention: Bahdanau, Cho and Bengio (2015), eq. 4 to 6, with the decoder's
    own cell. The networks of Lake and Baroni (2018) are of this kind.
    """

    def __init__(
        self,
        vocab_size: int,
        output_size: int,
        layer: Callable[[int], nn.Module] | None = None,
        encoder: Callable[[int], nn.Module] | None = None,
        embedding_size: int = 200,
        shared: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_factory("layer", layer)
        check_factory("encoder", encoder)
        check_sizes(vocab_size=vocab_size, output_size=output_size, embedding_size=embedding_size)
        check_probabilities(dropout=dropout)
        if shared and (attention or encoder):
            raise ValueError("`shared` makes one layer of encoder and decoder: leave out `attention` and `encoder`.")
        layer = layer or LSTM
        self.source_embedding = nn.Embedding(vocab_size, embedding_size)
        self.target_embedding = nn.Embedding(output_size, embedding_size)
        self.encoder = (encoder or layer)(embedding_size)
        width = output_width(self.encoder, embedding_size)
        context = width if attention else 0
        self.decoder = self.encoder if shared else layer(embedding_size + context)
        decoder_width = output_width(self.decoder, embedding_size + context)
        if attention and decoder_width != width:
            raise ValueError(
                f"attention starts from the encoder's last output: encoder and decoder must have the same width, got "
                f"{width} and {decoder_width}."
            )
        _check_decoder(self.encoder, embedding_size, self.decoder, embedding_size + context)
        self.attention = _AdditiveAttention(width) if attention else None
        self.output = nn.Linear(decoder_width + context, output_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Give the logits of every target token from the source and the target tokens before it.

        Args:
            source: ids ``[B, S]``.
            target: ids ``[B, T]``; what follows "<eos>" changes no earlier logits.
            source_mask: ``[B, S]`` bool, False at tokens that only pad the batch.

        Returns:
            Logits ``[B, T, output_size]``.
        """
        state = self.start(source, source_mask)
        check_ids("target", target, "[B, T]", 2, len(source))
        inputs = shifted(target)
        if self.attention is None:
            y, _ = self.decoder(self.dropout(embed("target", self.target_embedding, inputs)), state[0])
            return self.output(y)
        logits = []
        for token in inputs.unbind(1):
            step_logits, state = self.step(token, state)
            logits.append(step_logits)
        return torch.stack(logits, 1)

    def start(self, source: Tensor, source_mask: Tensor | None = None) -> tuple[Any, ...]:
        """Read the source; return the state from which `step` writes the target."""
        check_ids("source", source, "[B, S]", 2)
        h, state = self.encoder(self.dropout(embed("source", self.source_embedding, source)), None, source_mask)
        if self.attention is None:
            return (state,)
        real = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
        real = real | ~real.any(1, keepdim=True)  # of a row that is all padding, some attention rather than none
        last = torch.where(real, torch.arange(source.shape[1], device=source.device), 0).amax(1)
        y = h[torch.arange(len(h), device=h.device), last]
        return state, y, h, self.attention.keys(h), real

    def step(self, token: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """Give the logits ``[B, output_size]`` of the token after `token` ``[B]``, and the new state."""
        parts = 1 if self.attention is None else 5
        if not (isinstance(state, tuple) and len(state) == parts):
            raise ValueError(f"`state` must be what `start` or a step has returned, got {type(state).__name__}.")
        check_ids("token", token, "[B]", 1, len(state[-1]) if self.attention else None)
        x = self.dropout(embed("target", self.target_embedding, token))
        if self.attention is None:
            y, new = self.decoder(x[:, None], state[0])
            return self.output(y[:, 0]), (new,)
        old, y, h, keys, mask = state
        context = self.attention(y, h, keys, mask)
        out, new = self.decoder(torch.cat([x, context], 1)[:, None], old)
        y = out[:, 0]
        return self.output(torch.cat([y, context], 1)), (new, y, h, keys, mask)


def _check_decoder(encoder: nn.Module, encoder_size: int, decoder: nn.Module, decoder_size: int) -> None:
    """Raise a ValueError unless the decoder reads token by token and can start from the encoder's state."""
    obstacles = ("sees_both_sides", "needs_whole_sequences")
    if any(getattr(module, obstacle, False) for module in decoder.modules() for obstacle in obstacles):
        raise ValueError(
            f"A decoder must read token by token in one direction, {type(decoder).__name__} reads whole sequences: "
            "give it as `encoder`, with another `layer`, or take TransformerSeq2Seq."
        )
    modes = {module: module.training for layer in (encoder, decoder) for module in layer.modules()}
    try:
        with torch.no_grad():
            _, state = encoder.eval()(torch.zeros(1, 1, encoder_size))
            decoder.eval()(torch.zeros(1, 1, decoder_size), state)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"The decoder ({type(decoder).__name__}) cannot start from the encoder's ({type(encoder).__name__}) state: "
            f"choose layers whose states have the same form and size. {error}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


class _AdditiveAttention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.keys, self.query = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.energy = nn.Linear(size, 1, bias=False)

    def forward(self, query: Tensor, h: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        scores = self.energy((keys + self.query(query)[:, None]).tanh())[..., 0]
        weights = scores.masked_fill(~mask, -torch.inf).softmax(1)
        return (weights[:, None] @ h)[:, 0]


def greedy(model: Any, source: Tensor, source_mask: Tensor | None, steps: int, lengths: Tensor | None = None) -> Tensor:
    """Write the most probable token at every step, each from the tokens written before it.

    Args:
        model: what has ``start(source, mask) -> state`` and ``step(token, state) -> (logits, state)``, `Seq2Seq` or
            `TransformerSeq2Seq`.
        source: ids ``[B, S]``.
        source_mask: ``[B, S]`` bool or None.
        steps: how many tokens are written; what follows "<eos>" has no meaning.
        lengths: ``[B]``, tokens of every target with "<eos>": it is written there and nowhere else (an oracle that
            tells errors of length from errors of content); None: the model ends by itself.

    Returns:
        Logits of every step ``[B, steps, output_size]``; the tokens are their argmax.
    """
    check_sizes(steps=steps)
    token, state, logits = source.new_zeros(len(source)), model.start(source, source_mask), []
    for t in range(steps):
        step_logits, state = model.step(token, state)
        if lengths is not None:
            step_logits = _oracle(step_logits, lengths == t + 1)
        token = step_logits.argmax(-1)
        logits.append(step_logits)
    return torch.stack(logits, 1)


def _oracle(logits: Tensor, ends: Tensor) -> Tensor:
    """Make "<eos>" certain where a target ends, and impossible elsewhere."""
    eos = torch.where(ends, torch.inf, -torch.inf).to(logits.dtype)
    return torch.cat([logits[:, :EOS_ID], eos[:, None], logits[:, EOS_ID + 1 :]], 1)
