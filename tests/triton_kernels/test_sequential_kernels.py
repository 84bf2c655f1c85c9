"""The kernels of the sequential operators: on a GPU where there is one, otherwise in Triton's interpreter, and tiny."""

import importlib

import pytest
import torch
from sequential_cases import NAMES, TOKENS, assert_close, draw, gradients, outputs

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
each = pytest.mark.parametrize("name", NAMES)
HAND_WRITTEN = ("recurrent_delta", "self_referential", *(f"{name}_triton" for name in NAMES))


def drawn(name, dtype=torch.float32, **case):
    """Inputs in float64, the same ones for the kernels, and the mask."""
    x, mask = draw(name, **case)
    mine = {key: value.to(DEVICE, dtype) for key, value in x.items()}
    return {key: value.cpu().double() for key, value in mine.items()}, mine, mask


def launched(name, x, mask=None, function=gradients, **how):
    """What the kernels find, on the CPU in float64."""
    mask = None if mask is None else mask.to(DEVICE)
    found = function(name, x, mask, backend="triton", **how)
    return {key: value.detach().cpu().double() for key, value in found.items()}


@each
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "case",
    [
        {"D": 3, "T": 5, "mask": "holes"},
        {"D": 5, "T": 3, "B": 1, "H": 3, "scale": 2.0},
        {"D": 8, "T": 5, "B": 1, "mask": "prefix", "seed": 2},
        {"D": 1, "T": 1, "initial": False},
        {"D": 2, "T": 3, "mask": "all"},
        {"D": 3, "T": 0},
        {"D": 3, "T": 2, "B": 0, "mask": "holes"},
    ],
    ids=str,
)
def test_the_kernels_are_the_loop(name, case):
    x, mine, mask = drawn(name, **case)
    wanted = gradients(name, x, mask, backend="reference")
    assert_close(launched(name, mine, mask), wanted, relative=1e-5)


@each
@pytest.mark.usefixtures("poison")
def test_masked_tokens_change_nothing_and_nan_does_not_leak(name):
    _, mine, mask = drawn(name, mask="holes", T=3)
    spoilt = {key: value.clone() for key, value in mine.items()}
    for key in TOKENS:
        if key in spoilt:
            spoilt[key][~mask.to(DEVICE)] = torch.nan
    clean, found = launched(name, mine, mask), launched(name, spoilt, mask)
    assert all(torch.equal(found[key], value) for key, value in clean.items())
    assert not found["out"][~mask].any()
    none = launched(name, mine, torch.zeros_like(mask), function=outputs)
    for key, value in zip(("state", "y") if "state" in mine else ("W",), list(none.values())[1:], strict=True):
        assert torch.equal(value, mine[key].cpu().double())


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_only_rounds_what_goes_in_and_out(name, dtype):
    x, mine, mask = drawn(name, dtype=dtype, T=3, mask="holes")
    found = outputs(name, mine, mask.to(DEVICE), backend="triton")
    assert [value.dtype for value in found.values()] == [dtype, *[torch.float32] * (len(found) - 1)]
    wanted = outputs(name, x, mask, backend="reference")
    wanted["out"] = wanted["out"].float().to(dtype).double()
    for key, value in found.items():
        rounding = torch.finfo(dtype).eps if key == "out" else 1e-5  # a tie may be broken either way
        assert_close({key: value.cpu().double()}, {key: wanted[key]}, relative=rounding)


@each
def test_any_strides_of_inputs_and_cotangents(name):
    _, mine, mask = drawn(name, B=1, T=3, mask="holes")
    strided = {key: value.transpose(0, -1).contiguous().transpose(0, -1) for key, value in mine.items()}

    def summed(x, how):
        leaves = [value.clone(memory_format=torch.preserve_format).requires_grad_() for value in x.values()]
        found = outputs(name, dict(zip(x, leaves, strict=True)), mask.to(DEVICE), backend="triton")
        return dict(zip(x, torch.autograd.grad(sum(how(y) for y in found.values()), leaves), strict=True))

    wanted = summed(mine, lambda y: (y * torch.ones_like(y)).sum())
    assert_close(summed(strided, torch.sum), wanted, relative=1e-6)  # stride 0
    assert_close(summed(mine, lambda y: (y.mT * torch.ones_like(y.mT)).sum()), wanted, relative=1e-6)


