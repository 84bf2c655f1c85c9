"""QuestionAnswering: the gradient of a batch, the learning rate, and every example of every stage scored once."""

import collections
from functools import partial
from itertools import combinations, pairwise

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from algornn import TPRRNN, LSTMReader, QuestionAnswering, TFNadam
from algornn.datamodules import StoryWorld
from algornn.learners import ExampleScores
from algornn.learners.length_groups import by_length, least_padding

SIZES = {"entity_size": 12, "role_size": 6, "hidden_size": 12}


@pytest.fixture(scope="module")
def world():
    return StoryWorld("systematic", batch_size=32, train_size=320, test_size=151)


def reader(data, kind=TPRRNN, **sizes):
    torch.manual_seed(1)
    return kind(data.vocab_size, data.sentence_length, **sizes or SIZES)


def trainer(root, **settings):
    settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "limit_val_batches": 0, **settings,
    }  # fmt: skip
    return L.Trainer(default_root_dir=root, **settings)


class Recorder(Callback):
    """Learning rates and losses of every step, and weights and moments before and after."""

    def __init__(self):
        self.rates, self.losses, self.weights, self.moments = [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])
        states = trainer.optimizers[0].state.values()
        self.moments.append([torch.as_tensor(x).clone() for state in states for x in state.values()])


# Groups of similar length.


def first_batch(world, size):
    batch = next(iter(world.train_dataloader()))
    return type(batch)(*(field[:size] for field in batch))


@pytest.mark.parametrize("parts", [2, 3, 10])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
@pytest.mark.parametrize("kind", [TPRRNN, LSTMReader])
def test_length_groups_give_the_gradient_of_the_whole_batch(world, monkeypatch, parts, size, kind):
    batch = first_batch(world, size)
    model = reader(world, kind, **({"hidden_size": 8} if kind is LSTMReader else SIZES)).double()
    found = []
    for groups in [1, parts]:
        learner = QuestionAnswering(model, length_groups=groups)
        monkeypatch.setattr(learner, "log", lambda *args, **kwargs: None)
        loss = learner.training_step(batch, 0)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for whole, grouped in zip(*found, strict=True):
        assert (whole - grouped).norm().item() <= 1e-12 * whole.norm().item()


def test_groups_go_from_short_to_long_and_are_trimmed(world):
    batch = first_batch(world, 32)
    parts = by_length(batch, 2, {"mask": ("story",)})
    assert len(parts) == 2
    assert sorted(torch.cat([part.id for part in parts]).tolist()) == sorted(batch.id.tolist())
    lengths = [part.mask.sum(1) for part in parts]
    assert lengths[0].max() < lengths[1].min()
    assert [part.story.shape[1] for part in parts] == [int(length.max()) for length in lengths]
    assert parts[0].story.shape[1] < batch.story.shape[1]


def test_groups_leave_the_least_padding_that_any_cuts_leave():
    """Against all ways of cutting, with a second length that does not grow with the first."""
    generator = torch.Generator().manual_seed(0)
    for size, kinds in ((1, 3), (6, 1), (9, 4), (10, 9)):
        lengths = torch.stack([torch.randint(1, kinds + 1, (size,), generator=generator) for _ in range(2)], 1)
        lengths = lengths[lengths[:, 0].argsort(stable=True)]

        def tokens(sizes, lengths=lengths):
            return sum(len(part) * int(part.amax(0).sum()) for part in lengths.split(sizes))

        for groups in (1, 2, 3, 20):
            found = least_padding(lengths, groups)
            assert sum(found) == size
            assert 1 <= len(found) <= groups
            ways = [
                [b - a for a, b in pairwise([0, *cuts, size])]
                for k in range(min(groups, size))
                for cuts in combinations(range(1, size), k)
                if all(lengths[cut, 0] != lengths[cut - 1, 0] for cut in cuts)
            ]
            assert tokens(found) == min(tokens(way) for way in ways)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [(0, ValueError, "at least 1, got 0"), (0.5, TypeError, "whole number"), ((0.5, 0.5), TypeError, "whole number")],
)
def test_a_wrong_number_of_groups_is_named(groups, error, message):
    with pytest.raises(error, match=f"`length_groups` must be (a )?{message}"):
        QuestionAnswering(nn.Identity(), length_groups=groups)


# The optimizer.


def test_warm_up_and_cool_down(world, tmp_path):
    learner = QuestionAnswering(
        reader(world), partial(TFNadam, lr=0.01), warmup_steps=5, warmup_factor=0.25, cooldown=0.4
    )
    recorder = Recorder()
    trainer(tmp_path, max_steps=20, callbacks=[recorder]).fit(learner, world)
    wanted = [0.25] * 5 + [1.0] * 8 + [k / 8 for k in (7, 6, 5, 4, 3, 2, 1)]
    assert recorder.rates == pytest.approx([0.01 * factor for factor in wanted], rel=1e-12)


def test_the_learning_rate_is_constant_without_them(world, tmp_path):
    recorder = Recorder()
    learner = QuestionAnswering(reader(world), partial(TFNadam, lr=0.01))
    trainer(tmp_path, max_steps=12, callbacks=[recorder]).fit(learner, world)
    assert recorder.rates == [0.01] * 12


