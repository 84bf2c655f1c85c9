"""The contract of every sequence layer: ``forward(x, state=None, mask=None) -> (y, state)``.

Carried states, masks, derivatives, compilation, half precision, and no tokens.
"""

import inspect
import os
import socket
from functools import partial

import pytest
import torch
import torch.distributed as dist
from layer_table import LAYERS, D, assert_equal_up_to, first_state, gradients, layer_of, relative_error, tensors, tokens
from torch import nn
from torch.utils._pytree import tree_map

import algornn.memory
from algornn import (
    GRU,
    LSTM,
    DecomposedFastWeightMemory,
    DeltaDelta,
    DeltaLSTM,
    DeltaMLP,
    DeltaNet,
    DeltaRNN,
    FastWeightBlocks,
    FastWeightMemory,
    FastWeightsRNN,
    GatedFastWeights,
    LinearTransformer,
    MemoryAugmentedLSTM,
    RecurrentDeltaNet,
    SelfReferentialMatrix,
    TensorProductMemory,
)

every_layer = pytest.mark.parametrize("name", LAYERS)
MASK = torch.tensor(
    [
        [True, True, True, True, False, False, False],  # padding at the end
        [False, False, True, True, True, True, True],  # and at the start
        [True, False, True, True, False, False, True],  # holes
        [False] * 7,
        [True] * 7,
    ]
)


def in_segments(layer, x, state, cuts):
    ends, outputs = [*cuts, x.shape[1]], []
    for start, end in zip([0, *cuts], ends, strict=True):
        y, state = layer(x[:, start:end].contiguous(), state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def with_grad(state):
    return tree_map(lambda s: s.clone().requires_grad_(), state)


def test_every_exported_sequence_layer_is_in_the_table():
    exported = [getattr(algornn.memory, name) for name in algornn.memory.__all__]
    layers = {
        cls
        for cls in [*exported, GRU, LSTM, DecomposedFastWeightMemory, MemoryAugmentedLSTM, FastWeightBlocks]
        if inspect.isclass(cls)
        and issubclass(cls, nn.Module)
        and list(inspect.signature(cls.forward).parameters) == ["self", "x", "state", "mask"]
    }
    assert layers == {type(build(D)) for build in LAYERS.values()}
    assert len(layers) >= 14


# Carried states.


@every_layer
def test_whole_equals_step_by_step_and_any_cut(name):
    layer, x, T = layer_of(name), tokens(2, 37), 37  # more than one block of the operators
    with torch.no_grad():
        whole = tensors(layer(x))
        for cuts in [range(1, T), *([cut] for cut in range(1, T)), [5, 6, 21]]:
            assert_equal_up_to(tensors(in_segments(layer, x, None, cuts)), whole)


@every_layer
def test_gradients_flow_through_the_carried_state(name):
    layer, x = layer_of(name), tokens(2, 6).requires_grad_()
    state = with_grad(first_state(layer, 2))
    found = []
    for cuts in ([], [1, 2, 3, 4, 5], [4]):
        results = tensors(in_segments(layer, x, state, cuts))
        found.append(gradients(layer, results, [x, *tensors(state)]))
    assert_equal_up_to(found[1], found[0])
    assert_equal_up_to(found[2], found[0])


# Masks.


@every_layer
def test_masked_tokens_are_as_if_they_were_not_there(name):
    layer = layer_of(name)
    state = with_grad(first_state(layer, len(MASK)))
    x = tokens(*MASK.shape).masked_fill(~MASK[..., None], torch.nan).requires_grad_()
    y, final = layer(x, state, MASK)
    assert torch.equal(y[~MASK], torch.zeros_like(y[~MASK]))
    for before, after in zip(tensors(state), tensors(final), strict=True):
        assert torch.equal(before[3], after[3])

    rows = []
    for row, counts in enumerate(MASK):
        own = tree_map(lambda s, row=row: s[row : row + 1], state)
        rows.append((layer(x[row : row + 1, counts], own)) if counts.any() else (x.new_zeros(1, 0, y.shape[-1]), own))
    packed = [torch.cat([row_y[0] for row_y, _ in rows])]
    packed += [torch.cat(parts) for parts in zip(*(tensors(own) for _, own in rows), strict=True)]
    found = [y[MASK], *tensors(final)]
    assert_equal_up_to(found, packed)

    inputs = [x, *tensors(state)]
    masked, wanted = gradients(layer, found, inputs), gradients(layer, packed, inputs)
    assert not masked[0][~MASK].any()
    assert_equal_up_to(masked, wanted)


@every_layer
def test_a_segment_of_masked_tokens_alone_leaves_the_state_bit_identical(name):
    layer = layer_of(name)
    state = first_state(layer, 2)
    x, nothing = torch.full((2, 5, D), torch.nan, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    y, final = layer(x, state, nothing)
    assert not y.any()
    assert all(map(torch.equal, tensors(final), tensors(state)))
    found, wanted = layer(x, None, nothing), layer(x[:, :0])  # the layer's own first state
    assert not found[0].any()
    assert all(map(torch.equal, tensors(found[1]), tensors(wanted[1])))


@every_layer
def test_a_state_of_another_batch_or_layer_is_refused(name):
    layer, x = layer_of(name), tokens(3, 2)
    for wrong in (first_state(layer, 1), first_state(layer_of("delta_delta"), 3) if name != "delta_delta" else (None,)):
        with pytest.raises((ValueError, TypeError), match=r"state(\[\d\])?` must|`W` must"):
            layer(x, wrong)


@every_layer
def test_a_wrong_mask_is_named(name):
    layer, x = layer_of(name), tokens(2, 3)
    with pytest.raises(TypeError, match=r"`mask` must be a boolean tensor \[B, T\]"):
        layer(x, None, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"`mask` must have the shape \[B=2, T=3\], got \[2, 4\]"):
        layer(x, None, torch.ones(2, 4, dtype=torch.bool))


@every_layer
def test_a_wrong_input_is_named(name):
    layer = layer_of(name)
    for wrong in (tokens(2, 3, D + 2), tokens(2, 3)[0]):
        with pytest.raises(ValueError, match=rf"`x` must have the shape \[B, T, D={D}\], got"):
            layer(wrong)
    for wrong in (torch.zeros(2, 3, D, dtype=torch.int64), [1, 2]):
        with pytest.raises(TypeError, match="`x` must be a tensor of floating-point numbers, got"):
            layer(wrong)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        *((partial(layer, D), "heads") for layer in (LinearTransformer, DeltaNet, DeltaRNN, DeltaLSTM, DeltaDelta)),
        *((partial(layer, D), "heads") for layer in (RecurrentDeltaNet, SelfReferentialMatrix, DeltaMLP)),
        *((partial(DeltaMLP, D, heads=2), argument) for argument in ("depth", "expansion")),
        *((partial(FastWeightMemory, D), argument) for argument in ("entity_size", "role_size", "reads")),
        *((partial(TensorProductMemory, D), argument) for argument in ("entity_size", "role_size", "hidden_size")),
        (partial(FastWeightsRNN, D), "hidden_size"),
        *((partial(GatedFastWeights, D), argument) for argument in ("hidden_size", "slow_size")),
        *((partial(DecomposedFastWeightMemory, D), argument) for argument in ("hidden_size", "parts", "slot_size")),
        (partial(FastWeightBlocks, D, partial(DeltaNet, heads=2)), "blocks"),
    ],
)
def test_a_size_that_is_none_is_named(make, argument):
    with pytest.raises(TypeError, match=f"`{argument}` must be a whole number, got 2.0"):
        make(**{argument: 2.0})
    with pytest.raises(ValueError, match=f"`{argument}` must be at least 1, got 0"):
        make(**{argument: 0})


