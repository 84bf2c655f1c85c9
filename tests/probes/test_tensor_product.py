r"""TensorProductProbe on planted tensor-product codes.

The planted model: h = sum over t of f(x_t) (x) r(t), t counted from the left. Fillers are centred one-hot vectors.
Roles 0 to 4 have length 1 and inner products of 0.15, role 5 has -0.48 with role 0, -0.15 with role 1, 0 with others.
Lengths 2 to 6 are equally frequent, and so are all sequences of a length. The fillers of different places are then
uncorrelated, and a scheme explains, for each of its roles, the squared length of the mean of the planted roles that it
mixes (`explained`): 0.39 from right to left, 0.29 as a bag of words; with length 5 alone (1 + 4 * 0.15) / 5 = 0.32.
"""

import itertools
import math

import pytest
import torch
from torch import nn

from algornn.probes import TensorProductProbe
from algornn.probes.roles import SCHEMES, Sequences, counts_of, equivalent
from algornn.probes.tensor_product import decisions, r2, solved

T = 6


def planted_roles():
    gram = torch.full((T, T), 0.15, dtype=torch.float64)
    gram[5], gram[:, 5] = 0, 0
    gram[0, 5] = gram[5, 0] = -0.48
    gram[1, 5] = gram[5, 1] = -0.15
    gram.fill_diagonal_(1)
    return torch.linalg.cholesky(gram)


def explained(groups):
    """The share that a scheme explains whose roles mix these planted roles, each as often as it is named."""
    roles = planted_roles()
    total = sum(len(group) for group in groups)
    return sum(len(group) * float(roles[group].mean(0).square().sum()) for group in groups) / total


FROM_RIGHT = [[length - 1 - i for length in range(2, 7) if length > i] for i in range(6)]
NAMED = ("left_to_right", "right_to_left", "bag_of_words")
ALL = [[t for length in range(2, 7) for t in range(length)]]


def planted(V):
    """The coefficients ``[V, T, d]``."""
    fillers = torch.eye(V, dtype=torch.float64) - 1 / V
    return torch.einsum("vf,tr->vtfr", fillers, planted_roles()).flatten(2)


def all_sequences(V, lengths):
    """Every sequence of tokens 1 to V of each length, so often that lengths are equally frequent; 0 pads."""
    rows = []
    for length in lengths:
        some = [[*word, *[0] * (T - length)] for word in itertools.product(range(1, V + 1), repeat=length)]
        rows += some * V ** (max(lengths) - length)
    return torch.tensor(rows)


def code(tokens, V):
    B = torch.cat([torch.zeros(1, T, planted(V).shape[-1], dtype=torch.float64), planted(V)])
    return B[tokens, torch.arange(tokens.shape[1])].sum(1)


def share(tokens, H, scheme):
    """R^2 of a scheme on the examples that it was fitted to."""
    pairs, P = Sequences.of(tokens, tokens > 0).pairs(scheme)
    constant, B = solved(pairs, P, H, 1e-9)
    error = (H - constant - counts_of(pairs, P) @ B).square().sum(1)
    return r2(error, (H - H.mean(0)).square().sum(1))


class Sum(nn.Module):
    """Sums bindings of tokens to places, and decides on the first token (`read="first"`) or on nothing."""

    def __init__(self, V, read="first"):
        super().__init__()
        self.table = nn.Parameter(torch.cat([torch.zeros(1, T, V * T).double(), planted(V)]).flatten(0, 1).float())
        self.code = nn.Identity()
        first = torch.linalg.pinv(planted(V).flatten(0, 1))[:, ::T][:, :V].float()
        self.register_buffer("head", first if read == "first" else torch.randn(V * T, V, generator=rng()))

    def forward(self, x):
        place = torch.arange(x.shape[1])
        return self.code(self.table[x * T + place].sum(1)) @ self.head


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(n, V=4, lengths=(2, 3, 4, 5, 6), seed=0):
    x = torch.randint(1, V + 1, (n, T), generator=rng(seed))
    length = torch.tensor(lengths)[torch.randint(len(lengths), (n, 1), generator=rng(seed + 1))]
    return x * (torch.arange(T) < length)


