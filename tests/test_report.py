"""The report: every number of a run folder stands in it, and it says what is missing instead of failing."""

import base64
import csv
import json
import re
from pathlib import Path

import pytest
from report_runs import FIGURES, GROUPS, IID, OOD, stage, write_run

from algornn.cli import main as command_line
from algornn.report import main, result_table
from algornn.report_figures import (
    run_colours,
    set_bars,
)
from algornn.run_results import read_run


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """Return a run folder with its report."""
    run = write_run(tmp_path_factory.mktemp("runs") / "babi_all_tprrnn" / "20260101-seed1")
    main([str(run)])
    return run


def table_rows(markdown: str) -> list[dict[str, str]]:
    """Parse the Markdown tables of a text: a dictionary per row."""
    rows, header = [], []
    for line in [*markdown.splitlines(), ""]:
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and header and not set(cells[0]) <= {"-"}:
            rows.append(dict(zip(header, cells, strict=True)))
        header = [] if not cells else header or cells
    return rows


def test_headline_leaves_the_incomplete_group_out_and_shows_it_beside(reported):
    row = table_rows(result_table([reported]))[0]
    others = [name for name in GROUPS if name != "qa3"]
    assert row["test (IID) %"] == f"{100 * sum(IID[n] for n in others) / 19:.2f}"
    assert row["sys (OOD) %"] == f"{100 * sum(OOD[n] for n in others) / 19:.2f}"
    assert (row["qa3 test (IID) %"], row["qa3 sys (OOD) %"]) == ("51.00", "47.00")
    assert (row["model"], row["parameters"], row["steps"]) == ("TPRRNN", "141,985", "100,000")
    assert "qa3: trained on a part of its data only" in result_table([reported])


def test_terminal_table_shows_key_scalars_without_parts_and_controls(reported):
    shown = {
        row["probe"]: row["babi_all_tprrnn seed 1"] for row in table_rows(result_table([reported])) if "probe" in row
    }
    assert shown["fast_weight: effective_rank"] == "15"
    assert shown["weight_mask: overlap"] == "0.4"
    assert not [name for name in shown if "/" in name or "control" in name]


def test_page_is_one_file_without_network_or_scripts(reported):
    html = (reported / "report/report.html").read_text()
    assert not re.findall(r"https?://|<script|<link|@import|url\(", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))


