"""What a run tells about itself: running sums of an epoch, one JSON line per epoch, and a live progress line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""Where there is no terminal, such as in a log file, progress is told this often."""

Item = TypeVar("Item")


@dataclass
class EpochSums:
    """Sums over the steps of an epoch so far (all ranks' images, this rank's seconds); they live in the checkpoint."""

    loss: float = 0.0
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    replaced_views: int = 0
    """Views of all ranks that showed another image in place of a bad one."""

    @property
    def mean_loss(self) -> float:
        """Mean loss of the steps counted."""
        return self.loss / max(1, self.steps)

    @property
    def images_per_second(self) -> float:
        """Images through the whole step, over all devices."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def data_wait_fraction(self) -> float:
        """Share of the time in which the trainer waited for the loader."""
        return self.data_wait_seconds / self.seconds if self.seconds else 0.0

    def add(self, other: EpochSums) -> None:
        """Adds the sums of another stretch of steps."""
        self.loss += other.loss
        self.steps += other.steps
        self.images += other.images
        self.seconds += other.seconds
        self.data_wait_seconds += other.data_wait_seconds
        self.replaced_views += other.replaced_views

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return asdict(self)


class WaitClock(Generic[Item]):
    """Passes an iterator's items on and adds up the seconds that its consumer waited for them."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items = items
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class MetricsFile:
    """`metrics.jsonl` of a run: one line per finished epoch."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def keep_epochs(self, epochs: int) -> None:
        """Forgets the rows of epochs after `epochs`: a resumed run does them again."""
        rows = [row for row in self.rows() if row["epoch"] <= epochs]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(self.path)


class LiveLine:
    """Progress for people: a bar on a terminal, plain lines elsewhere, nothing on other ranks than the first."""

    def __init__(self, title: str, *, total_steps: int, first_step: int, epochs: int, enabled: bool = True) -> None:
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

    def __enter__(self) -> LiveLine:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, step: int) -> None:
        """One more step is done; costs the host microseconds and asks nothing of the device."""
        self.bar.update(self.task, completed=step)

    def numbers(self, step: int, epoch: int, sums: EpochSums) -> None:
        """Shows the figures of the stretch of steps since the last call."""
        text = (
            f"epoch {epoch + 1}/{self.epochs}  loss {sums.mean_loss:.3f}  "
            f"{sums.images_per_second:,.0f} images/s  data wait {sums.data_wait_fraction:.0%}"
        )
        if sums.replaced_views:
            text += f"  replaced {sums.replaced_views} views of bad images"
        self.bar.update(self.task, completed=step, numbers=text)
        now = time.perf_counter()
        if not self.console.is_terminal and (now - self.printed >= SECONDS_BETWEEN_LINES or step == self.total_steps):
            self.printed = now
            eta = (now - self.start) / max(1, step - self.first_step) * (self.total_steps - step)
            self.console.print(
                f"{self.title}  step {step}/{self.total_steps}  {text}  ETA {eta:,.0f} s", highlight=False
            )

    def say(self, line: str) -> None:
        """One line above the bar."""
        self.console.print(line, highlight=False)
