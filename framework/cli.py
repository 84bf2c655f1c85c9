"""The command line: LightningCLI for fit, validate, test and predict, and the commands around it."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any, ClassVar, cast

import lightning as L
import torch
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import algornn
import algornn.datamodules
import algornn.probes
from algornn import recipes
from algornn.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, RandomState, read_checkpoint
from algornn.listing import list_names
from algornn.messages import closest, plain_sentence
from algornn.predictions import PredictionWriter
from algornn.probes.probe import refuse_namesakes
from algornn.probes.subject import ProbeError
from algornn.progress import StepProgressBar
from algornn.run import Recipe, RunRecord, new_run_folder, read_config
from algornn.run_folder import TESTED, came_to_nothing, changed_options, check_run_folder, held

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
# Classes of ours whose names torch has, too: on the command line they mean ours.
_SHADOWED = {name for name in algornn.__all__ if hasattr(torch.nn, name)}
# What a network takes from the data.
_WORDS = ("vocab_size", "output_size", "ids_per_token", "sentence_length")
_SIZES = (*_WORDS, "input_size", "digits", "num_keys", "num_values")

USAGE = """usage: algornn COMMAND ...

  fit --config RECIPE        train, then test; RECIPE is a packaged recipe's name or a YAML file
  validate|test|predict      run a trained model: --run_dir RUN (or --config ... --ckpt_path ...)
  reproduce RECIPE --seeds N run a recipe over seeds and set the published numbers beside the measured ones
  probe --run_dir RUN --probe CLASS   ask a probe of a trained run, or of --model module:factory --data module:factory
  report RUN [RUN ...]       write report.html, pictures and a Markdown table
  list models|learners|probes|splits|recipes

`algornn fit --help` lists every option. ALGORNN_TRACEBACK=1 shows the traceback of an error."""

INTERRUPTED = "algornn: interrupted. The same command goes on with what was kept."


class SaveConfig(SaveConfigCallback):
    """Save the resolved configuration as ``config.yaml`` in the run folder when training starts, and only then.

    So a start that fails before its first step leaves no run behind, and a later test never replaces the file.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, on the first process only, and say where the run is written."""
        if trainer.is_global_zero:
            print(f"run folder: {trainer.default_root_dir}", flush=True)
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file without what belongs to this start alone: a run folder's configuration stands for it."""
        run, config = Path(trainer.default_root_dir), self.config.clone()
        run.mkdir(parents=True, exist_ok=True)
        config.run_dir = config.ckpt_path = None
        if Path(config.checkpoint.dirpath) == run / "checkpoints":
            config.checkpoint.dirpath = None
        # Nulls are settings, too: without `monitor: null` the default monitor would come back.
        self.parser.save(config, str(run / "config.yaml"), skip_unset=False, overwrite=True)


