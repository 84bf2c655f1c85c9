"""SequenceToSequence and SequenceClassification: losses, scores, decoding, validation sets out of distribution."""

import re
from functools import partial
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algornn import GRU, LSTM, Seq2Seq, SequenceClassification, SequenceClassifier, SequenceToSequence
from algornn.datamodules.labelled_sequences import LabelledDataset, LabelledSequenceDataModule
from algornn.datamodules.sequence_pairs import EOS, SPECIAL, PairDataset, SequencePairDataModule
from algornn.datamodules.split_datamodule import generator
from algornn.models.seq2seq import EOS_ID

WORDS = tuple("abcd")


class Reversal(SequencePairDataModule):
    """Sequences of letters, to be written backwards; longer ones are out of distribution."""

    benchmark = "reversal"
    splits = ("reversal",)
    further, further_val, ood = ("longer",), ("val_ood",), ("longer", "val_ood")
    groups = ("even", "odd")
    vocabulary = (*SPECIAL, *WORDS)
    outputs = (*SPECIAL, *reversed(WORDS))
    lengths: ClassVar = {"train": (1, 4), "val": (1, 4), "test": (1, 4), "val_ood": (5, 5), "longer": (6, 6)}

    def dataset_of(self, stage):
        draw, (least, most) = generator("reversal", stage), self.lengths[stage]
        sources = [
            draw.choice(WORDS, draw.integers(least, most + 1)).tolist() for _ in range(400 if stage == "train" else 65)
        ]
        return PairDataset(self.vocabulary, self.outputs, self.groups, [(s, s[::-1], len(s) % 2) for s in sources])


class LastLetter(LabelledSequenceDataModule):
    """Which letter came last?"""

    benchmark = "last_letter"
    splits = ("last",)
    groups = ("short", "long")
    vocabulary = ("<pad>", *WORDS)
    outputs = WORDS

    def dataset_of(self, stage):
        draw = generator("last_letter", stage)
        lengths = draw.integers(1, 8, 65)
        tokens = draw.integers(1, 5, lengths.sum())
        label = tokens[np.cumsum(lengths) - 1] - 1
        return LabelledDataset(self.vocabulary, self.outputs, self.groups, tokens, lengths, label, lengths > 3)


class Half(SequenceToSequence):
    """What one of two processes does with its half of a batch; `others` is the number of the other one's terms."""

    others = torch.tensor(0.0)
    trainer = type("Trainer", (), {"world_size": 2})()

    def all_gather(self, n):
        return torch.stack([n, self.others])


def test_two_processes_have_the_gradient_of_one():
    batch = next(iter(Reversal("reversal", batch_size=16).train_dataloader()))
    torch.manual_seed(0)
    model = Seq2Seq(6, 6, layer=partial(LSTM, hidden_size=8), embedding_size=6).double()
    whole = SequenceToSequence(model)
    halves = [type(batch)(*(field[rows] for field in batch)) for rows in (slice(0, 5), slice(5, 16))]
    counts = [half.target_mask.sum() for half in halves]
    assert counts[0] / 5 != counts[1] / 11  # the mean of the two means is another number
    expected = torch.autograd.grad(whole.loss(model, batch), list(model.parameters()))
    gradients = []
    for rank, half in enumerate(halves):
        learner = Half(model)
        learner._trainer = Half.trainer
        learner.others = counts[1 - rank].double()
        gradients.append(torch.autograd.grad(learner.shared_out(learner.loss(model, half), half), model.parameters()))
    for right, one, two in zip(expected, *gradients, strict=True):
        torch.testing.assert_close((one + two) / 2, right, rtol=1e-12, atol=1e-14)


