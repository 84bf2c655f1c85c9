"""Derivatives of derivatives, forward mode, vmap, the compiler, autocast and half precision."""

import pytest
import torch
from memory_cases import assert_close, compilers, draw, gradients, outputs, run

from algornn.triton_kernels.tensor_memory_gram import scan, solve

TINY = {"B": 1, "T": 3, "M": 2, "E": 2, "R": 2, "V": 2}
VARIANTS = {
    "plain": {},
    "keys of their own": {"erase": "given", "mask": "holes", "seed": 4},
    "additive": {"erase": "false", "decay": "any"},
    "decay": {"erase": "shared entity", "decay": "any"},
    "clamp": {"clamp": True, "decay": "any", "erase": "given"},
    "clamp at rest": {"clamp": True, "scale": 0.02},
}
each = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def as_function(x, switches, **how):
    """A function of tensors that returns the tuple of outputs."""
    return lambda *values: tuple(outputs(dict(zip(x, values, strict=True)), switches, **how).values())


@each
@pytest.mark.parametrize("chunk", [None, 2])
def test_first_and_second_derivatives(variant, chunk):
    x, switches = draw(**TINY | variant)
    values = [value.requires_grad_() for value in x.values()]
    function = as_function(x, switches, chunk=chunk)
    assert torch.autograd.gradcheck(function, values, fast_mode=False)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("clamp", [False, True])
def test_second_derivatives_in_full(clamp):
    x, switches = draw(B=1, T=2, M=1, E=2, R=1, V=2, clamp=clamp, decay="any")
    assert torch.autograd.gradgradcheck(as_function(x, switches), [value.requires_grad_() for value in x.values()])


@each
def test_transforms_inside_the_compiler(variant):
    x, switches = draw(**TINY | variant)
    function, values = as_function(x, switches), tuple(x.values())
    tangents = tuple(torch.randn_like(value) for value in values)
    wanted = torch.func.jvp(function, values, tangents)[1]
    torch._dynamo.reset()
    found = torch.compile(lambda *both: torch.func.jvp(function, *both)[1], backend="eager")(values, tangents)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@each
def test_a_batch_of_gradients_at_once(variant):
    x, switches = draw(**TINY | variant)
    function, values = as_function(x, switches), tuple(x.values())
    rows = torch.autograd.functional.jacobian(function, values)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, values, vectorize=True), rows)


@each
def test_forward_mode_agrees_with_backward_mode(variant):
    x, switches = draw(**variant)
    function, values = as_function(x, switches), tuple(x.values())
    tangents = tuple(torch.randn_like(value) for value in values)
    out, moved = torch.func.jvp(function, values, tangents)
    _, pull = torch.func.vjp(function, *values)
    cotangents = tuple(torch.randn_like(y) for y in out)
    forward = sum((a * b).sum() for a, b in zip(moved, cotangents, strict=True))
    backward = sum((a * b).sum() for a, b in zip(pull(cotangents), tangents, strict=True))
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=0)


@each
def test_vmap_over_a_leading_dimension(variant):
    several = [draw(**variant | {"seed": seed}) for seed in range(3)]
    switches = several[0][1]
    stacked = {name: torch.stack([x[name] for x, _ in several]) for name in several[0][0]}

    mapped = torch.func.vmap(lambda x: outputs(x, switches))(stacked)
    alone = [outputs(x, switches) for x, _ in several]
    assert_close(mapped, {name: torch.stack([y[name] for y in alone]) for name in mapped})

    def total(x):
        return sum(y.square().sum() for y in outputs(x, switches).values())

    mapped = torch.func.vmap(torch.func.grad(total))(stacked)
    alone = [torch.func.grad(total)(x) for x, _ in several]
    assert_close(mapped, {name: torch.stack([y[name] for y in alone]) for name in mapped})


