"""Another program as a contender: started once, and stopped by a signal between its turns.

What its workers read ahead then falls into no other contender's turn, and each turn takes up where the last one ended,
in the steady state.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import TypedDict

from .timing import Turn


class Report(TypedDict):
    """What a program says of a turn: its images, its wall seconds, and those of parts of it."""

    images: int
    seconds: float
    parts: dict[str, float]


class SteadyProgram:
    """A Prepare: starts the program at its first call, and after that only hands out turns.

    The program makes itself the leader of a process group. When it is warm, and after each turn, it writes a line of
    JSON with `images`, `seconds` and `parts` to its standard output; a turn begins by a line with a number of steps on
    its standard input. If this process is killed, the kernel ends the orphaned group.
    """

    def __init__(self, name: str, command: list[str], folder: tempfile.TemporaryDirectory[str], steps: int) -> None:
        """name: for errors. folder: what the program needs; its log is kept there too. steps: of a turn."""
        self.name, self.command, self.folder, self.steps = name, command, folder, steps
        self.environment = dict(os.environ)
        self.log = Path(folder.name, "log.txt")
        self.process: subprocess.Popen[str] | None = None
        self.reports: list[Report] = []
        """Of each turn."""

    def __call__(self) -> Turn:
        """RuntimeError with the program's last words, if it does not start."""
        if self.process is None:
            self._start()
        return self._turn

    def close(self) -> None:
        """Ends the program and all below it, for good."""
        if self.process is not None:
            self._end()
        self.folder.cleanup()

    def _start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment,
            )  # fmt: skip
        self._end = weakref.finalize(self, end_group, self.process)
        self._report(self.process)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def _turn(self) -> int:
        assert self.process is not None
        assert self.process.stdin is not None
        os.killpg(self.process.pid, signal.SIGCONT)
        print(self.steps, file=self.process.stdin, flush=True)
        report = self._report(self.process)
        os.killpg(self.process.pid, signal.SIGSTOP)
        self.reports.append(report)
        return report["images"]

    def _report(self, process: subprocess.Popen[str]) -> Report:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self.name} ended: {said[-1]}")
        report: Report = json.loads(line)
        return report


def end_group(process: subprocess.Popen[str]) -> None:
    """Kills a process and its group, stopped or not."""
    with contextlib.suppress(ProcessLookupError):  # it has ended, or was about to make its group
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.communicate()