def test_one_process_has_its_loss_as_it_is():
    learner = SequenceToSequence(Seq2Seq(6, 6, layer=partial(LSTM, hidden_size=8), embedding_size=6))
    loss = torch.tensor(2.0)
    assert learner.shared_out(loss, None) is loss


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_is_clipped_under_bfloat16(tmp_path, algorithm):
    learner = SequenceToSequence(
        Seq2Seq(6, 6, layer=partial(LSTM, hidden_size=8), embedding_size=6), partial(torch.optim.Adam, fused=True)
    )
    seen = []
    learner.on_before_optimizer_step = lambda _: seen.extend(float(p.grad.norm()) for p in learner.parameters())
    clip = {"gradient_clip_val": 1e-5, "gradient_clip_algorithm": algorithm}
    fit = trainer(tmp_path, precision="bf16-mixed", max_steps=1, **clip)
    fit.fit(learner, Reversal("reversal", batch_size=16))
    before = max(seen)
    clipped = [p.grad for p in learner.parameters()]
    norm = float(torch.stack([g.norm() for g in clipped]).norm())
    largest = max(float(g.abs().max()) for g in clipped)
    assert before > 1e-4
    assert (norm if algorithm == "norm" else largest) <= 1.001e-5


def test_a_network_that_is_no_classifier_is_refused():
    with pytest.raises(TypeError, match="takes 'target' second: take SequenceClassifier"):
        SequenceClassification(Seq2Seq(6, 6))


def trainer(root, **settings):
    settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False,
        "use_distributed_sampler": False, **settings,
    }  # fmt: skip
    return L.Trainer(default_root_dir=root, **settings)


def fresh(**settings):
    torch.manual_seed(0)
    model = Seq2Seq(6, 6, partial(GRU, hidden_size=24), embedding_size=16, attention=True)
    return SequenceToSequence(model, partial(torch.optim.Adam, lr=1e-2), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    learner, data = fresh(teacher_forcing=0.7), Reversal("reversal")
    run = trainer(tmp_path_factory.mktemp("run"), max_steps=240, check_val_every_n_epoch=10)
    run.fit(learner, data)
    return learner.eval(), data, {key: float(value) for key, value in run.callback_metrics.items()}


def batch_of(data, stage="test"):
    dataset = data.dataset(stage)
    return data.collate([dataset[i] for i in range(len(dataset))])


def test_a_pair_is_shown_in_words_and_ends_with_eos():
    data = Reversal("reversal")
    batch = batch_of(data)
    assert data.examples("test")[0].target == data.examples("test")[0].source[::-1]
    ends = batch.target_mask.sum(1) - 1
    assert data.outputs[EOS_ID] == data.vocabulary[EOS_ID] == EOS
    assert (batch.target[torch.arange(65), ends] == EOS_ID).all()
    assert (batch.source[torch.arange(65), batch.source_mask.sum(1) - 1] == EOS_ID).all()
    assert (batch.target[~batch.target_mask] == 0).all()


def test_a_word_out_of_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="pair 2 has the word 'z', which is not in the vocabulary"):
        PairDataset((*SPECIAL, "a"), (*SPECIAL, "a"), ("all",), [(["a"], ["a"], 0), (["a"], ["z"], 0)])


def test_the_loss_is_the_mean_over_the_targets_tokens():
    learner, batch = fresh().eval(), batch_of(Reversal("reversal"))
    logits = learner.model(batch.source, batch.target, batch.source_mask).log_softmax(-1)
    places = batch.target_mask.nonzero().tolist()
    wanted = -sum(logits[b, t, batch.target[b, t]] for b, t in places) / len(places)
    torch.testing.assert_close(learner.loss(learner.model, batch), wanted)


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_groups_by_length_give_the_gradient_of_the_whole_batch(kind):
    gradients, widths = [], []
    for groups in (1, 3):
        torch.manual_seed(0)
        if kind == "pairs":
            learner, batch = fresh(length_groups=groups), batch_of(Reversal("reversal"))
        else:
            model = SequenceClassifier(5, 4, partial(LSTM, hidden_size=8), embedding_size=6)
            learner, batch = SequenceClassification(model, length_groups=groups), batch_of(LastLetter("last"))
        learner.double()
        called = []

        def call(*arguments, model=learner.model, called=called):
            called.append(arguments[0].shape)
            return model(*arguments)

        learner.loss(call, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
        widths.append([shape[1] for shape in called])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)
    assert len(widths[1]) == 3
    assert widths[1][0] < widths[1][2] == widths[0][0]


