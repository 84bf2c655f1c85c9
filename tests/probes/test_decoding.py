"""LinearDecodingProbe and its code, against codelengths and accuracies that are known."""

import math

import pytest
import torch
from tiny_learner import Batch, Learner, loader
from torch import nn

from algornn.probes import LinearDecodingProbe
from algornn.probes.codelength import LogisticCoder, online_codelength
from algornn.probes.decoding import control_labels, joined, rows_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randint(high, *shape, seed=0):
    return torch.randint(high, shape, generator=generator(seed))


class Shown(nn.Module):
    """A model whose activation at `shown` is its input, and which has weights to scramble."""

    def __init__(self, d=1):
        super().__init__()
        self.shown = nn.Identity()
        self.mixed = nn.Linear(d, d, bias=False)
        with torch.no_grad():
            self.mixed.weight.copy_(torch.eye(d))

    def forward(self, x):
        return self.mixed(self.shown(x))


def logits(call, batch):
    return call(batch[0]).sum()


def decode(x, y, sites=("shown",), size=32, model=None, **settings):
    """Run the probe on batches (x, y, *further fields) of `size` examples."""
    fields = settings.pop("fields", ())
    batches = list(zip(*(value.split(size) for value in (x, y, *fields)), strict=True))
    settings = {"label": 1, "loss": logits, "max_batches": None, **settings}
    return LinearDecodingProbe(list(sites), **settings).run(model or Shown(x.shape[-1]), batches)


# --- the codelength


def laplace(C):
    """Counts of the labels per cell, plus one; cells are one-hot activations."""

    def fit(h, y):
        counts = 1 + h.T @ nn.functional.one_hot(y, C).double()
        return lambda h: h @ counts / counts.sum(1).gather(0, h.argmax(1))[:, None]

    return fit


def cells(C, n, K):
    """C one-hot cells, n of each in random order, and a label of K that the cell determines."""
    cell = torch.arange(C).repeat(n)[torch.randperm(C * n, generator=generator())]
    return nn.functional.one_hot(cell, C).double(), cell % K


def test_laplace_coder_of_deterministic_cells_takes_the_known_bits():
    C, n, K = 8, 32, 4
    h, y = cells(C, n, K)
    bits = online_codelength(h, y, range(C * n + 1), K, laplace(K))
    exact = C * math.log2(math.comb(n + K - 1, K - 1))
    assert bits.sum().item() == pytest.approx(exact, abs=1e-9)
    assert round(bits.sum().item(), 4) == 101.4094
    assert C * n * math.log2(K) == 512
    assert round(512 / bits.sum().item(), 3) == 5.049


def test_the_first_portion_is_uniform_and_the_last_fit_is_never_scored():
    asked = []

    def fit(h, y):
        asked.append((h.tolist(), y.tolist()))
        return lambda h: torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).expand(len(h), 3)

    h, y = torch.arange(7.0).double()[:, None], torch.tensor([0, 1, 2, 0, 0, 1, 2])
    bits = online_codelength(h, y, [2, 3, 7], 3, fit)
    assert bits.tolist() == pytest.approx([2 * math.log2(3), 2, 1 + 1 + 2 + 2])
    assert asked == [([[0.0], [1.0]], [0, 1]), ([[0.0], [1.0], [2.0]], [0, 1, 2])]


def test_the_logistic_coder_gives_unseen_classes_one_observation_shared_by_all():
    coder = LogisticCoder(4)
    h, y = torch.tensor([[0.0], [1.0]]).repeat(10, 1).double(), torch.tensor([1, 3]).repeat(10)
    p = coder(h, y)(h[:2])
    assert p.sum(1).tolist() == pytest.approx([1, 1])
    assert p[:, [0, 2]].flatten().tolist() == pytest.approx([0.25 / 21] * 4)
    assert p.argmax(1).tolist() == [1, 3]
    assert coder(h[:0], y[:0])(h).tolist() == [[0.25] * 4] * 20
    one = coder(h[:5], torch.full((5,), 2))(h[:1])[0]
    assert one.tolist() == pytest.approx([0.25 / 6, 0.25 / 6, 5.25 / 6, 0.25 / 6])
    assert coder.unfinished == 0


