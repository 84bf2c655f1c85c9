"""`algornn probe`: ask a probe of a trained run, or of any model, without a Trainer."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn
from torch.utils._pytree import tree_leaves

from algornn.checkpoints import read_checkpoint
from algornn.probes import Probe, ProbeResult
from algornn.report_figures import file_stem


def main(args: list[str]) -> None:
    """Measure, print the scalars, and write ``<out>/probes/<name>/step=N.json`` with its pictures beside it.

    Args:
        args: the command line's arguments.

    Raises:
        ValueError: neither a run nor a model and its data are given, or what belongs to the other of the two.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: there is a result of this probe at this step already.
    """
    parser = _Parser(description=__doc__, exit_on_error=False)
    parser.add_argument("--run_dir", type=Path | None, help="a run folder: its learner, and its validation set")
    parser.add_argument("--ckpt_path", type=str | None, help="checkpoint of the run: best (default), last or a file")
    parser.add_argument("--stage", default="val", help="which set of the run's data, or of a data module")
    parser.add_argument("--model", type=str | None, help="module:factory (or module:name) of any torch module")
    parser.add_argument("--data", type=str | None, help="module:factory of a loader or of a LightningDataModule")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure")
    parser.add_argument("--out", type=Path | None, help="folder of the result; default: the run folder, else this one")
    parser.add_subclass_arguments(Probe, "probe", required=True, help="the probe: a class name, and --probe.ARGUMENT")
    try:
        config = parser.parse_args(args)
    except ArgumentError as error:
        raise _what_the_probe_needs(error) from error
    if (config.run_dir is None) == (config.model is None):
        raise ValueError("Give --run_dir RUN for a trained run, or --model module:factory for a model of your own.")
    if config.run_dir is not None:
        if config.data is not None:
            raise ValueError("A run is measured on its own data: leave out --data, or give --model, not --run_dir.")
        model, loader, step = from_run(config.run_dir, config.ckpt_path or "best", config.stage)
    elif config.ckpt_path is not None:
        raise ValueError("--ckpt_path is a run's: give --run_dir, or load the weights where --model makes the model.")
    elif config.data is not None:
        model, loader, step = imported(config.model), loader_of(imported(config.data), config.stage), 0
    else:
        raise ValueError("A model of your own needs data: --data module:factory, which gives any iterable of batches.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"--model {config.model} gives a {type(model).__name__}, expected a torch.nn.Module.")
    probe: Probe = parser.instantiate_classes(config).probe
    path = (config.out or config.run_dir or Path()) / "probes" / probe.name / f"step={step}.json"
    if path.exists():
        raise FileExistsError(f"{path} holds a result already. Choose another --out, or another --probe.name.")
    path.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is better known before
    result = probe.run(on_device(model, config.device), loader, path.parent)
    print(text_of(result), flush=True)
    result.save(path, name=probe.name, about=probe.about, step=step)
    print(f"\nresult: {path}" + "".join(f"\npicture: {p}" for p in drawn(result, path)))


class _Parser(ArgumentParser):
    """Its help on a class ends with the whole docstring, which says what the scalars mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"prog": "algornn probe", **options})
        self.about = ""

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of the class that help is asked on."""
        self.about = f"\n{theclass.__name__}: {inspect.getdoc(theclass)}"
        return super().add_class_arguments(theclass, *args, **options)

    def print_help(self, file: Any = None) -> None:
        """Print the options, then what the class says of itself."""
        super().print_help(file)
        print(self.about, file=file)


def _what_the_probe_needs(error: ArgumentError) -> Exception:
    """Name the options of the arguments that a probe's class lacks; any other error stays as it is."""
    lacking = re.search(r"class_path '[\w.]*?(\w+)':\s+the following arguments are required: ([\w, ]+)", str(error))
    if lacking is None:
        return error
    examples = {"site": " 'model.encoder'", "sites": """ '["model.encoder"]'"""}
    options = [f"--probe.{name}{examples.get(name, ' VALUE')}" for name in lacking[2].split(", ")]
    hint = " (a wrong site is answered with the right ones)" if "site" in lacking[2] else ""
    return ValueError(f"{lacking[1]} needs {lacking[2].strip()}: give {' and '.join(options)}{hint}.")


