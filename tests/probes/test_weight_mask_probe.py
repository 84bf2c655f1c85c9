"""WeightMaskProbe against networks whose modules are known, and its laws."""

import math

import pytest
import torch
from blocks import M, block_tasks, linear, matrix, relative_error
from tiny_learner import Learner, Rows, loader
from torch import nn

from algornn.probes import ProbeResult, WeightMaskProbe
from algornn.probes.mask_learning import INIT, MaskLearning, MaskSampler, masked_call
from algornn.probes.mask_overlap import _failures, overlap
from algornn.probes.subject import Subject, cross_entropy
from algornn.probes.weight_masks import maskable


def test_blocks_of_a_matrix_with_distractors_are_found_exactly():
    weight = matrix(2 * M, torch.Generator().manual_seed(0))  # the off-diagonal blocks distract
    result = WeightMaskProbe(block_tasks(weight), relative_error, steps=800, beta=1e-3).run(linear(weight))
    scalars, tables = result.scalars, result.tables
    assert scalars["density/task 1"] * 144 == scalars["density/task 2"] * 144 == 36
    assert scalars["control_density"] * 144 == 72
    assert scalars["iou"] == scalars["iomin"] == scalars["sharing"] == 0
    assert scalars["iou_floor"] == pytest.approx(0.25 * 0.25 / (0.5 - 0.25 * 0.25))
    assert scalars["iomin_floor"] == 0.25
    assert scalars["remaining"] == 0.5
    for k, j in (("task 1", "task 2"), ("task 2", "task 1")):
        # 0 and 1 are exact up to rounding: what is asked for depends on the own block alone.
        assert tables["loss"][k] == pytest.approx({k: 0.0, j: 1.0}, abs=1e-6)
        assert tables["inverse_loss"][k] == pytest.approx({k: 1.0, j: 0.0}, abs=1e-6)


def test_a_matrix_that_both_tasks_use_is_kept_and_shared():
    weight = matrix(M, torch.Generator().manual_seed(0))
    x = torch.randn(8, 64, M, generator=torch.Generator().manual_seed(1))
    data = [(batch, batch @ weight.T) for batch in x]
    probe = WeightMaskProbe({"a": data[:4], "b": data[4:]}, relative_error, steps=300, beta=1e-3, repeats=2)
    scalars = probe.run(linear(weight)).scalars
    assert scalars["iou"] == scalars["iou_ceiling"] == scalars["sharing"] == 1
    assert scalars["density/a"] == scalars["density/b"] == scalars["control_density"] == 1


class Logits(WeightMaskProbe):
    """Learns one mask and returns its logits."""

    def measure(self, subject):
        weights = maskable(subject.model, self.masked)
        learned = subject.map(lambda _, generator: self.learn(subject, subject.loader, weights, generator), [0])
        return ProbeResult(tables={"logits": learned[0]})


@pytest.mark.parametrize(
    ("steps", "lr", "beta"), [(1, 1e-2, 1e-3), (150, 1e-2, 1e-3), (250, 1e-2, 1e-6), (40, 3e-2, 0.1)]
)
def test_the_logit_of_an_idle_weight_falls_by_lr_in_each_step(steps, lr, beta):
    weight = matrix(2 * M, torch.Generator().manual_seed(0))
    probe = Logits(loss=relative_error, steps=steps, lr=lr, beta=beta)
    logits = probe.run(linear(weight), block_tasks(weight)["task 1"]).tables["logits"].view(2 * M, 2 * M)
    law = INIT - lr * steps
    assert logits[:, M:] == pytest.approx(torch.full((2 * M, M), law), abs=1e-4)
    if steps > 1:
        assert logits[:M, :M].min() > law + 0.5 * lr  # the used ones do not follow it


