"""GRU, BidirectionalLSTM and SequenceClassifier: equal to PyTorch on every row alone."""

from functools import partial

import pytest
import torch

from algornn import GRU, LSTM, BidirectionalLSTM, DeltaNet, SequenceClassifier
from algornn.models import recurrent

LENGTHS = [5, 1, 3]
LAYERS = {
    "lstm": partial(LSTM, hidden_size=6, layers=2),
    "gru": partial(GRU, hidden_size=6, layers=2),
    "bidirectional": partial(BidirectionalLSTM, hidden_size=6, layers=2),
}


@pytest.fixture
def batch():
    """Three rows of 5, 1 and 3 tokens; what pads is not a number."""
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    return x.masked_fill(~mask[..., None], torch.nan), mask


@pytest.mark.parametrize("name", LAYERS)
def test_every_row_is_what_pytorch_makes_of_it_alone(name, batch):
    torch.manual_seed(1)
    layer = LAYERS[name](4).double()
    x, mask = batch
    y, state = layer(x, None, mask)
    for row, length in enumerate(LENGTHS):
        wanted, new = layer.network(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :length], wanted[0], rtol=0, atol=1e-12)
        assert (y[row, length:] == 0).all()
        for part, inner in zip(state, new if isinstance(new, tuple) else (new,), strict=True):
            # PyTorch's [layers * directions, 1, H]: per layer forward, backward.
            torch.testing.assert_close(part[row], inner[:, 0].reshape(2, 6), rtol=0, atol=1e-12)


def test_the_state_of_both_directions_starts_a_decoder(batch):
    x, mask = batch
    _, state = BidirectionalLSTM(4, 6).double()(x, None, mask)
    y, _ = LSTM(4, 6).double()(torch.zeros(3, 2, 4, dtype=torch.float64), state)
    assert y.shape == (3, 2, 6)


def test_both_directions_refuse_a_state_and_an_odd_width(batch):
    x, mask = batch
    layer = BidirectionalLSTM(4, 6).double()
    with pytest.raises(ValueError, match="a bidirectional network reads whole sequences"):
        layer(x, layer(x, None, mask)[1], mask)
    with pytest.raises(ValueError, match="must be even, got 5"):
        BidirectionalLSTM(4, 5)


# SequenceClassifier.


@pytest.mark.parametrize("name", [*LAYERS, "delta_net"])
def test_a_class_is_read_where_everything_has_been_seen(name):
    torch.manual_seed(2)
    layers = LAYERS | {"delta_net": partial(DeltaNet, heads=2)}
    model = SequenceClassifier(9, 5, layers[name], embedding_size=4).double()
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(1, 9, (3, 5), generator=torch.Generator().manual_seed(3)) * mask
    logits = model(tokens, mask)
    for row, length in enumerate(LENGTHS):
        y = model.layer(model.embedding(tokens[row : row + 1, :length]))[0][0]
        seen = torch.cat([y[-1, :3], y[0, 3:]]) if name == "bidirectional" else y[-1]
        torch.testing.assert_close(logits[row], model.output(seen), rtol=0, atol=1e-12)


def test_padding_may_come_before_a_sequence():
    torch.manual_seed(2)
    model = SequenceClassifier(9, 5, LAYERS["bidirectional"], embedding_size=4).double()
    tokens = torch.tensor([[3, 4, 5]])
    mask = torch.tensor([[False, False, True, True, True]])
    torch.testing.assert_close(model(torch.tensor([[0, 0, 3, 4, 5]]), mask), model(tokens), rtol=0, atol=1e-12)


def test_a_sequence_without_tokens_is_named():
    with pytest.raises(ValueError, match="every sequence must have at least one real token"):
        SequenceClassifier(9, 5, LSTM)(torch.ones(2, 3, dtype=torch.long), torch.tensor([[True] * 3, [False] * 3]))


def test_dropout_between_layers_is_pytorchs():
    assert [LAYERS[name](4).network.dropout for name in ("lstm", "gru")] == [0, 0]
    assert LSTM(4, 6, 2, dropout=0.3).network.dropout == 0.3


def test_ids_beyond_the_vocabulary_are_named():
    with pytest.raises(ValueError, match=r"`tokens` must be ids from 0 to 5, got -1 to 6.*vocab_size"):
        SequenceClassifier(6, 2, LSTM)(torch.tensor([[-1, 6]]))


def test_without_instructions_for_bfloat16_it_runs_in_float32(monkeypatch):
    monkeypatch.setattr(recurrent, "_BFLOAT16", False)
    layer, x = LSTM(3, 4), torch.randn(2, 5, 3)
    expected, state = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(x.bfloat16().float())
        again, _ = layer(x[:, 3:], tuple(part.bfloat16() for part in layer(x[:, :3])[1]))
    assert y.dtype == again.dtype == torch.float32
    torch.testing.assert_close(layer(x.bfloat16().float())[0], y)
    torch.testing.assert_close(again, expected[:, 3:], rtol=0, atol=0.05)
    assert state[0].dtype == torch.float32


@pytest.mark.parametrize("layer", [LSTM, GRU, BidirectionalLSTM])
@pytest.mark.parametrize(("name", "size"), [("input_size", 0), ("hidden_size", -2), ("layers", 0)])
def test_sizes_are_checked(layer, name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {size}"):
        layer(**{"input_size": 4, name: size})
    with pytest.raises(ValueError, match="`dropout` must be a probability, from 0 to 1, got -1"):
        layer(4, layers=2, dropout=-1)


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), "1"])
def test_a_forget_bias_that_is_no_number_is_named(bias):
    with pytest.raises(ValueError, match=f"`forget_bias` must be a number, or None .*, got {bias!r}"):
        LSTM(4, forget_bias=bias)


@pytest.mark.parametrize("name", ["vocab_size", "output_size", "embedding_size", "readout_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_of_a_classifier_are_checked(name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {size}"):
        SequenceClassifier(**{"vocab_size": 6, "output_size": 2, "layer": LSTM, name: size})
