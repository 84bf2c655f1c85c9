"""Any model (recurrent, checkpointed, compiled, with an output class) is probed and left as it was."""

import random
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from algornn.probes import (
    LinearDecodingProbe,
    RepresentationSimilarityProbe,
    ReuseProbe,
    TensorProductProbe,
    WeightMaskProbe,
    plots,
)
from algornn.probes.batches import Batches
from algornn.probes.model_copy import copy_of
from algornn.probes.subject import Subject, cross_entropy


class Recurrent(nn.Module):
    """nn.LSTM, whose output is a nested tuple, and a cell that is called once per token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.cell = nn.GRUCell(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        y, _ = self.lstm(self.embedding(x))
        h = y.new_zeros(len(x), 12)
        for t in range(x.shape[1]):
            h = self.cell(y[:, t], h)
        return self.head(h)


class Checkpointed(Recurrent):
    """The same with its cell under gradient checkpointing."""

    def forward(self, x):
        y, _ = self.lstm(self.embedding(x))
        h = y.new_zeros(len(x), 12)
        for t in range(x.shape[1]):
            h = checkpoint(self.cell, y[:, t], h, use_reentrant=False)
        return self.head(h)


def recurrent():
    return Recurrent(), None, ["lstm[0]", "cell@:", "cell@2", "lstm[1][0][-1]"]


def checkpointed():
    return Checkpointed(), None, ["cell@-1", "head:input"]


def compiled():
    return torch.compile(Recurrent(), backend="eager"), None, ["lstm[0]", "cell@-1"]


def story_reader():
    import algornn

    def loss(call, batch):
        x, y = batch
        return F.cross_entropy(call(x.unflatten(1, (2, 3)), x[:, :3]), y)

    return algornn.TPRRNN(50, 3, entity_size=6, role_size=4, hidden_size=8), loss, ["encoder@0", "encoder@1"]


def language_model():
    transformers = pytest.importorskip("transformers", reason="GPT-2 comes from the package transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )

    def loss(call, batch):
        x, y = batch
        return F.cross_entropy(call(x).logits[:, -1, :3], y)

    return transformers.GPT2LMHeadModel(config), loss, ["transformer.h.0", "[logits]", "transformer[last_hidden_state]"]


def image_model():
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"ResNet-18 comes from torchvision, which cannot be imported here: {error}")

    def loss(call, batch):
        x, y = batch
        return F.cross_entropy(call(x.float()[:, None, None].expand(-1, 3, 33, -1)), y)

    return resnet18(num_classes=3), loss, ["layer1", "layer4.1.bn2", "avgpool"]


MODELS = [recurrent, checkpointed, compiled, story_reader, language_model, image_model]


def batches():
    generator = torch.Generator().manual_seed(2)
    x = [torch.randint(50, (10, 6), generator=generator) for _ in range(4)]
    return [(tokens, tokens[:, 0] % 3) for tokens in x]


def everything(model):
    """What a probe may not touch."""
    modules = list(model.modules())
    return [
        [value.clone() for value in model.state_dict().values()],
        [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [module.training for module in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
        [sorted(vars(module)) for module in modules],
        [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()],  # noqa: NPY002
    ]


def check(make, probe_of):
    """Run a probe on a model twice: it gives numbers, the same ones, and leaves nothing behind."""
    torch.manual_seed(0)
    model, loss, sites = make()
    model.train()
    before = everything(model)
    result = probe_of(loss, sites).run(model, batches())
    again = probe_of(loss, sites).run(model, batches())
    after = everything(model)
    for a, b in zip(before[0], after[0], strict=True):
        assert torch.equal(a, b)
    assert before[1:] == after[1:]
    assert result.scalars
    assert result.to_json() == again.to_json()
    return result


class Stateful(Recurrent):
    """Keeps its state between forwards in every way that there is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))
        self.mean = None

    def forward(self, x):
        y = super().forward(x) + self.calls + self.last + (0 if self.mean is None else self.mean)
        self.calls += 1
        self.last = y[0].detach()
        self.mean = y.detach().mean(0)
        return y


def test_an_item_does_not_depend_on_what_its_process_did_before():
    model, data = Stateful().eval(), batches()
    device = torch.device("cpu")

    def outputs(items):
        subject = Subject(copy_of(model), Batches.of(data, None, 0, device), cross_entropy, device, torch.Generator())
        twice = [subject.map(lambda i, _: subject.forward(data[i]), items) for _ in range(2)]
        assert all(map(torch.equal, *twice))
        return twice[0]

    for one, alone in zip(outputs([0, 1, 2, 3]), [outputs([i])[0] for i in range(4)], strict=True):
        assert torch.equal(one, alone)


each_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


@each_model
def test_decoding(make):
    check(make, lambda loss, sites: LinearDecodingProbe(sites=sites, label=lambda batch: batch[1], loss=loss))


@each_model
def test_similarity(make):
    check(make, lambda loss, sites: RepresentationSimilarityProbe(sites=sites, loss=loss))


@each_model
def test_weight_masks(make):
    check(make, lambda loss, sites: WeightMaskProbe(tasks={"all": batches()}, steps=2, loss=loss))


@each_model
def test_tensor_products(make):
    def probe(loss, sites):
        return TensorProductProbe(sites[-1], lambda batch: batch[0], loss=loss, permutations=1, substitute=False)

    check(make, probe)


def test_the_examples_of_the_documentation(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "probes.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = (LinearDecodingProbe, NamedTuple, Path, ReuseProbe, plots, torch.Tensor, nn)
    found = {getattr(name, "__name__", "").rpartition(".")[2]: name for name in names}
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50, (4, 32, 6), generator=generator)
    found |= {"model": Recurrent(), "loader": list(zip(x, x[..., 0] % 3, strict=True))}
    monkeypatch.chdir(tmp_path)
    for example in examples[2:]:  # the first ones are about calls alone
        exec(compile(example, str(page), "exec"), found)
    assert (tmp_path / "accuracy.png").is_file()
    assert (tmp_path / "mine/probes/linear_decoding/step=0.json").is_file()
    assert "gradient_cosine" in found["result"].scalars
    result = found["StateMotionProbe"]("lstm[0]").run(found["model"], found["loader"])
    assert result.scalars["network"] > 0
    assert len(result.figures["motion"]["series"]["scrambled"]) == 5
