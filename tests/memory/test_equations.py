"""Every memory against the published equations, written again as a loop over tokens that reads the layer's weights.

float64, relative error below 1e-10: outputs, final states, and the gradients of the inputs.
"""

import pytest
import torch
import torch.nn.functional as F
from layer_table import D, layer_of, relative_error, tensors, tokens

from algornn import DPFP, FAVOR, DeltaNet, EluPlusOne, KeyValueRetriever, LinearTransformer, SoftmaxFeatures
from algornn.models.key_value import RULES

EPS = 1e-5  # in all quotients, as the authors' code has it


def read(S, key):
    """The value stored at a key: S ``[..., K, V]``, rows are keys."""
    return torch.einsum("...kv,...k->...v", S, key)


def write(S, k, v, beta):
    return S + torch.einsum("...k,...v->...kv", k, beta * (v - read(S, k)))


def add(S, k, v):
    return S + torch.einsum("...k,...v->...kv", k, v)


def rows(layer, x_t, heads, *sizes):
    """What the slow network makes of a token, head by head."""
    return (x_t @ layer.slow.weight.T).reshape(len(x_t), heads, -1).split(sizes, -1)


def elu1(x):
    return torch.where(x > 0, x + 1, x.exp())


def of_sum_1(features):
    return features / (features.sum(-1, keepdim=True) + EPS)


def zeros(x, *shape):
    return x.new_zeros(len(x), *shape)


def project(layer, ys):
    return torch.stack([y.reshape(len(y), -1) @ layer.output.weight.T for y in ys], 1)


# The families. H = 2 heads of d = 2.


def linear_transformer(layer, x):
    S, z, ys = zeros(x, 2, 2, 2), zeros(x, 2, 2), []
    for x_t in x.unbind(1):
        q, k, v = rows(layer, x_t, 2, 2, 2, 2)
        S, z = add(S, elu1(k), v), z + elu1(k)
        y = read(S, elu1(q))
        ys.append(y / ((z * elu1(q)).sum(-1, keepdim=True) + EPS) if layer.attention_normalization else y)
    return project(layer, ys), torch.cat([S, z[..., None]], -1) if layer.attention_normalization else S


def delta_net(layer, x, features=elu1):
    width = features(x[:, 0, :2]).shape[-1]
    S, z, ys = zeros(x, 2, width, 2), zeros(x, 2, width), []
    for t, x_t in enumerate(x.unbind(1)):
        q, k, v, b = rows(layer, x_t, 2, 2, 2, 2, 1)
        q, k = of_sum_1(features(q)), of_sum_1(features(k))
        if layer.gate is not None:
            a = x_t @ layer.gate.weight.T + layer.gate.bias
            S = S * torch.exp(-layer.log_rate.exp() * torch.log1p(a.exp()))[..., None, None]
        if layer.attention_normalization:
            old = (z * k).sum(-1, keepdim=True) if t else k.new_ones(1)
            old = torch.where(old > EPS, old, 1.0)  # a key like none before it
            S, z = add(S, k, b.sigmoid() * (v - read(S, k) / old)), z + k
            y = read(S, q) / ((z * q).sum(-1, keepdim=True) + EPS)
        else:
            S = write(S, k, v, b.sigmoid())
            y = read(S, q)
        ys.append(y * layer.scale)
    return project(layer, ys), torch.cat([S, z[..., None]], -1) if layer.attention_normalization else S


def dpfp(nu):
    """y = [relu(x), relu(-x)]; the j-th part is y times y rolled by j = 1 ... nu."""

    def features(x):
        y = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], -1)
        n = y.shape[-1]
        return torch.stack([y[..., i] * y[..., (i - j) % n] for j in range(1, nu + 1) for i in range(n)], -1)

    return features


def delta_rnn(layer, x):
    W, R, h, ys = zeros(x, 2, 2, 2), zeros(x, 2, 2, 2), zeros(x, 2, 2), []
    for x_t in x.unbind(1):
        q, k, v, rk, rv, b, rb = rows(layer, x_t, 2, 2, 2, 2, 2, 2, 1, 1)
        W = write(W, of_sum_1(elu1(k)), v, b.sigmoid())
        R = write(R, rk.softmax(-1), rv, rb.sigmoid())
        h = read(W, of_sum_1(elu1(q))) + read(R, h.softmax(-1))
        ys.append(h)
    return project(layer, ys), (W, R, h)


