"""What the command line says of a mistake: one sentence, with the closest valid name, and nothing is written."""

from pathlib import Path

import pytest
from tiny_runs import TINY

from algornn import cli


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fitt"], "did you mean 'fit'?"),
        (["fit", "--config", "quickstrat"], "did you mean 'quickstart'?"),
        (["fit", "--config", "quickstart", "--data.split", "systmatic"], "did you mean 'systematic'?"),
        (["fit", "--config", "quickstart", "--data", "StoryWord"], "did you mean 'StoryWorld'?"),
        (["fit", "--config", "quickstart", "--model.model", "TPRRN"], "did you mean 'TPRRNN'?"),
        (["fit", "--config", "quickstart", "--trainer.callbacks+=FastWightProbe"], "did you mean 'FastWeightProbe'?"),
        (
            ["fit", "--config", "quickstart", "--data.batch_sise", "2"],
            "StoryWorld has no option 'batch_sise' (did you mean",
        ),
        (
            ["fit", "--config", "graph_navigation_lstm", "--model.model.layer.hiden_size", "4"],
            "model.model.layer: LSTM has no option 'hiden_size' (did you mean 'hidden_size'?).",
        ),
        (
            ["fit", "--config", "graph_navigation_lstm", "--model.model.layer.heads", "4"],
            "LSTM has no option 'heads'; it has hidden_size, layers,",
        ),
        (
            ["fit", "--config", "in_context_digits_fwm", "--model.model.layer.memory.reads", "1.5"],
            "model.model.layer.memory.reads: Expected a int. Got value: 1.5",
        ),
        (
            ["fit", "--config", "in_context_digits_fwm", "--model.model.layer.memory.read", "2"],
            "model.model.layer.memory: FastWeightMemory has no option 'read' (did you mean 'reads'?)",
        ),
        (["fit", "--config", "quickstart", "--data.batch_size", "many"], "batch_size: Expected a int"),
        (
            ["fit", "--config", "quickstart", "--recipe.published", "[{stage: test, error: abc}]"],
            "error: recipe.published.error: Expected a float",
        ),
        (
            ["fit", "--config", "quickstart", "--trainer.max_stepz", "3"],
            "--trainer.max_stepz (did you mean 'max_steps'?)",
        ),
        (["fit", "--config", "quickstart", "--run-dir", "x"], "There is no option --run-dir (did you mean 'run_dir'?)"),
        (["fit", "quickstart"], "--help lists all options"),
        (
            ["fit", "--config", "metagenrl_pendulum", "--model.agents.seed", "3"],
            "Agents has no option 'seed'; it has hidden_sizes,",
        ),
        (
            [
                *("fit", "--config", "metagenrl_pendulum", "--model.agents", "algornn.meta.PredictingAgents"),
                *("--model.agents.hiden_sizes", "[8]"),
            ],
            "PredictingAgents has no option 'hiden_sizes' (did you mean 'hidden_sizes'?)",
        ),
        (["fit", "--config", "quickstart", "--run_dri=x"], "There is no option --run_dri (did you mean 'run_dir'?)"),
        (["fit", "--config", "quickstart", "--ckpt_path", "no.ckpt"], "No checkpoint at no.ckpt"),
        (["fit", "--config", "babi_all_tprrnn", "--data.data_dir", "nowhere"], "nowhere"),
        (["list", "modells"], "models, learners, probes, splits or recipes"),
        (["report", "nowhere"], "nowhere"),
        (["reproduce", "quickstrat"], "did you mean 'quickstart'?"),
        (["reproduce", "foo"], "No file and no recipe named 'foo'. `algornn list recipes` shows all."),
        (["reproduce", "quickstart", "--seeds", "0"], "at least 1"),
        (["fit", "--config", "quickstart", "--data", "TPRRNN"], "a class of another kind"),
        (["fit", "--config", "quickstart", "--trainer.accelerator", "cpu", "--trainer.devices", "0"], "devices"),
        (["fit"], "give --config RECIPE"),
        (["test", "--run_dir", "nope"], "nope is no folder. Give the folder of a run"),
        (["test", "--run_dir=."], ". holds no config.yaml. Give the folder of a run"),
        (["test", "--config", "quickstart"], "Give --run_dir of a trained run"),
    ],
)
def test_a_mistake_ends_in_one_plain_sentence_and_writes_nothing(args, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("algornn: error:")]
    assert len(message) == 1
    assert told in message[0]
    assert "Traceback" not in message[0]
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_an_unknown_class_in_a_yaml_file_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(TINY.replace("TPRRNN", "TPRNN"))
    assert cli.main(["fit", "--config", "mine.yaml"]) == 2
    assert "'TPRNN' (did you mean 'TPRRNN'?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"), [("data: [", "not valid YAML"), ("", "holds no options"), ("- 1", "holds no options")]
)
def test_a_broken_configuration_is_named(text, told, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    for flag in (["--config", str(tmp_path / "mine.yaml")], [f"--config={tmp_path / 'mine.yaml'}"]):
        assert cli.main(["fit", *flag]) == 2
        message = capsys.readouterr().err
        assert "mine.yaml" in message
        assert told in message
        assert message.count("\n") == 1