def test_probability_of_a_sample_is_the_sigmoid():
    generator, n = torch.Generator().manual_seed(0), 200_000
    for logit in (-2.0, 0.0, 2.0, 3.0):
        p = 1 / (1 + math.exp(-logit))
        share = float(MaskSampler(torch.empty(n), 1)(torch.full((n,), logit), generator)[0].mean())
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_samples_are_binary_with_the_soft_slope():
    logits = torch.linspace(-3, 3, 101)
    mask, slope = MaskSampler(logits, 7)(logits, torch.Generator().manual_seed(0))
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    bits = torch.empty(354, dtype=torch.int64).random_(-(2**63), None, generator=torch.Generator().manual_seed(0))
    uniform = (bits.view(torch.int32)[:707].view(7, 101).double() + 2**31) / 2**32
    soft = torch.sigmoid(logits + torch.log(uniform) - torch.log1p(-uniform))
    assert torch.equal(mask, (soft > 0.5).float())
    assert torch.allclose(slope.double(), soft * (1 - soft), rtol=1e-4)
    assert abs(float(uniform.mean()) - 0.5) < 0.05  # both halves of the 64 bits are used
    assert float(torch.corrcoef(torch.stack([uniform.flatten()[:-1:2], uniform.flatten()[1::2]]))[0, 1].abs()) < 0.2
    far, flat = MaskSampler(torch.empty(2), 1000)(torch.tensor([-500.0, 500.0]), torch.Generator().manual_seed(0))
    assert far.mean(0).tolist() == [0, 1]
    assert flat.isfinite().all()


