"""Progress for people: a bar on a terminal, plain lines elsewhere, nothing on other ranks than the first."""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""Where there is no terminal, such as in a log file, progress is told this often."""


class LiveLine:
    """Progress for people: a bar on a terminal, plain lines elsewhere, nothing on other ranks than the first.

    All of it, and every line of figures, also goes as plain lines into a log file, where one is given.
    """

    def __init__(
        self,
        title: str,
        *,
        total_steps: int,
        first_step: int,
        epochs: int,
        enabled: bool = True,
        log: Path | None = None,
    ) -> None:
        """log: its folder exists; the lines are appended."""
        self.console = Console(stderr=True, quiet=not enabled, soft_wrap=True)
        self.title, self.epochs, self.total_steps = title, epochs, total_steps
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task(title, total=total_steps, completed=first_step, numbers="")
        self.first_step, self.start = first_step, time.perf_counter()
        self.printed = -math.inf
        self.log = log if enabled else None
        self.warnings = _Warnings(self)

    def __enter__(self) -> LiveLine:
        self.bar.start()
        logging.getLogger("deit_fast").addHandler(self.warnings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("deit_fast").removeHandler(self.warnings)
        self.bar.stop()

    def step(self, step: int) -> None:
        """One more step is done; costs the host microseconds and asks nothing of the device."""
        self.bar.update(self.task, completed=step)

    def numbers(self, step: int, text: str) -> None:
        """Shows the figures of the stretch of steps since the last call."""
        self.bar.update(self.task, completed=step, numbers=text)
        now = time.perf_counter()
        eta = (now - self.start) / max(1, step - self.first_step) * (self.total_steps - step)
        line = f"{self.title}  step {step}/{self.total_steps}  {text}  ETA {eta:,.0f} s"
        self.write(line)
        if not self.console.is_terminal and (now - self.printed >= SECONDS_BETWEEN_LINES or step == self.total_steps):
            self.printed = now
            self.console.print(line, highlight=False, markup=False)

    def say(self, line: str) -> None:
        """One line above the bar."""
        self.console.print(line, highlight=False, markup=False)
        self.write(line)

    def write(self, line: str) -> None:
        """One line for the log file alone, with the time; a full disk is no reason to stop, and is told elsewhere."""
        if self.log is not None:
            with suppress(OSError), self.log.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


class _Warnings(logging.Handler):
    """Shows the package's warnings above the bar, which would otherwise be torn by them; on every rank."""

    def __init__(self, live: LiveLine) -> None:
        super().__init__(logging.WARNING)
        self.live = live
        self.console = Console(stderr=True, soft_wrap=True) if live.console.quiet else live.console

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        self.console.print(line, highlight=False, markup=False)
        self.live.write(line)