def delta_lstm(layer, x):
    W, R, h, c, ys = zeros(x, 6, 2, 2), zeros(x, 6, 2, 2), zeros(x, 2, 2), zeros(x, 2, 2), []
    for x_t in x.unbind(1):
        q, k, v, rk, rv, b, rb = rows(layer, x_t, 6, 2, 2, 2, 2, 2, 1, 1)
        W = write(W, of_sum_1(elu1(k)), v, b.sigmoid())
        R = write(R, rk.softmax(-1), rv, rb.sigmoid())
        z, s = read(W, of_sum_1(elu1(q))), h.softmax(-1)
        i, u, o = (z[:, g : g + 2] + read(R[:, g : g + 2], s) for g in (0, 2, 4))
        c = i.sigmoid() * u + (1 - i.sigmoid()) * c
        h = o.sigmoid() * c
        ys.append(h)
    return project(layer, ys), (W, R, h, c)


def delta_mlp(layer, x):
    """Depth 2; the hidden layer is of width 4, twice that of a head."""
    states, ys = [zeros(x, 2, 2, 4), zeros(x, 2, 4, 2), zeros(x, 2, 2, 4), zeros(x, 2, 4, 2)], []
    for x_t in x.unbind(1):
        h, *parts = rows(layer, x_t, 2, 2, *[2, 4, 4, 2, 1, 1] * 2)
        for j, norm in enumerate(layer.norms):
            k_a, k_b, v_a, v_b, b_a, b_b = parts[6 * j : 6 * j + 6]
            A = write(states[2 * j], of_sum_1(elu1(k_a)), v_a, b_a.sigmoid())
            B = write(states[2 * j + 1], of_sum_1(elu1(k_b)), v_b, b_b.sigmoid())
            a = read(A, of_sum_1(elu1(F.layer_norm(h, (2,), norm.weight, norm.bias))))
            h = h + read(B, of_sum_1(elu1(a)))
            states[2 * j : 2 * j + 2] = A, B
        ys.append(h)
    return project(layer, ys), states


def delta_delta(layer, x):
    P, S, ys = zeros(x, 2, 2, 7), zeros(x, 2, 2, 2), []
    for x_t in x.unbind(1):
        q, k, v, b = rows(layer, x_t, 2, 2, 2, 7, 1)
        P = write(P, of_sum_1(elu1(k)), v, b.sigmoid())
        q, k, v, b = read(P, of_sum_1(elu1(q))).split([2, 2, 2, 1], -1)
        S = write(S, of_sum_1(elu1(k)), v, b.sigmoid())
        ys.append(read(S, of_sum_1(elu1(q))))
    return project(layer, ys), (P, S)


def recurrent_delta_net(layer, x):
    W, y, ys = zeros(x, 2, 2, 2), zeros(x, 2, 2), []
    for x_t in x.unbind(1):
        q, k, v, b = rows(layer, x_t, 2, 2, 2, 2, 1)
        s = y.tanh()
        q, k, v = (
            a + torch.einsum("hij,bhj->bhi", R, s)
            for a, R in ((q, layer.R_q), (k, layer.R_k), (v, layer.R_v))
        )  # fmt: skip
        beta = (b + torch.einsum("hj,bhj->bh", layer.r_beta, s)[..., None]).sigmoid()
        W = write(W, k.softmax(-1), v, beta)
        y = read(W, q.softmax(-1))
        ys.append(y)
    return project(layer, ys), (W, y)


def self_referential(layer, x):
    W, ys = layer.first.expand(len(x), -1, -1, -1), []
    for x_t in x.reshape(len(x), -1, 2, 2).unbind(1):
        y, q, k, eta = read(W, x_t).split([2, 2, 2, 4], -1)
        q, k, eta = q.softmax(-1), k.softmax(-1), eta.sigmoid()
        new, old = read(W, q), read(W, k)
        groups = [eta[..., g : g + 1] * (new - old)[..., a:b] for g, (a, b) in enumerate(((0, 2), (2, 4), (4, 6)))]
        W = add(W, k, torch.cat([*groups, eta[..., 3:] * (new - old)[..., 6:]], -1))
        ys.append(y)
    return project(layer, ys), W


