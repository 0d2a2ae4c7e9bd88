"""Contenders in interleaved turns: a busy moment of a shared machine then hits all of them alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Turn = Callable[[], int]
"""Does one turn of work and returns how many images went through."""
Prepare = Callable[[], Turn]
"""Gets ready for a turn; not measured."""


@dataclass
class Timing:
    """What a contender did in each of its turns."""

    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def cpu_ms(self) -> list[float]:
        """CPU-milliseconds per image of each turn, all threads and child processes."""
        return [1e3 * cpu / images for images, cpu in zip(self.images, self.cpu_seconds, strict=True)]

    def times_cheaper_than(self, other: Timing) -> float:
        """How many times our CPU time the other needs for an image: the median over the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.cpu_ms, other.cpu_ms, strict=True))

    def row(self) -> dict[str, float]:
        """Median images/s with its extremes, and median CPU-ms per image."""
        speeds = [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]
        return {
            "images_per_second": statistics.median(speeds),
            "images_per_second_min": min(speeds),
            "images_per_second_max": max(speeds),
            "cpu_ms_per_image": statistics.median(self.cpu_ms),
            "turns": len(speeds),
            "images_per_turn": statistics.median(self.images),
        }


def cpu_seconds() -> float:
    """CPU time of this process and all below it, those that have ended included; Linux counts in 1/100 s."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return own + _ticks_below(os.getpid()) / os.sysconf("SC_CLK_TCK")


def _ticks_below(root: int) -> int:
    """Clock ticks of all living descendants of a process and of their ended children."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = sum(int(field) for field in fields[11:15])
    total, generation = 0, {root}
    while generation := {process for process, parent in parents.items() if parent in generation}:
        total += sum(ticks[process] for process in generation)
    return total


OURS = "deit_fast"


class Contender(NamedTuple):
    """What is timed, and who does it."""

    workload: str
    name: str


def time_in_turns(contenders: dict[Contender, Prepare], turns: int, warm_up_turns: int = 1) -> dict[Contender, Timing]:
    """Runs every contender `warm_up_turns` times unmeasured, then all of them in rounds, `turns` times each."""
    for prepare in contenders.values():
        for _ in range(warm_up_turns):
            prepare()()
    timings = {contender: Timing() for contender in contenders}
    for _ in range(turns):
        for contender, prepare in contenders.items():
            turn = prepare()
            start, cpu = time.perf_counter(), cpu_seconds()
            images = turn()
            timings[contender].seconds.append(time.perf_counter() - start)
            timings[contender].cpu_seconds.append(cpu_seconds() - cpu)
            timings[contender].images.append(images)
    return timings
