"""The form by blocks of `delta_rule` against the literal loop, the rules that hold for both, and their derivatives."""

import re

import pytest
import torch
from delta_cases import TOKENWISE, cases, draw, gradients, outputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory_cases import assert_close, compilers, mask_of

from algornn.triton_kernels.delta_rule import delta_rule

both = pytest.mark.parametrize("backend", ["torch", "reference"])
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
usual = settings(max_examples=60, deadline=None)
VARIANTS = {
    "plain": {},
    "sum rule": {"erase": "false", "decay": "any", "beta": False},
    "keys of their own": {"erase": "given", "decay": "any", "mask": "holes", "seed": 4},
    "no state": {"initial": False, "decay": "any"},
}
each = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
TINY = {"B": 1, "T": 3, "H": 1, "K": 2, "V": 2}


@usual
@given(case=cases, chunk=st.none() | st.integers(1, 9))
@example(case={"seed": 1, "T": 70, "H": 1, "mask": "holes"}, chunk=None)
@example(case={"seed": 2, "T": 70, "H": 1, "erase": "given", "decay": "zeros"}, chunk=None)
def test_the_form_by_blocks_is_the_loop(case, chunk):
    x, switches = draw(**case)
    wanted = gradients(x, switches, backend="reference")
    assert_close(gradients(x, switches, backend="torch", chunk=chunk), wanted)


@both
def test_the_equations_by_hand(backend):
    """One number each: S' = 3 * 5, u = 2 (7 - 4 S'), S = S' + 2 u, read with 10."""
    one = {"q": 10.0, "k": 2.0, "v": 7.0, "beta": 2.0, "decay": 3.0, "erase": 4.0, "initial_state": 5.0}
    x = {n: torch.full([1] * (3 if n in ("beta", "decay") else 4), y, dtype=torch.float64) for n, y in one.items()}
    state = 15 + 2 * 2 * (7 - 4 * 15)
    assert [y.item() for y in delta_rule(**x, backend=backend)] == [10 * state, state]
    assert delta_rule(**x | {"erase": False}, backend=backend)[1].item() == 15 + 2 * 2 * 7
    assert delta_rule(**x | {"erase": None}, backend=backend)[1].item() == 15 + 2 * 2 * (7 - 2 * 15)


@both
@usual
@given(case=cases)
def test_masked_tokens_change_nothing_and_nan_does_not_leak(backend, case):
    x, switches = draw(**case | {"mask": "holes"})
    masked = ~switches["mask"]
    spoilt = {name: value.clone() for name, value in x.items()}
    for name in TOKENWISE:
        if name in x:
            spoilt[name][masked] = torch.nan
    clean, found = (gradients(y, switches, backend=backend) for y in (x, spoilt))
    assert all(torch.equal(found[name], value) for name, value in clean.items())
    assert not found["out"][masked].any()
    assert not any(found[f"gradient of {name}"][masked].any() for name in TOKENWISE if name in x)


@both
@usual
@given(case=cases, seed=st.integers(0, 10**6))
def test_the_state_is_bit_identical_where_nothing_counts(backend, case, seed):
    x, switches = draw(**case | {"initial": True, "mask": "all"})
    assert torch.equal(outputs(x, switches, backend=backend)["state"], x["initial_state"])
    B, T = x["v"].shape[:2]
    mask = mask_of("one row", B, T, torch.Generator().manual_seed(seed))
    after = outputs(x, switches | {"mask": mask}, backend=backend)["state"]
    assert torch.equal(after[:1], x["initial_state"][:1])
    state = x["initial_state"]
    for t in range(T):
        token = {name: y[:, t : t + 1] for name, y in x.items() if name in TOKENWISE} | {"initial_state": state}
        new = outputs(token, switches | {"mask": mask[:, t : t + 1]}, backend=backend)["state"]
        assert torch.equal(new[~mask[:, t]], state[~mask[:, t]])
        state = new
    assert_close({"state": state}, {"state": after})


