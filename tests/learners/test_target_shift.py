"""A decoder that sees the token that it has to name is refused; the look at it leaves no trace in the training."""

from functools import partial

import pytest
import torch
from test_sequences import Reversal, trainer
from torch import nn

from algornn import GRU, LSTM, DeltaNet, FastWeightBlocks, Seq2Seq, SequenceToSequence, TransformerSeq2Seq
from algornn.learners import sequence_to_sequence
from algornn.learners.target_shift import check_shift

SOURCE, TARGET = torch.tensor([[2, 3, 1], [4, 1, 0], [2, 1, 0]]), torch.tensor([[3, 2, 1], [4, 1, 0], [2, 1, 0]])
NETWORKS = {
    "lstm": partial(Seq2Seq, 6, 6, partial(LSTM, hidden_size=8)),
    "attention": partial(Seq2Seq, 6, 6, partial(GRU, hidden_size=8), attention=True),
    "delta_net": partial(Seq2Seq, 6, 6, partial(FastWeightBlocks, memory=partial(DeltaNet, heads=2))),
    "transformer": partial(TransformerSeq2Seq, 6, 6, 16),
    "relative": partial(TransformerSeq2Seq, 6, 6, 16, positions="relative", shared=True),
}


class Unshifted(Seq2Seq):
    """Forgets that the decoder must not see the token that it has to name."""

    def forward(self, source, target, source_mask=None):
        y, _ = self.decoder(self.target_embedding(target), self.start(source, source_mask)[0])
        return self.output(y)


class OtherStart(Seq2Seq):
    """Starts a target with id 2 in forward."""

    def forward(self, source, target, source_mask=None):
        inputs = torch.cat([torch.full_like(target[:, :1], 2), target[:, :-1]], 1)
        y, _ = self.decoder(self.target_embedding(inputs), self.start(source, source_mask)[0])
        return self.output(y)


class Traces(Seq2Seq):
    """Counts its calls in buffers, one of them replaced at every call, and draws random numbers where it is told."""

    def __init__(self, noise=0.0):
        super().__init__(6, 6, partial(LSTM, hidden_size=8), embedding_size=6, dropout=0.2)
        self.norm, self.noise = nn.BatchNorm1d(6), noise
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, source, target, source_mask=None):
        self.calls += 1
        self.last = source.sum()
        logits = super().forward(source, target, source_mask)
        return self.norm(logits.flatten(0, 1)).view_as(logits) + self.noise * torch.randn_like(logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_package_pass(name):
    model = NETWORKS[name]()
    for target in (TARGET, TARGET[:, :1], TARGET.repeat(1, 9)):
        check_shift(model, SOURCE, target, SOURCE > 0)
    with torch.autocast("cpu", torch.bfloat16):
        check_shift(model, SOURCE, TARGET, None)
    check_shift(model.bfloat16(), SOURCE, TARGET, None)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_target_that_is_not_shifted_is_named(length, dtype):
    words = "Unshifted sees the token that it has to name: the decoder must see target one step later, id 0 first"
    with pytest.raises(ValueError, match=words):
        check_shift(Unshifted(6, 6, LSTM).to(dtype), SOURCE, TARGET[:, :length], None)


def test_what_a_network_gives_at_padding_does_not_matter():
    class Packed(Seq2Seq):
        def forward(self, source, target, source_mask=None):
            assert source_mask.sum(1).max() == source.shape[1], "more columns than an encoder that packs takes"
            return super().forward(source, target, source_mask) * (target > 0)[..., None]

    mask = TARGET > 0
    source = torch.cat([SOURCE, torch.zeros_like(SOURCE)], 1)
    check_shift(Packed(6, 6, partial(LSTM, hidden_size=8)), source, TARGET, source > 0, mask)
    with pytest.raises(ValueError, match="start and step give other logits"):
        check_shift(OtherStart(6, 6, partial(LSTM, hidden_size=8)), SOURCE, TARGET, SOURCE > 0, mask)


def test_nothing_is_compiled_for_the_look():
    def backend(graph, inputs):
        raise AssertionError("compiled")

    check_shift(torch.compile(NETWORKS["lstm"](), backend=backend), SOURCE, TARGET, SOURCE > 0)


def test_a_start_that_step_does_not_share_is_named():
    with pytest.raises(ValueError, match="OtherStart and its start and step give other logits for the same tokens"):
        check_shift(OtherStart(6, 6, LSTM), SOURCE, TARGET, None)


def test_a_network_that_draws_numbers_in_evaluation_is_let_through():
    check_shift(Traces(noise=1.0), SOURCE, TARGET, None)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_look_leaves_modes_buffers_and_random_numbers(noise):
    model = Traces(noise)
    model.output.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    buffers, random = dict(model.named_buffers()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    check_shift(model, SOURCE, TARGET, None)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert model.last is None
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def losses_of(root, model, **settings):
    seen, learner = [], SequenceToSequence(model, partial(torch.optim.Adam, lr=1e-2), teacher_forcing=0.5)
    log = learner.log
    learner.log = lambda name, value, **options: (seen.append(value.detach()), log(name, value, **options))
    trainer(root, max_steps=4, limit_val_batches=0, **settings).fit(learner, Reversal("reversal", batch_size=16))
    return [*seen, *model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_bitwise_what_it_is_without_the_look(tmp_path, monkeypatch, precision):
    found, looks = [], []

    def counted(*arguments):
        looks.append(1)
        check_shift(*arguments)

    for look in (counted, lambda *_: None):
        monkeypatch.setattr(sequence_to_sequence, "check_shift", look)
        torch.manual_seed(0)
        model = Seq2Seq(6, 6, partial(LSTM, hidden_size=8, layers=2, dropout=0.2), embedding_size=6, dropout=0.2)
        found.append(losses_of(tmp_path, model, precision=precision))
    assert looks == [1]
    assert all(map(torch.equal, *found))


def test_a_fit_asks_at_its_first_step(tmp_path):
    with pytest.raises(ValueError, match="the decoder must see target one step later, id 0 first"):
        losses_of(tmp_path, Unshifted(6, 6, LSTM))
