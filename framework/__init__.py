"""The folder `framework` is the import package `algornn`: recurrent networks that learn algorithms.

Models, learners and meta-learners are exported here, each exactly once; probes, data and operators have a room
of their own: `algornn.probes`, `algornn.datamodules` and `algornn.triton_kernels`.
"""

__version__ = "0.1.0"
