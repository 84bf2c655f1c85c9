"""The sequential operators: derivatives of derivatives, forward mode, vmap, the compiler, autocast, half precision."""

import pytest
import torch
from memory_cases import compilers
from sequential_cases import NAMES, TOKENS, assert_close, draw, gradients, outputs, states

each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("backend", ["torch", "reference"])
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
TINY = {"B": 1, "T": 3, "H": 2, "D": 2}


def as_function(name, x, mask, **how):
    """A function of tensors that returns the tuple of outputs."""
    return lambda *values: tuple(outputs(name, dict(zip(x, values, strict=True)), mask, **how).values())


@each
@both
@pytest.mark.parametrize("mask", ["none", "holes"])
def test_first_and_second_derivatives(name, backend, mask):
    x, mask = draw(name, **TINY, seed=3, mask=mask)
    values = [value.requires_grad_() for value in x.values()]
    function = as_function(name, x, mask, backend=backend)
    assert torch.autograd.gradcheck(function, values, fast_mode=False)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@each
def test_second_derivatives_in_full(name):
    x, mask = draw(name, B=1, T=2, H=1, D=2)
    assert torch.autograd.gradgradcheck(as_function(name, x, mask), [value.requires_grad_() for value in x.values()])


@each
def test_a_gradient_of_gradients_is_that_of_the_loop(name):
    def squared(name, x, mask, **how):
        total = sum(y.square().sum() for y in outputs(name, x, mask, **how).values())
        return dict(zip(x, torch.autograd.grad(total, list(x.values()), create_graph=True), strict=True))

    x, mask = draw(name, mask="holes")
    wanted = gradients(name, x, mask, function=squared, backend="reference")
    assert_close(gradients(name, x, mask, function=squared, backend="torch"), wanted)


@each
@both
def test_forward_mode_agrees_with_backward_mode(name, backend):
    x, mask = draw(name, mask="holes")
    function, values = as_function(name, x, mask, backend=backend), tuple(x.values())
    tangents = tuple(torch.randn_like(value) for value in values)
    out, moved = torch.func.jvp(function, values, tangents)
    _, pull = torch.func.vjp(function, *values)
    cotangents = tuple(torch.randn_like(y) for y in out)
    forward = sum((a * b).sum() for a, b in zip(moved, cotangents, strict=True))
    backward = sum((a * b).sum() for a, b in zip(pull(cotangents), tangents, strict=True))
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=0)
    # Without a transform: the hand-written backward pass.
    leaves = [value.clone().requires_grad_() for value in values]
    found = torch.autograd.grad(function(*leaves), leaves, cotangents)
    by_hand = sum((a * b).sum() for a, b in zip(found, tangents, strict=True))
    torch.testing.assert_close(forward, by_hand, rtol=1e-10, atol=0)


@each
def test_transforms_inside_the_compiler(name):
    x, mask = draw(name, **TINY)
    function, values = as_function(name, x, mask), tuple(x.values())
    tangents = tuple(torch.randn_like(value) for value in values)
    wanted = torch.func.jvp(function, values, tangents)[1]
    torch._dynamo.reset()
    found = torch.compile(lambda *both: torch.func.jvp(function, *both)[1], backend="eager")(values, tangents)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@each
def test_a_batch_of_gradients_at_once(name):
    x, mask = draw(name, **TINY, mask="holes")
    function, values = as_function(name, x, mask), tuple(x.values())
    rows = torch.autograd.functional.jacobian(function, values)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, values, vectorize=True), rows)


@each
def test_vmap_over_a_leading_dimension(name):
    several = [draw(name, seed=seed)[0] for seed in range(3)]
    stacked = {key: torch.stack([x[key] for x in several]) for key in several[0]}
    mapped = torch.func.vmap(lambda x: outputs(name, x))(stacked)
    alone = [outputs(name, x) for x in several]
    assert_close(mapped, {key: torch.stack([y[key] for y in alone]) for key in mapped})

    def total(x):
        return sum(y.square().sum() for y in outputs(name, x).values())

    mapped = torch.func.vmap(torch.func.grad(total))(stacked)
    alone = [torch.func.grad(total)(x) for x in several]
    assert_close(mapped, {key: torch.stack([y[key] for y in alone]) for key in mapped})


@each
def test_vmap_over_masks_alone(name):
    x, _ = draw(name)
    masks = torch.rand(3, *next(iter(x.values())).shape[:2]) < 0.5
    mapped = torch.func.vmap(lambda mask: outputs(name, x, mask))(masks)
    alone = [outputs(name, x, mask) for mask in masks]
    assert_close(mapped, {key: torch.stack([y[key] for y in alone]) for key in mapped})


@each
@compilers
def test_the_compiler_traces_one_graph(name, compiler):
    x, mask = draw(name, T=3, mask="holes", dtype=torch.float32)
    function = torch.compile(lambda x: outputs(name, x, mask), fullgraph=True, backend=compiler)
    found = gradients(name, x, mask, function=lambda name, x, mask: function(x))
    assert_close(found, gradients(name, x, mask), relative=1e-5)


@each
@both
@halves
def test_half_precision_only_rounds_what_goes_in_and_out(name, backend, dtype):
    x, mask = draw(name, mask="holes", dtype=dtype)
    full = {key: value.float() for key, value in x.items()}
    wanted, found = (gradients(name, y, mask, backend=backend) for y in (full, x))
    for key, value in found.items():
        assert value.dtype == (torch.float32 if key.startswith("final") else dtype)
        if not key.startswith("gradient"):
            assert torch.equal(value, wanted[key].to(value.dtype))
        # The cotangents are rounded, too.
        torch.testing.assert_close(value.float(), wanted[key], rtol=0, atol=0.05 * float(wanted[key].abs().max()))

    # A carried state keeps its float32.
    again = outputs(name, x | states(name, {k: v for k, v in found.items() if not k.startswith("grad")}), mask)
    assert [value.dtype for value in again.values()] == [dtype, *[torch.float32] * (len(again) - 1)]


def under_autocast(function):
    def run(*args, **how):
        with torch.autocast("cpu", torch.bfloat16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # it is on
            return function(*args, **how)

    return run


@each
@both
def test_autocast_does_not_touch_the_arithmetic(name, backend):
    x, mask = draw(name, mask="holes", dtype=torch.float32)
    wanted = gradients(name, x, mask, backend=backend)
    found = gradients(name, x, mask, function=under_autocast(outputs), backend=backend)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["recurrent_delta", "self_referential"])
def test_autocast_does_not_touch_a_backward_pass_written_by_hand(name):
    x, mask = draw(name, mask="holes", dtype=torch.float32)
    wanted, found = gradients(name, x, mask), under_autocast(gradients)(name, x, mask)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@each
@halves
def test_autocast_may_mix_dtypes(name, dtype):
    """Under autocast some layers give half precision and others float32; the first argument decides the output."""
    x, _ = draw(name, dtype=dtype)
    mixed = {key: value if i == 0 else value.float() for i, (key, value) in enumerate(x.items())}
    if name != "self_referential":  # whose matrix may be float32 anyway
        with pytest.raises(TypeError, match="`k` must have the dtype"):
            outputs(name, mixed)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(name, mixed)
    wanted = outputs(name, x)
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in wanted.items()}


def test_the_tokens_are_named():
    """A new argument with a dimension of tokens must be added to TOKENS, or the tests of masks pass it over."""
    for name in NAMES:
        x, _ = draw(name, B=2, T=9, H=3, D=4)
        assert {key for key, value in x.items() if 9 in value.shape} == {key for key in x if key in TOKENS}
