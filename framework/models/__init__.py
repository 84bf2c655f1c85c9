"""Whole networks: story readers, token networks, and their baselines."""

from algornn.models.agents import RecurrentAgent
from algornn.models.attention import GeometricAttention, MultiHeadAttention, RelativeAttention
from algornn.models.feed_forward import FeedForward
from algornn.models.in_context import ConvEncoder, GaussianPosterior, InContextNetwork
from algornn.models.key_value import KeyValueRetriever
from algornn.models.memory_augmented import DecomposedFastWeightMemory, MemoryAugmentedLSTM
from algornn.models.recurrent import GRU, LSTM, BidirectionalLSTM
from algornn.models.seq2seq import Seq2Seq
from algornn.models.sequence_classifier import SequenceClassifier
from algornn.models.story_readers import TPRRNN, LSTMReader, SentenceEncoder
from algornn.models.token_networks import FastWeightBlocks, TokenNetwork
from algornn.models.transformer import NeuralDataRouter, Transformer, UniversalTransformer
from algornn.models.transformer_seq2seq import TransformerSeq2Seq

__all__ = [
    "GRU",
    "LSTM",
    "TPRRNN",
    "BidirectionalLSTM",
    "ConvEncoder",
    "DecomposedFastWeightMemory",
    "FastWeightBlocks",
    "FeedForward",
    "GaussianPosterior",
    "GeometricAttention",
    "InContextNetwork",
    "KeyValueRetriever",
    "LSTMReader",
    "MemoryAugmentedLSTM",
    "MultiHeadAttention",
    "NeuralDataRouter",
    "RecurrentAgent",
    "RelativeAttention",
    "SentenceEncoder",
    "Seq2Seq",
    "SequenceClassifier",
    "TokenNetwork",
    "Transformer",
    "TransformerSeq2Seq",
    "UniversalTransformer",
]