def test_page_holds_every_picture_that_lies_beside_it(reported):
    html = (reported / "report/report.html").read_text()
    embedded = {base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", html)}
    files = {file.read_bytes() for file in (reported / "report").glob("*.png")}
    assert embedded == files
    assert len(list((reported / "report").glob("*.png"))) == 4 + 2 * (1 + 3)  # bars, scatter, 2 curves; probes
    assert all(data.startswith(b"\x89PNG") for data in files)


def test_page_and_markdown_name_all_groups_and_facts(reported):
    html, markdown = (reported / "report/report.html").read_text(), (reported / "report/report.md").read_text()
    by_group = {row["group"]: row for row in table_rows(markdown) if "group" in row}
    assert list(by_group) == [f"{name} (incomplete)" if name == "qa3" else name for name in GROUPS]
    assert (by_group["qa7"]["test (IID) %"], by_group["qa7"]["sys (OOD) %"]) == ("99.00", "62.00")
    for fact in ("BAbI en-valid-10k", "1 h 23 min", "0123456789ab", "a processor, 1 thread(s)", "torch 2.13.0"):
        assert fact in html
        assert fact in markdown


def test_csv_holds_the_exact_numbers(reported):
    with (reported / "report/report.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    accuracies = {(r["set"], r["group"]): float(r["value"]) for r in rows if r["quantity"] == "accuracy"}
    assert accuracies == {("test", n): a for n, a in IID.items()} | {("sys", n): a for n, a in OOD.items()}
    assert {r["ood"] for r in rows if r["set"] == "sys"} == {"True"}
    assert next(float(r["value"]) for r in rows if r["quantity"] == "probe/fast_weight/effective_rank") == 15


def test_report_is_the_same_bytes_again_and_rewrites_only_itself(reported):
    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in reported.rglob("*") if file.is_file()}

    before = content()
    main([str(reported)])
    assert content() == before


def published(folder: Path, **changes) -> dict[str, dict[str, str]]:
    rows = table_rows(result_table([write_run(folder, **changes)]))
    return {row["error %"].split(": ")[1]: row for row in rows if "error %" in row}


def test_published_numbers_get_no_verdict_below_the_published_steps(tmp_path):
    rows = published(tmp_path / "run", incomplete=[])
    assert rows["test"]["published"] == "1.34 ± 0.52 (n = 8)"
    assert rows["test"]["verdict"] == "none: 10 % of the published steps"
    assert rows["sys"]["published is"] == "recalled, no pass mark"


@pytest.mark.parametrize(
    ("error", "incomplete", "note", "expected"),
    [
        (0.02, [], "", "reproduced"),
        (0.03, [], "", "not reproduced"),
        (0.02, ["qa3"], "", "none: without qa3"),
        (0.02, [], "generated training set", "none: generated training set"),
    ],
)
def test_verdict_at_the_full_budget(tmp_path, error, incomplete, note, expected):
    stages = {name: stage(dict.fromkeys(GROUPS, 1 - error), ood=name == "sys") for name in ("test", "sys")}
    rows = published(tmp_path / "run", budget=1.0, incomplete=incomplete, note=note, stages=stages)
    assert rows["test"]["verdict"] == expected
    assert rows["test"]["measured"] == f"{100 * error:.2f} (n = 1)"
    assert rows["sys"]["verdict"].endswith("published number recalled")  # never a pass mark


def test_seeds_are_averaged_and_told_apart(tmp_path):
    stages = [{"test": stage(dict.fromkeys(GROUPS, accuracy), ood=False)} for accuracy in (0.98, 0.96)]
    runs = [write_run(tmp_path / f"run{i}", seed=i, budget=1.0, incomplete=[], stages=s) for i, s in enumerate(stages)]
    rows = table_rows(result_table(runs))
    assert [row["run"] for row in rows[:2]] == ["babi_all_tprrnn seed 0", "babi_all_tprrnn seed 1"]
    assert next(row["measured"] for row in rows if "measured" in row) == "3.00 ± 1.41 (n = 2)"
    main([*map(str, runs), "--out", str(tmp_path / "both")])
    assert not (runs[0] / "report").exists()
    assert (tmp_path / "both/sets.png").is_file()


def test_same_seed_twice_is_told_apart_by_the_folder(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("first", "second")]
    assert [row["run"] for row in table_rows(result_table(runs))[:2]] == [
        "babi_all_tprrnn first",
        "babi_all_tprrnn second",
    ]


def test_resumed_logs_join_where_the_later_one_starts(reported):
    points = read_run(reported).curves["train/loss"]
    steps = [step for step, _ in points]
    assert steps == list(range(0, 100_001, 250))
    with (reported / "logs/version_1/metrics.csv").open() as stream:
        later = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]}
    assert {step: value for step, value in points if step >= 50_000} == later


def test_sets_of_one_name_in_and_out_of_distribution_stand_apart(tmp_path):
    inside, outside = (
        write_run(tmp_path / name, seed, stages={"test": stage(IID, ood=seed == 2)})
        for seed, name in ((1, "inside"), (2, "outside"))
    )
    runs = [read_run(inside), read_run(outside)]
    runs[1].label = "another"
    figure = set_bars(runs, run_colours(runs))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["test\n(IID)", "test\n(OOD)"]
    widths = [bar.get_width() for bar in figure.axes[0].patches if bar.get_width()]
    assert len(widths) == 2
    assert [text.get_text() for text in figure.axes[0].texts].count("none") == 2  # each run lacks the other's set


