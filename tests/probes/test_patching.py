"""Patching of networks whose effects are known: linear ones, one with a single pathway, and one called step by step."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from algornn.probes import ActivationPatchingProbe
from algornn.probes.patching import effects, logit_difference, report
from algornn.probes.plots import draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Parallel(nn.Module):
    """Three linear pathways side by side, added up: a cut through them carries everything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.a(x) + self.b(x) + self.c(x))


def pairs(n=3, size=8):
    x = torch.randn(n, size, 5, generator=generator())
    y = torch.randint(0, 3, (n, size), generator=generator())
    return list(zip(x, y, strict=True))


def corrupt(batch):
    return batch[0] + 1 + 0.2 * batch[0].flip(0), (batch[1] + 1) % 3


def first(output, clean, corrupt):
    return output[:, 0] - output[:, 1]


def test_in_a_linear_network_effects_of_a_cut_add_to_one_and_attribution_is_patching():
    result = ActivationPatchingProbe(corrupt, metric=first).run(Parallel(), pairs())
    assert [row["site"] for row in result.tables["sites"]] == ["a", "b", "c", "out"]
    rows = {row["site"]: row for row in result.tables["sites"]}
    for kind in ("denoising", "noising", "attribution"):
        assert sum(rows[site][kind] for site in "abc") == pytest.approx(1, abs=1e-5)
        assert rows["out"][kind] == pytest.approx(1, abs=1e-5)
    for row in rows.values():
        assert row["attribution"] == pytest.approx(row["denoising"], abs=1e-5)
        assert row["noising"] == pytest.approx(row["denoising"], abs=1e-5)  # of a linear network
        assert row["denoising_low"] <= row["denoising"] <= row["denoising_high"]
        assert result.scalars[f"denoising/{row['site']}"] == row["denoising"]
    assert result.scalars["attribution_correlation"] == pytest.approx(1)
    assert result.scalars["pairs"] == 24
    assert len({round(rows[site]["denoising"], 3) for site in "abc"}) == 3
    draw(result.figures["effects"])


def test_effects_by_hand():
    m = {
        "clean": torch.tensor([4.0, 6.0]), "corrupt": torch.tensor([0.0, -2.0]), "denoised": torch.tensor([[1.0, 1.0]]),
        "noised": torch.tensor([[1.0, 3.0]]), "shuffled": torch.tensor([[torch.nan, 0.0]]),
        "slope": torch.tensor([[2.0, 4.0]]),
    }  # fmt: skip
    found = effects(m)  # the metric falls by 6 in the mean, from 5 to -1
    expected = {"denoising": 2 / 6, "noising": 3 / 6, "attribution": 3 / 6, "shuffled": 2 / 6}
    assert {kind: float(value) for kind, value in found.items()} == pytest.approx(expected)
    first = effects(m, torch.tensor([0]))
    assert (float(first["denoising"]), float(first["noising"])) == (0.25, 0.75)


def test_the_logit_difference_is_of_the_two_targets_where_they_differ():
    logits = torch.tensor([[[1.0, 5.0, 2.0], [0.0, 3.0, 9.0]], [[1.0, 1.0, 7.0], [4.0, 0.0, 0.0]]])
    clean, other = torch.tensor([[1, 2], [2, 0]]), torch.tensor([[0, 2], [1, 2]])
    assert logit_difference(logits, clean, other).tolist() == [4, (6 + 4) / 2]
    assert logit_difference(logits, clean, torch.tensor([[0, 2], [1, -100]])).tolist() == [4, 6]
    assert logit_difference(logits[:, 0], clean[:, 0], clean[:, 0]).isnan().all()