# Derivatives.


@every_layer
def test_gradients_are_those_of_finite_differences(name):
    layer, mask = layer_of(name), torch.tensor([[True, True, True], [True, False, True]])
    names = [n for n, p in layer.named_parameters() if p.requires_grad]
    parameters = [p for p in layer.parameters() if p.requires_grad]
    state = with_grad(first_state(layer, 2))
    count = len(tensors(state))
    structure = torch.utils._pytree.tree_structure(state)

    def run(x, *rest):
        own = torch.utils._pytree.tree_unflatten(list(rest[:count]), structure)
        own_parameters = dict(zip(names, rest[count:], strict=True))
        return tuple(tensors(torch.func.functional_call(layer, own_parameters, (x, own, mask))))

    inputs = (tokens(2, 3).requires_grad_(), *tensors(state), *parameters)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


# Compilation.

WITHOUT_A_MASK = {
    "gru",
    "lstm",
    "lstm_forget_bias",
    "memory_augmented_lstm",
    "decomposed_fwm",
}  # packing needs the lengths on the host
QUICK = {"delta_net_gated", "delta_rnn", "recurrent_delta_net", "self_referential", "gated_fast_weights", "lstm"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS])
def test_compiled_whole_equals_eager(name):
    layer, x = layer_of(name), tokens(2, 3).requires_grad_()
    state = with_grad(first_state(layer, 2))
    mask = None if name in WITHOUT_A_MASK else torch.tensor([[True, False, True], [True, True, False]])
    found = []
    with torch._dynamo.config.patch(allow_rnn=True):  # PyTorch's own LSTM and GRU are one node
        torch._dynamo.reset()
        for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)):
            results = tensors(run(x, state, mask))
            found.append([*results, *gradients(layer, results, [x, *tensors(state)])])
    assert_equal_up_to(found[1], found[0], 1e-12)


# Half precision.

LSTMS = WITHOUT_A_MASK  # PyTorch's LSTM and GRU carry their state in its own precision


def rounded(tree):
    return tree_map(lambda s: s.bfloat16().float(), tree)


def bfloat16_pair(name, tree, dtype):
    """The state in the dtypes in which it is carried: that of `dtype` where an LSTM holds it."""
    if name == "memory_augmented_lstm":
        return tree_map(lambda s: s.to(dtype), tree[0]), tree[1]
    if name == "decomposed_fwm":
        return *(s.to(dtype) for s in tree[:2]), tree[2]
    return tree_map(lambda s: s.to(dtype), tree) if name in LSTMS else tree


