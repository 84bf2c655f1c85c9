"""Whole networks: story readers and their baselines."""

from algornn.models.story_readers import TPRRNN, LSTMReader, SentenceEncoder

__all__ = ["TPRRNN", "LSTMReader", "SentenceEncoder"]
