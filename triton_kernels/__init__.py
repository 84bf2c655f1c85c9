"""Operators: the recurrences of fast-weight memories as functions of tensors.

Each operator is one file with its equation, its reference loop and its fast forms; `arguments` holds what all share.
"""

from algornn.triton_kernels.tensor_memory import TensorMemory, tensor_memory

__all__ = ["TensorMemory", "tensor_memory"]