def by_the_equation(subject_loss, model, logits, batch, beta, K, generator):
    """The gradient of L by autograd through masks m = hard + (soft - soft.detach()), one slice after the other."""
    bits = torch.empty((K * len(logits) + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    uniform = (bits.view(torch.int32)[: K * len(logits)].view(K, -1).double() + 2**31) / 2**32
    logits = logits.detach().requires_grad_()
    x, y = batch
    loss = beta / len(x) * logits.sum()
    edges = [len(x) * k // K for k in range(K + 1)]
    for k in range(K):
        soft = torch.sigmoid(logits + torch.logit(uniform[k]).float())
        mask = (soft > 0.5).float() + soft - soft.detach()
        part = slice(edges[k], edges[k + 1])
        call = masked_call(model, maskable(model), mask)
        loss = loss + subject_loss(call, (x[part], y[part])) * (edges[k + 1] - edges[k]) / len(x)
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    ("K", "b", "grouped"), [(4, 16, True), (4, 16, False), (3, 16, None), (1, 5, True), (8, 3, None)]
)
def test_the_gradient_is_that_of_the_equation(K, b, grouped):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval().requires_grad_(False)
    batch = torch.randn(b, 5), torch.randint(3, (b,))
    subject = Subject(model, [batch], cross_entropy, torch.device("cpu"), torch.Generator())
    learning = MaskLearning(subject, maskable(model), 1e-2, 0.3, K, grouped)
    learning.logits.data = torch.randn(56)
    found = learning.gradient(batch, torch.Generator().manual_seed(1))
    expected = by_the_equation(
        cross_entropy, model, learning.logits, batch, 0.3, min(K, b), torch.Generator().manual_seed(1)
    )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.attention = nn.Embedding(12, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.convolution, self.head = nn.Conv1d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        e = self.embedding(x)
        return self.head(self.convolution(self.attention(e, e, e)[0].transpose(1, 2)).mean(-1))


def test_masks_run_together_and_one_by_one_learn_the_same():
    torch.manual_seed(0)
    x = torch.randint(12, (2, 16, 5))
    batches = [(x[0], x[0, :, 0] % 3), (x[1], x[1, :, 0] % 3)]
    for model in (Attention(), Learner()):
        model.eval().requires_grad_(False)
        weights = maskable(model)
        subject = Subject(model, batches, cross_entropy, torch.device("cpu"), torch.Generator())
        found = []
        for grouped in (True, False):
            learning = MaskLearning(subject, weights, 1e-2, 1e-3, 4, grouped)
            found.append(learning.advance(batches, [0, 1] * 20, torch.Generator().manual_seed(0)))
        assert torch.allclose(*found, atol=1e-5)
        assert not torch.allclose(found[0], torch.full_like(found[0], INIT - 0.4), atol=1e-3)


def test_what_vmap_does_not_know_is_run_one_by_one():
    torch.manual_seed(0)
    x = torch.randn(16, 5, 3)
    batch = (x, torch.arange(16) % 2)

    def undecided(call, batch):
        loss = cross_entropy(call, batch)
        return loss if loss.item() > 0 else -loss  # control flow that depends on the data

    for model, loss in ((Recurrent(), cross_entropy), (nn.Sequential(nn.Flatten(), nn.Linear(15, 2)), undecided)):
        model.eval().requires_grad_(False)
        subject = Subject(model, [batch], loss, torch.device("cpu"), torch.Generator())
        learning = MaskLearning(subject, maskable(model), 1e-2, 1e-3, 4)
        learning.advance([batch], [0, 0], torch.Generator().manual_seed(0))
        assert learning.grouped is False
    model = nn.Sequential(nn.Flatten(), nn.Linear(15, 2)).eval().requires_grad_(False)
    learning = MaskLearning(
        Subject(model, [batch], cross_entropy, torch.device("cpu"), torch.Generator()), maskable(model), 1e-2, 1e-3, 4
    )
    learning.advance([batch], [0], torch.Generator().manual_seed(0))
    assert learning.grouped is None  # it went through


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_masks_reach_the_weights_of_recurrent_layers():
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(16, 5, 3)
    weights = maskable(model)
    assert list(weights) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    P = sum(w.numel() for w in weights.values())
    mask = torch.ones(P)
    assert torch.equal(masked_call(model, weights, mask)(x), model(x))
    mask[48 : 48 + 64] = 0  # no recurrence: only the last input counts
    masked = masked_call(model, weights, mask)
    gone = x.clone()
    model.lstm.weight_hh_l0.data.zero_()
    assert torch.equal(masked(x), model(x))
    assert not torch.equal(masked(gone.flip(1)), masked(x))
    logits = Logits(steps=20, lr=1e-2).run(Recurrent(), [(x, torch.arange(16) % 2)]).tables["logits"]
    drift = INIT - 0.2
    for part in (logits[:48], logits[48 : 48 + 64]):
        assert ((part - drift).abs() > 1e-3).double().mean() > 0.9  # without a gradient, all would be at the drift


def test_overlap_by_hand_and_of_independent_masks():
    a, b = torch.tensor([1, 1, 0, 0, 1, 1]).bool(), torch.tensor([1, 0, 1, 0, 1, 1]).bool()
    found = overlap(a, b, {"one": 4, "two": 2})
    # Layer one: densities 1/2 and 1/2 of 4, so 1 in common by chance; layer two is full: 2. Sizes 4 and 4.
    assert found == pytest.approx({"iou": 3 / 5, "iou_floor": 3 / 5, "iomin": 3 / 4, "iomin_floor": 3 / 4})
    generator, n, p, q = torch.Generator().manual_seed(0), 200_000, 0.3, 0.6
    a, b = torch.rand(n, generator=generator) < p, torch.rand(n, generator=generator) < q
    found = overlap(a, b, {"one": n})
    assert found["iou_floor"] == pytest.approx(p * q / (p + q - p * q), abs=0.005)
    assert found["iou"] == pytest.approx(found["iou_floor"], abs=0.005)
    assert found["iomin"] == pytest.approx(max(p, q), abs=0.005)


def test_tasks_are_found_by_group():
    result = WeightMaskProbe(steps=1, max_batches=None).run(Learner(), loader(67))
    assert list(result.tables["loss"]) == ["unmasked", "control", *Rows.groups]
    assert set(result.tables["accuracy"]["control"]) == set(Rows.groups)
    assert list(WeightMaskProbe(["third"], steps=1).run(Learner(), loader(67)).tables["iou"]) == ["third"]
    ready = WeightMaskProbe(steps=1).run(Learner(), list(loader(67)))  # ready-made batches are cut, and carry no names
    assert list(ready.tables["iou"]) == ["group 0", "group 1", "group 2"]


def test_the_unmasked_row_is_the_model_itself():
    torch.manual_seed(0)
    model, rows = Learner(), Rows(60)
    probe = WeightMaskProbe(steps=1, max_batches=None)
    found = probe.run(model, loader(60)).tables["accuracy"]["unmasked"]
    model.eval()
    by_group = {}
    for k, name in enumerate(Rows.groups):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        held = order[rows.group[order] == k][8:16]  # the second batch of eight; the first and third train masks
        by_group[name] = float((model(rows.x[held]).argmax(-1) == rows.y[held]).double().mean())
    assert found == pytest.approx(by_group)


def test_embeddings_norms_and_biases_are_not_masked_unless_asked_for():
    assert list(maskable(Learner())) == ["memory.key.weight", "memory.value.weight", "head.weight"]
    assert list(maskable(Learner(), ["memory.*.bias", "norm.weight"])) == [
        "memory.key.bias",
        "memory.value.bias",
        "norm.weight",
    ]
    with pytest.raises(ValueError, match="No parameter to mask fits"):
        maskable(Learner(), ["nothing.*"])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="tasks is empty"):
        WeightMaskProbe(tasks={})
    pair = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match="never calls the model"):
        WeightMaskProbe(tasks={"a": pair}, loss=lambda call, batch: torch.tensor(1.0)).run(nn.Linear(2, 2))
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"samples": -1}, {"repeats": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
            WeightMaskProbe(**wrong)
    with pytest.raises(ValueError, match=r"tasks names \['fourth'\]"):
        WeightMaskProbe(["fourth"]).run(Learner(), loader(31))
    with pytest.raises(ValueError, match="tensor field 'group'"):
        WeightMaskProbe().run(nn.Linear(3, 2), [(torch.ones(2, 3), torch.zeros(2).long())])
    with pytest.raises(ValueError, match="does not depend on the masked weights"):
        WeightMaskProbe(loss=lambda call, batch: call(batch.x).detach().mean(), steps=1).run(Learner(), loader(31))


def test_a_score_of_ones_own():
    result = WeightMaskProbe(steps=1, score=lambda output, batch: torch.ones(len(output))).run(Learner(), loader(31))
    assert result.scalars["accuracy"] == 1.0


def classes(seed=0):
    """A trained-looking linear classifier of two tasks, each told by four features of its own."""
    generator = torch.Generator().manual_seed(seed)
    tasks, weight = {}, torch.randn(3, 4, generator=generator)
    for k in range(2):
        x = torch.zeros(4, 64, 8)
        x[..., 4 * k : 4 * k + 4] = torch.randn(4, 64, 4, generator=generator)
        tasks[f"task {k + 1}"] = [(b, (b[:, 4 * k : 4 * k + 4] @ weight.T).argmax(-1)) for b in x]
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False))
    model[0].weight.data = torch.eye(8) * 2
    model[1].weight.data = torch.cat([weight, weight], 1) * 5
    return model, tasks