def fast_weight_memory(c_w, tanh_n, tanh_rho, residual):
    def run(layer, x):
        S, ys = zeros(x, 4, 2, 4), []
        for z in x.unbind(1):
            s, r, v, b = F.linear(z, layer.write_head.weight, layer.write_head.bias).split([4, 2, 4, 1], -1)
            s, r, v = s.tanh(), r.tanh(), v.tanh()
            u = (b + 1).sigmoid() / c_w * (v - torch.einsum("bsrv,bs,br->bv", S, s, r))
            S = S + torch.einsum("bs,br,bv->bsrv", s, r, u)
            S = S / S.square().sum((1, 2, 3)).sqrt().clamp(min=1)[:, None, None, None]
            q, *roles = F.linear(z, layer.read_head.weight, layer.read_head.bias).split([4, 2, 2, 2], -1)
            q = q.tanh() if tanh_n else q
            for rho in roles:
                q = torch.einsum("bsrv,bs,br->bv", S, q, rho.tanh() if tanh_rho else rho)
                q = (q - q.mean(-1, keepdim=True)) / (q.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            y = F.linear(q, layer.output.weight, layer.output.bias)
            ys.append(y + z if residual else y)
        return torch.stack(ys, 1), S

    return run


def fast_weights_rnn(steps):
    """A holds h_1 ... h_{t-1} while h_t is computed."""

    def run(layer, x):
        h, A, ys = zeros(x, 5), zeros(x, 5, 5), []
        norm = lambda z: F.layer_norm(z, (5,), layer.norm.weight, layer.norm.bias).clamp(min=0)  # noqa: E731
        for x_t in x.unbind(1):
            slow = h @ layer.recurrent.T + F.linear(x_t, layer.input.weight, layer.input.bias)
            h = norm(slow)
            for _ in range(steps):
                h = norm(slow + torch.einsum("bij,bj->bi", A, h))
            A = 0.9 * A + 0.5 * torch.einsum("bi,bj->bij", h, h)
            ys.append(h)
        return torch.stack(ys, 1), (h, A)

    return run


def gated_fast_weights(layer, x):
    cell, s, F1, F2, h, ys = layer.slow, zeros(x, 3), zeros(x, 4, 8), zeros(x, 4, 4), zeros(x, 4), []

    def mix(old, a, b, g, d):
        H, T = (torch.einsum("bi,bj->bij", *pair) for pair in ((a.tanh(), b.tanh()), (g.sigmoid(), d.sigmoid())))
        return T * H + (1 - T) * old

    for x_t in x.unbind(1):
        s = (F.linear(x_t, cell.weight_ih, cell.bias_ih) + F.linear(s, cell.weight_hh, cell.bias_hh)).tanh()
        parts = F.linear(s, layer.program.weight, layer.program.bias).split([4, 8, 4, 8, 4, 4, 4, 4], -1)
        F1, F2 = mix(F1, *parts[:4]), mix(F2, *parts[4:])
        inner = F.layer_norm(torch.einsum("bij,bj->bi", F1, torch.cat([h, x_t], -1)).tanh(), (4,))
        h = F.layer_norm(torch.einsum("bij,bj->bi", F2, inner).tanh(), (4,))
        ys.append(h)
    return torch.stack(ys, 1), (s, F1, F2, h)


EQUATIONS = {
    "linear_transformer": linear_transformer,
    "linear_transformer_sum": linear_transformer,
    "delta_net": delta_net,
    "delta_net_gated": delta_net,
    "delta_net_scaled": delta_net,
    "delta_net_attention": delta_net,
    "delta_net_attention_dpfp2": lambda layer, x: delta_net(layer, x, dpfp(2)),
    "delta_net_dpfp1": lambda layer, x: delta_net(layer, x, dpfp(1)),
    "delta_net_dpfp2": lambda layer, x: delta_net(layer, x, dpfp(2)),
    "delta_net_softmax": lambda layer, x: delta_net(layer, x, lambda y: y.exp() / y.exp().sum(-1, keepdim=True)),
    "delta_rnn": delta_rnn,
    "delta_lstm": delta_lstm,
    "delta_mlp": delta_mlp,
    "delta_delta": delta_delta,
    "recurrent_delta_net": recurrent_delta_net,
    "self_referential": self_referential,
    "fwm_catbabi": fast_weight_memory(c_w=4, tanh_n=False, tanh_rho=True, residual=False),
    "fwm_language_model": fast_weight_memory(c_w=1, tanh_n=True, tanh_rho=True, residual=True),
    "fwm_meta_rl": fast_weight_memory(c_w=4, tanh_n=False, tanh_rho=False, residual=True),
    "fast_weights_rnn_0": fast_weights_rnn(0),
    "fast_weights_rnn_1": fast_weights_rnn(1),
    "fast_weights_rnn_2": fast_weights_rnn(2),
    "gated_fast_weights": gated_fast_weights,
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_layer_is_its_equations(name):
    layer, found = layer_of(name), []
    for run in (layer, lambda x: EQUATIONS[name](layer, x)):
        x = (2 * tokens(2, 9)).requires_grad_()
        results = tensors(run(x))
        generator = torch.Generator().manual_seed(1)
        total = sum((z * torch.randn(z.shape, generator=generator, dtype=z.dtype)).sum() for z in results)
        found.append([*results, *torch.autograd.grad(total, [x, *layer.parameters()])])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-10


def test_the_scale_of_reads_is_that_of_the_language_models():
    assert layer_of("delta_net_scaled").scale == 2**-0.5
    assert layer_of("delta_net").scale == 1


def test_the_clamp_of_the_fast_weight_memory_was_at_work():
    for name, active in (("fwm_catbabi", False), ("fwm_language_model", True)):
        state = layer_of(name)(8 * tokens(2, 9))[1]
        assert (state.flatten(1).norm(dim=1) > 0.999).all() == active


# Feature maps.


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp(nu):
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(DPFP(nu)(x), dpfp(nu)(x))
    assert DPFP(nu)(x).shape[-1] == DPFP(nu).width(3) == 6 * nu


def test_elu_plus_one_and_softmax_features():
    x = torch.randn(5, 3, dtype=torch.float64)
    assert relative_error(EluPlusOne()(x), elu1(x)) < 1e-15
    assert relative_error(SoftmaxFeatures()(x), x.exp() / x.exp().sum(-1, keepdim=True)) < 1e-15


@pytest.mark.parametrize("features", [2, 5])  # fewer rows than a block has, and more
def test_favor_estimates_the_softmax_kernel(features):
    torch.manual_seed(0)
    favor, q, k = FAVOR(3, features).double(), *0.6 * torch.randn(2, 3, dtype=torch.float64)
    draws = []
    for _ in range(3000):
        phi_q, phi_k = favor(torch.stack([q, k]))
        draws.append(phi_q @ phi_k)
    draws = torch.stack(draws)
    assert draws.std() > 0.01
    assert abs(draws.mean() - (q @ k).exp()) < 4 * draws.std() / len(draws) ** 0.5
    favor.eval()
    assert torch.equal(favor(q), favor(q))


@pytest.mark.parametrize("kind", [LinearTransformer, DeltaNet, "sum", "delta"])
def test_favor_draws_the_same_rows_for_keys_and_queries_in_training(kind):
    """So that evaluation, with the rows of the last draw, gives what training gave."""
    torch.manual_seed(0)
    if isinstance(kind, str):
        model = KeyValueRetriever(4, 4, kind, FAVOR(2, 3), key_size=2).double()
        inputs = torch.tensor([[2, 0, 1]]), torch.tensor([[0, 3, 1]]), torch.tensor([[0, 1]])
    else:
        model, inputs = kind(D, 2, FAVOR(2, 3)).double(), (tokens(2, 5),)
    found = [tensors(model.train(mode)(*inputs))[0] for mode in (True, False, True)]
    assert torch.equal(found[0], found[1])
    assert relative_error(found[2], found[0]) > 1e-3


# Retrieval of key-value pairs.


def retrieved(model, keys, values, query):
    """Pair by pair, query by query."""
    outputs = []
    for row in range(len(keys)):
        k, v, b = [], [], []
        for key, value in zip(keys[row], values[row], strict=True):
            one_hot = torch.zeros(model.num_values, dtype=torch.float64).index_fill(0, value, 1.0)
            pair = torch.cat([one_hot, model.embedding.weight[key]])
            k.append(model.key.weight @ pair + model.key.bias)
            b.append((model.rate.weight @ pair + model.rate.bias).sigmoid() if model.rate is not None else None)
            v.append(one_hot)
        for asked in query[row]:
            q = model.query.weight @ model.embedding.weight[asked] + model.query.bias
            if model.rule == "softmax":
                weights = torch.stack([k_t @ q / model.key_size**0.5 for k_t in k]).softmax(0)
                outputs.append(sum(w * v_t for w, v_t in zip(weights, v, strict=True)))
            elif model.rule == "sum":
                weights = [elu1(k_t) @ elu1(q) for k_t in k]
                outputs.append(sum(w * v_t for w, v_t in zip(weights, v, strict=True)) / (sum(weights) + 1e-6))
            else:
                S = torch.zeros(model.key_size, model.num_values, dtype=torch.float64)
                for k_t, v_t, b_t in zip(k, v, b, strict=True):
                    S = write(S, of_sum_1(elu1(k_t)), v_t, b_t)
                outputs.append(read(S, of_sum_1(elu1(q))))
    return torch.stack(outputs).unflatten(0, query.shape)


@pytest.mark.parametrize("rule", RULES)
def test_retrieval_is_its_equations(rule):
    torch.manual_seed(0)
    model = KeyValueRetriever(5, 4, rule, key_size=6).double()
    keys, values, query = torch.randint(5, (3, 7)), torch.randint(4, (3, 7)), torch.randint(5, (3, 2))
    found = []
    for run in (model, lambda *pairs: retrieved(model, *pairs)):
        y = run(keys, values, query)
        total = (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)).sum()
        found.append([y, *torch.autograd.grad(total, list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 1e-10 * b.norm().clamp(min=1)  # softmax gives the keys' bias a gradient of 0


@pytest.mark.parametrize("size", [20, 100, 340, 600])
def test_retrieval_starts_as_published(size):
    model = KeyValueRetriever(size, size)
    assert model.embedding.weight.shape == (size, 22 * size // 10)
    assert model.key.in_features == size + 22 * size // 10
    for layer in (model.key, model.query):
        assert layer.out_features == 64
        assert 0.98 / 8 < layer.weight.abs().max() <= 1 / 8
