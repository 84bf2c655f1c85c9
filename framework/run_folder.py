"""What may be written into a run folder, and by whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from algornn.checkpoints import read_checkpoint

# Where data lie and how many processes read them changes no result.
_ELSEWHERE = ("data_dir", "num_workers")
# Options besides those of data and model that change what a test or a prediction gives.
TESTED = (
    "checkpoint.monitor",
    *(f"trainer.{name}" for name in ("limit_test_batches", "limit_predict_batches", "precision", "overfit_batches")),
)


def check_run_folder(run: Path, checkpoints: Path, command: str, ckpt_path: str | None) -> None:
    """Raise where a run would write over another, or a checkpoint is missing.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: the folder holds a run, and the checkpoint is not its own.
    """
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise FileNotFoundError(
            f"No checkpoint at {ckpt_path}. Give --run_dir of a trained run or --ckpt_path FILE, last or best."
        )
    own = ckpt_path is not None and Path(ckpt_path).resolve().parent == checkpoints.resolve()
    if command == "fit" and not own and (run / "config.yaml").exists() and not came_to_nothing(run, checkpoints):
        raise FileExistsError(f"{run} holds a run. Go on with it by --ckpt_path last, or choose another --run_dir.")


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run folder for this process, so that no other one of this machine trains into it meanwhile.

    A start that fails leaves no folder behind, a killed process a file ``lock`` that holds nothing.

    Raises:
        FileExistsError: another process holds it.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    file = run / "lock"
    with file.open("a+") as stream:
        try:
            import fcntl

            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            stream.seek(0)
            raise FileExistsError(
                f"{run} is in use by process {stream.read() or '?'}. Wait for it, end it, or choose another --run_dir."
            ) from error
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            for folder in made:
                with suppress(OSError):  # not empty
                    folder.rmdir()


def changed_options(parser: ArgumentParser, config: Namespace, run: Path, sections: tuple[str, ...]) -> dict[str, Any]:
    """Return the options in which a configuration differs from that of the run in a folder, and their values there.

    Args:
        parser: what both are read with, so that they have the same defaults.
        config: the configuration.
        run: the folder; one without a ``config.yaml`` differs in nothing.
        sections: what to compare, sections such as "data" or options such as "trainer.precision".
    """
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    own, given = (dict(c.items()) for c in (parser.parse_args(["--config", str(file)]), config))
    return {
        option: own.get(option)
        for option in sorted(own.keys() | given.keys())
        if (option in sections or option.partition(".")[0] in sections)
        and not option.endswith(_ELSEWHERE)
        and own.get(option) != given.get(option)
    }


def came_to_nothing(run: Path, checkpoints: Path) -> bool:
    """Whether a start in this folder failed before its first step was logged: nothing is lost by another one."""
    last = checkpoints / "last.ckpt"
    logged = any(len(log.read_text().splitlines()) > 1 for log in run.glob("logs/version_*/metrics.csv"))
    begun = logged or (run / "metrics.json").exists() or (checkpoints / "best.ckpt").exists()
    return not begun and last.is_file() and read_checkpoint(last)["global_step"] == 0
