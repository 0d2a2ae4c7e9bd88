"""Saving beside training: the state is copied, a thread writes it, and a full disk does not stop the run."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checkpoint import BEST, save_checkpoint, sync_folder


def snapshot(value: Any) -> Any:
    """A copy on the CPU of every tensor in a nest of dictionaries and lists: training changes the originals."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


class CheckpointWriter:
    """Writes one checkpoint at a time, in a thread."""

    def __init__(self, folder: Path, keep_last: int, say: Callable[[str], None]) -> None:
        """say: told of a save that failed."""
        self.folder, self.keep_last, self.say = folder, keep_last, say
        self.newest: Path | None = None
        self.failed: str | None = None
        """Why the last save failed; None when it is on the disk."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._best = False

    def save(self, state: dict[str, Any]) -> None:
        """Takes a copy of the state and returns; waits only for a save that is still under way."""
        self.wait()
        copy = snapshot(state)
        self._best = False
        self._thread = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
        self._thread.start()

    def keep_as_best(self) -> None:
        """Keeps what was saved last as best.pt too, once it is written."""
        self._best = True

    def wait(self) -> Path | None:
        """Waits for the save under way; the newest checkpoint that this run wrote.

        RuntimeError when it was refused because weights are not finite.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._best and self.failed is None and self.newest is not None:
                self._link_best(self.newest)
        return self.newest

    def _write(self, state: dict[str, Any]) -> None:
        try:
            self.newest = save_checkpoint(self.folder, state, self.keep_last)
            self.failed = None
        except OSError as error:
            kept = f"the last good one is {self.newest.name}" if self.newest else "there is none yet"
            self.failed = error.strerror or str(error)
            self.say(f"the checkpoint of step {state['step']} could not be written ({self.failed}); {kept}")
        except Exception as error:  # noqa: BLE001 - raised again where the trainer waits
            self._error = error

    def _link_best(self, path: Path) -> None:
        partial = self.folder / f"{BEST}.partial"
        partial.unlink(missing_ok=True)
        try:
            try:
                os.link(path, partial)  # no second copy on the disk
            except OSError:
                shutil.copyfile(path, partial)
            partial.replace(self.folder / BEST)
            sync_folder(self.folder)
        except OSError as error:
            self.say(f"{BEST} could not be written ({error.strerror}); the former one stays")
