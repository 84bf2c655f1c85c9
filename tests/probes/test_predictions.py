"""How predictions and targets are read: padding, ends of sequences, decoding functions, and mistakes."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from algornn.probes.batches import Batches
from algornn.probes.predictions import Answers, exact_match, numbered, sequences
from algornn.probes.subject import Subject, cross_entropy

EOS = 9


def subject(model, batch, loss=cross_entropy):
    batches = Batches([batch], lambda b: b, torch.device("cpu"))
    return Subject(model, batches, loss, torch.device("cpu"), torch.Generator())


class Fixed(nn.Module):
    """Logits whose largest are the given ids."""

    def __init__(self, ids, classes=10):
        super().__init__()
        self.logits = nn.functional.one_hot(torch.tensor(ids), classes).float()

    def forward(self, x):
        return self.logits


def token_loss(call, batch):
    call(batch["x"])
    return torch.zeros(())


def test_the_default_loss_reads_tokens_as_predictions_do():
    y, logits = (
        torch.tensor([[0, 2, -100], [1, 1, 0]]),
        torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)),
    )
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), y)
    assert torch.allclose(cross_entropy(lambda x: logits, (None, y)), expected)
    assert torch.allclose(cross_entropy(lambda x: logits.transpose(1, 2), (None, y)), expected)
    with pytest.raises(ValueError, match=r"does not fit the output \(torch.float32 \[2, 5, 5\]\)"):
        cross_entropy(lambda x: torch.randn(2, 5, 5), (None, y))


def test_the_default_loss_reads_the_fields_x_and_y():
    Three = namedtuple("Three", "group y x")
    x, y, group = torch.randn(4, 3), torch.arange(4) % 3, torch.zeros(4)
    for batch in (Three(group, y, x), {"group": group, "y": y, "x": x}, (x, y), [x, y]):
        assert cross_entropy(lambda given: given, batch) == nn.functional.cross_entropy(x, y)
    with pytest.raises(TypeError, match="tuple that is no pair and has no fields x and y"):
        cross_entropy(lambda given: given, (x, y, group))


def test_sequences_end_before_eos_and_leave_out_what_does_not_count():
    ids = torch.tensor([[1, 2, EOS, 5], [EOS, 1, 1, 1], [3, 4, 5, 6]])
    assert sequences(ids, eos=EOS) == [(1, 2), (), (3, 4, 5, 6)]
    assert sequences(ids, ids != 1) == [(2, EOS, 5), (EOS,), (3, 4, 5, 6)]
    assert sequences(torch.tensor([4, 2])) == [(4,), (2,)]


def test_exact_match_is_of_the_whole_sequence():
    found = exact_match([(1, 2), (1,), ("a", "b"), ()], [(1, 2), (1, 2), ("a", "b"), ()])
    assert found.tolist() == [True, False, True, True]
    assert exact_match([], []).tolist() == []
    with pytest.raises(ValueError, match="got 1 and 2"):
        exact_match([(1,)], [(1,), (2,)])


def test_equal_sequences_have_equal_numbers():
    a, b = numbered([(1, 2), (2, 1)], [(2, 1), (1, 2)])
    assert a.tolist() == b.flip(0).tolist()
    assert a[0] != a[1]


def test_targets_that_do_not_count_are_not_compared():
    target = torch.tensor([[1, 2, EOS, 0], [3, EOS, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    model = Fixed([[1, 2, EOS, 7], [3, 3, 0, 0]])
    batch = {"x": target, "target": target, "target_mask": mask}
    predictions, targets = Answers().of(subject(model, batch, token_loss), batch)
    assert (predictions, targets) == ([(1, 2, EOS), (3, 3)], [(1, 2, EOS), (3, EOS)])
    ignored = {"x": target, "target": target.where(mask.bool(), torch.tensor(-100))}
    assert Answers().of(subject(model, ignored, token_loss), ignored) == (predictions, targets)
    named = {"x": target, "mine": target, "counts": mask}
    assert Answers("mine", "counts").of(subject(model, named, token_loss), named) == (predictions, targets)


def test_a_decoding_function_may_write_longer_and_shorter():
    target = torch.tensor([[1, 2, EOS], [3, EOS, 0], [4, 5, EOS]])
    batch = {"x": target, "target": target, "target_mask": target > 0}
    written = torch.tensor([[1, 2, EOS, 0, 0], [3, 3, EOS, 0, 0], [4, EOS, 0, 0, 0]])
    answers = Answers(predict=lambda model, batch: written, eos=EOS)
    predictions, targets = answers.of(subject(Fixed([0]), batch), batch)
    assert (predictions, targets) == ([(1, 2), (3, 3), (4,)], [(1, 2), (3,), (4, 5)])
    # of the target's own shape, too, and whatever its mask says
    same = Answers(predict=lambda model, batch: written[:, :3], eos=EOS)
    assert same.of(subject(Fixed([0]), batch), batch)[0] == [(1, 2), (3, 3), (4,)]


def test_a_control_network_takes_the_models_place():
    batch = (torch.zeros(2), torch.tensor([1, 2]))
    found = Answers().of(subject(Fixed([0, 0]), batch), batch, model=Fixed([1, 2]))
    assert found[0] == found[1] == [(1,), (2,)]


def test_a_forward_records_the_graph_if_asked():
    batch = (torch.ones(2, 3), torch.tensor([0, 1]))
    driver = subject(nn.Linear(3, 2), batch)
    assert not driver.forward(batch).requires_grad
    assert driver.forward(batch, gradient=True).requires_grad
    with torch.no_grad():
        assert driver.forward(batch, gradient=True).requires_grad


@pytest.mark.parametrize(
    ("answers", "batch", "model", "words"),
    [
        (Answers(), {"x": 0}, Fixed([0, 0]), "name their field by target="),
        (Answers(1), (torch.zeros(2), torch.zeros(2)), Fixed([0, 0]), "a tensor of torch.float32"),
        (
            Answers(),
            {"x": 0, "y": torch.tensor([1, 2])},
            Fixed([[0], [0]]),
            r"got a tensor \[2, 1, 10\]: pass predict=",
        ),
        (Answers(predict=lambda m, b: torch.zeros(3).long()), (0, torch.tensor([1, 2])), Fixed([0]), "2 predictions"),
    ],
)
def test_what_cannot_be_read(answers, batch, model, words):
    with pytest.raises(ValueError, match=words):
        answers.of(subject(model, batch, token_loss), batch)
