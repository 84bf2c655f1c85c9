"""Random inputs of the three operators that run token by token, what comes out, and how far two outcomes are apart."""

import torch
from hypothesis import strategies as st
from memory_cases import assert_close, mask_of

from algornn.triton_kernels.delta_rnn import delta_rnn
from algornn.triton_kernels.recurrent_delta import recurrent_delta
from algornn.triton_kernels.self_referential import self_referential

__all__ = ["NAMES", "TOKENS", "assert_close", "cases", "draw", "gradients", "mask_of", "outputs", "states"]

OPERATORS = {"delta_rnn": delta_rnn, "recurrent_delta": recurrent_delta, "self_referential": self_referential}
NAMES = tuple(OPERATORS)
TOKENS = ("z", "q", "k", "v", "beta", "x")  # the arguments with a dimension of tokens
FINAL = {"delta_rnn": ("R", "y"), "recurrent_delta": ("W", "y"), "self_referential": ("W",)}

cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "B": st.sampled_from([0, 1, 2, 3]),
        "T": st.sampled_from([0, 1, 2, 3, 7, 18]),
        "H": st.sampled_from([1, 2, 3]),
        "D": st.sampled_from([1, 2, 3, 5, 8]),
        "initial": st.booleans(),
        "mask": st.sampled_from(["none", "prefix", "holes", "one row", "all"]),
        "scale": st.sampled_from([0.1, 1.0, 2.0]),
    }
)


def draw(name, seed=0, B=2, T=5, H=2, D=3, initial=True, mask="none", scale=1.0, dtype=torch.float64):
    """Named inputs of an operator, and its mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=scale):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(std).to(dtype)

    if name == "self_referential":
        x = {"x": normal(B, T, H, D), "W": normal(B, H, D, 3 * D + 4, std=D**-0.5)}
        return x, mask_of(mask, B, T, generator)
    x = {"z" if name == "delta_rnn" else "q": normal(B, T, H, D), "k": normal(B, T, H, D), "v": normal(B, T, H, D)}
    x |= {"beta": normal(B, T, H)}
    if name == "delta_rnn":
        x |= {"k": x["k"].softmax(-1), "beta": 2 * x["beta"].sigmoid()}
    else:
        x |= {R: normal(H, D, D, std=D**-0.5) for R in ("R_q", "R_k", "R_v")} | {"r_beta": normal(H, D)}
    if initial:
        x |= {"state": normal(B, H, D, D), "y": normal(B, H, D)}
    return x, mask_of(mask, B, T, generator)


def outputs(name, x, mask=None, **how):
    """The outputs and the final state by name; `x` may hold the initial state as `state` and `y`."""
    arguments = {key: value for key, value in x.items() if key not in ("state", "y")}
    if name != "self_referential":
        arguments["initial_state"] = (x["state"], x["y"]) if "state" in x else None
    out, final = OPERATORS[name](**arguments, mask=mask, **how)
    final = (final,) if name == "self_referential" else final
    return {"out": out} | {f"final {key}": value for key, value in zip(FINAL[name], final, strict=True)}


def states(name, found):
    """The names under which `draw` gives an initial state, with the final state that `outputs` found."""
    keys = ("W",) if name == "self_referential" else ("state", "y")
    return dict(zip(keys, list(found.values())[1:], strict=True))


def gradients(name, x, mask=None, function=outputs, **how):
    """The outputs, and the gradients of every input for fixed cotangents on all of them."""
    x = {key: value.detach().requires_grad_() for key, value in x.items()}
    out = function(name, x, mask, **how)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in out.values()]
    total = sum((y * dy).sum() for y, dy in zip(out.values(), cotangents, strict=True))
    found = torch.autograd.grad(total, list(x.values()), allow_unused=True)
    grads = {
        f"gradient of {key}": torch.zeros_like(value) if grad is None else grad
        for (key, value), grad in zip(x.items(), found, strict=True)
    }
    return {key: y.detach() for key, y in out.items()} | grads