def test_vmap_over_states_and_masks_alone():
    x, switches = draw(mask="none")
    states = torch.randn(3, *x["state"].shape, dtype=torch.float64)
    masks = torch.rand(3, *x["v"].shape[:2]) < 0.5
    mapped = torch.func.vmap(lambda s, m: run(x | {"state": s}, **switches | {"mask": m}).state)(states, masks)
    alone = [run(x | {"state": s}, **switches | {"mask": m}).state for s, m in zip(states, masks, strict=True)]
    assert_close({"state": mapped}, {"state": torch.stack(alone)})


COMPILED = {"plain": VARIANTS["keys of their own"], "clamp": VARIANTS["clamp"], "one write": {"M": 1, "clamp": True}}


@compilers
@pytest.mark.parametrize("variant", COMPILED.values(), ids=list(COMPILED))
def test_the_compiler_traces_one_graph(compiler, variant):
    x, switches = draw(**{"B": 2, "T": 3, "dtype": torch.float32} | variant)
    function = torch.compile(lambda x: outputs(x, switches), fullgraph=True, backend=compiler)
    found = gradients(x, switches, function=lambda x, _: function(x))
    assert_close(found, gradients(x, switches), relative=1e-4)


@halves
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("clamp", [False, True])
def test_half_precision_only_rounds_what_goes_in_and_out(dtype, backend, clamp):
    x, switches = draw(erase="given", decay="any", mask="holes", clamp=clamp, dtype=dtype)
    full = {name: value.float() for name, value in x.items()}
    wanted, found = gradients(full, switches, backend=backend), gradients(x, switches, backend=backend)
    assert found["final"].dtype == torch.float32
    assert {value.dtype for name, value in found.items() if name != "final"} == {dtype}
    for name in ("read", "causal", "final"):
        assert torch.equal(found[name], wanted[name].to(found[name].dtype))
    for name, value in wanted.items():
        # The cotangents are rounded, too.
        torch.testing.assert_close(found[name].float(), value, rtol=0, atol=0.05 * float(value.abs().max()))

    # A carried state keeps its float32.
    again = run(x | {"state": found["final"]}, **switches, backend=backend)
    assert (again.state.dtype, again.read(x["read_e"], x["read_r"]).dtype) == (torch.float32, dtype)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_does_not_touch_the_arithmetic(backend):
    x, switches = draw(erase="given", decay="any", mask="holes", dtype=torch.float32)

    def cast(x, switches, **how):
        with torch.autocast("cpu", torch.bfloat16):
            assert (x["v"] @ x["v"].mT).dtype == torch.bfloat16  # it is on
            return outputs(x, switches, **how)

    wanted, found = (gradients(x, switches, function, backend=backend) for function in (outputs, cast))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_autocast_does_not_touch_a_hand_written_backward_pass():
    e, r, y = (torch.randn(2, 9, n).mul(0.5).requires_grad_() for n in (3, 2, 4))
    u, _, _, _ = scan(e, r, y, None, None, None, None)
    for out in (u, solve(e, r, None, None, y, None, 3, 1)[0]):
        wanted = torch.autograd.grad(out.sum(), (e, r, y), retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(out.sum(), (e, r, y))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@halves
def test_autocast_may_mix_dtypes(dtype):
    """Under autocast some layers give half precision and others float32; the values decide the output."""
    x, switches = draw(erase="given", decay="any", dtype=dtype)
    mixed = x | {name: x[name].float() for name in ("r", "beta", "decay", "read_e", "causal_r")}
    with pytest.raises(TypeError, match="`write\\[1\\]` must have the dtype"):
        outputs(mixed, switches)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(mixed, switches)
    wanted = outputs(x, switches)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert {name: value.dtype for name, value in found.items()} == {n: y.dtype for n, y in wanted.items()}


def test_a_half_precision_memory_can_be_read_in_float32():
    x, switches = draw(dtype=torch.bfloat16)
    memory = run(x, **switches)
    read = memory.read(x["read_e"].float(), x["read_r"])
    assert torch.equal(read, memory.read(x["read_e"], x["read_r"]))
    assert read.dtype == torch.bfloat16