def test_reversal_is_learnt_and_every_validation_set_is_logged(trained):
    _, _, logged = trained
    assert logged["val/sequence_accuracy"] > 0.9
    assert logged["val_ood/sequence_accuracy"] < logged["val/sequence_accuracy"]
    assert {"val/odd/sequence_accuracy", "val_ood/odd/sequence_accuracy", "val_ood/loss"} <= logged.keys()
    assert not any(key.endswith("examples") for key in logged)


def test_scores_are_those_of_what_is_written(trained, tmp_path):
    learner, data, _ = trained
    trainer(tmp_path).test(learner, data, verbose=False)
    batch = batch_of(data, "longer")
    written = learner.predict_step(batch, 0)
    right, tokens = 0, 0
    for row in range(len(batch.target)):
        target = batch.target[row][batch.target_mask[row]].tolist()
        right += written[row, : len(target) + 1].tolist() == [*target, 0]
        tokens += sum(a == b for a, b in zip(written[row].tolist(), target, strict=False))
    result = learner.results["longer"]
    assert result["sequence_accuracy"] == pytest.approx(right / 65)
    # What is written after an early end is 0 in the prediction, and may by chance be right where scored.
    assert result["token_accuracy"] >= tokens / batch.target_mask.sum() - 1e-6
    assert result["examples"] == result["groups"]["even"]["examples"] == 65
    assert set(learner.results) == {"test", "longer"}
    assert 0 < learner.results["test"]["loss"] < result["loss"]


def test_the_oracle_of_length_mends_the_end(trained):
    learner, data, _ = trained
    batch, right = batch_of(data, "longer"), {}
    for oracle in (False, True):
        learner.eos_oracle = oracle
        ((_, right[oracle], *_),) = learner.scored(batch)
    learner.eos_oracle = False
    written = learner.predict_step(batch, 0)
    early = written[torch.arange(65), batch.target_mask.sum(1) - 1] != EOS_ID  # or late
    assert early.any()
    assert (right[True] >= right[False])[~early].all()
    assert (right[True] > right[False])[early].any()


def test_without_teacher_forcing_the_decoder_reads_what_it_writes():
    learner, batch = fresh(teacher_forcing=0.0).eval(), batch_of(Reversal("reversal"))
    learner.log = lambda *_, **__: None
    own = learner.training_step(batch, 0)
    state, token, losses = learner.model.start(batch.source, batch.source_mask), torch.zeros(65, dtype=torch.long), []
    for t in range(batch.target.shape[1]):
        logits, state = learner.model.step(token, state)
        losses.append(F.cross_entropy(logits, batch.target[:, t], reduction="none"))
        token = logits.argmax(1)
    wanted = (torch.stack(losses, 1) * batch.target_mask).sum() / batch.target_mask.sum()
    torch.testing.assert_close(own, wanted)
    assert abs(own - learner.loss(learner.model, batch)) > 1e-6


def test_the_share_of_teacher_forcing_is_kept():
    learner = fresh(teacher_forcing=0.3)
    learner.log, calls = lambda *_, **__: None, []
    learner.loss = lambda call, batch: calls.append(call is learner.model) or torch.zeros(())
    torch.manual_seed(0)
    for _ in range(400):
        learner.training_step(None, 0)
    assert 0.23 < sum(calls) / 400 < 0.37


def test_classes_are_learnt_and_scored(tmp_path):
    torch.manual_seed(0)
    model = SequenceClassifier(5, 4, partial(LSTM, hidden_size=16), embedding_size=8)
    learner, data = SequenceClassification(model, partial(torch.optim.Adam, lr=1e-2)), LastLetter("last")
    run = trainer(tmp_path, max_steps=150, check_val_every_n_epoch=20)
    run.fit(learner, data)
    run.test(learner, data, verbose=False)
    batch = batch_of(data)
    predicted = learner.eval().predict_step(batch, 0)
    result = learner.results["test"]
    assert result["sequence_accuracy"] == pytest.approx((predicted == batch.label).float().mean().item())
    assert result["sequence_accuracy"] > 0.9
    short = batch.group == 0
    assert result["groups"]["short"]["examples"] == short.sum()
    losses = F.cross_entropy(learner.model(batch.tokens, batch.mask), batch.label)
    assert result["loss"] == pytest.approx(losses.item(), rel=1e-5)


