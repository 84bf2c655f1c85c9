"""DisentanglementProbe on full grids of meanings, whose values are exact, and information in bits."""

import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.clustering import mutual_info_score

from algornn.probes import DisentanglementProbe
from algornn.probes.disentanglement import context_independence, gap, symbol_counts
from algornn.probes.information import binned, indicators, information

SETTINGS = {"permutations": 20, "resamples": 20}


def grid(V):
    return torch.cartesian_prod(torch.arange(V), torch.arange(V))


def messages_of(name, V=5):
    a, b = grid(V).unbind(1)
    return torch.stack(
        {
            "identity": (a, b),
            "disjoint": (a, b + V),
            "one sum": (a, (a + b) % V),
            "two sums": ((a + b) % V, (a - b) % V),
            "constant": (0 * a, 0 * b),
        }[name],
        1,
    )


def either_order(V=5):
    """The disjoint code in both orders of its places, equally often: the exact distribution of a random order."""
    return grid(V).repeat(2, 1), torch.cat([messages_of("disjoint", V), messages_of("disjoint", V).flip(1)])


def measures(meaning, message, padding=None):
    counts, _ = symbol_counts(message, padding)
    concepts = indicators(meaning).matrix.double()
    return {
        "posdis": gap(indicators(meaning), indicators(message)),
        "bosdis": gap(indicators(meaning), indicators(counts)),
        "token": context_independence(concepts, counts.double(), "token"),
        "presence": context_independence(concepts, counts.double(), "presence"),
    }


class Speaker(nn.Module):
    def __init__(self, V):
        super().__init__()
        self.say = nn.Embedding(V, V)
        self.say.weight.data = torch.eye(V)
        self.out = nn.Identity()

    def forward(self, meaning):
        return self.out(self.say(meaning))


def drive(call, batch):
    return call(batch["meaning"]).sum()


def run(meaning, model=None, **fields):
    probe_fields = {k: fields.pop(k) for k in ("site", "read", "padding", "bins", "corrected") if k in fields}
    place = {} if "site" in probe_fields else {"message": "message"}
    rows = {"meaning": meaning, **fields}
    loader = [{k: v[i : i + 7] for k, v in rows.items()} for i in range(0, len(meaning), 7)]
    probe = DisentanglementProbe("meaning", loss=drive, max_batches=None, **place, **probe_fields, **SETTINGS)
    return probe.run(model or Speaker(12), loader)


@pytest.mark.parametrize(
    ("name", "posdis", "bosdis", "token", "presence"),
    [
        ("identity", 1, 0, None, None),
        ("disjoint", 1, 1, 1 / 4, 1 / 2),
        ("one sum", 1 / 2, None, None, None),
        ("two sums", 0, None, None, None),
    ],
)
def test_codes_of_the_full_grid_have_exact_values(name, posdis, bosdis, token, presence):
    expected = {"posdis": posdis, "bosdis": bosdis, "token": token, "presence": presence}
    found = measures(grid(5), messages_of(name))
    known = {key: value for key, value in expected.items() if value is not None}
    assert {key: found[key] for key in known} == pytest.approx(known, abs=1e-12)
    scalars = run(grid(5), message=messages_of(name)).scalars
    names = {"token": "context_independence_token", "presence": "context_independence_presence"}
    assert {key: scalars[names.get(key, key)] for key in known} == pytest.approx(known, abs=1e-12)


def test_a_random_order_of_places_costs_posdis_alone():
    found = measures(*either_order())
    assert found["bosdis"] == pytest.approx(1)
    assert found["posdis"] == pytest.approx(0, abs=1e-12)  # both attributes are at every place equally often
    meaning, message = either_order()
    found = measures(meaning[:35], message[:35])
    assert found["bosdis"] > 0.9 > found["posdis"] > 0


def test_three_attributes_have_a_ninth_and_a_third_of_context_independence():
    meaning = torch.cartesian_prod(*[torch.arange(3)] * 3)
    found = measures(meaning, meaning + 3 * torch.arange(3))
    assert found == pytest.approx({"posdis": 1, "bosdis": 1, "token": 1 / 9, "presence": 1 / 3})


def test_a_constant_message_is_not_defined_and_fails():
    result = run(grid(5), message=messages_of("constant"))
    assert "posdis" not in result.scalars
    assert "bosdis" not in result.scalars
    assert "not defined" in result.failures[0]
    varying = torch.cat([messages_of("identity"), messages_of("constant")], 1)
    assert run(grid(5), message=varying).scalars["posdis"] == pytest.approx(1)  # constant places are left out


def test_padding_is_no_symbol():
    # The second place is written for a > 0 only; 9 fills up.
    meaning = grid(4)
    message = torch.stack([meaning[:, 1] + 4, torch.where(meaning[:, 0] > 0, meaning[:, 0], 9)], 1)
    with_padding, without = measures(meaning, message), measures(meaning, message, padding=9)
    assert symbol_counts(message, 9)[1].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert without["bosdis"] == pytest.approx(1)
    # Half of what a symbol stands for is its own concept; a = 0 has none: one in four of its messages holds any other
    # concept's symbol, of whose concepts it is one in eight.
    assert without["presence"] == pytest.approx((3 * 1 / 2 + 4 * 1 / 2 + 1 / 4 * 1 / 8) / 8)
    assert with_padding["presence"] == pytest.approx(1 / 2)


