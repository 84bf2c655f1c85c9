"""Functions on symbols whose results are written in one codebook, or in one per group."""

import pytest
import torch
from torch import nn

from algornn.probes import FunctionCompatibilityProbe
from algornn.probes.compatibility import (
    centered,
    clusters_of,
    compat_of,
    composition_table,
    cosines,
    function_similarity,
    permuted_compat,
)
from algornn.probes.plots import draw

S, GROUPS, PER_GROUP = 8, 3, 2
FUNCTIONS = GROUPS * PER_GROUP
ONE_FIXED_POINT = torch.tensor([0, 2, 3, 4, 5, 6, 7, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Machine(nn.Module):
    """Functions are permutations of symbols; each writes its result in its group's codebook and reads with it."""

    def __init__(self, codebooks):
        super().__init__()
        self.codebooks = nn.Parameter(codebooks)  # [groups, S, d]
        self.tables = torch.stack([torch.randperm(S, generator=generator(f)) for f in range(FUNCTIONS)])
        self.written = nn.Identity()

    def forward(self, symbol, first, second=None):
        h = self.written(self.codebooks[first // PER_GROUP, self.tables[first, symbol]])
        reader = first if second is None else second
        logits = torch.einsum("bsd,bd->bs", self.codebooks[reader // PER_GROUP], h)
        if second is None:
            return logits
        return torch.zeros_like(logits).scatter(1, self.tables[second], logits)  # what z is turned into by second

    def loss(self, call, batch):
        return call(batch["input"], batch["first"], batch.get("second")).sum()


def singles(machine):
    first, symbol = torch.cartesian_prod(torch.arange(FUNCTIONS), torch.arange(S)).unbind(1)
    z = machine.tables[first, symbol]
    batch = {"input": symbol, "first": first, "group": first // PER_GROUP, "symbol": z}
    order = torch.randperm(len(first), generator=generator())
    return [{key: value[part] for key, value in batch.items()} for part in order.split(13)]


def compositions(machine):
    first, second, symbol = torch.cartesian_prod(*map(torch.arange, (FUNCTIONS, FUNCTIONS, S))).unbind(1)
    z = machine.tables[first, symbol]
    return [{
        "input": symbol, "first": first, "second": second, "first_group": first // PER_GROUP,
        "second_group": second // PER_GROUP, "symbol": z, "target": machine.tables[second, z],
    }]  # fmt: skip


def run(codebooks, **settings):
    machine = Machine(codebooks)
    settings = {"function": "first", "compositions": compositions(machine), "loss": machine.loss, **settings}
    return FunctionCompatibilityProbe("written", max_batches=None, **settings).run(machine, singles(machine))


def shared(d=16):
    return torch.randn(S, d, generator=generator(5)).expand(GROUPS, S, d).clone()


def test_one_codebook_for_all_groups():
    result = run(shared())
    E = nn.functional.normalize(shared()[0], dim=1)
    off_diagonal = float(((E @ E.T).sum() - S) / (S * (S - 1)))
    assert result.scalars["compat"] == pytest.approx(1 - off_diagonal, abs=1e-5)
    assert result.scalars["within_compat"] == pytest.approx(1 - off_diagonal, abs=1e-5)
    assert result.scalars["cross_group_accuracy"] == result.scalars["within_group_accuracy"] == 1
    assert list(result.scalars)[:2] == ["compat", "cross_group_accuracy"]
    assert result.scalars["compat_low"] > 0.8
    assert abs(result.scalars["permuted_compat"]) < 0.1
    assert result.scalars["scrambled_compat"] < 0.3
    assert result.scalars["cluster_rand_index"] < 0.5
    assert result.failures == []
    assert result.tables["compositions"] == {a: dict.fromkeys("012", 1.0) for a in "012"}
    for figure in result.figures.values():
        draw(figure)


def test_codebooks_of_their_own_that_agree_by_chance():
    one_hot = torch.eye(S)
    books = torch.stack([one_hot, one_hot[ONE_FIXED_POINT], one_hot[ONE_FIXED_POINT[ONE_FIXED_POINT]]])
    result = run(books)
    # of the eight symbols, one is read right; the cosine is 1/8 of the same and of different symbols
    assert result.scalars["cross_group_accuracy"] == pytest.approx(1 / S)
    assert result.scalars["within_group_accuracy"] == result.scalars["within_compat"] == 1
    assert result.scalars["compat"] == pytest.approx(0, abs=1e-6)
    assert result.scalars["compat/0"] == pytest.approx(1)
    assert result.scalars["compat/1"] == pytest.approx(-1 / 7)
    assert result.scalars["compat_accuracy_correlation"] == pytest.approx(1)
    assert result.scalars["cluster_rand_index"] == 1
    assert any("share a code" in failure for failure in result.failures)


def test_independent_codebooks_have_no_similarity_across_groups():
    result = run(torch.randn(GROUPS, S, 2000, generator=generator(1)))
    assert abs(result.scalars["compat"]) < 0.03
    names = [(row["group"], row["function"]) for row in result.tables["functions"]]
    assert names == [(str(f // PER_GROUP), str(f)) for f in range(FUNCTIONS)]
    similarity = torch.tensor(result.tables["similarity"])
    assert similarity[0, 1] == pytest.approx(1)
    assert similarity[:2, 2:].abs().max() < 0.05
    assert {row["group"]: row["cluster"] for row in result.tables["functions"]}.keys() == {"0", "1", "2"}
    assert result.scalars["cluster_rand_index"] == 1
    assert result.scalars["cross_group_accuracy"] == pytest.approx(1 / S, abs=0.1)


def test_a_common_mean_rules_the_cosine_until_it_is_taken_away():
    books = shared() + 100
    assert run(books).scalars["compat"] < 0.01
    result = run(books, center=True).scalars["compat"]
    centre = shared()[0] - shared()[0].mean(0)
    E = nn.functional.normalize(centre, dim=1)
    assert result == pytest.approx(1 - float(((E @ E.T).sum() - S) / (S * (S - 1))), abs=1e-3)


CELLS = [("a", "f", "0"), ("a", "f", "1"), ("a", "g", "0"), ("b", "k", "0"), ("b", "k", "1")]


def test_compat_by_hand():
    C = torch.arange(25.0).view(5, 5)
    C = (C + C.T) / 2
    # across groups: f0, f1, g0 with k0, k1
    found = compat_of(CELLS, C)
    assert found["0"] == pytest.approx(float((C[0, 3] + C[2, 3]) / 2 - (C[0, 4] + C[2, 4] + C[3, 1]) / 3), abs=1e-4)
    assert found["1"] == pytest.approx(float(C[1, 4] - (C[1, 3] + C[4, 0] + C[4, 2]) / 3), abs=1e-4)
    within = compat_of(CELLS, C, within=True)
    assert within["0"] == pytest.approx(float(C[0, 2] - C[2, 1]))
    assert within["1"] != within["1"]  # no second function of the group gives 1
    functions, similarity = function_similarity(CELLS, C)
    assert functions == [("a", "f"), ("a", "g"), ("b", "k")]
    assert similarity[0, 1] == C[0, 2]
    assert similarity[0, 2] == (C[0, 3] + C[1, 4]) / 2


def test_centering_is_by_function():
    h = torch.tensor([[1.0], [3.0], [5.0], [2.0], [8.0]])
    assert centered(CELLS, h).flatten().tolist() == [-1, 1, 0, -3, 3]
    assert cosines(torch.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]])).tolist() == [
        pytest.approx([1, 0.96, 0]),
        pytest.approx([0.96, 1, 0]),
        [0, 0, 0],
    ]


def test_permuted_symbols_stay_with_their_function():
    cells = [(g, f"{g}{i}", str(z)) for g in "ab" for i in range(2) for z in range(4)]
    h = torch.eye(4).repeat(4, 1)
    assert sum(compat_of(cells, cosines(h)).values()) / 4 == 1
    assert abs(permuted_compat(cells, cosines(h), generator())) < 0.15
    # were symbols mixed across functions, some function would have a symbol twice: here each is alone, nothing moves
    alone = [(g, f"{g}{z}", str(z)) for g in "ab" for z in range(4)]
    assert permuted_compat(alone, cosines(torch.eye(4).repeat(2, 1)), generator()) == 1


def test_clusters_are_those_of_the_similarity():
    similarity = torch.tensor([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]], dtype=torch.float64)
    cluster, order = clusters_of(similarity, 2)
    assert cluster[0] == cluster[2] != cluster[1]
    assert sorted(order) == [0, 1, 2]
    assert abs(order.index(0) - order.index(2)) == 1
    assert clusters_of(similarity * torch.nan, 2)[0] == [0, 0, 0]
    assert clusters_of(similarity[:1, :1], 2) == ([0], [0])


def test_accuracy_of_compositions_by_groups():
    rows = [
        {"first": f, "first_group": a, "second_group": b, "symbol": "0", "correct": c}
        for f, a, b, c in [("f", "a", "a", True), ("f", "a", "b", True), ("g", "a", "b", False), ("k", "b", "a", False)]
    ]
    table = composition_table(rows)
    assert (table["a"]["a"], table["a"]["b"], table["b"]["a"]) == (1, 0.5, 0)
    assert table["b"]["b"] != table["b"]["b"]  # none was asked


def test_a_site_that_does_not_hold_the_result_is_reported():
    machine = Machine(shared())
    machine.written = nn.Dropout(0.0)
    probe = FunctionCompatibilityProbe("written", "first", symbol="noise", loss=machine.loss, max_batches=None)
    data = [
        {**batch, "noise": torch.randint(0, 3, (len(batch["first"]),), generator=generator())}
        for batch in singles(machine)
    ]
    result = probe.run(machine, data)
    assert any("shuffled symbols" in failure for failure in result.failures)


def test_odd_data():
    machine = Machine(shared())
    probe = FunctionCompatibilityProbe("written", "first", loss=machine.loss)
    first = torch.tensor([0, 2])  # a function of each group, and one symbol of both: no different ones to compare
    symbol = torch.stack([(machine.tables[f] == 3).nonzero()[0, 0] for f in first])
    two = {"input": symbol, "first": first, "group": first // PER_GROUP, "symbol": torch.tensor([3, 3])}
    result = probe.run(machine, [{key: value[i : i + 1] for key, value in two.items()} for i in range(2)])
    assert set(result.scalars) == {"cluster_rand_index"}
    assert ["no compatibility" in sentence for sentence in result.failures] == [True]
    broken = Machine(shared() * torch.nan)
    assert "compat" not in probe.run(broken, singles(broken)).scalars
    with pytest.raises(ValueError, match="two groups or more, got '0' alone"):
        FunctionCompatibilityProbe("written", "first", lambda batch: batch["group"] * 0, loss=machine.loss).run(
            machine, singles(machine)
        )
    with pytest.raises(ValueError, match="no field 'function'"):
        FunctionCompatibilityProbe("written", loss=machine.loss).run(machine, singles(machine))
    with pytest.raises(ValueError, match="pair names four fields"):
        FunctionCompatibilityProbe("written", pair=("first", "second"))
