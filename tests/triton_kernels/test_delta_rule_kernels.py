"""The kernels of `delta_rule`, on a GPU or in Triton's interpreter, against the literal loop in float64."""

import pytest
import torch
from delta_cases import draw, gradients, outputs
from memory_cases import assert_close

from algornn.triton_kernels.delta_rule import _for_kernels, _Inputs, _run, delta_rule

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIANTS = {
    "plain": {"T": 70, "K": 5, "V": 19, "H": 1},
    "no state, no beta": {"initial": False, "beta": False, "T": 33},
    "one token": {"T": 1, "decay": "any", "erase": "given"},
    "sum rule": {"erase": "false", "decay": "any", "T": 40, "V": 17},
    "keys of their own": {"erase": "given", "decay": "any", "mask": "holes", "T": 40, "K": 18},
    "decays of 0": {"decay": "zeros", "T": 37, "erase": "given", "seed": 5},
    "nothing counts": {"mask": "all", "decay": "any"},
}
each = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


def both_ways(variant, dtype, function=gradients):
    """What the kernels give, and the literal loop in float64 for the same rounded inputs."""
    x, switches = draw(dtype=dtype, device=DEVICE, **variant)
    exact = {name: value.double() for name, value in x.items()}
    return function(x, switches, backend="triton"), function(exact, switches, backend="reference")


@each
@pytest.mark.usefixtures("poison")
def test_kernels_are_the_loop(variant):
    found, wanted = both_ways(variant, torch.float32)
    assert_close({name: value.double() for name, value in found.items()}, wanted, relative=1e-5)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision(dtype, relative):
    found, wanted = both_ways(VARIANTS["keys of their own"] | {"T": 150}, dtype)
    assert (found["out"].dtype, found["state"].dtype) == (dtype, torch.float32)
    assert_close({name: value.double() for name, value in found.items()}, wanted, relative=relative)


@pytest.mark.usefixtures("poison")
def test_masked_tokens_change_nothing_and_nan_does_not_leak():
    x, switches = draw(dtype=torch.float32, device=DEVICE, **VARIANTS["keys of their own"])
    spoilt = {name: value.clone() for name, value in x.items()}
    for name in spoilt.keys() - {"initial_state"}:
        spoilt[name][~switches["mask"]] = torch.nan
    clean, found = (gradients(y, switches, backend="triton") for y in (x, spoilt))
    assert all(torch.equal(found[name], value) for name, value in clean.items())
    assert not found["out"][~switches["mask"]].any()
    x, switches = draw(dtype=torch.float32, device=DEVICE, **VARIANTS["nothing counts"])
    assert torch.equal(outputs(x, switches, backend="triton")["state"], x["initial_state"])


def second_derivatives(x, switches, backend):
    """The gradient of the sum of squares of the gradients."""
    x = {name: value.detach().requires_grad_() for name, value in x.items()}
    total = sum(y.square().sum() for y in outputs(x, switches, backend=backend).values())
    first = torch.autograd.grad(total, list(x.values()), create_graph=True)
    found = torch.autograd.grad(sum(g.square().sum() for g in first), list(x.values()))
    return dict(zip(x, found, strict=True))


def test_second_derivatives():
    found, wanted = both_ways({"erase": "given", "decay": "any", "T": 7}, torch.float32, second_derivatives)
    assert_close({name: value.double() for name, value in found.items()}, wanted, relative=1e-4)


def test_the_compiler_keeps_the_kernels_as_one_node():
    x, switches = draw(dtype=torch.float32, device=DEVICE, erase="given", decay="any")
    function = torch.compile(lambda x: outputs(x, switches, backend="triton"), fullgraph=True, backend="aot_eager")
    found = gradients(x, switches, function=lambda x, _: function(x))
    assert_close(found, gradients(x, switches, backend="triton"), relative=1e-6)


def test_the_registered_function_keeps_torchs_rules():
    x, _ = draw(dtype=torch.float32, device=DEVICE, T=32, erase="given", decay="any")
    inputs = _for_kernels(_Inputs(*(x.get(name) for name in _Inputs._fields)))
    torch.library.opcheck(_run, [None if y is None else y.requires_grad_() for y in inputs])


def test_a_transform_takes_the_torch_form():
    x, switches = draw(dtype=torch.float32, device=DEVICE)

    def total(q):
        return outputs(x | {"q": q}, switches, backend="triton")["out"].square().sum()

    _, moved = torch.func.jvp(total, (x["q"],), (torch.ones_like(x["q"]),))
    assert moved.item() == pytest.approx(torch.func.grad(total)(x["q"]).sum().item(), rel=1e-4)


def test_what_the_kernels_do_not_take():
    x, _ = draw(B=1, T=2, H=1, K=257, V=2, dtype=torch.float32, device=DEVICE)
    with pytest.raises(
        ValueError, match=r"`backend='triton'` cannot run delta_rule here: .* at most 256 keys per head"
    ):
        delta_rule(**x, backend="triton")
    with pytest.raises(ValueError, match=r"compute in float32 and do not take torch\.float64"):
        delta_rule(**{name: value.double() for name, value in x.items()}, backend="triton")