def test_inverse_half_and_scrambled_controls():
    model, tasks = classes()
    settings = {"steps": 250, "beta": 1e-2, "repeats": 2, "control_network": True}
    result = WeightMaskProbe(tasks, **settings).run(model)
    scalars = result.scalars
    assert scalars["accuracy"] > 0.9
    assert scalars["inverse_accuracy"] < 0.6
    assert scalars["inverse_accuracy_of_others"] > 0.9
    assert scalars["half_mask_accuracy"] > 0.9  # each layer's mask goes with the full other layer
    assert scalars["scrambled_unmasked_accuracy"] < 0.7
    assert set(result.tables["scrambled_accuracy"]) == {"unmasked", *tasks}
    without = WeightMaskProbe(tasks, **{**settings, "control_network": False}).run(model)
    assert without.tables["iou"] == result.tables["iou"]  # the control changes nothing else


def test_failed_controls_say_what_not_to_conclude():
    fine = {
        "control_density": 0.5,
        "control_accuracy": 0.95,
        "unmasked_accuracy": 1.0,
        "accuracy": 0.95,
        "iou": 0.0,
        "iou_floor": 0.2,
        "iou_ceiling": 0.9,
        "scrambled_accuracy": 0.35,
        "scrambled_unmasked_accuracy": 0.33,
    }
    assert _failures(fine) == []
    for wrong, message in (
        ({"control_accuracy": 0.85}, "Under the control mask the accuracy falls from 1.00 to 0.85"),
        ({"control_density": 1.0}, "keeps 100.0% of the weights"),
        ({"iou_ceiling": 0.2}, "agree no better than independent ones"),
        ({"iou": 0.9, "iou_ceiling": 0.7}, "overlap more (IoU 0.90) than two of the same one (0.70)"),
        ({"scrambled_accuracy": 0.7}, "Masks on a network that learned nothing reach an accuracy of 0.70"),
    ):
        (failure,) = _failures(fine | wrong)
        assert message in failure
    (untested,) = _failures({"control_density": 0.5})  # no accuracy, no repeats: nothing to compare
    assert "No accuracy could be read from the model's output" in untested
    model, tasks = classes()
    failures = WeightMaskProbe(tasks, steps=5).run(model).failures
    assert any("all overlaps are near 1" in failure for failure in failures)
    failures = WeightMaskProbe(tasks, steps=250, beta=100.0).run(model).failures
    assert any("masks remove weights that are needed" in failure for failure in failures)
