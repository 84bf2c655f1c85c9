"""LanguageModeling: the carried state, truncated gradients, scores, and runs that are interrupted and resumed."""

import json
import math
import os
import socket
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from streams import NO_TARGET, WORDS, Stream, joined, stream

from algornn import (
    BidirectionalLSTM,
    DeltaRNN,
    FastWeightMemory,
    LanguageModeling,
    MemoryAugmentedLSTM,
    TokenNetwork,
    Transformer,
)

LAYERS = {
    "delta_rnn": partial(DeltaRNN, heads=2),
    "fast_weight_memory": partial(
        MemoryAugmentedLSTM, hidden_size=8, memory=partial(FastWeightMemory, entity_size=4, role_size=3)
    ),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def learner_of(layer, lr=1e-2, kind=torch.optim.Adam):
    torch.manual_seed(0)
    return LanguageModeling(TokenNetwork(WORDS, WORDS, LAYERS[layer], 8), partial(kind, lr=lr))


def fit(root, learner, steps, callbacks=(), ckpt_path=None, **settings):
    settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0, **settings,
    }  # fmt: skip
    trainer = L.Trainer(default_root_dir=root, max_steps=steps, callbacks=[*callbacks], **settings)
    trainer.fit(learner, Stream(), ckpt_path=ckpt_path)
    return trainer


class Record(L.Callback):
    """Loss, gradients and carried state of every step."""

    def __init__(self):
        self.losses, self.gradients, self.states = [], [], []

    def on_after_backward(self, trainer, pl_module):
        self.gradients.append([p.grad.clone() for p in pl_module.parameters() if p.grad is not None])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())
        self.states.append(leaves(pl_module.state))


def leaves(state):
    return torch.utils._pytree.tree_leaves(state)


def equal(a, b):
    return all(map(torch.equal, leaves(a), leaves(b))) and len(leaves(a)) == len(leaves(b))


def literal_loss(logits, segment):
    """The mean of -log p of what follows, over the tokens that count."""
    counts = segment.target != NO_TARGET
    log_p = logits.log_softmax(-1)[counts]
    return -log_p[torch.arange(len(log_p)), segment.target[counts]].mean()


# Training.


@every_layer
def test_the_state_is_carried_over_segments_and_epochs(tmp_path, layer):
    """With a learning rate of 0 all losses are those of one long run; 10 steps are two epochs and a half."""
    learner, record = learner_of(layer, lr=0.0, kind=torch.optim.SGD), Record()
    fit(tmp_path, learner, 10, [record])
    segments = stream(160)[:10]
    whole = joined(segments)
    logits, state = learner.model(whole.tokens, None, whole.mask)
    wanted = [literal_loss(*pair).item() for pair in zip(logits.split(5, 1), segments, strict=True)]
    assert record.losses == pytest.approx(wanted, rel=1e-5)
    for found, last in zip(record.states[-1], leaves(state), strict=True):
        torch.testing.assert_close(found, last, rtol=1e-4, atol=1e-5)
    assert not any(s.requires_grad for states in record.states for s in states)


