"""TensorProductMemory against its equations written as a loop, step by step, and inside a user's own network."""

import pytest
import torch
from torch import nn

from algornn import TensorProductMemory
from algornn.memory.tensor_product import MLPHeads

D, E, R, H = 6, 5, 3, 4
MASK = torch.tensor([[True, True, True, True, True], [True, False, True, False, False], [False] * 5])


def memory(**kwargs):
    torch.manual_seed(5)
    module = TensorProductMemory(D, E, R, H, **kwargs).double()
    for parameter in module.parameters():  # off the zeros and ones that they start with
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


def story(seed=0, T=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, T, D, generator=generator, dtype=torch.float64)
    state = 0.3 * torch.randn(3, E, R, E, generator=generator, dtype=torch.float64)
    return x, state


def heads(mlp, x):
    """Every head on its own, from its rows of the one first matrix."""
    hidden = mlp.second[0].in_features
    firsts = zip(mlp.first.weight.split(hidden), mlp.first.bias.split(hidden), strict=True)
    return [
        torch.tanh(torch.tanh(x @ w1.T + b1) @ second.weight.T + second.bias)
        for (w1, b1), second in zip(firsts, mlp.second, strict=True)
    ]


def recall(state, entity, role):
    return torch.einsum("berv,be,br->bv", state, entity, role)


def bind(entity, role, value):
    return torch.einsum("be,br,bv->berv", entity, role, value)


def ask(module, state, query):
    """Three chained reads of a state, each normalised by a scalar gain and bias."""
    i, *roles = heads(module.read_heads, query)
    answer = 0
    for hop, role in enumerate(roles):
        z = recall(state, i, role)
        centred = z - z.mean(1, keepdim=True)
        i = module.gain[hop] * centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-7) + module.bias[hop]
        answer = answer + i
    return answer


def literal(module, x, state, mask):
    """Write, move and backlink, token by token; every token then asks."""
    outputs = []
    for t in range(x.shape[1]):
        e1, e2, r1, r2, r3 = heads(module.write_heads, x[:, t])
        w, m, b = recall(state, e1, r1), recall(state, e1, r2), recall(state, e2, r3)
        new = state + bind(e1, r1, e2 - w) + bind(e1, r2, w - m) + bind(e2, r3, e1 - b)
        counts = mask[:, t, None]
        state = torch.where(counts[..., None, None], new, state)
        outputs.append(torch.where(counts, ask(module, state, x[:, t]), 0.0))
    return torch.stack(outputs, 1), state


def with_gradients(module, function, x, state):
    x, state = x.clone().requires_grad_(), state.clone().requires_grad_()
    y, final = function(module, x, state)
    generator = torch.Generator().manual_seed(1)
    total = sum((z * torch.randn(z.shape, generator=generator, dtype=z.dtype)).sum() for z in (y, final))
    return [y, final, *torch.autograd.grad(total, [x, state, *module.parameters()])]


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm().item() < 1e-10 * b.norm().item()


def test_the_equations_and_all_gradients():
    module, (x, state) = memory(), story()
    found = with_gradients(module, lambda module, x, state: module(x, state, MASK), x, state)
    assert_close(found, with_gradients(module, lambda module, x, state: literal(module, x, state, MASK), x, state))
    assert not found[0][~MASK].any()


def test_without_a_state_and_a_mask():
    module, (x, state) = memory(), story()
    zeros, everything = torch.zeros_like(state), torch.ones(3, 5, dtype=torch.bool)
    assert_close(module(x), literal(module, x, zeros, everything))


@pytest.mark.parametrize("step", [1, 2])
def test_step_by_step_with_the_state_carried(step):
    module, (x, state) = memory(), story()

    def in_steps(module, x, state):
        outputs = []
        for start in range(0, 5, step):
            tokens = slice(start, start + step)
            y, state = module(x[:, tokens], state, MASK[:, tokens])
            outputs.append(y)
        return torch.cat(outputs, 1), state

    whole = with_gradients(module, lambda module, x, state: module(x, state, MASK), x, state)
    assert_close(with_gradients(module, in_steps, x, state), whole)


def test_queries_of_a_written_story():
    module, (x, state) = memory(), story()
    _, final = literal(module, x, state, MASK)
    written = module.write(x, state, MASK)
    assert_close([written.state], [final])
    query = torch.randn(3, 4, D, dtype=torch.float64)
    wanted = torch.stack([ask(module, final, query[:, n]) for n in range(4)], 1)
    assert_close([module.read(written, query), module.read(written, query[:, 2])], [wanted, wanted[:, 2]])


def test_no_tokens_and_no_examples():
    module, (x, state) = memory(), story()
    y, final = module(x[:, :0], state)
    assert y.shape == (3, 0, E)
    assert torch.equal(final, state)
    y, final = module(x[:0], state[:0], MASK[:0])
    assert (y.shape, final.shape) == ((0, 5, E), (0, E, R, E))