@pytest.mark.parametrize("optimizer", [TFNadam, torch.optim.Adam])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "clip", [{}, {"gradient_clip_val": 5.0}, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}]
)
def test_a_gradient_that_is_not_finite_skips_the_step(world, tmp_path, optimizer, spoilt, clip):
    class Spoil(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 3:
                next(pl_module.parameters()).grad[2, 1] = spoilt

    recorder = Recorder()
    learner = QuestionAnswering(reader(world), partial(optimizer, lr=0.01))
    trainer(tmp_path, max_steps=6, callbacks=[Spoil(), recorder], **clip).fit(learner, world)
    for record in (recorder.weights, recorder.moments):
        moved = [not all(map(torch.equal, *pair)) for pair in pairwise(record)]
        assert moved == [True, True, False, True, True]
    assert all(value.isfinite().all() for value in recorder.weights[-1])


@pytest.mark.parametrize(("clip", "largest"), [({"gradient_clip_val": 1e-3}, 1.01e-3), ({}, torch.inf)])
def test_clipping_is_the_trainers(world, tmp_path, clip, largest):
    norms = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            norms.extend([torch.stack(gradients).norm().item()] if gradients else [])

    trainer(tmp_path, max_steps=4, callbacks=[Norms()], **clip).fit(QuestionAnswering(reader(world)), world)
    assert len(norms) == 3
    assert largest / 1.02 < max(norms) <= largest if clip else min(norms) > 1e-2


# Training and scores.


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A learner after 120 steps, its recorder, and the ids that every metric was given."""
    recorder, learner = Recorder(), QuestionAnswering(reader(world), partial(TFNadam, lr=3e-3))
    fit = trainer(tmp_path_factory.mktemp("run"), max_steps=120, gradient_clip_val=5.0, callbacks=[recorder])
    fit.fit(learner, world)
    return fit, learner, recorder


def test_the_loss_decreases(trained):
    losses = trained[2].losses
    assert sum(losses[-10:]) / 10 < 0.6 * sum(losses[:3]) / 3


def test_every_stage_is_scored_once_and_adds_up(world, trained, monkeypatch):
    fit, learner, _ = trained
    seen = collections.defaultdict(list)
    update = ExampleScores.update

    def spy(self, ids, *args):
        seen[id(self)] += ids.tolist()
        return update(self, ids, *args)

    monkeypatch.setattr(ExampleScores, "update", spy)
    logged = fit.test(learner, world, verbose=False)
    assert list(learner.results) == list(world.test_stages) == ["test", "pairs", "names", "longer"]
    assert [sorted(ids) for ids in seen.values()] == [list(range(151))] * 4

    merged = {key: value for row in logged for key, value in row.items()}
    for stage, result in learner.results.items():
        groups = result["groups"].values()
        assert set(result["groups"]) <= set(world.groups)
        assert result["examples"] == sum(group["examples"] for group in groups) == 151
        right = sum(group["examples"] * group["sequence_accuracy"] for group in groups)
        assert right == pytest.approx(151 * result["sequence_accuracy"], rel=1e-6)
        assert merged[f"test/{stage}/sequence_accuracy"] == pytest.approx(result["sequence_accuracy"])
        assert merged[f"test/{stage}/loss"] == pytest.approx(result["loss"])
        for group in result["groups"]:
            assert f"test/{stage}/{group}/sequence_accuracy" in merged


def test_the_scores_are_those_of_the_predictions(world, trained):
    fit, learner, _ = trained
    fit.test(learner, world, verbose=False)
    for stage, loader in world.test_dataloader().items():
        answers = torch.cat(fit.predict(learner, loader))
        correct = torch.cat([batch.answer for batch in loader]) == answers
        group = torch.cat([batch.group for batch in loader])
        result = learner.results[stage]
        assert result["sequence_accuracy"] == pytest.approx(correct.float().mean().item(), abs=1e-6)
        for index, name in enumerate(world.groups):
            if (group == index).any():
                wanted = {"sequence_accuracy": correct[group == index].float().mean().item()}
                wanted["examples"] = int((group == index).sum())
                assert result["groups"][name] == pytest.approx(wanted)


def test_length_groups_do_not_change_the_scores(world, trained):
    fit, learner, _ = trained
    fit.test(learner, world, verbose=False)
    wanted = learner.results
    grouped = QuestionAnswering(learner.model, length_groups=3)
    fit.test(grouped, world, verbose=False)
    for stage, result in wanted.items():
        assert grouped.results[stage]["groups"] == result["groups"]
        assert grouped.results[stage]["loss"] == pytest.approx(result["loss"], rel=1e-4)


def test_validation_is_logged_by_group(world, trained):
    _, learner, _ = trained
    (values,) = trainer(None, limit_val_batches=1.0).validate(learner, world, verbose=False)
    groups = {f"val/{group}/sequence_accuracy" for group in world.groups}
    assert set(values) == groups | {"val/loss", "val/sequence_accuracy"}
    batches = list(world.val_dataloader())
    loss = sum(learner.loss(learner.model, batch).item() * len(batch.answer) for batch in batches)
    assert values["val/loss"] == pytest.approx(loss / sum(len(batch.answer) for batch in batches), rel=1e-5)


def test_one_loader_is_the_test_set(world, trained):
    fit, learner, _ = trained
    fit.test(learner, world.test_dataloader()["pairs"], verbose=False)
    assert list(learner.results) == ["test"]
    assert learner.results["test"]["examples"] == 151


def test_scores_are_not_part_of_a_checkpoint(trained):
    _, learner, _ = trained
    assert {name.split(".")[0] for name in learner.state_dict()} == {"model"}
