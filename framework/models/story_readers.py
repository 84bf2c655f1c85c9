"""Readers of stories: a story and a question in, one answer out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algornn.memory import Associations, AttentionDecomposition, TensorProductMemory
from algornn.models.recurrent import run_network


class SentenceEncoder(nn.Module):
    r"""A sentence as the sum of its words, with trained position weights: :math:`x = \sum_w E[word_w] \odot P_w / W`.

    The padding word (id 0) has an ordinary embedding and is summed in, as in the original.

    Args:
        vocab_size: number of words V, padding included; also the width of the embedding.
        sentence_length: words per sentence W.
    """

    def __init__(self, vocab_size: int, sentence_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.position = nn.Parameter(torch.ones(sentence_length, vocab_size))

    def forward(self, words: Tensor) -> Tensor:
        """Map word ids ``[..., W]`` to ``[..., V]``.

        Raises:
            ValueError: the last dimension is not W.
        """
        return self.weighted(words).sum(-2)

    def words(self, words: Tensor) -> Tensor:
        """Map word ids ``[..., W]`` to the terms of the sum, ``[..., W, V]``, 0 where a word pads."""
        return self.weighted(words).masked_fill((words == 0)[..., None], 0)

    def weighted(self, words: Tensor) -> Tensor:
        """Map word ids ``[..., W]`` to the terms of the sum, ``[..., W, V]``."""
        if words.shape[-1] != len(self.position):
            raise ValueError(
                f"sentences must have {len(self.position)} words (padded with 0), got {list(words.shape)}. "
                "Build the model with the data module's sentence_length."
            )
        return F.embedding(self.entries(words), self.table().flatten(0, 1))

    def table(self) -> Tensor:
        """All products of a position's weights and a word, ``[W, V, V]``: fewer than the words of a batch."""
        return (self.position / len(self.position))[:, None] * self.embedding.weight

    def entries(self, words: Tensor) -> Tensor:
        """Map word ids ``[..., W]`` to the entries of the flat table, in which word v at position w is w V + v."""
        W, V = self.position.shape
        return words + V * torch.arange(W, device=words.device)


class TPRRNN(nn.Module):
    """The tensor-product RNN: sentences write a third-order fast-weight memory, the question reads it in three hops.

    Args:
        vocab_size: number of words V, padding (id 0) included.
        sentence_length: words per sentence and question, W.
        entity_size: E.
        role_size: R.
        hidden_size: hidden units of every head.
        unused_query_head: keep the dead head of the released code (see `TensorProductMemory`).
        aid: take the components of sentences and questions from an attention over their words
            (`AttentionDecomposition`, AID) instead of MLPs of their sum. Padding words are left out then, and
            `reconstruction_loss` is what Park et al. (2024) add to the loss.
        slot_size: width of the attention's slots.

    The parameter count with `unused_query_head` is V^2 + (490 + W) V + 20,086 at the default sizes: 141,985 for all
    tasks of bAbI.

    Source: Schlag and Schmidhuber (2018), NeurIPS, https://arxiv.org/abs/1811.12143, eq. 1 to 14 and the released code.
    """

    def __init__(
        self,
        vocab_size: int,
        sentence_length: int,
        entity_size: int = 90,
        role_size: int = 20,
        hidden_size: int = 40,
        unused_query_head: bool = False,
        aid: bool = False,
        slot_size: int = 64,
    ) -> None:
        super().__init__()
        V = vocab_size
        self.encoder = SentenceEncoder(V, sentence_length)
        self.encode = self.encoder.words if aid else self.encoder
        attention = AttentionDecomposition(V, V, (5, 4), slot_size, 2 * slot_size) if aid else None
        self.memory = TensorProductMemory(V, entity_size, role_size, hidden_size, unused_query_head, attention)
        self.reconstruction = nn.Linear(V, V) if aid else None
        self.output = nn.Linear(entity_size, vocab_size, bias=False)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, story: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Answer one question per story.

        Args:
            story: word ids ``[B, T, W]``.
            query: word ids ``[B, W]``.
            mask: ``[B, T]`` bool, False at sentences that only pad the batch.

        Returns:
            Logits over the vocabulary, ``[B, V]``.
        """
        memory = self.memory.write(self.encode(story), mask=mask)
        return self.output(self.memory.read(memory, self.encode(query)))

    def reconstruction_loss(self, story: Tensor, query: Tensor) -> Tensor:
        """Mean cross-entropy of every word id of stories and questions, given its position-weighted embedding.

        Raises:
            TypeError: the model has no decomposition.
        """
        if self.reconstruction is None:
            raise TypeError("`reconstruction_loss` is a part of AID: build the model with aid=True.")
        # What a word adds depends on nothing but itself and its place, so the table of both holds every term once.
        table = self.encoder.table()
        expected = torch.arange(table.shape[1], device=table.device).expand(len(table), -1)
        losses = F.cross_entropy(self.reconstruction(table).flatten(0, 1), expected.flatten(), reduction="none")
        words = torch.cat([story, query[:, None]], 1)
        return F.embedding(self.encoder.entries(words), losses.flatten()[:, None]).mean()

    def fast_weights(self, story: Tensor, query: Tensor, mask: Tensor | None = None) -> Associations:
        """What the story wrote, for probes; see `TensorProductMemory.fast_weights`."""
        return self.memory.fast_weights(self.encode(story), mask=mask)


class LSTMReader(nn.Module):
    """The baseline: the same sentence encoder, then an LSTM over the sentences and, last, the question.

    Args:
        vocab_size: number of words V, padding (id 0) included.
        sentence_length: words per sentence and question, W.
        hidden_size: units of the LSTM; 79 gives the size of `TPRRNN` on all tasks of bAbI (130,490 against 131,095).
    """

    def __init__(self, vocab_size: int, sentence_length: int, hidden_size: int = 79) -> None:
        super().__init__()
        self.encoder = SentenceEncoder(vocab_size, sentence_length)
        self.lstm = nn.LSTM(vocab_size, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, story: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Answer one question per story; as `TPRRNN.forward`, but padding must come after a story, not inside it."""
        x = torch.cat([self.encoder(story), self.encoder(query)[:, None]], dim=1)
        if mask is not None:
            # The question moves to the first place after its own story, so that the LSTM reads no padding before it.
            length = mask.sum(1)
            x = x.scatter(1, length[:, None, None].expand(-1, 1, x.shape[-1]), x[:, -1:])
            y, _ = run_network(self.lstm, x)
            return self.output(y[torch.arange(len(y), device=y.device), length])
        return self.output(run_network(self.lstm, x)[0][:, -1])
