"""Operators: the recurrences of fast-weight memories as functions of tensors.

Each operator is one file with its equation, its reference loop and its torch form, and its kernels in
`<operator>_triton.py` beside it. What all share exists once: `arguments` (checks, masks), `chunks` (blocks of tokens),
`dispatch` (which form runs, and how a kernel becomes differentiable).
"""

from algornn.triton_kernels.delta_rnn import delta_rnn
from algornn.triton_kernels.delta_rule import delta_rule
from algornn.triton_kernels.recurrent_delta import recurrent_delta
from algornn.triton_kernels.self_referential import self_referential
from algornn.triton_kernels.tensor_memory import TensorMemory, tensor_memory

__all__ = ["TensorMemory", "delta_rnn", "delta_rule", "recurrent_delta", "self_referential", "tensor_memory"]
