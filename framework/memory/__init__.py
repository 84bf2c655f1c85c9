"""Memories: modules that own fast weights, one file per family.

Every sequence layer is called alike: ``forward(x, state=None, mask=None) -> (y, state)``, batch first.
"""

from algornn.memory.associations import Associations
from algornn.memory.attention_decomposition import AttentionDecomposition, SlotComponents
from algornn.memory.delta_mlp import DeltaDelta, DeltaMLP
from algornn.memory.delta_rnn import DeltaLSTM, DeltaRNN
from algornn.memory.fast_weight_memory import FastWeightMemory
from algornn.memory.fast_weights_rnn import FastWeightsRNN
from algornn.memory.feature_maps import DPFP, FAVOR, EluPlusOne, SoftmaxFeatures
from algornn.memory.gated_fast_weights import GatedFastWeights
from algornn.memory.linear_transformer import DeltaNet, LinearTransformer
from algornn.memory.recurrent_delta import RecurrentDeltaNet
from algornn.memory.self_referential import SelfReferentialMatrix
from algornn.memory.tensor_product import MLPHeads, TensorProductMemory

__all__ = [
    "DPFP",
    "FAVOR",
    "Associations",
    "AttentionDecomposition",
    "DeltaDelta",
    "DeltaLSTM",
    "DeltaMLP",
    "DeltaNet",
    "DeltaRNN",
    "EluPlusOne",
    "FastWeightMemory",
    "FastWeightsRNN",
    "GatedFastWeights",
    "LinearTransformer",
    "MLPHeads",
    "RecurrentDeltaNet",
    "SelfReferentialMatrix",
    "SlotComponents",
    "SoftmaxFeatures",
    "TensorProductMemory",
]
