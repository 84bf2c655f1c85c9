"""Probes: questions asked of any model, during training or after, that leave the training untouched."""

from algornn.probes.clusterability import ClusterabilityProbe
from algornn.probes.compatibility import FunctionCompatibilityProbe
from algornn.probes.consistency import ConsistencyProbe
from algornn.probes.decoding import LinearDecodingProbe
from algornn.probes.disentanglement import DisentanglementProbe
from algornn.probes.factor_codes import FactorCodeProbe
from algornn.probes.fast_weights import FastWeightProbe, OwnsFastWeights
from algornn.probes.generalization import GeneralizationGapProbe
from algornn.probes.interchange import InterchangeProbe
from algornn.probes.module_usage import ModuleUsageProbe
from algornn.probes.patching import ActivationPatchingProbe
from algornn.probes.probe import Probe
from algornn.probes.result import ProbeResult
from algornn.probes.reuse import ReuseProbe
from algornn.probes.similarity import RepresentationSimilarityProbe
from algornn.probes.subject import Subject
from algornn.probes.tensor_product import TensorProductProbe
from algornn.probes.topographic import TopographicSimilarityProbe
from algornn.probes.tree_reconstruction import TreeReconstructionProbe
from algornn.probes.weight_masks import WeightMaskProbe

__all__ = [
    "ActivationPatchingProbe",
    "ClusterabilityProbe",
    "ConsistencyProbe",
    "DisentanglementProbe",
    "FactorCodeProbe",
    "FastWeightProbe",
    "FunctionCompatibilityProbe",
    "GeneralizationGapProbe",
    "InterchangeProbe",
    "LinearDecodingProbe",
    "ModuleUsageProbe",
    "OwnsFastWeights",
    "Probe",
    "ProbeResult",
    "RepresentationSimilarityProbe",
    "ReuseProbe",
    "Subject",
    "TensorProductProbe",
    "TopographicSimilarityProbe",
    "TreeReconstructionProbe",
    "WeightMaskProbe",
]
