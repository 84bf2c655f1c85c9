"""ReuseProbe against tasks whose gradients and subspaces are known."""

import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from tiny_learner import Learner, Rows, loader
from torch import nn

from algornn.probes import ReuseProbe
from algornn.probes.batches import field_of, with_field
from algornn.probes.reuse import cosines, gradient_of, important, principal, subspace_overlap, transfer_accuracy


def squared(call, batch):
    return (call(batch["x"]) - batch["y"]).square().mean()


def linear(zero=False, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(6, 4, bias=False)
    if zero:
        model.weight.data.zero_()
    return model


def batches(make, n=64, times=4):
    """Batches of two tasks; make(task, x) gives (x, y)."""
    generator, made = torch.Generator().manual_seed(0), []
    for _ in range(times):
        parts = [make(k, torch.randn(n, 6, generator=generator)) for k in range(2)]
        group = torch.arange(2).repeat_interleave(n)
        made.append({"x": torch.cat([p[0] for p in parts]), "y": torch.cat([p[1] for p in parts]), "group": group})
    return made


TARGET = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))


def disjoint(k, x):
    x = x * (torch.arange(6) // 3 == k)
    return x, x @ TARGET


def identical(k, x):
    return x, x @ TARGET


def opposite(k, x):
    return x, x @ TARGET * (1 - 2 * k)


def run(make, model, **settings):
    return ReuseProbe(loss=squared, **settings).run(model, batches(make))


def test_tasks_on_disjoint_inputs_have_orthogonal_gradients():
    result = run(disjoint, linear(), kept=0.5)
    scalars = result.scalars
    assert scalars["gradient_cosine"] == scalars["conflict"] == 0
    assert scalars["gradient_cosine/weight"] == 0
    assert (scalars["gradient_cosine_low"], scalars["gradient_cosine_high"]) == (0, 0)
    assert scalars["gradient_cosine_ceiling"] > 0.9
    assert scalars["importance_iou"] == 0  # each task's 12 weights are half of all
    assert scalars["importance_iou_ceiling"] == 1
    assert scalars["importance_iou_floor"] == pytest.approx(0.25 / 0.75)


def test_identical_tasks_reach_their_ceiling():
    scalars = run(identical, linear()).scalars
    assert scalars["gradient_cosine"] == pytest.approx(scalars["gradient_cosine_ceiling"], abs=0.02)
    assert scalars["gradient_cosine"] > 0.9
    assert scalars["conflict"] == scalars["conflict_ceiling"] == 0
    same = {"x": torch.randn(8, 6), "y": torch.randn(8, 4)}
    g = torch.stack([gradient_of(linear(), squared, same)] * 2).double()
    assert cosines(g @ g.T, *torch.eye(2)[:, None].double()).item() == pytest.approx(1)


def test_a_task_and_its_negative_conflict_fully():
    same = {"x": torch.randn(8, 6), "y": torch.randn(8, 4)}
    g = [gradient_of(linear(zero=True), squared, {**same, "y": sign * same["y"]}).double() for sign in (1, -1)]
    gram = torch.stack(g) @ torch.stack(g).T
    assert cosines(gram, *torch.eye(2)[:, None].double()).item() == pytest.approx(-1)
    scalars = run(opposite, linear(zero=True)).scalars
    assert scalars["gradient_cosine"] == pytest.approx(-scalars["gradient_cosine_ceiling"], abs=0.02)
    assert scalars["conflict"] == 1


def test_gradients_are_those_of_autograd_and_cosines_those_of_the_sums():
    model, (batch, *_) = linear(), batches(identical)
    squared(model, batch).backward()
    assert torch.allclose(gradient_of(model, squared, batch), model.weight.grad.flatten())
    g = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double()
    left, right = (
        torch.tensor([[1.0, 2, 0, 0, 0], [0, 0, 1, 0, 0]]).double(),
        torch.tensor([[0, 0, 0, 3.0, 1], [0] * 5]).double(),
    )
    found = cosines(g @ g.T, left, right)
    expected = torch.cosine_similarity(g[0] + 2 * g[1], 3 * g[3] + g[4], 0)
    assert found[0, 0] == pytest.approx(float(expected))
    assert found[:, 1].isnan().all()  # no batch, no cosine


def test_importance_is_of_weight_times_gradient():
    theta, gradient = torch.tensor([1.0, 10, 0, 2, 1]), torch.tensor([3.0, 1, 100, -2, 0])
    assert important(gradient, theta, 0.4).tolist() == [False, True, False, True, False]
    assert important(gradient, theta, 1.0).tolist() == [True, True, False, True, False]


def test_overlap_of_random_subspaces_is_r_over_d():
    generator, r, d = torch.Generator().manual_seed(0), 4, 20
    found = [
        subspace_overlap(*(torch.linalg.qr(torch.randn(d, r, generator=generator)).Q for _ in range(2)))
        for _ in range(400)
    ]
    assert sum(found) / 400 == pytest.approx(r / d, abs=0.01)
    E = torch.eye(6)
    assert subspace_overlap(E[:, :2], E[:, :2]) == 1
    assert subspace_overlap(E[:, :2], E[:, 2:4]) == 0
    assert subspace_overlap(E[:, :2], E[:, 1:3]) == 0.5
    x = torch.randn(500, 6, generator=generator) * torch.tensor([5.0, 0.1, 3, 0.1, 0.1, 0.1]) + 7
    assert subspace_overlap(principal(x, 2), E[:, [0, 2]]) == pytest.approx(1, abs=1e-3)
    x[0] = math.nan
    assert subspace_overlap(principal(x, 2), E[:, [0, 2]]) == pytest.approx(1, abs=1e-3)
    assert principal(torch.ones(9, 6), 2).isnan().all()  # constant activations have no direction


def test_subspaces_and_transfer_at_a_site():
    def labelled(rule):
        made = batches(rule)
        for batch in made:
            batch["label"] = (batch["x"].sum(1) > 0).long()
        return made

    probe = ReuseProbe([":input"], "label", rank=3, loss=squared)
    apart, alike = (probe.run(linear(), labelled(rule)).scalars for rule in (disjoint, identical))
    assert apart["subspace_overlap"] == pytest.approx(0, abs=1e-12)
    assert apart["subspace_overlap_ceiling"] == pytest.approx(1)
    assert apart["subspace_overlap_floor"] == 0.5
    assert apart["transfer_accuracy"] < 0.7
    assert alike["transfer_accuracy"] > 0.9
    assert apart["transfer_accuracy_ceiling"] > 0.9
    assert alike["transfer_accuracy_permuted"] < 0.8
    x = torch.randn(20, 3)
    assert math.isnan(transfer_accuracy(x, torch.zeros(20), x, torch.zeros(20)))


def test_controls_that_fail_say_so():
    generator = torch.Generator().manual_seed(3)

    def noise(k, x):
        return x, 10 * torch.randn(len(x), 4, generator=generator)

    failures = ReuseProbe(loss=squared).run(linear(zero=True), batches(noise, n=4)).failures
    assert any("they are mostly noise" in failure for failure in failures)
    failures = run(identical, linear()).failures
    assert any("In a network that learned nothing" in failure for failure in failures)


def test_shuffled_targets_are_the_floor_of_what_is_asked_for():
    """A linear map with centred inputs learns nothing from shuffled targets; a bias learns their mean."""
    found = [run(identical, linear(zero=True), target="y", seed=seed).scalars for seed in range(16)]
    assert found[0]["gradient_cosine"] > 0.9
    floor = torch.tensor([scalars["gradient_cosine_shuffled"] for scalars in found])
    assert abs(floor.mean()) < 0.2
    assert floor.std() > 0.01
    assert "gradient_cosine_shuffled" not in run(identical, linear()).scalars

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return self.b.expand(len(x), 4)

    def shifted(k, x):
        return x, x @ TARGET + 3

    result = run(shifted, Bias(), target="y")
    assert result.scalars["gradient_cosine_shuffled"] == pytest.approx(result.scalars["gradient_cosine"], abs=1e-6)
    assert any("With shuffled targets" in failure for failure in result.failures)


def test_fields_that_go_together_are_shuffled_together():
    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.w * x

    def together(call, batch):
        assert torch.equal(batch["y"][:, 0] > 0, batch["mask"])
        return call(batch["x"]).square().mean()

    marked = [{**batch, "mask": batch["y"][:, 0] > 0} for batch in batches(identical)]
    ReuseProbe(loss=together, target=["y", "mask"]).run(Watch(), marked)
    with pytest.raises(AssertionError):
        ReuseProbe(loss=together, target="y").run(Watch(), marked)


def test_one_field_is_replaced_in_any_batch():
    x, y, new = torch.zeros(2), torch.ones(2), torch.full((2,), 5.0)
    Pair, Item = namedtuple("Pair", "x y"), dataclass(type("Item", (), {"__annotations__": {"x": object, "y": object}}))
    unnamed = [((x, y), 1), ([x, y], -1), ((x, y), "y"), ([x, y], "y")]
    for batch, field in (({"x": x, "y": y}, "y"), *unnamed, (Pair(x, y), "y"), (Item(x, y), "y")):
        other = with_field(batch, field, new)
        assert type(other) is type(batch)
        assert field_of(other, field) is new
        assert field_of(batch, field) is y
    with pytest.raises(ValueError, match="has no field 'z'"):
        with_field({"x": x}, "z", new)
    with pytest.raises(ValueError, match="has no field 'y'; it has 0 to 2"):
        field_of((x, y, y), "y")


def test_the_interval_holds_the_cosine_of_noisy_gradients():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(200, generator=generator)
    noise = [torch.randn(4, 200, generator=generator) for _ in range(16)]
    data = [{"x": signal + 4 * x, "group": torch.full((4,), i % 2)} for i, x in enumerate(noise)]
    model = nn.Linear(200, 1, bias=False)  # the gradient of the mean output is the mean input
    scalars = ReuseProbe(loss=lambda call, batch: call(batch["x"]).mean(), max_batches=None).run(model, data).scalars
    value = scalars["gradient_cosine"]
    assert scalars["gradient_cosine_low"] < value < scalars["gradient_cosine_high"] < value + 0.15


def test_small_and_odd_data():
    result = ReuseProbe(["memory", "norm"], "y").run(Learner(), loader(31))
    assert result.tables["tasks"] == list(Rows.groups)
    assert "subspace_overlap/memory" in result.scalars
    ReuseProbe(["memory"], "y").run(Learner(), loader(3))  # one example per group
    ReuseProbe(["memory"], "y", max_batches=None).run(Learner(), loader(7, batch_size=1))
    broken = Learner()
    broken.head.weight.data.fill_(math.nan)
    assert "gradient_cosine" not in ReuseProbe(["head"]).run(broken, loader(31)).scalars


def test_mistakes_are_named():
    for wrong, message in (
        ({"kept": 0.0}, "kept is a share"),
        ({"rank": 0}, "rank must be positive"),
        ({"label": "y"}, "label without sites"),
    ):
        with pytest.raises(ValueError, match=message):
            ReuseProbe(**wrong)
    with pytest.raises(ValueError, match="has no field 'z'"):
        run(identical, linear(), target="z")
    words = [{**batch, "z": "words"} for batch in batches(identical)]
    with pytest.raises(ValueError, match="target is a field with a tensor"):
        ReuseProbe(loss=squared, target="z").run(linear(), words)
    one = [{"x": torch.randn(4, 6), "y": torch.randn(4, 4), "group": torch.zeros(4).long()}]
    with pytest.raises(ValueError, match="needs two sub-tasks or more"):
        ReuseProbe(loss=squared).run(linear(), one)
    with pytest.raises(ValueError, match="does not depend on the model's parameters"):
        ReuseProbe(loss=lambda call, batch: call(batch["x"]).detach().mean()).run(linear(), batches(identical))