def run(model, tokens, size=64, site="code", **settings):
    settings = {"loss": lambda call, x: call(x).sum(), "max_batches": None, "permutations": 2, **settings}
    return TensorProductProbe(site, lambda x: x, **settings).run(model, list(tokens.split(size)))


def test_the_planted_code_has_exact_shares():
    assert explained(FROM_RIGHT) == pytest.approx(0.39, abs=1e-9)
    assert explained(ALL) == pytest.approx(0.29, abs=1e-9)
    assert explained([list(range(5))]) == pytest.approx(0.32, abs=1e-9)
    mixed = all_sequences(2, range(2, 7))
    H = code(mixed, 2)
    expected = {"left_to_right": 1.0, "right_to_left": 0.39, "bag_of_words": 0.29, "bidirectional": 1.0}
    assert {scheme: share(mixed, H, scheme) for scheme in expected} == pytest.approx(expected, abs=1e-6)
    fixed = all_sequences(2, [5])
    H = code(fixed, 2)
    expected = {"left_to_right": 1.0, "right_to_left": 1.0, "bag_of_words": 0.32}
    assert {scheme: share(fixed, H, scheme) for scheme in expected} == pytest.approx(expected, abs=1e-6)


def test_the_probe_finds_the_planted_scheme_on_held_out_sequences():
    result = run(Sum(12), sampled(6000, V=12), schemes=NAMED)
    scalars = result.scalars
    assert scalars["r2"] == scalars["r2/left_to_right"] == pytest.approx(1, abs=5e-4)
    assert scalars["r2/right_to_left"] == pytest.approx(0.39, abs=0.03)
    assert scalars["r2/bag_of_words"] == pytest.approx(0.29, abs=0.03)
    assert scalars["r2_shuffled/left_to_right"] < 0.02
    assert scalars["substitution_accuracy/left_to_right"] == 1
    assert scalars["substitution_accuracy/mean"] < 0.5
    assert "substitution_accuracy/right_to_left" in scalars
    assert scalars["r2_low"] <= scalars["r2"] <= scalars["r2_high"]


def test_sequences_of_one_length_cannot_tell_schemes_apart():
    result = run(Sum(4), sampled(3000, lengths=(5,)), schemes=SCHEMES[:3] + SCHEMES[4:])
    for scheme, expected in {"left_to_right": 1, "right_to_left": 1, "bag_of_words": 0.32}.items():
        assert result.scalars[f"r2/{scheme}"] == pytest.approx(expected, abs=0.02)
    alike = [failure for failure in result.failures if "same scheme" in failure]
    assert len(alike) == 3  # left to right, right to left, bidirectional
    assert not any("same scheme" in failure for failure in run(Sum(4), sampled(500)).failures)


def test_a_scrambled_sum_is_a_tensor_product_as_well():
    """A sum over places is one whatever its weights: the control says so."""
    result = run(Sum(3), sampled(2000, V=3))
    assert result.scalars["r2_scrambled/left_to_right"] > 0.99
    assert any("scrambled weights" in failure for failure in result.failures) == (
        result.scalars["r2_scrambled/left_to_right"] > result.scalars["r2"] - 1e-9
    )


def test_high_r2_with_other_decisions_fails():
    class Hidden(Sum):
        """Decides on a parity of two tokens that stands in a direction of little variance."""

        def forward(self, x):
            h = self.table[x * T + torch.arange(T)].sum(1)
            product = (((x[:, 0] + x[:, 1]) % 2) * 2 - 1.0)[:, None]
            h = self.code(torch.cat([10 * h, product], 1))
            return torch.cat([h[:, -1:], -h[:, -1:]], 1)

    result = run(Hidden(2), sampled(2000, V=2, lengths=(5, 6)), schemes=NAMED)
    assert result.scalars["r2"] > 0.9
    assert result.scalars["substitution_accuracy"] < 0.8
    assert any("decided as before" in failure for failure in result.failures)


