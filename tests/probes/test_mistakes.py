"""What a user gets wrong is one sentence that names the mend, and what cannot be measured is said."""

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from tiny_learner import Batch, Learner, MeanLoss, Rows, loader, train
from torch import nn
from torch.utils.data import TensorDataset

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
    Probe,
    RepresentationSimilarityProbe,
    ReuseProbe,
    TensorProductProbe,
    TopographicSimilarityProbe,
    TreeReconstructionProbe,
    WeightMaskProbe,
)
from algornn.probes.batches import Batches


class Net(nn.Module):
    """A network of two layers, the names of which are no Python names; `kind` of output."""

    def __init__(self, kind="tensor"):
        super().__init__()
        torch.manual_seed(0)
        self.ids = nn.Identity()
        self.heads = nn.ModuleDict({"en-de": nn.Linear(5, 6), "the last": nn.Linear(6, 3)})
        self.kind = kind

    def forward(self, x):
        y = self.heads["the last"](torch.relu(self.heads["en-de"](self.ids(x).float())))
        return {"tensor": y, "tuple": (y,), "dict": {"logits": y}, "none": None}[self.kind]


class Unwrapped(Probe):
    """A probe of one's own that returns its scalars as they are."""

    def measure(self, subject):
        return {"batches": len(subject.loader)}


class FirstWord:
    def variable(self, batch):
        return batch[1]

    def counterfactual(self, base, source):
        return source[1]


class Answer:
    """The label itself is the variable."""

    def variable(self, batch):
        return batch.y

    def counterfactual(self, base, source):
        return source.y


def pairs(shift=0):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randint(0, 5, (8, 5), generator=generator) for _ in range(4)]
    return [(x, x[:, 0] % 3 + shift) for x in xs]


def grouped(group):
    return [Batch(x, y, group(x)) for x, y in pairs()]


def of_batch(call, batch):
    return F.cross_entropy(call(batch.x), batch.y)


def flipped(batch):
    return batch[0].flip(0), batch[1].flip(0)


def masks(**arguments):
    return WeightMaskProbe(**{"tasks": {"a": pairs()}, "steps": 2, **arguments})


class Loader:
    """A loader of one's own, which keeps its data under the name that a DataLoader has for them."""

    dataset = (1, 2, 3)

    def __iter__(self):
        return iter(pairs())


