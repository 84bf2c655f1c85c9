"""Attention against literal loops over heads, tokens and keys; masks, limits, derivatives, half precision."""

import math

import pytest
import torch
from torch import nn

from algornn import GeometricAttention, MultiHeadAttention, RelativeAttention
from algornn.models.attention import allowed_keys, geometric, sinusoids, to_distances, to_keys

D, H = 6, 2
MASK = torch.tensor(
    [
        [True, True, True, True, False, False],
        [False, False, True, True, True, True],
        [True, False, True, False, False, True],
        [False] * 6,
        [True] * 6,
    ]
)
ATTENTION = {
    "plain": lambda: MultiHeadAttention(D, H),
    "relative": lambda: RelativeAttention(D, H),
    "absolute_relative": lambda: RelativeAttention(D, H, absolute_gate=True, trained_scale=True),
    "geometric": lambda: GeometricAttention(D, H),
    "geometric_normalized": lambda: GeometricAttention(D, H, normalized=True),
}
every = pytest.mark.parametrize("name", ATTENTION)
SOFTMAX = ["plain", "relative", "absolute_relative"]


def made(name, dtype=torch.float64):
    """The attention, with every parameter off its first value."""
    torch.manual_seed(1)
    attention = ATTENTION[name]().eval().to(dtype)
    for parameter in attention.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return attention