def test_returns_by_group_and_accuracy_by_examples_read(tmp_path):
    arms = {"arms_2": {"return": 21.5, "return_error": 0.0, "examples": 1}}  # one episode has no standard error
    arms["arms_10"] = {"return": 30.25, "return_error": 0.75, "examples": 4}
    read = {"accuracy_after_0": 0.125, "accuracy_after_10": 0.5, "accuracy_after_2": 0.25}
    stages = {
        "test": {"ood": True, "return": -446.2, "return_error": 221.7, "examples": 5, "groups": arms},
        "seen": {"ood": False, "sequence_accuracy": 0.5, "groups": {}, **read},
    }
    run = write_run(tmp_path / "run", incomplete=[], stages=stages)
    main([str(run)])
    page = (run / "report/report.md").read_text()
    assert re.search(r"\| return +\| arms_2 \| +arms_10 \|", page)
    assert re.search(r"\| test \(OOD\) \| +21.5 \| 30.25 ± 0.75 \|", page)
    assert "-446.2" not in page  # groups have scales of their own, so their mean says nothing
    assert "mean ± its standard error" in page
    rows = list(csv.DictReader((run / "report/report.csv").open()))
    assert {(r["group"], r["value"]) for r in rows if r["group"]} == {("arms_2", "21.5"), ("arms_10", "30.25")}
    assert [r["value"] for r in rows if r["quantity"] == "return" and not r["group"]] == ["-446.2"]
    assert [r["value"] for r in rows if r["quantity"].startswith("accuracy after")] == ["0.125", "0.25", "0.5"]
    assert (run / "report/examples_read.png").is_file()


def test_unfinished_run_shows_what_is_there(tmp_path, capsys):
    run = write_run(tmp_path / "run", finished=False)
    main([str(run)])
    printed = capsys.readouterr().out
    assert "unfinished" in printed
    assert "up to step 100,000" in printed
    assert (run / "report/train_loss.png").is_file()
    assert not (run / "report/iid_ood.png").exists()


def test_run_with_a_configuration_only(tmp_path, capsys):
    run = write_run(tmp_path / "run", finished=False)
    for name in ("logs", "probes"):
        (run / name).rename(tmp_path / name)
    main([str(run)])
    assert "no test results yet" in capsys.readouterr().out
    assert not list((run / "report").glob("*.png"))


def test_results_of_probes_are_all_that_ones_own_trainer_leaves(tmp_path, capsys):
    write_run(tmp_path / "run", steps=10_000).joinpath("probes").rename(tmp_path / "probes")
    main([str(tmp_path)])
    assert {row["run"] for row in table_rows(result_table([tmp_path])) if "run" in row} == {tmp_path.name}
    assert "holds results of probes alone" in capsys.readouterr().out
    assert (tmp_path / "report/fast_weight_recall.png").is_file()


BROKEN = {
    "metrics.json": ['{"stages": {"te', "[]", '{"stages": []}', '{"stages": {"test": {"groups": 3}}}'],
    "config.yaml": ["recipe: {", "- 1", "recipe: {published: [{stage: test, error: NaN}, 3]}"],
    "probes/fast_weight/step=10000.json": ["", "null", '{"scalars": [1], "figures": {"a": 1}}'],
    "logs/version_0/metrics.csv": ["", "\x00", "step,train/loss\n1,0.5\n2,"],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_broken_file_never_ends_in_a_traceback(tmp_path, capsys, name, content):
    run = write_run(tmp_path / "run", steps=10_000)
    for file in run.glob("probes/weight_mask/*"):
        file.unlink()
    (run / name).write_text(content)
    assert command_line(["report", str(run)]) == 0
    assert "babi_all_tprrnn" in capsys.readouterr().out
    assert (run / name).read_text() == content


def test_broken_results_are_told_in_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "run", steps=10_000)
    (run / "metrics.json").write_text('{"stages": {"te')
    main([str(run)])
    assert "metrics.json cannot be read as JSON" in capsys.readouterr().out
    assert "metrics.json cannot be read as JSON" in (run / "report/report.html").read_text()


@pytest.mark.parametrize("exists", [True, False])
def test_folder_that_is_no_run_is_one_sentence(tmp_path, capsys, exists):
    folder = tmp_path if exists else tmp_path / "missing"
    assert command_line(["report", str(folder)]) == 2
    assert re.fullmatch(r"algornn: error: .*(is no folder|holds no metrics.json).*\n", capsys.readouterr().err)
    assert not (folder / "report").exists()


def test_foreign_folder_is_left_as_it_is(tmp_path, capsys):
    run, other = write_run(tmp_path / "run"), tmp_path / "thesis"
    other.mkdir()
    (other / "report.html").write_text("three years of work")
    assert command_line(["report", str(run), "--out", str(other)]) == 2
    assert "nothing is written" in capsys.readouterr().err
    assert [file.read_text() for file in other.iterdir()] == ["three years of work"]


