"""CPU time of this process and all below it, from /proc: worker processes and threads count too."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """What /proc/PID/stat says of a living process."""

    pid: int
    parent: int
    ticks: int
    """User and system time, its ended children's included."""


class Stopwatch:
    """Wall and CPU time between its making, or `start`, and `read`, of this process and all below it, ended ones too.

    Linux tells CPU time in microseconds for ourselves, in 1/100 s for others that live. Its own walks through
    /proc are in neither.
    """

    def __init__(self) -> None:
        self.cpu_below = _seconds_below()
        self.start()

    def start(self) -> None:
        """Begins anew without another walk, which takes the longer the more processes the machine has."""
        self.cpu_own, self.wall = _own_seconds(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Seconds by the wall's clock, and of CPU time."""
        wall, cpu_own = time.perf_counter() - self.wall, _own_seconds() - self.cpu_own
        return wall, cpu_own + _seconds_below() - self.cpu_below


def _own_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _seconds_below() -> float:
    return sum(process.ticks for process in below(os.getpid())) / os.sysconf("SC_CLK_TCK")


def below(root: int) -> list[Process]:
    """All living descendants of a process."""
    processes = list(_processes())
    found: list[Process] = []
    generation = {root}
    while generation:
        children = [process for process in processes if process.parent in generation]
        found += children
        generation = {process.pid for process in children}
    return found


def _processes() -> Iterator[Process]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            yield Process(int(entry.name), int(fields[1]), sum(int(field) for field in fields[11:15]))
