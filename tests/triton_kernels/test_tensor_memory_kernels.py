"""The kernels of `tensor_memory`, on a GPU or in Triton's interpreter, against the literal loop in float64."""

from functools import partial

import pytest
import torch
from memory_cases import assert_close, draw, gradients, outputs, run

from algornn.triton_kernels import tensor_memory_gram

pytest.importorskip("triton")
from algornn.triton_kernels.tensor_memory_triton import read, scan, solve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = {
    "TPR-RNN's three writes": {"T": 23, "M": 3, "E": 5, "R": 3, "V": 19, "erase": "shared entity", "mask": "holes"},
    "keys of their own": {"T": 12, "M": 2, "E": 18, "V": 37, "erase": "given", "beta": False},
    "one write, no state": {"T": 33, "M": 1, "initial": False},
    "four writes of one token": {"T": 1, "M": 4},
    "a block exactly": {"T": 8, "M": 4, "E": 33, "R": 17},
    "additive": {"erase": "false", "T": 3},
    "decay": {"T": 11, "M": 3, "erase": "shared entity", "decay": "zeros", "mask": "holes"},
    "decay over many blocks": {"T": 35, "M": 1, "E": 19, "erase": "given", "decay": "any", "initial": False},
    "additive with decay": {"erase": "false", "T": 5, "decay": "any"},
    "clamp": {"T": 21, "M": 1, "V": 19, "clamp": True, "mask": "holes"},
    "clamp of small states": {"T": 18, "M": 1, "clamp": True, "initial": False, "beta": False, "scale": 0.1},
    "clamp, nothing counts": {"T": 3, "M": 1, "clamp": True, "mask": "all"},
    "clamp, no example": {"B": 0, "M": 1, "clamp": True},
    "clamp, one token": {"T": 1, "M": 1, "clamp": True, "mask": "one row"},
    "nothing counts": {"mask": "all", "decay": "any"},
    "no example": {"B": 0},
    "no token": {"T": 0},
}
each = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


def on_device(dtype=torch.float32, **variant):
    x, switches = draw(dtype=dtype, **variant)
    mask = switches["mask"]
    switches["mask"] = None if mask is None else mask.to(DEVICE)
    return {name: value.to(DEVICE) for name, value in x.items()}, switches


def both_ways(function=gradients, **variant):
    """What the kernels give, and the literal loop in float64 for the same rounded inputs; both in float64."""
    x, switches = on_device(**variant)
    exact = {name: value.double() for name, value in x.items()}
    found, wanted = function(x, switches, backend="triton"), function(exact, switches, backend="reference")
    return {name: value.double() for name, value in found.items()}, wanted


@each
@pytest.mark.usefixtures("poison")
def test_kernels_are_the_loop(variant):
    assert_close(*both_ways(**variant), relative=1e-5)


@pytest.mark.parametrize("variant", ["TPR-RNN's three writes", "decay", "clamp"])
@pytest.mark.usefixtures("poison")
def test_masked_tokens_change_nothing_and_nan_does_not_leak(variant):
    x, switches = on_device(**VARIANTS[variant])
    spoilt = {name: value.clone() for name, value in x.items()}
    for name in x.keys() - {"state", "read_e", "read_r"}:
        spoilt[name][~switches["mask"]] = torch.nan
    clean, found = (gradients(y, switches, backend="triton") for y in (x, spoilt))
    assert all(torch.equal(found[name], value) for name, value in clean.items())


@pytest.mark.parametrize("variant", [{"T": 11, "M": 3, "decay": "zeros"}, {"T": 20, "M": 1, "clamp": True}], ids=str)
def test_a_sequence_of_many_segments(variant, monkeypatch):
    monkeypatch.setattr(tensor_memory_gram, "ROWS_PER_SEGMENT", 9)
    assert_close(*both_ways(partial(gradients, chunk=3), mask="holes", **variant), relative=1e-5)


def test_half_precision_computes_in_float32():
    x, switches = on_device(torch.bfloat16, T=7, M=2)
    full = {name: value.float() for name, value in x.items()}
    half, single = (outputs(y, switches, backend="triton") for y in (x, full))
    assert torch.equal(half["read"], single["read"].bfloat16())
    assert torch.equal(half["final"], single["final"])


def second_derivatives(x, switches, backend):
    """The gradient of the sum of squares of the gradients."""
    x = {name: value.detach().requires_grad_() for name, value in x.items()}
    total = sum(y.square().sum() for y in outputs(x, switches, backend=backend).values())
    first = torch.autograd.grad(total, list(x.values()), create_graph=True)
    found = torch.autograd.grad(sum(g.square().sum() for g in first), list(x.values()))
    return dict(zip(x, found, strict=True))


@pytest.mark.parametrize("variant", [{"erase": "shared entity"}, {"decay": "zeros"}, {"M": 1, "clamp": True}], ids=str)
def test_second_derivatives(variant):
    assert_close(*both_ways(second_derivatives, T=6, **variant), relative=1e-4)


@pytest.mark.parametrize(
    "variant", [{"erase": "given", "decay": "any"}, {"M": 1, "clamp": True, "mask": "holes"}], ids=str
)
def test_the_compiler_keeps_the_kernels_as_one_node(variant):
    x, switches = on_device(T=6, **variant)
    function = torch.compile(lambda x: outputs(x, switches, backend="triton"), fullgraph=True, backend="aot_eager")
    found = gradients(x, switches, function=lambda x, _: function(x))
    assert_close(found, gradients(x, switches, backend="triton"), relative=1e-5)


def test_the_registered_functions_keep_torchs_rules():
    pe, pr, y, e, r = (torch.randn(2, 20, n, device=DEVICE, requires_grad=True) for n in (5, 3, 4, 5, 3))
    w = torch.rand(2, 10, 10, device=DEVICE, requires_grad=True)
    torch.library.opcheck(solve, (pe, pr, None, pr, y, None, 2, 16))
    torch.library.opcheck(solve, (pe, pr, pe, None, y, w, 2, 16))
    torch.library.opcheck(read, (e, r, pe, pr, y, None, 2, 0))
    torch.library.opcheck(read, (e[:, :10], r[:, :10], pe, pr, y, w, 2, 1))
    first, mask = torch.rand_like(y, requires_grad=True), torch.rand(2, 20, device=DEVICE) < 0.5
    torch.library.opcheck(scan, (pe, pr, y, None, None, None, None))
    torch.library.opcheck(scan, (pe, pr, y, pe[..., 0], first, first[:, 0, 0], mask))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"clamp": True}, "the clamp has kernels for one write per token that erases with its own key, without decay"),
        ({"clamp": True, "M": 1, "decay": "any"}, "with its own key, without decay"),
        ({"clamp": True, "M": 1, "erase": "given"}, "with its own key, without decay"),
        ({"clamp": True, "M": 1, "V": 129}, "values of at most 128 numbers, got 129"),
        ({"E": 129}, "at most 128 and roles of at most 64 numbers, got 129 and 2"),
        ({"dtype": torch.float64}, "do not take torch.float64"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take(change, reason):
    x, switches = on_device(**change)
    with pytest.raises(ValueError, match=f"`backend='triton'` cannot run tensor_memory here: .*{reason}"):
        run(x, **switches, backend="triton")
