"""In-context learning: networks that predict before they are told, their scores, and the rules beside them."""

import copy
import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from algornn import (
    LSTM,
    VSML,
    DeltaNet,
    FastWeightBlocks,
    FastWeightMemory,
    InContextLearner,
    InContextNetwork,
    LinearTransformer,
    OnlineNetwork,
    SelfReferentialMatrix,
    Transformer,
    cli,
)
from algornn.datamodules import GaussianClusters, InContextDigits
from algornn.meta.in_context import InContextScores
from algornn.models import GaussianPosterior

CAUSAL = partial(Transformer, layers=2, heads=2, dropout=0.0, positions="none", causal=True)
NETWORKS = {
    "lstm": lambda: InContextNetwork(5, 3, partial(LSTM, hidden_size=8), embedding_size=8),
    "deltanet": lambda: InContextNetwork(5, 3, partial(DeltaNet, heads=2), embedding_size=8),
    "synchronous": lambda: InContextNetwork(5, 3, partial(DeltaNet, heads=2), embedding_size=8, synchronous=True),
    "transformer": lambda: InContextNetwork(5, 3, CAUSAL, embedding_size=8, synchronous=True),
    "posterior": lambda: GaussianPosterior(5, 3),
    "vsml": lambda: VSML(5, 3),
    "deep vsml": lambda: VSML(5, 3, hidden_sizes=(4,), state_size=6, message_size=3),
    "sgd": lambda: OnlineNetwork(5, 3, hidden_sizes=(4,)),
    "adam": lambda: OnlineNetwork(5, 3, rule="adam"),
}
each = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def streams(B=4, T=6, D=5, C=3):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(B, T, D, generator=generator), torch.randint(C, (B, T), generator=generator)
    return SimpleNamespace(x=x, y=y, id=torch.arange(B), group=torch.zeros(B, dtype=torch.int64))


@each
def test_no_class_is_used_before_it_was_predicted_and_every_one_after(make):
    torch.manual_seed(0)
    network, b = make().double(), streams()
    x = b.x.double()
    logits = network(x, b.y)
    assert logits.shape == (4, 6, 3)
    changed = b.y.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 3
    other = network(x, changed)
    assert torch.equal(other[:, :3], logits[:, :3])
    assert not torch.allclose(other[:, 3], logits[:, 3], atol=1e-12)
    last = b.y.clone()
    last[:, -1] = (last[:, -1] + 1) % 3
    assert torch.equal(network(x, last), logits)
    moved = x.clone()
    moved[:, 3] += 1
    assert torch.equal(network(moved, b.y)[:, :3], logits[:, :3])
    assert not torch.allclose(network(moved, b.y)[:, 3], logits[:, 3], atol=1e-12)