def test_what_was_written():
    module, (x, state) = memory(), story()
    keys, values, beta, final = module.fast_weights(x, state, MASK)
    assert (keys.shape, values.shape) == ((3, 10, E * R), (3, 10, E))
    assert (beta.shape, final.shape) == ((3, 10), (3, E * R, E))
    assert torch.equal(final, module.write(x, state, MASK).state.flatten(1, 2))

    e1, e2, r1, _, r3 = heads(module.write_heads, x)
    masked = ~MASK.repeat_interleave(2, 1)
    assert not keys[masked].any()
    for row, (entity, role, value) in enumerate([(e1, r1, e2), (e2, r3, e1)]):
        key = torch.einsum("bte,btr->bter", entity, role).flatten(2)
        assert_close([keys[:, row::2][MASK], values[:, row::2][MASK]], [key[MASK], value[MASK]])
    assert torch.equal(beta, torch.ones_like(beta))

    # Its state answers its keys as the memory does.
    read = torch.einsum("bkv,bnk->bnv", final, keys)[:, ::2]
    assert_close([read[MASK]], [module.write(x, state, MASK).read(e1, r1)[MASK]])


def test_drop_in_for_a_users_own_network():
    """It takes the place of an LSTM: told one word, it says the word in later segments, by the carried state alone."""

    class Tagger(nn.Module):
        def __init__(self, memory):
            super().__init__()
            self.embedding, self.memory, self.head = nn.Embedding(5, D), memory, nn.Linear(E, 4)

        def forward(self, words, state=None):
            y, state = self.memory(self.embedding(words), state)
            return self.head(y), state

    torch.manual_seed(2)
    network = Tagger(TensorProductMemory(D, E, R, 16))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    silence = torch.full((64, 2), 4)
    for _ in range(100):
        said = torch.randint(0, 4, (64, 1))
        _, state = network(said)
        logits, _ = network(silence, state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), said.expand(-1, 2).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(-1) == said).float().mean() > 0.9
    forgotten, _ = network(silence)
    assert (forgotten.argmax(-1) == said).float().mean() < 0.5  # a quarter by chance


def test_every_head_starts_within_its_own_glorot_bound():
    torch.manual_seed(0)
    mlp = MLPHeads(50, (90, 90, 20, 20, 20), 40)
    layers = [(w, (50, 40)) for w in mlp.first.weight.split(40)]
    layers += [(layer.weight, (40, layer.out_features)) for layer in mlp.second]
    assert len(layers) == 10
    for weight, sizes in layers:
        bound = (6 / sum(sizes)) ** 0.5
        assert 0.98 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(layer.bias.any() for layer in (mlp.first, *mlp.second))


def test_gain_and_bias_start_at_one_and_zero():
    module = TensorProductMemory(D, E, R, H)
    assert (module.gain.tolist(), module.bias.tolist()) == ([1, 1, 1], [0, 0, 0])


def test_the_unused_head_changes_nothing_but_the_count():
    module, (x, state) = memory(unused_query_head=True), story()
    y, _ = module(x, state)
    y.sum().backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in module.named_parameters() if name.startswith("unused_query_head")}
    plain = memory()
    plain.load_state_dict({n: v for n, v in module.state_dict().items() if n not in without})
    assert torch.equal(plain(x, state)[0], y)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_the_state_keeps_float32(precision):
    module, (x, state) = memory().float(), story()
    with torch.autocast("cpu", precision):
        y, final = module(x.float(), state.float(), MASK)
    assert final.dtype == torch.float32
    y.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    wanted, _ = module(x.float(), state.float(), MASK)
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=0.1 * wanted.abs().max().item())


def test_a_wrong_state_or_mask_is_named():
    module, (x, state) = memory(), story()
    with pytest.raises(
        ValueError, match=r"`initial_state` must have the shape \[B=3, E=5, R=3, V=5\], got \[3, 15, 5\]"
    ):
        module(x, state.flatten(1, 2))
    with pytest.raises(TypeError, match=r"`mask` must be a boolean tensor \[B, T\]"):
        module(x, state, MASK.double())


def test_nan_in_masked_tokens_reaches_no_gradient():
    torch.manual_seed(0)
    layer = TensorProductMemory(5, entity_size=4, role_size=3, hidden_size=6)
    x, mask = torch.randn(2, 6, 5), torch.tensor([[True, True, False, True, False, False], [True] * 6])
    x = x.masked_fill(~mask[..., None], torch.nan)
    y, state = layer(x, mask=mask)
    (y.sum() + state.sum()).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
    assert y[~mask].eq(0).all()
