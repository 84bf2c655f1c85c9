"""Seq2Seq and its decoding: parallel equals step by step, attention is its equation, padding changes nothing."""

from functools import partial

import pytest
import torch
from torch import nn

from algornn import (
    GRU,
    LSTM,
    BidirectionalLSTM,
    DeltaNet,
    DeltaRNN,
    FastWeightBlocks,
    NeuralDataRouter,
    Seq2Seq,
    Transformer,
)
from algornn.models.seq2seq import EOS_ID, greedy, shifted

BLOCKS = partial(FastWeightBlocks, memory=partial(DeltaNet, heads=2), blocks=2)
NETWORKS = {
    "lstm": {"layer": partial(LSTM, hidden_size=8, layers=2)},
    "gru": {"layer": partial(GRU, hidden_size=8)},
    "bidirectional": {"layer": partial(LSTM, hidden_size=8), "encoder": partial(BidirectionalLSTM, hidden_size=8)},
    "lstm_attention": {"layer": partial(LSTM, hidden_size=8, layers=2), "attention": True},
    "gru_attention": {"layer": partial(GRU, hidden_size=8), "attention": True},
    "delta_net": {"layer": BLOCKS},
    "delta_rnn": {"layer": partial(DeltaRNN, heads=2)},
    "shared": {"layer": BLOCKS, "shared": True},
}
every_network = pytest.mark.parametrize("name", NETWORKS)
LENGTHS = torch.tensor([5, 2, 4])


def network(name):
    torch.manual_seed(2)
    return Seq2Seq(9, 7, embedding_size=6, **NETWORKS[name]).double().eval()


@pytest.fixture
def pairs():
    """Sources of 5, 2 and 4 tokens and targets of 6."""
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(2, 9, (3, 5), generator=draw)
    mask = torch.arange(5) < LENGTHS[:, None]
    return source * mask, torch.randint(2, 7, (3, 6), generator=draw), mask


def stepped(model, source, target, mask):
    state, logits = model.start(source, mask), []
    for token in shifted(target).unbind(1):
        step, state = model.step(token, state)
        logits.append(step)
    return torch.stack(logits, 1)


@every_network
def test_steps_give_the_logits_of_the_whole(name, pairs):
    model = network(name)
    source, target, mask = pairs
    torch.testing.assert_close(stepped(model, *pairs), model(source, target, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": partial(Transformer, heads=2)}, "must read token by token in one direction, Transformer"),
        ({"layer": partial(Transformer, heads=2, causal=True)}, "token by token in one direction, Transformer"),
        ({"layer": partial(NeuralDataRouter)}, "must read token by token in one direction, NeuralDataRouter"),
        (
            {"layer": partial(BidirectionalLSTM, hidden_size=8)},
            "must read token by token in one direction, BidirectionalLSTM",
        ),
        ({"layer": GRU, "encoder": LSTM}, "cannot start from the encoder's"),
        ({"layer": partial(LSTM, hidden_size=8), "encoder": partial(LSTM, hidden_size=4)}, "cannot start from"),
        ({"layer": LSTM, "encoder": partial(Transformer, heads=2)}, "cannot start from the encoder's"),
    ],
)
def test_a_decoder_that_cannot_write_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Seq2Seq(9, 7, embedding_size=6, **settings)


@every_network
def test_the_constructor_leaves_the_training_mode(name):
    assert all(module.training for module in Seq2Seq(9, 7, embedding_size=6, **NETWORKS[name]).modules())


@every_network
def test_a_source_of_padding_alone_gives_numbers(name, pairs):
    model, (source, target, mask) = network(name), pairs
    mask = mask.clone()
    mask[1] = False
    assert model(source, target, mask).isfinite().all()
    assert greedy(model, source, mask, 3).isfinite().all()


def test_sources_and_targets_have_at_least_one_token(pairs):
    source, target, _ = pairs
    with pytest.raises(ValueError, match="Every source must have at least one token, its end, got sources of length 0"):
        network("lstm")(source[:, :0], target)
    with pytest.raises(ValueError, match="Every target must have at least one token, its end, got targets of length 0"):
        network("lstm")(source, target[:, :0])
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        greedy(network("lstm"), source, None, 0)


@every_network
def test_a_pair_alone_has_the_logits_that_it_has_in_a_batch(name, pairs):
    model = network(name)
    source, target, mask = pairs
    batch = model(source, target, mask)
    for row, length in enumerate(LENGTHS):
        alone = model(source[row : row + 1, :length], target[row : row + 1], None)
        torch.testing.assert_close(alone[0], batch[row], rtol=0, atol=1e-12)


@every_network
def test_logits_depend_on_the_source_and_the_target_before_them_only(name, pairs):
    model = network(name)
    source, target, mask = pairs
    logits = model(source, target, mask)
    later = target.clone()
    later[:, 3] = 2 + (target[:, 3] - 1) % 5
    changed = (model(source, later, mask) - logits).abs().amax((0, 2))
    assert changed[:4].max() == 0
    assert changed[4:].min() > 1e-6
    other = source.clone()
    other[:, 0] = 2 + (source[:, 0] - 1) % 7
    assert (model(other, target, mask) - logits).abs().amax((1, 2)).min() > 1e-8


