"""What does a measurement of each probe cost? Seconds, and training steps that take as long.

    python benchmarks/probe_cost.py [--probes Linear ...] [--batches 8] [--out FILE]

The model is that of the quickstart (`TPRRNN` on `StoryWorld`, batches of 32), untrained, for a measurement's cost does
not depend on what was learned; every probe has its own default settings and `--batches` batches of the validation set.
A training step is loss, backward and TFNadam. Processor time on one thread, each probe once, libraries loaded before.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import results_file, write_results
from torch import Tensor

import algornn
from algornn.datamodules import StoryWorld
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
    Probe,
    RepresentationSimilarityProbe,
    ReuseProbe,
    TensorProductProbe,
    TopographicSimilarityProbe,
    TreeReconstructionProbe,
    WeightMaskProbe,
)

ANSWER = "model.output:input"  # what is read from the memory
STEPS = 20  # of training that are timed


class SameAnswer:
    """A causal model of one variable: the answer, whatever the story."""

    def variable(self, batch: Any) -> Tensor:
        """The answer's id."""
        return batch.answer

    def counterfactual(self, base: Any, source: Any) -> Tensor:
        """The source's answer."""
        return source.answer


def question(batch: Any) -> Tensor:
    """The words of the question ``[B, W]``."""
    return batch.query


def asked(batch: Any) -> Tensor:
    """The last three words of the question ``[B, 3]``, as factors."""
    return batch.query[:, -3:]


def first_word(batch: Any) -> Tensor:
    """The first word of the question, as a function's name."""
    return batch.query[:, 0]


def left_branching(batch: Any) -> list[Any]:
    """The words of the question, one after the other."""
    trees = []
    for words in batch.query.tolist():
        tree: Any = words[0]
        for word in words[1:]:
            tree = (tree, word)
        trees.append(tree)
    return trees


def other_question(batch: Any) -> Any:
    """The same stories with the next example's question."""
    return batch._replace(query=batch.query.roll(1, 0), answer=batch.answer.roll(1, 0))


PROBES: dict[type[Probe], dict[str, Any]] = {
    WeightMaskProbe: {},
    ClusterabilityProbe: {},
    ModuleUsageProbe: {"site": "model.output", "softmax": True},
    ReuseProbe: {"sites": [ANSWER], "label": "answer"},
    LinearDecodingProbe: {"sites": [ANSWER], "label": "answer"},
    RepresentationSimilarityProbe: {"sites": [ANSWER, "model.output"]},
    TopographicSimilarityProbe: {"meaning": question, "site": ANSWER},
    DisentanglementProbe: {"meaning": question, "site": ANSWER},
    FactorCodeProbe: {"factors": asked, "site": ANSWER},
    TreeReconstructionProbe: {"site": ANSWER, "derivation": left_branching},
    TensorProductProbe: {"site": ANSWER, "fillers": question},
    InterchangeProbe: {"causal_model": SameAnswer(), "site": ANSWER, "dimensions": 8},
    ActivationPatchingProbe: {"corrupt": other_question},
    FunctionCompatibilityProbe: {"site": ANSWER, "function": first_word, "symbol": "answer"},
    GeneralizationGapProbe: {},
    ConsistencyProbe: {"twin": other_question},
    FastWeightProbe: {},
}


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", nargs="*", default=[], help="only probes whose names contain one of these")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=results_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for library in (
        "scipy.stats",
        "scipy.sparse.linalg",
        "sklearn.cluster",
        "sklearn.ensemble",
        "sklearn.linear_model",
    ):
        importlib.import_module(library)
    data = StoryWorld(split="systematic", batch_size=32)
    data.setup("fit")
    learner = algornn.QuestionAnswering(algornn.TPRRNN(data.vocab_size, data.sentence_length))
    batch, loader = next(iter(data.train_dataloader())), data.val_dataloader()
    optimizer = algornn.TFNadam(learner.parameters())

    def step() -> None:
        optimizer.zero_grad()
        learner.loss(learner.model, batch).backward()
        optimizer.step()

    step()
    one = statistics.median(seconds(step) for _ in range(STEPS))
    print(f"a training step: {1e3 * one:.1f} ms\n\n| probe | seconds | training steps |\n|---|---:|---:|", flush=True)
    rows: list[dict[str, Any]] = []
    for kind, settings in PROBES.items():
        if args.probes and not any(part in kind.__name__ for part in args.probes):
            continue
        probe = kind(**settings, max_batches=args.batches)
        cost = seconds(functools.partial(probe.run, learner, loader))
        rows.append({"probe": kind.__name__, "seconds": cost, "training_steps": cost / one, "batches": args.batches})
        print(f"| `{kind.__name__}` | {cost:.2f} | {cost / one:,.0f} |", flush=True)
        write_results(args.out, rows)


if __name__ == "__main__":
    main()
