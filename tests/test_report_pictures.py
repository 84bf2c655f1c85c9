"""The pictures of a report: colours, legends, axes, and what is told where there is none."""

import csv
import json
import re
from pathlib import Path

import pytest
from report_runs import IID, OOD, stage, write_run

from algornn.report import main
from algornn.report_figures import (
    COLOURS,
    by_examples_read,
    curve_pictures,
    group_bars,
    iid_against_ood,
    learning_curve,
    run_colours,
    small_multiples,
)
from algornn.report_probes import probe_parts, probe_pictures, probe_scalars, scalar_panels
from algornn.report_returns import returns_by_group
from algornn.run_results import RunResults, read_run


def two_runs(folder: Path, **changes) -> list[RunResults]:
    """Return two runs of two colours."""
    runs = [read_run(write_run(folder / f"run{seed}", seed, steps=20_000, **changes)) for seed in (1, 2)]
    for run in runs:
        run.label = f"seed {run.seed}"
    return runs


def test_a_curve_of_one_run_among_several_keeps_its_colour_and_gets_a_legend(tmp_path):
    runs = two_runs(tmp_path)
    colours = run_colours(runs)
    figure = learning_curve({"seed 2": [(0, 0.0), (1, 0.0)]}, "val/sequence_accuracy", colours)
    assert [line.get_color() for line in figure.axes[0].get_lines()] == [COLOURS[1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 2"]
    low, high = figure.axes[0].get_ylim()
    assert low <= 0 < 100 <= high <= 105
    figure = small_multiples({"accuracy": {"seed 2": [[(0, 0.0)]]}, "rank": {"seed 1": [[(0, 0.0)]]}}, colours)
    assert [axes.get_lines()[0].get_color() for axes in figure.axes] == [COLOURS[1], COLOURS[0]]
    assert figure.axes[0].get_ylim()[1] >= 1 > figure.axes[1].get_ylim()[1]


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"val_check_interval": 500_000}, ": the first is after 500,000 batches (trainer.val_check_interval)"),
        ({"limit_val_batches": 0}, ": its validation is off"),
        ({}, "."),
    ],
)
def test_a_run_without_a_validation_curve_is_told(tmp_path, trainer, why):
    runs = two_runs(tmp_path)
    del runs[1].curves["val/sequence_accuracy"]
    runs[1].config["trainer"] = trainer
    list(curve_pictures(runs))
    assert runs[0].notes == []
    assert len(runs[1].notes) == 1
    assert runs[1].notes[0].startswith(f"seed 2 has no validation curve{why}")


def test_in_against_out_of_distribution_the_colour_is_the_run_and_the_marker_the_set(tmp_path):
    stages = {"test": stage(IID, ood=False)} | {name: stage(OOD, ood=True) for name in ("sys", "far", "long")}
    runs = two_runs(tmp_path, stages=stages)
    points = iid_against_ood(runs, run_colours(runs)).axes[0].collections
    colours = [tuple(p.get_facecolor()[0][:3]) for p in points]
    markers = [p.get_paths()[0].vertices.tobytes() for p in points]
    assert len(points) == 12  # groups and mean
    assert len(set(colours)) == 2
    assert len(set(markers)) == 3
    assert markers[:6] == markers[6:]


def test_a_group_without_examples_in_a_set_is_told_from_one_without_a_right_answer(tmp_path):
    stages = {"test": stage({"a": 1.0, "b": 0.0}, ood=False), "sys": stage({"a": 0.5}, ood=True)}
    run = read_run(write_run(tmp_path / "run", steps=10_000, stages=stages, incomplete=[]))
    axes = group_bars(run, COLOURS[3]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["100.0", "0.0", "50.0", "none"]


def test_numbers_of_examples_read_do_not_lie_on_each_other():
    curves = {("a", "test"): [(0, 0.1), (1, 0.2), (2, 0.3), (49, 0.8)], ("b", "test"): [(0, 0.1), (50, 0.4), (99, 0.5)]}
    figure = by_examples_read(curves, "accuracy", {"a": COLOURS[0], "b": COLOURS[1]})
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "2", "50", "99"]


def test_squared_errors_by_examples_read(tmp_path):
    errors = {"squared_error": 0.25, "squared_error_after_0": 8.5, "squared_error_after_39": 0.25}
    run = write_run(tmp_path / "run", incomplete=[], stages={"test": {"ood": False, "groups": {}, **errors}})
    main([str(run)])
    page = (run / "report/report.md").read_text()
    assert "test (IID) squared_error" in page
    assert "test (IID) %" not in page
    rows = list(csv.DictReader((run / "report/report.csv").open()))
    assert {r["quantity"]: r["value"] for r in rows if r["set"]} == {
        "squared error": "0.25", "squared error after 0 examples": "8.5", "squared error after 39 examples": "0.25",
    }  # fmt: skip
    assert (run / "report/squared_error.png").is_file()
    assert not (run / "report/examples_read.png").exists()


