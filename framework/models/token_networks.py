"""Networks of tokens: an embedding, any sequence layer, and an output for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from algornn.memory import DeltaNet
from algornn.memory.associations import check_sizes, clear_masked
from algornn.models.attention import check_probabilities


class FastWeightBlocks(nn.Module):
    r"""Residual blocks around a memory, as a Transformer has them around its attention.

    .. math::
        x \leftarrow x + \mathrm{memory}(\mathrm{LN}(x)), \qquad
        x \leftarrow x + W_2 \, \mathrm{relu}(W_1 \mathrm{LN}(x) + b_1) + b_2

    with dropout on both sums. There are no positions: a memory that is written in order does not need them.

    Args:
        input_size: width D of input and output.
        memory: called with D for every block; makes its memory, a sequence layer of output width D. None: `DeltaNet`.
        blocks: number of blocks.
        feedforward_size: hidden units of the feed-forward part; None: 4 D.
        dropout: probability.

    Source: Irie, Schlag, Csordas and Schmidhuber (2021), "Going Beyond Linear Transformers with Recurrent Fast Weight
    Programmers", models of algorithmic tasks.
    """

    def __init__(
        self,
        input_size: int,
        memory: Callable[[int], nn.Module] | None = None,
        blocks: int = 4,
        feedforward_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_factory("memory", memory)
        feedforward_size = 4 * input_size if feedforward_size is None else feedforward_size
        check_sizes(input_size=input_size, blocks=blocks, feedforward_size=feedforward_size)
        self.input_size = input_size
        self.blocks = nn.ModuleList(
            [_Block(input_size, (memory or DeltaNet)(input_size), feedforward_size, dropout) for _ in range(blocks)]
        )

    def forward(
        self, x: Tensor, state: tuple[Any, ...] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Run over tokens ``[B, T, D]``; the state is the tuple of the blocks' states. Masked tokens give 0."""
        if state is not None and not (isinstance(state, tuple) and len(state) == len(self.blocks)):
            raise ValueError(f"`state` must be the tuple of {len(self.blocks)} states that an earlier call returned.")
        x, new = clear_masked(x, mask, self.input_size), []
        for block, old in zip(self.blocks, state or (None,) * len(self.blocks), strict=True):
            x, block_state = block(x, old, mask)
            new.append(block_state)
        return clear_masked(x, mask), tuple(new)


class _Block(nn.Module):
    def __init__(self, size: int, memory: nn.Module, feedforward_size: int, dropout: float) -> None:
        super().__init__()
        self.memory, self.norm, self.dropout = memory, nn.LayerNorm(size), nn.Dropout(dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, feedforward_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward_size, size),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
        y, state = self.memory(self.norm(x), state, mask)
        x = x + self.dropout(y)
        return x + self.feedforward(x), state


class TokenNetwork(nn.Module):
    """Embed every token, run a sequence layer over them, give logits for every token.

    Args:
        vocab_size: number of input ids, padding (id 0) included.
        output_size: number of classes.
        layer: called with the width of the embedded tokens; makes the sequence layer,
            ``forward(x, state, mask) -> (y, state)``: any memory of `algornn`, `FastWeightBlocks`, `LSTM`,
            `MemoryAugmentedLSTM`, `Transformer` or your own. The width of its output is found by running it once. Where
            it has a method ``init_embedding(embedding)``, that initialises the embedding. None: `FastWeightBlocks`. (As
            the default it would hand its own `dropout` on to every class that a configuration names in its place.)
        embedding_size: width of the embedding of one id.
        ids_per_token: ids that make one token; their embeddings are concatenated.
        readout_size: units of a ReLU layer between the sequence layer and the output; None: there is none.
        output_bias: whether the output layer has a bias; without, its weights are Xavier-normal.
        dropout: probability, on embedded tokens and on what the output layer sees.
    """

    def __init__(
        self,
        vocab_size: int,
        output_size: int,
        layer: Callable[[int], nn.Module] | None = None,
        embedding_size: int = 256,
        ids_per_token: int = 1,
        readout_size: int | None = None,
        output_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_factory("layer", layer)
        check_sizes(vocab_size=vocab_size, output_size=output_size, embedding_size=embedding_size)
        check_sizes(ids_per_token=ids_per_token)
        if readout_size is not None:
            check_sizes(readout_size=readout_size)
        check_probabilities(dropout=dropout)
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.layer = (layer or FastWeightBlocks)(ids_per_token * embedding_size)
        init_embedding: Any = getattr(self.layer, "init_embedding", None)
        if init_embedding is not None:
            init_embedding(self.embedding)
        self.dropout = nn.Dropout(dropout)
        width = output_width(self.layer, ids_per_token * embedding_size)
        self.readout = nn.Sequential(nn.Linear(width, readout_size), nn.ReLU()) if readout_size else nn.Identity()
        self.output = nn.Linear(readout_size or width, output_size, output_bias)
        if not output_bias:
            nn.init.xavier_normal_(self.output.weight)
        self.ids_per_token = ids_per_token

    def forward(self, tokens: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Give logits for every token.

        Args:
            tokens: ids ``[B, T]``, or ``[B, T, ids_per_token]``.
            state: the layer's state; None: its own first one.
            mask: ``[B, T]`` bool, False at tokens that only pad the batch.

        Returns:
            Logits ``[B, T, output_size]`` and the layer's new state.
        """
        y, state = self.layer(self._embed(tokens), state, mask)
        return self.output(self.readout(self.dropout(y))), state

    def _embed(self, tokens: Tensor) -> Tensor:
        ids = tokens.shape[2] if tokens.dim() == 3 else 1
        if ids != self.ids_per_token:
            raise ValueError(
                f"`tokens` must have {self.ids_per_token} id(s) per token, got the shape {list(tokens.shape)}. "
                "Build the network with the data module's ids_per_token."
            )
        x = embed("tokens", self.embedding, tokens)
        return self.dropout(x.flatten(2) if tokens.dim() == 3 else x)


def embed(name: str, embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Embed ids; where PyTorch finds one without an embedding (on a CPU), raise a ValueError that says which."""
    try:
        return embedding(ids)
    except IndexError as error:
        raise ValueError(
            f"`{name}` must be ids from 0 to {embedding.num_embeddings - 1}, got {int(ids.min())} to {int(ids.max())}. "
            "Build the network with the data module's vocab_size and output_size."
        ) from error


def check_ids(name: str, ids: Tensor, dims: str, count: int, batch: int | None = None) -> None:
    """Raise a ValueError unless ids are whole numbers in so many dimensions, of so many rows where they are told."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() != count:
        came = f"{ids.dtype} of shape {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"`{name}` must be a tensor of integer ids {dims}, got {came}.")
    if batch is not None and len(ids) != batch:
        raise ValueError(f"`{name}` must have B={batch} rows, as many as the source, got {len(ids)}.")
    if count == 2 and not ids.shape[1]:
        raise ValueError(f"Every {name} must have at least one token, its end, got {name}s of length 0.")


def check_factory(name: str, made_by: object) -> None:
    """Raise a TypeError where a module was given instead of what makes one."""
    if isinstance(made_by, nn.Module):
        kind = type(made_by).__name__
        raise TypeError(
            f"`{name}` must be a class or a function of the width, such as {kind} itself, not a {kind} made."
        )


def output_width(layer: nn.Module, input_size: int) -> int:
    """The width of what a layer gives, found by a run on one token that leaves no trace."""
    mode = layer.training
    with torch.no_grad():
        width = layer.eval()(torch.zeros(1, 1, input_size))[0].shape[-1]
    layer.train(mode)
    return width