def test_substitution_replaces_held_out_examples_at_the_site_alone():
    """A copy of the model whose head reads what it is given: the reconstruction of the mean decides one way for all."""
    model, tokens = Sum(4), sampled(800)
    result = run(model, tokens, size=7)
    again = run(model, tokens, size=800)
    for key in ("left_to_right", "bag_of_words", "mean"):
        name = f"substitution_accuracy/{key}"
        assert result.scalars[name] == pytest.approx(again.scalars[name], abs=1e-9)
    assert result.scalars["held_out"] == again.scalars["held_out"]
    assert result.scalars["substitution_accuracy/right_to_left"] < 1


def test_roles_of_a_short_sequence():
    tokens = torch.tensor([[0, 7, 0, 8, 7], [9, 0, 0, 0, 0]])
    sequences = Sequences.of(tokens, tokens > 0)
    assert sequences.written.tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]

    def named(scheme):
        return [row[: int(w.sum())].tolist() for row, w in zip(sequences.roles(scheme), sequences.written, strict=True)]

    assert named("left_to_right") == [[0, 1, 2], [0]]
    assert named("right_to_left") == [[2, 1, 0], [0]]
    assert named("bidirectional") == [[2, 6, 10], [0]]
    assert named("bag_of_words") == [[0, 0, 0], [0]]
    (first, second, third), (alone,) = named("wickelrole")
    assert len({first, second, third, alone}) == 4
    symmetric = torch.tensor([[7, 8, 7, 8, 7], [8, 8, 7, 8, 8]])
    row, other = Sequences.of(symmetric, symmetric > 0).roles("wickelrole").tolist()
    assert row[1] == row[3]
    assert row[2] == other[2]
    assert len({row[0], row[1], row[2], row[4]}) == 4
    assert other[1] != other[3]


def test_pairs_are_numbered_and_counted_without_padding():
    tokens = torch.tensor([[1, 1, 0], [2, 1, 1]])
    pairs, P = Sequences.of(tokens, tokens > 0).pairs("bag_of_words")
    assert P == 2
    assert pairs.tolist() == [[0, 0, 2], [1, 0, 0]]
    assert counts_of(pairs, P).tolist() == [[2, 0], [2, 1]]
    assert Sequences.of(tokens, tokens > 0).pairs("left_to_right")[1] == 4


def test_equivalence_is_up_to_names():
    written = torch.ones(2, 2).bool()
    a = torch.tensor([[0, 1], [2, 0]])
    assert equivalent(a, torch.tensor([[5, 3], [4, 5]]), written)
    assert not equivalent(a, torch.tensor([[5, 3], [3, 5]]), written)
    assert not equivalent(torch.tensor([[5, 3], [3, 5]]), a, written)


