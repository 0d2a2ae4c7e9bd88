"""Checkpoints: one file a save, whole or not there at all, loadable without running any code in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

PATTERN = "step_*.pt"


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of a save; names sort by step."""
    return folder / f"step_{step:09d}.pt"


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in a run's folder; None when there is none."""
    return max(folder.glob(PATTERN), default=None)


def save_checkpoint(folder: Path, state: dict[str, Any], keep_last: int) -> Path:
    """Writes `state` (its "step" names the file), then deletes all but the `keep_last` newest checkpoints.

    Temporary file, fsync, rename: a crash at any moment leaves the last whole checkpoint in place. ValueError for
    weights that are not finite, which are never saved.
    """
    for name, value in state["model"].items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"weights {name} are not finite at step {state['step']}; nothing was saved")
    path = checkpoint_path(folder, state["step"])
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself has to reach the disk
    finally:
        os.close(directory)
    for old in sorted(folder.glob(PATTERN))[: -max(1, keep_last)]:
        old.unlink()
    return path


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
