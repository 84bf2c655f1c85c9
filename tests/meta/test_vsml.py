"""VSML against its equations, cell by cell, and what makes its rule one for all sizes."""

import pytest
import torch
import torch.nn.functional as F

from algornn import VSML


def literal(network, x, y):
    """One stream through every cell and message, a number at a time where the paper has one."""
    M, T = network.message_size, len(x)
    first = network.first_cells(x[None])
    cells = [[[(c.h[0, a, b], c.c[0, a, b]) for b in range(c.h.shape[2])] for a in range(c.h.shape[1])] for c in first]
    backward = [[torch.zeros(M).double() for _ in range(size)] for size in network.sizes[1:]]

    def tick(x, told):
        f = [F.pad(value[None], (0, M - 1)) for value in x]
        backward[-1] = [F.pad(pair, (0, M - 2)) for pair in told]
        sent = []
        for layer, grid in enumerate(cells):
            for a, row in enumerate(grid):
                for b, (h, c) in enumerate(row):
                    gates = network.recurrent(h) + network.forward_in(f[a]) + network.backward_in(backward[layer][b])
                    i, forget, o, new = gates.chunk(4)
                    c = torch.sigmoid(forget + 5) * c + torch.sigmoid(i - 5) * torch.tanh(new)
                    row[b] = (torch.sigmoid(o) * torch.tanh(c), c)
            A, B = len(grid), len(grid[0])
            back = [sum(network.backward_out(grid[a][b][0]) for b in range(B)) / B for a in range(A)]
            f = [sum(network.forward_out(grid[a][b][0]) for a in range(A)) / A for b in range(B)]
            sent.append(back)
        backward[:-1] = sent[1:]
        return torch.stack([100 * torch.tanh(message[0] / 100) for message in f])

    logits, C = [], network.sizes[-1]
    for t in range(T):
        score = tick(x[t], [torch.zeros(2).double()] * C)
        logits.append(score)
        told = F.one_hot(y[t], C).double()
        tick(x[t], list(torch.stack([score.softmax(0) - told, told], 1)))
    return torch.stack(logits)


@pytest.mark.parametrize("hidden", [(), (3,), (2, 3)])
def test_against_a_loop_over_cells(hidden):
    torch.manual_seed(0)
    network = VSML(4, 3, hidden_sizes=hidden, state_size=4, message_size=3).double()
    x, y = torch.randn(2, 5, 4).double(), torch.randint(3, (2, 5))
    found = network(x, y)
    for stream in range(2):
        torch.testing.assert_close(found[stream], literal(network, x[stream], y[stream]), rtol=1e-10, atol=1e-12)


def test_one_rule_for_all_sizes():
    torch.manual_seed(0)
    small, large = VSML(4, 3), VSML(9, 5, hidden_sizes=(6,))
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in large.parameters()) == 2384
    large.load_state_dict(small.state_dict())
    assert large(torch.randn(2, 3, 9), torch.randint(5, (2, 3))).shape == (2, 3, 5)


def test_the_classes_have_no_order():
    """Renaming the classes renames the scores, once the first states are renamed with them."""
    torch.manual_seed(0)
    network, order = VSML(4, 3).double(), torch.tensor([2, 0, 1])
    x, y = torch.randn(2, 5, 4).double(), torch.randint(3, (2, 5))
    plain = network(x, y)
    first = network.first_cells
    network.first_cells = lambda x: [type(c)(c.h[:, :, order], c.c[:, :, order]) for c in first(x)]
    torch.testing.assert_close(network(x, order.argsort()[y])[..., order.argsort()], plain, rtol=1e-10, atol=1e-12)


def test_first_states_are_the_same_in_every_call_and_half_of_each_is_random():
    network = VSML(4, 3, seed=5)
    first, again = (network.first_cells(torch.zeros(2, 1, 4))[0] for _ in range(2))
    assert torch.equal(first.c, again.c)
    assert torch.equal(first.c[0], first.c[1])
    assert first.c[..., :8].std() > 0.3
    assert not first.c[..., 8:].any()
    assert not first.h.any()


def test_first_states_are_the_same_whatever_the_default_dtype():
    network = VSML(4, 3)
    first = network.first_cells(torch.zeros(2, 1, 4))[0].c
    torch.set_default_dtype(torch.float64)
    try:
        again = network.first_cells(torch.zeros(2, 1, 4))[0].c
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(again.float(), first)
