"""Cloning of backpropagation: the targets are what autograd does, and cells that are taught come near them."""

import csv
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from algornn import VSML, BackpropagationCloning, InContextNetwork, LinearTransformer, cli
from algornn.meta.vsml import Cells

RATE, GAIN = 0.3, 5.0


class Backpropagation(VSML):
    """Cells that do exactly what is cloned; their weight is the first number of c."""

    def layer(self, old, f, g):
        w, active, e = old.c[..., 0], f[..., 0].tanh()[:, :, None], g[..., 0][:, None]
        new = torch.cat([(w - RATE * e * active)[..., None], old.c[..., 1:]], -1)
        to = lambda x: F.pad(self.gain * x[..., None], (0, self.message_size - 1))  # noqa: E731
        return Cells(old.h, new), to((w * active).mean(1)), to((w * e * (1 - active**2)).mean(2))


def exact(*sizes, **settings):
    return Backpropagation(sizes[0], sizes[-1], sizes[1:-1], backward_pass=True, gain=GAIN, **settings).double()


def cloning(network, **settings):
    return BackpropagationCloning(network, **({"rate": RATE, "cells": 64, "examples": 5} | settings))


@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3), (4, 5, 6, 3)])
def test_the_cells_that_are_cloned_are_gradient_descent_by_autograd(sizes):
    torch.manual_seed(0)
    network = exact(*sizes)
    x, y = torch.randn(1, 6, 4).double(), torch.randint(3, (1, 6))
    found = network(x, y)[0]
    weights = [cells.c[0, :, :, 0].clone().requires_grad_() for cells in network.first_cells(x)]
    for t in range(6):
        z = x[0, t]
        for w in weights:
            z = GAIN * (w * z.tanh()[:, None]).mean(0)
        z = 100 * (z / 100).tanh()
        torch.testing.assert_close(found[t], z.detach(), rtol=1e-3, atol=1e-5)  # the bound of scores has no message
        slopes = torch.autograd.grad(F.cross_entropy(z, y[0, t]), weights)
        factor = RATE / GAIN
        with torch.no_grad():
            for w, slope in reversed(list(zip(weights, slopes, strict=True))):
                w -= factor * len(w) * slope
                factor *= w.shape[0] / w.shape[1]
    assert not torch.allclose(found[0], found[-1])


def test_exact_cells_deviate_by_nothing_and_others_do():
    network = exact(4, 3)
    assert float(cloning(network).deviation(torch.Generator().manual_seed(0))) < 1e-12
    assert float(cloning(network, rate=RATE / 2).deviation(torch.Generator().manual_seed(0))) > 1e-4
    assert float(cloning(VSML(4, 3)).deviation(torch.Generator().manual_seed(0))) > 1e-3


def test_cells_are_taught_and_sizes_do_not_matter():
    torch.manual_seed(0)
    network = VSML(4, 3, gate_bias=3.0, backward_pass=True, gain=8.0)
    learner = cloning(network, rate=0.1)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-2)
    losses = []
    for step in range(150):
        loss = learner.deviation(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    other = cloning(VSML(9, 5, (6,), gate_bias=3.0, backward_pass=True, gain=8.0), rate=0.1)
    other.load_state_dict(learner.state_dict())
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    assert torch.equal(learner.deviation(generators[0]), other.deviation(generators[1]))


@pytest.mark.parametrize("passes", [True, False])
def test_only_a_backward_pass_tells_layers_below_in_the_tick_that_tells_the_last(passes):
    torch.manual_seed(0)
    network, x = VSML(4, 3, hidden_sizes=(5,), backward_pass=passes), torch.randn(1, 2, 4)
    layer, told = network.layer, []

    def watched(old, f, g):
        if f.shape[1] == 4:  # the first layer
            told.append(g)
        return layer(old, f, g)

    network.layer = watched
    for y in (0, 1):
        network(x, torch.tensor([[y, 0]]))
    first, second = told[:3], told[3:]  # alone, told, alone
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1]) is not passes
    assert first[2].any() == (not passes)


def test_a_run_goes_from_cloning_to_the_data_and_is_scored(tmp_path):
    small = ["--data.init_args.test_examples", "8", "--data.init_args.length", "4", "--data.init_args.batch_size", "4"]
    run = ["fit", "--config", "in_context_digits_vsml_cloned", "--run_dir", str(tmp_path / "run"), *small]
    run += ["--model.init_args.cloning_steps", "2", "--model.init_args.cells", "8", "--trainer.max_steps", "4"]
    cli.main([*run, "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"])
    rows = list(csv.DictReader((tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open()))
    for name in ("train/cloning", "train/loss"):  # Lightning repeats what is no longer measured
        assert len({row[name] for row in rows} - {""}) == 2, name
    assert not rows[1]["train/loss"]
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_the_rate_falls_to_a_tenth_while_cells_are_cloned():
    learner = cloning(VSML(4, 3), cloning_steps=100)
    assert [learner._learning_rate_factor(step) for step in (0, 50, 100, 900)] == pytest.approx([1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: cloning(InContextNetwork(4, 3, LinearTransformer, 8)), TypeError, "must be a VSML"),
        (lambda: cloning(VSML(4, 3, (5,))), ValueError, "only with `backward_pass`"),
        (lambda: cloning(VSML(4, 3), cells=0), ValueError, "`cells` must be at least 1, got 0"),
        (lambda: cloning(VSML(4, 3), examples=0), ValueError, "`examples` must be at least 1, got 0"),
        (lambda: cloning(VSML(4, 3), cloning_steps=-1), ValueError, "`cloning_steps` must be at least 0"),
        (lambda: cloning(VSML(4, 3), cells=2.5), TypeError, "`cells` must be a whole number, got 2.5"),
        (lambda: cloning(VSML(4, 3), cloning_steps=2.5), TypeError, "`cloning_steps` must be a whole number"),
        (lambda: cloning(VSML(4, 3), rate=0.0), ValueError, "`rate` must be above 0"),
        (lambda: cloning(VSML(4, 3), rate=float("inf")), ValueError, "`rate` must be above 0"),
        (lambda: VSML(4, 3, state_size=1), ValueError, "`state_size` must be at least 2"),
        (
            lambda: VSML(1, 3)(torch.zeros(2, 3, 4), None),
            ValueError,
            r"`x` must be real numbers of the shape \[B, T, D=1\]",
        ),
        (lambda: VSML(4, 3, gain=0.0), ValueError, "`gain` must be a number above 0"),
        (lambda: VSML(4, 3, gain=float("inf")), ValueError, "`gain` must be a number above 0, got inf"),
        (lambda: VSML(4, 3, gate_bias=float("nan")), ValueError, "`gate_bias` must be a number, got nan"),
    ],
)
def test_mistakes(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_no_examples_give_no_scores():
    assert VSML(4, 3)(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 3)


def test_without_cloning_the_rate_is_a_tenth_from_the_start():
    assert cloning(VSML(4, 3), cloning_steps=0)._learning_rate_factor(0) == pytest.approx(0.1)


def test_the_losses_are_those_of_an_in_context_learner():
    learner = cloning(VSML(4, 3))
    batch = SimpleNamespace(x=torch.randn(2, 3, 4), y=torch.randint(3, (2, 3)))
    found = learner.loss(learner.model, batch)
    expected = F.cross_entropy(learner.model(batch.x, batch.y).flatten(0, 1), batch.y.flatten())
    torch.testing.assert_close(found, expected)
