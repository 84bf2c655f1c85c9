"""Every wrong argument of `tensor_memory` ends in one sentence that names it, what was expected and what came."""

import re

import pytest
import torch

from algornn.triton_kernels import tensor_memory

B, T, M, E, R, V = 2, 3, 4, 5, 6, 7
ELSEWHERE = torch.device("meta")  # a device on every machine that is not the CPU


def tensors():
    return {
        "write": (torch.randn(B, T, M, E), torch.randn(B, T, M, R)),
        "values": torch.randn(B, T, M, V),
        "erase": (torch.randn(B, T, M, E), torch.randn(B, T, M, R)),
        "beta": torch.randn(B, T, M),
        "decay": torch.randn(B, T),
        "initial_state": torch.randn(B, E, R, V),
        "mask": torch.ones(B, T, dtype=torch.bool),
    }


DIMS = {
    "write[0]": "[B, T, M, E]",
    "write[1]": "[B=2, T=3, M=4, R]",
    "values": "[B=2, T=3, M=4, V]",
    "erase[0]": "[B=2, T=3, M=4, E=5]",
    "erase[1]": "[B=2, T=3, M=4, R=6]",
    "beta": "[B=2, T=3, M=4]",
    "decay": "[B=2, T=3]",
    "initial_state": "[B=2, E=5, R=6, V=7]",
    "mask": "[B=2, T=3]",
}
each = pytest.mark.parametrize("name", DIMS)


def with_changed(name, change):
    """All arguments, with one of them changed."""
    arguments = tensors()
    root, _, place = name.partition("[")
    if place:
        pair = list(arguments[root])
        pair[int(place[0])] = change(pair[int(place[0])])
        arguments[root] = tuple(pair)
    else:
        arguments[root] = change(arguments[root])
    return arguments


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def test_the_right_arguments_pass():
    assert tensor_memory(**tensors()).state.shape == (B, E, R, V)


@each
def test_wrong_number_of_dimensions(name):
    arguments = with_changed(name, lambda x: x[..., None])
    came = [*with_changed(name, lambda x: x)[name.partition("[")[0]][int(name[-2])].shape] if "[" in name else None
    came = came or [*tensors()[name].shape]
    with raises(ValueError, f"`{name}` must have the shape {DIMS[name]}, got {[*came, 1]}."):
        tensor_memory(**arguments)


@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, axis) for name, dims in DIMS.items() for axis, dim in enumerate(dims[1:-1].split(", ")) if "=" in dim],
)
def test_wrong_size(name, axis):
    arguments = with_changed(name, lambda x: torch.cat([x, x], dim=axis))
    with pytest.raises(ValueError, match=f"^`{re.escape(name)}` must have the shape {re.escape(DIMS[name])}, got "):
        tensor_memory(**arguments)


@each
def test_not_a_tensor(name):
    with pytest.raises(TypeError, match=rf"^`{re.escape(name)}` must be a (boolean )?tensor \[B, .*, got list\.$"):
        tensor_memory(**with_changed(name, lambda x: x.tolist()))


@each
def test_whole_numbers(name):
    if name == "mask":
        message = "`mask` must be a boolean tensor [B, T] (True: the token counts), got torch.int64."
    else:
        message = f"`{name}` must be a floating-point tensor, got torch.int64. Convert it with .float()."
    with raises(TypeError, message):
        tensor_memory(**with_changed(name, lambda x: x.long()))


@pytest.mark.parametrize("name", [name for name in DIMS if name not in ("write[0]", "mask")])
def test_another_dtype(name):
    message = f"`{name}` must have the dtype torch.float32 like the other arguments, got torch.float64."
    with raises(TypeError, message):
        tensor_memory(**with_changed(name, lambda x: x.double()))


@pytest.mark.parametrize("name", [name for name in DIMS if name != "write[0]"])
def test_another_device(name):
    with raises(ValueError, f"`{name}` must be on cpu like the other arguments, got meta."):
        tensor_memory(**with_changed(name, lambda x: x.to(ELSEWHERE)))


