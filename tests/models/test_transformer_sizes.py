"""Sizes and defaults of the published Transformer encoders, by formulas written from their equations."""

import pytest

from algornn import (
    GeometricAttention,
    MultiHeadAttention,
    NeuralDataRouter,
    RelativeAttention,
    Transformer,
    UniversalTransformer,
)


def count(module):
    return sum(p.numel() for p in module.parameters())


def layer_size(d, hidden, positions="absolute"):
    attention = 4 * d * d + (d * d + 2 * d if positions == "relative" else 0)
    return attention + 2 * d * hidden + hidden + d + 2 * 2 * d


def router_size(d, hidden, heads, attention):
    own = {
        "geometric": 2 * heads * (d + 1) + d + 3 + 2 * d,  # directions, u, three scalars, the LayerNorm of the update
        "relative": d * d + 2 * d + 1,
        "absolute_relative": d * d + 2 * d + 1 + heads * (d + 1),
    }[attention]
    return 4 * d * d + own + 2 * d + (2 * d * hidden + hidden + d) + 2 * (d * d + d)


def test_parameters_of_the_transformers_of_compositional_table_lookup():
    assert count(UniversalTransformer(128)) == layer_size(128, 256) == 131_968
    assert count(UniversalTransformer(128, positions="relative")) == layer_size(128, 256, "relative") == 148_608
    assert UniversalTransformer(128).layers == 11


def test_parameters_of_the_neural_data_router():
    assert count(NeuralDataRouter(256)) == router_size(256, 512, 1, "geometric") == 658_437
    for attention, wanted in (("relative", 985_857), ("absolute_relative", 986_114)):
        found = count(NeuralDataRouter(256, feedforward_size=1024, attention=attention))
        assert found == router_size(256, 1024, 1, attention) == wanted
    assert count(NeuralDataRouter(512, 20, 16, 1024)) == router_size(512, 1024, 16, "geometric")
    geometric = NeuralDataRouter(128, 11, 4, 256, 0.1, 0.0, gate=False)
    assert count(geometric) == layer_size(128, 256) + 8 * 129 + 128 + 3


def test_the_defaults_are_those_of_compositional_table_lookup():
    encoder = NeuralDataRouter(256)
    (block,) = encoder.blocks
    assert (encoder.layers, block.attention.heads, block.dropout.p, block.gate_dropout) == (14, 1, 0.5, 0.1)
    assert (block.attention.key_dropout.p, block.attention.normalized) == (0.1, False)
    assert NeuralDataRouter(128, heads=4, gate=False).blocks[0].attention.normalized


@pytest.mark.parametrize("layers", [2, 6])
def test_parameters_of_a_deep_encoder(layers):
    assert count(Transformer(512, layers, 8, 2048)) == layers * layer_size(512, 2048)


@pytest.mark.parametrize("make", [MultiHeadAttention, RelativeAttention, GeometricAttention])
def test_sizes_and_probabilities_are_checked(make):
    for dropout in (-1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"`dropout` must be a probability, from 0 to 1, got {dropout}"):
            make(8, dropout=dropout)
    with pytest.raises(TypeError, match="`dropout` must be a probability, a number from 0 to 1, got 'x'"):
        make(8, dropout="x")
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        make(0)