def test_figure_that_cannot_be_drawn_is_told(tmp_path, capsys):
    run = write_run(tmp_path / "run", steps=10_000)
    file = run / "probes/fast_weight/step=10000.json"
    file.write_text(json.dumps({"scalars": {}, "figures": {"odd": {"kind": "pie", "x": []}}}))
    main([str(run)])
    assert "fast_weight, step 10,000: the figure 'odd' cannot be drawn" in capsys.readouterr().out
    assert "the figure &#x27;odd&#x27; cannot be drawn" in (run / "report/report.html").read_text()


def test_the_interval_of_a_probes_scalar_is_a_band_and_stands_behind_its_value(tmp_path):
    runs = two_runs(tmp_path)
    for step in (10_000, 20_000):
        share = step / 100_000
        known = {"iia": share, "iia_low": share - 0.1, "iia_high": share + 0.1, "floor_low": 0.5}
        parts = {f"cka{end}/{part}": x for part in "ab" for end, x in (("", 0.5), ("_low", 0.2), ("_high", 0.7))}
        parts |= {"mask/a": 1.0, "mask/a_low": 0.9, "mask/a_high": 1.0}
        for run in runs:
            run.probes = {"p": run.probes.get("p", {}) | {step: {"scalars": known | parts}}}
    panels, bands = scalar_panels(runs, "p")
    assert panels.keys() == {"iia", "floor_low", "cka/...", "mask/..."}
    assert panels["cka/..."]["seed 1"] == [[(10_000, 0.5), (20_000, 0.5)]] * 2
    assert {name: by_run["seed 2"] for name, by_run in bands.items()} == {
        "iia": [(10_000, 0.0, 0.2), (20_000, 0.1, pytest.approx(0.3))]
    }
    figure = small_multiples(panels, run_colours(runs), bands)
    assert [len(axes.collections) for axes in figure.axes] == [2, 0, 0, 0]
    assert figure.axes[0].collections[0].get_datalim(figure.axes[0].transData).y1 == pytest.approx(0.3)
    assert (
        next(iter(probe_pictures(runs))).caption
        == "p over training. Pale: the parts, bold: their mean. Shaded: intervals."
    )
    assert probe_scalars(runs[:1], limit=2).rows == [["p: iia", "0.2 (0.1 to 0.3)"], ["p: floor_low", "0.5"]]
    assert probe_parts(runs[:1]).rows == [["a", "0.5 (0.2 to 0.7)", "1 (0.9 to 1)"], ["b", "0.5 (0.2 to 0.7)", "-"]]


