"""The folder `framework` is the import package `algornn`: recurrent networks that learn algorithms.

Models and learners are exported here, each exactly once; probes, data and operators have a room
of their own: `algornn.probes`, `algornn.datamodules` and `algornn.triton_kernels`.
"""

from algornn.learners import QuestionAnswering, TFNadam
from algornn.memory import TensorProductMemory
from algornn.models import TPRRNN, LSTMReader
from algornn.run import load

__version__ = "0.1.0"

__all__ = ["TPRRNN", "LSTMReader", "QuestionAnswering", "TFNadam", "TensorProductMemory", "load"]