def test_a_state_of_half_precision_inputs_is_float32_or_half():
    half = {
        name: value if name == "mask" else tuple(x.half() for x in value) if isinstance(value, tuple) else value.half()
        for name, value in tensors().items()
    }
    for dtype in (torch.float16, torch.float32):
        tensor_memory(**half | {"initial_state": half["initial_state"].to(dtype)})
    message = "`initial_state` must have the dtype torch.float16 or torch.float32 like the other arguments, "
    with raises(TypeError, f"{message}got torch.float64."):
        tensor_memory(**half | {"initial_state": half["initial_state"].double()})


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"write": None}, TypeError, "`write` must be a pair (entities, roles) of tensors, got NoneType."),
        ({"write": False}, TypeError, "`write` must be a pair (entities, roles) of tensors, got bool."),
        ({"write": torch.ones(2, 1)}, TypeError, "`write` must be a pair (entities, roles) of tensors, got Tensor."),
        ({"erase": True}, TypeError, "`erase` must be a pair (entities, roles) of tensors, got bool."),
        ({"erase": (torch.ones(1),)}, TypeError, "`erase` must be a pair (entities, roles) of tensors, got tuple."),
        ({"decay": 0.9}, TypeError, "`decay` must be a tensor [B, T], got float."),
        (
            {"chunk": 0},
            ValueError,
            "`chunk` must be at least 1 token, got 0. Leave it out to have it chosen.",
        ),
        (
            {"chunk": 2.5},
            TypeError,
            "`chunk` must be a whole number of tokens, got 2.5. Leave it out to have it chosen.",
        ),
        (
            {"chunk": "auto"},
            TypeError,
            "`chunk` must be a whole number of tokens, got 'auto'. Leave it out to have it chosen.",
        ),
        (
            {"backend": "tirch"},
            ValueError,
            "`backend` must be one of 'auto', 'triton', 'torch', 'reference', got 'tirch' (did you mean 'torch'?).",
        ),
        ({"backend": None}, ValueError, "`backend` must be one of 'auto', 'triton', 'torch', 'reference', got None."),
    ],
)
def test_other_mistakes(change, kind, message):
    with raises(kind, message):
        tensor_memory(**tensors() | change)


@pytest.mark.parametrize(
    ("e", "r", "causal", "kind", "message"),
    [
        ((B, E + 1), (B, R), False, ValueError, "`e` must have the shape [B=2, E=5], got [2, 6]."),
        ((B, E), (B, R + 1), False, ValueError, "`r` must have the shape [B=2, R=6], got [2, 7]."),
        ((B, 8, E), (B, 9, R), False, ValueError, "`r` must have the shape [B=2, N=8, R=6], got [2, 9, 6]."),
        ((B, 8, E), (B, R), False, ValueError, "`r` must have the shape [B=2, N=8, R=6], got [2, 6]."),
        ((B + 1, E), (B + 1, R), False, ValueError, "`e` must have the shape [B=2, E=5], got [3, 5]."),
        ((B, E), (B, R), True, ValueError, "`e` must have the shape [B=2, T=3, E=5], got [2, 5]."),
        ((B, T + 1, E), (B, T + 1, R), True, ValueError, "`e` must have the shape [B=2, T=3, E=5], got [2, 4, 5]."),
    ],
)
def test_wrong_shapes_of_reads(e, r, causal, kind, message):
    with raises(kind, message):
        tensor_memory(**tensors()).read(torch.randn(e), torch.randn(r), causal)


@pytest.mark.parametrize("name", ["e", "r"])
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            torch.Tensor.double,
            TypeError,
            "must have the dtype torch.float32 like the other arguments, got torch.float64.",
        ),
        (torch.Tensor.long, TypeError, "must be a floating-point tensor, got torch.int64. Convert it with .float()."),
        (lambda x: x.to(ELSEWHERE), ValueError, "must be on cpu like the other arguments, got meta."),
    ],
)
def test_wrong_reads(name, change, kind, message):
    keys = {"e": torch.randn(B, E), "r": torch.randn(B, R)}
    with raises(kind, f"`{name}` {message}"):
        tensor_memory(**tensors()).read(**keys | {name: change(keys[name])})


def test_a_read_of_no_tensor():
    with raises(TypeError, "`e` must be a tensor [B, N, E], got list."):
        tensor_memory(**tensors()).read([1.0], torch.randn(B, R))
