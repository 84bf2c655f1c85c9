"""Every wrong argument of a sequential operator ends in one sentence: its name, what was expected and what came."""

import re

import pytest
import torch
from sequential_cases import NAMES, OPERATORS, draw

DIMS = {
    "delta_rnn": {
        "z": "[B, T, H, D]",
        "k": "[B=2, T=5, H=2, D=3]",
        "v": "[B=2, T=5, H=2, D=3]",
        "beta": "[B=2, T=5, H=2]",
        "initial_state[0]": "[B=2, H=2, D=3, D=3]",
        "initial_state[1]": "[B=2, H=2, D=3]",
        "mask": "[B=2, T=5]",
    },
    "recurrent_delta": {
        "q": "[B, T, H, D]",
        "k": "[B=2, T=5, H=2, D=3]",
        "v": "[B=2, T=5, H=2, D=3]",
        "beta": "[B=2, T=5, H=2]",
        "R_q": "[H=2, D=3, D=3]",
        "R_k": "[H=2, D=3, D=3]",
        "R_v": "[H=2, D=3, D=3]",
        "r_beta": "[H=2, D=3]",
        "initial_state[0]": "[B=2, H=2, D=3, D=3]",
        "initial_state[1]": "[B=2, H=2, D=3]",
        "mask": "[B=2, T=5]",
    },
    "self_referential": {"x": "[B, T, H, D]", "W": "[B=2, H=2, D=3, 3D+4=13]", "mask": "[B=2, T=5]"},
}
ALL = [(name, argument) for name in NAMES for argument in DIMS[name]]
every = pytest.mark.parametrize(("name", "argument"), ALL)
later = pytest.mark.parametrize(("name", "argument"), [pair for pair in ALL if pair[1] not in ("z", "q", "x")])


def with_changed(name, argument=None, change=None, dtype=torch.float32):
    """All arguments, one of them changed."""
    x, _ = draw(name, dtype=dtype)
    arguments = {key: value for key, value in x.items() if key not in ("state", "y")}
    arguments["mask"] = torch.ones(2, 5, dtype=torch.bool)
    if "state" in x:
        state = [x["state"], x["y"]]
        if argument and argument.startswith("initial"):
            state[int(argument[-2])] = change(state[int(argument[-2])])
        arguments["initial_state"] = tuple(state)
    if argument in arguments:
        arguments[argument] = change(arguments[argument])
    return arguments


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("name", NAMES)
def test_the_right_arguments_pass(name):
    out, _ = OPERATORS[name](**with_changed(name))
    assert out.shape == (2, 5, 2, 3)


@every
def test_wrong_number_of_dimensions(name, argument):
    came = []
    arguments = with_changed(name, argument, lambda x: came.append([*x.shape, 1]) or x[..., None])
    with raises(ValueError, f"`{argument}` must have the shape {DIMS[name][argument]}, got {came[0]}."):
        OPERATORS[name](**arguments)


@later
def test_wrong_size(name, argument):
    message = f"`{argument}` must have the shape {DIMS[name][argument]}, got "
    for axis in range(DIMS[name][argument].count(",") + 1):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            OPERATORS[name](**with_changed(name, argument, lambda x, axis=axis: torch.cat([x, x], axis)))


@every
def test_not_a_tensor(name, argument):
    with pytest.raises(TypeError, match=rf"^`{re.escape(argument)}` must be a (boolean )?tensor \[.*, got list\.$"):
        OPERATORS[name](**with_changed(name, argument, torch.Tensor.tolist))


@later
def test_another_dtype(name, argument):
    if argument == "mask":
        message = "`mask` must be a boolean tensor [B, T] (True: the token counts), got torch.float64."
    else:
        message = f"`{argument}` must have the dtype torch.float32 like the other arguments, got torch.float64."
    with raises(TypeError, message):
        OPERATORS[name](**with_changed(name, argument, torch.Tensor.double))


@later
def test_another_device(name, argument):
    with raises(ValueError, f"`{argument}` must be on cpu like the other arguments, got meta."):
        OPERATORS[name](**with_changed(name, argument, lambda x: x.to("meta")))


@pytest.mark.parametrize(("name", "letter"), [("delta_rnn", "R"), ("recurrent_delta", "W")])
def test_a_state_that_is_no_pair(name, letter):
    arguments = with_changed(name)
    for state in (arguments["initial_state"][0], (arguments["initial_state"][0],), 1.0):
        message = f"`initial_state` must be a pair ({letter}, y) of tensors, got {type(state).__name__}."
        with raises(TypeError, message):
            OPERATORS[name](**arguments | {"initial_state": state})


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_half_precision_inputs_is_float32_or_half(name):
    states = ["W"] if name == "self_referential" else ["initial_state[0]", "initial_state[1]"]
    for state in states:
        for dtype in (torch.float16, torch.float32):
            OPERATORS[name](**with_changed(name, state, lambda x, dtype=dtype: x.to(dtype), torch.float16))
        message = f"`{state}` must have the dtype torch.float16 or torch.float32 like the other arguments, "
        with raises(TypeError, f"{message}got torch.float64."):
            OPERATORS[name](**with_changed(name, state, torch.Tensor.double, torch.float16))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_backend(name):
    message = "`backend` must be one of 'auto', 'triton', 'torch', 'reference', got 'tirch' (did you mean 'torch'?)."
    with raises(ValueError, message):
        OPERATORS[name](**with_changed(name), backend="tirch")


@pytest.mark.parametrize(("name", "limit"), [("delta_rnn", 128), ("recurrent_delta", 64), ("self_referential", 64)])
def test_kernels_say_which_widths_they_do_not_take(name, limit):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = {key: value.to(device) for key, value in draw(name, T=1, D=limit + 1, initial=False)[0].items()}
    message = (
        f"`backend='triton'` cannot run {name} here: its kernels keep the state in registers and take heads of width "
        f"1 to {limit}, not {limit + 1}. Use backend='auto' or 'torch'."
    )
    with raises(ValueError, message):
        OPERATORS[name](**{key: value.float() for key, value in x.items()}, backend="triton")