def test_attention_is_its_equation(pairs):
    """Bahdanau et al. 2015, eq. 5 and 6, from the encoder's outputs on, one row and one source token at a time."""
    model = network("lstm_attention")
    source, target, mask = pairs
    logits = model(source, target, mask)
    attention = model.attention
    U, b, V, w = attention.keys.weight, attention.keys.bias, attention.query.weight, attention.energy.weight[0]
    for row, length in enumerate(LENGTHS.tolist()):
        h, (hidden, cell) = model.encoder.network(model.source_embedding(source[row : row + 1, :length]))
        y, token = h[0, -1], 0
        for t in range(target.shape[1]):
            energies = torch.stack([w @ torch.tanh(U @ h[0, i] + b + V @ y) for i in range(length)])
            alpha = energies.exp() / energies.exp().sum()
            c = sum(alpha[i] * h[0, i] for i in range(length))
            x = torch.cat([model.target_embedding.weight[token], c])
            out, (hidden, cell) = model.decoder.network(x[None, None], (hidden, cell))
            y, token = out[0, 0], target[row, t]
            wanted = model.output.weight @ torch.cat([y, c]) + model.output.bias
            torch.testing.assert_close(logits[row, t], wanted, rtol=0, atol=1e-12)


def test_a_shared_network_leaves_no_parameter_without_a_gradient(pairs):
    unused = {}
    for shared in (False, True):
        model = Seq2Seq(9, 7, BLOCKS, embedding_size=6, shared=shared)
        model(*pairs).sum().backward()
        unused[shared] = [name for name, p in model.named_parameters() if p.grad is None]
    assert all(name.startswith("encoder.blocks.1.") for name in unused[False])
    assert unused[True] == []


def test_parameters_of_the_network_of_lake_and_baroni():
    """Two layers of 200 LSTM units, embeddings of 200: per layer 4 * 200 * (200 + 200 + 2) in encoder and decoder."""
    model = Seq2Seq(15, 8, partial(LSTM, hidden_size=200, layers=2))
    wanted = (15 + 8) * 200 + 2 * 2 * 4 * 200 * (200 + 200 + 2) + 200 * 8 + 8
    assert sum(p.numel() for p in model.parameters()) == wanted == 1_292_608


# Decoding.


class Script(nn.Module):
    """Writes the words that it is told, whatever it reads, and notes what it has read."""

    def __init__(self, words):
        super().__init__()
        self.words, self.read = words, []

    def start(self, source, mask):
        return (torch.zeros(len(source), dtype=torch.long),)

    def step(self, token, state):
        self.read.append(token.tolist())
        t = state[0]
        return nn.functional.one_hot(self.words[torch.arange(len(t)), t], 7).double(), (t + 1,)


def test_decoding_reads_the_start_symbol_and_then_what_it_wrote():
    words = torch.tensor([[4, 5, EOS_ID, 2], [3, EOS_ID, 6, 6]])
    script = Script(words)
    assert greedy(script, torch.zeros(2, 3, dtype=torch.long), None, 4).argmax(-1).tolist() == words.tolist()
    assert script.read == [[0, 0], [4, 3], [5, EOS_ID], [EOS_ID, 6]]


def test_the_oracle_ends_a_target_where_it_ends_and_nowhere_else():
    words = torch.tensor([[EOS_ID, 5, 4, 2], [3, 4, 5, 6]])
    written = greedy(Script(words), torch.zeros(2, 3, dtype=torch.long), None, 4, torch.tensor([4, 2])).argmax(-1)
    assert (written == EOS_ID).tolist() == [[False, False, False, True], [False, True, False, False]]
    assert written[0, 1:3].tolist() == [5, 4]
    assert written[1, 0] == 3


# Mistakes.


def test_widths_that_attention_cannot_join_are_named():
    with pytest.raises(ValueError, match="encoder and decoder must have the same width, got 6 and 12"):
        Seq2Seq(9, 7, BLOCKS, embedding_size=6, attention=True)


@pytest.mark.parametrize("wrong", [{"attention": True}, {"encoder": LSTM}])
def test_a_shared_network_has_no_encoder_of_its_own(wrong):
    with pytest.raises(ValueError, match="`shared` makes one layer of encoder and decoder"):
        Seq2Seq(9, 7, LSTM, shared=True, **wrong)


def test_a_layer_that_is_made_already_is_refused():
    with pytest.raises(TypeError, match="`encoder` must be a class or a function of the width"):
        Seq2Seq(9, 7, LSTM, encoder=LSTM(200))


@pytest.mark.parametrize("name", ["vocab_size", "output_size", "embedding_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_are_checked(name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {size}"):
        Seq2Seq(**{"vocab_size": 9, "output_size": 7, name: size})


@pytest.mark.parametrize("attention", [False, True])
def test_wrong_arguments_are_named(attention, pairs):
    model, (source, target, mask) = network("lstm_attention" if attention else "lstm"), pairs
    with pytest.raises(
        ValueError, match=r"`source` must be a tensor of integer ids \[B, S\], got torch.int64 of shape"
    ):
        model(source[0], target)
    with pytest.raises(ValueError, match="`target` must have B=3 rows, as many as the source, got 2"):
        model(source, target[:2], mask)
    with pytest.raises(ValueError, match=r"`source` must be ids from 0 to 8, got .* to 9.*vocab_size"):
        model(source + (source == source.max()) * (9 - source.max()), target)
    with pytest.raises(ValueError, match=r"`target` must be ids from 0 to 6, got . to 7"):
        model(source, target.fill_(7))
    with pytest.raises(ValueError, match="`state` must be what `start` or a step has returned, got NoneType"):
        model.step(source[:, 0], None)
    with pytest.raises(ValueError, match=r"`token` must be a tensor of integer ids \[B\], got torch.int64 of shape"):
        model.step(source, model.start(source))


def test_a_probability_out_of_its_range_is_named():
    with pytest.raises(ValueError, match="`dropout` must be a probability, from 0 to 1, got 2"):
        Seq2Seq(9, 7, dropout=2)
