"""TopographicSimilarityProbe on grids of meanings, whose similarity has a closed form."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.text import EditDistance

from algornn.probes import TopographicSimilarityProbe
from algornn.probes.samples import FILL
from algornn.probes.topographic import code_distance, edit_distance, hamming, shuffled, similarity

SETTINGS = {"permutations": 20, "resamples": 20}


def grid(V):
    return torch.cartesian_prod(torch.arange(V), torch.arange(V))


CODES = {
    "identity": lambda a, b, V: (a, b),
    "one sum": lambda a, b, V: (a, (a + b) % V),
    "two sums": lambda a, b, V: ((a + b) % V, (a - b) % V),
}


def code(name, V):
    return torch.stack(CODES[name](*grid(V).unbind(1), V), 1)


def batches(meaning, size=7, **fields):
    rows = {"meaning": meaning, **fields}
    return [{k: v[i : i + size] for k, v in rows.items()} for i in range(0, len(meaning), size)]


class Speaker(nn.Module):
    """Says symbol w[a] at the place of each attribute, as one-hot vectors."""

    def __init__(self, V, W=None):
        super().__init__()
        self.say = nn.Embedding(V, V)
        self.say.weight.data = torch.eye(V) if W is None else W
        self.out = nn.Identity()

    def forward(self, meaning):
        return self.out(self.say(meaning))


def drive(call, batch):
    return call(batch["meaning"]).sum()


@pytest.mark.parametrize("V", [2, 3, 4, 5, 10])
def test_a_sum_in_one_place_has_the_closed_form(V):
    expected = {2: -1 / 2, 3: 0, 4: 1 / 6, 5: 1 / 4, 10: 7 / 18}[V]
    assert expected == pytest.approx((V - 3) / (2 * (V - 1)))
    meaning = hamming(grid(V))
    assert similarity(meaning, hamming(code("one sum", V))) == pytest.approx(expected, abs=1e-12)
    assert similarity(meaning, hamming(code("identity", V))) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("V", [3, 5, 9])
def test_sums_in_both_places_have_the_closed_form(V):
    found = similarity(hamming(grid(V)), hamming(code("two sums", V)))
    assert found == pytest.approx(-2 / (V - 1), abs=1e-12)


@pytest.mark.parametrize("distance", ["hamming", "edit"])
def test_the_probe_finds_it_in_messages(distance):
    V = 5
    loader = batches(grid(V), message=code("one sum", V))
    probe = TopographicSimilarityProbe("meaning", message="message", distance=distance, loss=drive, **SETTINGS)
    result = probe.run(Speaker(V), loader)
    if distance == "hamming":
        assert result.scalars["topsim"] == pytest.approx(1 / 4, abs=1e-12)
    assert result.scalars["items"] == 25
    assert "topsim_scrambled" not in result.scalars
    assert result.scalars["topsim_low"] < result.scalars["topsim"] < result.scalars["topsim_high"]


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "hamming"])
def test_the_probe_finds_it_in_activations_beside_its_controls(distance):
    torch.manual_seed(0)
    probe = TopographicSimilarityProbe("meaning", site="out", distance=distance, loss=drive, **SETTINGS)
    result = probe.run(Speaker(6), batches(grid(6)))
    assert result.scalars["topsim"] == pytest.approx(1, abs=1e-12)
    assert abs(result.scalars["topsim_shuffled"]) < 0.05
    assert result.scalars["topsim_z"] > 10
    assert result.scalars["topsim_scrambled"] < 1
    assert result.tables["distances"]["meanings"] == [1, 2]
    assert result.tables["distances"]["pairs"] == [180, 450]
    assert result.failures == []


def test_ranks_have_ties_as_torchmetrics_has_them():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 4, (2, 40, 3), generator=generator)
    i, j = torch.triu_indices(40, 40, 1)
    expected = float(spearman_corrcoef(hamming(x)[i, j], hamming(y)[i, j]))
    assert similarity(hamming(x), hamming(y)) == pytest.approx(expected, abs=1e-5)


def test_edit_distance_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([0, 1, 2, 3, 4, 5, 5, 5, 4, 3])
    messages = torch.randint(1, 4, (10, 5), generator=generator) * (torch.arange(5) < lengths[:, None])
    messages[9] = torch.tensor([1, 0, 2, 0, 3])  # padding inside counts as none
    words = ["".join(map(str, row[row > 0].tolist())) for row in messages]
    expected = [[float(EditDistance()([a], [b])) for b in words] for a in words]
    assert edit_distance(messages, padding=0).tolist() == expected
    filled = messages.where(messages > 0, FILL)
    assert edit_distance(filled).tolist() == expected


def test_euclidean_and_cosine_distances_are_what_they_say_and_equal_codes_tie():
    codes = torch.tensor([[3.0, 0.0], [0.0, 4.0], [3.0, 0.0], [-6.0, 0.0]])
    assert code_distance(codes, "euclidean")[0].tolist() == pytest.approx([0, 5, 0, 9], abs=1e-4)
    assert code_distance(codes, "cosine")[0].tolist() == [0, 1, 0, 2]
    noisy = torch.ones(5, 3) + 1e-8 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    for distance in ("cosine", "euclidean"):
        assert not code_distance(noisy, distance).any()


def test_pairs_of_an_item_with_itself_do_not_count():
    between, apart = hamming(grid(3)), hamming(code("two sums", 3))
    rows = torch.tensor([0, 0, 1, 4, 8, 8, 8])
    pairs = [(i, j) for k, i in enumerate(rows) for j in rows[k + 1 :] if i != j]
    x, y = (torch.tensor([float(d[i, j]) for i, j in pairs]) for d in (between, apart))
    assert similarity(between, apart, rows) == pytest.approx(float(spearman_corrcoef(x, y)), abs=1e-5)
    assert math.isnan(similarity(between, apart, torch.tensor([3, 3, 3])))


def test_shuffled_is_the_null_distribution_of_the_similarity():
    between, apart = hamming(grid(4)), code_distance(torch.randn(16, 3), "euclidean")
    orders = torch.Generator().manual_seed(5)
    values = []
    for order in [torch.randperm(16, generator=orders) for _ in range(30)]:
        values.append(similarity(between, apart[order][:, order]))
    mean, std = shuffled(between, apart, torch.Generator().manual_seed(5), 30)
    assert mean == pytest.approx(sum(values) / 30)
    assert std == pytest.approx(float(torch.tensor(values).double().std(correction=0)))


def test_repeated_items_count_once_and_the_rest_is_sampled():
    loader = batches(grid(5).repeat(3, 1))
    result = TopographicSimilarityProbe("meaning", site="out", loss=drive, **SETTINGS).run(Speaker(5), loader)
    assert result.scalars["items"] == 25
    same_meaning = batches(grid(5).repeat(2, 1), message=torch.cat([code("identity", 5), code("one sum", 5)]))
    probe = TopographicSimilarityProbe("meaning", message="message", max_items=40, loss=drive, **SETTINGS)
    result = probe.run(Speaker(5), same_meaning)
    assert result.scalars["items"] == 40
    assert sum(result.tables["distances"]["pairs"]) == 40 * 39 / 2


def test_a_code_of_nothing_fails_its_controls():
    generator = torch.Generator().manual_seed(2)
    loader = batches(grid(6), message=torch.randint(0, 6, (36, 2), generator=generator))
    result = TopographicSimilarityProbe("meaning", message="message", loss=drive, **SETTINGS).run(Speaker(6), loader)
    assert "Shuffled codes come close" in result.failures[0]
    W = torch.rand(1, 6, generator=generator).repeat(6, 1)  # the same for every value
    result = TopographicSimilarityProbe("meaning", site="out", loss=drive, **SETTINGS).run(
        Speaker(6, W), batches(grid(6))
    )
    assert "topsim" not in result.scalars
    assert "not defined" in result.failures[0]
    assert result.figures["topsim"]["x"] == ["scrambled weights"]
    result = TopographicSimilarityProbe("meaning", site="out", loss=drive, **SETTINGS).run(
        Speaker(6, torch.ones(6, 6)), batches(grid(6))
    )
    assert list(result.figures) == ["distances"]


@pytest.mark.parametrize("n", [1, 2])
def test_few_items_or_no_finite_ones_have_no_value(n):
    probe = TopographicSimilarityProbe("meaning", site="out", loss=drive, **SETTINGS)
    assert "topsim" not in probe.run(Speaker(3), batches(grid(3)[:n], 1)).scalars
    W = torch.full((3, 3), math.nan)
    assert probe.run(Speaker(3, W), batches(grid(3))).scalars["items"] == 0
    W = torch.eye(3)
    W[2] = math.nan
    assert probe.run(Speaker(3, W), batches(grid(3))).scalars["items"] == 4


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="either site"):
        TopographicSimilarityProbe("meaning")
    with pytest.raises(ValueError, match="distance must be one of"):
        TopographicSimilarityProbe("meaning", message="m", distance="cosine")
    with pytest.raises(ValueError, match="at least 3"):
        TopographicSimilarityProbe("meaning", site="out", max_items=2)
    with pytest.raises(ValueError, match="no field 'colour'"):
        TopographicSimilarityProbe("colour", site="out", loss=drive).run(Speaker(3), batches(grid(3)))
    with pytest.raises(TypeError, match="whole numbers"):
        TopographicSimilarityProbe(lambda b: b["meaning"] + 0.5, site="out", loss=drive).run(
            Speaker(3), batches(grid(3))
        )
    wide = [{"meaning": grid(3)}, {"meaning": torch.zeros(4, 3, dtype=torch.long)}]
    with pytest.raises(ValueError, match="another shape in another batch"):
        TopographicSimilarityProbe("meaning", site="out", loss=drive).run(Speaker(3), wide)
