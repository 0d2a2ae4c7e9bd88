"""What a run counts: sums of an epoch so far, seconds of waiting for data, and files of one JSON line per row."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

logger = logging.getLogger("deit_fast")

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
    skipped_steps: int = 0
    """Of the steps, those whose gradients were not finite; their loss is not in the sum."""
    distillation_loss: float = 0.0
    """The part of `loss` that is the teacher's; 0 without one."""

    @property
    def mean_loss(self) -> float:
        """Mean loss of the steps counted."""
        return self.loss / max(1, self.steps - self.skipped_steps)

    @property
    def mean_distillation_loss(self) -> float:
        """The teacher's part of the mean loss: alpha times the distillation loss."""
        return self.distillation_loss / max(1, self.steps - self.skipped_steps)

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
        self.skipped_steps += other.skipped_steps
        self.distillation_loss += other.distillation_loss

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


class JsonLines:
    """A file of one JSON object a line. A full disk is said once, and does not stop the run."""

    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, False

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; a line that a killed process left unfinished is no row."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                logger.warning("%s has an unfinished line, which is left out", self.path)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._say(error)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Forgets the other rows: a resumed run does them again."""
        partial = self.path.with_suffix(".partial")
        try:
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows() if wanted(row)))
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self.failed:
            self.failed = True
            logger.warning("%s cannot be written (%s); the run goes on", self.path, error.strerror)