@every_layer
def test_gradients_are_truncated_to_a_segment(tmp_path, layer):
    learner, record = learner_of(layer, lr=0.0, kind=torch.optim.SGD), Record()
    fit(tmp_path, learner, 3, [record])
    first, second, third = stream(160)[:3]
    with torch.no_grad():
        state = learner.model(first.tokens, None, first.mask)[1]
        state = learner.model(second.tokens, state, second.mask)[1]
    loss = literal_loss(learner.model(third.tokens, state, third.mask)[0], third)
    wanted = torch.autograd.grad(loss, [p for p in learner.parameters() if p.requires_grad])
    for found, gradient in zip(record.gradients[2], wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", [partial(Transformer, heads=2), partial(BidirectionalLSTM, hidden_size=4)])
def test_a_layer_that_sees_the_next_token_is_refused(layer):
    with pytest.raises(ValueError, match="LanguageModeling needs layers that read token by token"):
        LanguageModeling(TokenNetwork(9, 9, layer, embedding_size=8))
    LanguageModeling(TokenNetwork(9, 9, partial(Transformer, heads=2, causal=True), embedding_size=8))


def test_the_loss_falls(tmp_path):
    record = Record()
    fit(tmp_path, learner_of("delta_rnn"), 80, [record])
    assert sum(record.losses[-10:]) < 0.5 * sum(record.losses[:10])


def test_a_segment_in_which_nothing_counts_has_the_loss_0():
    learner, segment = learner_of("delta_rnn"), stream(1)[0]
    segment = segment._replace(target=torch.full_like(segment.target, NO_TARGET))
    loss = learner.loss(learner.model, segment)
    assert loss == 0
    loss.backward()
    assert not any(p.grad.any() for p in learner.parameters() if p.grad is not None)


# Evaluation.


def literal_scores(model, segments):
    """Of one run over the whole stream from the first state."""
    whole = joined(segments)
    with torch.no_grad():
        logits = model(whole.tokens, None, whole.mask)[0]
    right = logits.argmax(-1) == whole.target
    groups = {}
    for index, name in enumerate(segments.groups):
        asked = whole.asked & (whole.group == index)
        if asked.any():
            groups[name] = {"sequence_accuracy": right[asked].float().mean().item(), "examples": int(asked.sum())}
    loss = literal_loss(logits, whole).item()
    accuracy, asked = right[whole.asked].float().mean().item(), int(whole.asked.sum())
    return {"loss": loss, "perplexity": math.exp(loss), "sequence_accuracy": accuracy, "examples": asked}, groups


@every_layer
def test_evaluation_starts_from_the_first_state_and_carries_its_own(tmp_path, layer):
    learner = learner_of(layer)
    trainer = fit(tmp_path, learner, 30)
    carried = leaves(learner.state)
    for _ in range(2):  # neither test nor training leaves anything for the next
        trainer.test(learner, Stream(), verbose=False)
        for name, seed in (("test", 1), ("other", 2)):
            result = dict(learner.results[name])
            scores, groups = literal_scores(learner.model, stream(3, seed=seed))
            assert result.pop("groups") == {group: pytest.approx(values) for group, values in groups.items()}
            assert result == pytest.approx(scores, rel=1e-5)
    assert equal(learner.state, carried)
    assert learner.results["test"]["examples"] > 5


def test_validation_does_not_disturb_training(tmp_path):
    found = []
    for settings in ({}, {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}):
        learner = learner_of("fast_weight_memory")
        trainer = fit(tmp_path, learner, 10, **settings)
        found.append([*learner.state_dict().values(), *leaves(learner.state)])
    assert equal(*found)
    trainer.validate(learner, Stream(), verbose=False)
    scores, _ = literal_scores(learner.model, stream(3, seed=1))
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(scores["loss"], rel=1e-5)


def test_predictions_are_those_of_one_long_run(tmp_path):
    learner = learner_of("fast_weight_memory")
    trainer = fit(tmp_path, learner, 5)
    loaders = list(Stream().test_dataloader().values())
    for found, seed in zip(trainer.predict(learner, loaders), (1, 2), strict=True):
        whole = joined(stream(3, seed=seed))
        assert torch.equal(torch.cat(found, 1), learner.model(whole.tokens, None, whole.mask)[0].argmax(-1))


# Checkpoints.


@every_layer
@pytest.mark.parametrize("stop", [4, 6], ids=["at the end of an epoch", "within an epoch"])
def test_a_resumed_run_is_bit_identical(tmp_path, layer, stop):
    whole, record = learner_of(layer), Record()
    fit(tmp_path, whole, 11, [record])
    fit(tmp_path, learner_of(layer), stop).save_checkpoint(tmp_path / "half.ckpt")
    resumed, rest = learner_of(layer), Record()
    fit(tmp_path, resumed, 11, [rest], ckpt_path=tmp_path / "half.ckpt")
    assert rest.losses == record.losses[stop:]
    assert equal(resumed.state_dict(), whole.state_dict())
    assert equal(rest.states, record.states[stop:])


def test_a_new_run_starts_from_the_first_state(tmp_path):
    learner, record = learner_of("delta_rnn", lr=0.0, kind=torch.optim.SGD), Record()
    for _ in range(2):
        fit(tmp_path, learner, 3, [record])
    assert record.losses[:3] == record.losses[3:]


def work(rank, root, port):
    """Train 9 steps; train 6, save, and resume up to 9."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2"
    )
    torch.set_num_threads(1)
    two = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    whole, first, resumed = (learner_of("fast_weight_memory") for _ in range(3))
    record, rest = Record(), Record()
    fit(root, whole, 9, [record], **two)
    fit(root, first, 6, **two).save_checkpoint(f"{root}/half.ckpt")
    trainer = fit(root, resumed, 9, [rest], ckpt_path=f"{root}/half.ckpt", **two)
    trainer.test(resumed, Stream(), verbose=False)
    torch.save([record.states, rest.states], f"{root}/{rank}.pt")
    report = {
        "losses": [record.losses[6:], rest.losses],
        "equal": [equal(resumed.state_dict(), whole.state_dict()), equal(resumed.state, whole.state)],
        "results": [resumed.results["test"], literal_scores(resumed.model, stream(3, seed=1))],
    }
    Path(root, f"{rank}.json").write_text(json.dumps(report))


def test_two_processes_carry_and_resume_their_own_states(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(tmp_path), port), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, (whole, rest) in enumerate(states):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["losses"][0] == report["losses"][1]
        assert report["equal"] == [True, True]
        assert equal(rest, whole[6:])
        found, (scores, groups) = report["results"]
        assert found.pop("groups") == {group: pytest.approx(values) for group, values in groups.items()}
        assert found == pytest.approx(scores, rel=1e-5)
    assert not torch.equal(states[0][0][-1][0], states[1][0][-1][0])  # each has rows of its own

    # One process with all rows carries the states of both: the first segment is read with the same weights.
    learner, segment = learner_of("fast_weight_memory"), stream(160)[0]
    with torch.no_grad():
        both = leaves(learner.model(segment.tokens, None, segment.mask)[1])
    for value, *parts in zip(both, states[0][0][0], states[1][0][0], strict=True):
        torch.testing.assert_close(torch.cat(parts), value)


def test_a_row_that_overflows_falls_back_to_the_state_before(tmp_path):
    class Overflow(L.Callback):
        """Let the state of row 1 overflow in one segment."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                pl_module.state[0][1].fill_(1e30)
                self.before = [s.clone() for s in leaves(pl_module.state)]

    learner, overflow, record = learner_of("delta_rnn"), Overflow(), Record()
    forward = learner.model.forward

    def spoilt(tokens, state=None, mask=None):
        logits, new = forward(tokens, state, mask)
        if state is not None and state[0].abs().max() > 1e29:
            new = (new[0].index_fill(0, torch.tensor([1]), torch.nan), *new[1:])
        return logits, new

    learner.model.forward = spoilt
    fit(tmp_path, learner, 4, [overflow, record])
    for before, after, other in zip(overflow.before, record.states[2], record.states[1], strict=True):
        assert torch.equal(after[1], before[1])  # the bad row keeps what it had
        assert after.isfinite().all()
        assert not torch.equal(after[0], other[0])  # the others go on


def test_another_batch_size_or_number_of_processes_is_refused(tmp_path):
    learner = learner_of("delta_rnn")
    fit(tmp_path, learner, 2)
    learner.state = tuple(s[:2] for s in learner.state)
    segment = stream(1)[0]
    with pytest.raises(ValueError, match="state is that of 2 streams, the batch has 4"):
        learner.training_step(segment, 0)
    other = learner_of("delta_rnn")
    other._restored = tuple(torch.stack([s, s]) for s in learner.state)
    with pytest.raises(ValueError, match=r"states of 2 process\(es\), this run has 1"):
        fit(tmp_path, other, 1)