class AlgornnCLI(LightningCLI):
    """LightningCLI with one folder per run, two checkpoints (best and last), and a test after training."""

    fitting: ClassVar[str] = ""  # the folder of the run that is being trained, for who interrupts it

    def __init__(self, args: list[str], typed: list[str]) -> None:
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        self.command = shlex.join(["algornn", *typed])
        settings = {"parser_mode": "omegaconf+", "exit_on_error": False}
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            # The data modules share their examples out themselves, so that W processes see the batches of one.
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
            seed_everything_default=1,
            auto_configure_optimizers=False,
            parser_kwargs=settings | {command: dict(settings) for command in LIGHTNING_COMMANDS},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the recipe's claim, the checkpoints, and the sizes that the model takes from the data."""
        parser.add_argument("--run_dir", type=str | None, help="Run folder; default: runs/NAME/TIME-seedSEED.")
        parser.add_argument("--recipe", type=Recipe, default=Recipe(), help="What the run is meant to show.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Test the best checkpoint at the end.")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/sequence_accuracy",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_argument("--resume_every_n_steps", type=int, default=500, help="Steps between writes of last.ckpt.")
        _link_sizes(parser)

    def _parse_ckpt_path(self) -> None:
        """Take the configuration as written; Lightning would overlay it with the checkpoint's."""

    def _dump_config(self) -> None:
        """Give a network without settings of its own a place in the dump for what it takes from the data."""
        super()._dump_config()
        model = self.config_dump.get("model", {}).get("init_args", {}).get("model")
        if isinstance(model, dict):
            model.setdefault("init_args", {})

    def before_instantiate_classes(self) -> None:
        """Settle the run folder and the checkpoint, and refuse to write over another run."""
        config = self.config[self.subcommand]
        _check_filled(config.get("model.init_args.model"))
        files = [Path(str(path)) for path in config.get("config") or []]
        config.recipe.name = config.recipe.name or (files[0].stem if files else "run")
        own = next((file.parent for file in files if file.name == "config.yaml"), None)
        run = Path(config.run_dir or own or new_run_folder(config.recipe.name, config.seed_everything))
        config.run_dir = str(run)
        checkpoints = Path(config.checkpoint.dirpath or run / "checkpoints")
        config.checkpoint.dirpath = str(checkpoints)
        if self.subcommand != "fit" and config.ckpt_path is None:
            chosen = config.checkpoint.monitor is not None and (checkpoints / "best.ckpt").is_file()
            config.ckpt_path = "best" if chosen else "last"
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(checkpoints / f"{config.ckpt_path}.ckpt")
        check_run_folder(run, checkpoints, str(self.subcommand), config.ckpt_path)
        self._compare(run, checkpoints)

    def _compare(self, run: Path, checkpoints: Path) -> None:
        """Refuse to go on with a training of other data or another model; what others find of a run shall lie apart."""
        config, parser, self.apart = self.config[self.subcommand], self._parser(self.subcommand), ""
        what = ("seed_everything", "data", "model")
        if self.subcommand in ("test", "predict") and (run / "config.yaml").is_file():
            # Other weights than those that the run itself tests give no result of the run, either.
            chosen = config.checkpoint.monitor is not None and (checkpoints / "best.ckpt").is_file()
            own = checkpoints / ("best.ckpt" if chosen else "last.ckpt")
            foreign = Path(config.ckpt_path).resolve() != own.resolve()
            if foreign or changed_options(parser, config, run, (*what, *TESTED)):
                self.apart = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        if self.subcommand == "fit" and config.ckpt_path is not None and not came_to_nothing(run, checkpoints):
            for option, value in changed_options(parser, config, run, what).items():
                raise ValueError(
                    f"{run} was trained with {option} = {value!r}, not {config.get(option)!r}. "
                    "Leave it as it was, or start a new run in another folder (--run_dir)."
                )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with the run folder's loggers and callbacks."""
        config = self.config[self.subcommand]
        run, trainer = Path(config.run_dir), self._get(self.config_init, "trainer")
        last = LastCheckpoint(Path(config.checkpoint.dirpath, "last.ckpt"), config.resume_every_n_steps)
        recipe = self._get(self.config_init, "recipe")
        setting = {recipe.sweep.option: config.get(recipe.sweep.option)} if recipe.sweep else {}
        self.record = RunRecord(recipe, config.seed_everything, self.command, setting, self.apart)
        kwargs["default_root_dir"] = str(run)
        if self.subcommand != "fit":
            kwargs["logger"] = False  # the logs are the training's: another validation of it is no point of its curves
        elif trainer.logger in (None, True):
            kwargs["logger"] = [
                CSVLogger(run, name="logs", flush_logs_every_n_steps=1),
                TensorBoardLogger(run, name="tensorboard", version=""),
            ]
        refuse_namesakes(_as_list(trainer.callbacks))  # before Lightning does, which does not name the mend
        kwargs["plugins"] = [*_as_list(trainer.plugins), AtomicCheckpointIO()]
        other = trainer.enable_progress_bar is False or any(
            isinstance(callback, ProgressBar) for callback in _as_list(trainer.callbacks)
        )
        bar = [] if other else [StepProgressBar()]
        self.trainer_defaults["callbacks"] = [last, RandomState(), self.record, PredictionWriter(self.apart), *bar]
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; a training holds its run folder."""
        holds = subcommand == "fit" and self.trainer.is_global_zero
        AlgornnCLI.fitting = self.config[subcommand].run_dir if subcommand == "fit" else ""
        with held(Path(self.config[subcommand].run_dir)) if holds else nullcontext():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Refuse a checkpoint that belongs to another model."""
        if self._check_checkpoint() == 0:
            # Killed near its first step: begin anew, since from there Lightning 2.6 counts a step too many in its logs.
            self.config_init[self.subcommand].ckpt_path = None
            self.trainer.print("no step of this run was kept: it begins anew")

    def before_test(self) -> None:
        """Refuse a checkpoint that belongs to another model; leave the printing to our own table."""
        self._check_checkpoint()
        self.config_init[self.subcommand].verbose = False

    def before_validate(self) -> None:
        """Refuse a checkpoint that belongs to another model."""
        self._check_checkpoint()

    before_predict = before_validate

    def _check_checkpoint(self) -> int | None:
        """Return the step of the checkpoint that is given, or None."""
        path = self.config[self.subcommand].ckpt_path
        if path is None:
            return None
        checkpoint = read_checkpoint(path)
        if self.subcommand == "fit" and "optimizer_states" not in checkpoint:
            raise ValueError(
                f"{path} holds weights alone, without the state of the optimizer that a training goes on from. "
                "Use the last.ckpt of a run, or start a new one."
            )
        own, saved = self.model.state_dict(), checkpoint["state_dict"]
        shapes = [{name: value.shape for name, value in weights.items()} for weights in (own, saved)]
        wrong = {name for name, _ in shapes[0].items() ^ shapes[1].items()}
        if wrong:
            raise ValueError(
                f"{path} holds the weights of another model: {len(wrong)} of them differ in name or shape, such as "
                f"{min(wrong)}. Use the configuration of that run: --config {Path(path).parent.parent / 'config.yaml'}."
            )
        return int(checkpoint["global_step"])

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights where none is chosen, unless told not to; print the table."""
        config = self.config[self.subcommand]
        trainer: Any = self.trainer
        if not config.test_after_fit or self.datamodule is None or trainer.fast_dev_run or trainer.interrupted:
            return
        best = trainer.checkpoint_callback.best_model_path if config.checkpoint.monitor else None
        trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
        self.after_test()

    def after_test(self) -> None:
        """Print the result table of the run, and where it lies if that is not the run folder."""
        from algornn.report import result_table

        if folder := self.record.written:
            print(result_table([folder]) + (f"\n\ntest results: {folder}" if self.apart else ""), flush=True)


def _link_sizes(parser: LightningArgumentParser) -> None:
    """Let the model take from the data what it must know of them; skipped where it has no such argument."""
    for size in _SIZES:
        parser.link_arguments(f"data.{size}", f"model.init_args.model.init_args.{size}", apply_on="instantiate")


def _check_filled(network: Any) -> None:
    """Raise a ValueError where an argument has no type, default or value: the parser lets it through as None."""
    if not hasattr(network, "class_path"):
        return
    given: Any = network.get("init_args") or {}
    for name, argument in inspect.signature(cast(Any, locate(network.class_path))).parameters.items():
        untold = argument.annotation is argument.default is argument.empty and name not in _SIZES
        if untold and argument.kind is argument.POSITIONAL_OR_KEYWORD and given.get(name) is None:
            raise ValueError(
                f"Nothing fills in `{name}` of {network.class_path}: give --model.model.{name}, give it a default, or "
                f"call it what the data fill in, one of {', '.join(_SIZES)}."
            )


def build_run(config: Path) -> Any:
    """Build the data module and the learner of a saved configuration: `data`, and `model`, untrained."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    _link_sizes(parser)
    saved = read_config(config)
    if missing := {"data", "model"} - saved.keys():
        raise ValueError(f"{config} says nothing of {' and '.join(sorted(missing))}: it is no run's configuration.")
    return parser.instantiate_classes(parser.parse_object({key: saved[key] for key in ("data", "model")}))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def resolve_recipes(args: Sequence[str]) -> list[str]:
    """Replace ``--config NAME`` by the packaged recipe's path, unless NAME is a file, and GRU by algornn.GRU.

    Raises:
        FileNotFoundError: NAME is neither; the message names the closest recipe.
        ValueError: the file holds no options.
    """
    resolved: list[str] = []
    option = ""  # that expects a value
    for arg in args:
        flag, equals, value = arg.partition("=")
        if option in ("--config", "-c"):
            arg = _checked_config(arg)
        elif flag in ("--config", "-c") and equals:
            arg = f"{flag}={_checked_config(value)}"
        elif option.startswith("--model") and arg in _SHADOWED:
            arg = f"algornn.{arg}"
        elif flag.startswith("--model") and value in _SHADOWED:
            arg = f"{flag}=algornn.{value}"
        option = arg if arg.startswith("-") and not equals else ""
        resolved.append(arg)
    return resolved


