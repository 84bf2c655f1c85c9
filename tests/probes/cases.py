"""One row per probe: small settings with which it can measure the learner of tiny_learner."""

from tiny_learner import MeanLoss

from algornn.probes import (
    ActivationPatchingProbe,
    ClusterabilityProbe,
    ConsistencyProbe,
    DisentanglementProbe,
    FactorCodeProbe,
    FastWeightProbe,
    FunctionCompatibilityProbe,
    GeneralizationGapProbe,
    InterchangeProbe,
    LinearDecodingProbe,
    ModuleUsageProbe,
    RepresentationSimilarityProbe,
    ReuseProbe,
    TensorProductProbe,
    TopographicSimilarityProbe,
    TreeReconstructionProbe,
    WeightMaskProbe,
)


class FirstWord:
    """A causal model of the task: the label is the first word modulo 3."""

    def variable(self, batch):
        return batch.x[:, 0] % 3

    def counterfactual(self, base, source):
        return self.variable(source)


def first_two(batch):
    return batch.x[:, :2]


def left_branching(batch):
    return [tuple(row) for row in batch.x.tolist()]


CASES = {
    MeanLoss: {},
    ActivationPatchingProbe: {"corrupt": lambda batch: batch._replace(x=batch.x.flip(0), y=batch.y.flip(0))},
    ClusterabilityProbe: {"clusters": 3, "shuffles": 3, "restarts": 2},
    ConsistencyProbe: {"twin": lambda batch: batch._replace(x=batch.x.flip(1))},
    DisentanglementProbe: {"meaning": "x", "site": "memory", "permutations": 5, "resamples": 5},
    FactorCodeProbe: {
        "factors": first_two, "site": "memory", "classifier": "forest", "trees": 1, "resamples": 2, "max_batches": 2,
    },
    FastWeightProbe: {},
    FunctionCompatibilityProbe: {"site": "head:input", "function": lambda batch: batch.x[:, 1], "symbol": "y"},
    GeneralizationGapProbe: {"ood": ["third"]},
    InterchangeProbe: {"causal_model": FirstWord(), "site": "memory", "dimensions": 2, "steps": 3, "blocks": 4},
    LinearDecodingProbe: {"sites": ["memory", "memory.embedding"], "portions": (0.2, 1), "max_batches": 3},
    ModuleUsageProbe: {"site": "head", "softmax": True},
    RepresentationSimilarityProbe: {"sites": ["memory", "memory.embedding"], "permutations": 3, "max_batches": 3},
    ReuseProbe: {"sites": ["memory"], "label": "y", "target": "y"},
    TensorProductProbe: {"site": "memory", "fillers": "x", "permutations": 2},
    TopographicSimilarityProbe: {"meaning": "x", "site": "memory.embedding", "permutations": 5, "resamples": 5},
    TreeReconstructionProbe: {
        "site": "memory", "derivation": left_branching, "composition": "mlp", "steps": 3, "permutations": 2,
    },
    WeightMaskProbe: {"steps": 3, "repeats": 2},
}  # fmt: skip
