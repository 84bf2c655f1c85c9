"""Random inputs of `delta_rule`, and what comes out of it."""

import torch
from hypothesis import strategies as st
from memory_cases import mask_of

from algornn.triton_kernels.delta_rule import delta_rule

TOKENWISE = ("q", "k", "v", "beta", "decay", "erase")

erase_kinds = st.sampled_from(["none", "false", "given"])
decay_kinds = st.sampled_from(["none", "any", "zeros"])
mask_kinds = st.sampled_from(["none", "prefix", "holes", "one row", "all"])
cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "B": st.sampled_from([0, 1, 2, 3]),
        "T": st.sampled_from([0, 1, 2, 3, 5, 9]),
        "H": st.sampled_from([1, 2, 3]),
        "K": st.sampled_from([1, 3, 4]),
        "V": st.sampled_from([1, 2, 5]),
        "erase": erase_kinds,
        "beta": st.booleans(),
        "decay": decay_kinds,
        "initial": st.booleans(),
        "mask": mask_kinds,
    }
)


def draw(
    seed=0, B=2, T=5, H=2, K=3, V=4, erase="none", beta=True, decay="none", initial=True, mask="none",
    dtype=torch.float64, device="cpu",
):  # fmt: skip
    """Named inputs (keys of about unit length, so that float64 can tell 1e-10), and the switches."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(std).to(device, dtype)

    x = {"q": normal(B, T, H, K), "k": normal(B, T, H, K, std=K**-0.5), "v": normal(B, T, H, V)}
    if erase == "given":
        x["erase"] = normal(B, T, H, K, std=K**-0.5)
    if beta:
        x["beta"] = normal(B, T, H)
    if decay != "none":
        x["decay"] = normal(B, T, H)
    if decay == "zeros" and T:
        x["decay"][:, ::2] = 0
    if initial:
        x["initial_state"] = normal(B, H, K, V)
    mask = mask_of(mask, B, T, generator)
    return x, {"erase": erase, "mask": None if mask is None else mask.to(device)}


def outputs(x, switches, **how):
    """Outputs and final state of named inputs."""
    if switches["erase"] == "false":
        x = x | {"erase": False}
    out, state = delta_rule(**x, mask=switches["mask"], **how)
    return {"out": out, "state": state}


def gradients(x, switches, function=outputs, **how):
    """The outputs, and the gradients of every input for fixed cotangents on all of them."""
    x = {name: value.detach().requires_grad_() for name, value in x.items()}
    out = function(x, switches, **how)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in out.values()]
    total = sum((y * dy).sum() for y, dy in zip(out.values(), cotangents, strict=True))
    found = torch.autograd.grad(total, list(x.values()), allow_unused=True)
    grads = {
        f"gradient of {name}": torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(x.items(), found, strict=True)
    }
    return {name: y.detach() for name, y in out.items()} | grads