def test_the_example_of_the_documentation(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "models.md"
    (example,) = (
        part for part in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "Translator" in part
    )
    found = {}
    exec(compile(example, str(page), "exec"), found)
    torch.manual_seed(0)
    learner, data = SequenceToSequence(found["Translator"](6, 6, 16), max_length=8), Reversal("reversal")
    trainer(tmp_path, max_steps=1, limit_val_batches=1).fit(learner, data)
    batch = batch_of(data)
    written = learner.eval().predict_step(batch, 0)[0]
    alone = type(batch)(*(field[:1] for field in batch))._replace(source=batch.source[:1, : batch.source_mask[0].sum()])
    alone = alone._replace(source_mask=alone.source > 0)
    assert torch.equal(learner.predict_step(alone, 0)[0], written)


# Mistakes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_forcing": 1.5}, "`teacher_forcing` must be a share, a number from 0 to 1, got 1.5"),
        ({"teacher_forcing": "a"}, "`teacher_forcing` must be a share, a number from 0 to 1, got 'a'"),
        ({"length_groups": 0}, "`length_groups` must be at least 1"),
        ({"max_length": 2.5}, "`max_length` must be a whole number, got 2.5"),
        ({"eos_oracle": "no"}, "`eos_oracle` must be True or False, got 'no'"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0, got -1"),
        ({"warmup_steps": 1.5}, "`warmup_steps` must be a whole number, got 1.5"),
        ({"warmup_factor": -3}, "`warmup_factor` must be a share, a number from 0 to 1, got -3"),
        ({"cooldown": 2.0}, "`cooldown` must be a share, a number from 0 to 1, got 2.0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fresh(**settings)


def test_what_makes_no_optimizer_is_named():
    with pytest.raises(
        TypeError, match=r"`optimizer` must be called with the parameters, as torch.optim.Adam is, got 3"
    ):
        SequenceToSequence(Seq2Seq(6, 6), 3)


def test_a_batch_that_asks_for_nothing_is_named():
    learner, batch = fresh(), batch_of(Reversal("reversal"))
    with pytest.raises(ValueError, match="Every batch must have a target token that counts, in this one"):
        learner.loss(learner.model, batch._replace(target_mask=torch.zeros_like(batch.target_mask)))


def test_data_for_another_learner_are_named(tmp_path):
    learner = SequenceClassification(SequenceClassifier(6, 4, LSTM))
    with pytest.raises(ValueError, match="needs batches with tokens, label, mask, these are PairBatch without tokens"):
        trainer(tmp_path, max_steps=1).fit(learner, Reversal("reversal"))


def test_a_model_that_cannot_decode_is_named():
    with pytest.raises(TypeError, match="`model` must have start and step to decode, Linear lacks start"):
        SequenceToSequence(nn.Linear(2, 2))


def test_a_source_of_ones_own_is_encoded_and_what_is_written_decoded():
    data = Reversal("reversal")
    batch = data.encode("a b c", "d")
    assert [[data.vocabulary[i] for i in row] for row in batch.source.tolist()] == [
        ["a", "b", "c", "<eos>"], ["d", "<eos>", "<pad>", "<pad>"],
    ]  # fmt: skip
    assert batch.source_mask.sum(1).tolist() == [4, 2]
    written = fresh().eval().predict_step(batch, 0)
    assert all(isinstance(data.decode(row), list) for row in written)
    assert data.decode(torch.tensor([2, 3, 1, 0])) == ["d", "c"]
    with pytest.raises(ValueError, match=r"x, y: not in the vocabulary of Reversal\."):
        data.encode("a y x")