MISTAKES = {
    "no result": (lambda: Unwrapped().run(Net(), pairs()), "Unwrapped.measure must return a ProbeResult.*a dict"),
    "name of the folder above": (lambda: MeanLoss(name=".."), "letters"),
    "name too long": (lambda: MeanLoss(name="a" * 101), "up to 100"),
    "no batches": (lambda: MeanLoss(max_batches=0), "max_batches must be a positive whole number"),
    "batches from behind": (lambda: MeanLoss(max_batches=-1), "max_batches must be a positive whole number"),
    "negative seed": (lambda: MeanLoss(seed=-1), "seed must not be negative"),
    "loss by name": (lambda: MeanLoss(loss="mse"), "function of \\(call, batch\\)"),
    "no module": (lambda: MeanLoss().run(Net, pairs()), "torch.nn.Module"),
    "no loader": (lambda: MeanLoss().run(Net(), 5), "list or a DataLoader, got a int"),
    "a dataset": (lambda: MeanLoss().run(Net(), TensorDataset(*pairs()[0])), "single examples.*DataLoader"),
    "loader used up": (lambda: MeanLoss().run(Net(), iter([])), "used up"),
    "tuple": (lambda: MeanLoss().run(Net("tuple"), pairs()), "output \\(tuple\\).*loss="),
    "dictionary": (lambda: MeanLoss().run(Net("dict"), pairs()), "output \\(dict\\).*loss="),
    "nothing": (lambda: MeanLoss().run(Net("none"), pairs()), "output \\(NoneType\\).*loss="),
    "labels out of range": (lambda: MeanLoss().run(Net(), pairs(5)), "out of bounds.*loss="),
    "loss per example": (
        lambda: masks(loss=lambda call, b: F.cross_entropy(call(b[0]), b[1], reduction="none")).run(Net()),
        "one number, got a tensor \\[8\\]",
    ),
    "text for patterns": (lambda: masks(masked="heads.*"), "write \\['heads.\\*'\\]"),
    "text for tasks": (lambda: masks(tasks="first"), "write \\['first'\\]"),
    "text for sites": (lambda: ReuseProbe(sites="memory"), "write \\['memory'\\]"),
    "text for layers": (lambda: ClusterabilityProbe(layers="head.weight"), "write \\['head.weight'\\]"),
    "task of a mask's name": (lambda: masks(tasks={"control": pairs()}).run(Net()), "another name"),
    "tasks used up": (lambda: masks(tasks={"a": iter(pairs())}), "\\['a'\\] are used up"),
    "set of the name iid": (lambda: GeneralizationGapProbe(ood=["iid"]), "another name"),
    "nothing to corrupt": (lambda: ActivationPatchingProbe("x"), "function of the batch or a mapping"),
    "unknown owner": (lambda: FastWeightProbe(at="memori").run(Learner(), loader(8)), "close names: memory"),
    "site by number": (lambda: LinearDecodingProbe([3], label=1).run(Net(), pairs()), "A site is written"),
    "gradient of ids": (lambda: ActivationPatchingProbe(flipped, ["ids"]).run(Net(), pairs()), "torch.int64.*no grad"),
    "directions of ids": (lambda: InterchangeProbe(FirstWord(), "ids").run(Net(), pairs()), "torch.int64.*direc"),
    "fractions for ids": (lambda: TensorProductProbe("ids", 0).run(Net(), pairs()), "substitute=False"),
    "groups in fractions": (
        lambda: ReuseProbe(loss=of_batch).run(Net(), grouped(lambda x: x[:, 1] / 2)), "whole numbers.*float32",
    ),
    "groups of places": (lambda: ReuseProbe(loss=of_batch).run(Net(), grouped(lambda x: x % 2)), "\\[8, 5\\]"),
    "too few groups": (
        lambda: ReuseProbe(loss=of_batch).run(Net(), grouped(lambda x: x[:3, 0])), "3 numbers for 8 examples",
    ),
    "too few groups of answers": (
        lambda: GeneralizationGapProbe(loss=of_batch).run(Net(), grouped(lambda x: x[:3, 0])), "example, 8, got 3",
    ),
    "a mean for a metric": (
        lambda: ActivationPatchingProbe(flipped, ["heads.en-de"], metric=lambda y, *_: y.mean()).run(Net(), pairs()),
        "one number per pair, \\[8\\], got \\[\\]",
    ),
    "rows of no examples": (lambda: tapped(ReuseProbe, sites=["turned"], loss=of_batch), "must be the batch"),
    "rows to exchange": (
        lambda: tapped(InterchangeProbe, causal_model=Answer(), site="turned", loss=of_batch), "must be the batch",
    ),
    "symbols of numbers": (
        lambda: tapped(DisentanglementProbe, meaning=lambda b: b.x[:, :2], site="number", loss=of_batch), "scores",
    ),
}  # fmt: skip


class Taps(nn.Module):
    """The label in an imaginary part, in one number per example, and in a transposed activation."""

    def __init__(self):
        super().__init__()
        self.imaginary, self.number, self.turned = nn.Identity(), nn.Identity(), nn.Identity()
        self.head = nn.Linear(1, 3)

    def forward(self, x):
        size = (x[:, 0] % 3).float()
        wave = self.imaginary(torch.complex(torch.zeros_like(size), size)[:, None])
        turned = self.turned(wave.imag.expand(-1, 2).T).T
        return self.head(self.number(turned[:, 0])[:, None]) - 3 * (torch.arange(3) - size[:, None]).abs()


def tapped(kind, **arguments):
    return kind(**arguments).run(Taps(), grouped(lambda x: x[:, 1] % 2))


