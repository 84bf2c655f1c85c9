"""AID: the attention against its equations as a loop, padding, and TPRRNN with it."""

import pytest
import torch
import torch.nn.functional as F

from algornn import TPRRNN, LSTMReader, QuestionAnswering
from algornn.datamodules import StoryBatch
from algornn.memory import AttentionDecomposition


def literal(attention, words, context, part):
    """One set of words at a time, slot by slot, word by word."""
    s = attention.slot_size
    phi = lambda x: F.elu(x) + 1  # noqa: E731
    first = attention.initial[part](context).reshape(-1, s)
    slots = first.clone()
    for _ in range(attention.iterations):
        q = phi((attention.query(slots) + first) / s**0.5)
        A = torch.stack([(q @ phi(attention.key(x))).softmax(0) if x.any() else torch.zeros(len(q)) for x in words])
        A = (A + 1e-6) / (A + 1e-6).sum(0)
        U = torch.stack([sum(A[w, j] * attention.value(x) for w, x in enumerate(words)) for j in range(len(q))])
        slots = slots + attention.update(U) / s
    return attention.output(torch.cat([first, slots], 1))


@pytest.mark.parametrize("part", [0, 1])
def test_the_attention_is_its_equations(part):
    torch.manual_seed(0)
    attention = AttentionDecomposition(5, 3, (3, 2), slot_size=4, feedforward_size=6, iterations=3).eval().double()
    words, context = torch.randn(2, 7, 5).double(), torch.randn(2, 3).double()
    words[0, 4:] = 0  # padding
    found = attention(words, context, part)
    wanted = torch.stack([literal(attention, *row, part) for row in zip(words, context, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert found.shape == (2, (3, 2)[part], 4)


def batch(vocab=11, words=4):
    torch.manual_seed(1)
    story, query = torch.randint(1, vocab, (3, 5, words)), torch.randint(1, vocab, (3, words))
    story[:, :, -1] = query[:, -1] = 0
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    answer, rows = torch.tensor([2, 5, 9]), torch.arange(3)
    return StoryBatch(story, query, mask, answer, group=torch.zeros_like(rows), id=rows)


def model(**options):
    torch.manual_seed(2)
    return TPRRNN(11, 4, entity_size=6, role_size=3, hidden_size=5, aid=True, slot_size=8, **options)


def test_every_weight_is_trained_and_masked_sentences_do_not_count():
    network, b = model().eval(), batch()
    logits = network(b.story, b.query, b.mask)
    other = b.story.masked_fill(~b.mask[..., None], 7)
    torch.testing.assert_close(network(other, b.query, b.mask), logits, rtol=0, atol=0)
    (F.cross_entropy(logits, b.answer) + network.reconstruction_loss(b.story, b.query)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_reconstruction_is_the_mean_over_all_words_and_joins_the_loss():
    network, b = model(), batch()
    words = torch.cat([b.story, b.query[:, None]], 1)
    losses = []
    for w in range(4):
        embedded = network.encoder.embedding(words[..., w]) * network.encoder.position[w] / 4
        losses.append(F.cross_entropy(network.reconstruction(embedded).flatten(0, 1), words[..., w].flatten()))
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(network.reconstruction_loss(b.story, b.query), wanted)

    learner = QuestionAnswering(network.eval(), reconstruction=0.5, length_groups=2)
    learner.log = lambda *_, **__: None
    plain = F.cross_entropy(network(b.story, b.query, b.mask), b.answer)
    torch.testing.assert_close(learner.training_step(b, 0), plain + 0.5 * wanted)


def test_reconstruction_needs_a_model_that_has_it():
    with pytest.raises(ValueError, match="needs a model with reconstruction_loss, LSTMReader has none"):
        QuestionAnswering(LSTMReader(11, 4), reconstruction=1.0)
    with pytest.raises(TypeError, match="aid=True"):
        TPRRNN(11, 4).reconstruction_loss(*(torch.zeros(1, 2, 4).long(), torch.zeros(1, 4).long()))