@each
def test_a_gradient_of_gradients_is_that_of_the_loop(name):
    def squared(name, x, mask, **how):
        total = sum(y.square().sum() for y in outputs(name, x, mask, **how).values())
        return dict(zip(x, torch.autograd.grad(total, list(x.values()), create_graph=True), strict=True))

    x, mine, mask = drawn(name, B=1, T=3, mask="holes")
    wanted = gradients(name, x, mask, function=squared, backend="reference")
    found = launched(name, mine, mask, function=lambda *args, **how: gradients(*args, function=squared, **how))
    assert_close(found, wanted, relative=1e-5)


@each
def test_under_a_transform_the_kernels_give_way(name):
    x, mine, _ = drawn(name, B=1, T=3)
    tangents = {key: torch.ones_like(value) for key, value in x.items()}
    wanted = torch.func.jvp(lambda x: outputs(name, x), (x,), (tangents,))[1]
    same = {key: value.to(DEVICE, torch.float32) for key, value in tangents.items()}
    found = torch.func.jvp(lambda x: outputs(name, x, backend="triton"), (mine,), (same,))[1]
    assert_close({key: value.cpu().double() for key, value in found.items()}, wanted, relative=1e-5)


@each
def test_the_compiler_traces_one_graph(name):
    _, mine, mask = drawn(name, B=1, T=2, D=2, mask="holes")
    function = torch.compile(
        lambda x, mask: outputs(name, x, mask, backend="triton"), fullgraph=True, backend="aot_eager"
    )
    found = gradients(name, mine, mask.to(DEVICE), function=lambda name, x, mask: function(x, mask))
    wanted = gradients(name, mine, mask.to(DEVICE), backend="triton")
    assert_close(found, wanted, relative=1e-6)


def op_arguments(name):
    """Arguments of a hand-written pass: those of the operator, packed, and a mask."""
    B, T, H, D = 1, 2, 2, 2
    state = [(B, H, D, D), (B, H, D)]
    shapes = {
        "delta_rnn": [*[(B, T, H, D)] * 3, (B, T, H), *state],
        "recurrent_delta": [(B, T, H, 3 * D + 1), (H, 3 * D + 1, D), *state],
        "self_referential": [(B, T, H, D), (B, H, D, 3 * D + 4)],
    }[name]
    tensors = [torch.randn(shape, device=DEVICE) for shape in shapes]
    return tensors if name == "self_referential" else [*tensors, torch.tensor([[True, False]], device=DEVICE)]


@pytest.mark.parametrize("op", HAND_WRITTEN)
def test_the_dispatcher_accepts_both_passes(op):
    importlib.import_module(f"algornn.triton_kernels.{op}")
    arguments = op_arguments(op.removesuffix("_triton"))
    leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    torch.library.opcheck(getattr(torch.ops.algornn, op).default, tuple(leaves))
    found = getattr(torch.ops.algornn, op)(*arguments)
    cotangents = [torch.ones_like(found[0]), *[None] * (len(found) - 1)]
    gradient = getattr(torch.ops.algornn, f"{op}_gradient").default
    torch.library.opcheck(gradient, (cotangents, arguments, list(found), []))


# --- undoing the writes ------------------------------------------------------------------------------------------


def drift(name, T, **how):
    """How far float32 outputs and gradients are off after T tokens, relative to each tensor's largest entry."""
    x, mine, _ = drawn(name, B=1, T=T, H=2, D=16)
    wanted = gradients(name, x, backend="reference")
    found = gradients(name, mine if how["backend"] == "triton" else {k: v.float() for k, v in x.items()}, **how)
    return {k: float((found[k].cpu() - y).abs().max() / y.abs().max()) for k, y in wanted.items()}


@each
def test_undoing_the_writes_of_a_long_sequence_keeps_float32(name):
    assert max(drift(name, 512, backend="torch").values()) < 1e-3


@each
@pytest.mark.slow
def test_the_kernels_undo_the_writes_of_a_long_sequence(name):
    assert max(drift(name, 512, backend="triton").values()) < 1e-3
