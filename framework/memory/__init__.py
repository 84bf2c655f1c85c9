"""Memories: modules that own fast weights, one file per family."""

from algornn.memory.tensor_product import Associations, MLPHeads, TensorProductMemory

__all__ = ["Associations", "MLPHeads", "TensorProductMemory"]
