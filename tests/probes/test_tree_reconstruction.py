"""TreeReconstructionProbe on codes whose error is known: sums, interactions on a grid, and functions of trees."""

import math

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from algornn.probes import TreeReconstructionProbe
from algornn.probes.derivations import Forest
from algornn.probes.tree_reconstruction import additive, delta, floor, trained

GRID = [("a0", "b0"), ("a0", "b1"), ("a1", "b0"), ("a1", "b1")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def error(trees, H, composition="add", distance="l2", steps=400, seed=0):
    forest = Forest.of(trees)
    start = additive(forest, H)
    if (composition, distance) == ("add", "l2"):
        return float(delta(H, forest.composed(start, torch.add), "l2").mean())
    return float(trained(forest, H, start, composition, distance, steps, 1e-2, generator(seed)).mean())


class Table(nn.Module):
    """A network that looks the activation up, by the number of the input."""

    def __init__(self, H):
        super().__init__()
        self.rows = nn.Embedding(*H.shape)
        self.rows.weight.data = H.clone()

    def forward(self, x):
        return self.rows(x)


def run(trees, H, order=None, size=5, **settings):
    order = torch.arange(len(trees)) if order is None else order
    settings = {"loss": lambda call, batch: call(batch).sum(), "max_batches": None, **settings}
    probe = TreeReconstructionProbe("rows", lambda batch: [trees[i] for i in batch.tolist()], **settings)
    return probe.run(Table(H), list(order.split(size)))


@pytest.mark.parametrize("H", [(0.0, 1.0, 1.0, 0.0), (3.0, -1.0, 0.5, 2.0), (1.0, 2.0, 5.0, 6.0)])
def test_an_interaction_on_a_grid_is_what_is_left(H):
    interaction = H[0] - H[1] - H[2] + H[3]
    assert error(GRID, column(*H)) == pytest.approx(interaction**2 / 16, abs=1e-12)
    assert error(GRID, column(*H), distance="l1") == pytest.approx(abs(interaction) / 4, abs=1e-12)


def test_xor_has_a_half_and_a_quarter():
    xor = column(0, 1, 1, 0)
    assert error(GRID, xor, distance="l1") == pytest.approx(1 / 2, abs=1e-12)
    assert error(GRID, xor) == pytest.approx(1 / 4, abs=1e-12)
    result = run(GRID, xor)
    assert result.scalars["tre"] == pytest.approx(1 / 4)
    assert result.scalars["tre_normalised"] == pytest.approx(1)  # the mean vector is as good
    assert result.scalars["tre_floor"] == 0
    assert result.tables["derivations"][0] == {"derivation": "('a0', 'b0')", "tre": pytest.approx(1 / 4), "examples": 1}


def additive_code(primitives=6, slots=3, d=4, seed=0):
    """All combinations of a primitive per slot, as trees (a, (b, c)), and the sums of their vectors."""
    eta = torch.randn(slots, primitives, d, generator=generator(seed), dtype=torch.float64)
    index = torch.cartesian_prod(*[torch.arange(primitives)] * slots)
    trees = [((0, a), ((1, b), (2, c))) for a, b, c in index.tolist()]
    trees = [(f"0{a}", (f"1{b}", f"2{c}")) for (_, a), ((_, b), (_, c)) in trees]
    return trees, sum(eta[s][index[:, s]] for s in range(slots))


def test_an_additive_code_has_no_error():
    trees, H = additive_code()
    assert error(trees, H) < 1e-20
    result = run(trees, H.float())
    assert result.scalars["tre_normalised"] < 1e-10
    assert result.scalars["tre_normalised_permuted"] > 0.8
    assert result.scalars["tre_normalised_scrambled"] > 0.8
    assert (result.scalars["primitives"], result.scalars["rank"], result.scalars["examples"]) == (18, 16, 216)
    assert result.failures == []
    assert list(result.figures["tre"]["x"]) == ["model", "others' derivations", "scrambled weights", "floor"]


def test_the_error_is_the_interaction_variance_of_a_two_way_analysis():
    H = torch.randn(5, 7, 3, generator=generator(), dtype=torch.float64)
    interaction = H - H.mean(0, keepdim=True) - H.mean(1, keepdim=True) + H.mean((0, 1))
    trees = [(f"a{i}", f"b{j}") for i in range(5) for j in range(7)]
    assert error(trees, H.flatten(0, 1)) == pytest.approx(float(interaction.square().sum(-1).mean()))


def test_training_comes_close_to_the_least_sum_of_absolute_errors():
    h = torch.randn(12, generator=generator(3), dtype=torch.float64)
    trees = [(f"a{i}", f"b{j}") for i in range(3) for j in range(4)]
    X = Forest.of(trees).counts().numpy()
    n, P = X.shape
    eye = torch.eye(n).numpy()
    exact = linprog(
        [0] * P + [1] * n,
        A_ub=[[*row, *-e] for row, e in zip(X, eye, strict=True)]
        + [[*-row, *-e] for row, e in zip(X, eye, strict=True)],
        b_ub=[*h.tolist(), *(-h).tolist()],
        bounds=[(None, None)] * P + [(0, None)] * n,
    ).fun
    found = error(trees, h[:, None], distance="l1") * n
    assert exact - 1e-9 <= found < 1.02 * exact
    assert found < 0.97 * float(
        delta(h[:, None], Forest.of(trees).composed(additive(Forest.of(trees), h[:, None]), torch.add), "l1").sum()
    )


@pytest.mark.parametrize("composition", ["bilinear", "mlp"])
def test_a_product_is_no_sum_but_a_richer_function_finds_it(composition):
    assert error(GRID, column(1, -1, -1, 1)) == pytest.approx(1)
    assert error(GRID, column(1, -1, -1, 1), composition, steps=600) < 1e-2


def test_a_linear_function_knows_the_order_that_a_sum_does_not():
    names = ["u", "v", "w", "x"]
    eta = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    A = torch.randn(3, 3, generator=generator(1), dtype=torch.float64)
    trees = [(a, b) for a in names for b in names]
    H = torch.stack([eta[names.index(a)] @ A + 2 * eta[names.index(b)] for a, b in trees])
    added, linear = error(trees, H), error(trees, H, "linear", steps=600)
    assert linear < 0.02 * added
    # One function for all nodes: with trees of two heights, A acts twice.
    deep = [((a, b), "u") for a, b in trees]
    both = torch.cat([H, H @ A + 2 * eta[0]])
    assert error(trees + deep, both, "linear", steps=600) < 0.1 * error(trees + deep, both)


@pytest.mark.parametrize("composition", ["linear", "bilinear", "mlp"])
def test_no_function_is_worse_than_the_sum(composition):
    trees, H = additive_code(3)
    assert error(trees, H, composition, steps=1) < 1e-20


def test_cosine_ignores_the_length():
    trees, H = additive_code(4, 2 + 1)
    lengths = 1 + torch.rand(len(H), 1, generator=generator(), dtype=torch.float64)
    stretched = run(trees, H * lengths, distance="cosine", steps=100, permutations=1).scalars["tre"]
    assert stretched < 0.02 < run(trees, H * lengths).scalars["tre"]
    assert delta(torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0, 6.0]]), "cosine").item() == pytest.approx(1 - 0.96)
    assert delta(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), "l1").item() == 5
    assert delta(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), "l2").item() == 13


