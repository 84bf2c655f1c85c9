"""Interchange interventions on networks whose variable lies on a known axis, in a known direction, or nowhere."""

import math

import pytest
import torch
from torch import nn

from algornn.probes import InterchangeProbe
from algornn.probes.interchange import ablate, balanced_sources, interchange, orthonormal, report, swap_axes
from algornn.probes.plots import draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Hidden(nn.Module):
    """Signs (a, b, d, n) to the hidden state (a b, d, n, b), turned by a rotation."""

    def __init__(self, rotation):
        super().__init__()
        self.rotation = nn.Parameter(rotation.clone())

    def forward(self, x):
        a, b, d, n = x.unbind(1)
        return torch.stack([a * b, d, n, b], 1) @ self.rotation.T


class Equality(nn.Module):
    """y = [a = b] xor d, computed from the hidden state: the product of the first two axes, turned back."""

    def __init__(self, rotation=None):
        super().__init__()
        rotation = torch.eye(4) if rotation is None else rotation
        self.hidden = Hidden(rotation)
        self.back = nn.Parameter(rotation.clone())
        self.scale = nn.Parameter(torch.tensor([-3.0, 3.0]))

    def forward(self, x):
        h = self.hidden(x) @ self.back
        return h[:, :1] * h[:, 1:2] * self.scale


class Equal:
    """Z = [a = b], y = Z xor d."""

    def variable(self, batch):
        return batch[0][:, 0] * batch[0][:, 1]

    def counterfactual(self, base, source):
        return (self.variable(source) * base[0][:, 2] > 0).long()


def batches(n=8, size=64, seed=0):
    signs = torch.randint(0, 2, (n, size, 4), generator=generator(seed)) * 2.0 - 1
    return [(x, Equal().counterfactual((x,), (x,))) for x in signs]


def rotation(degrees=(35, 50, 20)):
    """Turn Z's axis into all others."""
    R = torch.eye(4)
    for axis, angle in enumerate(map(math.radians, degrees), 1):
        G = torch.eye(4)
        G[0, 0] = G[axis, axis] = math.cos(angle)
        G[0, axis], G[axis, 0] = -math.sin(angle), math.sin(angle)
        R = G @ R
    return R


def test_interchange_takes_the_subspace_from_the_source():
    base, source = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    first = torch.tensor([[1.0], [0.0]])
    assert interchange(base, source, first).tolist() == [[5, 2], [7, 4]]
    diagonal = torch.tensor([[1.0], [1.0]]) / 2**0.5
    torch.testing.assert_close(interchange(base, source, diagonal), source)
    opposite = torch.tensor([[1.0], [-1.0]]) / 2**0.5  # the difference has no part in it
    torch.testing.assert_close(interchange(base, source, opposite), base)
    torch.testing.assert_close(interchange(base, source, torch.eye(2)), source)
    assert interchange(base.view(2, 1, 2), source.view(2, 1, 2), first).shape == (2, 1, 2)


def test_axes_are_those_of_the_flattened_activation():
    h = torch.arange(8.0).view(2, 2, 2)
    found = swap_axes(torch.tensor([1, 0]), torch.tensor([1, 2]))(h)
    assert found.flatten(1).tolist() == [[0, 5, 6, 3], [4, 1, 2, 7]]
    assert h.flatten().tolist() == list(range(8))


def test_ablation_puts_the_mean_into_the_subspace():
    h = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert ablate(torch.tensor([[0.0], [1.0]]))(h).tolist() == [[1, 4], [3, 4]]


def test_random_subspaces_are_orthonormal():
    Q = orthonormal(5, 3, generator())
    torch.testing.assert_close(Q.T @ Q, torch.eye(3))
    assert orthonormal(2, 3, generator()).shape == (2, 2)


def test_half_of_the_pairs_change_the_label_where_that_is_possible():
    of = torch.tensor([0] * 90 + [1] * 10)  # one value is rare
    changed = torch.stack([of == 1, of == 0])  # each value changes the label of the other's
    sources = balanced_sources(of, changed, generator())
    assert (of[sources] != of).sum() == 50
    assert (sources != torch.arange(100)).all()
    never = balanced_sources(of, torch.zeros(2, 100, dtype=torch.bool), generator())
    assert len(never) == 100
    assert len(never.unique()) > 50
    assert balanced_sources(torch.zeros(1).long(), torch.zeros(1, 1, dtype=torch.bool), generator()).tolist() == [0]


