"""What may be written into a run folder, and by whom."""

from __future__ import annotations

from pathlib import Path

from algornn.checkpoints import read_checkpoint


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


def came_to_nothing(run: Path, checkpoints: Path) -> bool:
    """Whether a start in this folder failed before its first step was logged: nothing is lost by another one."""
    last = checkpoints / "last.ckpt"
    logged = any(len(log.read_text().splitlines()) > 1 for log in run.glob("logs/version_*/metrics.csv"))
    begun = logged or (run / "metrics.json").exists() or (checkpoints / "best.ckpt").exists()
    return not begun and last.is_file() and read_checkpoint(last)["global_step"] == 0
