"""Transformer encoders and the Neural Data Router: PyTorch's own layers, equations, sizes, masks, gates."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from algornn import NeuralDataRouter, TokenNetwork, Transformer, UniversalTransformer
from algornn.models.attention import GeometricAttention, RelativeAttention, sinusoids

D = 8
SMALL = {"heads": 2, "feedforward_size": 10}
ENCODERS = {
    "absolute": partial(Transformer, layers=2, **SMALL),
    "absolute_teu": partial(Transformer, layers=2, scaling="TEU", **SMALL),
    "absolute_ped": partial(UniversalTransformer, layers=2, scaling="PED", **SMALL),
    "relative": partial(Transformer, layers=2, positions="relative", **SMALL),
    "relative_universal": partial(UniversalTransformer, layers=3, positions="relative", **SMALL),
    "none": partial(UniversalTransformer, layers=2, positions="none", **SMALL),
    "router": partial(NeuralDataRouter, layers=3, **SMALL),
    "router_relative": partial(NeuralDataRouter, layers=3, attention="relative", **SMALL),
    "router_absolute_relative": partial(NeuralDataRouter, layers=3, attention="absolute_relative", **SMALL),
    "geometric": partial(NeuralDataRouter, layers=3, gate=False, **SMALL),
}
CAUSAL = {f"{p}_causal": partial(Transformer, layers=2, positions=p, causal=True) for p in ("absolute", "relative")}
ENCODERS |= CAUSAL
every = pytest.mark.parametrize("name", ENCODERS)
MASK = torch.tensor([[True] * 4 + [False] * 2, [True, False, True, True, False, True], [False] * 6, [True] * 6])


def made(name, dtype=torch.float64):
    """The encoder in evaluation, every parameter off its first value."""
    torch.manual_seed(2)
    encoder = ENCODERS[name](D).eval().to(dtype)
    for parameter in encoder.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return encoder


def tokens(B=4, T=6, size=D, seed=0, dtype=torch.float64):
    return torch.randn(B, T, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(found, wanted, bound=1e-10):
    assert found.shape == wanted.shape
    assert (found - wanted).norm().item() <= bound * wanted.norm().item()


def torch_layer(block):
    """PyTorch's own encoder layer with the weights of a block."""
    size, hidden = block.norm.normalized_shape[0], block.feedforward[0].out_features
    layer = nn.TransformerEncoderLayer(size, block.attention.heads, hidden, batch_first=True, dtype=torch.float64)
    own = layer.self_attn
    own.in_proj_weight.data = torch.cat([block.attention.query.weight, block.attention.key_value.weight]).data
    own.out_proj.weight.data = block.attention.output.weight.data
    nn.init.zeros_(own.in_proj_bias)
    nn.init.zeros_(own.out_proj.bias)
    for theirs, ours in (
        (layer.linear1, block.feedforward[0]),
        (layer.linear2, block.feedforward[-1]),
        (layer.norm1, block.attention_norm),
        (layer.norm2, block.norm),
    ):
        theirs.load_state_dict(ours.state_dict())
    return layer.train().requires_grad_(False)  # train: not the fused path, which asks for what tests do not


# The equations.


@pytest.mark.parametrize("name", ["absolute", "absolute_teu", "absolute_ped", "none"])
def test_layers_are_those_of_torch(name):
    encoder, x = made(name), tokens()
    mask = MASK[[0, 1, 3, 3]]
    y, state = encoder(x, None, mask)
    assert state == ()
    p = sinusoids(torch.arange(6), x)
    z = {"none": x, "absolute": x + p, "absolute_teu": x * D**0.5 + p, "absolute_ped": x + p / D**0.5}[name]
    for n in range(encoder.layers):
        layer = torch_layer(encoder.blocks[n % len(encoder.blocks)])
        layer.dropout.p = layer.dropout1.p = layer.dropout2.p = layer.self_attn.dropout = 0.0
        z = layer(z, src_key_padding_mask=~mask)
    assert_close(y[mask], z[mask])


@pytest.mark.parametrize("name", ["relative", "relative_universal", "geometric"])
def test_layers_around_other_attention(name):
    encoder, x = made(name), tokens()
    z = x
    for n in range(encoder.layers):
        block = encoder.blocks[n % len(encoder.blocks)]
        assert type(block.attention) is (GeometricAttention if name == "geometric" else RelativeAttention)
        a = block.attention_norm(z + block.attention(z))
        first, _, _, second = block.feedforward
        z = block.norm(a + second(first(a).relu()))
    assert_close(encoder(x)[0], z)