def test_a_network_with_the_variable_on_an_axis():
    result = InterchangeProbe(Equal(), "hidden").run(Equality(), batches())
    scalars = result.scalars
    assert list(scalars)[:3] == ["das_iia", "localist_iia", "noop_iia"]
    axes = [scalars[f"iia/axis {i}"] for i in range(4)]
    assert axes[0] == scalars["localist_iia"] == scalars["accuracy"] == 1
    assert axes[1:] == pytest.approx([0.5] * 3, abs=0.08)  # published form: (1.00, .49, .51, .51)
    assert axes[2] == axes[3] == scalars["noop_iia"] == 1 - scalars["changed"] == 0.5
    assert scalars["full_swap_iia"] == pytest.approx(0.5, abs=0.08)
    assert scalars["das_iia"] > 0.98
    assert scalars["das_iia_low"] > 0.9
    assert scalars["ablated_accuracy"] < 0.7
    assert scalars["scrambled_das_iia"] < 0.8
    assert result.tables["axes"]["chosen"] == [True, False, False, False]
    assert result.failures == []
    for figure in result.figures.values():
        draw(figure)


def test_a_rotated_network_hides_the_variable_from_the_axes_and_not_from_das():
    R = rotation()
    result = InterchangeProbe(Equal(), "hidden").run(Equality(R), batches())
    scalars = result.scalars
    assert scalars["localist_iia"] < 0.9
    assert scalars["das_iia"] > 0.98
    assert scalars["noop_iia"] == 0.5
    # the planted direction, by hand
    x, _ = batches()[0]
    h, sources = Equality(R).hidden(x), torch.randperm(64, generator=generator(1))
    edited = interchange(h, h[sources], R[:, :1])
    gold = Equal().counterfactual((x,), (x[sources],))
    u = edited @ R
    assert torch.equal((u[:, 0] * u[:, 1] > 0).long(), gold)


def test_a_site_that_does_not_hold_the_variable_is_reported():
    class Elsewhere(Equal):
        def variable(self, batch):  # n plays no part in the network's answer
            return batch[0][:, 3]

        def counterfactual(self, base, source):
            return (self.variable(source) * base[0][:, 2] > 0).long()

    result = InterchangeProbe(Elsewhere(), "hidden", steps=20).run(Equality(), batches())
    assert "Doing nothing" in result.failures[0]


def test_a_dormant_pathway_is_reported():
    hits = {"das": 1.0, "noop": 0.5, "random": 0.5, "full_swap": 0.5, "scrambled_das": 0.5, "accuracy": 1.0}
    n = torch.arange(40) / 40
    columns = {key: (n < value).double() for key, value in {**hits, "ablated": 1.0, "changed": 0.5}.items()}
    columns["axes"] = (n < 0.6).double().view(1, 40)
    found = report([columns, columns], ["axis 0"], 1, generator())
    assert len(found.failures) == 1
    assert "dormant pathway" in found.failures[0]
    columns["ablated"], columns["scrambled_das"] = columns["noop"], columns["das"]
    found = report([columns, columns], ["axis 0"], 1, generator())
    assert len(found.failures) == 1
    assert "shuffled weights as well" in found.failures[0]


def test_one_batch_is_not_enough_to_hold_pairs_out():
    result = InterchangeProbe(Equal(), "hidden", steps=5).run(Equality(), batches(1))
    assert "one batch only" in result.failures[-1]


def test_without_dimensions_nothing_is_learned_and_blocks_are_swapped():
    result = InterchangeProbe(Equal(), "hidden", dimensions=None, blocks=2).run(Equality(), batches())
    assert not any("das" in key or "ablated" in key for key in result.scalars)
    assert [key for key in result.scalars if key.startswith("iia/")] == ["iia/axes 0-1", "iia/axes 2-3"]
    assert result.scalars["iia/axes 2-3"] == 0.5
    assert result.failures == [] or result.failures[0].startswith("Doing nothing")


