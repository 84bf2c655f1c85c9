"""The learner of digits, and its feed-forward network."""

from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import algornn
from algornn import cli
from algornn.datamodules import AddMul, DoubleAddition


def small(**settings):
    return AddMul(batch_size=32, train_size=2000, test_size=100, **settings)


def test_the_network_is_the_published_one():
    torch.manual_seed(0)
    model = algornn.FeedForward(42, 10, 2)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(400, 42), (400, 400), (200, 400), (20, 200)]
    assert sum(p.numel() for p in model.parameters()) == 42 * 400 + 400 * 400 + 400 * 200 + 200 * 20 + 1020
    x = torch.randn(5, 42)
    h = x
    for layer in linear[:-1]:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(x), (h @ linear[-1].weight.T + linear[-1].bias).view(5, 2, 10))


def test_the_loss_is_over_asked_digits_and_an_example_needs_all_of_them():
    batch = next(iter(DoubleAddition(only=1, batch_size=8, train_size=64, test_size=8).val_dataloader()))
    learner = algornn.DigitClassification(algornn.FeedForward(80, 10, 4, (16,)))
    logits = learner(batch.x)
    asked = F.cross_entropy(logits[:, 2:].reshape(-1, 10), batch.target[:, 2:].reshape(-1))
    torch.testing.assert_close(learner.loss(learner.model, batch), asked)

    perfect = F.one_hot(batch.target.clamp(min=0), 10).float() * 50
    learner.model = nn.Module()
    learner.model.forward = lambda x: perfect
    [(ids, right, count, loss, group)] = list(learner.scored(batch))
    assert right.tolist() == count.tolist() == [2] * 8
    assert float(loss.max()) < 1e-6
    assert ids.tolist() == batch.id.tolist()
    perfect[0, 2] = perfect[0, 2].roll(1)
    perfect[1, 0] = perfect[1, 0].roll(1)  # not asked for
    [(_, right, _, _, _)] = list(learner.scored(batch))
    assert right.tolist() == [1] + [2] * 7
    assert group.tolist() == [0] * 8


def test_it_learns_and_scores_by_operation(tmp_path):
    L.seed_everything(1, verbose=False)
    data = small()
    fast = partial(torch.optim.Adam, lr=0.01)
    learner = algornn.DigitClassification(algornn.FeedForward(42, 10, 2, (64,)), fast)
    trainer = L.Trainer(max_steps=150, accelerator="cpu", logger=False, enable_progress_bar=False,
                        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(learner, data)
    trainer.test(learner, data, verbose=False)
    groups = learner.results["test"]["groups"]
    assert set(groups) == {"add", "mul"}
    assert learner.results["test"]["token_accuracy"] > 0.2  # chance: 0.1


def test_data_for_recurrent_networks_are_refused():
    batch = next(iter(DoubleAddition(split="together", batch_size=8, train_size=64, test_size=8).val_dataloader()))
    learner = algornn.DigitClassification(algornn.FeedForward(80, 10, 4, (16,)))
    with pytest.raises(ValueError, match=r"targets \[8, 4\], got \[8, 6, 4, 10\]: choose a split with one input"):
        learner.loss(learner.model, batch)


def test_a_layer_without_units_is_refused():
    with pytest.raises(ValueError, match=r"at least one unit, got sizes \(42, 0, 10\)"):
        algornn.FeedForward(42, 10, hidden_sizes=(0,))


def test_the_recipe_takes_its_sizes_from_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu"]
    sizes = ["--data.init_args.train_size=400", "--data.init_args.test_size=60", "--run_dir=run"]
    assert cli.main(["fit", "--config", "add_mul_feed_forward", *settings, *sizes]) == 0
    assert algornn.load("run").model.layers[0].in_features == 42
