"""The folder `framework` is the import package `algornn`: recurrent networks that learn algorithms.

Models and learners are exported here, each exactly once; probes, data and operators have a room
of their own: `algornn.probes`, `algornn.datamodules` and `algornn.triton_kernels`.
"""

from algornn.learners import KeyValueRetrieval, LanguageModeling, QuestionAnswering, TFNadam, TokenTagging
from algornn.memory import (
    DPFP,
    FAVOR,
    DeltaDelta,
    DeltaLSTM,
    DeltaMLP,
    DeltaNet,
    DeltaRNN,
    EluPlusOne,
    FastWeightMemory,
    FastWeightsRNN,
    GatedFastWeights,
    LinearTransformer,
    RecurrentDeltaNet,
    SelfReferentialMatrix,
    SoftmaxFeatures,
    TensorProductMemory,
)
from algornn.models import (
    LSTM,
    TPRRNN,
    DecomposedFastWeightMemory,
    FastWeightBlocks,
    GeometricAttention,
    KeyValueRetriever,
    LSTMReader,
    MemoryAugmentedLSTM,
    MultiHeadAttention,
    NeuralDataRouter,
    RelativeAttention,
    TokenNetwork,
    Transformer,
    TransformerSeq2Seq,
    UniversalTransformer,
)
from algornn.run import load

__version__ = "0.1.0"

__all__ = [
    "DPFP",
    "FAVOR",
    "LSTM",
    "TPRRNN",
    "DecomposedFastWeightMemory",
    "DeltaDelta",
    "DeltaLSTM",
    "DeltaMLP",
    "DeltaNet",
    "DeltaRNN",
    "EluPlusOne",
    "FastWeightBlocks",
    "FastWeightMemory",
    "FastWeightsRNN",
    "GatedFastWeights",
    "GeometricAttention",
    "KeyValueRetrieval",
    "KeyValueRetriever",
    "LSTMReader",
    "LanguageModeling",
    "LinearTransformer",
    "MemoryAugmentedLSTM",
    "MultiHeadAttention",
    "NeuralDataRouter",
    "QuestionAnswering",
    "RecurrentDeltaNet",
    "RelativeAttention",
    "SelfReferentialMatrix",
    "SoftmaxFeatures",
    "TFNadam",
    "TensorProductMemory",
    "TokenNetwork",
    "TokenTagging",
    "Transformer",
    "TransformerSeq2Seq",
    "UniversalTransformer",
    "load",
]