@both
@usual
@given(case=cases, cut=st.integers(0, 9))
def test_two_halves_are_the_whole(backend, case, cut):
    def parts(x, switches):
        at, mask = min(cut, x["v"].shape[1]), switches["mask"]
        state, outs = x.get("initial_state"), []
        for part in (slice(0, at), slice(at, None)):
            piece = {name: y[:, part] for name, y in x.items() if name in TOKENWISE} | {"initial_state": state}
            found = outputs(piece, switches | {"mask": None if mask is None else mask[:, part]}, backend=backend)
            state = found["state"]
            outs.append(found["out"])
        return {"out": torch.cat(outs, 1), "state": state}

    x, switches = draw(**case)
    assert_close(gradients(x, switches, parts), gradients(x, switches, backend="reference"))


@both
@each
def test_any_strides_of_inputs_and_cotangents(backend, variant):
    x, switches = draw(**variant)
    wanted = gradients(x, switches, backend=backend)
    strided = {name: y.transpose(0, -1).contiguous().transpose(0, -1) for name, y in x.items()}
    assert_close(gradients(strided, switches, backend=backend), wanted, relative=1e-14)

    def through(how):
        leaves = {name: y.clone().requires_grad_() for name, y in x.items()}
        total = sum(how(y) for y in outputs(leaves, switches, backend=backend).values())
        return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))

    dense = through(lambda y: (y * torch.ones_like(y)).sum())
    assert_close(through(torch.sum), dense, relative=1e-14)
    assert_close(through(lambda y: (y.mT * torch.ones_like(y.mT)).sum()), dense, relative=1e-14)


def test_the_final_state_is_never_the_callers_own_tensor():
    x, switches = draw(T=0)
    for backend in ("torch", "reference"):
        state = outputs(x, switches, backend=backend)["state"]
        assert state.data_ptr() != x["initial_state"].data_ptr()


@each
@pytest.mark.parametrize("chunk", [None, 2])
def test_first_and_second_derivatives(variant, chunk):
    x, switches = draw(**TINY | variant)
    values = [y.requires_grad_() for y in x.values()]

    def function(*values):
        return tuple(outputs(dict(zip(x, values, strict=True)), switches, chunk=chunk).values())

    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@each
def test_forward_mode_agrees_with_backward_mode(variant):
    x, switches = draw(**variant)

    def function(*values):
        return tuple(outputs(dict(zip(x, values, strict=True)), switches, chunk=2).values())

    values = tuple(x.values())
    tangents = tuple(torch.randn_like(y) for y in values)
    out, moved = torch.func.jvp(function, values, tangents)
    pulled = torch.func.vjp(function, *values)[1](out)
    forward = sum((a * b).sum() for a, b in zip(moved, out, strict=True))
    backward = sum((a * b).sum() for a, b in zip(pulled, tangents, strict=True))
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=0)


@each
def test_vmap_over_a_leading_dimension(variant):
    several = [draw(**variant | {"seed": seed}) for seed in range(3)]
    switches = several[0][1]
    stacked = {name: torch.stack([x[name] for x, _ in several]) for name in several[0][0]}

    def total(x):
        return sum(y.square().sum() for y in outputs(x, switches).values())

    for function in (lambda x: outputs(x, switches), torch.func.grad(total)):
        mapped, alone = torch.func.vmap(function)(stacked), [function(x) for x, _ in several]
        assert_close(mapped, {name: torch.stack([y[name] for y in alone]) for name in mapped})


@compilers
def test_the_compiler_traces_one_graph(compiler):
    x, switches = draw(decay="any", erase="given", mask="holes", dtype=torch.float32)
    function = torch.compile(lambda x: outputs(x, switches, chunk=2), fullgraph=True, backend=compiler)
    found = gradients(x, switches, function=lambda x, _: function(x))
    assert_close(found, gradients(x, switches), relative=1e-5)


