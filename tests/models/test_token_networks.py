"""TokenNetwork and FastWeightBlocks: the originals' sizes, the released language model's numbers, shapes and errors."""

import ast
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from algornn import (
    LSTM,
    DeltaNet,
    DeltaRNN,
    FastWeightBlocks,
    FastWeightMemory,
    LinearTransformer,
    MemoryAugmentedLSTM,
    RecurrentDeltaNet,
    SelfReferentialMatrix,
    TokenNetwork,
)
from algornn.probes import FastWeightProbe


def trained(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


# Sizes of the originals.


def test_parameters_of_the_language_model_of_catbabi():
    assert trained(TokenNetwork(200, 200, MemoryAugmentedLSTM, 256, output_bias=False)) == 693_985


@pytest.mark.parametrize(
    ("memory", "millions"),
    [(LinearTransformer, "3.17"), (DeltaNet, "3.18"), (RecurrentDeltaNet, "3.23"), (DeltaRNN, "3.72")],
)
def test_parameters_of_the_models_of_algorithmic_tasks(memory, millions):
    blocks = partial(FastWeightBlocks, memory=partial(memory, heads=16), blocks=4)
    assert f"{trained(TokenNetwork(22, 26, blocks, 256)) / 1e6:.2f}" == millions


# The released language model of the Fast Weight Memory.

NAMES = {
    "embedding.weight": "embedding.weight",
    "rnn.cells.0.lstm.W_ih": "layer.controller.network.weight_ih_l0",
    "rnn.cells.0.lstm.W_hh": "layer.controller.network.weight_hh_l0",
    "rnn.cells.0.lstm.bias": "layer.controller.network.bias_ih_l0",
    "rnn.cells.0.W_write.weight": "layer.memory.write_head.weight",
    "rnn.cells.0.W_write.bias": "layer.memory.write_head.bias",
    "rnn.cells.0.W_read.weight": "layer.memory.read_head.weight",
    "rnn.cells.0.W_read.bias": "layer.memory.read_head.bias",
    "rnn.cells.0.linear.weight": "layer.memory.output.weight",
    "rnn.cells.0.linear.bias": "layer.memory.output.bias",
    "linear.weight": "output.weight",
}


def golden(name):
    """Numbers of the released model: $ALGORNN_GOLDEN, or shared/golden beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("ALGORNN_GOLDEN", beside)) / name
    if not path.is_file():
        pytest.skip(f"the golden vectors {path} are missing; set ALGORNN_GOLDEN to their folder")
    with np.load(path) as file:
        return {key: str(file[key]) if key == "config" else torch.from_numpy(file[key]) for key in file.files}


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", ["fwm_lm_a", "fwm_qa_a"])
def test_the_released_language_model_over_two_segments(name):
    wanted = golden(f"{name}.npz")
    config = ast.literal_eval(wanted["config"])
    memory = partial(FastWeightMemory, entity_size=5, role_size=4, reads=3, residual=config["residual"])
    layer = partial(MemoryAugmentedLSTM, hidden_size=12, memory=memory)
    network = TokenNetwork(17, 17, layer, 8, output_bias=False).double()
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert sorted(NAMES.values()) == sorted(parameters)
    with torch.no_grad():
        for theirs, ours in NAMES.items():
            parameters[ours].copy_(wanted[f"param/{theirs}"])

    state, total = None, 0
    for segment in ("1", "2"):
        tokens = wanted[f"x{segment}"]
        logits, state = network(tokens, state, tokens != config["PAD"])
        counts = tokens == config["QM"] if config["ra_mode"] else tokens != config["PAD"]
        assert relative_error(logits[counts], wanted[f"logits{segment}"][counts]) < 1e-10
        total = total + (logits * wanted[f"cotangent{segment}"])[counts].sum()
    (h, c), F = state
    for value, key in ((h[:, 0], "h"), (c[:, 0], "c"), (F, "F")):
        assert relative_error(value, wanted[f"state_{key}"]) < 1e-10
    total.backward()
    for theirs, ours in NAMES.items():
        assert relative_error(parameters[ours].grad, wanted[f"grad/{theirs}"]) < 1e-10, ours


# What the networks are made of.


def test_blocks_are_residual_around_memory_and_feed_forward():
    torch.manual_seed(0)
    blocks = FastWeightBlocks(8, partial(DeltaNet, heads=2), blocks=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    y, states = blocks(x)
    for block, state in zip(blocks.blocks, states, strict=True):
        read, own = block.memory(block.norm(x))
        assert torch.equal(own, state)
        x = x + read
        norm, first, _, _, second, _ = block.feedforward
        x = x + second(first(norm(x)).relu())
        assert first.out_features == 32
    assert relative_error(x, y) < 1e-14


def test_a_layer_named_in_a_configuration_has_its_own_defaults():
    parser = ArgumentParser()
    parser.add_subclass_arguments(TokenNetwork, "network")
    parse = lambda **layer: parser.parse_object(  # noqa: E731
        {"network": {"class_path": "algornn.TokenNetwork", "init_args": {"vocab_size": 9, "output_size": 4, **layer}}}
    )
    for name, dropout in (("FastWeightBlocks", 0.0), ("DecomposedFastWeightMemory", 0.5), ("NeuralDataRouter", 0.5)):
        config = parse(layer={"class_path": f"algornn.{name}"})
        assert config.network.init_args.layer.init_args.dropout == dropout
    network = parser.instantiate_classes(parse(layer={"class_path": "algornn.UniversalTransformer"})).network
    assert network.layer.dropout.p == 0.1
    assert isinstance(parser.instantiate_classes(parse()).network.layer, FastWeightBlocks)


def test_several_ids_per_token_are_concatenated():
    torch.manual_seed(0)
    network = TokenNetwork(9, 4, partial(LSTM, hidden_size=6), 5, ids_per_token=3)
    tokens = torch.randint(9, (2, 7, 3))
    logits, state = network(tokens)
    assert logits.shape == (2, 7, 4)
    x = torch.cat([network.embedding.weight[tokens[..., i]] for i in range(3)], -1)
    assert torch.equal(logits, network.output(network.layer(x)[0]))
    # Products of other shapes may be rounded otherwise.
    torch.testing.assert_close(logits[:, 4:], network(tokens[:, 4:], network(tokens[:, :4])[1])[0])
    assert network.layer.network.input_size == 15
    assert state[0].shape == (2, 1, 6)


@pytest.mark.parametrize(("ids", "shape"), [(1, (2, 7, 3)), (3, (2, 7)), (3, (2, 7, 2))])
def test_a_wrong_number_of_ids_is_named(ids, shape):
    network = TokenNetwork(9, 4, partial(LSTM, hidden_size=6), 5, ids_per_token=ids)
    with pytest.raises(ValueError, match=rf"must have {ids} id\(s\) per token, got the shape \[2, 7.*ids_per_token"):
        network(torch.ones(shape, dtype=torch.long))


@pytest.mark.parametrize("layer", [DeltaNet, partial(FastWeightBlocks, memory=DeltaRNN, blocks=1)])
def test_a_number_of_heads_that_does_not_divide_the_size_is_named(layer):
    with pytest.raises(ValueError, match="`heads` must divide the layer's size 12, got 8"):
        TokenNetwork(9, 4, layer, 12)


@pytest.mark.parametrize(
    ("layer", "owner"), [(FastWeightBlocks, "layer.blocks.0.memory"), (MemoryAugmentedLSTM, "layer")]
)
def test_the_probe_of_fast_weights_finds_the_memory(layer, owner):
    torch.manual_seed(0)
    network, tokens = TokenNetwork(9, 4, layer, 16), torch.randint(9, (3, 5))
    loss = lambda call, batch: call(batch)[0].square().mean()  # noqa: E731
    found = FastWeightProbe(loss=loss).run(network, [tokens])
    assert found.scalars == FastWeightProbe(loss=loss, at=owner).run(network, [tokens]).scalars
    assert found.scalars["writes"] == 5


def test_finding_the_width_leaves_no_trace():
    class Layer(nn.Module):
        """Not as wide as its input, and counts its calls where it is trained."""

        def __init__(self, size):
            super().__init__()
            self.linear = nn.Linear(size, 3)
            self.calls = 0

        def forward(self, x, state=None, mask=None):
            self.calls += self.training
            return self.linear(x), state

    network = TokenNetwork(9, 4, Layer, 5)
    assert network.output.in_features == 3
    assert (network.layer.training, network.layer.calls) == (True, 0)


def test_without_a_bias_the_output_starts_xavier_normal():
    torch.manual_seed(0)
    network = TokenNetwork(200, 300, partial(LSTM, hidden_size=200), 8, output_bias=False)
    assert network.output.bias is None
    assert network.output.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)


def test_dropout_is_applied_to_embedded_tokens_and_to_what_the_output_sees():
    torch.manual_seed(0)
    network = TokenNetwork(9, 4, lambda size: Mirror(), 400, dropout=0.25)
    seen = []
    network.output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    nn.init.ones_(network.embedding.weight)
    network(torch.ones(1, 50, dtype=torch.long))
    kept = seen[0]
    assert kept.ne(0).float().mean().item() == pytest.approx(0.75**2, abs=0.02)
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / 0.75**2))
    network.eval()(torch.ones(1, 50, dtype=torch.long))
    assert torch.equal(seen[1], torch.ones_like(seen[1]))


class Mirror(nn.Module):
    """A layer that gives what it gets."""

    def forward(self, x, state=None, mask=None):
        return x, state


def test_the_forget_bias_is_a_constant():
    torch.manual_seed(0)
    layer = LSTM(3, 4, forget_bias=1.0)
    parameters = dict(layer.network.named_parameters())
    assert [name for name, p in parameters.items() if not p.requires_grad] == ["bias_hh_l0"]
    assert parameters["bias_hh_l0"].tolist() == [0] * 4 + [1] * 4 + [0] * 8
    assert not parameters["bias_ih_l0"].any()
    assert all(p.abs().max() <= 0.5 for name, p in parameters.items() if name.startswith("weight"))
    assert all(p.requires_grad for p in LSTM(3, 4).parameters())


def test_every_layer_of_the_lstm_has_its_forget_bias():
    for name, p in LSTM(3, 4, layers=2, forget_bias=2.0).network.named_parameters():
        if name.startswith("bias_hh"):
            assert p[4:8].tolist() == [2] * 4


def test_a_self_referential_network_starts_every_sequence_from_its_trained_matrix():
    torch.manual_seed(0)
    network = TokenNetwork(9, 4, partial(SelfReferentialMatrix, heads=2), 8)
    tokens = torch.randint(9, (3, 6))
    first = network.layer.first.expand(3, -1, -1, -1)
    assert torch.equal(network(tokens)[0], network(tokens, first)[0])