def test_both_forms_of_the_ridge_regression_agree_with_scikit_learn():
    from sklearn.linear_model import Ridge

    tokens = sampled(40)
    H = torch.randn(40, 3, generator=rng(), dtype=torch.float64)
    for scheme, wide in {"bag_of_words": False, "bidirectional": True}.items():
        pairs, P = Sequences.of(tokens, tokens > 0).pairs(scheme)
        assert (P > 40) == wide
        reference = Ridge(alpha=0.3).fit(counts_of(pairs, P), H)
        for rows in (7, 256):
            constant, B = solved(pairs, P, H, 0.3, rows)
            assert torch.allclose(B, torch.tensor(reference.coef_).T, atol=1e-10)
            assert torch.allclose(constant, torch.tensor(reference.intercept_), atol=1e-10)


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_a_role_of_the_users(kind):
    """Roles that depend on the token's parity and place from the right: known to the user alone."""

    def role(x):
        after = (x > 0).sum(1, keepdim=True) - 1 - torch.arange(T)
        table = torch.where(x > 0, 10 * (x[:, :1] % 2) + after.clamp(min=0), 0)
        return table if kind == "numbers" else [[f"r{k}" for k in row] for row in table.tolist()]

    class Secret(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5 * 20, 30, generator=rng()))
            self.code = nn.Identity()

        def forward(self, x):
            roles = 10 * (x[:, :1] % 2) + ((x > 0).sum(1, keepdim=True) - 1 - torch.arange(T)).clamp(min=0)
            return self.code((self.table[x * 20 + roles] * (x > 0)[..., None]).sum(1))

    result = run(Secret(), sampled(1500), role=role)
    assert result.scalars["r2/given"] > 0.999
    assert result.scalars["r2/given"] == result.scalars["r2"]
    assert result.scalars["r2/right_to_left"] < 0.9
    alone = run(Secret(), sampled(1500), role=role, schemes=(), substitute=False)
    assert [row["scheme"] for row in alone.tables["schemes"]] == ["given"]
    assert "substitution" not in alone.figures


def test_no_sequence_is_on_both_sides():
    """Copies of sequences with random codes: what was seen in training would explain its copies."""

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4**3, 4, generator=rng()))
            self.code = nn.Identity()

        def forward(self, x):
            return self.code(self.table[(x[:, :3] - 1) @ torch.tensor([16, 4, 1])])

    tokens = torch.cartesian_prod(*[torch.arange(1, 5)] * 3).repeat(10, 1)
    result = run(Random(), tokens)
    assert result.scalars["held_out"] == 160
    assert max(result.scalars[f"r2/{scheme}"] for scheme in SCHEMES) < 0.3
    assert any("explains" in failure and "shuffled" in failure for failure in result.failures)


def test_decisions_are_those_of_the_first_output():
    logits = torch.tensor([[[0.0, 1], [2, 1]], [[1, 0], [0, 3]]])
    assert decisions((None, {"logits": logits}), 2).tolist() == [[1, 0], [0, 1]]
    assert decisions(torch.tensor([[-1.0], [2.0]]), 2).tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="substitute=False"):
        decisions(torch.zeros(2, dtype=torch.long), 2)


def test_edges():
    tokens = sampled(60)
    assert run(Sum(4), tokens[:1]).scalars == {"examples": 1}
    assert run(Sum(4), tokens * 0).scalars == {"examples": 0}
    broken = Sum(4)
    broken.table.data.fill_(math.nan)
    assert run(broken, tokens).scalars == {"examples": 0}
    constant = Sum(4)
    constant.table.data.fill_(0.25)
    result = run(constant, tokens[:, :3].clamp(min=1))
    assert "r2" not in result.scalars
    assert any("nothing to explain" in failure for failure in result.failures)
    wide = [tokens[:30, :4], tokens[30:]]
    probe = TensorProductProbe("code", lambda x: x, loss=lambda call, x: call(x).sum())
    assert probe.run(Sum(4), wide).scalars["examples"] == 60
    one_by_one, whole = run(Sum(4), tokens, size=1).scalars, run(Sum(4), tokens, size=60).scalars
    assert one_by_one == pytest.approx(whole, abs=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="schemes must be some of"):
        run(Sum(4), sampled(9), schemes=("inside_out",))
    with pytest.raises(ValueError, match="schemes must be some of"):
        run(Sum(4), sampled(9), schemes=())
    with pytest.raises(ValueError, match="ridge > 0"):
        run(Sum(4), sampled(9), ridge=0.0)
    for site in ("code@-1", "code@:"):
        with pytest.raises(ValueError, match="counted from the first"):
            run(Sum(4), sampled(9), site=site)
    with pytest.raises(ValueError, match=r"one role per filler, \[9, 6\], it gave \[9, 5\]"):
        run(Sum(4), sampled(9), role=lambda x: x[:, :5])