@pytest.mark.parametrize("name", ["router", "router_relative", "router_absolute_relative"])
def test_the_router_copies_or_updates_by_its_gate(name):
    encoder, x = made(name), tokens()
    (block,) = encoder.blocks
    attention = block.attention
    assert isinstance(attention, GeometricAttention) == (name == "router")
    if name != "router":
        assert (attention.gate is not None) == (name == "router_absolute_relative")
        assert isinstance(attention.scale, nn.Parameter)
    z = x
    for _ in range(3):
        a = block.attention_norm(z + attention(z))
        first, _, _, second = block.update
        u = second(first(a).relu())
        u = block.squash(u) if name == "router" else u.tanh()
        first, _, _, second = block.gate
        g = torch.sigmoid(second(first(a).relu()))
        z = z + g * (u - z)
    assert_close(encoder(x)[0], z)
    if name == "router":
        assert isinstance(block.squash, nn.LayerNorm)


def test_a_closed_gate_copies_and_an_open_one_updates():
    encoder, x = made("router"), tokens()
    (block,) = encoder.blocks
    nn.init.constant_(block.gate[-1].bias, -1e4)
    assert torch.equal(encoder(x)[0], x)
    nn.init.constant_(block.gate[-1].bias, 1e4)
    encoder.layers = 1
    assert_close(encoder(x)[0], block.squash(block.update(block.attention_norm(x + block.attention(x)))))


def test_the_gate_is_nearly_closed_at_first():
    torch.manual_seed(0)
    (block,) = NeuralDataRouter(64).blocks
    assert torch.equal(block.gate[-1].bias, torch.full((64,), -3.0))
    assert block.update[-1].weight.abs().max().item() == pytest.approx(5 / 3 * (6 / 576) ** 0.5, rel=0.01)
    assert block.gate[0].weight.abs().max().item() == pytest.approx((2 * 6 / 128) ** 0.5, rel=0.01)
    (block,) = NeuralDataRouter(64, attention="relative").blocks
    assert block.attention.key_value.weight.abs().max().item() == pytest.approx((6 / 192) ** 0.5, rel=0.01)
    assert block.attention.output.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert block.update[-1].weight.abs().max().item() == pytest.approx(1 / 512**0.5, rel=0.01)


def test_gate_dropout_shuts_whole_tokens_in_training():
    torch.manual_seed(0)
    encoder = NeuralDataRouter(D, layers=1, dropout=0.0, attention_dropout=0.0, gate_dropout=0.25)
    x = tokens(200, 10, dtype=torch.float32)
    copied = (encoder(x)[0] == x).all(-1)
    assert copied.float().mean().item() == pytest.approx(0.25, abs=0.03)
    updated = encoder.eval()(x)[0]
    assert not (updated == x).all(-1).any()
    again = encoder.train()(x)[0]
    kept = ~(again == x).all(-1)
    assert torch.allclose(again[kept], updated[kept])  # what is kept is not rescaled


@pytest.mark.parametrize("kind", [Transformer, NeuralDataRouter])
def test_dropout_is_for_training_alone(kind):
    torch.manual_seed(0)
    encoder, x = kind(D, dropout=0.3, heads=2), tokens(dtype=torch.float32)
    assert not torch.equal(encoder(x)[0], encoder(x)[0])
    assert torch.equal(encoder.eval()(x)[0], encoder(x)[0])


def test_all_of_a_layers_dropouts():
    torch.manual_seed(0)
    x = tokens(dtype=torch.float32)
    encoder = UniversalTransformer(D, 1, 2, 10, dropout=1.0)
    block = encoder.blocks[0]
    wanted = block.norm(block.attention_norm(torch.zeros_like(x)))
    assert torch.allclose(encoder(x)[0], wanted)  # nothing is left of tokens, attention and feed-forward part
    relative = UniversalTransformer(D, 1, 2, 10, dropout=1.0, positions="relative")
    block = relative.blocks[0]
    assert torch.allclose(relative(x)[0], block.norm(block.attention_norm(x)))
    assert UniversalTransformer(D, 1, 2, attention_dropout=0.2).blocks[0].attention.dropout == 0.2