NUMBERS = {
    "lstm": lambda: InContextNetwork(5, 1, partial(LSTM, hidden_size=8), embedding_size=8),
    "transformer": lambda: InContextNetwork(5, 1, CAUSAL, embedding_size=8, synchronous=True),
    "vsml": lambda: VSML(5, 1),
    "sgd": lambda: OnlineNetwork(5, 1, hidden_sizes=(4,)),
    "adam": lambda: OnlineNetwork(5, 1, rule="adam"),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_no_number_is_used_before_it_was_foretold_and_every_one_after(make):
    torch.manual_seed(0)
    network, x = make().double(), streams().x.double()
    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
    foretold = network(x, y)
    assert foretold.shape == (4, 6, 1)
    changed = y.clone()
    changed[:, 2] = 0.0
    other = network(x, changed)
    assert torch.equal(other[:, :3], foretold[:, :3])
    assert not torch.allclose(other[:, 3], foretold[:, 3], atol=1e-12)
    b, learner = SimpleNamespace(x=x, y=y, id=torch.arange(4)), InContextLearner(network)
    missed = (foretold[..., 0] - y).square()
    assert float(learner.loss(network, b)) == pytest.approx(float(missed.mean()))
    ((ids, errors, losses),) = learner.scored(b)
    assert ids.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(errors, missed)
    torch.testing.assert_close(losses, missed.mean(1))
    assert torch.equal(learner.predict_step(b, 0), foretold[..., 0])


def test_a_number_of_0_that_is_told_differs_from_none_that_is():
    torch.manual_seed(0)
    network = InContextNetwork(1, 1, CAUSAL, embedding_size=8, synchronous=True)
    seen = []
    network.embedding.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    network(torch.ones(1, 2, 1), torch.zeros(1, 2))
    assert seen[0][0].tolist() == [[1, 0, 0], [1, 0, 1]] * 2


@each
def test_streams_do_not_mix_and_every_parameter_is_trained(make):
    torch.manual_seed(0)
    network, b = make(), streams()
    learner = InContextLearner(network)
    torch.testing.assert_close(network(b.x, b.y)[1:2], network(b.x[1:2], b.y[1:2]), rtol=1e-4, atol=1e-5)
    loss = learner.loss(network, b)
    loss.backward()
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert float(loss) == pytest.approx(float(F.cross_entropy(network(b.x, b.y).flatten(0, 1), b.y.flatten())))


@pytest.mark.parametrize(("rule", "hidden"), [("sgd", (4,)), ("sgd", ()), ("adam", ())])
def test_the_online_network_is_torchs_optimizer_on_every_stream(rule, hidden):
    b, rate = streams(), 0.3
    network = OnlineNetwork(5, 3, hidden_sizes=hidden, rule=rule, learning_rate=rate, seed=7).double()
    with torch.no_grad():
        found = network(b.x.double(), b.y)
    for stream in range(4):
        twin = copy.deepcopy(network.network).requires_grad_(True)
        kind = torch.optim.SGD if rule == "sgd" else partial(torch.optim.Adam, eps=0)
        optimizer = kind(twin.parameters(), lr=rate)
        for t in range(6):
            score = twin(b.x[stream, t].double())
            torch.testing.assert_close(found[stream, t], score.detach(), rtol=1e-4, atol=1e-5)
            optimizer.zero_grad()
            F.cross_entropy(score, b.y[stream, t]).backward()
            optimizer.step()


def test_the_rate_is_found_by_training():
    generator = torch.Generator().manual_seed(1)
    learner = InContextLearner(OnlineNetwork(8, 4, learning_rate=1e-4))
    optimizer = torch.optim.Adam(learner.parameters(), 0.3)
    losses = []
    for _ in range(25):
        centres = torch.randn(16, 4, 8, generator=generator) * 2
        y = torch.randint(4, (16, 20), generator=generator)
        x = centres.take_along_dim(y[..., None], 1) + torch.randn(16, 20, 8, generator=generator)
        loss = learner.loss(learner.model, SimpleNamespace(x=x, y=y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(4), abs=0.05)
    assert losses[-1] < 0.9
    assert learner.model.log_rate.exp() > 1e-2


def test_scores_by_examples_read():
    scores = InContextScores(3, 4)
    right = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]]).bool()
    scores.update(torch.tensor([0, 2]), right, torch.tensor([1.0, 3.0]))
    scores.update(torch.tensor([2]), right[1:], torch.tensor([3.0]))
    found = {key: float(value) for key, value in scores.compute().items()}
    assert found == {
        "loss": 2.0, "sequence_accuracy": 0.5, "mean_accuracy": 0.5, "examples": 2,
        "accuracy_after_0": 0.0, "accuracy_after_1": 0.5, "accuracy_after_2": 1.0, "accuracy_after_3": 0.5,
    }  # fmt: skip


def test_scores_of_numbers_by_examples_read():
    scores = InContextScores(3, 2, "squared_error")
    scores.update(torch.tensor([2, 0]), torch.tensor([[4.0, 1.0], [2.0, 0.5]]), torch.tensor([2.5, 1.25]))
    found = {key: float(value) for key, value in scores.compute().items()}
    assert found == {
        "loss": 1.875, "squared_error": 0.75, "mean_squared_error": 1.875, "examples": 2,
        "squared_error_after_0": 3.0, "squared_error_after_1": 0.75,
    }  # fmt: skip


def test_the_posterior_of_numbers_is_refused():
    with pytest.raises(ValueError, match="GaussianPosterior says how likely classes are, these streams have numbers"):
        GaussianPosterior(5, 3)(torch.zeros(2, 4, 5), torch.zeros(2, 4))