def test_the_floor_is_what_differs_between_equal_derivations():
    roots = torch.tensor([0, 0, 0, 1])
    H = column(1, 2, 6, 9)
    assert floor(roots, H, "l2").tolist() == [4, 1, 9, 0]
    assert floor(roots, H, "l1").tolist() == [1, 0, 4, 0]
    trees = [("a", "b")] * 3 + [("a", "c")]
    scalars = run(trees, H).scalars
    assert scalars["tre"] == pytest.approx(14 / 4)
    assert (
        scalars["tre_normalised"]
        == scalars["tre_normalised_floor"]
        == pytest.approx(14 / (3.5**2 + 2.5**2 + 1.5**2 + 4.5**2))
    )


def test_derivations_are_read_once_each_from_the_left():
    forest = Forest.of([("a", "b", "c"), (("a", "b"), "c"), ("c", ("a", "b")), ("a",), "a", ("a", "a")])
    assert forest.primitives == ["a", "b", "c"]
    assert forest.roots[0] == forest.roots[1] != forest.roots[2]
    assert forest.roots[3] == forest.roots[4]
    assert forest.nodes == 3 + 4
    assert forest.counts().tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0], [2, 0, 0]]
    text = forest.composed(torch.tensor([[1.0], [10], [100]]), lambda a, b: 2 * a + b)
    assert text.flatten().tolist() == [124, 124, 212, 1, 1, 3]


def test_what_fits_anything_fails_its_control():
    H = torch.randn(16, 3, generator=generator())
    result = run([(f"a{i}", f"b{i}") for i in range(16)], H)
    assert "any vector" in result.failures[0]
    assert any("fits even" in failure for failure in result.failures)
    result = run([(f"a{i % 4}", f"b{i // 4}") for i in range(16)], H)
    assert any("derivations of other examples the error" in failure for failure in result.failures)


def test_edges():
    trees, H = additive_code(2)
    assert run(trees, H, torch.arange(1)).scalars == {"examples": 1}
    assert run(trees, H * math.nan).scalars == {"examples": 0}
    broken = H.clone()
    broken[3] = math.inf
    result = run(trees, broken.float())
    assert result.scalars["examples"] == 7
    constant = run(trees, torch.rand(1, 3, generator=generator()).repeat(8, 1))
    assert "tre_normalised" not in constant.scalars
    assert "equal" in constant.failures[0]
    one_by_one = run(trees, H, size=1).scalars
    assert one_by_one == run(trees, H, size=8).scalars
    for distance in ("l1", "cosine"):
        assert run(trees, torch.ones(8, 3), distance=distance, steps=2).failures[0].startswith("All activations")


def test_mistakes_are_named():
    trees, H = additive_code(2)
    with pytest.raises(ValueError, match="composition must be one of"):
        run(trees, H, composition="times")
    with pytest.raises(ValueError, match="distance must be one of"):
        run(trees, H, distance="edit")
    with pytest.raises(ValueError, match="steps must be positive"):
        run(trees, H, steps=0)
    with pytest.raises(TypeError, match="hashable primitives, got a list"):
        run([("a", ["b"])] * 8, H)
    with pytest.raises(TypeError, match="got a tensor"):
        run([("a", torch.tensor(1))] * 8, H)
    with pytest.raises(ValueError, match="empty tuple"):
        run([("a", ())] * 8, H)
    probe = TreeReconstructionProbe("rows", lambda batch: ["a"], loss=lambda call, batch: call(batch).sum())
    with pytest.raises(ValueError, match="must give 8 derivations, it gave 1"):
        probe.run(Table(H), [torch.arange(8)])
