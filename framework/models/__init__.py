"""Whole networks: story readers, token networks, and their baselines."""

from algornn.models.attention import GeometricAttention, MultiHeadAttention, RelativeAttention
from algornn.models.key_value import KeyValueRetriever
from algornn.models.lstm import LSTM, DecomposedFastWeightMemory, MemoryAugmentedLSTM
from algornn.models.story_readers import TPRRNN, LSTMReader, SentenceEncoder
from algornn.models.token_networks import FastWeightBlocks, TokenNetwork
from algornn.models.transformer import NeuralDataRouter, Transformer, UniversalTransformer
from algornn.models.transformer_seq2seq import TransformerSeq2Seq

__all__ = [
    "LSTM",
    "TPRRNN",
    "DecomposedFastWeightMemory",
    "FastWeightBlocks",
    "GeometricAttention",
    "KeyValueRetriever",
    "LSTMReader",
    "MemoryAugmentedLSTM",
    "MultiHeadAttention",
    "NeuralDataRouter",
    "RelativeAttention",
    "SentenceEncoder",
    "TokenNetwork",
    "Transformer",
    "TransformerSeq2Seq",
    "UniversalTransformer",
]
