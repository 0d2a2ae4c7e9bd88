"""Checkpoints: one file a save, whole or not there at all, loadable without running any code in it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("deit_fast")

PATTERN = "step_*.pt"
BEST = "best.pt"


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of a save; names sort by step."""
    return folder / f"step_{step:09d}.pt"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a run's folder; None when there is none."""
    return max(folder.glob(PATTERN), default=None)


def newest_readable_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step that can be read; says which newer ones are damaged. None: there is none.

    A save of ours is whole or not there; but a disk may fail, and a copy may have been cut short.
    """
    damaged = None
    for path in sorted(folder.glob(PATTERN), reverse=True):
        try:
            load_checkpoint(path)
        except ValueError as error:
            logger.warning("%s; looking for an older one", error)
            damaged = error
        else:
            return path
    if damaged is not None:
        raise ValueError(f"no checkpoint in {folder} can be read; start anew in another --checkpoint.dir") from damaged
    return None


def check_finite(state: dict[str, Any]) -> None:
    """RuntimeError, naming the tensor, for weights or a moving average that are not finite: they are never saved."""
    for key in ("model", "model_ema"):
        for name, value in (state.get(key) or {}).items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise RuntimeError(f"{key}: weights {name} are not finite at step {state['step']}; nothing was saved")


def save_checkpoint(folder: Path, state: dict[str, Any], keep_last: int) -> Path:
    """Writes `state` (its "step" names the file), then deletes all but the `keep_last` newest checkpoints.

    Temporary file, fsync, rename: a crash at any moment leaves the last whole checkpoint in place. RuntimeError for
    weights that are not finite; OSError for a disk that is full, which leaves what was there.
    """
    check_finite(state)
    path = checkpoint_path(folder, state["step"])
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        raise _as_os_error(error) from error
    sync_folder(folder)
    for old in sorted(folder.glob(PATTERN))[: -max(1, keep_last)]:
        old.unlink()
    return path


def _as_os_error(error: BaseException) -> BaseException:
    """torch's zip writer reports a failed write as a RuntimeError; the OSError stands in its chain, or is lost."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return OSError(f"the file could not be written ({error})") if "PytorchStreamWriter" in str(error) else error


def sync_folder(folder: Path) -> None:
    """A rename itself has to reach the disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_partial_files(folder: Path) -> None:
    """What a killed process left half-written."""
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this trainer onto the CPU; ValueError, naming the file, for anything else."""
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be damaged"
        ) from error
    if not isinstance(state, dict) or not {"step", "model", "optimizer", "config"} <= state.keys():
        raise ValueError(
            f"{path} is not a checkpoint of this trainer; to start from its weights use model.init_checkpoint"
        )
    return state
