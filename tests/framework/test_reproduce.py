"""Recipes over seeds: what is trained, what is recorded, and what is left alone."""

import json

import pytest
from tiny_runs import TINY

from algornn import cli, reproduce


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A tiny recipe with a published number, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    published = "published_steps: 120, published: [{stage: test, error: 50, verified: true}]"
    (tmp_path / "tiny.yaml").write_text(TINY.replace("about: a test", f"about: a test, {published}"))
    return "tiny.yaml"


def test_seeds_are_trained_recorded_and_not_trained_again(recipe, tmp_path, capfd):
    assert cli.main(["reproduce", recipe, "--seeds", "2", "--trainer.max_steps", "30"]) == 0
    results = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert [run["seed"] for run in results["runs"]] == [1, 2]
    assert results["recipe"]["published"] == [{"stage": "test", "error": 50, "verified": True}]
    assert all(run["budget"] == 0.25 and run["steps"] == 30 for run in results["runs"])
    assert results["runs"][0]["stages"] != results["runs"][1]["stages"]
    shown = capfd.readouterr().out
    assert "25 % of the published steps" in shown
    assert "reproduced" not in shown.replace("not reproduced", "")

    before = (tmp_path / "results" / "tiny.json").read_bytes()
    assert cli.main(["reproduce", recipe, "--seeds", "2", "--trainer.max_steps", "30"]) == 0
    assert (tmp_path / "results" / "tiny.json").read_bytes() == before
    assert "already finished" in capfd.readouterr().out
    assert cli.main(["reproduce", recipe, "--seeds", "2"]) == 2  # these runs are not the recipe's own
    assert "holds a run with other options: algornn fit --config tiny.yaml" in capfd.readouterr().err
    assert (tmp_path / "results" / "tiny.json").read_bytes() == before


def test_a_seed_that_fails_is_said_in_one_sentence(recipe, tmp_path, capfd):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reproduce", recipe, "--trainer.max_stepz", "3"])
    told = capfd.readouterr().err
    assert told.count("algornn: error") == 1
    assert "max_stepz" in told
    assert not (tmp_path / "results").exists()


def test_runs_of_another_recipe_or_unfinished_are_refused(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    assert cli.main(["reproduce", recipe, "--runs", str(run)]) == 2
    assert "not finished" in capsys.readouterr().err
    (run / "metrics.json").write_text(json.dumps({"recipe": "other"}))
    assert cli.main(["reproduce", recipe, "--runs", str(run)]) == 2
    assert "a run of 'other', not of 'tiny'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_name_is_that_in_the_recipe_not_that_of_its_file(recipe, tmp_path, capsys):
    (tmp_path / "tiny.yaml").rename(tmp_path / "copy of tiny.yaml")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"recipe": "tiny", "seed": 1}))
    assert cli.main(["reproduce", "copy of tiny.yaml", "--runs", str(run)]) == 0
    assert (tmp_path / "results" / "tiny.json").is_file()


@pytest.mark.parametrize("results", ["tiny.yaml", "tiny.yaml/below"])
def test_a_file_in_place_of_the_results_folder_is_said_before_training(recipe, results, tmp_path, capsys):
    assert cli.main(["reproduce", recipe, "--results", results]) == 2
    assert "tiny.yaml is a file, where a folder of results files belongs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"runs": 3}'])
def test_a_broken_results_file_is_said_before_training_and_kept(recipe, text, tmp_path, capsys):
    file = tmp_path / "results" / "tiny.json"
    file.parent.mkdir()
    file.write_text(text)
    assert cli.main(["reproduce", recipe]) == 2
    assert "tiny.json is not a results file, or damaged" in capsys.readouterr().err
    assert file.read_text() == text
    assert not (tmp_path / "runs").exists()


def test_a_run_with_broken_metrics_is_said(recipe, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{")
    assert cli.main(["reproduce", recipe, "--runs", str(tmp_path)]) == 2
    assert "metrics.json is damaged" in capsys.readouterr().err
    (tmp_path / "runs" / "tiny" / "seed=1").mkdir(parents=True)
    (tmp_path / "metrics.json").rename(tmp_path / "runs" / "tiny" / "seed=1" / "metrics.json")
    assert cli.main(["reproduce", recipe]) == 2
    assert "metrics.json is damaged" in capsys.readouterr().err


def test_recording_appends_and_keeps_what_is_there(recipe, tmp_path):
    folder = tmp_path / "results"
    for seed in (1, 2, 2):
        run = tmp_path / f"seed={seed}"
        run.mkdir(exist_ok=True)
        (run / "metrics.json").write_text(json.dumps({"recipe": "tiny", "seed": seed}))
        reproduce.record("tiny", recipe, [run], folder)
    assert [r["seed"] for r in json.loads((folder / "tiny.json").read_text())["runs"]] == [1, 2]
    assert [file.name for file in folder.iterdir()] == ["tiny.json"]


def test_a_sweep_runs_every_value_and_draws_its_curve(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    sweep = (
        "sweep: {option: data.init_args.batch_size, values: [8, 16], published: [2.9, null], solved: 9, verified: true}"
    )
    (tmp_path / "tiny.yaml").write_text(TINY.replace("about: a test", f"about: a test, {sweep}"))
    assert cli.main(["reproduce", "tiny.yaml", "--trainer.max_steps", "20"]) == 0
    shown = capfd.readouterr().out
    assert "batch_size = 8" in shown
    assert "none: runs were stopped by max_steps" in shown  # both are solved, but the runs were cut short
    runs = json.loads((tmp_path / "results" / "tiny.json").read_text())["runs"]
    assert [run["setting"] for run in runs] == [{"data.init_args.batch_size": size} for size in (8, 16)]
    folders = [str(tmp_path / "runs" / "tiny" / f"batch_size={size}" / "seed=1") for size in (16, 8)]
    assert cli.main(["report", *folders, "--out", "page"]) == 0
    assert (tmp_path / "page" / "sweep_batch_size_loss.png").stat().st_size > 10_000
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Over the values of an option" in page
    assert page.index("batch_size=8") < page.index("batch_size=16")
    assert cli.main(["reproduce", "tiny.yaml", "--data.init_args.batch_size", "4"]) == 2
    assert "is what the recipe tiny.yaml sweeps" in capfd.readouterr().err