@halves
@both
def test_half_precision_only_rounds_what_goes_in_and_out(dtype, backend):
    x, switches = draw(erase="given", decay="any", mask="holes", dtype=dtype)
    wanted, found = (gradients(y, switches, backend=backend) for y in ({n: y.float() for n, y in x.items()}, x))
    assert (found["out"].dtype, found["state"].dtype) == (dtype, torch.float32)
    assert torch.equal(found["state"], wanted["state"])
    assert torch.equal(found["out"], wanted["out"].to(dtype))
    for name, value in wanted.items():  # the cotangents are rounded, too
        torch.testing.assert_close(found[name].float(), value, rtol=0, atol=0.05 * float(value.abs().max()))
    assert outputs(x | {"initial_state": found["state"]}, switches, backend=backend)["state"].dtype == torch.float32


@halves
@both
def test_scalars_may_stay_in_float32_beside_half_precision(dtype, backend):
    x, switches = draw(decay="any", mask="holes", dtype=torch.float32)
    scalars = {"beta", "decay"}
    x = {name: value if name in scalars else value.to(dtype).float() for name, value in x.items()}
    halved = {name: value if name in scalars else value.to(dtype) for name, value in x.items()}
    wanted, found = (gradients(y, switches, backend=backend) for y in (x, halved))
    assert torch.equal(found["state"], wanted["state"])
    assert found["out"].dtype == dtype
    assert {found[f"gradient of {name}"].dtype for name in scalars} == {torch.float32}


@both
def test_autocast_does_not_touch_the_arithmetic(backend):
    x, switches = draw(erase="given", decay="any", mask="holes", dtype=torch.float32)

    def cast(x, switches, **how):
        with torch.autocast("cpu", torch.bfloat16):
            return outputs(x, switches, **how)

    wanted, found = (gradients(x, switches, function, backend=backend) for function in (outputs, cast))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


DIMS = {
    "q": "[B, T, H, K]", "k": "[B=2, T=3, H=4, K=5]", "v": "[B=2, T=3, H=4, V]", "beta": "[B=2, T=3, H=4]",
    "decay": "[B=2, T=3, H=4]", "erase": "[B=2, T=3, H=4, K=5]", "initial_state": "[B=2, H=4, K=5, V=6]",
    "mask": "[B=2, T=3]",
}  # fmt: skip


def arguments():
    x = draw(B=2, T=3, H=4, K=5, V=6, erase="given", decay="any", dtype=torch.float32)[0]
    return x | {"mask": torch.ones(2, 3, dtype=torch.bool)}


@pytest.mark.parametrize("name", DIMS)
def test_wrong_shapes_and_kinds(name):
    x = arguments()
    came = [*x[name].shape, 1]
    with raises(ValueError, f"`{name}` must have the shape {DIMS[name]}, got {came}."):
        delta_rule(**x | {name: x[name][..., None]})
    with pytest.raises(TypeError, match=rf"^`{name}` must be a (boolean )?tensor \[B, .*, got list\.$"):
        delta_rule(**x | {name: x[name].tolist()})
    if name not in ("q", "mask"):
        message = f"`{name}` must have the dtype torch.float32 like the other arguments, got torch.float64."
        with raises(TypeError, message):
            delta_rule(**x | {name: x[name].double()})
    if name != "q":
        with raises(ValueError, f"`{name}` must be on cpu like the other arguments, got meta."):
            delta_rule(**x | {name: x[name].to("meta")})


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"chunk": 0}, ValueError, "`chunk` must be at least 1 token, got 0. Leave it out to have it chosen."),
        ({"erase": True}, TypeError, "`erase` must be a tensor [B, T, H, K], got bool."),
        ({"decay": 0.9}, TypeError, "`decay` must be a tensor [B, T, H], got float."),
        (
            {"backend": "tirch"},
            ValueError,
            "`backend` must be one of 'auto', 'triton', 'torch', 'reference', got 'tirch' (did you mean 'torch'?).",
        ),
    ],
)
def test_other_mistakes(change, kind, message):
    with raises(kind, message):
        delta_rule(**arguments() | change)