def test_all_of_a_routers_dropouts():
    torch.manual_seed(0)
    x, encoder = tokens(dtype=torch.float32), NeuralDataRouter(D, 1, 2, 10, dropout=1.0, gate_dropout=0.0)
    (block,) = encoder.blocks
    nn.init.normal_(block.attention_norm.bias)
    seen = []
    block.update[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    g, u = block.gate[-1].bias.sigmoid(), block.squash(block.update[-1].bias)
    assert torch.allclose(encoder(x)[0], g * u + (1 - g) * x)
    assert torch.allclose(seen[0], block.attention_norm(x))
    for attention in ("geometric", "relative", "absolute_relative"):
        (block,) = NeuralDataRouter(D, heads=2, attention=attention, attention_dropout=0.2).blocks
        assert (block.attention.key_dropout.p, block.attention.dropout) == (0.2, 0.0)


# Depth.


@pytest.mark.parametrize("name", ["relative_universal", "none", "router"])
def test_layers_may_be_changed_after_training(name):
    encoder, x = made(name), tokens()
    assert len(encoder.blocks) == 1
    encoder.layers = 2
    twice = encoder(encoder(x)[0])[0]
    encoder.layers = 4
    assert_close(encoder(x)[0], twice)


def test_more_layers_in_tests_than_in_training():
    torch.manual_seed(0)
    encoder = NeuralDataRouter(D, 3, 2, 10, 0.0, 0.0, 0.0, test_layers=5)
    x = tokens(dtype=torch.float32)
    three, five = encoder.train()(x)[0], encoder.eval()(x)[0]
    encoder.test_layers = None
    assert torch.equal(encoder(x)[0], three)
    encoder.layers = 5
    assert torch.equal(encoder(x)[0], five)


def test_layers_are_their_own_or_one():
    assert len(Transformer(D, layers=4, heads=2).blocks) == 4
    assert len(UniversalTransformer(D, layers=4, heads=2).blocks) == 1
    first, second = Transformer(D, layers=2, heads=2).blocks
    assert not torch.equal(first.attention.query.weight, second.attention.query.weight)


# The contract of sequence layers.


@every
def test_masked_tokens_have_no_influence_even_when_they_are_nan(name):
    encoder, x = made(name), tokens()
    y = encoder(x, None, MASK)[0]
    poisoned = x.masked_fill(~MASK[..., None], torch.nan).requires_grad_()
    found = encoder(poisoned, (), MASK)[0]
    assert torch.equal(found, y)
    assert not found[~MASK].any()
    gradients = torch.autograd.grad((found * tokens(seed=3)).sum(), [poisoned, *encoder.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][~MASK].any()
    assert_close(y[:1, :4], encoder(x[:1, :4])[0])  # without the padding


@every
def test_relative_and_geometric_layers_see_distances_alone(name):
    encoder, x = made(name), tokens()
    mask = torch.tensor([False] * 2 + [True] * 4).expand(4, -1)
    shifted, alone = encoder(x, None, mask)[0][:, 2:], encoder(x[:, 2:])[0]
    if "absolute" in name:
        assert (shifted - alone).abs().max() > 1e-3
    else:
        assert_close(shifted, alone)


@every
def test_only_without_positions_the_order_does_not_matter(name):
    encoder, x = made(name), tokens()
    order = [3, 1, 5, 0, 2, 4]
    permuted, y = encoder(x[:, order])[0], encoder(x)[0][:, order]
    assert ((permuted - y).abs().max() < 1e-10) == (name == "none")


@every
def test_few_tokens_and_the_empty_state(name):
    encoder = made(name)
    for T in (0, 1):
        for mask in (None, torch.ones(3, T, dtype=torch.bool), torch.zeros(3, T, dtype=torch.bool)):
            y, state = encoder(tokens(3, T), None, mask)
            assert y.shape == (3, T, D)
            assert y.isfinite().all()
            assert state == ()
    assert torch.equal(encoder(tokens(), ())[0], encoder(tokens())[0])
    for state in ((torch.zeros(4, 2),), torch.zeros(0), [], 0):
        with pytest.raises(
            ValueError, match=rf"must be None or \(\), got {type(state).__name__}\. .* the sequence itself"
        ):
            encoder(tokens(), state)
    with pytest.raises(TypeError, match=r"`mask` must be a boolean tensor \[B, T\]"):
        encoder(tokens(), None, torch.ones(4, 6))


@every
def test_gradients_are_those_of_finite_differences(name):
    encoder, mask = made(name), torch.tensor([[True, True, True], [True, False, True]])
    names = [n for n, _ in encoder.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(encoder, dict(zip(names, parameters, strict=True)), (x, None, mask))[0]

    inputs = (tokens(2, 3).requires_grad_(), *encoder.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["absolute_teu", "relative_universal", "router"])
def test_compiled_equals_eager(name):
    encoder, found = made(name), []
    torch._dynamo.reset()
    for run in (encoder, torch.compile(encoder, backend="aot_eager", fullgraph=True)):
        x = tokens().requires_grad_()
        y = run(x, None, MASK)[0]
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *encoder.parameters()])])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