def from_run(run: Path, ckpt_path: str, stage: str) -> tuple[L.LightningModule, Iterable[Any], int]:
    """The learner of a run's checkpoint, the loader of a stage of its data, and the checkpoint's step."""
    from algornn.cli import build_run

    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is no run folder: it holds no config.yaml.")
    file = run / "checkpoints" / f"{ckpt_path}.ckpt" if ckpt_path in ("best", "last") else Path(ckpt_path)
    if ckpt_path == "best" and not file.is_file():
        file = file.with_name("last.ckpt")
    if not file.is_file():
        raise FileNotFoundError(f"No checkpoint at {file}. Give --ckpt_path best, last or a file.")
    checkpoint, built = read_checkpoint(file), build_run(run / "config.yaml")
    try:
        built.model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{file} holds the weights of another model than {run / 'config.yaml'} describes.") from error
    return built.model, loader_of(built.data, stage), int(checkpoint["global_step"])


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model on a device.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def loader_of(source: Any, stage: str) -> Iterable[Any]:
    """The loader of one stage of a data module; anything else that can be iterated is a loader already.

    Raises:
        ValueError: the data module has no such stage.
        TypeError: the source cannot be iterated.
    """
    if not isinstance(source, L.LightningDataModule):
        if stage != "val":
            raise ValueError(f"--stage {stage} is a set of a data module, but --data gives a {type(source).__name__}.")
        if not isinstance(source, Iterable):
            raise TypeError(f"--data gives a {type(source).__name__}, expected a loader or a LightningDataModule.")
        return source
    source.prepare_data()
    kind = "train" if stage == "train" else "test" if stage in getattr(source, "test_stages", ("test",)) else "val"
    source.setup("test" if kind == "test" else "fit")
    loaders = getattr(source, f"{kind}_dataloader")()
    if isinstance(loaders, dict) and stage in loaders:
        return loaders[stage]
    if stage not in ("train", "val", "test"):
        stages = getattr(source, "stages", ("train", "val", "test"))
        raise ValueError(f"{type(source).__name__} has no stage {stage!r}; it has {', '.join(stages)}.")
    return tree_leaves(loaders)[0]


def imported(path: str) -> Any:
    """What ``module:name`` names; a class or function is called without arguments, an object is taken as it is.

    Raises:
        ValueError: there is no such module or name in it, or it needs arguments.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"Expected module:name, such as mynet:make for the function make in mynet.py, got {path!r}.")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"There is no module {error.name!r} (looked for {path!r} in this folder, too).") from error
    except AttributeError as error:
        raise ValueError(f"The module {module!r} has no {name!r}.") from error
    if isinstance(found, nn.Module) or not (inspect.isclass(found) or inspect.isroutine(found)):
        return found
    needed = [
        p.name
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(f"{path} is called without arguments, but needs {', '.join(needed)}: name a function of none.")
    return found()


def text_of(result: ProbeResult) -> str:
    """The scalars of a result, one per line, and what failed."""
    width = max(map(len, result.scalars), default=0)
    lines = [f"{name:{width}s}  {float(value):.5g}" for name, value in result.scalars.items()]
    return "\n".join([*lines, *(f"failed control: {sentence}" for sentence in result.failures)])


def drawn(result: ProbeResult, path: Path) -> list[Path]:
    """Draw the result's figures beside its file and return their paths."""
    from algornn.probes.plots import draw

    files = [path.with_name(f"{file_stem(f'{path.stem} {name}')}.png") for name in result.figures]
    for file, spec in zip(files, result.figures.values(), strict=True):
        draw(spec).savefig(file)
    return files
