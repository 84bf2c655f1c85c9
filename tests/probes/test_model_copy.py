"""Other tensors in the place of a model's parameters, for one forward, whatever the model shares inside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from algornn.probes import WeightMaskProbe
from algornn.probes.model_copy import call_with


class Plain(nn.Module):
    """A first layer, and an output that is tied to it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x, model=1.0):
        return self.head(torch.relu(self.first(x))) * model


class Aliased(Plain):
    """The same, its first layer known by two names."""

    def __init__(self):
        super().__init__()
        self.alias = self.first


@pytest.mark.parametrize("make", [Plain, Aliased])
def test_tied_parameters_are_replaced_together_and_for_one_call(make):
    model, x = make().requires_grad_(False), torch.randn(3, 4)
    own, other = model.first.weight, torch.randn(4, 4)
    found = call_with(model, {"first.weight": other}, x, model=2.0)
    torch.testing.assert_close(found, 2 * torch.relu(x @ other.T) @ other.T)
    vmap(lambda weight: call_with(model, {"first.weight": weight}, x))(torch.randn(2, 4, 4))
    assert model.first.weight is own
    assert model.head.weight is own


def test_masks_of_a_module_with_two_names_are_those_of_one_name():
    generator = torch.Generator().manual_seed(1)
    sizes = (8, 7, 8, 6)  # the masks of a step are run together where 4 divides the size, else one by one
    batches = [(torch.randn(n, 4, generator=generator), torch.arange(n) % 4) for n in sizes]

    def loss(call, batch):
        return F.cross_entropy(call(batch[0]), batch[1])

    probe = WeightMaskProbe({"a": batches}, loss, steps=30, lr=0.1)
    plain, aliased = (probe.run(make(), batches) for make in (Plain, Aliased))
    assert plain.to_json() == aliased.to_json()
