"""Every sequence layer, small, by a name: the rows that the contract tests run over."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from algornn import (
    DPFP,
    FAVOR,
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
    SoftmaxFeatures,
    TensorProductMemory,
)

D = 4  # input size; its layers have two heads of two

FWM = {
    "catbabi": {"scale_write": True, "tanh_entity": False, "tanh_roles": True, "residual": False},
    "language_model": {"scale_write": False, "tanh_entity": True, "tanh_roles": True, "residual": True},
    "meta_rl": {"scale_write": True, "tanh_entity": False, "tanh_roles": False, "residual": True},
}


def _favor(cls, size):
    return cls(size, 2, FAVOR(size // 2, 3))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear_transformer": partial(LinearTransformer, heads=2),
    "linear_transformer_sum": partial(LinearTransformer, heads=2, attention_normalization=False),
    "linear_transformer_favor": partial(_favor, LinearTransformer),
    "delta_net": partial(DeltaNet, heads=2),
    "delta_net_gated": partial(DeltaNet, heads=2, gated=True),
    "delta_net_scaled": partial(DeltaNet, heads=2, scaled=True),
    "delta_net_attention": partial(DeltaNet, heads=2, attention_normalization=True),
    "delta_net_attention_dpfp2": partial(DeltaNet, heads=2, attention_normalization=True, feature_map=DPFP(2)),
    "delta_net_gated_attention": partial(DeltaNet, heads=2, gated=True, attention_normalization=True),
    "delta_net_dpfp1": partial(DeltaNet, heads=2, feature_map=DPFP(1)),
    "delta_net_dpfp2": partial(DeltaNet, heads=2, feature_map=DPFP(2)),
    "delta_net_softmax": partial(DeltaNet, heads=2, feature_map=SoftmaxFeatures()),
    "delta_net_favor": partial(_favor, DeltaNet),
    "delta_rnn": partial(DeltaRNN, heads=2),
    "delta_lstm": partial(DeltaLSTM, heads=2),
    "delta_mlp": partial(DeltaMLP, heads=2, depth=2, expansion=2),
    "delta_delta": partial(DeltaDelta, heads=2),
    "recurrent_delta_net": partial(RecurrentDeltaNet, heads=2),
    "self_referential": partial(SelfReferentialMatrix, heads=2),
    **{f"fwm_{name}": partial(FastWeightMemory, entity_size=4, role_size=2, **kind) for name, kind in FWM.items()},
    **{f"fast_weights_rnn_{s}": partial(FastWeightsRNN, hidden_size=5, inner_steps=s) for s in (0, 1, 2)},
    "gated_fast_weights": partial(GatedFastWeights, hidden_size=4, slow_size=3),
    "tensor_product": partial(TensorProductMemory, entity_size=4, role_size=2, hidden_size=3),
    "lstm": partial(LSTM, hidden_size=3, layers=2),
    "gru": partial(GRU, hidden_size=3, layers=2),
    "lstm_forget_bias": partial(LSTM, hidden_size=3, forget_bias=1.0),
    "memory_augmented_lstm": partial(
        MemoryAugmentedLSTM, hidden_size=5, memory=partial(FastWeightMemory, entity_size=4, role_size=2)
    ),
    "decomposed_fwm": partial(DecomposedFastWeightMemory, hidden_size=5, parts=2, part_size=3, slot_size=4),
    "fast_weight_blocks": partial(FastWeightBlocks, memory=partial(DeltaNet, heads=2), blocks=2, feedforward_size=5),
}


def layer_of(name: str, size: int = D, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The layer in evaluation (FAVOR draws its rows anew in training), its parameters off zeros and ones."""
    torch.manual_seed(5)
    layer = LAYERS[name](size).eval().to(dtype)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return layer


def tokens(B: int, T: int, size: int = D, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Inputs of about 0.5, for the tensor-product keys expand on large ones."""
    return 0.5 * torch.randn(B, T, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors(*results) -> list[torch.Tensor]:
    """All tensors of outputs and states, in order."""
    return tree_leaves(results)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted (0 where both are 0)."""
    difference = (found.double() - wanted.double()).norm()
    return (difference / wanted.double().norm().clamp(min=1e-300)).item() if difference else 0.0


def first_state(layer, B):
    """A state that some tokens have left."""
    with torch.no_grad():
        return layer(tokens(B, 3, seed=9))[1]


def gradients(layer, results, inputs):
    """Of a random weighting of all results, for the inputs and all trained parameters (0 for those not used)."""
    generator = torch.Generator().manual_seed(3)
    total = sum((z * torch.randn(z.shape, generator=generator, dtype=z.dtype)).sum() for z in results)
    wanted = [*inputs, *(p for p in layer.parameters() if p.requires_grad)]
    return torch.autograd.grad(total, wanted, materialize_grads=True)


def assert_equal_up_to(found, wanted, bound=1e-10):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < bound