def _checked_config(name: str) -> str:
    path = recipes.path(name)
    read_config(Path(path))
    return path


def run(args: list[str]) -> None:
    """Run one command; errors are raised."""
    command, *rest = args or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
    elif command == "--version":
        print(algornn.__version__)
    elif command in LIGHTNING_COMMANDS:
        AlgornnCLI([command, *resolve_recipes(_default_config(rest))], typed=args)
    elif command == "list":
        print("\n".join(list_names(rest[0] if rest else "models")))
    elif command == "reproduce":
        from algornn import reproduce

        reproduce.main(rest)
    elif command == "probe":
        from algornn import probe_command

        probe_command.main(rest)
    elif command == "report":
        from algornn import report

        report.main(rest)
    else:
        known = (*LIGHTNING_COMMANDS, "list", "reproduce", "probe", "report")
        raise ValueError(f"Unknown command {command!r}{closest(command, known)}. Commands: {', '.join(known)}.")


def _default_config(args: list[str]) -> list[str]:
    """A run folder without a configuration brings its own: ``algornn test --run_dir RUN`` is enough."""
    folder = next((b for a, b in pairwise(args) if a == "--run_dir"), None)
    folder = next((a.partition("=")[2] for a in args if a.startswith("--run_dir=")), folder)
    given = {a.partition("=")[0].partition(".")[0] for a in args}
    if folder is None or given & {"--config", "-c"}:
        return args
    if not Path(folder, "config.yaml").is_file():
        if given & {"--data", "--model", "--help", "-h"}:
            return args
        wrong = "holds no config.yaml" if Path(folder).is_dir() else "is no folder"
        raise FileNotFoundError(f"{folder} {wrong}. Give the folder of a run, or --config RECIPE for a new one.")
    return ["--config", str(Path(folder, "config.yaml")), *args]


def main(args: list[str] | None = None) -> int:
    """Run the command line; a user's mistake ends in one plain sentence and exit status 2, SIGTERM in 143."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`.*")
    AlgornnCLI.fitting = ""
    sys.path.append(str(Path.cwd()))  # classes of the user's own in the working folder; last, so that they hide nothing
    try:
        run(list(sys.argv[1:] if args is None else args))
    except (ArgumentError, MisconfigurationException, ProbeError, ValueError, TypeError, OSError, EOFError) as error:
        if os.environ.get("ALGORNN_TRACEBACK"):
            raise
        print(f"algornn: error: {plain_sentence(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        by_key = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        if not by_key and not isinstance(stop, SIGTERMException):
            raise
        run_dir = AlgornnCLI.fitting
        again = f"algornn: interrupted. Go on with it: algornn fit --run_dir {shlex.quote(run_dir)} --ckpt_path last"
        print(again if run_dir and Path(run_dir, "config.yaml").is_file() else INTERRUPTED, file=sys.stderr)
        return 130 if by_key else 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