def test_the_logistic_coder_minimises_its_penalised_loss_on_standardised_features():
    h, y = 5 * torch.randn(60, 3, generator=generator(), dtype=torch.float64) + 7, randint(3, 60, seed=1)
    y = torch.where(h[:, 0] > 8, 2, y)
    t, C, l2 = 60, 3, 2.0
    p = (LogisticCoder(C, l2)(h, y)(h) * (t + 1) - 1 / C) / t
    z = (h - h.mean(0)) / h.std(0, correction=0)
    W, b = torch.zeros(3, C, dtype=torch.float64, requires_grad=True), torch.zeros(C, dtype=torch.float64)
    b.requires_grad_()
    lbfgs = torch.optim.LBFGS([W, b], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        lbfgs.zero_grad()
        loss = nn.functional.cross_entropy(z @ W + b, y, reduction="sum") + l2 / 2 * W.square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert torch.allclose(p, (z @ W + b).softmax(1).detach(), atol=1e-3)


# --- the probe on known activations


def test_labels_that_are_there_are_decoded_and_compressed():
    x = torch.randn(256, 6, generator=generator())
    y = (x.sum(1) > 0).long() + 5  # labels need not begin at 0
    result = decode(x, y, ("shown", "mixed"))
    scalars = result.scalars
    assert scalars["accuracy"] > 0.93
    assert scalars["accuracy_low"] <= scalars["accuracy"] <= scalars["accuracy_high"]
    assert scalars["compression/shown"] > 2
    assert scalars["uniform_codelength"] == 256
    assert scalars["compression/shown"] == 256 / scalars["codelength/shown"]
    assert scalars["control_accuracy"] < 0.65
    assert scalars["control_compression"] < 1
    assert scalars["selectivity"] == pytest.approx(scalars["accuracy"] - scalars["control_accuracy"])
    # Nothing before `shown` can be scrambled; what the scrambled weights of `mixed` let through is less.
    assert [sentence.split()[1] for sentence in result.failures if "scrambled" in sentence] == ["shown"]
    assert scalars["scrambled_accuracy/shown"] == scalars["accuracy/shown"]
    assert scalars["scrambled_accuracy/mixed"] < scalars["accuracy_low/mixed"]


def test_the_classifier_is_linear():
    x = 2.0 * randint(2, 400, 2) - 1
    y = (x.prod(1) > 0).long()
    assert decode(x, y).scalars["accuracy"] < 0.65
    assert decode(torch.cat([x, x.prod(1, keepdim=True)], 1), y).scalars["accuracy"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_not_compressed(seed):
    x = torch.randn(200, 8, generator=generator(seed))
    result = decode(x, randint(4, 200, seed=seed + 10))
    assert result.scalars["compression"] <= 1
    assert any("do not conclude that the label is there" in sentence for sentence in result.failures)


def test_one_hot_types_have_selectivity_0():
    types = randint(6, 300)
    x = nn.functional.one_hot(types, 6).float()
    result = decode(x, types % 2, types=2, fields=(types,), seed=3)
    assert result.scalars["accuracy"] == result.scalars["control_accuracy"] == 1
    assert result.scalars["selectivity"] == 0
    assert any("know types by heart" in sentence for sentence in result.failures)


def test_a_label_beyond_the_type_is_selective():
    types = randint(40, 400, 3)
    y = randint(2, 400, 3, seed=1)
    x = torch.stack([y.float(), torch.randn(400, 3, generator=generator(2))], -1)
    result = decode(x, y, types=2, fields=(types,))
    assert result.scalars["accuracy"] == 1
    assert result.scalars["selectivity_low"] > 0.3
    assert not any("heart" in sentence for sentence in result.failures)


def test_control_labels_are_one_per_type_and_distributed_as_the_labels():
    y, types = torch.tensor([0, 1, 1, 1]).repeat(2000), torch.arange(2000).repeat_interleave(4)
    control = control_labels(y, types, generator())
    assert control.view(2000, 4).eq(control.view(2000, 4)[:, :1]).all()
    assert control.double().mean() == pytest.approx(0.75, abs=0.03)


def test_examples_are_held_out_whole():
    """Every token tells its example, and the label is the example's: known only to who has seen the example."""
    n, T = 60, 5
    x = torch.eye(n)[:, None].expand(n, T, n).contiguous()
    y = randint(2, n)[:, None].expand(n, T).contiguous()
    result = decode(x, y)
    assert result.scalars["accuracy"] < 0.75  # by token 1.0
    assert result.scalars["compression"] < 1.1
    assert result.scalars["uniform_codelength"] == n * T


def test_negative_labels_are_ignored():
    x = torch.randn(120, 4, 3, generator=generator())
    y = (x[..., 0] > 0).long()
    y[:, 2:] = -100
    y[::3] = -1  # a third of the examples has no label at all
    x[y < 0] = math.nan
    result = decode(x, y)
    assert result.scalars["accuracy"] > 0.85
    assert result.scalars["uniform_codelength"] == 80 * 2
    assert not any("finite" in sentence for sentence in result.failures)


def test_majority_is_the_most_frequent_label_among_those_fitted():
    y = torch.cat([torch.ones(90, dtype=torch.long), torch.zeros(30, dtype=torch.long)])
    result = decode(torch.zeros(120, 2), y, held_out=0.5)
    assert result.scalars["majority_accuracy"] == result.scalars["accuracy"] == result.scalars["control_accuracy"]
    assert 0.6 < result.scalars["accuracy"] < 0.9
    assert result.scalars["compression"] == result.scalars["scrambled_compression"]


# --- rows


def test_rows_line_up_after_the_shuffle():
    """The activation holds example, token and label, so what was shuffled together must still agree."""
    parts, start = [], 0
    for size in (3, 4, 1):
        example = torch.arange(size).repeat_interleave(2)
        y = (example + start) % 3
        h = torch.stack([example + start, y], 1).double()
        parts.append({"y": y, "example": example, "size": size, "types": example + start, ("model", "a"): h})
        start += size
    rows = joined(parts, generator())
    h = rows.h["model", "a"]
    assert torch.equal(h[:, 1].long(), rows.y)
    assert rows.example.tolist() == torch.arange(8).repeat_interleave(2).tolist()
    assert torch.equal(h[::2, 0], h[1::2, 0])
    assert h[::2, 0].tolist() != sorted(h[::2, 0].tolist())
    assert sorted(h[::2, 0].tolist()) == list(range(8))


def test_examples_without_a_label_do_not_count():
    part = {"y": torch.tensor([4, 7, 4]), "example": torch.tensor([1, 1, 3]), "size": 9}
    rows = joined([{**part, ("model", "a"): torch.zeros(3, 1)}] * 2, generator())
    assert rows.example.unique().tolist() == [0, 1, 2, 3]
    assert rows.C == 2


def test_what_follows_the_labels_dimensions_is_flattened():
    h = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(rows_of(h, torch.zeros(2), "a"), h.view(2, 12))
    assert torch.equal(rows_of(h, torch.zeros(2, 3), "a"), h)
    assert rows_of(h[..., 0], torch.zeros(2, 3), "a").shape == (2, 3, 1)
    with pytest.raises(ValueError, match=r"Labels \[3\] need activations \[3, 'd'\], got \[2, 3, 4\] at the site 'a'"):
        rows_of(h, torch.zeros(3), "a")


# --- edges


def test_nothing_raises_where_nothing_can_be_measured():
    x, y = torch.randn(40, 3, generator=generator()), randint(2, 40)
    lost = decode(torch.full_like(x, math.nan), y)
    assert "accuracy" not in lost.scalars
    assert any("100% of the activations are not finite" in sentence for sentence in lost.failures)
    half = x.clone()
    half[::2, 1] = math.inf
    assert any("50% of the activations" in sentence for sentence in decode(half, y).failures)
    alone = decode(x[:1], y[:1])
    assert "accuracy" not in alone.scalars
    assert any("too few examples" in sentence for sentence in alone.failures)
    same = decode(x, torch.zeros_like(y))
    assert same.failures[0].startswith("All labels are the same")
    assert "compression" not in same.scalars
    assert decode(x, y, size=1).scalars == decode(x, y, size=40).scalars
    decode(x, torch.arange(40))  # every class once


def test_fits_that_do_not_converge_are_reported():
    x, y = torch.randn(200, 5, generator=generator()), randint(3, 200)
    assert any("did not converge" in sentence for sentence in decode(x, y, max_iter=1).failures)
    assert not any("did not converge" in sentence for sentence in decode(x, y).failures)


def test_sites_of_a_learner():
    probe = LinearDecodingProbe(["memory.embedding", "memory", ""], max_batches=None)
    result = probe.run(Learner(), loader(200))
    assert {"accuracy/memory", "accuracy_low/memory", "compression/output"} <= result.scalars.keys()
    assert result.scalars["accuracy"] == pytest.approx(
        sum(result.scalars[f"accuracy/{site}"] for site in ("memory.embedding", "memory", "output")) / 3
    )
    assert result.scalars["accuracy/memory.embedding"] > 0.7
    assert set(result.figures) == {"accuracy", "compression", "online"}
    assert list(result.tables["sites"]) == ["memory.embedding", "memory", "output"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": "memory"}, "sites must be a list"),
        ({"sites": []}, "at least one site"),
        ({"held_out": 1.0}, "held_out must be a share"),
        ({"portions": (0.5, 0.1, 1)}, "portions must ascend"),
        ({"portions": (0.5,)}, "portions must ascend"),
        ({"portions": ()}, "portions must ascend"),
        ({"l2": 0}, "must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearDecodingProbe(**{"sites": ["memory"], **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "answer"}, r"has no field 'answer'.* by label=... \(--probe.label for"),
        ({"label": lambda batch: batch.y.float()}, "label must be a tensor of integers"),
        ({"label": lambda batch: batch.y - 9}, "No label is 0 or above"),
        ({"types": "x"}, r"types must have the labels' shape \[8\], got \[8, 5\]"),
        ({"sites": ["memory:input"], "label": lambda batch: batch.x.T}, r"Labels \[5, 8\] need"),
        ({"sites": ["nowhere"]}, "no module 'nowhere'"),
    ],
)
def test_batches_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearDecodingProbe(**{"sites": ["memory"], **settings}).run(Learner(), loader(16))


def test_a_site_with_layers_is_told_the_last():
    with pytest.raises(ValueError, match=r"choose the last of 1 by 'lstm\[1\]\[0\]\[-1\]@0', another site"):
        rows_of(torch.zeros(1, 6, 3), torch.zeros(6), "lstm[1][0]@0")


def test_the_label_of_a_pair_is_its_second():
    batches = [(torch.randn(20, 3, generator=generator()), randint(2, 20))]
    found, placed = (LinearDecodingProbe(["shown"], loss=logits, **label) for label in ({}, {"label": 1}))
    assert found.run(Shown(3), batches).to_json() == placed.run(Shown(3), batches).to_json()


def test_activations_of_varying_size_need_another_site():
    batches = [Batch(torch.ones(4, T, dtype=torch.long), torch.arange(4) % 2, torch.zeros(4)) for T in (3, 5)]
    with pytest.raises(ValueError, match="have 18 numbers in one batch and 30 in another"):
        LinearDecodingProbe(["memory.embedding"]).run(Learner(), batches)
    LinearDecodingProbe(["memory.embedding"], label="x").run(Learner(), batches)
