"""TPRRNN and LSTMReader: the published network, its sizes, and that padding is never read."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import algornn.recipes
from algornn import TPRRNN, LSTMReader
from algornn.datamodules import BAbI, StoryWorld

V, W, T, B = 17, 6, 7, 4
MASK = torch.arange(T) < torch.tensor([7, 4, 1, 6])[:, None]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def batch(seed=0, words=W):
    """Stories whose padding sentences hold any words: nobody may look at them."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, V, (B, T, words), generator=generator),
        torch.randint(0, V, (B, words), generator=generator),
        MASK,
    )


def reader(kind, **kwargs):
    torch.manual_seed(3)
    model = kind(V, W, **kwargs).double()
    for parameter in model.parameters():  # off the ones and zeros that some start with
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


readers = pytest.mark.parametrize("kind", [TPRRNN, LSTMReader])


def test_published_number_of_parameters():
    model = TPRRNN(vocab_size=179, sentence_length=12, unused_query_head=True)
    assert count(model) == 141_985
    assert count(TPRRNN(vocab_size=179, sentence_length=12)) == 131_095

    model(torch.ones(2, 3, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.int64)).sum().backward()
    assert sum(p.numel() for p in model.parameters() if p.grad is None) == 10_890


@pytest.mark.parametrize(
    ("vocab_size", "words", "wanted"),
    [(22, 7, 31_504), (36, 7, 39_274), (37, 8, 39_881), (17, 8, 28_841), (179, 12, 141_985), (5, 3, 22_576)],
)
def test_parameters_of_other_sizes(vocab_size, words, wanted):
    assert wanted == vocab_size**2 + (490 + words) * vocab_size + 20_086
    assert count(TPRRNN(vocab_size, words, unused_query_head=True)) == wanted


@pytest.mark.parametrize(
    ("recipe", "baseline"), [("quickstart", "quickstart_lstm"), ("babi_all_tprrnn", "babi_all_lstm")]
)
def test_the_baselines_of_the_recipes_have_the_size_of_the_model(recipe, baseline):
    def build(name):
        config = OmegaConf.load(str(files(algornn.recipes) / f"{name}.yaml"))
        data = {"BAbI": BAbI, "StoryWorld": StoryWorld}[config.data.class_path](**config.data.init_args)
        model = config.model.init_args.model
        kind = {"TPRRNN": TPRRNN, "LSTMReader": LSTMReader}[model.class_path]
        return kind(data.vocab_size, data.sentence_length, **model.get("init_args", {}))

    model, other = build(recipe), build(baseline)
    assert (type(model), type(other)) == (TPRRNN, LSTMReader)
    assert count(other) == pytest.approx(count(model), rel=0.02)


def test_the_default_baseline_has_the_size_of_the_model_on_all_tasks():
    assert count(LSTMReader(179, 12)) == pytest.approx(131_095, rel=0.02)


def test_sentences_are_sums_of_words_with_position_weights():
    encoder = reader(TPRRNN).encoder
    words = batch()[0]
    embedding, position = encoder.embedding.weight, encoder.position
    wanted = torch.stack([embedding[words[..., w]] * position[w] / W for w in range(W)]).sum(0)
    torch.testing.assert_close(encoder(words), wanted, rtol=1e-13, atol=1e-13)

    # The division is part of the graph: the gradient of a position weight is scaled by 1 / W.
    encoder(words).sum().backward()
    wanted = torch.stack([embedding[words[..., w]].flatten(0, -2).sum(0) / W for w in range(W)])
    torch.testing.assert_close(position.grad, wanted, rtol=1e-12, atol=1e-12)


def test_what_the_encoder_starts_with():
    encoder = TPRRNN(179, 12).encoder
    assert torch.equal(encoder.position, torch.ones(12, 179))
    assert 0.0999 < encoder.embedding.weight.abs().max().item() <= 0.1
    assert encoder.embedding.weight[0].abs().mean().item() == pytest.approx(0.05, rel=0.2)  # padding is a word, too


def test_what_the_output_starts_with():
    weight = TPRRNN(179, 12).output.weight
    bound = (6 / (90 + 179)) ** 0.5
    assert weight.shape == (179, 90)
    assert 0.99 * bound < weight.abs().max().item() <= bound


class Literal:
    """The published network as loops over examples, sentences and hops, in numpy."""

    def __init__(self, model):
        self.p = {name: value.detach().numpy() for name, value in model.named_parameters()}
        self.hidden = model.memory.write_heads.second[0].in_features

    def encode(self, words):
        total = 0
        for w, word in enumerate(words):
            total = total + self.p["encoder.embedding.weight"][word] * self.p["encoder.position"][w] / len(words)
        return total

    def head(self, kind, number, x):
        name, rows = f"memory.{kind}_heads", slice(number * self.hidden, (number + 1) * self.hidden)
        hidden = np.tanh(self.p[f"{name}.first.weight"][rows] @ x + self.p[f"{name}.first.bias"][rows])
        return np.tanh(self.p[f"{name}.second.{number}.weight"] @ hidden + self.p[f"{name}.second.{number}.bias"])

    def logits(self, story, query, length):
        f = 0
        for sentence in story[:length]:
            x = self.encode(sentence)
            e1, e2, r1, r2, r3 = (self.head("write", number, x) for number in range(5))
            f = np.zeros((len(e1), len(r1), len(e1))) if isinstance(f, int) else f
            w, m, b = (np.einsum("erv,e,r->v", f, e, r) for e, r in ((e1, r1), (e1, r2), (e2, r3)))
            outer = np.multiply.outer
            f = f + outer(e1, outer(r1, e2 - w) + outer(r2, w - m)) + outer(e2, outer(r3, e1 - b))
        x = self.encode(query)
        i, answer = self.head("read", 0, x), 0
        for hop in range(3):
            z = np.einsum("erv,e,r->v", f, i, self.head("read", hop + 1, x))
            z = (z - z.mean()) / np.sqrt(z.var() + 1e-7)
            i = self.p["memory.gain"][hop] * z + self.p["memory.bias"][hop]
            answer = answer + i
        return self.p["output.weight"] @ answer


