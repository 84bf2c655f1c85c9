"""TokenTagging and KeyValueRetrieval: the loss is the stated one and falls, and the scores are those of the answers."""

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from algornn import (
    DeltaNet,
    FastWeightBlocks,
    KeyValueRetrieval,
    KeyValueRetriever,
    TokenNetwork,
    TokenTagging,
)
from algornn.datamodules import KeyValueCapacity
from algornn.datamodules.tokens import NO_TARGET, PackedTokens, collate_tokens


def trainer(root, **settings):
    settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0, **settings,
    }  # fmt: skip
    return L.Trainer(default_root_dir=root, **settings)


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


# Token tagging: has the token 1 been seen up to here? Asked at some places, of sequences of 2 to 9 tokens.


def heard(count, seed):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, 10, count)
    tokens = [draw.integers(1, 6, length) for length in lengths]
    target = [np.where(draw.random(len(x)) < 0.6, np.maximum.accumulate(x == 1), NO_TARGET) for x in tokens]
    for x in target:
        x[-1] = max(x[-1], 0)  # the last place always asks for something
    words = tuple("pabcde")
    joined = np.concatenate(tokens), np.concatenate(target).astype(np.int64)
    return PackedTokens(words, ("no", "yes"), ("even", "odd"), *joined, lengths, lengths % 2)


def loader(count, seed, batch_size):
    # By keyword: after an error in some loader Lightning leaves DataLoader wrapped, and takes a positional one twice.
    return DataLoader(heard(count, seed), batch_size=batch_size, collate_fn=collate_tokens)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    torch.manual_seed(0)
    layer = partial(FastWeightBlocks, memory=partial(DeltaNet, heads=2), blocks=1)
    learner, losses = TokenTagging(TokenNetwork(6, 2, layer, 8), partial(torch.optim.Adam, lr=1e-2)), Losses()
    trainer(tmp_path_factory.mktemp("run"), max_steps=60, callbacks=[losses]).fit(learner, loader(320, 0, 32))
    return learner.eval(), losses.values


def test_the_loss_of_tagging_falls(tagger):
    losses = tagger[1]
    assert sum(losses[-5:]) / 5 < 0.5 * sum(losses[:3]) / 3


def test_the_loss_of_tagging_is_the_mean_over_the_tokens_that_ask(tagger):
    learner, _ = tagger
    batch = next(iter(loader(13, 1, 13)))
    assert not batch.mask.all()
    logits = learner.model(batch.tokens, None, batch.mask)[0].log_softmax(-1)
    asked = batch.target.ne(NO_TARGET).nonzero().tolist()
    wanted = -sum(logits[row, t, batch.target[row, t]] for row, t in asked) / len(asked)
    assert learner.loss(learner.model, batch).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_scores_of_tagging_are_those_of_the_answers(tagger, tmp_path):
    learner, _ = tagger
    data = loader(37, 2, 8)
    fit = trainer(tmp_path, limit_val_batches=1.0)
    (validated,) = fit.validate(learner, data, verbose=False)
    fit.test(learner, data, verbose=False)
    result, examples = learner.results["test"], []
    with torch.no_grad():
        for item in data.dataset:  # one by one, without padding
            logits = learner.model(torch.from_numpy(item.tokens)[None])[0][0]
            asks = torch.from_numpy(item.target) != NO_TARGET
            target = torch.from_numpy(item.target)[asks]
            right = logits.argmax(-1)[asks] == target
            examples.append((F.cross_entropy(logits[asks], target).item(), right.sum().item(), len(right), item.group))
    losses, right, asked, group = map(np.array, zip(*examples, strict=True))
    assert 0 < (right == asked).mean() < 1
    wanted = {
        "loss": losses.mean(),
        "sequence_accuracy": (right == asked).mean(),
        "token_accuracy": right.sum() / asked.sum(),
    }
    assert {key: result[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert {key: validated[f"val/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert result["examples"] == 37
    for index, name in enumerate(("even", "odd")):
        rows = group == index
        assert result["groups"][name]["examples"] == rows.sum()
        assert result["groups"][name]["sequence_accuracy"] == pytest.approx((right == asked)[rows].mean())
        assert result["groups"][name]["token_accuracy"] == pytest.approx(right[rows].sum() / asked[rows].sum())


def test_tags_are_predicted_for_every_token(tagger, tmp_path):
    learner, _ = tagger
    data = loader(9, 3, 4)
    for found, batch in zip(trainer(tmp_path).predict(learner, data), data, strict=True):
        assert torch.equal(found, learner.model(batch.tokens, None, batch.mask)[0].argmax(-1))


# Retrieval of key-value pairs.


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    torch.manual_seed(0)
    data = KeyValueCapacity("setting2", size=5, train_examples=3200, test_sequences=8)
    model = KeyValueRetriever(data.num_keys, data.num_values, "delta", key_size=16)
    learner, losses = KeyValueRetrieval(model, partial(torch.optim.Adam, lr=1e-2)), Losses()
    trainer(tmp_path_factory.mktemp("run"), max_steps=100, callbacks=[losses]).fit(learner, data)
    return learner.eval(), data, losses.values


def test_the_loss_of_retrieval_falls(retriever):
    losses = retriever[2]
    assert losses[0] == pytest.approx(0.5, abs=0.1)  # what an answer of zeros costs
    assert sum(losses[-5:]) / 5 < 0.15


@pytest.mark.parametrize("split", ["setting1", "setting2"])
def test_the_scores_of_retrieval_are_those_of_the_answers(retriever, tmp_path, split):
    learner, _, _ = retriever
    data = KeyValueCapacity(split, batch_size=3, size=5, test_sequences=8)
    fit = trainer(tmp_path)
    fit.test(learner, data, verbose=False)
    result, right, losses = learner.results["test"], [], []
    batches = list(data.test_dataloader()["test"])
    for batch in batches:
        y = learner.model(batch.keys, batch.values, batch.query).detach()
        for vectors, targets in zip(y, batch.target, strict=True):
            rows = list(zip(vectors, targets.tolist(), strict=True))
            right.append([int(v.argmax()) == target for v, target in rows])
            losses.append(np.mean([(v.square().sum() - 2 * v[target] + 1).item() / 2 for v, target in rows]))
    assert result["examples"] == len(right)
    assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result["sequence_accuracy"] == pytest.approx(np.mean([all(row) for row in right]))
    assert ("token_accuracy" in result) == (len(right[0]) > 1)
    if "token_accuracy" in result:
        assert result["token_accuracy"] == pytest.approx(np.mean(right))
    predicted = fit.predict(learner, data.test_dataloader()["test"])
    assert [found.tolist() for found in predicted] == [
        learner.model(b.keys, b.values, b.query).argmax(-1).tolist() for b in batches
    ]
