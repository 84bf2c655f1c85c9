"""Networks that read a sequence of tokens and give it one class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from algornn.models.token_networks import TokenNetwork


class SequenceClassifier(TokenNetwork):
    """Embed every token, run a sequence layer over them, give the logits of one class for the whole sequence.

    The output is read at the last real token; of a layer in both directions (``layer.bidirectional``), its forward
    half at the last and its backward half at the first real token, where each has seen everything.

    Args:
        vocab_size: number of input ids, padding (id 0) included.
        output_size: number of classes.
        layer: called with the width of the embedded tokens; makes the sequence layer, see `TokenNetwork`.
        embedding_size: width of the embedding.
        readout_size: units of a ReLU layer between the sequence layer and the output; None: there is none.
        dropout: probability, on embedded tokens and on what the output layer sees.
    """

    def __init__(
        self,
        vocab_size: int,
        output_size: int,
        layer: Callable[[int], nn.Module] | None = None,
        embedding_size: int = 128,
        readout_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(vocab_size, output_size, layer, embedding_size, readout_size=readout_size, dropout=dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Classify every sequence.

        Args:
            tokens: ids ``[B, T]``.
            mask: ``[B, T]`` bool, False at tokens that only pad the batch.

        Returns:
            Logits ``[B, output_size]``.

        Raises:
            ValueError: a sequence has no real token.
        """
        y, _ = self.layer(self._embed(tokens), None, mask)
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if not real.any(1).all():
            raise ValueError("every sequence must have at least one real token, one in `mask` has none.")
        place = torch.arange(tokens.shape[1], device=tokens.device)
        last = self._at(y, torch.where(real, place, -1).amax(1))
        if getattr(self.layer, "bidirectional", False):
            first = self._at(y, torch.where(real, place, len(place)).amin(1))
            half = y.shape[-1] // 2
            last = torch.cat([last[:, :half], first[:, half:]], 1)
        return self.output(self.readout(self.dropout(last)))

    @staticmethod
    def _at(y: Tensor, index: Tensor) -> Tensor:
        return y[torch.arange(len(y), device=y.device), index]
