"""Probes: questions asked of any model, during training or after, that leave the training untouched."""

from algornn.probes.clusterability import ClusterabilityProbe
from algornn.probes.fast_weights import FastWeightProbe, OwnsFastWeights
from algornn.probes.module_usage import ModuleUsageProbe
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.reuse import ReuseProbe
from algornn.probes.subject import Subject
from algornn.probes.weight_masks import WeightMaskProbe

__all__ = [
    "ClusterabilityProbe",
    "FastWeightProbe",
    "ModuleUsageProbe",
    "OwnsFastWeights",
    "Probe",
    "ProbeResult",
    "ReuseProbe",
    "Subject",
    "WeightMaskProbe",
]
