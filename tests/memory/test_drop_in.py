"""The example of the documentation with every memory: a layer of a user's own network, trained by the user's loop."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from algornn import (
    LSTM,
    DeltaDelta,
    DeltaLSTM,
    DeltaMLP,
    DeltaNet,
    DeltaRNN,
    FastWeightBlocks,
    FastWeightMemory,
    FastWeightsRNN,
    GatedFastWeights,
    LinearTransformer,
    MemoryAugmentedLSTM,
    RecurrentDeltaNet,
    SelfReferentialMatrix,
    TensorProductMemory,
)


class OnSmallInputs(TensorProductMemory):
    """Its keys are not normalised: inputs of unit variance would make it expand."""

    def forward(self, x, state=None, mask=None):
        return super().forward(0.1 * x, state, mask)


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADS = (LinearTransformer, DeltaNet, DeltaRNN, DeltaLSTM, DeltaMLP, DeltaDelta, RecurrentDeltaNet)
MEMORIES = {
    **{cls.__name__: partial(cls, 16, heads=4) for cls in (*HEADS, SelfReferentialMatrix)},
    "FastWeightMemory": partial(FastWeightMemory, 16, 8, 8),
    "FastWeightsRNN": partial(FastWeightsRNN, 16, 16),
    "GatedFastWeights": partial(GatedFastWeights, 16, 16),
    "TensorProductMemory": partial(OnSmallInputs, 16, 16, 4),
    "LSTM": partial(LSTM, 16, 16),
    "MemoryAugmentedLSTM": partial(MemoryAugmentedLSTM, 16, 16, memory=partial(FastWeightMemory, role_size=8)),
    "FastWeightBlocks": partial(FastWeightBlocks, 16, memory=partial(DeltaNet, heads=4), blocks=2),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_example_of_the_documentation(name):
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    chosen = example.replace("DeltaNet(16, heads=4)", "memory()")
    assert chosen != example
    losses = []
    for seed in range(
        3
    ):  # 80 steps are few: from an unlucky start, another one on every processor, a memory needs more
        torch.manual_seed(seed)
        found = {"memory": MEMORIES[name]}
        exec(compile(chosen, str(PAGE), "exec"), found)
        losses.append(float(found["loss"]))
        if losses[-1] < 0.5:  # without a memory 0.59 at best
            return
    raise AssertionError(f"no start of three learned the task: {losses}")
