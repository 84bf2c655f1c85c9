"""The torch forms of the operators that run token by token against their literal loops, and the rules for both."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sequential_cases import NAMES, TOKENS, assert_close, cases, draw, gradients, outputs, states

BACKENDS = ("torch", "reference")
each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("backend", BACKENDS)
usual = settings(max_examples=40, deadline=None)


@each
@usual
@given(case=cases)
def test_the_torch_form_is_the_loop(name, case):
    x, mask = draw(name, **case)
    wanted = gradients(name, x, mask, backend="reference")
    assert_close(gradients(name, x, mask, backend="torch"), wanted)


@each
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_torch_form_is_the_loop_on_a_long_sequence(name, scale):
    """Undoing 300 writes costs no accuracy: at ordinary inputs and where the softmaxes are saturated."""
    x, mask = draw(name, B=1, T=300, H=2, D=8, scale=scale, mask="holes")
    assert_close(gradients(name, x, mask, backend="torch"), gradients(name, x, mask, backend="reference"))


# --- the equations once more, number by number -------------------------------------------------------------------


def softmax(a):
    return [math.exp(x) / sum(map(math.exp, a)) for x in a]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def column(S, j):
    return [line[j] for line in S]


def delta(S, k, v, beta):
    """S + beta k (v - S^T k)^T."""
    error = [v[j] - dot(column(S, j), k) for j in range(len(v))]
    return [[S[i][j] + beta * k[i] * error[j] for j in range(len(v))] for i in range(len(k))]


def plus(a, R, s):
    """a + R s, (R s)_i = sum_j R_ij s_j."""
    return [a[i] + dot(R[i], s) for i in range(len(a))]


def delta_rnn_by_hand(z, k, v, beta, state, y):
    ys = []
    for t in range(len(z)):
        state = delta(state, k[t], v[t], beta[t])
        query = softmax(y)
        y = [z[t][j] + dot(column(state, j), query) for j in range(len(y))]
        ys.append(y)
    return ys, state, y


def recurrent_delta_by_hand(q, k, v, beta, R_q, R_k, R_v, r_beta, state, y):
    ys = []
    for t in range(len(q)):
        s = [math.tanh(number) for number in y]
        key, rate = softmax(plus(k[t], R_k, s)), sigmoid(beta[t] + dot(r_beta, s))
        state = delta(state, key, plus(v[t], R_v, s), rate)
        query = softmax(plus(q[t], R_q, s))
        y = [dot(column(state, j), query) for j in range(len(y))]
        ys.append(y)
    return ys, state, y


def self_referential_by_hand(x, W):
    D, ys = len(W), []
    for x_t in x:
        a = [dot(column(W, j), x_t) for j in range(3 * D + 4)]
        ys.append(a[:D])
        q, k, eta = softmax(a[D : 2 * D]), softmax(a[2 * D : 3 * D]), [sigmoid(number) for number in a[3 * D :]]
        change = [eta[min(j // D, 3)] * (dot(column(W, j), q) - dot(column(W, j), k)) for j in range(3 * D + 4)]
        W = [[W[i][j] + k[i] * change[j] for j in range(3 * D + 4)] for i in range(D)]
    return ys, W


BY_HAND = {
    "delta_rnn": delta_rnn_by_hand,
    "recurrent_delta": recurrent_delta_by_hand,
    "self_referential": self_referential_by_hand,
}


@each
@both
@pytest.mark.parametrize("D", [1, 3])
def test_the_equations_by_hand(name, backend, D):
    x, _ = draw(name, seed=D, B=2, T=4, H=2, D=D)
    found = outputs(name, x, backend=backend)
    for b in range(2):
        for h in range(2):
            one = {}
            for key, value in x.items():
                value = value if key.lower().startswith("r_") else value[b]
                one[key] = (value[:, h] if key in TOKENS else value[h]).tolist()
            wanted = dict(zip(found, map(torch.tensor, BY_HAND[name](**one)), strict=True))
            here = {key: value[b, :, h] if key == "out" else value[b, h] for key, value in found.items()}
            for key, value in here.items():
                torch.testing.assert_close(value, wanted[key].double(), rtol=1e-6, atol=1e-6)
    assert all(value.dtype == torch.float64 for value in found.values())


# --- masks and carried states ------------------------------------------------------------------------------------


@each
@both
@usual
@given(case=cases)
def test_masked_tokens_change_nothing_and_nan_does_not_leak(name, backend, case):
    x, mask = draw(name, **case | {"mask": "holes"})
    spoilt = {key: value.clone() for key, value in x.items()}
    for key in TOKENS:
        if key in x:
            spoilt[key][~mask] = torch.nan
    clean, found = (gradients(name, y, mask, backend=backend) for y in (x, spoilt))
    assert all(torch.equal(found[key], value) for key, value in clean.items())
    assert not found["out"][~mask].any()
    for key in TOKENS:
        if key in x:
            assert not found[f"gradient of {key}"][~mask].any()


@each
@both
@usual
@given(case=cases)
def test_the_state_is_bit_identical_where_nothing_counts(name, backend, case):
    x, mask = draw(name, **case | {"initial": True, "mask": "all"})
    found = outputs(name, x, mask, backend=backend)
    for key, value in states(name, found).items():
        assert torch.equal(value, x[key])
    assert not found["out"].any()

    # Token by token beside others that count.
    x, mask = draw(name, **case | {"initial": True, "mask": "holes"})
    for t in range(mask.shape[1]):
        now = {key: value[:, t : t + 1] if key in TOKENS else value for key, value in x.items()}
        new = states(name, outputs(name, now, mask[:, t : t + 1], backend=backend))
        for key, value in new.items():
            assert torch.equal(value[~mask[:, t]], x[key][~mask[:, t]])
        x |= new


@each
@both
@usual
@given(case=cases, cut=st.integers(0, 18))
def test_two_halves_are_the_whole(name, backend, case, cut):
    def halves(name, x, mask, **how):
        outs = []
        for part in (slice(0, cut), slice(cut, None)):
            now = {key: value[:, part] if key in TOKENS else value for key, value in x.items()}
            found = outputs(name, now, None if mask is None else mask[:, part], **how)
            outs.append(found["out"])
            x = x | states(name, found)
        return found | {"out": torch.cat(outs, 1)}

    x, mask = draw(name, **case)
    wanted = gradients(name, x, mask, backend="reference")
    assert_close(gradients(name, x, mask, function=halves, backend=backend), wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "self_referential"])
@both
def test_no_state_is_a_state_of_zeros(name, backend):
    x, _ = draw(name)
    zeros = x | {key: torch.zeros_like(x[key]) for key in ("state", "y")}
    without = {key: value for key, value in x.items() if key not in ("state", "y")}
    wanted = outputs(name, zeros, backend=backend)
    assert all(torch.equal(value, wanted[key]) for key, value in outputs(name, without, backend=backend).items())


# --- strides -----------------------------------------------------------------------------------------------------


@each
@both
def test_any_strides_of_inputs_and_cotangents(name, backend):
    x, mask = draw(name, mask="holes")
    wanted = gradients(name, x, mask, backend=backend)
    strided = {key: value.transpose(0, -1).contiguous().transpose(0, -1) for key, value in x.items()}
    assert not next(iter(strided.values())).is_contiguous()
    assert_close(gradients(name, strided, mask.T.contiguous().T, backend=backend), wanted, relative=1e-14)

    # The cotangent of a sum has stride 0; that of a transposed product is not contiguous.
    def through(how):
        leaves = {key: value.clone().requires_grad_() for key, value in x.items()}
        total = sum(how(y) for y in outputs(name, leaves, mask, backend=backend).values())
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    dense = through(lambda y: (y * torch.ones_like(y)).sum())
    assert_close(through(torch.sum), dense, relative=1e-14)
    assert_close(through(lambda y: (y.mT * torch.ones_like(y.mT)).sum()), dense, relative=1e-14)


@each
@both
def test_each_output_alone_has_its_gradient(name, backend):
    """One output used and the others not: their cotangents do not exist."""
    x, mask = draw(name, mask="holes")
    for key in outputs(name, x):

        def alone(name, x, mask, key=key, **how):
            return {key: outputs(name, x, mask, **how)[key]}

        wanted = gradients(name, x, mask, function=alone, backend="reference")
        assert_close(gradients(name, x, mask, function=alone, backend=backend), wanted)


@each
@both
def test_inputs_are_left_as_they_are(name, backend):
    x, mask = draw(name, mask="holes")
    copies = {key: value.clone() for key, value in x.items()}
    gradients(name, x, mask, backend=backend)
    assert all(torch.equal(value, copies[key]) for key, value in x.items())
