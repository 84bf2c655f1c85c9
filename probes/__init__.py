"""Probes: questions asked of any model, during training or after, that leave the training untouched."""

from algornn.probes.disentanglement import DisentanglementProbe
from algornn.probes.factor_codes import FactorCodeProbe
from algornn.probes.fast_weights import FastWeightProbe, OwnsFastWeights
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.subject import Subject
from algornn.probes.tensor_product import TensorProductProbe
from algornn.probes.topographic import TopographicSimilarityProbe
from algornn.probes.tree_reconstruction import TreeReconstructionProbe
from algornn.probes.weight_masks import WeightMaskProbe

__all__ = [
    "DisentanglementProbe",
    "FactorCodeProbe",
    "FastWeightProbe",
    "OwnsFastWeights",
    "Probe",
    "ProbeResult",
    "Subject",
    "TensorProductProbe",
    "TopographicSimilarityProbe",
    "TreeReconstructionProbe",
    "WeightMaskProbe",
]
