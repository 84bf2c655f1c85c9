"""The Gram form of `tensor_memory` against the literal loop, and the rules that hold for both."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_cases import assert_close, cases, draw, gradients, mask_of, outputs, run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algornn.triton_kernels import tensor_memory, tensor_memory_gram

BACKENDS = ("torch", "reference")
both = pytest.mark.parametrize("backend", BACKENDS)
clamps = pytest.mark.parametrize("clamp", [False, True], ids=["plain", "clamp"])
usual = settings(max_examples=60, deadline=None)


@usual
@given(case=cases, chunk=st.none() | st.integers(1, 8))
@example(case={"seed": 1, "B": 2, "T": 70, "M": 3, "erase": "shared entity", "mask": "holes"}, chunk=None)
@example(case={"seed": 2, "B": 2, "T": 70, "M": 3, "erase": "given", "decay": "zeros"}, chunk=None)
@example(case={"seed": 3, "B": 2, "T": 70, "M": 3, "clamp": True, "decay": "any", "mask": "holes"}, chunk=None)
def test_the_gram_form_is_the_loop(case, chunk):
    x, switches = draw(**case)
    wanted = gradients(x, switches, backend="reference")
    assert_close(gradients(x, switches, backend="torch", chunk=chunk), wanted)


@usual
@given(case=cases, chunk=st.none() | st.integers(1, 3))
@example(case={"seed": 4, "B": 2, "T": 7, "M": 1, "clamp": True, "mask": "holes"}, chunk=None)
@example(case={"seed": 5, "B": 2, "T": 7, "M": 3, "erase": "shared entity", "decay": "zeros"}, chunk=2)
def test_a_long_sequence_carries_its_state_from_segment_to_segment(case, chunk):
    x, switches = draw(**case | {"E": 1, "R": 2})
    wanted = gradients(x, switches, backend="reference")
    with (
        mock.patch.object(tensor_memory_gram, "ROWS_PER_SEGMENT", 3),
        mock.patch.object(tensor_memory_gram, "ROWS_PER_BLOCK", 2),
    ):
        assert_close(gradients(x, switches, backend="torch", chunk=chunk), wanted)


@both
def test_the_equations_by_hand(backend):
    """One number each: S' = 3 * 5, u = 2 (7 - 4 S'), S = S' + 2 u, clamped to 1; then a read with key 10."""
    one = {"e": 2.0, "r": 1.0, "v": 7.0, "beta": 2.0, "decay": 3.0, "state": 5.0, "erase_e": 1.0, "erase_r": 4.0}
    dims = {"beta": 3, "decay": 2}
    x = {name: torch.full([1] * dims.get(name, 4), value, dtype=torch.float64) for name, value in one.items()}
    assert run(x, "given", backend=backend).state.item() == 15 + 2 * 2 * (7 - 4 * 15)
    assert run(x, "false", backend=backend).state.item() == 15 + 2 * 2 * 7
    assert run(x, "none", backend=backend).state.item() == 15 + 2 * 2 * (7 - 2 * 15)
    clamped = run(x, "given", clamp=True, backend=backend)
    assert clamped.state.item() == pytest.approx(-1, rel=1e-14)
    ten, role = torch.full((1, 1, 1), 10.0).double(), torch.ones(1, 1, 1).double()
    assert clamped.read(ten, role, causal=True).item() == pytest.approx(-10, rel=1e-14)
    assert clamped.read(ten[0], role[0]).item() == pytest.approx(-10, rel=1e-14)


@both
@usual
@given(case=cases)
def test_masked_tokens_change_nothing_and_nan_does_not_leak(backend, case):
    x, switches = draw(**case | {"mask": "holes"})
    masked = ~switches["mask"]
    spoilt = {name: value.clone() for name, value in x.items()}
    for name in ("e", "r", "v", "erase_e", "erase_r", "beta", "decay", "causal_e", "causal_r"):
        if name in x:
            spoilt[name][masked] = torch.nan
    clean, found = (gradients(y, switches, backend=backend) for y in (x, spoilt))
    assert all(torch.equal(found[name], value) for name, value in clean.items())
    assert not found["causal"][masked].any()
    for name in spoilt:
        if not name.startswith("read") and name != "state":
            assert not found[f"gradient of {name}"][masked].any()


@both
@usual
@given(case=cases, seed=st.integers(0, 10**6))
def test_the_state_is_bit_identical_where_nothing_counts(backend, case, seed):
    x, switches = draw(**case | {"initial": True, "mask": "all"})
    assert torch.equal(run(x, **switches, backend=backend).state, x["state"])

    # Token by token, and a whole row beside others that count.
    B, T = x["v"].shape[:2]
    mask = mask_of("one row", B, T, torch.Generator().manual_seed(seed))
    after = run(x, **switches | {"mask": mask}, backend=backend).state
    assert torch.equal(after[:1], x["state"][:1])
    state = x["state"]
    for t in range(T):
        token = {name: v[:, t : t + 1] if name not in ("state", "read_e", "read_r") else v for name, v in x.items()}
        new = run(token | {"state": state}, **switches | {"mask": mask[:, t : t + 1]}, backend=backend).state
        assert torch.equal(new[~mask[:, t]], state[~mask[:, t]])
        state = new
    assert_close({"state": state}, {"state": after})