def test_the_posterior_is_that_of_bayes():
    """Against the ratio of evidences: how likely are the points of a class with the new one, and without."""
    b, spread = streams(B=2), 0.7
    network = GaussianPosterior(5, 3).double()
    network.log_spread.data.fill_(math.log(spread))
    x = b.x.double()

    def evidence(points):
        n = len(points)
        covariance = torch.eye(n).double() + spread**2
        normal = torch.distributions.MultivariateNormal(torch.zeros(n).double(), covariance)
        return normal.log_prob(points.T).sum() if n else 0.0

    found = network(x, b.y).log_softmax(-1)
    for stream in range(2):
        for t in range(6):
            known = [x[stream, :t][b.y[stream, :t] == c] for c in range(3)]
            ahead = [evidence(torch.cat([points, x[stream, t : t + 1]])) - evidence(points) for points in known]
            torch.testing.assert_close(found[stream, t], torch.stack(ahead).log_softmax(-1))


def test_the_posterior_finds_the_spread_of_the_clusters():
    data = GaussianClusters(batch_size=32, length=20, spread=2.0)
    network = GaussianPosterior(data.input_size, data.output_size)
    learner, optimizer = InContextLearner(network), torch.optim.Adam(network.parameters(), 0.05)
    for _, batch in zip(range(80), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        learner.loss(network, batch).backward()
        optimizer.step()
    assert float(network.log_spread.exp()) == pytest.approx(2.0, abs=0.25)


def test_with_synchronous_labels_keys_begin_as_queries():
    D = 8
    for layer in (partial(DeltaNet, heads=2), partial(LinearTransformer, heads=2)):
        slow = InContextNetwork(5, 3, layer, D, synchronous=True).layer.slow.weight.unflatten(0, (2, -1))
        assert torch.equal(slow[:, :4], slow[:, 4:8])
        assert not torch.equal(slow[0, :4], slow[1, :4])
        slow = InContextNetwork(5, 3, layer, D).layer.slow.weight.unflatten(0, (2, -1))
        assert not torch.equal(slow[:, :4], slow[:, 4:8])
    for block in InContextNetwork(5, 3, CAUSAL, D, synchronous=True).layer.blocks:
        assert torch.equal(block.attention.query.weight, block.attention.key_value.weight[:D])


def test_with_synchronous_labels_a_tensor_memory_reads_first_what_it_writes():
    sizes = {"entity_size": 6, "role_size": 4, "scale_write": False}
    for reads, synchronous in ((1, True), (3, True), (1, False)):
        memory = InContextNetwork(5, 3, partial(FastWeightMemory, reads=reads, **sizes), 8, synchronous).layer
        z = torch.randn(2, 1, 8)
        e, r, _, _ = memory.write_head(z).split(memory.write_sizes, -1)
        n, role, *_ = memory.read_head(z).split(memory.read_sizes, -1)
        assert torch.equal(e, n) == torch.equal(r, role) == synchronous


def test_with_synchronous_labels_a_self_referential_matrix_writes_where_its_inputs_read():
    memory = InContextNetwork(5, 3, partial(SelfReferentialMatrix, heads=2), 8, synchronous=True).layer
    assert torch.equal(memory.first[..., 8:12], torch.eye(4).expand(2, 4, 4))


@pytest.mark.parametrize(
    ("layer", "steps"),
    [
        (CAUSAL, 150),
        (
            partial(
                FastWeightBlocks, memory=partial(FastWeightMemory, entity_size=16, role_size=16, reads=1), blocks=2
            ),
            75,
        ),
        (partial(FastWeightBlocks, memory=partial(SelfReferentialMatrix, heads=2), blocks=2), 180),
        (partial(FastWeightBlocks, memory=partial(DeltaNet, heads=2), blocks=2), 180),
    ],
    ids=["transformer", "fwm", "srwm", "deltanet"],
)
def test_synchronous_labels_are_learnt_from_at_once(layer, steps):
    """Four classes far apart: an input finds what came with its like. With other keys none gets there."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    network = InContextNetwork(8, 4, layer, embedding_size=32, synchronous=True)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        centres = torch.randn(32, 4, 8, generator=generator) * 2
        y = torch.randint(4, (32, 12), generator=generator)
        x = centres.take_along_dim(y[..., None], 1) + 0.3 * torch.randn(32, 12, 8, generator=generator)
        logits = network(x, y)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    assert (logits[:, -1].argmax(-1) == y[:, -1]).float().mean() > 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnlineNetwork(5, 3, rule="rmsprop"), "`rule` must be one of 'sgd', 'adam', got 'rmsprop'"),
        (lambda: OnlineNetwork(5, 3, learning_rate=0), "`learning_rate` must be above 0"),
        (lambda: InContextNetwork(5, 3, Transformer), "must not see what comes later, .* as Transformer does"),
        (lambda: VSML(5, 0), "at least one unit"),
        (lambda: VSML(5, 3)(torch.zeros(1, 2, 5), torch.zeros(1, 2)), "need a network of one output, .* got 3"),
        (lambda: VSML(5, 3, message_size=1), "`message_size` must be at least 2"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_train_and_test(tmp_path, capsys):
    sizes = ["--data.init_args.length", "6", "--data.init_args.batch_size", "4", "--data.init_args.test_examples", "8"]
    sizes += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.enable_progress_bar", "false"]
    digits = [f"in_context_digits_{name}" for name in ("deltanet", "transformer", "vsml", "sgd")]
    waves = [f"sinusoids_{name}" for name in ("transformer", "deltanet", "adam")]
    for recipe in (*digits, *waves, "gaussian_clusters_transformer", "gaussian_clusters_posterior"):
        run = tmp_path / recipe
        assert cli.main(["fit", "--config", recipe, "--run_dir", str(run), *sizes]) == 0
        stages = json.loads((run / "metrics.json").read_text())["stages"]
        expected = {"test": (True, 8), "unprojected": (True, 8)}
        if recipe not in digits:
            expected = {"test": (False, 8), "unseen_phases" if recipe in waves else "closer": (True, 8)}
        assert {name: (stage["ood"], stage["examples"]) for name, stage in stages.items()} == expected
        assert ("squared_error" if recipe in waves else "accuracy") + "_after_5" in stages["test"]
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path / "sinusoids_deltanet")]) == 0
    assert "unseen_phases (OOD) squared_error" in capsys.readouterr().out


def test_streams_of_the_data_fit():
    data = InContextDigits(batch_size=3, length=4)
    network = InContextNetwork(data.input_size, data.output_size, partial(LSTM, hidden_size=8), embedding_size=8)
    batch = next(iter(data.train_dataloader()))
    assert InContextLearner(network).predict_step(batch, 0).shape == (3, 4)


def in_context(inputs, outputs):
    return InContextNetwork(inputs, outputs, lambda width: LSTM(width, 4), embedding_size=4)


@pytest.mark.parametrize("made", [in_context, VSML, OnlineNetwork, GaussianPosterior])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((2, 3, 5), (2, 3), r"`x` must be real numbers of the shape \[B, T, D=4\], got torch.float32 \[2, 3, 5\]"),
        ((3, 4), (3,), r"shape \[B, T, D=4\], got torch.float32 \[3, 4\]"),
        ((2, 3, 4), (2, 2), r"`y` must be classes \(int64\) or real numbers of the shape \[2, 3\]"),
        ((2, 3, 4), torch.zeros(2, 3, dtype=torch.int32), r"got torch.int32 \[2, 3\]"),
    ],
)
def test_streams_of_another_shape_or_kind_are_refused(made, x, y, message):
    y = torch.zeros(y, dtype=torch.long) if isinstance(y, tuple) else y
    with pytest.raises(ValueError, match=message):
        made(4, 2)(torch.zeros(x), y)


def test_a_stream_without_examples_has_no_predictions():
    for made in (VSML, OnlineNetwork, GaussianPosterior):
        assert made(4, 2)(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.long)).shape == (3, 0, 2)


@pytest.mark.parametrize("settings", [{"hidden_sizes": (0,)}, {"learning_rate": math.inf}])
def test_online_networks_without_units_or_with_an_infinite_rate_are_refused(settings):
    with pytest.raises(ValueError, match=r"must be at least 1, got 0|must be above 0, got inf"):
        OnlineNetwork(4, 2, **settings)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_where_no_gradient_is_asked_for_none_is_kept(rule):
    network, x, y = OnlineNetwork(5, 3, rule=rule), torch.randn(2, 6, 5), torch.randint(3, (2, 6))
    asked = network(x, y)
    with torch.no_grad():
        told = network(x, y)
    assert asked.requires_grad
    assert not told.requires_grad
    torch.testing.assert_close(told, asked.detach())
    with torch.inference_mode():
        torch.testing.assert_close(network(x, y), told)