def tokens(B=5, T=6, seed=0, dtype=torch.float64):
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def wave(position, column):
    """The sinusoid of a position, in one column."""
    angle = position / 10_000 ** (2 * (column // 2) / D)
    return math.cos(angle) if column % 2 else math.sin(angle)


def encoded(attention, position, h):
    """W_r sinusoids(position), of one head."""
    d = D // H
    x = torch.tensor([wave(position, column) for column in range(D)], dtype=torch.float64)
    return (attention.position.weight @ x)[h * d : (h + 1) * d]


def softmax_logit(attention, name, x, h, i, j, q, k):
    d = D // H
    if name == "plain":
        return q @ k / math.sqrt(d)
    u, w = attention.content_bias[h], attention.position_bias[h]
    position = encoded(attention, j - i, h)
    scale = 1 / math.sqrt(d)
    if name == "absolute_relative":
        g = torch.sigmoid(attention.gate.weight[h] @ x[i] + attention.gate.bias[h])
        position = g * position + (1 - g) * encoded(attention, j, h)
        scale = attention.scale
    return ((q + u) @ k + (q + w) @ position) * scale


def geometric_weights(p, i, T):
    """Look at the keys from near to far, the right one of two first, and take what is left at each."""
    order, left, weights = [], 1.0, [torch.tensor(0.0, dtype=torch.float64)] * T
    for distance in range(1, T):
        order += [j for j in (i + distance, i - distance) if 0 <= j < T]
    for j in order:
        weights[j] = left * p[j]
        left = left * (1 - p[j])
    return weights


def loops(attention, name, x, mask, causal=False):
    """One sequence ``[T, D]``, straight from the equations."""
    T, d, rows = len(x), D // H, []
    q, k, v = x @ attention.query.weight.T, *(x @ w.T for w in attention.key_value.weight.chunk(2))
    for i in range(T):
        if not mask[i]:
            rows.append(torch.zeros(D, dtype=torch.float64))
            continue
        heads = []
        for h in range(H):
            part = slice(h * d, (h + 1) * d)
            seen = [j for j in range(T) if mask[j] and not (causal and j > i)]
            if name.startswith("geometric"):
                p = [torch.tensor(0.0, dtype=torch.float64)] * T
                side = attention.direction.weight @ x[i] + attention.direction.bias
                for j in seen:
                    if j != i:
                        content = (q[i, part] + attention.content_bias[h]) @ k[j, part] * attention.scale
                        direction = side[2 * h + (j > i)] * attention.direction_scale
                        p[j] = torch.sigmoid(content + direction + attention.bias)
                a = geometric_weights(p, i, T)
                total = sum(a).clamp(min=1e-12) if name == "geometric_normalized" else 1
                heads.append(sum(a[j] * v[j, part] for j in range(T)) / total)
            else:
                a = {j: softmax_logit(attention, name, x, h, i, j, q[i, part], k[j, part]).exp() for j in seen}
                heads.append(sum(a[j] * v[j, part] for j in seen) / sum(a.values()))
        rows.append(torch.cat(heads) @ attention.output.weight.T)
    return torch.stack(rows)


def assert_close(found, wanted, bound=1e-10):
    assert found.shape == wanted.shape
    assert (found - wanted).norm().item() <= bound * max(wanted.norm().item(), 1e-3)


# The equations.


@every
@pytest.mark.parametrize("masked", [False, True])
def test_literal_loops(name, masked):
    attention, x = made(name), tokens()
    mask = MASK if masked else torch.ones_like(MASK)
    y = attention(x, mask if masked else None)
    assert_close(y, torch.stack([loops(attention, name, row, own) for row, own in zip(x, mask, strict=True)]))


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("masked", [False, True])
def test_causal_literal_loops(name, masked):
    attention, x = made(name), tokens()
    mask = MASK if masked else torch.ones_like(MASK)
    y = attention(x, mask if masked else None, causal=True)
    assert_close(y, torch.stack([loops(attention, name, *row, causal=True) for row in zip(x, mask, strict=True)]))


@pytest.mark.parametrize("name", SOFTMAX[:2])
def test_the_last_tokens_alone_read_the_keys_of_all(name):
    attention, x = made(name), tokens()
    whole, (k, v) = attention(x, causal=True), attention.keys_values(x)
    for first in range(6):
        assert_close(attention.read(x[:, first:], k, v, causal=True), whole[:, first:])
    for t in range(6):
        seen = attention.read(x[:, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True)
        assert_close(seen, whole[:, t : t + 1])
    mask = MASK.clone()
    mask[:, -2:] = True
    found = attention.read(x[:, -2:], k, v, mask, causal=True)
    assert_close(found, attention(x, mask, causal=True)[:, -2:])


def test_of_equal_matches_the_closest_and_then_the_right_one_wins():
    a = geometric(torch.zeros(5, 5), ~torch.eye(5, dtype=torch.bool))
    assert torch.allclose(a[2], torch.tensor([1 / 16, 1 / 4, 0, 1 / 2, 1 / 8]))
    assert torch.allclose(a[0], torch.tensor([0, 1 / 2, 1 / 4, 1 / 8, 1 / 16]))
    assert torch.allclose(a[4], torch.tensor([1 / 16, 1 / 8, 1 / 4, 1 / 2, 0]))
    assert torch.allclose(a[1], torch.tensor([1 / 4, 0, 1 / 2, 1 / 8, 1 / 16]))


def test_masked_keys_are_passed_over():
    allowed = ~torch.eye(5, dtype=torch.bool) & torch.tensor([True, True, True, False, True])
    assert torch.allclose(geometric(torch.zeros(5, 5), allowed)[2], torch.tensor([1 / 8, 1 / 2, 0, 0, 1 / 4]))


def test_geometric_weights_of_certain_and_of_hopeless_keys():
    scores = torch.full((1, 60, 60), -80.0)
    scores[0, 30, 10] = scores[0, 30, 45] = 1e4  # at the distances 20 and 15
    scores[0, 31] = 1e4
    scores[0, 32] = -1e4
    scores.requires_grad_()
    a = geometric(scores, ~torch.eye(60, dtype=torch.bool))
    for row, key in ((30, 45), (31, 32)):
        assert torch.allclose(a[0, row], nn.functional.one_hot(torch.tensor(key), 60).float(), atol=1e-30)
    assert not a[0, 32].any()
    assert (a.sum(-1) <= 1 + 1e-6).all()
    (gradient,) = torch.autograd.grad(a.square().sum(), scores)
    assert gradient.isfinite().all()


def test_geometric_weights_keep_their_precision_beside_large_scores():
    """A far key that is certain must not cancel the digits of the near ones."""
    torch.manual_seed(0)
    scores = torch.randn(40, 40)
    scores[:, :10] = 1e5
    others = ~torch.eye(40, dtype=torch.bool)
    exact = geometric(scores.double(), others)
    assert torch.allclose(geometric(scores, others).double(), exact, rtol=1e-5, atol=1e-12)


def test_geometric_weights_of_half_precision_scores_are_not_rounded():
    torch.manual_seed(0)
    scores, others = torch.randn(40, 40).bfloat16(), ~torch.eye(40, dtype=torch.bool)
    a = geometric(scores, others)
    assert a.dtype == torch.float32
    assert torch.allclose(a.double(), geometric(scores.double(), others), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_no_token_attends_to_nothing(causal):
    """Some softmax kernels would give NaN."""
    k = torch.empty(5, H, 6, D // H)
    for Q in (1, 2, 6):
        allowed = allowed_keys(MASK, causal, Q, k)
        assert allowed.any(-1).all()
        rows = allowed.expand(5, 1, Q, 6)[:, 0, -1]
        assert torch.equal(rows[[1, 2, 4]], MASK[[1, 2, 4]])


def test_keys_and_distances():
    for Q, K in ((1, 1), (1, 5), (3, 5), (4, 4), (1, 0), (0, 0)):
        x = torch.randn(2, Q, K + Q)
        y = to_keys(x)
        assert y.shape == (2, Q, K)
        assert all(torch.equal(y[:, i, j], x[:, i, Q + j - i]) for i in range(Q) for j in range(K))
        assert torch.equal(to_keys(to_distances(y)), y)
        assert to_distances(y).count_nonzero() == y.numel()


@pytest.mark.parametrize("width", [D, 5])
def test_sinusoids(width):
    found = sinusoids(torch.tensor([-3, 0, 7]), torch.empty(width, dtype=torch.float64))
    rates = [10_000 ** (-2 * (c // 2) / width) for c in range(width)]
    wanted = [[(math.cos if c % 2 else math.sin)(t * rates[c]) for c in range(width)] for t in (-3, 0, 7)]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-14)


# What is trained and what is dropped.


def test_relative_attention_starts_from_released_values():
    torch.manual_seed(0)
    attention = RelativeAttention(64, 4, trained_scale=True)
    assert not attention.content_bias.any()
    assert not attention.position_bias.any()
    assert attention.scale.item() == 0.25
    for weight in (attention.query.weight, attention.output.weight, attention.position.weight):
        assert weight.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    assert attention.key_value.weight.abs().max().item() == pytest.approx((6 / 128) ** 0.5, rel=0.01)
    assert isinstance(RelativeAttention(64, 4).scale, float)


def test_geometric_attention_starts_from_released_values():
    torch.manual_seed(0)
    attention = GeometricAttention(64, 4)
    for weight in (attention.query.weight, attention.key_value.weight, attention.output.weight):
        assert weight.abs().max().item() == pytest.approx((6 / 80) ** 0.5, rel=0.01)
    assert (attention.scale.item(), attention.direction_scale.item(), attention.bias.item()) == (0.25, 1, 0)
    assert not attention.content_bias.any()


@pytest.mark.parametrize("kind", ["relative", "geometric"])
def test_key_dropout_drops_keys_and_positions_in_training(kind):
    torch.manual_seed(0)
    if kind == "relative":
        attention = RelativeAttention(D, H, key_dropout=1.0, absolute_gate=True)
    else:
        attention = GeometricAttention(D, H, dropout=1.0)
        nn.init.zeros_(attention.direction.weight)
    x = tokens(dtype=torch.float32)
    v = x @ attention.key_value.weight.chunk(2)[1].T
    if kind == "relative":
        wanted = attention.output(v.mean(1, keepdim=True).expand_as(v))
    else:
        weights = []
        for i in range(6):  # p is what the direction's bias says
            p = [attention.direction.bias.view(H, 2)[:, int(j > i)].sigmoid() for j in range(6)]
            weights.append(torch.stack([w + torch.zeros(H) for w in geometric_weights(p, i, 6)]))
        read = torch.einsum("ijh,bjhd->bihd", torch.stack(weights).float(), v.unflatten(-1, (H, -1)))
        wanted = attention.output(read.flatten(2))
    assert torch.allclose(attention(x), wanted, atol=1e-6)
    assert not torch.allclose(attention.eval()(x), wanted, atol=1e-3)


@pytest.mark.parametrize("name", SOFTMAX[:2])
def test_dropout_on_weights_is_for_training_alone(name):
    torch.manual_seed(0)
    attention = {"plain": MultiHeadAttention, "relative": RelativeAttention}[name](D, H, dropout=0.5)
    x = tokens(dtype=torch.float32)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))
    mean = attention.train()(x.repeat(4000, 1, 1)).unflatten(0, (4000, 5)).mean(0)
    assert (mean - attention.eval()(x)).abs().max() < 0.1  # kept weights are rescaled


# Masks.


@every
def test_masked_tokens_have_no_influence_even_when_they_are_nan(name):
    attention, x = made(name), tokens()
    y = attention(x, MASK)
    poisoned = x.masked_fill(~MASK[..., None], torch.nan).requires_grad_()
    found = attention(poisoned, MASK)
    assert torch.equal(found, y)
    assert not found[~MASK].any()
    weighting = tokens(seed=3)
    gradients = torch.autograd.grad((found * weighting).sum(), [poisoned, *attention.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][~MASK].any()
    if name in SOFTMAX:
        gradients = torch.autograd.grad((attention(poisoned, MASK, True) * weighting).sum(), [*attention.parameters()])
        assert all(g.isfinite().all() for g in gradients)


@every
def test_padding_at_the_end_changes_nothing(name):
    attention, x = made(name), tokens()
    mask = torch.tensor([True] * 4 + [False] * 2).expand(5, -1)
    assert_close(attention(x, mask)[:, :4], attention(x[:, :4]))


@pytest.mark.parametrize("name", [n for n in ATTENTION if n != "absolute_relative"])
def test_only_distances_count(name):
    """Two masked tokens in front shift all positions."""
    attention, x = made(name), tokens()
    mask = torch.tensor([False] * 2 + [True] * 4).expand(5, -1)
    assert_close(attention(x, mask)[:, 2:], attention(x[:, 2:]))


def test_absolute_positions_count_where_the_gate_lets_them():
    attention, x = made("absolute_relative"), tokens()
    mask = torch.tensor([False] * 2 + [True] * 4).expand(5, -1)
    assert (attention(x, mask)[:, 2:] - attention(x[:, 2:])).abs().max() > 1e-3
    nn.init.constant_(attention.gate.bias, 1e4)
    assert_close(attention(x, mask)[:, 2:], attention(x[:, 2:]))


@every
@pytest.mark.parametrize("T", [0, 1])
def test_few_tokens(name, T):
    attention = made(name)
    for mask in (None, torch.ones(2, T, dtype=torch.bool), torch.zeros(2, T, dtype=torch.bool)):
        y = attention(tokens(2, T), mask)
        assert y.shape == (2, T, D)
        assert y.isfinite().all()
    if name.startswith("geometric"):
        assert not attention(tokens(2, T)).any()  # there is no other token


# Derivatives, compilation, half precision, errors.


@every
def test_gradients_are_those_of_finite_differences(name):
    attention, mask = made(name), torch.tensor([[True, True, True], [True, False, True]])
    names = [n for n, _ in attention.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x, mask))

    inputs = (tokens(2, 3).requires_grad_(), *attention.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["absolute_relative", "geometric"])
def test_compiled_equals_eager(name):
    attention, found = made(name), []
    torch._dynamo.reset()
    for run in (attention, torch.compile(attention, backend="aot_eager", fullgraph=True)):
        x = tokens().requires_grad_()
        y = run(x, MASK)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])])
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


@every
def test_bfloat16(name):
    attention, x = made(name, torch.float32), tokens(dtype=torch.float32)
    exact = attention(x, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x, MASK)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.02 * exact.norm()
    converted = attention.bfloat16()(x.bfloat16(), MASK)
    assert converted.dtype == torch.bfloat16
    assert (converted - exact).norm() < 0.03 * exact.norm()


def test_errors():
    for cls in (MultiHeadAttention, RelativeAttention, GeometricAttention):
        with pytest.raises(ValueError, match="`heads` must divide the layer's size 6, got 4"):
            cls(6, 4)
        with pytest.raises(ValueError, match=r"`mask` must have the shape \[B=5, T=6\], got \[5, 4\]"):
            cls(D, H)(tokens(dtype=torch.float32), MASK[:, :4])
    with pytest.raises(ValueError, match="both sides of every token; decode with RelativeAttention"):
        made("geometric")(tokens(), causal=True)