@every
def test_bfloat16_autocast(name):
    encoder, x = made(name, torch.float32), tokens(dtype=torch.float32)
    exact = encoder(x, None, MASK)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder.train()(x, None, MASK)[0]
        y.float().square().sum().backward()
        found = encoder.eval()(x, None, MASK)[0]
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


# In a token network.


@every
def test_as_the_layer_of_a_token_network(name):
    torch.manual_seed(0)
    network = TokenNetwork(9, 4, ENCODERS[name], D).eval()
    ids = torch.randint(9, (3, 5))
    mask = torch.ones(3, 5, dtype=torch.bool)
    logits, state = network(ids, None, mask)
    assert logits.shape == (3, 5, 4)
    assert state == ()
    assert torch.equal(network(ids, state, mask)[0], logits)
    network.train()(ids)[0].sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("layer", "spread"),
    [
        (partial(Transformer, scaling="none"), 1.0),
        (partial(Transformer, scaling="TEU"), (2 / (300 + 64)) ** 0.5),
        (partial(Transformer, scaling="PED"), (2 / 64) ** 0.5),
        (partial(Transformer, scaling="TEU", positions="relative"), (2 / (300 + 64)) ** 0.5),
        (NeuralDataRouter, 1.0),
        (partial(NeuralDataRouter, gate=False), (2 / 64) ** 0.5),
    ],
)
def test_scaling_initialises_the_embedding(layer, spread):
    torch.manual_seed(0)
    weight = TokenNetwork(300, 4, layer, 64).embedding.weight
    assert weight.std().item() == pytest.approx(spread, rel=0.03)
    uniform = weight.abs().max() < 2 * weight.std()
    assert uniform == ("TEU" in str(layer))


# Errors.


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`positions` must be one of 'absolute', 'relative', 'none', got 'rotary'"):
        Transformer(D, positions="rotary")
    with pytest.raises(ValueError, match="`scaling` must be one of 'TEU', 'PED', 'none', got 'teu'"):
        UniversalTransformer(D, scaling="teu")
    with pytest.raises(ValueError, match="`attention` must be one of 'geometric', 'relative', 'absolute_relative'"):
        NeuralDataRouter(D, attention="softmax")
    with pytest.raises(ValueError, match=r'`gate` must be True with attention="relative".*UniversalTransformer'):
        NeuralDataRouter(D, attention="relative", gate=False)
    with pytest.raises(ValueError, match="`heads` must divide the layer's size 8, got 3"):
        Transformer(D, heads=3)
    with pytest.raises(ValueError, match="`layers` must be at least 1, got 0"):
        Transformer(D, layers=0)


@pytest.mark.parametrize(
    ("make", "wrong", "error", "message"),
    [
        (Transformer, {"layers": 1.5}, TypeError, "`layers` must be a whole number, got 1.5"),
        (Transformer, {"feedforward_size": 0}, ValueError, "`feedforward_size` must be at least 1, got 0"),
        (Transformer, {"attention_dropout": -1}, ValueError, "`attention_dropout` must be a probability, .* got -1"),
        (UniversalTransformer, {"attention_dropout": 1.5}, ValueError, "`attention_dropout` must be .* got 1.5"),
        (NeuralDataRouter, {"test_layers": 0}, ValueError, "`test_layers` must be at least 1, got 0"),
        (NeuralDataRouter, {"test_layers": -3}, ValueError, "`test_layers` must be at least 1, got -3"),
        (NeuralDataRouter, {"gate_dropout": 2}, ValueError, "`gate_dropout` must be a probability, .* got 2"),
    ],
)
def test_sizes_and_probabilities_are_checked(make, wrong, error, message):
    with pytest.raises(error, match=message):
        make(D, **wrong)


def test_constructors_begin_with_the_width():
    for cls in (Transformer, UniversalTransformer, NeuralDataRouter):
        assert next(iter(inspect.signature(cls).parameters)) == "input_size"


@every
def test_causal_encoders_and_only_they_do_not_see_what_comes_later(name):
    encoder, x = made(name), tokens()
    assert encoder.sees_both_sides == (name not in CAUSAL)
    moved = (encoder(torch.cat([x[:, :4], x[:, 4:] + 1], 1))[0] - encoder(x)[0])[:, :4].abs().max().item()
    assert (moved < 1e-12) == (name in CAUSAL)
    if name in CAUSAL:
        assert_close(encoder(x[:, :4])[0], encoder(x)[0][:, :4])