def test_returns_have_a_panel_for_every_group_and_a_place_for_every_rule_and_run(tmp_path):
    def found(value, error, examples=20):
        return {"return": value, "return_error": error, "examples": examples}

    stages = {
        "test": {"ood": True, **found(49.2, 1.3), "groups": {"cart_pole": found(49.2, 1.3)}},
        "test_ppo": {"ood": True, **found(32.3, 0.0, 1), "groups": {"cart_pole": found(32.3, 0.0, 1)}},
        "seen": {
            "ood": False,
            **found(-125.0, 40.0),
            "groups": {"pendulum": found(-200.0, 11.0), "reacher": found(-50.0, 2.0)},
        },
    }
    runs = two_runs(tmp_path, stages=stages)
    del runs[1].metrics["stages"]["test_ppo"]
    figure = returns_by_group(runs, run_colours(runs))
    rows = {a.get_title(): [t.get_text() for t in a.get_yticklabels()] for a in figure.axes}
    assert rows == {"pendulum": ["seen"], "reacher": ["seen"], "cart_pole": ["test", "test_ppo"]}
    first, second = figure.axes[-1].containers
    assert first.lines[0].get_xdata().tolist() == [49.2, 32.3]
    assert second.lines[0].get_xdata().tolist() == [49.2]
    spans = [segment[:, 0].tolist() for segment in first.lines[2][0].get_segments()]
    assert spans[0] == pytest.approx([47.9, 50.5])
    assert spans[1] == [32.3, 32.3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 1", "seed 2"]


def by_car(value, examples=20):
    return {"ood": True, "return": value, "groups": {"car": {"return": value, "examples": examples}}}


def rows_of(told):
    """The first two cells of every row of the tables that were told, without those that begin with dashes."""
    return dict(re.findall(r"^\| (\w.*?) +\| +(.+?) +\|", told, re.MULTILINE))


def test_returns_over_seeds_have_intervals_and_differences_seed_by_seed(tmp_path, capsys):
    folders = []
    for seed, (ours, theirs) in enumerate([(1.0, 0.0), (2.0, 2.0), (6.0, 4.0)]):
        stages = {"test": by_car(ours), "test_reinforce": by_car(theirs), "test_reinforce_old": by_car(0.0)}
        stages["seen"] = {"ood": False, "return": 0.0, "groups": {f"world{seed}": {"return": 0.0, "examples": 1}}}
        folders.append(str(write_run(tmp_path / f"{seed}", seed, steps=1000, stages=stages)))
    main([*folders, "--out", str(tmp_path / "report")])
    told = capsys.readouterr().out
    # Three runs: half the interval is 4.302653 s / sqrt(3); s is sqrt(7), 2 and, of the differences 1, 0 and 2, 1.
    assert {name: cell for name, cell in rows_of(told).items() if name.startswith("test")} == {
        "test (OOD)": "3 ± 6.6",
        "test_reinforce (OOD)": "2 ± 5",
        "test_reinforce_old (OOD)": "0 ± 0",
        "test less test_reinforce": "1 ± 2.5",
        "test less test_reinforce_old": "3 ± 6.6",
    }
    assert "Means over seeds" in told
    assert told.count("seen (IID)") == 3  # no world of it is that of all runs: they stand by themselves
    main([folders[0], "--out", str(tmp_path / "one")])
    assert "less" not in capsys.readouterr().out


def test_only_runs_that_differ_in_their_seeds_alone_are_taken_together(tmp_path, capsys):
    command = "algornn fit --config own --model.score={} --data.seed {}"
    folders = []
    for score, values in {"agreement": (1.0, 3.0), "improvement": (5.0, 5.0)}.items():
        for seed, value in enumerate(values):
            told = {"stages": {"test": by_car(value)}, "command": command.format(score, seed)}
            folders.append(str(write_run(tmp_path / f"{score}{seed}", seed, steps=1000, **told)))
    odd = {"stages": {"test": by_car(9.0)}, "command": command.format("agreement", 2)}
    longer = write_run(tmp_path / "longer", 2, steps=1000, **odd)
    (longer / "metrics.json").write_text(json.dumps(json.loads((longer / "metrics.json").read_text()) | {"steps": 7}))
    folders.append(str(longer))
    main([*folders, "--out", str(tmp_path / "report")])
    found = {name: cell for name, cell in rows_of(capsys.readouterr().out).items() if name.endswith(": test (OOD)")}
    assert {name.partition(" ")[2]: cell for name, cell in found.items()} == {
        "(score=agreement, 100,000 steps, 2 seeds): test (OOD)": "2 ± 13",
        "(score=improvement, 100,000 steps, 2 seeds): test (OOD)": "5 ± 0",
        "longer: test (OOD)": "9",
    }
    told = {"stages": {"test": by_car(2.0)}, "command": command.format("agreement", 0)}
    again = str(write_run(tmp_path / "again", 0, steps=1000, **told))
    main([folders[0], again, "--out", str(tmp_path / "twice")])
    said = capsys.readouterr().out
    assert "Means over seeds" not in said
    assert said.count("Seed 0 stands twice among runs of babi_all_tprrnn, so no mean is taken: leave one out.") == 1


def test_a_world_without_a_number_leaves_the_others(tmp_path, capsys):
    groups = {"car": {"return": float("nan"), "examples": 2}, "boat": {"return": 1.5, "examples": 2}}
    main([str(write_run(tmp_path / "run", steps=1000, stages={"test": by_car(float("nan")) | {"groups": groups}}))])
    told = capsys.readouterr().out
    assert rows_of(told)["test (OOD)"] == "1.5"
    assert "test (OOD) %" not in told
    assert "lacks the results" not in told


def test_a_seed_whose_return_is_no_number_hides_nothing(tmp_path, capsys):
    folders = []
    for seed, car in enumerate([1.0, 2.0, float("nan")]):
        groups = {"car": {"return": car, "examples": 2}, "boat": {"return": 4.0, "examples": 2}}
        stages = {"test": {"ood": True, "return": car, "groups": groups}}
        folders.append(str(write_run(tmp_path / f"{seed}", seed, steps=1000, stages=stages)))
    main([*folders, "--out", str(tmp_path / "report")])
    told = capsys.readouterr().out
    assert re.search(r"\| test \(OOD\) +\| +4 ± 0 \|", told)  # of boats alone
    assert len(re.findall(r": test \(OOD\) +\| +4 +\| +([12-]) \|", told)) == 3


def test_tests_apart_are_those_of_the_configuration_that_was_trained(tmp_path, capsys):
    folders = []
    for seed, lifetime in enumerate([400, 400, 800]):
        run = write_run(tmp_path / f"{seed}", seed, steps=1000, stages={"test": by_car(1.0)})
        (run / "config.yaml").write_text(f"{{model: {{lifetime: {lifetime}}}, data: {{seed: {seed}}}, trainer: 3}}")
        (run / "tests/own").mkdir(parents=True)
        (run / "metrics.json").rename(run / "tests/own/metrics.json")
        folders.append(str(run / "tests/own"))
    main([*folders, "--out", str(tmp_path / "report")])
    told = capsys.readouterr().out
    assert "100,000 steps, 2 seeds): test (OOD)" in told
    assert len(re.findall(r"test \(OOD\) +\| +1 \|", told)) == 1  # the third stands by itself