def test_a_complex_activation_counts_with_both_of_its_parts():
    found = tapped(LinearDecodingProbe, sites=["imaginary", "number"], loss=of_batch).scalars
    assert found["accuracy/imaginary"] == found["accuracy/number"] == 1
    alike = tapped(RepresentationSimilarityProbe, sites=["imaginary", "number"], loss=of_batch).scalars
    assert alike["cka"] == pytest.approx(1)


def test_one_number_per_example_is_an_activation():
    found = tapped(InterchangeProbe, causal_model=Answer(), site="number", loss=of_batch, steps=2).scalars
    assert found["full_swap_iia"] == found["iia/axis 0"]
    swapped = {"corrupt": lambda batch: batch._replace(x=batch.x.flip(0), y=batch.y.flip(0)), "loss": of_batch}
    assert "denoising/number" in tapped(ActivationPatchingProbe, sites=["number"], **swapped).scalars
    assert "subspace_overlap" in tapped(ReuseProbe, sites=["number"], loss=of_batch).scalars
    distances = tapped(TopographicSimilarityProbe, meaning="x", site="number", distance="euclidean", loss=of_batch)
    assert "topsim" in distances.scalars


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    make, words = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_loader_of_ones_own_may_have_a_dataset():
    batches = Batches.of(Loader(), None, 0, torch.device("cpu"))
    assert [len(y) for _, y in batches] == [8] * 4


def test_modules_may_have_any_name():
    found = LinearDecodingProbe(["heads.en-de", "heads.the last"], label=1).run(Net(), pairs())
    assert "accuracy/heads.en-de" in found.scalars
    patched = ActivationPatchingProbe(flipped, metric=lambda output, clean, _: output[:, 0] + clean[1] * 0)
    assert "pairs" in patched.run(Net(), pairs()).scalars


def test_negative_groups_have_no_name_of_others():
    class Unnamed(Rows):
        def __getitem__(self, index):
            x, y, group = super().__getitem__(index)
            return x, y, group - 1

    data = loader(24)
    data = torch.utils.data.DataLoader(Unnamed(24), 8, collate_fn=data.collate_fn)
    assert ReuseProbe().run(Learner(), data).tables["tasks"] == ["group -1", "first", "second"]
    rows = GeneralizationGapProbe().run(Learner(), data).tables["sets"]
    assert sorted(row["group"] for row in rows[1:]) == ["first", "group -1", "second"]
    cells = FunctionCompatibilityProbe("head:input", function="y", symbol="y").run(Learner(), data).tables["functions"]
    assert {row["group"] for row in cells} == {"-1", "first", "second"}


def test_masks_learned_on_no_number_say_so():
    found = masks(loss=lambda call, batch: F.cross_entropy(call(batch[0]), batch[1]) * math.nan).run(Net())
    assert "not a finite number while the masks of control, a" in found.failures[0]
    assert not any("finite number" in sentence for sentence in masks().run(Net()).failures)


@pytest.mark.parametrize(
    "probe",
    [
        FactorCodeProbe(lambda batch: batch.x[:, :2], "memory"),
        TensorProductProbe("memory", "x"),
        TreeReconstructionProbe("memory", lambda batch: [tuple(row) for row in batch.x.tolist()]),
        FunctionCompatibilityProbe("memory", function="y", symbol="y"),
    ],
    ids=lambda probe: probe.name,
)
def test_activations_that_are_no_numbers_are_no_silent_result(probe):
    learner = Learner()
    learner.memory.key.weight.data.fill_(math.nan)
    assert probe.run(learner, loader(24)).failures


def test_a_single_example_shows_nothing():
    twins = ConsistencyProbe(twin=lambda batch: batch, unrolled=lambda model, batch: batch.y)
    assert len(twins.run(Learner(), loader(1)).failures) == 2
    assert any(
        "too few examples are held out" in s for s in LinearDecodingProbe(["memory"]).run(Learner(), loader(2)).failures
    )


def test_what_cannot_be_copied_is_named(tmp_path):
    learner = Learner()
    learner.memory.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"memory\.lock cannot be copied"):
        train([MeanLoss()], tmp_path, learner=learner)