def test_names_cannot_inject_markup(tmp_path):
    run = write_run(tmp_path / "run", steps=10_000, recipe="<script>alert(1)</script>", command="a|b & <i>")
    main([str(run)])
    html = (run / "report/report.html").read_text()
    assert "<script" not in html
    assert "a|b &amp; &lt;i&gt;" in html
    assert "a\\|b" in (run / "report/report.md").read_text()


def test_users_matplotlib_style_changes_nothing(reported, tmp_path):
    from matplotlib import rc_context

    before = (reported / "report/groups_babi_all_tprrnn_seed_1.png").read_bytes()
    with rc_context({"axes.facecolor": "black", "font.size": 20}):
        main([str(reported), "--out", str(tmp_path / "styled")])
    assert (tmp_path / "styled/groups_babi_all_tprrnn_seed_1.png").read_bytes() == before


def test_a_test_on_a_part_of_the_sets_is_told(tmp_path, capsys):
    told = "was tested on a part of every set: trainer.limit_test_batches is 2."
    for name, option in (("whole", ""), ("part", " --trainer.limit_test_batches 2")):
        main([str(write_run(tmp_path / name, steps=10_000, command=f"algornn fit --config babi_all_tprrnn{option}"))])
        assert (f"part {told}" in capsys.readouterr().out) is bool(option)


def test_probe_measured_once_has_figures_but_no_curve(tmp_path):
    run = write_run(tmp_path / "run", steps=10_000)
    main([str(run)])
    names = {file.stem for file in (run / "report").glob("*weight_*.png")}
    assert names == {f"{probe}_{figure}" for probe in ("fast_weight", "weight_mask") for figure in FIGURES}


def test_the_caption_of_a_probes_figure_says_what_is_seen(reported):
    captions = re.findall("<figcaption>(.*?)</figcaption>", (reported / "report/report.html").read_text())
    assert "Recall by age (fast_weight, step 100,000). What P shows." in captions


def test_a_changed_network_is_no_seed_of_the_recipe_and_gets_no_verdict(tmp_path):
    from algornn.report import published_against_measured

    runs = []
    for name, options in {
        "a": "",
        "b": " --data.seed 2",
        "c": " --model.model.layer DeltaNet --data.batch_size=7",
    }.items():
        folder = write_run(tmp_path / name, steps=10_000)
        file = folder / "metrics.json"
        metrics = json.loads(file.read_text())
        file.write_text(json.dumps(metrics | {"command": f"algornn fit --config x{options}"}))
        runs.append(read_run(folder))
    assert [list(run.options) for run in runs] == [[], [], ["model.model.layer", "data.batch_size"]]
    rows = published_against_measured(runs).rows
    assert len(rows) == 2 * len({row[0] for row in rows})
    assert all("(n = 2)" in row[2] or "not as the recipe: model.model.layer, data.batch_size" in row[4] for row in rows)


@pytest.mark.parametrize("option", ["--data my.Data", "--data=my.Data", "--data.split x", "--data.init_args.split=x"])
def test_other_data_are_never_set_beside_the_published_number(tmp_path, option):
    changes = {"data": "Mine x (made by hand)", "note": "made by hand", "command": f"algornn fit --config c {option}"}
    run = write_run(tmp_path / "run", steps=10_000, **changes)
    rows = table_rows(result_table([run]))
    assert rows[0]["run"] == "TPRRNN on Mine x seed 1"
    assert "of published steps" not in rows[0]
    assert read_run(run).about == ""
    assert not [row for row in rows if "published" in row]
    both = table_rows(result_table([run, write_run(tmp_path / "own", steps=10_000)]))
    assert [row["of published steps"] for row in both[:2]] == ["-", "10 %"]
    assert [row["measured"][-7:] for row in both if "published" in row] == ["(n = 1)"] * 2


def test_a_failed_control_stands_beside_the_numbers(tmp_path, capsys):
    run = write_run(tmp_path / "run", steps=10_000)
    file = run / "probes/fast_weight/step=10000.json"
    file.write_text(json.dumps({"scalars": {"rank": 1.0}, "failures": ["Chance does as well."], "figures": {}}))
    main([str(run)])
    told = "fast_weight, step 10,000: a control failed: Chance does as well."
    assert told in capsys.readouterr().out
    assert told in (run / "report/report.html").read_text()
    assert told in (run / "report/report.md").read_text()