class Stepper(nn.Module):
    """A running parity, one call of the cell per bit."""

    def __init__(self):
        super().__init__()
        self.cell = Flip()

    def forward(self, x):
        h = torch.ones(len(x), 1)
        for t in range(x.shape[1]):
            h = self.cell(h, x[:, t : t + 1])
        return torch.cat([h, -h], 1)


class Flip(nn.Module):
    def forward(self, h, x):
        return h * (1 - 2 * x)


class Parity:
    """Z: the parity of the first two bits; the label is that of all."""

    def variable(self, batch):
        return batch[0][:, :2].sum(1) % 2

    def counterfactual(self, base, source):
        return ((self.variable(source) + base[0][:, 2:].sum(1)) % 2).long()


def test_a_recurrent_network_at_one_of_its_calls():
    x = torch.randint(0, 2, (4, 32, 4), generator=generator()).float()
    data = [(part, (part.sum(1) % 2).long()) for part in x]
    at = {
        t: InterchangeProbe(Parity(), f"cell@{t}", dimensions=None).run(Stepper(), data).scalars["localist_iia"]
        for t in range(4)
    }
    assert at[1] == 1
    assert max(at[0], at[2], at[3]) < 0.8
    with pytest.raises(ValueError, match="called 4 times"):
        InterchangeProbe(Parity(), "cell").run(Stepper(), data)


def test_labels_may_be_sequences_and_logits_a_part_of_the_output():
    class Both(Equal):
        def counterfactual(self, base, source):
            return torch.stack([super().counterfactual(base, source), (base[0][:, 2] > 0).long()], 1)

    class Two(Equality):
        def forward(self, x):
            first = super().forward(x)
            return {"logits": torch.stack([first, self.hidden(x)[:, 1:2] * self.scale], 1)}

    def loss(call, batch):
        return call(batch[0])["logits"].sum()

    probe = InterchangeProbe(Both(), "hidden", loss=loss, logits=lambda output, batch: output["logits"], steps=20)
    with pytest.raises(ValueError, match="called 2 times"):
        probe.run(Two(), batches())
    probe = InterchangeProbe(Both(), "hidden@0", loss=loss, logits=lambda output, batch: output["logits"], steps=20)
    assert probe.run(Two(), batches()).scalars["iia/axis 0"] == 1
    with pytest.raises(ValueError, match="pass logits="):
        InterchangeProbe(Both(), "hidden@0", loss=loss).run(Two(), batches())


def test_negative_labels_do_not_count():
    class Padded(Equal):
        def counterfactual(self, base, source):
            label = super().counterfactual(base, source)
            return torch.stack([label, torch.full_like(label, -100)], 1)

    class Two(Equality):
        def forward(self, x):
            return super().forward(x)[:, None].expand(-1, 2, -1)

    def loss(call, batch):
        return call(batch[0]).sum()

    one = InterchangeProbe(Equal(), "hidden", steps=20, loss=loss).run(Equality(), batches()).scalars
    padded = InterchangeProbe(Padded(), "hidden", steps=20, loss=loss).run(Two(), batches()).scalars
    assert padded == one


def test_activations_that_are_not_numbers_are_no_obstacle():
    model = Equality(torch.full((4, 4), torch.nan))
    assert InterchangeProbe(Equal(), "hidden", steps=3).run(model, batches()).scalars["noop_iia"] >= 0
    constant = Equality(torch.zeros(4, 4))
    result = InterchangeProbe(Equal(), "hidden", steps=3).run(constant, batches(4, 1))
    assert result.scalars["noop_iia"] == result.scalars["das_iia"]


def test_mistakes():
    with pytest.raises(TypeError, match=r"variable\(batch\) and counterfactual\(base, source\), got int"):
        InterchangeProbe(3, "hidden")
    with pytest.raises(ValueError, match="at one call"):
        InterchangeProbe(Equal(), "cell@:")
    with pytest.raises(ValueError, match="steps must be positive"):
        InterchangeProbe(Equal(), "hidden", steps=0)
    with pytest.raises(ValueError, match="has 4 axes, fewer than dimensions=5"):
        InterchangeProbe(Equal(), "hidden", dimensions=5).run(Equality(), batches())
    model = Equality()
    model.idle = nn.Identity()
    with pytest.raises(ValueError, match="not called"):
        InterchangeProbe(Equal(), "idle").run(model, batches())
