"""Sites: reading and replacing activations of modules that return tuples, classes, and are called again and again."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from algornn.probes.sites import Site, activations, replaced, tensor_sites


class Out(NamedTuple):
    logits: Tensor
    extra: dict


@dataclass
class Classy:
    logits: Tensor


class Net(nn.Module):
    """An embedding, an nn.LSTM, a cell in a loop, and a head whose output is a named tuple."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.cell = nn.GRUCell(5, 6)
        self.head = Head()

    def forward(self, x):
        y, _ = self.lstm(self.embedding(x))
        h = y.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.cell(y[:, t], hx=h)
        return self.head(features=h)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, features):
        z = self.linear(features)
        return Out(z, {"twice": 2 * z, "classy": Classy(z)})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x():
    return torch.arange(1, 9).view(2, 4)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("text", ["", "a.b", "a:input", "a:input[0]", "a[1][0][-1]@2", "a[logits]@-1", "a@:"])
def test_a_sites_text_is_read_and_written(text):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("text", ["a[", "a@x", "a@", "a:b", "a:output", "a@1[0]"])
def test_a_text_that_is_no_site(text):
    with pytest.raises(ValueError, match="A site is written"):
        Site.parse(text)


def test_activations_are_what_the_modules_computed(net, x):
    sites = ["embedding", "lstm[0]", "lstm[1][0][-1]", "cell@:", "cell@-1", "head:input", "head:input[features]",
             "head[logits]", "head[1][twice]", "head[extra][classy][logits]", "[logits]",
             "cell:input[hx]@1", "cell:input[0]@1"]  # fmt: skip
    found = activations(net, sites, lambda: net(x))
    y, (h, _) = net.lstm(net.embedding(x))
    steps, state = [], torch.zeros(2, 6)
    for t in range(4):
        state = net.cell(y[:, t], state)
        steps.append(state)
    expected = {
        "embedding": net.embedding(x), "lstm[0]": y, "lstm[1][0][-1]": h[-1], "cell@:": torch.stack(steps, 1),
        "cell@-1": steps[-1], "head:input": steps[-1], "head:input[features]": steps[-1],
        "head[logits]": net(x).logits, "head[1][twice]": 2 * net(x).logits, "[logits]": net(x).logits,
        "head[extra][classy][logits]": net(x).logits, "cell:input[hx]@1": steps[0], "cell:input[0]@1": y[:, 1],
    }  # fmt: skip
    assert list(found) == sites
    for site, value in expected.items():
        torch.testing.assert_close(found[site], value.detach(), msg=site)
        assert not found[site].requires_grad
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("cel", "no module 'cel'.*cell"),
        ("cell", "called 4 times.*cell@0 to cell@3, or cell@: for all"),
        ("cell@4", "a call that did not happen: there were 4"),
        ("lstm", r"tuple and no tensor.*lstm\[0\], lstm\[1\]\[0\], lstm\[1\]\[1\]"),
        ("head[logit]", r"no slot \[logit\]"),
        ("lstm[2]", r"no slot \[2\]"),
    ],
)
def test_a_site_that_is_not_there(net, x, site, words):
    with pytest.raises(ValueError, match=words):
        activations(net, [site], lambda: net(x))
    assert hooks(net) == 0


def test_a_module_that_is_not_called(net, x):
    net.idle = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="not called"):
        activations(net, ["idle"], lambda: net(x))


@pytest.mark.parametrize(
    "site",
    ["embedding", "lstm[0]", "cell@2", "head:input", "head:input[features]", "head[logits]", "cell:input[hx]@1"],
)
def test_replacing_by_the_same_changes_nothing_and_by_another_does(net, x, site):
    before = net(x).logits
    with replaced(net, {site: lambda h: h.clone()}):
        assert torch.equal(net(x).logits, before)
    with replaced(net, {site: lambda h: h + 1}):
        assert not torch.allclose(net(x).logits, before)
    assert torch.equal(net(x).logits, before)
    assert hooks(net) == 0


def test_a_replaced_call_is_that_call_alone(net, x):
    clean = activations(net, ["cell@:"], lambda: net(x))["cell@:"]
    with replaced(net, {"cell@2": torch.zeros_like}):
        edited = activations(net, ["cell@:"], lambda: net(x))["cell@:"]
    assert torch.equal(clean[:, :2], edited[:, :2])
    assert not torch.equal(clean[:, 3], edited[:, 3])


def test_replacing_a_part_leaves_the_rest(net, x):
    with replaced(net, {"head[extra][twice]": torch.zeros_like}):
        out = net(x)
    assert out.extra["twice"].eq(0).all()
    assert torch.equal(out.logits, net(x).logits)


def test_hooks_go_away_after_an_error(net, x):
    def fail(h):
        raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError, match="inside"), replaced(net, {"lstm[0]": fail}):
        net(x)
    assert hooks(net) == 0


def test_negative_calls_cannot_be_replaced(net):
    with pytest.raises(ValueError, match="counted from the first"), replaced(net, {"cell@-1": torch.zeros_like}):
        pass


def test_tensor_sites_lists_every_call_and_slot(net, x):
    found = tensor_sites(net, (lambda: net(x), len(x)))
    assert found[:2] == ["embedding", "lstm[0]"]
    assert "lstm[1][0]" in found  # two layers, two examples: the first dimension cannot tell
    told = tensor_sites(net, (lambda: net(x), len(x)), (lambda: net(x[:1]), 1))
    assert told == [site for site in found if not site.startswith("lstm[1]")]
    assert [s for s in found if s.startswith("cell")] == [f"cell@{t}" for t in range(4)]
    assert {"head.linear", "head[0]", "head[1][twice]"} <= set(found)
    activations(net, found, lambda: net(x))
