"""Memories: modules that own fast weights, one file per family."""

from algornn.memory.tensor_product import FastWeightTrace, TensorProductMemory

__all__ = ["FastWeightTrace", "TensorProductMemory"]