@every_layer
@pytest.mark.parametrize("converted", [False, True], ids=["autocast", "converted"])
def test_bfloat16_keeps_the_state_in_float32(name, converted):
    """Outputs and states are within 4 times of what weights rounded to bfloat16 cost in float32 (and 0.2 %).

    The state is float32, holds what bfloat16 cannot, and is carried without a loss: token by token it is the same to
    0.01 %, where a state rounded between tokens is off by 0.1 to 2 %.
    """
    size, T = 8, 64
    layer, x = layer_of(name, size, torch.float32), rounded(tokens(2, T, size, dtype=torch.float32))
    coarse = layer_of(name, size, torch.float32)
    coarse.load_state_dict(rounded(layer.state_dict()))
    dtype = torch.bfloat16 if converted else torch.float32
    with torch.no_grad():
        state = layer(tokens(2, 10, size, seed=7, dtype=torch.float32))[1]
        exact = tensors(layer(x, state))
        cost = [relative_error(a, b) for a, b in zip(tensors(coarse(x, state)), exact, strict=True)]
        layer, x, state = layer.to(dtype), x.to(dtype), bfloat16_pair(name, state, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=not converted):
            found = tensors(layer(x, state))
            carried = tensors(in_segments(layer, x, state, range(1, T)))
    own = [] if name.startswith(("lstm", "gru")) else found[3:] if name in LSTMS else found[1:]
    assert {s.dtype for s in own} <= {torch.float32}
    assert all((s[s != 0] != rounded(s[s != 0])).float().mean() > 0.9 for s in own)
    assert found[0].dtype in (torch.bfloat16, dtype)
    for a, b, unavoidable in zip(found, exact, cost, strict=True):
        assert relative_error(a, b) < 4 * unavoidable + 2e-3
    if name not in LSTMS:
        assert_equal_up_to(carried, found, 1e-4)


@pytest.mark.parametrize("converted", [False, True], ids=["autocast", "converted"])
def test_bfloat16_forgets_no_faster(converted):
    """A decay of 0.99, rounded to bfloat16, is 0.988: a sixth less after 100 tokens."""
    layer, x = layer_of("delta_net_gated", 8, torch.float32), torch.zeros(2, 100, 8)
    with torch.no_grad():
        layer.gate.bias.fill_(-4.6)
        layer.log_rate.zero_()
        state = layer(tokens(2, 4, 8, dtype=torch.float32))[1]
        exact = layer(x, state)[1]
        layer = layer.bfloat16() if converted else layer
        with torch.autocast("cpu", torch.bfloat16, enabled=not converted):
            found = layer(x.bfloat16(), state)[1]
    assert relative_error(found, exact) < 0.02


# Sizes.


@every_layer
def test_one_example_one_token_and_none(name):
    layer, x = layer_of(name), tokens(3, 4)
    many = tensors(layer(x))
    one = tensors(layer(x[:1]))
    assert_equal_up_to(one, [z[:1] for z in many])
    y, state = layer(x[:, :1])
    assert y.shape == (3, 1, many[0].shape[-1])
    for mask in (None, torch.zeros(3, 0, dtype=torch.bool)):
        none, same = layer(x[:, :0], state, mask)
        assert none.shape == (3, 0, y.shape[-1])
        assert all(map(torch.equal, tensors(same), tensors(state)))
        first = layer(x[:, :0], None, mask)[1]
        assert_equal_up_to(tensors(layer(x, first)), many)


# Two processes.


def whole_and_halves(rank, root, port):
    """Train every layer on its half of a batch under DDP, and save the gradients."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name in LAYERS:
        layer = layer_of(name)
        parallel = nn.parallel.DistributedDataParallel(layer, find_unused_parameters=False)
        for seed in (0, 1):  # twice: the second forward is the one that complains about unused parameters
            layer.zero_grad()
            half = slice(2 * rank, 2 * rank + 2)
            y, state = parallel(tokens(4, 5, seed=seed)[half], None, MASK[1:5, :5][half])
            (y.square().mean() + sum(s.square().mean() for s in tensors(state))).backward()
        found[name] = [p.grad for p in layer.parameters() if p.requires_grad]
    torch.save(found, f"{root}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def data_parallel(tmp_path_factory):
    """The gradients that both processes have found, by layer."""
    root = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(whole_and_halves, (str(root), port), nprocs=2)
    return [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(2)]


@every_layer
def test_two_processes_have_the_gradients_of_the_whole_batch(name, data_parallel):
    layer = layer_of(name)
    y, state = layer(tokens(4, 5, seed=1), None, MASK[1:5, :5])
    (y.square().mean() + sum(s.square().mean() for s in tensors(state))).backward()
    wanted = [p.grad for p in layer.parameters() if p.requires_grad]
    for found in data_parallel:
        assert_equal_up_to(found[name], wanted)