@both
@usual
@given(case=cases, cut=st.integers(0, 7))
def test_two_halves_are_the_whole(backend, case, cut):
    def halves(x, switches):
        cut_at = min(cut, x["v"].shape[1])
        mask, state, causal = switches["mask"], x.get("state"), []
        for part in (slice(0, cut_at), slice(cut_at, None)):
            piece = {n: v[:, part] for n, v in x.items() if n not in ("state", "read_e", "read_r")}
            piece |= {} if state is None else {"state": state}
            now = switches | {"mask": None if mask is None else mask[:, part]}
            memory = run(piece, **now, backend=backend)
            causal.append(memory.read(piece["causal_e"], piece["causal_r"], causal=True))
            state = memory.state
        return {"read": memory.read(x["read_e"], x["read_r"]), "causal": torch.cat(causal, 1), "final": state}

    x, switches = draw(**case)
    assert_close(gradients(x, switches, halves), gradients(x, switches, backend="reference"))


@both
@clamps
def test_padding_at_the_end_changes_nothing(backend, clamp):
    x, switches = draw(T=9, decay="any", clamp=clamp)
    mask = torch.arange(9).expand(2, -1) < 6
    padded = run(x, **switches | {"mask": mask}, backend=backend)
    short = {name: v[:, :6] if name not in ("state", "read_e", "read_r") else v for name, v in x.items()}
    wanted = run(short, **switches, backend=backend)
    assert_close({"state": padded.state}, {"state": wanted.state}, relative=1e-14)


@both
@clamps
@pytest.mark.parametrize("erase", ["none", "false", "given", "shared entity"])
def test_any_strides_of_inputs_and_cotangents(backend, clamp, erase):
    x, switches = draw(erase=erase, decay="any", mask="holes", clamp=clamp)
    wanted = gradients(x, switches, backend=backend)
    strided = {name: value.transpose(0, -1).contiguous().transpose(0, -1) for name, value in x.items()}
    assert not strided["e"].is_contiguous()
    assert_close(gradients(strided, switches, backend=backend), wanted, relative=1e-14)

    # The cotangent of a sum has stride 0; that of a transposed product is not contiguous.
    def through(how):
        leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
        total = sum(how(y) for y in outputs(leaves, switches, backend=backend).values())
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    dense = through(lambda y: (y * torch.ones_like(y)).sum())
    assert_close(through(torch.sum), dense, relative=1e-14)
    assert_close(through(lambda y: (y.mT * torch.ones_like(y.mT)).sum()), dense, relative=1e-14)


@both
def test_a_read_of_one_query_is_a_row_of_many(backend):
    x, switches = draw()
    memory = run(x, **switches, backend=backend)
    many = memory.read(x["read_e"], x["read_r"])
    one = memory.read(x["read_e"][:, 1], x["read_r"][:, 1])
    literal = torch.einsum("berv,bne,bnr->bnv", memory.state, x["read_e"], x["read_r"])
    assert_close({"one": one, "many": many}, {"one": many[:, 1], "many": literal})
    assert memory.read(x["read_e"][:, :0], x["read_r"][:, :0]).shape == (2, 0, 4)


@both
def test_a_list_serves_as_a_pair(backend):
    x, switches = draw(erase="given", mask="holes")
    pair, other = (x["e"], x["r"]), (x["erase_e"], x["erase_r"])
    x["erase_e"][~switches["mask"]] = torch.nan
    lists = tensor_memory(list(pair), x["v"], list(other), mask=switches["mask"], backend=backend)
    tuples = tensor_memory(pair, x["v"], other, mask=switches["mask"], backend=backend)
    assert torch.equal(lists.state, tuples.state)
    assert lists.state.isfinite().all()


@both
def test_the_clamp_keeps_the_norm_of_each_example(backend):
    x, switches = draw(B=3, T=6, clamp=True, initial=False)
    x["v"][0] *= 1e-3
    norms = run(x, **switches, backend=backend).state.flatten(1).norm(dim=1)
    assert 0 < norms[0] < 0.1
    torch.testing.assert_close(norms[1:], torch.ones(2, dtype=torch.float64))


@both
@pytest.mark.parametrize("initial", [False, True])
def test_the_clamp_has_finite_gradients_at_a_zero_state(backend, initial):
    x, switches = draw(clamp=True, decay="any", initial=initial)
    x = {name: torch.zeros_like(value).requires_grad_() for name, value in x.items()}
    total = sum(y.sum() for y in outputs(x, switches, backend=backend).values())
    first = torch.autograd.grad(total, list(x.values()), create_graph=True, allow_unused=True)
    assert all(grad.isfinite().all() for grad in first if grad is not None)
    if initial:
        # The state itself passes: each decay of the three outputs' paths is 0, and only the values' path is open.
        ones = {name: torch.ones_like(v) if name == "decay" else v for name, v in x.items()}
        final = run(ones, **switches, backend=backend).state.sum()
        assert torch.equal(torch.autograd.grad(final, x["state"])[0], torch.ones_like(x["state"]))


class Largest(TorchDispatchMode):
    """The most numbers that any operation under it returned at once."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.numel = max([self.numel, *(y.numel() for y in tree_leaves(out) if isinstance(y, torch.Tensor))])
        return out


@clamps
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_state_is_never_built_unless_asked_for(clamp, chunk):
    x, switches = draw(B=2, T=4, M=2, E=16, R=16, V=16, initial=False, decay="any", clamp=clamp)
    x = {name: value.requires_grad_() for name, value in x.items()}
    with Largest() as largest:
        memory = run(x, **switches, chunk=chunk)
        read = memory.read(x["read_e"], x["read_r"]).sum() + memory.read(x["causal_e"], x["causal_r"], True).sum()
        read.backward()
    assert largest.numel < 16**3  # not even one example's state, in both directions
    with largest:
        memory.state  # noqa: B018
    assert largest.numel == 2 * 16**3