@pytest.mark.parametrize("sizes", [{}, {"entity_size": 5, "role_size": 3, "hidden_size": 4}], ids=["default", "small"])
def test_the_published_equations(sizes):
    model = reader(TPRRNN, **sizes)
    story, query, mask = batch()
    rows = zip(story.numpy(), query.numpy(), mask.sum(1).tolist(), strict=True)
    wanted = np.stack([Literal(model).logits(*row) for row in rows])
    found = model(story, query, mask).detach().numpy()
    assert found.shape == (B, V)
    assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()


def lstm(parameters, x):
    """The last hidden state of an LSTM (gates in, forget, cell, out) after inputs [T, V]."""
    h = c = np.zeros(parameters["weight_hh_l0"].shape[1])
    for token in x:
        gates = parameters["weight_ih_l0"] @ token + parameters["weight_hh_l0"] @ h
        gates = gates + parameters["bias_ih_l0"] + parameters["bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        sigmoid = [1 / (1 + np.exp(-gate)) for gate in (i, f, o)]
        c = sigmoid[1] * c + sigmoid[0] * np.tanh(g)
        h = sigmoid[2] * np.tanh(c)
    return h


def test_the_baseline_reads_the_story_then_the_question():
    model = reader(LSTMReader, hidden_size=9)
    story, query, mask = batch()
    parameters = {name: value.detach().numpy() for name, value in model.lstm.named_parameters()}
    wanted = []
    for row in range(B):
        sentences = torch.cat([story[row, : int(mask[row].sum())], query[row : row + 1]])
        wanted.append(
            model.output.weight.detach().numpy() @ lstm(parameters, model.encoder(sentences).detach().numpy())
        )
    found = model(story, query, mask).detach().numpy()
    assert np.abs(found - np.stack(wanted)).max() < 1e-10 * np.abs(wanted).max()


@readers
def test_padding_changes_nothing(kind):
    model = reader(kind)
    story, query, mask = batch()
    logits = model(story, query, mask)
    close = {"rtol": 0, "atol": 1e-12 * logits.abs().max().item()}

    more = torch.randint(0, V, (B, 5, W))
    longer = torch.cat([story, more], 1), query, torch.cat([mask, torch.zeros(B, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(model(*longer), logits, **close)
    other = torch.where(mask[..., None], story, torch.randint(0, V, story.shape))
    torch.testing.assert_close(model(other, query, mask), logits, **close)
    for row in range(B):
        alone = model(story[row : row + 1, : int(mask[row].sum())], query[row : row + 1])
        torch.testing.assert_close(alone[0], logits[row], **close)


@readers
def test_every_sentence_and_the_question_are_read(kind):
    model = reader(kind)
    story, query, mask = batch()
    logits = model(story, query, mask)
    for t in range(T):
        changed = story.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        differs = (model(changed, query, mask) - logits).abs().amax(1) > 1e-9
        assert torch.equal(differs, mask[:, t])
    assert ((model(story, (query + 1) % V, mask) - logits).abs().amax(1) > 1e-9).all()


@readers
@pytest.mark.parametrize("words", [5, 7])
def test_sentences_of_another_length_are_refused(kind, words):
    (story, query, mask), (other_story, other_query, _) = batch(), batch(words=words)
    for changed in [(other_story, other_query), (other_story, query), (story, other_query)]:
        wanted = (
            rf"sentences must have 6 words \(padded with 0\), got \[4, (7, )?{words}\]\. Build the model with the data"
        )
        with pytest.raises(ValueError, match=wanted):
            reader(kind)(*changed, mask)


def test_fast_weights_of_a_story():
    model = reader(TPRRNN, entity_size=5, role_size=3, hidden_size=4)
    story, query, mask = batch()
    trace = model.fast_weights(story, query, mask)
    assert [x.shape for x in trace] == [(B, 2 * T, 15), (B, 2 * T, 5), (B, 2 * T), (B, 15, 5)]
    assert not trace.keys[~mask.repeat_interleave(2, 1)].any()
    other = torch.where(mask[..., None], story, 0)
    assert torch.equal(model.fast_weights(other, query, mask).state, trace.state)


@readers
def test_bfloat16_training_step(kind):
    model = reader(kind).float()
    story, query, mask = batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model(story, query, mask), query[:, 0])
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
