"""Random inputs of `tensor_memory`, what comes out of it, and how far two such outcomes are apart."""

import shutil

import pytest
import torch
from hypothesis import strategies as st

from algornn.triton_kernels import tensor_memory

# What torch.compile ends in: inductor generates C++, and takes seconds to compile it.
has_cpp = shutil.which("g++") or shutil.which("clang++")
cpp_is_slow = [pytest.mark.slow, pytest.mark.skipif(not has_cpp, reason="neither g++ nor clang++ is on the path")]
compilers = pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=cpp_is_slow)])

QUERIES = 2  # reads of the final state per example
SWITCHES = ("clamp", "chunk", "backend", "erase_kind")

erase_kinds = st.sampled_from(["none", "false", "given", "shared entity"])
decay_kinds = st.sampled_from(["none", "any", "zeros"])
mask_kinds = st.sampled_from(["none", "prefix", "holes", "one row", "all"])
cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "B": st.sampled_from([0, 1, 2, 3]),
        "T": st.sampled_from([0, 1, 2, 3, 5, 7]),
        "M": st.integers(1, 4),
        "E": st.sampled_from([1, 3, 5]),
        "R": st.sampled_from([1, 2, 3]),
        "V": st.sampled_from([1, 4, 5]),
        "erase": erase_kinds,
        "beta": st.booleans(),
        "decay": decay_kinds,
        "clamp": st.booleans(),
        "initial": st.booleans(),
        "mask": mask_kinds,
        "scale": st.sampled_from([0.1, 1.0]),
    }
)


def mask_of(kind, B, T, generator=None):
    if kind == "none":
        return None
    mask = torch.rand(B, T, generator=generator) < 0.6
    if kind == "prefix":
        return torch.arange(T) < torch.randint(0, T + 1, (B, 1), generator=generator)
    if kind == "one row":
        mask[:1] = False
    return torch.zeros(B, T, dtype=torch.bool) if kind == "all" else mask


def draw(
    seed=0, B=2, T=5, M=2, E=3, R=2, V=4, erase="none", beta=True, decay="none", clamp=False, initial=True,
    mask="none", scale=1.0, dtype=torch.float64,
):  # fmt: skip
    """Named inputs (keys of about unit length, so that float64 can tell 1e-10), and the switches."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(std).to(dtype)

    x = {"e": normal(B, T, M, E, std=E**-0.5), "r": normal(B, T, M, R, std=R**-0.5), "v": normal(B, T, M, V, std=scale)}
    if erase == "given":
        x |= {"erase_e": normal(B, T, M, E, std=E**-0.5)}
    if erase in ("given", "shared entity"):
        x |= {"erase_r": normal(B, T, M, R, std=R**-0.5)}
    if beta:
        x["beta"] = normal(B, T, M)
    if decay != "none":
        x["decay"] = normal(B, T)
    if decay == "zeros" and T:
        x["decay"][:, ::2] = 0
    if initial:
        x["state"] = normal(B, E, R, V, std=scale)
    x |= {"read_e": normal(B, QUERIES, E), "read_r": normal(B, QUERIES, R)}
    x |= {"causal_e": normal(B, T, E), "causal_r": normal(B, T, R)}
    return x, {"erase_kind": erase, "clamp": clamp, "mask": mask_of(mask, B, T, generator)}


def run(x, erase_kind="none", clamp=False, mask=None, **how):
    """The trace of named inputs."""
    erase = {"none": None, "false": False}.get(erase_kind, (x.get("erase_e", x["e"]), x.get("erase_r")))
    return tensor_memory(
        write=(x["e"], x["r"]), values=x["v"], erase=erase, beta=x.get("beta"), decay=x.get("decay"), clamp=clamp,
        initial_state=x.get("state"), mask=mask, **how,
    )  # fmt: skip


def outputs(x, switches, **how):
    """All that a trace can say: reads of the final state, causal reads, the state."""
    memory = run(x, **switches, **how)
    return {
        "read": memory.read(x["read_e"], x["read_r"]),
        "causal": memory.read(x["causal_e"], x["causal_r"], causal=True),
        "final": memory.state,
    }


def gradients(x, switches, function=outputs, **how):
    """The outputs, and the gradients of every input for fixed cotangents on all of them."""
    x = {name: value.detach().requires_grad_() for name, value in x.items()}
    out = function(x, switches, **how)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in out.values()]
    total = sum((y * dy).sum() for y, dy in zip(out.values(), cotangents, strict=True))
    found = torch.autograd.grad(total, list(x.values()), allow_unused=True)
    grads = {
        f"gradient of {name}": torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(x.items(), found, strict=True)
    }
    return {name: y.detach() for name, y in out.items()} | grads


def assert_close(found, wanted, relative=1e-10):
    """Every tensor within `relative` of the largest entry (plus float64's own rounding of entries of size 1)."""
    assert found.keys() == wanted.keys()
    for name, y in wanted.items():
        assert found[name].shape == y.shape, name
        assert found[name].isfinite().all(), name
        if y.numel():
            error = float((found[name] - y).abs().max())
            assert error <= relative * float(y.abs().max()) + 1e-14, f"{name}: off by {error}"