def test_shares_of_symbols_are_normalised_over_concepts():
    concepts = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]).double()
    counts = torch.tensor([[2, 1], [2, 0], [0, 1], [0, 1]]).double()
    # joint, a0: (4, 1), a1: (0, 2), b0: (2, 2), b1: (2, 1); p(c|v): (1/2, 0, 1/4, 1/4), (1/6, 1/3, 1/3, 1/6)
    token = (4 / 5 * 1 / 2 + 1 * 1 / 3 + 1 / 2 * 1 / 3 + 2 / 3 * 1 / 4) / 4
    assert context_independence(concepts, counts, "token") == pytest.approx(token)
    # presence, a0: (2, 1), a1: (0, 2), b0: (1, 2), b1: (1, 1), of 2 messages each; columns sum to 4 and 6
    presence = (1 * 1 / 2 + 1 * 1 / 3 + 1 * 1 / 3 + 1 / 2 * 1 / 4) / 4
    assert context_independence(concepts, counts, "presence") == pytest.approx(presence)


def test_a_model_that_keeps_places_by_construction_fails_the_scrambled_control():
    result = run(grid(6), Speaker(6), site="out")
    assert result.scalars["posdis"] == pytest.approx(1)
    assert result.scalars["posdis_scrambled"] == pytest.approx(1)
    assert result.scalars["posdis_shuffled"] < 0.3
    assert 0.8 < result.scalars["posdis_low"] < result.scalars["posdis_high"] == 1
    (failure,) = [failure for failure in result.failures if "posdis" in failure]
    assert "scrambled weights" in failure
    assert result.tables["information"][0][1] == pytest.approx(0, abs=1e-12)
    assert result.tables["information"][0][0] == pytest.approx(math.log2(6))


def test_units_in_bins():
    meaning = grid(5)
    embedding = Speaker(5)
    embedding.say = nn.Embedding(5, 1)
    embedding.say.weight.data = torch.tensor([[0.3], [-2], [5], [7], [1]])
    result = run(meaning, embedding, site="out", read="bins")
    assert result.scalars["posdis"] == pytest.approx(1)
    assert "bosdis" not in result.scalars
    assert run(meaning, embedding, site="out", read="bins", bins=2).scalars["posdis"] == pytest.approx(1)


def test_shuffled_messages_of_few_examples_are_biased_and_the_correction_helps():
    generator = torch.Generator().manual_seed(0)
    x = indicators(torch.randint(0, 6, (80, 2), generator=generator))
    y = indicators(torch.randint(0, 6, (80, 2), generator=generator))
    plain, _, _ = information(x, y)
    corrected, H, _ = information(x, y, corrected=True)
    assert plain.min() > 0.1
    assert corrected.abs().mean() < 0.5 * plain.mean()
    # Miller and Madow: 6 + 6 seen values, 36 cells at most
    cells = int((x.matrix[:, :6].T @ y.matrix[:, :6]).gt(0).sum())
    assert float(corrected[0, 0] - plain[0, 0]) == pytest.approx((6 + 6 - cells - 1) / (160 * math.log(2)))
    assert float(H[0] - information(x, y)[1][0]) == pytest.approx(5 / (160 * math.log(2)))
    result = run(grid(6), message=torch.randint(0, 6, (36, 2), generator=generator))
    assert any("posdis" in failure and "shuffled" in failure for failure in result.failures)
    low = run(grid(6), message=messages_of("identity", 6), corrected=True).scalars
    assert low["posdis_shuffled"] < 1


def test_information_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    a, c = torch.randint(0, 4, (50, 2), generator=generator), torch.randint(-3, 3, (50, 3), generator=generator)
    found, H, _ = information(indicators(a), indicators(c))
    for i in range(2):
        assert float(H[i]) == pytest.approx(float(mutual_info_score(a[:, i], a[:, i])) / math.log(2), abs=1e-5)
        for j in range(3):
            expected = float(mutual_info_score(a[:, i], c[:, j] + 3)) / math.log(2)
            assert float(found[i, j]) == pytest.approx(expected, abs=1e-5)


def test_bins_hold_equally_many_examples():
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    bins = binned(x, 20)
    assert all(column.bincount().tolist() == [50] * 20 for column in bins.unbind(1))
    assert len(binned(torch.tensor([[0.0], [0], [0], [1]]), 20).unique()) == 2
    assert len(binned(torch.ones(4, 1), 20).unique()) == 1


def test_edges():
    assert run(grid(3)[:1], Speaker(3), site="out").scalars["examples"] == 1
    broken = Speaker(3)
    broken.say.weight.data.fill_(math.nan)
    assert run(grid(3), broken, site="out", read="bins").scalars == {"examples": 0}
    with pytest.raises(ValueError, match="at least two"):
        run(grid(3)[:, :1], message=grid(3))
    with pytest.raises(ValueError, match="either site"):
        DisentanglementProbe("meaning")
    with pytest.raises(ValueError, match="read must be"):
        DisentanglementProbe("meaning", site="out", read="softmax")
    with pytest.raises(ValueError, match="bins must be"):
        DisentanglementProbe("meaning", site="out", bins=1)
    with pytest.raises(ValueError, match=r"activation \[B, L, V\]"):
        run(torch.zeros(4, 2, 2, dtype=torch.long)[:, 0], lambda_model(), site="out")


def lambda_model():
    class Deep(Speaker):
        def forward(self, meaning):
            return self.out(self.say(meaning)[..., None])

    return Deep(3)