class Routed(nn.Module):
    """Only `used` reaches the output; `idle` does not."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.used(x) + 0 * self.idle(x)


def shifted(batch):
    return batch[0].roll(1, dims=1), (batch[1] + 1) % 3


def one_hot(n=2, size=6):
    y = torch.randint(0, 3, (n, size), generator=generator())
    return [(5 * nn.functional.one_hot(part, 3).float(), part) for part in y]


def test_only_the_pathway_that_is_used_has_an_effect():
    scalars = ActivationPatchingProbe(shifted).run(Routed(), one_hot()).scalars
    assert (scalars["metric_clean"], scalars["metric_corrupt"]) == (5, -5)
    for kind in ("denoising", "noising", "attribution"):
        assert (scalars[f"{kind}/used"], scalars[f"{kind}/idle"]) == (1, 0)
    assert scalars["shuffled/used"] < 1


def test_redundant_pathways_suffice_and_are_not_needed():
    class Redundant(Routed):
        def forward(self, x):
            return torch.maximum(self.used(x), self.idle(x))

    def loud(output, clean, _):  # the logit of the clean target alone
        return output.gather(1, clean[1][:, None])[:, 0]

    scalars = ActivationPatchingProbe(shifted, metric=loud).run(Redundant(), one_hot()).scalars
    assert scalars["denoising/used"] == scalars["denoising/idle"] == 1
    assert scalars["noising/used"] == scalars["noising/idle"] == 0


class Stepper(nn.Module):
    """A sum over steps: the state after step t carries what came up to it."""

    def __init__(self):
        super().__init__()
        self.cell = Add()

    def forward(self, x):
        h = torch.zeros(len(x), 2)
        for t in range(x.shape[1]):
            h = self.cell(h, x[:, t])
        return h


class Add(nn.Module):
    def forward(self, h, x):
        return h + x


def test_a_recurrent_network_gives_a_map_of_site_by_call():
    x = torch.zeros(2, 6, 4, 2)
    x[:, :, 1, 0] = 3  # the clean input differs from the corrupt one at step 1 alone
    data = [(part, torch.zeros(6, dtype=torch.long)) for part in x]

    def cut(batch):
        return torch.zeros_like(batch[0]), torch.ones_like(batch[1])

    result = ActivationPatchingProbe(cut, metric=lambda output, clean, _: output[:, 0]).run(Stepper(), data)
    figure = result.figures["denoising"]
    assert (figure["x"], figure["y"]) == ([0, 1, 2, 3], ["cell"])
    assert figure["values"] == result.figures["noising"]["values"] == [[0, 1, 1, 1]]
    draw(figure)
    only = ActivationPatchingProbe(cut, ["cell@2"], metric=lambda output, clean, _: output[:, 0]).run(Stepper(), data)
    assert [row["site"] for row in only.tables["sites"]] == ["cell@2"]


def test_attribution_that_saturation_spoils_is_reported():
    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.steep, self.flat, self.idle = nn.Identity(), nn.Identity(), nn.Identity()

        def forward(self, x):
            return torch.tanh(3 * self.steep(x)) + 0.1 * self.flat(x) + 0 * self.idle(x)

    x = torch.linspace(2, 3, 8)[:, None].expand(8, 2)
    probe = ActivationPatchingProbe(lambda batch: (-batch[0], batch[1]), metric=lambda output, *_: output[:, 0])
    result = probe.run(Saturated(), [(x, torch.zeros(8, dtype=torch.long))])
    assert result.scalars["denoising/steep"] == pytest.approx(2 / 2.5, abs=1e-3)
    assert result.scalars["attribution/steep"] < 0.01
    assert result.scalars["denoising/flat"] == pytest.approx(result.scalars["attribution/flat"])
    assert result.scalars["attribution_correlation"] < 0.5
    assert "first-order" in result.failures[0]


def test_what_another_pairs_activation_does_as_well_is_reported():
    data = [(torch.eye(3)[torch.zeros(6, dtype=torch.long)] * 5, torch.zeros(6, dtype=torch.long))] * 2
    result = ActivationPatchingProbe(shifted).run(Routed(), data)  # all pairs are the same
    assert result.scalars["shuffled/used"] == 1
    assert "another pair does as much at used" in result.failures[0]


def test_a_metric_that_does_not_tell_is_reported():
    result = ActivationPatchingProbe(lambda batch: (batch[0], shifted(batch)[1])).run(Parallel(), pairs())
    assert "does not tell clean from corrupt" in result.failures[0]
    assert not any(key.startswith("denoising") for key in result.scalars)
    same_targets = ActivationPatchingProbe(lambda batch: (batch[0] + 1, batch[1])).run(Parallel(), pairs())
    assert "no pair has two targets" in same_targets.failures[0]
    assert same_targets.scalars == {"pairs": 0}
    model = Parallel()
    model.a.weight.data.fill_(torch.nan)
    assert ActivationPatchingProbe(corrupt).run(model, pairs()).scalars["pairs"] == 0


class Row(NamedTuple):
    x: Tensor
    y: Tensor
    other_x: Tensor
    other_y: Tensor


def test_the_corrupt_input_may_be_a_field_of_the_batch():
    expected = ActivationPatchingProbe(corrupt).run(Parallel(), pairs()).scalars
    both = [(*clean, *corrupt(clean)) for clean in pairs()]
    fields = {"x": "other_x", "y": "other_y"}
    kinds = {
        "dictionary": (fields, [dict(zip(Row._fields, four, strict=True)) for four in both], lambda batch: batch["x"]),
        "named tuple": (fields, [Row(*four) for four in both], lambda batch: batch.x),
    }
    for name, (mapping, data, x) in kinds.items():
        probe = ActivationPatchingProbe(mapping, loss=lambda call, batch, x=x: call(x(batch)).sum())
        assert probe.run(Parallel(), data).scalars == expected, name
    probe = ActivationPatchingProbe({0: 2, 1: 3}, target=1, loss=lambda call, batch: call(batch[0]).sum())
    assert probe.run(Parallel(), both).scalars == expected


def test_a_single_pair_and_an_odd_one_out():
    one = ActivationPatchingProbe(shifted).run(Routed(), [(batch[0][:1], batch[1][:1]) for batch in one_hot(1)])
    assert one.scalars["denoising/used"] == 1
    assert "shuffled/used" not in one.scalars
    whole, last = one_hot()
    ragged = ActivationPatchingProbe(shifted).run(Routed(), [whole, (last[0][:1], last[1][:1])])
    assert ragged.scalars["pairs"] == 7
    assert ragged.scalars["shuffled/used"] < 1


def test_many_sites_are_cut_in_the_figure_and_not_in_the_table():
    m = {key: torch.rand(40, 9, generator=generator()) for key in ("denoised", "noised", "shuffled", "slope")}
    m |= {"clean": torch.ones(9), "corrupt": torch.zeros(9)}
    result = report(m, [f"layer.{i}" for i in range(40)], generator())
    assert len(result.tables["sites"]) == 40
    assert len(result.figures["effects"]["y"]) == len(result.figures["effects"]["values"]) == 24
    largest = sorted(result.tables["sites"], key=lambda row: -row["denoising"])[:24]
    assert set(result.figures["effects"]["y"]) == {row["site"] for row in largest}


def test_mistakes():
    with pytest.raises(TypeError, match=r"write \['a'\]"):
        ActivationPatchingProbe(corrupt, "a")
    with pytest.raises(ValueError, match="at one call"):
        ActivationPatchingProbe(corrupt, ["cell@:"])
    with pytest.raises(ValueError, match=r"differ in shape, \[8, 4\] and \[7, 4\]: pad"):
        ActivationPatchingProbe(lambda b: (b[0][1:], b[1][1:])).run(Parallel(), pairs())
    with pytest.raises(ValueError, match=r"Expected logits \[8, 'classes'\].*pass a function by logits="):
        ActivationPatchingProbe(corrupt, logits=lambda output, batch: output[:2]).run(Parallel(), pairs())
    lstm = nn.Sequential(nn.LSTM(5, 3, num_layers=2, batch_first=True))
    data = [(torch.randn(4, 2, 5), torch.zeros(4).long())]
    probe = ActivationPatchingProbe(lambda b: (b[0], b[1] + 1), ["0[1][0]"], loss=lambda call, b: call(b[0])[0].sum())
    with pytest.raises(ValueError, match=r"Expected 4 rows.*\[2, 4, 3\]"):
        probe.run(lstm, data)
